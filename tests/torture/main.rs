//! Torture: random sequences of requests, sent and received in every way that Linux has, without and with the agent.
//!
//! A seed makes a plan; the plan is carried out on a connection of its own, first without the agent, then with it. Every
//! byte that arrives is compared with what was sent, but for a `traceparent` line directly before the empty line of a
//! request head that had none, and a parent id in a context that was passed on. FIONREAD, epoll and what each side sees
//! of the end must be the same. Nothing may take longer than it did without.
//!
//! Where the kernel's enrolled sockets need a repair that breaks some ways of reading, the agent is run twice: as it runs
//! by default, when nothing at all may differ, and with `--tag on`, when those ways are left out.
//!
//! A failure names its seed; `cargo xtask torture --seed SEED` runs that one alone and prints its plan, and
//! `cargo xtask torture --minutes N` goes on with random seeds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test, in helpers as in tests")]

#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/agent.rs"]
mod agent;
mod content;
mod driver;
mod execute;
mod plan;
mod random;
mod receiving;
mod ring;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/sandbox.rs"]
mod sandbox;
mod sending;
mod stream;
mod sys;
mod worker;

#[test]
fn nothing_but_the_tag_changes() {
    driver::main();
}

/// The process in the sandbox: this binary again, started by the test above.
#[test]
#[ignore = "started by nothing_but_the_tag_changes"]
fn worker() {
    worker::main();
}
