//! The Runtime API by which AWS Lambda's runtimes, and those of platforms made after it, are handed their work
//! (<https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>, version 2018-06-01).
//!
//! There a sandbox does not listen, it asks: the answer to `GET …/invocation/next` is the invocation, and
//! `POST …/invocation/{id}/response` or `…/error` ends it. This module recognises these requests, and reads what the
//! answer to the first says in its head. Driven like [`crate::http1`]: word by word, a step at a time.

use crate::{
    Window,
    http1::word::{LETTERS, STRIDE, find_newline, leading_blanks},
    traceparent::{Context, SAMPLED, unhex_word, unhex64},
};

/// What a request asks of the runtime API. Numbers above those of [`crate::http1::method`], so that one field tells both.
pub mod request {
    /// It is not one to a runtime API.
    pub const NONE: u8 = 0;
    /// For the next invocation: the answer is one.
    pub const NEXT: u8 = 16;
    /// It brings an invocation's result.
    pub const RESPONSE: u8 = 17;
    /// It brings the error that an invocation ended with.
    pub const ERROR: u8 = 18;
    /// The runtime could not set itself up.
    pub const INIT_ERROR: u8 = 19;
    /// Another, such as the wait for a snapshot to be restored.
    pub const OTHER: u8 = 20;
}

/// Words of an invocation's id that tell it from others: all but the last four digits.
const ID_WORDS: usize = 4;

/// Length of an invocation's id: that of a UUID. What has another is not understood; to find its end would cost the
/// verifier more than all the rest.
const ID_LEN: u32 = 36;

/// Bytes of a request line before an invocation's id.
const ID_AT: u32 = "POST /2018-06-01/runtime/invocation/".len() as u32;

/// What an invocation is known by at a runtime API: the first 32 bytes of its id.
pub type Id = [u64; ID_WORDS];

const fn text(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// Whether a request that begins so may be one to a runtime API: the first look, at one word.
#[inline(always)]
pub fn may_be<W: Window + ?Sized>(head: &W) -> bool {
    let first = head.word(0);
    first == text(b"GET /201") || first == text(b"POST /20")
}

/// What the request asks whose head, of `len` bytes, begins the window: see [`request`].
#[inline(always)]
pub fn asks<W: Window + ?Sized>(head: &W, len: u32) -> u8 {
    let get = head.word(0) == text(b"GET /201");
    let path = if get { 4 } else { 5 };
    if !may_be(head)
        || len < ID_AT
        || head.word(path) != text(b"/2018-06")
        || head.word(path + 8) != text(b"-01/runt")
        || head.word(path + 12) != text(b"runtime/")
    {
        return request::NONE;
    }
    let (first, second) = (head.word(path + 20), head.word(path + 28));
    if first == text(b"invocati") {
        if get {
            return if second == text(b"on/next ") { request::NEXT } else { request::OTHER };
        }
        if second << 40 != text(b"on/\0\0\0\0\0") << 40 {
            return request::OTHER;
        }
        let behind = head.word(ID_AT + ID_LEN);
        return if behind == text(b"/respons") {
            request::RESPONSE
        } else if behind << 8 == text(b"/error \0") << 8 {
            request::ERROR
        } else {
            request::OTHER
        };
    }
    if !get && first == text(b"init/err") && second << 40 == text(b"or \0\0\0\0\0") << 40 {
        return request::INIT_ERROR;
    }
    request::OTHER
}

/// The id in the target of a request that is [`request::RESPONSE`] or [`request::ERROR`].
#[inline(always)]
pub fn id_of<W: Window + ?Sized>(head: &W) -> Id {
    id(head, ID_AT)
}

#[inline(always)]
fn id<W: Window + ?Sized>(head: &W, at: u32) -> Id {
    [head.word(at), head.word(at + 8), head.word(at + 16), head.word(at + 24)]
}

/// Reads an `X-Amzn-Trace-Id`, `Root=1-8-24;Parent=16;Sampled=1` with that many hex digits, as the context that it
/// stands for in W3C's terms. `None` if it is not whole: without a parent there is nothing to join to.
#[inline(always)]
pub fn trace<W: Window + ?Sized>(head: &W, at: u32) -> Option<Context> {
    let mut bad = head.word(at) << 8 ^ text(b"Root=1-\0") << 8;
    let time = unhex_word(head.word(at + 7), &mut bad);
    bad |= u64::from(head.byte(at + 15) ^ b'-');
    let high = unhex_word(head.word(at + 16), &mut bad);
    let low = unhex64(head, at + 24, &mut bad);
    bad |= head.word(at + 40) ^ text(b";Parent=");
    let span_id = unhex64(head, at + 48, &mut bad);
    bad |= head.word(at + 64) ^ text(b";Sampled");
    let sampled = head.word(at + 72);
    bad |= u64::from(sampled as u8 ^ b'=');
    let flags = ((sampled >> 8) as u8).wrapping_sub(b'0');
    let trace_id = [u64::from(time) << 32 | u64::from(high), low];
    if bad != 0 || flags > SAMPLED || span_id == 0 || (trace_id[0] | trace_id[1]) == 0 {
        return None;
    }
    Some(Context { trace_id, span_id, flags, pad: [0; 7] })
}

/// Most steps of [`Delivery::step`] over a head of [`crate::record::HEAD_MAX`] bytes: each passes a line or 32 bytes, and
/// no line is shorter than two.
pub const STEPS: u32 = 512;

/// What the head of an answer to [`request::NEXT`] says, as it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Delivery {
    /// The invocation's id; zeros if it was not found.
    pub id: Id,
    /// The trace that it comes with; a span id of 0 if with none.
    pub context: Context,
    at: u32,
    /// 1 inside of a line.
    inside: u32,
}

