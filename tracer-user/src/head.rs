//! What a request head says of a call: method, path, query, Host.
//!
//! The bytes come from a sandbox: they may be cut short (a record carries at most
//! [`HEAD_MAX`](tracer_ebpf::record::HEAD_MAX)), malformed, or made to hurt. Nothing here fails; what cannot be read
//! is absent. Strings are lossy UTF-8 and bounded; what would not show as itself is percent-encoded.

use crate::{path::shared, text::is_harmful};
use std::{borrow::Cow, sync::Arc};

use tracer_ebpf::record::HEAD_MAX;

/// Longest method kept, in bytes; registered ones have at most 17.
const METHOD_MAX: usize = 32;
/// Longest host name and port kept: 255 by RFC 1035, 6 for the port.
const HOST_MAX: usize = 261;

/// A request head, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Empty if the request line could not be read.
    pub method: Cow<'static, str>,
    /// Without the query. Of an absolute request target, the path alone.
    pub path: Arc<str>,
    /// Without `?`.
    pub query: Option<Box<str>>,
    /// The Host header, or the authority of an absolute request target.
    pub host: Option<Arc<str>>,
}

/// Which parts to keep beside method and path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The query.
    pub query: bool,
    /// The host.
    pub host: bool,
}

impl Head {
    /// Reads the head at the beginning of `bytes`: the request line by its spaces, Host by its line. That is what a strict
    /// parser finds in a head that is whole and well-formed (the tests compare them), and no further than Host has to be
    /// looked.
    pub fn parse(bytes: &[u8], keep: Keep) -> Self {
        let bytes = &bytes[..bytes.len().min(HEAD_MAX)];
        let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        // Empty lines may come first (RFC 9112, section 2.2).
        let request = lines.find(|line| !line.is_empty()).unwrap_or_default();
        let mut words = request.split(|byte| *byte == b' ');
        let method = words.next().unwrap_or_default();
        // A method is a token; if it is not, or is not followed by a space, this is no request line.
        let Some(target) = words.next().filter(|_| !method.is_empty() && method.iter().all(u8::is_ascii_graphic))
        else {
            return Self::default();
        };
        let mut headers = lines.take_while(|line| !line.is_empty());
        let host = if keep.host { headers.find_map(host) } else { None };
        Self::new(method, target, host, keep)
    }

    fn new(method: &[u8], target: &[u8], host: Option<&[u8]>, keep: Keep) -> Self {
        let (authority, target) = split_absolute(target);
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], keep.query.then(|| lossy(&target[at + 1..], HEAD_MAX).into())),
            None => (target, None),
        };
        let host = host.filter(|host| !host.is_empty()).or(authority);
        Self {
            method: method_name(method),
            path: shared(&lossy(path, HEAD_MAX)),
            query,
            host: host.filter(|_| keep.host).map(|host| shared(&lossy(host, HOST_MAX))),
        }
    }

    /// Whether there was a request line.
    pub fn is_some(&self) -> bool {
        !self.method.is_empty()
    }
}

/// The value, if it is this line's.
fn host(line: &[u8]) -> Option<&[u8]> {
    let (name, value) = line.split_at_checked(5)?;
    name.eq_ignore_ascii_case(b"host:").then(|| value.trim_ascii())
}

/// Splits `http://authority/path`, which goes to proxies (RFC 9112, section 3.2.2).
fn split_absolute(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let skip = if scheme(b"http://") {
        7
    } else if scheme(b"https://") {
        8
    } else {
        return (None, target);
    };
    let rest = &target[skip..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // Who logs in to the proxy is nobody's business.
    let host = authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    (Some(host), if path.is_empty() { b"/" } else { path })
}

/// The usual methods are not copied.
fn method_name(method: &[u8]) -> Cow<'static, str> {
    Cow::Borrowed(match method {
        b"GET" => "GET",
        b"POST" => "POST",
        b"PUT" => "PUT",
        b"DELETE" => "DELETE",
        b"HEAD" => "HEAD",
        b"PATCH" => "PATCH",
        b"OPTIONS" => "OPTIONS",
        b"CONNECT" => "CONNECT",
        b"TRACE" => "TRACE",
        other => return Cow::Owned(lossy(other, METHOD_MAX).into_owned()),
    })
}

