//! The user half of fntrace.
//!
//! Data flows one way: the kernel half's records come out of the ring buffer, [`assemble`] joins them to call paths, a
//! [`sink`] prints these. Finding sandboxes ([`sandbox`]), naming functions ([`name`]) and probing the host ([`host`]) stand beside
//! the flow.

pub mod assemble;
pub mod demo;
pub mod path;