impl Delivery {
    /// At the beginning of a head.
    pub const NEW: Self = Self {
        id: [0; ID_WORDS],
        context: Context { trace_id: [0; 2], span_id: 0, flags: 0, pad: [0; 7] },
        at: 0,
        inside: 0,
    };

    /// Reads on in the `len` bytes of the head. `false` at its end.
    #[inline(always)]
    pub fn step<W: Window + ?Sized>(&mut self, head: &W, len: u32) -> bool {
        if self.at >= len {
            return false;
        }
        if self.inside == 0 {
            if head.byte(self.at) == b'\r' || head.byte(self.at) == b'\n' {
                return false;
            }
            self.line(head, len);
        }
        let found = find_newline(head, self.at);
        self.inside = u32::from(found >= STRIDE);
        self.at += if found >= STRIDE { STRIDE } else { found + 1 };
        true
    }

    #[inline(always)]
    fn line<W: Window + ?Sized>(&mut self, head: &W, len: u32) {
        let word = |offset: u32| head.word(self.at + offset) | LETTERS;
        if word(0) != text(b"lambda-r") {
            return;
        }
        if word(8) == text(b"untime-t") && word(16) == text(b"race-id:") {
            let at = self.at + 24 + leading_blanks(head.word(self.at + 24));
            if self.context.span_id == 0
                && at + 74 <= len
                && let Some(context) = trace(head, at)
            {
                self.context = context;
            }
        } else if word(8) == text(b"untime-a")
            && word(16) == text(b"ws-reque")
            && word(24) << 16 == text(b"st-id:\0\0") << 16
        {
            let at = self.at + 30 + leading_blanks(head.word(self.at + 30));
            if self.id[0] == 0 && head.byte(at + ID_LEN) == b'\r' {
                self.id = id(head, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
    const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";

    fn ask(line: &str) -> u8 {
        let head = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\r\n");
        asks(head.as_bytes(), head.len() as u32)
    }

    fn read(head: &str) -> Delivery {
        let mut delivery = Delivery::NEW;
        let mut steps = 0;
        while delivery.step(head.as_bytes(), head.len() as u32) {
            steps += 1;
        }
        assert!(steps <= STEPS, "{steps} steps");
        delivery
    }

    #[test]
    fn requests_to_the_runtime_api_are_told_from_all_others() {
        assert_eq!(ask("GET /2018-06-01/runtime/invocation/next"), request::NEXT);
        assert_eq!(ask(&format!("POST /2018-06-01/runtime/invocation/{UUID}/response")), request::RESPONSE);
        assert_eq!(ask(&format!("POST /2018-06-01/runtime/invocation/{UUID}/error")), request::ERROR);
        assert_eq!(ask("POST /2018-06-01/runtime/invocation/7/error"), request::OTHER);
        assert_eq!(ask("POST /2018-06-01/runtime/init/error"), request::INIT_ERROR);
        assert_eq!(ask("GET /2018-06-01/runtime/restore/next"), request::OTHER);
        assert_eq!(ask("GET /2018-06-01/runtime/invocation/next/more"), request::OTHER);
        for other in [
            "GET /2018-06-01/runtimes/invocation/next",
            "GET /2018-06-02/runtime/invocation/next",
            "POST /2015-03-31/functions/function/invocations",
            "POST /2020-01-01/extension/register",
            "GET /2018-06-01/photos/of/the/invocation/next",
            "PUT /2018-06-01/runtime/invocation/next",
            "GET /stock/42",
        ] {
            assert_eq!(ask(other), request::NONE, "{other}");
        }
        assert_eq!(asks(&b"GET /2018-06-01/runtime/"[..], 24), request::NONE, "cut");
    }

    #[test]
    fn an_answer_and_the_request_that_ends_it_have_one_id() {
        let head =
            |id: &str| format!("HTTP/1.1 200 OK\r\nX: y\r\nlambda-runtime-AWS-request-id:  {id}\r\nDate: now\r\n\r\n");
        let end = format!("POST /2018-06-01/runtime/invocation/{UUID}/response HTTP/1.1\r\n\r\n");
        assert_eq!(read(&head(UUID)).id, id_of(end.as_bytes()));
        assert_eq!(read(&head("7")).id, [0; 4], "not understood");
    }

    #[test]
    fn an_amazon_trace_id_is_a_context() {
        let context = trace(TRACE.as_bytes(), 0).unwrap();
        assert_eq!(context.trace_id, [0x5759_e988_bd86_2e3f, 0xe1be_46a9_9427_2793]);
        assert_eq!((context.span_id, context.flags), (0x5399_5c3f_42cd_8ad8, SAMPLED));
        let off = TRACE.replace("Sampled=1", "Sampled=0");
        assert_eq!(trace(off.as_bytes(), 0).unwrap().flags, 0);
        for bad in [
            TRACE.replace("Root=1", "Root=2"),
            TRACE.replace("Parent=5", "Parent=G"),
            TRACE.replace("Sampled=1", "Sampled=?"),
            TRACE.replace("53995c3f42cd8ad8", "0000000000000000"),
            "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1".to_owned(),
            String::new(),
        ] {
            assert_eq!(trace(bad.as_bytes(), 0), None, "{bad}");
        }
    }

    #[test]
    fn a_head_is_read_whatever_stands_around_and_however_long() {
        let filler = format!("Lambda-Runtime-Client-Context: {}\r\n", "x".repeat(300));
        let head = format!(
            "HTTP/1.1 200 OK\r\n{filler}Lambda-Runtime-Trace-Id: {TRACE};Lineage=a:1\r\n{filler}\
             Lambda-Runtime-Aws-Request-Id: {UUID}\r\n\r\nLambda-Runtime-Aws-Request-Id: 1\r\n"
        );
        let delivery = read(&head);
        assert_eq!(delivery.context.span_id, 0x5399_5c3f_42cd_8ad8);
        assert_eq!(delivery.id[0], text(b"8476a536"));
        let body = "HTTP/1.1 200 OK\r\n\r\nLambda-Runtime-Aws-Request-Id: 1\r\n\r\n";
        assert_eq!(read(body), Delivery { at: 17, ..Delivery::NEW }, "a body is no head");
    }

    proptest! {
        #[test]
        fn never_panics_and_ends(bytes in prop::collection::vec(any::<u8>(), 0..crate::record::HEAD_MAX), lines: bool) {
            let mut bytes = bytes;
            if lines {
                bytes.iter_mut().for_each(|byte| *byte = b"\r\nL:x"[usize::from(*byte) % 5]);
            }
            let _ = asks(&bytes[..], bytes.len() as u32);
            let _ = id_of(&bytes[..]);
            let mut delivery = Delivery::NEW;
            let mut steps = 0;
            while delivery.step(&bytes[..], bytes.len() as u32) {
                steps += 1;
            }
            prop_assert!(steps <= STEPS);
        }
    }
}
