//! What the two halves of fntrace share: the records that travel from the kernel to user space, the parser of
//! HTTP/1.1 framing and the W3C `traceparent`.
//!
//! Everything here is `no_std`, allocates nothing and never panics, so that the same lines run in a BPF program and in
//! a test on the host. Nothing here may know aya.

#![cfg_attr(not(test), no_std)]

pub mod counter;
pub mod http1;
pub mod record;
pub mod traceparent;
