//! wake: `tp_btf/sched_waking(p)`.
//!
//! kernel/sched/core.c, try_to_wake_up: fires where the waking is done, before `p` can run; in the task that wakes, or in
//! an interrupt on top of any task. System-wide: a look-up of the woken thread in our own table comes before anything
//! else.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    kernel::{self, Typed},
    maps::FLOOR,
};

#[btf_tracepoint(function = "sched_waking")]
pub fn fn_wake(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    // SAFETY: the tracepoint's argument, typed by BTF.
    if let Some(wakee) = unsafe { Typed::new(context.arg::<*const u8>(0)) } {
        attribution::wakes(kernel::current_task(), wakee);
    }
    0
}
