//! The parser against streams whose structure is known, against itself over every split, and against httparse.

use proptest::prelude::*;

use super::{
    word::{leading_blanks, newline, trailing_blanks},
    *,
};
use crate::{http1, traceparent};

/// Shared with the fuzz targets.
#[path = "../../../tests/fuzz/drive.rs"]
mod drive;

use drive::{Seen, drive};

const WINDOW: usize = 512;

fn whole(side: Side, stream: &[u8]) -> Vec<Seen> {
    drive(side, &[stream], WINDOW, method::OTHER).1
}

fn ends(seen: &[Seen]) -> Vec<u64> {
    seen.iter().filter_map(|seen| if let Seen::End { at } = seen { Some(*at) } else { None }).collect()
}

fn heads(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| matches!(seen, Seen::Head { .. })).count()
}

const TAGGED: &[u8] = b"POST /a HTTP/1.1\r\nHost: x\r\nTraceParent:  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 \r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn a_request_with_a_body_is_one_message() {
    let seen = whole(Side::Request, TAGGED);
    assert_eq!(ends(&seen), [TAGGED.len() as u64]);
    let Seen::Head { tag, tag_at, head_len, .. } = seen[0] else { panic!("{seen:?}") };
    assert_eq!(tag, tag_state::VALID);
    assert_eq!(&TAGGED[tag_at as usize..][..3], b"00-");
    assert_eq!(head_len as usize, TAGGED.len() - 5);
}

