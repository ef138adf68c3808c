//! What tells user space afterwards whose a call was, where that is not certain when it is sent: which of the runtime's
//! units of work sent it, and which answers; and which thread is woken once the answer is in. Nothing else makes records of
//! these.
//!
//! A loop runs its units (the tasks of Python's asyncio) one after the other, each from the same depth of its thread's
//! stack. So there is a place on the stack, always as far from where the stack ended when the loop first waited, at which there
//! is the address of the unit that runs, be it that it makes a call or answers. Where that place is depends on how the
//! runtime was compiled. Of a process's first such calls and answers, therefore, the stack around is shown to user space,
//! which learns it, and writes it to [`UNITS`]; from then on that word is read, and a second one like it.

use aya_ebpf::helpers::{
    bpf_ktime_get_ns,
    generated::{bpf_probe_read_user, bpf_ringbuf_output, bpf_ringbuf_reserve, bpf_ringbuf_submit},
};
use core::{ffi::c_void, ptr};
use tracer_ebpf::{
    counter::Counter,
    record::{Answered, HandBack, Header, Kind, Rule, STACK, START_WEAK, Sought, place, sought},
};

use crate::{
    atomic::Atomic,
    attribution::{self, Futex, Thread},
    connection::Connection,
    kernel::Task,
    maps::{INFERS, RECORDS, UNITS, WAITERS, count},
    pointer::Value,
    scratch::{self, Scratch},
    stream::sender,
};

/// So many stacks of a process are shown, and as many again whenever user space asks for them.
const MOST: u64 = 384;

/// Where the unit of work shows, in a process.
#[repr(C)]
pub struct Place {
    /// Bytes from where the stack ended when the loop first waited (two's complement), or [`place::SOUGHT`], or
    /// [`place::NOWHERE`]; and a second place, if there is one.
    at: Atomic,
    second: Atomic,
    /// How many stacks are still to be shown.
    wanted: Atomic,
}

#[repr(C)]
struct SoughtRecord {
    header: Header,
    sought: Sought,
    stack: [u8; STACK],
}

#[repr(C)]
struct AnsweredRecord {
    header: Header,
    answered: Answered,
}

#[repr(C)]
struct HandBackRecord {
    header: Header,
    back: HandBack,
}

#[inline(always)]
fn header(kind: Kind, sandbox: u64, pid: u32) -> Header {
    // SAFETY: the helper has no arguments.
    Header { at_ns: unsafe { bpf_ktime_get_ns() }, sandbox, kind: kind as u16, tail_len: 0, pid }
}

/// # Safety
///
/// `record` must point to `len` bytes.
#[inline(always)]
unsafe fn tell(record: *mut c_void, len: usize) {
    // SAFETY: a ring buffer; the caller vouches for the rest. 1 is BPF_RB_NO_WAKEUP.
    let failed = unsafe { bpf_ringbuf_output((&raw const RECORDS).cast_mut().cast(), record, len as u64, 1) };
    count(if failed == 0 { Counter::Records } else { Counter::RecordsLost });
    scratch::wake();
}

/// The process's entry in [`UNITS`], made for a call if there is none.
#[inline(always)]
fn place_of(pid: u32, what: u16) -> Option<Value<Place>> {
    // SAFETY: a map look-up.
    let found = UNITS.get_ptr_mut(pid).and_then(|found| unsafe { Value::<Place>::new(found) });
    if found.is_none() && what == sought::CALLS {
        // What is copied into the map lies in read-only memory, not on the stack.
        static NEW: Place = Place { at: Atomic::new(place::SOUGHT), second: Atomic::new(0), wanted: Atomic::new(MOST) };
        let _ = UNITS.insert(pid, &NEW, 0);
    }
    found
}

/// The invocation `span`, of this connection, begins to be answered by `task`, which is current.
#[inline(always)]
pub fn answers(connection: &mut Value<Connection>, task: Task, span: u64) {
    let ordinal = connection.responses;
    if INFERS.load() != 0 && task.is_known() && *connection.silent(ordinal) == 0 {
        note_answer(connection.as_ptr(), task.tid, task.pid, span);
    }
}

