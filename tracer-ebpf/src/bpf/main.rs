//! The kernel half: one module per hook in [`hooks`], what they share beside it.
//!
//! Nothing here needs kprobes, fentry, BPF-LSM or a write to user memory, so it runs where the kernel is locked down.
//! Builds for the BPF target only; the feature `object` keeps it out of every other build.

#![no_std]
#![no_main]
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(internal_features, reason = "atomics, see atomic.rs")]

mod atomic;
mod attribution;
mod births;
mod bound;
mod connection;
mod early;
mod exchange;
mod facts;
mod hooks;
mod kernel;
mod maps;
mod packet;
mod pointer;
mod process;
mod runtime_api;
mod sampling;
mod scratch;
mod stream;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}

/// Helpers marked GPL-only (probe_read_kernel, the socket casts) ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