#[test]
fn every_split_in_two_and_in_single_bytes_gives_the_same() {
    for (side, stream) in streams() {
        let expected = whole(side, &stream);
        for cut in 0..=stream.len() {
            assert_eq!(drive(side, &[&stream[..cut], &stream[cut..]], WINDOW, 0).1, expected, "cut {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(drive(side, &bytes, WINDOW, 0).1, expected);
        for window in [160, 200, 333] {
            assert_eq!(drive(side, &[&stream], window, 0).1, expected, "window {window}");
        }
    }
}

/// Real-looking streams that between them reach every mode.
fn streams() -> Vec<(Side, Vec<u8>)> {
    let long_line = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(700));
    let many = format!("PUT /b HTTP/1.0\r\n{}content-length:3\r\n\r\nabc", "X-Filler: some value here\r\n".repeat(30));
    vec![
        (Side::Request, [TAGGED, TAGGED, b"GET / HTTP/1.1\n\n"].concat()),
        (Side::Request, long_line.into_bytes()),
        (Side::Request, many.into_bytes()),
        (Side::Request, b"\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nHEAD http://a/b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (
            Side::Request,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n5;a=\"b\"\r\nGET /\r\n1A\r\n HTTP/1.1\r\n\r\nGET / HTTP/1\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\n\r\n"
                .to_vec(),
        ),
        (
            Side::Response,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHTTP/1.1 200HTTP/1.1 304 N\r\nContent-Length: 9\r\n\r\nHTTP/1.1 204 \r\n\r\nHTTP/1.1 500 E\r\nTransfer-Encoding:chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.0 200 OK\r\n\r\nuntil the end"
                .to_vec(),
        ),
        (
            Side::Response,
            format!("HTTP/1.1 200 OK\r\nContent-Security-Policy: {}\r\nContent-Length: 2\r\n\r\nab", "a".repeat(900)).into_bytes(),
        ),
        (Side::Request, b"GET / HTTP/1.1\r\ntraceparent: bad\r\n\r\n".to_vec()),
        (Side::Request, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        (Side::Request, b"*1\r\n$4\r\nPING\r\n".to_vec()),
    ]
}

#[test]
fn the_streams_come_to_what_they_are() {
    let seen: Vec<_> = streams().iter().map(|(side, stream)| whole(*side, stream)).collect();
    assert_eq!(heads(&seen[0]), 3);
    assert_eq!(ends(&seen[3]).len(), 2);
    assert!(matches!(seen[3][2], Seen::Head { method: method::HEAD, .. }), "{:?}", seen[3]);
    assert_eq!(ends(&seen[4]).len(), 2, "a body that contains requests is a body: {:?}", seen[4]);
    let statuses: Vec<u16> =
        seen[5].iter().filter_map(|s| if let Seen::Head { status, .. } = s { Some(*status) } else { None }).collect();
    assert_eq!(statuses, [100, 200, 304, 204, 500, 200]);
    assert_eq!(ends(&seen[5]).len(), 4);
    assert_eq!(ends(&seen[6]).len(), 1, "a long header that only begins like one of interest is passed over");
    assert!(matches!(seen[7][0], Seen::Head { tag: tag_state::BAD, .. }));
    assert_eq!(seen[8], [Seen::Opaque]);
    assert_eq!(seen[9], [Seen::Opaque]);
}

#[test]
fn what_is_not_http_is_opaque_at_its_first_byte() {
    for stream in [&b"\x16\x03\x01\x02\x00"[..], b"\0\0\0\x08\x04\xd2\x16\x2f", b"\x10\x0e\0\x04MQTT"] {
        assert_eq!(drive(Side::Request, &[&stream[..1]], WINDOW, 0).1, [Seen::Opaque]);
    }
    // Or at its first eight: another blank, or what no method has, before the space.
    for stream in [&b"GET\0/ HTTP/1.1\r\n\r\n"[..], b"GET\t/ HTTP/1.1\r\n\r\n", b"G\x80T / HTTP/1.1\r\n\r\n"] {
        assert_eq!(whole(Side::Request, stream), [Seen::Opaque]);
    }
    for stream in [&b"A * HTTP/1.1\r\n\r\n"[..], b"GET /\0 HTTP/1.1\r\n\r\n", b"BASELINE-CONTROL / HTTP/1.1\r\n\r\n"] {
        assert!(matches!(whole(Side::Request, stream)[0], Seen::Head { .. }));
    }
}

#[test]
fn framing_that_two_readers_may_understand_differently_is_left_alone() {
    for head in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: \r\n",
        "Content-Length : 5\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: x chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 99999999999999999999\r\n",
    ] {
        let stream = format!("POST / HTTP/1.1\r\n{head}\r\n");
        assert_eq!(whole(Side::Request, stream.as_bytes()).last(), Some(&Seen::Opaque), "{head}");
    }
}

#[test]
fn a_name_that_begins_like_one_and_ends_like_another_is_neither() {
    for line in ["tracepar-Encoding: chunked", "Transferent: x", "Content--encoding: chunked", "tracepar-length: 4"] {
        let stream = format!("POST / HTTP/1.1\r\n{line}\r\n\r\n");
        let seen = whole(Side::Request, stream.as_bytes());
        assert!(matches!(seen[..], [Seen::Head { tag: tag_state::ABSENT, .. }, Seen::End { .. }]), "{line}: {seen:?}");
    }
}

#[test]
fn a_traceparent_in_disguise_is_never_taken_for_absent() {
    let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (line, expected) in [
        (format!("TRACEPARENT:{value}"), tag_state::VALID),
        (format!("traceparent:\t {value}\t"), tag_state::VALID),
        (format!("traceparent : {value}"), tag_state::BAD),
        (format!(" traceparent: {value}"), tag_state::BAD),
        (format!("x: y\r\n\ttraceparent: {value}"), tag_state::BAD),
        (format!("traceparent: {value}\r\ntraceparent: {value}"), tag_state::BAD),
        (format!("traceparent: {}", value.to_uppercase()), tag_state::BAD),
        (format!("traceparent:         {value}"), tag_state::BAD),
        ("traceparent:".to_owned(), tag_state::BAD),
        (format!("traceparent-x: {value}"), tag_state::ABSENT),
        (format!("xtraceparent: {value}"), tag_state::ABSENT),
        (format!("x: traceparent: {value}"), tag_state::ABSENT),
    ] {
        let stream = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        let seen = whole(Side::Request, stream.as_bytes());
        let Seen::Head { tag, .. } = seen[0] else { panic!("{line}: {seen:?}") };
        assert_eq!(tag, expected, "{line}");
    }
}

#[test]
fn connect_and_upgrade_end_the_framing() {
    let response = b"HTTP/1.1 200 OK\r\n\r\n\x16\x03";
    assert_eq!(drive(Side::Response, &[response], WINDOW, method::CONNECT).1.last(), Some(&Seen::Opaque));
    let response = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello";
    assert_eq!(whole(Side::Response, response).last(), Some(&Seen::Opaque));
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(heads(&drive(Side::Response, &[response], WINDOW, method::HEAD).1), 2, "no body after HEAD");
}

#[test]
fn helpers_on_words_agree_with_the_plain_form() {
    for word in [0u64, u64::MAX, 0x0a0a_0a0a_0a0a_0a0a, 0x0b0a_0b0a_0b0a_0b0b, 0x0a00_0000_0000_0b0a] {
        let expected = word.to_le_bytes().iter().position(|byte| *byte == b'\n').unwrap_or(8) as u32;
        assert_eq!(newline(word), expected, "{word:x}");
    }
}

fn header_name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("traceparent".to_owned()),
        Just("Content-Type".to_owned()),
        Just("X-Content-Length".to_owned()),
        Just("transfer-encodings".to_owned()),
        "[A-Za-z-]{1,20}",
    ]
}

