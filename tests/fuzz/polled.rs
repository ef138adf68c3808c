//! What a runtime API says, as the kernel half and as user space read it.

use fntrace::polled::{Polled, error_type};
use tracer_ebpf::runtime_api::{self, Delivery, STEPS, request};

use crate::mutate::Case;

const SEEDS: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
      Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\nLambda-Runtime-Deadline-Ms: 1542409706888\r\n\
      Lambda-Runtime-Trace-Id: Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1\r\n\
      Content-Length: 2\r\n\r\n{\"traceparent\":\"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\"}",
    b"POST /2018-06-01/runtime/invocation/8476a536-e9f4-11e8-9739-2dfe598c3fcd/error HTTP/1.1\r\n\
      Lambda-Runtime-Function-Error-Type: Unhandled\r\n\r\n{\"errorType\":\"ValueError\"}",
    b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n",
];

/// Neither panics or runs on; and where the kernel half finds a whole id, it is the beginning of the one that a plain
/// reader of heads finds.
pub fn answers(case: Case) {
    let text = case.text(SEEDS);
    let head = &text[..text.len().min(tracer_ebpf::record::HEAD_MAX)];
    let mut delivery = Delivery::NEW;
    let mut steps = 0;
    while delivery.step(head, head.len() as u32) {
        steps += 1;
    }
    assert!(steps <= STEPS, "{steps} steps over {}", head.escape_ascii());
    let polled = Polled::parse(head);
    if let Some(id) = polled.invocation_id.filter(|id| id.len() == 36 && id.is_ascii() && delivery.id[0] != 0) {
        let found: Vec<u8> = delivery.id.iter().flat_map(|word| word.to_le_bytes()).collect();
        // With the header twice, the two take different ones.
        let twice =
            head.to_ascii_lowercase().windows(24).filter(|at| at.starts_with(b"lambda-runtime-aws-reque")).count() > 1;
        assert!(twice || id.as_bytes().starts_with(&found), "{id} in {}", head.escape_ascii());
    }
    let asks = runtime_api::asks(head, head.len() as u32);
    assert_eq!(asks != request::NONE, is_to_runtime_api(head), "{}", head.escape_ascii());
    let _ = error_type(head);
}

fn is_to_runtime_api(head: &[u8]) -> bool {
    let path = head.strip_prefix(b"GET ").or_else(|| head.strip_prefix(b"POST "));
    // Shorter than the shortest head that ends such a request line.
    head.len() >= 36 && path.is_some_and(|path| path.starts_with(b"/2018-06-01/runtime/"))
}