/// A function of its own, for the verifier and for the stack's sake.
#[inline(never)]
extern "C" fn note_answer(connection: *mut Connection, tid: u32, pid: u32, span: u64) -> u32 {
    // SAFETY: the caller's pointer to a map value.
    let Some(connection) = (unsafe { Value::new(connection) }) else { return 0 };
    let Some(found) = place_of(pid, sought::ANSWERS) else { return 0 };
    let Some(known) = attribution::thread(tid) else { return 0 };
    let (sp, sandbox) = (known.wait_sp, connection.sandbox);
    if sp == 0 || found.at.load() == place::NOWHERE {
        return 0;
    }
    // First: user space notes with it what the answer tells.
    if takes_one(&found) {
        show_stack(&found, sp, sandbox, span, u64::from(pid) << 32 | u64::from(tid), sought::ANSWERS);
    } else if found.at.load() == place::SOUGHT {
        return 0;
    }
    let mut record = AnsweredRecord {
        header: header(Kind::Answered, sandbox, pid),
        answered: Answered { span, read_ns: connection.read_ns, unit: [0; 2], read_tid: connection.read_tid, pad: 0 },
    };
    // SAFETY: two words of the record.
    unsafe { read_unit(&found, sp, record.answered.unit.as_mut_ptr()) };
    // SAFETY: the record's own size.
    unsafe { tell((&raw mut record).cast(), size_of::<AnsweredRecord>()) };
    0
}

/// Puts into `to`, in a map value, what the unit of work is known by that `task`, which is current, runs while it makes a
/// call; 0 if that is not known.
#[inline(always)]
fn unit(to: &mut [u64; 2], task: Task, sandbox: u64, span: u64) {
    let Some(known) = attribution::thread(task.tid) else { return };
    let found = place_of(task.pid, sought::CALLS);
    let sp = known.wait_sp;
    if sp == 0 {
        // Word by word: a copy of both would be a call, for whose frame there is no room.
        let (to, from) = (to.as_mut_ptr(), known.unit.as_ptr());
        // SAFETY: two words each, in map values.
        unsafe {
            to.write_volatile(from.read_volatile());
            to.add(1).write_volatile(from.add(1).read_volatile());
        }
        return;
    }
    let Some(found) = found else { return };
    if takes_one(&found) {
        show_stack(&found, sp, sandbox, span, u64::from(task.pid) << 32 | u64::from(task.tid), sought::CALLS);
    }
    // SAFETY: the caller's words.
    unsafe { read_unit(&found, sp, to.as_mut_ptr()) };
}

/// # Safety
///
/// `to` must point to two words.
#[inline(always)]
unsafe fn read_unit(found: &Value<Place>, sp: u64, to: *mut u64) {
    let (at, second) = (found.at.load(), found.second.load());
    if at == place::SOUGHT || at == place::NOWHERE {
        return;
    }
    // SAFETY: the caller vouches for the destination; the helper checks the source.
    unsafe {
        bpf_probe_read_user(to.cast(), 8, sp.wrapping_add(at) as *const _);
        bpf_probe_read_user(to.add(1).cast(), 8, sp.wrapping_add(second) as *const _);
    }
}

/// Notes that `woken` is woken from this futex, and says whether that is one which many threads wait for by turns: it guards
/// something that all need in the midst of their work (Python's interpreter), and what its waker does tells nothing. Two
/// CPUs may do so at once; then one of them is not counted.
#[inline(always)]
pub fn is_shared(woken: Task, futex: u64) -> bool {
    /// How much more often it was another than the same, until it is said; it is not counted beyond the second.
    const CERTAIN: u32 = 6;
    const MOST: u32 = 16;
    let key = Futex { pid: u64::from(woken.pid), address: futex };
    // SAFETY: a map look-up.
    let Some(mut known) = WAITERS.get_ptr_mut(key).and_then(|known| unsafe { Value::<u64>::new(known) }) else {
        let _ = WAITERS.insert(key, u64::from(woken.tid), 0);
        return false;
    };
    let (last, mut others) = (*known as u32, (*known >> 32) as u32);
    if last == woken.tid {
        others = if others > 0 { others - 1 } else { 0 };
    } else if others < MOST {
        others += 2;
    }
    *known = u64::from(others) << 32 | u64::from(woken.tid);
    others >= CERTAIN
}

