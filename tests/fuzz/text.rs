//! The smaller parsers of text.

use fntrace::{
    head::{Head, Keep},
    input::{self, Format},
};
use tracer_ebpf::{
    glob::{self, Matcher, STEPS, Step},
    traceparent::{self, Context},
};

use crate::{
    mutate::Case,
    seeds::{CALL_TREES, FAAS_CHAINS, PATHS, REQUESTS, TRACEPARENTS},
};

/// Against the recommendation's own words: fields of lower-case hex digits, parted by dashes.
pub fn traceparents(case: Case) {
    let text = case.text(TRACEPARENTS);
    let value = text.get(..traceparent::VALUE_LEN);
    let found = value.and_then(|value| traceparent::parse(value, 0));
    assert_eq!(found, value.and_then(plain_traceparent), "{}", text.escape_ascii());
    if let Some(context) = found {
        let mut line = [0; traceparent::LINE_LEN];
        traceparent::write_line(&mut line, &context);
        assert_eq!(line[..], [b"traceparent: ", value.unwrap(), b"\r\n"].concat());
    }
}

fn plain_traceparent(value: &[u8]) -> Option<Context> {
    let fields: Vec<&str> = std::str::from_utf8(value).ok()?.split('-').collect();
    let [version, trace, span, flags] = fields[..] else { return None };
    let hex = |text: &str, len: usize| {
        let good = text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16).ok().filter(|_| good)
    };
    let trace = hex(trace, 32).filter(|id| *id != 0)?;
    let span_id = hex(span, 16).filter(|id| *id != 0)? as u64;
    let flags = hex(flags, 2)? as u8;
    (version == "00").then_some(Context { trace_id: [(trace >> 64) as u64, trace as u64], span_id, flags, pad: [0; 7] })
}

/// Against a table of what each beginning of the pattern matches of each beginning of the path.
pub fn globs((pattern, path): (Vec<u8>, Vec<u8>)) {
    let letters =
        |bytes: Vec<u8>, of: &[u8]| bytes.iter().map(|byte| of[usize::from(*byte) % of.len()]).collect::<Vec<_>>();
    let (pattern, path) = (letters(pattern, b"a/*?*b/"), letters(path, b"aab/"));
    let mut matcher = Matcher::default();
    let (len, path_len) = (pattern.len() as u32, path.len() as u32);
    let mut steps = 0;
    let matched = loop {
        steps += 1;
        assert!(steps < 1 << 20, "no end");
        match matcher.step(len, path_len, |at| pattern[at as usize], |at| path[at as usize]) {
            Step::More => {}
            step => break step == Step::Match,
        }
    };
    assert_eq!(matched, plain_glob(&pattern, &path), "{} {}", pattern.escape_ascii(), path.escape_ascii());
    assert_eq!(glob::matches(&pattern, &path), matched && steps <= STEPS);
}

fn plain_glob(pattern: &[u8], path: &[u8]) -> bool {
    // Of the path's beginnings (by length), those that the pattern so far matches.
    let mut matched: Vec<bool> = (0..=path.len()).map(|len| len == 0).collect();
    for wanted in pattern {
        if *wanted == b'*' {
            for len in 1..=path.len() {
                matched[len] |= matched[len - 1] && path[len - 1] != b'/';
            }
        } else {
            for len in (1..=path.len()).rev() {
                let byte = path[len - 1];
                matched[len] = matched[len - 1] && (byte == *wanted || (*wanted == b'?' && byte != b'/'));
            }
            matched[0] = false;
        }
    }
    matched[path.len()]
}

/// What is said of a request is what httparse finds, is harmless, and does not depend on where the record cuts it.
pub fn request_heads(case: Case) {
    let text = case.text(REQUESTS);
    let keep = Keep { query: true, host: true };
    let head = Head::parse(&text, keep);
    let shown = [Some(&*head.method), Some(&*head.path), head.query.as_deref(), head.host.as_deref()];
    for text in shown.into_iter().flatten() {
        assert!(!text.chars().any(|char| char.is_control() || char == '\u{202e}'), "{text:?}");
        // A byte becomes three at most, percent-encoded or replaced.
        assert!(text.len() <= 3 * tracer_ebpf::record::HEAD_MAX);
    }
    let bare = Head::parse(&text, Keep::default());
    assert_eq!((bare.query, bare.host), (None, None));
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(len)) = request.parse(&text) else { return };
    if len > tracer_ebpf::record::HEAD_MAX {
        return;
    }
    assert_eq!((&head.method, &head.path), (&bare.method, &bare.path), "{}", text.escape_ascii());
    let method = request.method.unwrap();
    assert!(head.method == method || method.len() > 32, "{method} {head:?}");
    let start = text.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line_end = start + text[start..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    if start > 0 {
        // The kernel half leaves out what is before a head.
        return;
    }
    for cut in case.segments(&text[..len]).iter().scan(0, |at, part| {
        *at += part.len();
        Some(*at)
    }) {
        if cut >= line_end {
            let part = Head::parse(&text[..cut], keep);
            assert_eq!(
                (part.method, part.path, part.query),
                (head.method.clone(), head.path.clone(), head.query.clone())
            );
        }
    }
}

/// Whatever a file holds: each line is a trace, or is passed over, or is reported with its number; never more, and never
/// out of order.
pub fn recorded_paths(case: Case) {
    let (format, seeds) = [(Format::Paths, PATHS), (Format::CallTrees, CALL_TREES), (Format::FaasChains, FAAS_CHAINS)]
        [usize::from(case.vary) % 3];
    let text = case.text(seeds);
    let lines = text.split(|byte| *byte == b'\n').count() as u64;
    let numbers = std::cell::RefCell::new(Vec::new());
    input::traces(
        &text[..],
        format,
        |number, trace| {
            numbers.borrow_mut().push(number);
            assert!(!trace.calls.is_empty());
            assert!(trace.calls.is_sorted_by_key(|call| call.at_us));
            for (index, call) in trace.calls.iter().enumerate() {
                assert!(call.caller.is_none_or(|caller| (caller as usize) < index));
            }
        },
        |number, why| {
            numbers.borrow_mut().push(number);
            assert!(!why.is_empty());
        },
    );
    let numbers = numbers.into_inner();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.last().is_none_or(|last| *last <= lines), "{numbers:?}");
}
