//! HTTP/1 framing: the kernel half's parser against httparse with the rules of RFC 9112, section 6.3, in plain form.

use tracer_ebpf::{
    http1::{Side, method, tag_state},
    traceparent,
};

use crate::{
    drive::{Seen, drive},
    mutate::Case,
    seeds::{REQUESTS, RESPONSES},
};

/// The kernel half's window; a smaller one finds more.
const WINDOWS: [usize; 3] = [1024, 160, 300];

pub fn requests(case: Case) {
    check(Side::Request, &case, REQUESTS);
}

pub fn responses(case: Case) {
    check(Side::Response, &case, RESPONSES);
}

fn check(side: Side, case: &Case, seeds: &[&[u8]]) {
    let text = case.text(seeds);
    let request_method = [method::OTHER, method::HEAD, method::CONNECT][usize::from(case.vary) % 3];
    let (_, seen) = drive(side, &[&text], WINDOWS[0], request_method);
    for window in WINDOWS {
        let (_, cut) = drive(side, &case.segments(&text), window, request_method);
        assert_eq!(cut, seen, "in pieces, windows of {window}: {}", text.escape_ascii());
    }
    let reference = Reference::read(side, &text, request_method);
    reference.holds(&seen, &text);
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
    UntilClose,
    /// An interim response: no end.
    Interim,
    /// Upgrade, CONNECT, or framing that two readers might understand differently.
    Opaque,
}

#[derive(Debug)]
struct Message {
    seen: Seen,
    /// Where an end is expected behind it, if the stream holds it.
    end: Option<u64>,
    /// Whether the parser may also give up here: it does not read what is unusual, and says so.
    may_give_up: bool,
    /// Whether it has to.
    must_give_up: bool,
}

/// What a stream comes to, as far as it is beyond doubt.
#[derive(Debug, Default)]
struct Reference {
    messages: Vec<Message>,
    /// The rest is a body or a head that is not over: no event may come of it.
    quiet: bool,
}

impl Reference {
    fn read(side: Side, text: &[u8], request_method: u8) -> Self {
        let mut reference = Self::default();
        let mut at = 0;
        // The parser has no use for empty lines before a response.
        while at < text.len() && !(side == Side::Response && text[at] != b'H') {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let Some((len, status, method, headers)) = head(side, &text[at..], &mut headers) else { break };
            let body = body(side, status, request_method, headers);
            let head_at = at + text[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let (tag, tag_at) = tag(&text[head_at..], headers);
            at += len;
            let odd = is_odd(&text[head_at..at], headers);
            let end = end(body, text, at);
            reference.messages.push(Message {
                seen: Seen::Head {
                    at: at as u64,
                    tag,
                    tag_at,
                    status,
                    method: if side == Side::Request { method } else { method::OTHER },
                    head_len: (at - head_at) as u32,
                },
                end: if body == Body::Interim { None } else { end.map(|end| end as u64) },
                may_give_up: odd,
                must_give_up: body == Body::Opaque,
            });
            match end {
                Some(end) => at = end,
                None => {
                    reference.quiet = matches!(body, Body::Length(_) | Body::UntilClose);
                    return reference;
                }
            }
        }
        reference
    }

    /// Compares, up to where either does not know any more.
    fn holds(&self, seen: &[Seen], text: &[u8]) {
        let text = text.escape_ascii();
        let mut seen = seen.iter();
        for message in &self.messages {
            let found = seen.next().unwrap_or_else(|| panic!("no {message:?}: {text}"));
            let head = match found {
                // Doubt about the tag is always allowed where the head is odd.
                Seen::Head { tag: tag_state::BAD, .. } if message.may_give_up => return,
                head => head,
            };
            if message.must_give_up {
                // What the tag is then does not matter: there is none.
                let Seen::Head { at, .. } = head else { panic!("{head:?}, not {message:?}: {text}") };
                assert!(matches!(&message.seen, Seen::Head { at: expected, .. } if expected == at), "{text}");
                assert_eq!(seen.next(), Some(&Seen::Opaque), "{message:?}: {text}");
                return;
            }
            assert_eq!(head, &message.seen, "{text}");
            let Some(end) = message.end else { continue };
            match seen.next() {
                // Of a response, whatever it is may also go on until the connection is closed.
                Some(Seen::Opaque) | None if message.may_give_up => return,
                found => assert_eq!(found, Some(&Seen::End { at: end }), "{message:?}: {text}"),
            }
        }
        assert!(!self.quiet || seen.next().is_none(), "a phantom within a body: {text}");
    }
}

type Head<'a, 'b> = (usize, u16, u8, &'b [httparse::Header<'a>]);

