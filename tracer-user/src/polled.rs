//! What the runtime API says of an invocation ([`tracer_ebpf::runtime_api`]): the head of the answer to a poll, with the
//! beginning of the event behind it, and the head of the request that brings an error.
//!
//! As in [`crate::head`] the bytes may be anything, nothing here fails, and what cannot be read is absent.

use tracer_ebpf::traceparent::{self, Context, VALUE_LEN};

use crate::head::lossy;

/// Longest id, name or error type that is kept; an ARN has at most some 200 characters.
const TEXT_MAX: usize = 256;
/// Header lines that are looked through.
const HEADERS_MAX: usize = 64;

/// An invocation that a runtime polled for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// The id by which the platform knows it.
    pub invocation_id: Option<Box<str>>,
    /// The function's resource name (ARN).
    pub resource_id: Option<Box<str>>,
    /// When the platform's patience ends, ms since 1970; 0 if it does not say.
    pub deadline_ms: u64,
    /// The context in the event itself, where a platform puts its caller's headers there.
    pub in_event: Option<Context>,
    /// How long the runtime took to set itself up, if this invocation was its first, in ns.
    pub init_ns: Option<u64>,
    /// The runtime's or the platform's name for what went wrong.
    pub error_type: Option<Box<str>>,
}

impl Polled {
    /// Reads the answer to a poll.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut polled = Self::default();
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(parsed) = response.parse(bytes) else { return polled };
        for header in response.headers.iter() {
            match () {
                () if header.name.eq_ignore_ascii_case("Lambda-Runtime-Aws-Request-Id") => {
                    polled.invocation_id = Some(lossy(header.value, TEXT_MAX).into());
                }
                () if header.name.eq_ignore_ascii_case("Lambda-Runtime-Invoked-Function-Arn") => {
                    let arn = lossy(header.value, TEXT_MAX);
                    polled.resource_id = (!arn.is_empty()).then(|| arn.into());
                }
                () if header.name.eq_ignore_ascii_case("Lambda-Runtime-Deadline-Ms") => {
                    let digits = std::str::from_utf8(header.value).ok();
                    polled.deadline_ms = digits.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0);
                }
                () => {}
            }
        }
        if let httparse::Status::Complete(len) = parsed {
            polled.in_event = carried(bytes.get(len..).unwrap_or_default());
        }
        polled
    }
}

/// The error type in the request that reports an error: its head, or the beginning of what is behind it. Some runtimes
/// say it in a header of its own, others in the error alone, or in what they tell X-Ray (or in a trailer, which goes by
/// unseen).
pub fn error_type(request: &[u8]) -> Option<Box<str>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    // Also of a head that is cut: what was read before the cut is there.
    let behind = match parsed.parse(request) {
        Ok(httparse::Status::Complete(len)) => request.get(len..).unwrap_or_default(),
        _ => &[],
    };
    let find = |name: &str| parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let told = find(ERROR_TYPE).map(|header| header.value).filter(|name| !name.is_empty());
    let in_cause = || find(XRAY_CAUSE).and_then(|header| values(header.value, b"type").next());
    let name = told.or_else(|| values(behind, b"errorType").next().filter(|name| !name.is_empty())).or_else(in_cause);
    name.map(|name| lossy(name, TEXT_MAX).into())
}

const ERROR_TYPE: &str = "Lambda-Runtime-Function-Error-Type";
/// What X-Ray is to show of the error, its exceptions first.
const XRAY_CAUSE: &str = "Lambda-Runtime-Function-Xray-Error-Cause";

/// The `traceparent` in the beginning of an event, if there is just one: as the value of a key of that name, in whatever
/// case (`{"headers":{"traceparent":"00-…"}}`, as gateways and queues write it). All else in the event is nobody's
/// business.
fn carried(event: &[u8]) -> Option<Context> {
    let mut found = values(event, traceparent::NAME);
    let (one, more) = (found.next()?, found.next());
    if more.is_some() || one.len() != VALUE_LEN {
        return None;
    }
    traceparent::parse(one, 0)
}

/// The texts that are values of a key in the beginning of some JSON. An escaped quote ends them early: no name that is
/// looked for here has one.
fn values<'a>(json: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    (0..json.len()).filter_map(move |at| {
        let (key, rest) = json[at..].strip_prefix(b"\"")?.split_at_checked(name.len())?;
        let rest = rest.strip_prefix(b"\"").filter(|_| key.eq_ignore_ascii_case(name))?.trim_ascii_start();
        let value = rest.strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
        let end = value.iter().position(|byte| *byte == b'"')?;
        Some(&value[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: 8476a536\r\n\
        Lambda-Runtime-Deadline-Ms: 1542409706888\r\n\
        lambda-runtime-invoked-function-arn: arn:aws:lambda:us-east-2:123456789012:function:custom\r\n\
        Content-Length: 99\r\n\r\n";
    const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn an_answer_is_read() {
        let polled = Polled::parse(ANSWER.as_bytes());
        assert_eq!(polled.invocation_id.as_deref(), Some("8476a536"));
        assert_eq!(polled.resource_id.as_deref(), Some("arn:aws:lambda:us-east-2:123456789012:function:custom"));
        assert_eq!(polled.deadline_ms, 1_542_409_706_888);
        assert_eq!(Polled::parse(b"HTTP/1.1 200 OK\r\nLambda-Run"), Polled::default());
        assert_eq!(Polled::parse(b"\xff\x00"), Polled::default());
    }

    #[test]
    fn a_context_in_the_event_is_found_if_it_is_the_only_one() {
        let event = |event: &str| Polled::parse(format!("{ANSWER}{event}").as_bytes()).in_event;
        let one = format!(r#"{{"headers": {{"accept": "*/*", "Traceparent" : "{CONTEXT}"}}}}"#);
        assert_eq!(event(&one).map(|context| context.span_id), Some(0x00f0_67aa_0ba9_02b7));
        assert_eq!(event(&format!("{one}{one}")), None, "which?");
        assert_eq!(event(&one.replace("-01", "-0x")), None);
        assert_eq!(event(&one[..one.len() - 4]), None, "cut");
        assert_eq!(event(&format!(r#"{{"note":"traceparent {CONTEXT}"}}"#)), None);
        assert_eq!(event("{}"), None);
    }

    #[test]
    fn an_error_has_its_type() {
        let head = "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\n\
            Lambda-Runtime-Function-Error-Type: Runtime.ImportModuleError\r\n";
        assert_eq!(error_type(head.as_bytes()).as_deref(), Some("Runtime.ImportModuleError"));
        assert_eq!(error_type(b"POST / HTTP/1.1\r\n\r\n"), None);
        let body = br#"POST / HTTP/1.1\r\n\r\n{"errorMessage": "x", "errorType": "ValueError", "stackTrace": ["#;
        let body = String::from_utf8_lossy(body).replace("\\r\\n", "\r\n");
        assert_eq!(error_type(body.as_bytes()).as_deref(), Some("ValueError"));
        let cause = "POST / HTTP/1.1\r\n\
            lambda-runtime-function-xray-error-cause: {\"exceptions\": [{\"message\": \"x\", \"type\": \"KeyError\"}]}\r\n\r\n";
        assert_eq!(error_type(cause.as_bytes()).as_deref(), Some("KeyError"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, prefix in "(HTTP/1.1 200 OK\r\n\r\n)?(\"traceparent\":\")?") {
            let bytes = [prefix.as_bytes(), &bytes].concat();
            let _ = (Polled::parse(&bytes), error_type(&bytes), carried(&bytes));
        }
    }
}
