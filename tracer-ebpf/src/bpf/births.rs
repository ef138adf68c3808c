//! The start of a sandbox: what runs in it, with which environment, and when it listens.
//!
//! A sandbox that answers one request may be gone before user space has read a file of it: so what names it travels with
//! the record. Only sandboxes and candidates that appeared while the agent runs are in the table (and candidates that were
//! there before), and each tells a few of either: a script with a thousand programs, or a tenant that listens in a loop,
//! does not flood the ring buffer.

use aya_ebpf::helpers::{
    bpf_ktime_get_ns,
    generated::{bpf_probe_read_user, bpf_ringbuf_output, bpf_ringbuf_reserve, bpf_ringbuf_submit},
};
use tracer_ebpf::{
    counter::Counter,
    record::{ENVIRONMENT_MAX, Header, Kind, Listen},
};

use crate::{
    atomic::Atomic,
    bound::clamp,
    kernel::{self, Task},
    maps::{BIRTHS, RECORDS, count},
    pointer::Value,
};

/// Most programs, and most listening sockets, that a sandbox's start tells.
const MOST: u64 = 16;

/// How much a sandbox has told.
#[repr(C)]
pub struct Birth {
    execs: Atomic,
    listens: Atomic,
}

#[repr(C)]
struct Exec {
    header: Header,
    environment: [u8; ENVIRONMENT_MAX],
}

#[repr(C)]
struct Listens {
    header: Header,
    listen: Listen,
}

/// Notes that a sandbox was made.
#[inline(always)]
pub fn begin(sandbox: u64) {
    let new = Birth { execs: Atomic::new(0), listens: Atomic::new(0) };
    if BIRTHS.insert(sandbox, new, 0).is_err() {
        count(Counter::SandboxesFull);
    }
}

/// Notes that it is gone; says whether its start was being told.
#[inline(always)]
pub fn end(sandbox: u64) -> bool {
    BIRTHS.remove(sandbox).is_ok()
}

/// Whether its start is being told.
#[inline(always)]
pub fn is_known(sandbox: u64) -> bool {
    BIRTHS.get_ptr(sandbox).is_some()
}

#[inline(always)]
fn birth(sandbox: u64) -> Option<Value<Birth>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(BIRTHS.get_ptr_mut(sandbox)?) }
}

/// Whether one more may be told. The count stops where it is, and so never wraps.
#[inline(always)]
fn may_tell(told: &Atomic) -> bool {
    told.load() < MOST && told.add(1) < MOST
}

/// `task`, which is current, runs another program now.
#[inline(always)]
pub fn executes(sandbox: u64, task: Task) {
    let Some(birth) = birth(sandbox) else { return };
    if !may_tell(&birth.execs) {
        return;
    }
    // SAFETY: a ring buffer, and a size that the verifier knows.
    let record = unsafe { bpf_ringbuf_reserve((&raw const RECORDS).cast_mut().cast(), size_of::<Exec>() as u64, 0) }
        .cast::<Exec>();
    if record.is_null() {
        count(Counter::RecordsLost);
        return;
    }
    let (from, to) = kernel::environment();
    let mut len = 0;
    if from < to {
        let most = clamp::<1, { ENVIRONMENT_MAX as i32 }>(to - from);
        // SAFETY: the reserved record has room for `most`; the helper checks the source, which is in memory: exec has
        // just written it. Where it is not, nothing is read.
        let failed = unsafe { bpf_probe_read_user((&raw mut (*record).environment).cast(), most as u32, from as _) };
        len = if failed == 0 { most } else { 0 };
    }
    // SAFETY: the helper has no arguments.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: reserved above and not yet submitted; what lies behind the tail's length is not read.
    unsafe {
        (*record).header =
            Header { at_ns, sandbox, kind: Kind::SandboxExec as u16, tail_len: len as u16, pid: task.pid };
        bpf_ringbuf_submit(record.cast(), 0);
    }
    count(Counter::Records);
}

/// A socket of a sandbox listens now.
#[inline(always)]
pub fn listens(sandbox: u64, port: u16) {
    tell_listening(sandbox, u32::from(port));
}

/// A function of its own, for the stack's sake.
#[inline(never)]
extern "C" fn tell_listening(sandbox: u64, port: u32) -> u32 {
    let Some(birth) = birth(sandbox) else { return 0 };
    if !may_tell(&birth.listens) {
        return 0;
    }
    let (task, _) = kernel::current();
    // SAFETY: the helper has no arguments.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    let mut record = Listens {
        header: Header { at_ns, sandbox, kind: Kind::SandboxListens as u16, tail_len: 0, pid: task.pid },
        listen: Listen { port: port as u16, pad: [0; 6] },
    };
    // SAFETY: a ring buffer, and a record on the stack with its own size.
    let failed = unsafe {
        bpf_ringbuf_output(
            (&raw const RECORDS).cast_mut().cast(),
            (&raw mut record).cast(),
            size_of::<Listens>() as u64,
            0,
        )
    };
    count(if failed == 0 { Counter::Records } else { Counter::RecordsLost });
    0
}
