//! What comes out of the ring buffer: decoded, assembled and printed.

use bolero::TypeGenerator;
use fntrace::{
    assemble::{Assembler, Config},
    path::Line,
};
use tracer_ebpf::record::{self, Body, End, Header, Listen, Start};

/// Bytes that are nearly a record: a header that says something, then a little or a lot.
#[derive(Clone, Debug, TypeGenerator)]
pub struct Bytes {
    at: u16,
    #[generator(0..4u8)]
    sandbox: u8,
    #[generator(0..18u8)]
    kind: u8,
    tail_len: u16,
    /// Few values, so that records meet: connections, spans, sequence numbers.
    fixed: [u8; 13],
    rest: Vec<u8>,
    #[generator(0..8u8)]
    exact: u8,
}

impl Bytes {
    fn bytes(&self) -> Vec<u8> {
        let few = |index: usize| u64::from(self.fixed[index] % 4);
        let tail_len = if self.exact == 0 { self.tail_len } else { self.rest.len() as u16 };
        let header = Header {
            at_ns: u64::from(self.at) << 16,
            sandbox: u64::from(self.sandbox),
            kind: u16::from(self.kind),
            tail_len,
            pid: 1,
        };
        let mut bytes = record::as_bytes(&header).to_vec();
        let mut fixed = match self.kind {
            3 | 5 | 7 | 9 => vec![0; size_of::<Start>()],
            4 | 6 | 8 => vec![0; size_of::<End>()],
            17 => vec![0; size_of::<Listen>()],
            _ => Vec::new(),
        };
        // Wherever the ids are in either: small numbers at each word.
        for (index, word) in fixed.chunks_exact_mut(8).enumerate() {
            word[0] = few(index % 13) as u8;
        }
        if let Some(last) = fixed.last_chunk_mut::<4>() {
            *last = [self.fixed[0], self.fixed[1], self.fixed[2], self.fixed[3]];
        }
        bytes.extend(fixed);
        bytes.extend(&self.rest);
        if self.exact == 1 {
            bytes.truncate(usize::from(self.tail_len) % (bytes.len() + 1));
        }
        bytes
    }
}

pub fn any(all: Vec<Bytes>) {
    // Little room, so that it runs out of it.
    let config = Config { max_open: 8, remember: 8, settle_ns: 1 << 17, query: true, ..Config::default() };
    let mut assembler = Assembler::new(config);
    let (mut good, mut bad, mut given) = (0, 0, 0);
    let mut drain = |assembler: &mut Assembler| {
        while let Some(line) = assembler.take() {
            // Each line can be read again.
            assert_eq!(Line::parse(&serde_json::to_string(&line).unwrap()).unwrap().as_ref(), Some(&line));
            given += 1;
        }
    };
    for one in &all {
        let bytes = one.bytes();
        match record::decode(&bytes) {
            Some(found) => {
                good += 1;
                assert_eq!(
                    written(&found),
                    bytes[..written(&found).len()],
                    "a record is the bytes that it was read from"
                );
                // Cut anywhere, it is none.
                let whole = written(&found).len();
                assert_eq!(record::decode(&bytes[..whole - 1]), None);
            }
            None => bad += 1,
        }
        assembler.read(&bytes);
        assert!(assembler.totals().balanced(), "{:?}", assembler.totals());
        assembler.advance(u64::from(one.at) << 16);
        drain(&mut assembler);
    }
    assembler.finish();
    drain(&mut assembler);
    let totals = assembler.totals();
    assert!(totals.balanced() && totals.open == 0, "{totals:?}");
    assert_eq!((totals.records.sum(), totals.undecodable), (good, bad));
    assert_eq!(totals.paths + totals.late, given);
}

/// A record as bytes.
fn written(found: &record::Record<'_>) -> Vec<u8> {
    let header = record::as_bytes(&found.header);
    match &found.body {
        Body::SandboxBorn(tail) | Body::SandboxExec(tail) => [header, tail].concat(),
        Body::Answered(answered) => [header, record::as_bytes(answered)].concat(),
        Body::HandBack(back) => [header, record::as_bytes(back)].concat(),
        Body::UnitSought(sought, stack) => [header, record::as_bytes(sought), stack].concat(),
        Body::SandboxListens(listen) => [header, record::as_bytes(listen)].concat(),
        Body::SandboxGone => header.to_vec(),
        Body::InvocationStart(start, head) | Body::CallStart(start, head) => {
            [header, record::as_bytes(start), head].concat()
        }
        Body::OpaqueStart(start) => [header, record::as_bytes(start)].concat(),
        Body::InvocationEnd(end) | Body::CallEnd(end) | Body::OpaqueEnd(end) => {
            [header, record::as_bytes(end)].concat()
        }
        Body::RuntimeReport(report, head) => [header, record::as_bytes(report), head].concat(),
    }
}
