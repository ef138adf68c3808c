//! The user half of fntrace.
//!
//! Data flows one way: the kernel half's records come out of the ring buffer, [`assemble`] joins them to call paths, a
//! [`sink`] prints these. Finding sandboxes, naming functions and probing the host stand beside the flow.

pub mod assemble;
pub mod head;
pub mod path;
pub mod sink;