prop_compose! {
    fn any_head()(
        method in "(GET|POST|HEAD|CONNECT|PURGE|[A-Z]{1,12})",
        path in "/[a-z0-9/?=&%-]{0,120}",
        headers in prop::collection::vec((header_name(), "[ -~]{0,60}"), 0..12),
        eol in prop_oneof![Just("\r\n"), Just("\n")],
    ) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1{eol}");
        for (name, value) in headers {
            head += &format!("{name}: {value}{eol}");
        }
        (head + eol).into_bytes()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn word_helpers(word: u64) {
        let bytes = word.to_le_bytes();
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        prop_assert_eq!(newline(word), bytes.iter().position(|byte| *byte == b'\n').unwrap_or(8) as u32);
        prop_assert_eq!(leading_blanks(word), bytes.iter().take_while(|b| blank(b)).count() as u32);
        prop_assert_eq!(trailing_blanks(word), bytes.iter().rev().take_while(|b| blank(b)).count() as u32);
    }

    #[test]
    fn blanks_in_words(bytes in prop::collection::vec(prop_oneof![Just(b' '), Just(b'\t'), Just(b'x'), Just(b'\n'), Just(0x89u8), Just(0xa0u8)], 8)) {
        let word = u64::from_le_bytes(bytes[..].try_into().unwrap());
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        prop_assert_eq!(newline(word), bytes.iter().position(|byte| *byte == b'\n').unwrap_or(8) as u32);
        prop_assert_eq!(leading_blanks(word), bytes.iter().take_while(|b| blank(b)).count() as u32);
        prop_assert_eq!(trailing_blanks(word), bytes.iter().rev().take_while(|b| blank(b)).count() as u32);
    }

    #[test]
    fn decimals(value in 0u64..1_000_000_000_000_000) {
        let stream = format!("POST / HTTP/1.1\r\nContent-Length: {value}\r\n\r\n");
        let (flow, _) = drive(Side::Request, &[stream.as_bytes()], WINDOW, 0);
        prop_assert_eq!(flow.remaining, value);
    }

    /// Where httparse finds a complete head, so do we, at the same byte, with the same answer about `traceparent`.
    #[test]
    fn agrees_with_httparse(head in any_head(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(&head);
        prop_assume!(parsed.is_ok());
        let len = parsed.unwrap().unwrap();
        let tags: Vec<_> = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("traceparent")).collect();
        let expected = match tags[..] {
            [] => tag_state::ABSENT,
            [one] if traceparent::parse(one.value, 0).is_some() && one.value.len() == 55 => tag_state::VALID,
            _ => tag_state::BAD,
        };
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(head.len())).collect();
        at.extend([0, head.len()]);
        at.sort_unstable();
        let segments: Vec<&[u8]> = at.windows(2).map(|pair| &head[pair[0]..pair[1]]).collect();
        let (_, seen) = drive(Side::Request, &segments, WINDOW, 0);
        let Some(Seen::Head { at, tag, method, .. }) = seen.first() else { return Err(TestCaseError::fail(format!("{seen:?}"))) };
        prop_assert_eq!(*at as usize, len);
        prop_assert_eq!(*tag, expected);
        let expected = match request.method { Some("HEAD") => method::HEAD, Some("CONNECT") => method::CONNECT, _ => method::OTHER };
        prop_assert_eq!(*method, expected);
    }

    /// Rubbish in any segmentation: always an answer, and the same one.
    #[test]
    fn splits_do_not_matter(
        picks in prop::collection::vec((0usize..10, any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        window in 160usize..600,
    ) {
        let streams = streams();
        let (side, mut stream) = streams[picks[0].0].clone();
        for (_, index, byte) in &picks[1..] {
            let at = index.index(stream.len());
            stream[at] = *byte;
        }
        let expected = whole(side, &stream);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let segments: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        prop_assert_eq!(drive(side, &segments, window, 0).1, expected);
    }

    /// Messages made to be framed: every boundary is found, whatever the bodies hold.
    #[test]
    fn bodies_are_passed_over(
        bodies in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300), 1usize..50), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut stream = Vec::new();
        let mut expected = Vec::new();
        for (chunked, body, size) in &bodies {
            if *chunked {
                stream.extend_from_slice(b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(*size) {
                    stream.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
                    stream.extend_from_slice(chunk);
                    stream.extend_from_slice(b"\r\n");
                }
                stream.extend_from_slice(b"0\r\n\r\n");
            } else {
                stream.extend_from_slice(format!("POST /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
                stream.extend_from_slice(body);
            }
            expected.push(stream.len() as u64);
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let segments: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let (_, seen) = drive(Side::Request, &segments, WINDOW, 0);
        prop_assert_eq!(ends(&seen), expected);
    }
}

/// Steps a flow over `bytes` as the driver does; gives how many bytes lie behind the last body's end.
fn pass(flow: &mut Flow, bytes: &[u8]) -> u64 {
    let mut cursor = Cursor { at: 0, end: bytes.len() as u32, head_at: 0 };
    let mut behind = 0;
    loop {
        if flow.mode == mode::BODY {
            let (taken, event) = flow.pass_body(u64::from(cursor.end - cursor.at));
            cursor.at += taken as u32;
            if event != Event::Drained {
                behind = cursor.at;
            }
            if event == Event::End {
                flow.begin_message(&mut cursor);
            }
            if event == Event::Drained {
                break;
            }
            continue;
        }
        match flow.step(Side::Request, bytes, &mut cursor) {
            Event::Head => {
                let _ = flow.begin_body(Side::Request, method::OTHER);
            }
            Event::End => flow.begin_message(&mut cursor),
            Event::Drained => break,
            _ => {}
        }
    }
    u64::from(cursor.end - behind)
}

#[test]
fn what_a_short_write_left_behind_is_still_the_body() {
    for request in [
        "POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nGET / HTTP/1.1\r\n\r\nxx",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n14\r\nGET / HTTP/1.1\r\n\r\nxx\r\n0\r\n\r\n",
    ] {
        let bytes = request.as_bytes();
        let body_at = request.find("GET").unwrap();
        for cut in body_at + 1..body_at + 20 {
            let mut flow = Flow::NEW;
            let behind = pass(&mut flow, bytes);
            assert!(flow.at_boundary());
            let back = (bytes.len() - cut) as u64;
            assert!(flow.take_back(back, behind), "{cut}");
            assert_eq!((flow.mode, flow.remaining), (mode::BODY, (body_at + 20 - cut) as u64));
            pass(&mut flow, &bytes[cut..]);
            assert!(flow.at_boundary(), "{cut}: {flow:?}");
        }
        // Beyond the body nothing is known.
        let mut flow = Flow::NEW;
        let behind = pass(&mut flow, bytes);
        assert!(!flow.take_back((bytes.len() - body_at + 1) as u64, behind));
    }
    // Within a body that is not over.
    let mut flow = Flow::NEW;
    let bytes = b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\n0123456789";
    let behind = pass(&mut flow, bytes);
    assert!(flow.take_back(4, behind));
    assert_eq!(flow.remaining, 14);
    assert!(!flow.take_back(7, behind + 100));
}