fn head<'a, 'b>(side: Side, text: &'a [u8], headers: &'b mut [httparse::Header<'a>; 64]) -> Option<Head<'a, 'b>> {
    if side == Side::Request {
        let mut request = httparse::Request::new(headers);
        let len = request.parse(text).ok().filter(httparse::Status::is_complete)?.unwrap();
        let method = match request.method {
            Some("HEAD") => method::HEAD,
            Some("CONNECT") => method::CONNECT,
            _ => method::OTHER,
        };
        Some((len, 0, method, request.headers))
    } else {
        let mut response = httparse::Response::new(headers);
        let len = response.parse(text).ok().filter(httparse::Status::is_complete)?.unwrap();
        Some((len, response.code?, method::OTHER, response.headers))
    }
}

fn named<'a>(headers: &'a [httparse::Header<'_>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// What is known of `traceparent`, and where in the head its value begins.
fn tag(head: &[u8], headers: &[httparse::Header<'_>]) -> (u8, u32) {
    let values: Vec<&[u8]> = named(headers, "traceparent").collect();
    match values[..] {
        [] => (tag_state::ABSENT, 0),
        [one] if one.len() == traceparent::VALUE_LEN && traceparent::parse(one, 0).is_some() => {
            (tag_state::VALID, (one.as_ptr() as usize - head.as_ptr() as usize) as u32)
        }
        _ => (tag_state::BAD, 0),
    }
}

fn body(side: Side, status: u16, request_method: u8, headers: &[httparse::Header<'_>]) -> Body {
    if side == Side::Response {
        match status {
            101 => return Body::Opaque,
            200..=299 if request_method == method::CONNECT => return Body::Opaque,
            0..=199 => return Body::Interim,
            204 | 304 => return Body::None,
            _ if request_method == method::HEAD => return Body::None,
            _ => {}
        }
    }
    let lengths: Vec<&[u8]> = named(headers, "content-length").collect();
    let codings: Vec<&[u8]> = named(headers, "transfer-encoding").collect();
    if !codings.is_empty() {
        if side == Side::Request && !lengths.is_empty() {
            return Body::Opaque;
        }
        let all = codings.join(&b", "[..]);
        let last = all.rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        return match side {
            _ if last.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
            Side::Request => Body::Opaque,
            Side::Response => Body::UntilClose,
        };
    }
    let number = |digits: &&[u8]| {
        let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u64>().ok()
    };
    match (lengths.first(), side) {
        (None, Side::Request) => Body::None,
        (None, Side::Response) => Body::UntilClose,
        (Some(first), _) => match number(first) {
            Some(length) if lengths.iter().all(|other| number(other) == Some(length)) => Body::Length(length),
            _ => Body::Opaque,
        },
    }
}

/// Where a body that begins at `at` ends; `None` if that is not in the stream, or not certain.
fn end(body: Body, text: &[u8], mut at: usize) -> Option<usize> {
    match body {
        Body::None | Body::Interim => Some(at),
        Body::Length(length) => at.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= text.len()),
        Body::UntilClose | Body::Opaque => None,
        Body::Chunked => loop {
            // A size has a digit at least (RFC 9112, section 7.1); httparse takes none for a nought.
            text.get(at).filter(|byte| byte.is_ascii_hexdigit())?;
            let (passed, size) = httparse::parse_chunk_size(text.get(at..)?).ok()?.when_complete()?;
            // httparse reads on over a bare LF in an extension, others end the line there: nothing is certain behind it.
            if text[at..at + passed - 2].contains(&b'\n') {
                return None;
            }
            at += passed;
            if size == 0 {
                let mut trailers = [httparse::EMPTY_HEADER; 64];
                let (passed, _) = httparse::parse_headers(&text[at..], &mut trailers).ok()?.when_complete()?;
                return Some(at + passed);
            }
            at = at.checked_add(usize::try_from(size).ok()?)?;
            if text.get(at..at + 2)? != b"\r\n" {
                return None;
            }
            at += 2;
        },
    }
}

trait Complete<T> {
    fn when_complete(self) -> Option<T>;
}

impl<T> Complete<T> for httparse::Status<T> {
    fn when_complete(self) -> Option<T> {
        if let Self::Complete(value) = self { Some(value) } else { None }
    }
}

/// Whether a line of interest is written as nobody writes it: the parser may then say that it does not know.
fn is_odd(head: &[u8], headers: &[httparse::Header<'_>]) -> bool {
    /// The parser looks at 128 bytes of a line at once.
    const LONG: usize = 100;
    let lengths: Vec<&[u8]> = named(headers, "content-length").collect();
    let codings: Vec<&[u8]> = named(headers, "transfer-encoding").collect();
    let is_blank = |byte: u8| matches!(byte, b' ' | b'\t');
    let blanks = |bytes: &mut dyn Iterator<Item = &u8>| bytes.take_while(|byte| is_blank(**byte)).count();
    let spaced = lengths.iter().chain(&codings).copied().chain(named(headers, "traceparent")).any(|value| {
        let at = value.as_ptr() as usize - head.as_ptr() as usize;
        let before = blanks(&mut head[..at].iter().rev());
        let behind = blanks(&mut head[at + value.len()..].iter());
        before > 8 || behind > 8 || value.len() > LONG
    });
    // A long line is not looked at to see whether its name goes on.
    let named_alike = headers.iter().any(|header| {
        header.name.len() + header.value.len() > LONG
            && ["content-length", "transfer-encoding", "traceparent"]
                .iter()
                .any(|name| header.name.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
    });
    let stretched = codings.iter().any(|value| value.windows(9).any(|part| part.iter().all(|byte| is_blank(*byte))));
    let digits = |value: &&[u8]| (1..16).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let folded = head.split(|byte| *byte == b'\n').any(|line| line.starts_with(b" ") || line.starts_with(b"\t"));
    spaced
        || named_alike
        || stretched
        || folded
        || !lengths.iter().all(digits)
        || lengths.windows(2).any(|pair| pair[0] != pair[1])
        || (!lengths.is_empty() && !codings.is_empty())
        // RFC 9110, section 5.6.1: empty elements of a list are to be passed over.
        || codings.iter().any(|value| value.trim_ascii().ends_with(b","))
}
