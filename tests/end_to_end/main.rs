//! End-to-end tests: real functions in sandboxes of their own, traced by the real agent on this host's kernel.
//!
//! What is asserted are the edges. The functions hand each other the true parent in a header that the agent does not
//! know, and answer with the `traceparent` that reached them; [`truth`] holds that against the agent's output. So a test
//! fails when the agent does nothing, when it draws a wrong edge, and when it says "tagged" of a request that was not.
//!
//! They need root, and `cargo xtask functions` once before. Both are errors when missing, never a reason to skip.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test, in helpers as in tests")]

mod agent;
mod ahead;
mod bytes;
mod capabilities;
mod client;
mod container;
mod containers;
mod cost;
mod counters;
mod demo;
mod discovery;
mod faults;
mod functions;
mod go;
mod harness;
mod hostile;
mod lambda;
mod leaving;
mod life;
mod loops;
mod namespaces;
mod paths;
mod recording;
mod sandbox;
#[allow(dead_code, reason = "the checks in virtual machines use more of it")]
mod shop;
mod sidecar;
mod strangers;
mod trust;
mod truth;
mod watchdogs;