/// `by`, which is current and runs units of work, wakes the thread `woken`, which has waited for work: what that does now it
/// does for the unit.
#[inline(always)]
pub fn hands_unit(by: Task, from: &Thread, woken: Task, to: &mut [u64; 2]) {
    *to = [0; 2];
    // SAFETY: a map look-up.
    let Some(found) = UNITS.get_ptr_mut(by.pid).and_then(|found| unsafe { Value::<Place>::new(found) }) else { return };
    if takes_one(&found) {
        let task = u64::from(by.pid) << 32 | u64::from(woken.tid);
        show_stack(&found, from.wait_sp, from.sandbox, 0, task, sought::HANDS);
    }
    // SAFETY: the caller's words, in a map value.
    unsafe { read_unit(&found, from.wait_sp, to.as_mut_ptr()) };
}

/// `by`, which is current and has read the whole answer to `call`, wakes a thread that serves the invocation `span` and has
/// waited.
#[inline(always)]
pub fn hands_back(sandbox: u64, span: u64, call: u64, by: Task) {
    if INFERS.load() == 0 {
        return;
    }
    let mut record = HandBackRecord {
        header: header(Kind::HandBack, sandbox, by.pid),
        back: HandBack { span, call, tid: by.tid, pad: 0 },
    };
    // SAFETY: the record's own size.
    unsafe { tell((&raw mut record).cast(), size_of::<HandBackRecord>()) };
}

/// The process runs another program from here on, which shows its units elsewhere.
#[inline(always)]
pub fn forget(pid: u32) {
    let _ = UNITS.remove(pid);
}

/// Whether it is known, or sought, where the units of a process show.
#[inline(always)]
pub fn has_units(pid: u32) -> bool {
    UNITS.get_ptr(pid).is_some()
}

/// Whether one more stack is to be shown. Two CPUs may take the last one at once; then the number wraps, and is none that is
/// wanted.
#[inline(always)]
fn takes_one(found: &Place) -> bool {
    (1..=MOST).contains(&found.wanted.load()) && (1..=MOST).contains(&found.wanted.add(u64::MAX))
}

#[inline(always)]
fn show_stack(found: &Place, sp: u64, sandbox: u64, span: u64, task: u64, what: u16) {
    const BYTES: usize = size_of::<SoughtRecord>();
    // SAFETY: a ring buffer, and a size that the verifier knows.
    let record = unsafe { bpf_ringbuf_reserve((&raw const RECORDS).cast_mut().cast(), BYTES as u64, 0) };
    let record = record.cast::<SoughtRecord>();
    if record.is_null() {
        count(Counter::RecordsLost);
        return;
    }
    let from = sp.wrapping_sub(STACK as u64 / 2);
    // SAFETY: reserved above and not yet submitted, with room for a stack; the helper checks the source, and what it cannot
    // read it fills with zeros. 1 is BPF_RB_NO_WAKEUP.
    unsafe {
        (*record).header = header(Kind::UnitSought, sandbox, (task >> 32) as u32);
        (*record).header.tail_len = STACK as u16;
        let is_new = (found.at.load() == place::SOUGHT) as u16;
        (*record).sought = Sought { span, tid: task as u32, what, is_new };
        bpf_probe_read_user((&raw mut (*record).stack).cast(), STACK as u32, from as *const _);
        bpf_ringbuf_submit(record.cast(), 1);
    }
    count(Counter::Records);
}

/// A call begins whose start is in the record at hand: tells the rest of it that user space wants where it is not certain
/// who makes it.
#[inline(always)]
pub fn call_begins(scratch: &mut Scratch, connection: &mut Connection) {
    note_call(ptr::from_mut(scratch), ptr::from_mut(connection));
}

/// A function of its own, for the stack's sake.
#[inline(never)]
extern "C" fn note_call(scratch: *mut Scratch, connection: *mut Connection) -> u32 {
    // SAFETY: the caller's pointers to map values.
    let (Some(mut scratch), Some(mut connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let ordinal = connection.requests.wrapping_sub(1);
    connection.asks = 0;
    if INFERS.load() == 0 || *connection.silent(ordinal) == 1 {
        return 0;
    }
    let parent = &scratch.parent;
    let is_open = parent.rule == Rule::None as u8 && parent.live > 1;
    if !is_open && parent.flags & START_WEAK == 0 {
        return 0;
    }
    let sandbox = connection.sandbox;
    let span = scratch.start().context.span_id;
    let task = sender(&connection, scratch.sends == 1);
    let start = scratch.start();
    start.tid = task.tid;
    connection.asks = span;
    connection.asks_tid = task.tid;
    if task.is_known() {
        unit(&mut start.unit, task, sandbox, span);
        attribution::asks(task);
    }
    0
}