/// As text, with what would not show as itself percent-encoded: a reader may print a field of the JSON as it is.
pub(crate) fn lossy(bytes: &[u8], max: usize) -> Cow<'_, str> {
    let bytes = &bytes[..bytes.len().min(max)];
    // Nearly everything; the other way looks at each character.
    if bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(str::from_utf8(bytes).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(is_harmful) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_harmful(char) {
            char.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push_str(&format!("%{byte:02X}")));
        } else {
            out.push(char);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Keep = Keep { query: true, host: true };

    fn parse(head: &str) -> (String, String, Option<String>, Option<String>) {
        let head = Head::parse(head.as_bytes(), ALL);
        (head.method.into(), (*head.path).into(), head.query.map(Into::into), head.host.map(|host| (*host).into()))
    }

    fn expect(
        method: &str,
        path: &str,
        query: Option<&str>,
        host: Option<&str>,
    ) -> (String, String, Option<String>, Option<String>) {
        (method.into(), path.into(), query.map(Into::into), host.map(Into::into))
    }

    #[test]
    fn whole_heads() {
        assert_eq!(
            parse("GET /stock/42?x=1&y HTTP/1.1\r\nUser-Agent: x\r\nhOST: inventory:8080\r\n\r\nbody"),
            expect("GET", "/stock/42", Some("x=1&y"), Some("inventory:8080"))
        );
        assert_eq!(parse("PURGE /a HTTP/1.0\r\n\r\n"), expect("PURGE", "/a", None, None));
    }

    #[test]
    fn targets_that_are_not_a_path() {
        assert_eq!(
            parse("GET http://user:pw@shop.example:80/a?b HTTP/1.1\r\n\r\n"),
            expect("GET", "/a", Some("b"), Some("shop.example:80"))
        );
        assert_eq!(parse("GET http://x HTTP/1.1\r\nHost: y\r\n\r\n"), expect("GET", "/", None, Some("y")));
        assert_eq!(parse("OPTIONS * HTTP/1.1\r\n\r\n"), expect("OPTIONS", "*", None, None));
        assert_eq!(parse("CONNECT a:443 HTTP/1.1\r\n\r\n"), expect("CONNECT", "a:443", None, None));
    }

    #[test]
    fn cut_short() {
        assert_eq!(parse("GET /sto"), expect("GET", "/sto", None, None));
        assert_eq!(parse("GE"), expect("", "", None, None));
        assert_eq!(parse(""), expect("", "", None, None));
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: a\r\nCookie: xxx"), expect("GET", "/", None, Some("a")));
    }

    #[test]
    fn more_headers_than_are_looked_through() {
        let head = format!("GET /x HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(100));
        assert_eq!(parse(&head), expect("GET", "/x", None, Some("h")));
    }

    #[test]
    fn only_what_is_asked_for() {
        let head = Head::parse(b"GET /x?secret HTTP/1.1\r\nHost: h\r\n\r\n", Keep::default());
        assert_eq!((&*head.path, head.query, head.host), ("/x", None, None));
    }

    #[test]
    fn hostile_bytes_are_kept_as_text_that_shows_as_itself() {
        let head = Head::parse(b"GET /\x1b[2J\xff\xe2\x80\xae HTTP/1.1\r\n\r\n", ALL);
        assert_eq!(&*head.path, "/%1B[2J\u{fffd}%E2%80%AE");
        assert!(!Head::parse(b"\x16\x03\x01 \x00", ALL).is_some());
    }

    /// As a strict parser has it; `None` for what is not a whole head.
    fn strict(bytes: &[u8]) -> Option<Head> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(bytes).ok()?;
        let host = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
        let host = host.map(|header| header.value);
        parsed
            .is_complete()
            .then(|| Head::new(request.method.unwrap().as_bytes(), request.path.unwrap().as_bytes(), host, ALL))
    }

    proptest! {
        #[test]
        fn a_whole_head_is_read_as_a_strict_parser_reads_it(
            before in "(\r?\n){0,2}",
            method in "(GET|POST|[A-Z!-~]{1,40}|)",
            target in "(/[ -~]{0,20}|[hH]ttp://([a-z]{0,9}@)?[a-z:]{0,9}[/?]?[a-z?]{0,9}|\\*|\\PC{0,9})",
            headers in prop::collection::vec("(Host|HOST|Hostx|X|[!-~]{1,9}):[ \t]{0,2}([ -~]{0,12}|\\PC{0,5})[ \t]{0,2}\r?\n", 0..6),
        ) {
            let head = format!("{before}{method} {target} HTTP/1.1\r\n{}\r\n", headers.concat());
            if let Some(strict) = strict(head.as_bytes()) {
                prop_assert_eq!(Head::parse(head.as_bytes(), ALL), strict);
            }
        }

        #[test]
        fn never_panics_and_is_bounded(bytes: Vec<u8>, prefix in "(GET |GET http://)?") {
            let head = Head::parse(&[prefix.as_bytes(), &bytes].concat(), ALL);
            // A byte that is not UTF-8 becomes three, and so does one that would not show as itself.
            prop_assert!(head.method.len() <= 3 * METHOD_MAX && head.path.len() <= 3 * HEAD_MAX);
            prop_assert!(head.host.is_none_or(|host| host.len() <= 3 * HOST_MAX));
        }
    }
}
