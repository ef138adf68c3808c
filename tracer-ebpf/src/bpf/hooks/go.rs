//! go: uprobes in the Go programs of the sandboxes, if the operator asks for them (`--go-uprobes`).
//!
//! Since Go 1.17 (ABIInternal for amd64, cmd/compile/abi-internal.md) arguments and results are in RAX, RBX, … and the
//! current goroutine is in R14. The breakpoints are a few instructions into the functions, where those still are (user half,
//! go/binary.rs). A breakpoint hits every process that maps the file: the sandbox is looked up before
//! anything else.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};

use crate::{
    attribution,
    kernel::{self, Task},
};

/// The task that runs, if it is one of a sandbox.
#[inline(always)]
fn ours() -> Option<Task> {
    let (task, cgroup) = kernel::current();
    attribution::sandbox(cgroup).map(|_| task)
}

#[inline(always)]
fn rax(context: &ProbeContext) -> u64 {
    // SAFETY: the context is the registers at the breakpoint.
    unsafe { (*context.regs).rax }
}

#[inline(always)]
fn rbx(context: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*context.regs).rbx }
}

#[inline(always)]
fn r14(context: &ProbeContext) -> u64 {
    // SAFETY: as above.
    unsafe { (*context.regs).r14 }
}

/// `func (pc *persistConn) roundTrip(req *transportRequest)` of net/http: runs in the goroutine that calls.
#[uprobe]
pub fn fn_go_call(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::calls(task, r14(&context), rax(&context));
    }
    0
}

/// `func (w persistConnWriter) Write(p []byte)` of net/http, where `w` is nothing but the connection: runs in the
/// goroutine that writes, right before it does.
#[uprobe]
pub fn fn_go_write(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::writes(task, r14(&context), rax(&context));
    }
    0
}

/// `func newproc1(fn *funcval, callergp *g, …) *g` of runtime: makes a goroutine. Runs on the thread's own stack, which is
/// not given up before it is done.
#[uprobe]
pub fn fn_go_start(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::starts(task, rbx(&context));
    }
    0
}

/// Within it, where the goroutine that it makes is an argument: the calls of `casgstatus(gp *g, …)`. Not where it returns:
/// a uretprobe would change return addresses on the stack, which Go's runtime does not bear.
#[uprobe]
pub fn fn_go_started(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::started(task, rax(&context));
    }
    0
}

/// `func (pc *persistConn) readLoop()` of net/http: what the goroutine that reads the answers on a connection runs.
#[uprobe]
pub fn fn_go_serve(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::serves(task, r14(&context));
    }
    0
}

/// `func send(c *hchan, sg *sudog, …)` of runtime: the goroutine gives a value to one that waits for it.
#[uprobe]
pub fn fn_go_send(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::meets(task, r14(&context), rax(&context), rbx(&context), true);
    }
    0
}

/// `func recv(c *hchan, sg *sudog, …)` of runtime: the goroutine takes a value from one that waits to be rid of it.
#[uprobe]
pub fn fn_go_receive(context: ProbeContext) -> u32 {
    if let Some(task) = ours() {
        attribution::meets(task, r14(&context), rax(&context), rbx(&context), false);
    }
    0
}
