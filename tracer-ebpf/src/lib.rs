//! What the two halves of fntrace share: the records that travel from the kernel to user space, the parser of
//! HTTP/1.1 framing, the W3C `traceparent`, and Lambda's runtime API.
//!
//! Everything here is `no_std`, allocates nothing and never panics, so that the same lines run in a BPF program and in
//! a test on the host. Nothing here may know aya.

#![cfg_attr(not(test), no_std)]

pub mod counter;
pub mod glob;
pub mod http1;
pub mod record;
pub mod runtime_api;
pub mod traceparent;

/// Bytes that a parser looks at: a slice on the host, a map value in the kernel.
pub trait Window {
    /// Eight bytes from `at`, the first in the lowest. What lies beyond the window's end may be anything: a parser
    /// knows how long its window is and does not believe what comes after.
    fn word(&self, at: u32) -> u64;

    /// The byte at `at`.
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.word(at) as u8
    }
}

impl Window for [u8] {
    fn word(&self, at: u32) -> u64 {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(self.iter().skip(at as usize)) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    }
}
