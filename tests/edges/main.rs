//! The truth bench: real functions in real frameworks, several invocations at once, and every edge that the agent
//! reports held against what the functions know.
//!
//! Each call carries the id of its true parent in a header that the agent does not know, and the callee remembers it.
//! A call that the agent puts under another invocation is wrong, one that it leaves as a root is unknown. Rules that are
//! exact by their meaning ([`score::EXACT`]) must never be wrong; all others are measured.
//!
//! `cargo xtask edges` runs all of it and prints a table; a bounded form is a test like any other. Both need root, and
//! `cargo xtask functions` once before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test, in helpers as in tests")]

#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/agent.rs"]
mod agent;
mod bench;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/client.rs"]
mod client;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/functions.rs"]
mod functions;
mod load;
mod runtimes;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/sandbox.rs"]
mod sandbox;
mod score;
mod table;

/// The bounded form.
#[test]
fn the_edges_are_right() {
    bench::bounded();
}

/// The same of the row that takes probes in the function.
#[test]
fn the_edges_of_probed_go_are_right() {
    bench::probed();
}

/// The same of an event loop that gets to what it has read in later rounds.
#[test]
fn the_edges_of_asyncio_are_right() {
    bench::asyncio();
}

/// The same of a pool of threads that works for whoever asks.
#[test]
fn the_edges_of_a_pool_are_right() {
    bench::pool();
}

/// The whole of it, as `cargo xtask edges` runs it.
#[test]
#[ignore = "started by cargo xtask edges"]
fn whole() {
    bench::whole();
}
