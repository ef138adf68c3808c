//! Records survive the way through bytes, and any bytes are looked at without a panic.

use super::*;
use proptest::prelude::*;

#[test]
fn a_call_survives_the_round_trip() {
    let start = Start {
        conn: 7,
        context: Context { trace_id: [1, 2], span_id: 3, flags: 1, pad: [0; 7] },
        parent: 4,
        wire: Wire { local: [1; 16], remote: [2; 16], netns: 5, local_port: 80, remote_port: 81, pad: 0 },
        sequence: 6,
        flags: START_INBOUND,
        rule: Rule::Exclusive as u8,
        tag: Tag::Injected as u8,
        live: 1,
        trust: 0,
        pad: [0; 3],
        tid: 10,
        unit: [12, 13],
    };
    let header = Header { at_ns: 1, sandbox: 2, kind: Kind::CallStart as u16, tail_len: 5, pid: 9 };
    let bytes = [as_bytes(&header), as_bytes(&start), b"GET /"].concat();
    assert_eq!(decode(&bytes), Some(Record { header, body: Body::CallStart(start, b"GET /") }));
    for cut in 0..bytes.len() {
        assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
    }
}

#[test]
fn numbers_and_names_agree() {
    for (index, tag) in Tag::ALL.iter().enumerate() {
        assert_eq!(*tag as usize, index);
        assert_eq!(Tag::from_u8(index as u8), Some(*tag));
    }
    for (index, rule) in Rule::ALL.iter().enumerate() {
        assert_eq!(*rule as usize, index);
    }
    assert_eq!(Tag::from_u8(200), None);
    assert_eq!(Rule::from_u8(200), None);
}

proptest! {
    #[test]
    fn never_panics(bytes: Vec<u8>) {
        let _ = decode(&bytes);
    }
}
