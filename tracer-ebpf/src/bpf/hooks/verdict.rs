//! verdict: `sk_skb` on the sockhash, attached only where the self-test finds that it is needed.
//!
//! On kernels with commit 929e30f93125 an enrolled socket answers FIONREAD from the queue that this kind of program
//! fills; without a program it answers 0. Passing everything on repairs it.

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::stream_verdict, programs::SkBuffContext};

#[stream_verdict]
pub fn fn_verdict(_: SkBuffContext) -> u32 {
    SK_PASS
}
