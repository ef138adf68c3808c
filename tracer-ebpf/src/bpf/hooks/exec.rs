//! exec: `tp_btf/sched_process_exec(task, old_pid, bprm)`.
//!
//! fs/exec.c, exec_binprm: fires in the process, once its memory is the new program's and the environment lies there.
//! System-wide: what is neither in a sandbox whose birth was seen, nor a thread of ours, is passed over after two look-ups.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{attribution, births, kernel};

#[btf_tracepoint(function = "sched_process_exec")]
pub fn fn_exec(_: BtfTracePointContext) -> i32 {
    let (task, cgroup) = kernel::current();
    births::executes(cgroup, task);
    attribution::executes(task);
    0
}
