//! fork, exit: `tp_btf/sched_process_fork(parent, child)` and `tp_btf/sched_process_exit(task, …)`.
//!
//! kernel/fork.c, kernel_clone: fires in the parent, before the child runs, for processes and threads alike. Both are
//! system-wide: a look-up of the thread in our own table comes before anything else.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    kernel::{Task, Typed},
    maps::FLOOR,
};

#[btf_tracepoint(function = "sched_process_fork")]
pub fn fn_fork(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    // SAFETY: the tracepoint's arguments, typed by BTF.
    let (parent, child) = unsafe { (Typed::new(context.arg::<*const u8>(0)), Typed::new(context.arg::<*const u8>(1))) };
    if let (Some(parent), Some(child)) = (parent, child) {
        attribution::forks(parent, Task::of(child));
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn fn_exit(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    // SAFETY: the tracepoint's argument, typed by BTF.
    if let Some(task) = unsafe { Typed::new(context.arg::<*const u8>(0)) } {
        attribution::exits(Task::of(task));
    }
    0
}
