//! The kernel half: one module per hook in [`hooks`], what they share beside it.
//!
//! Nothing here needs kprobes, fentry, BPF-LSM or a write to user memory, so it runs where the kernel is locked down.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics, asm_experimental_arch),
    expect(internal_features, reason = "atomics, see atomic.rs")
)]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod attribution;
#[cfg(target_arch = "bpf")]
mod connection;
#[cfg(target_arch = "bpf")]
mod early;
#[cfg(target_arch = "bpf")]
mod exchange;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod pointer;
#[cfg(target_arch = "bpf")]
mod scratch;
#[cfg(target_arch = "bpf")]
mod stream;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}

/// Helpers marked GPL-only (probe_read_kernel, the socket casts) ask for it.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The package also builds for the host, where there is nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
