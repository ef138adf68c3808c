//! Fuzzing of every parser that sees bytes from elsewhere: from the wire, from the kernel's ring buffer, from files.
//!
//! Each target mutates seeds (seeds.rs) and holds the parser against another one, or against itself on the same bytes in
//! another form. In `cargo test` each runs for [`TIME`] on random numbers. `cargo xtask fuzz` runs the same targets under
//! libFuzzer, which keeps what reaches new code; what fails there is left in `__fuzz__/TARGET/crashes` beside this file,
//! where the ordinary run tries it first from then on.

#![cfg(test)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test, in helpers as in tests")]

mod drive;
mod framing;
mod mutate;
mod polled;
mod records;
mod seeds;
mod text;

use std::time::Duration;

use tracer_ebpf::http1;

/// How long a target runs in `cargo test`.
const TIME: Duration = Duration::from_secs(2);

/// The name of a target is that of the test. `cargo xtask fuzz` reads the list of tests.
macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident: $check:path;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            bolero::check!().with_test_time(TIME).with_type().cloned().for_each($check);
        }
    )*};
}

targets! {
    /// Requests and responses: the same as httparse and the RFC's rules say of them, in any segmentation.
    http1_requests: framing::requests;
    http1_responses: framing::responses;
    traceparents: text::traceparents;
    globs: text::globs;
    request_heads: text::request_heads;
    recorded_paths: text::recorded_paths;
    kernel_records: records::any;
    /// Answers of a runtime API: the kernel half and user space read the same.
    deliveries: polled::answers;
}
