//! exec: `tp_btf/sched_process_exec(task, old_pid, bprm)`.
//!
//! fs/exec.c, exec_binprm: fires in the process, once its memory is the new program's and the environment lies there.
//! System-wide: what is not in a sandbox whose birth was seen is passed over after one look-up.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{births, kernel};

#[btf_tracepoint(function = "sched_process_exec")]
pub fn fn_exec(_: BtfTracePointContext) -> i32 {
    let (task, cgroup) = kernel::current();
    births::executes(cgroup, task);
    0
}
