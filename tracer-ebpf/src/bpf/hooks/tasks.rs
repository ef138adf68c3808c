//! fork, exit: `tp_btf/sched_process_fork(parent, child)` and `tp_btf/sched_process_exit(task, …)`.
//!
//! kernel/fork.c, kernel_clone: fires in the parent, before the child runs, for processes and threads alike. Both are
//! system-wide: a look-up of the thread in our own table comes before anything else.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    kernel::{Task, Typed},
    maps::FLOOR,
    process, runtime_api,
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
        let task = Task::of(task);
        attribution::exits(task);
        if task.tid == task.pid {
            process::exits(task.pid);
            // SAFETY: the helper has no arguments.
            runtime_api::process_exits(task.pid, unsafe { bpf_ktime_get_ns() });
        }
    }
    0
}
