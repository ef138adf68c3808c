//! What is taken from a request head to tell whose call it is: hashes, so that a head of any size costs the same.

use tracer_ebpf::record::HEAD_MAX;

use crate::infer::{Clues, Sym, VALUES};

/// Headers that applications and proxies hand on with a request so that it can be found again.
const IDS: [&[u8]; 9] = [
    b"x-request-id",
    b"request-id",
    b"x-correlation-id",
    b"correlation-id",
    b"x-amzn-trace-id",
    b"x-b3-traceid",
    b"x-cloud-trace-context",
    b"x-transaction-id",
    b"uber-trace-id",
];
/// Lines that are looked through.
const LINES: usize = 64;
/// Parts of path and query that are looked at.
const PARTS: usize = 16;
/// A longer part of a path is somebody's name, not the name of what is asked for.
const LONG: usize = 32;

/// What a request asks for, and what it carries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// Method and path, the parts that name somebody left out.
    pub op: Sym,
    pub clues: Clues,
}

/// FNV-1a: the same in every run, as the output must be; who makes two of them meet confuses only its own sandbox.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether a part of a path is somebody's number or name, and not the name of what is asked for.
fn is_name(part: &[u8]) -> bool {
    part.len() > LONG || part.iter().any(u8::is_ascii_digit)
}

fn keep(values: &mut [u64; VALUES], value: u64) {
    if let Some(free) = values.iter_mut().find(|kept| **kept == 0 || **kept == value) {
        *free = value;
    }
}

impl Asked {
    pub fn of(head: &[u8], process: u32) -> Self {
        let head = &head[..head.len().min(HEAD_MAX)];
        let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).take(LINES);
        let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut clues = Clues { process, ..Clues::default() };
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &b""[..]),
        };
        let mut op = hash(method);
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).take(PARTS) {
            let name = is_name(part);
            if name {
                keep(&mut clues.words, hash(part));
            }
            op = op.rotate_left(5) ^ if name { 1 } else { hash(part) };
        }
        for part in query.split(|byte| *byte == b'&').take(PARTS) {
            let value = part.iter().position(|byte| *byte == b'=').map_or(&b""[..], |at| &part[at + 1..]);
            if is_name(value) {
                keep(&mut clues.words, hash(value));
            }
        }
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if !value.is_empty() && IDS.iter().any(|id| name.eq_ignore_ascii_case(id)) {
                keep(&mut clues.ids, hash(value));
            }
        }
        Self { op: op as Sym ^ (op >> 32) as Sym, clues }
    }
}

/// Whom a call goes to.
pub(super) fn callee(address: &[u8; 16], port: u16) -> Sym {
    let hash = hash(address) ^ u64::from(port).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash as Sym ^ (hash >> 32) as Sym
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_about_is_a_clue_and_what_is_asked_is_the_operation() {
        let of = |head: &str| Asked::of(head.as_bytes(), 7);
        let a = of("GET /stock/71 HTTP/1.1\r\nHost: a\r\nX-Request-ID: r1\r\n\r\n");
        let b = of("GET /stock/42?order=9x&page=a HTTP/1.1\r\nx-request-id:  r1 \r\n\r\nx-request-id: r2");
        assert_eq!((a.op, a.clues.ids), (b.op, b.clues.ids));
        assert_ne!(a.clues.words, b.clues.words);
        assert_eq!(b.clues.words.iter().filter(|word| **word != 0).count(), 2);
        assert_eq!(b.clues.ids.iter().filter(|id| **id != 0).count(), 1);
        assert_ne!(a.op, of("PUT /stock/71 HTTP/1.1\r\n\r\n").op);
        assert_ne!(a.op, of("GET /price/71 HTTP/1.1\r\n\r\n").op);
    }

    #[test]
    fn any_bytes_do() {
        for bytes in [&b""[..], b"\n", b" ", b"?", b"GET", b"GET /?=&=", b"\xff\xfe /\xff1 \r\n:\r\n: x"] {
            let _ = Asked::of(bytes, 0);
        }
    }
}
