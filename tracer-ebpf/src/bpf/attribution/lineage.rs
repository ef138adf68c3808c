//! Whose work a goroutine does, as the probes in Go programs tell it (`--go-uprobes`, [`crate::hooks`]' `go`).
//!
//! A goroutine that reads a request works for it (the read hook notes that). What it starts with `go` works for the same,
//! and so on. A worker that was there before works for whoever gave it a value last, on a channel. The one that writes a
//! call of net/http is another than the one that makes it, and serves one connection for as long as it is open: it is told
//! before each write for whom.
//!
//! A goroutine is known by its address, which the runtime gives to the next one when it has ended. So every start of one
//! is noted, also one that is nobody's.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_ebpf::{
    counter::Counter,
    record::{Rule, START_AFTER_RESPONSE},
};

use super::{
    Invocation, Parent, Sandbox, invocation,
    thread::{Goroutine, goroutine},
};
use crate::{
    kernel::{self, Task},
    maps::{ANSWERED, CALLING, COROUTINES, STARTING, count},
    pointer::Value,
};

/// How many calls may follow from an invocation that has answered, by all its goroutines. Without an end, one that it
/// has left running for good (a ticker) would carry it on for ever.
const AFTER_MAX: u64 = 256;

/// How a goroutine came by its work.
pub mod by {
    /// It read the request.
    pub const READING: u64 = 0;
    /// One that works for it started this one.
    pub const STARTED: u64 = 1;
    /// One that works for it handed it over.
    pub const HANDED: u64 = 2;
    /// It does no work of its own: it reads the answers on a connection, whoever asked.
    pub const SERVING: u64 = 3;
}

/// What a goroutine works for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Work {
    /// The invocation; 0 for none that is known.
    pub span: u64,
    /// See [`by`].
    pub by: u64,
}

impl Work {
    const NONE: Self = Self { span: 0, by: by::STARTED };
}

/// A persistent connection of net/http's client: the process, and the address of its `persistConn`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Persistent {
    pub pid: u64,
    pub connection: u64,
}

#[inline(always)]
fn of(task: Task, g: u64) -> Goroutine {
    Goroutine { pid: u64::from(task.pid), g }
}

#[inline(always)]
pub fn work(pid: u32, g: u64) -> Work {
    let key = Goroutine { pid: u64::from(pid), g };
    // SAFETY: a map look-up gave it.
    COROUTINES.get_ptr(key).map_or(Work::NONE, |work| unsafe { work.read_volatile() })
}

/// What was noted before is gone, whatever comes: where there is an entry it is written to, so that no failure to make
/// room leaves it standing.
#[inline(always)]
fn works_for(key: Goroutine, work: Work) {
    match COROUTINES.get_ptr_mut(key) {
        // SAFETY: a map look-up gave it.
        Some(noted) => unsafe { noted.write_volatile(work) },
        None if work.span == 0 && work.by != by::SERVING => {}
        None => {
            let _ = COROUTINES.insert(key, work, 0);
        }
    }
}

/// The goroutine `g` is about to make a call on this connection.
#[inline(always)]
pub fn calls(task: Task, g: u64, connection: u64) {
    let span = work(task.pid, g).span;
    count(if span == 0 { Counter::GoUnknown } else { Counter::GoCalls });
    let key = Persistent { pid: u64::from(task.pid), connection };
    match CALLING.get_ptr_mut(key) {
        // SAFETY: a map look-up gave it.
        Some(noted) => unsafe { noted.write_volatile(span) },
        None if span == 0 => {}
        None => {
            let _ = CALLING.insert(key, span, 0);
        }
    }
}

/// The goroutine `g` is about to write on this connection.
#[inline(always)]
pub fn writes(task: Task, g: u64, connection: u64) {
    let key = Persistent { pid: u64::from(task.pid), connection };
    // SAFETY: a map look-up gave it.
    let span = CALLING.get_ptr(key).map_or(0, |span| unsafe { span.read_volatile() });
    works_for(of(task, g), Work { span, by: by::HANDED });
}

/// The goroutine `g` is one of the client's own, that reads the answers on one connection.
#[inline(always)]
pub fn serves(task: Task, g: u64) {
    works_for(of(task, g), Work { span: 0, by: by::SERVING });
}

/// `task` begins to make a goroutine, for the goroutine `g`. It cannot make another one before this one is done.
#[inline(always)]
pub fn starts(task: Task, g: u64) {
    let span = work(task.pid, g).span;
    match STARTING.get_ptr_mut(task.tid) {
        // SAFETY: a map look-up gave it.
        Some(noted) => unsafe { noted.write_volatile(span) },
        None => {
            let _ = STARTING.insert(task.tid, span, 0);
        }
    }
}

/// `task` has made the goroutine `g`, which does not run yet.
#[inline(always)]
pub fn started(task: Task, g: u64) {
    // SAFETY: a map look-up gave it.
    let span = STARTING.get_ptr(task.tid).map_or(0, |span| unsafe { span.read_volatile() });
    works_for(of(task, g), Work { span, by: by::STARTED });
}

#[inline(always)]
fn is_live(work: &Work) -> bool {
    invocation(work.span).is_some()
}

/// The goroutine `from` gives a value to the goroutine `to`, which waits for one or has found `from` waiting.
///
/// Only those give work away of whom it is certain that it is the value's: who read the request, or was handed it. What
/// was merely started by one may serve many (a pool that the first request fills).
#[inline(always)]
fn hands(task: Task, from: u64, to: u64) {
    let (given, known) = (work(task.pid, from), work(task.pid, to));
    if given.by == by::SERVING || known.by == by::SERVING {
        return;
    }
    let is_own = known.by != by::HANDED && is_live(&known);
    let gives = (given.by == by::READING || given.by == by::HANDED) && is_live(&given);
    if gives && !is_own {
        works_for(of(task, to), Work { span: given.span, by: by::HANDED });
    } else if known.by == by::HANDED || (gives && known.by == by::STARTED && known.span != given.span) {
        // It is no longer certain what it does: something else than before, or what the first of many started.
        works_for(of(task, to), Work::NONE);
    }
}

/// A word of the process's memory; 0 if it is not there.
#[inline(always)]
fn user_word(at: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: a word on the stack; the helper checks the source.
    let failed = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const _) };
    if failed == 0 { word } else { 0 }
}

/// A value goes over `channel` between the goroutine `g`, which runs, and another that waits in it: to that one, or from it.
///
/// `waits` is the other's `sudog`, of which the first field is the goroutine. A channel begins with the number of values
/// in it and the number that it has room for; the third word behind is the size of a value (runtime/chan.go and
/// runtime2.go, Go 1.26). With room, what comes out is not what goes in, and values that find nobody waiting pass unseen;
/// without a size, it is a signal and no work: nothing is concluded from either.
#[inline(always)]
pub fn meets(task: Task, g: u64, channel: u64, waits: u64, sends: bool) {
    const ROOM: u64 = 8;
    const SIZE: u64 = 24;
    if user_word(channel.wrapping_add(ROOM)) != 0 || user_word(channel.wrapping_add(SIZE)) as u16 == 0 {
        return;
    }
    let other = user_word(waits);
    if other == 0 {
        return;
    }
    if sends { hands(task, g, other) } else { hands(task, other, g) }
}

/// The invocation that the goroutine which sends works for, be it that it has answered. `false` if nobody knows.
#[inline(always)]
pub fn by_lineage(parent: &mut Parent, sandbox: &Value<Sandbox>, sandbox_id: u64, task: Task) -> bool {
    let current = kernel::current_task();
    let Some(registers) = kernel::registers(current) else { return false };
    let g = goroutine(current, registers);
    if g == 0 {
        return false;
    }
    let span = work(task.pid, g).span;
    if let Some(own) = invocation(span) {
        return parent.is(Rule::Coroutine, &own, span, sandbox_id);
    }
    // SAFETY: a map look-up.
    let Some(mut own) = ANSWERED.get_ptr_mut(span).and_then(|own| unsafe { Value::<Invocation>::new(own) }) else {
        return false;
    };
    if own.after >= AFTER_MAX {
        // It is known whose it was, and so that it is nobody else's.
        return true;
    }
    own.after += 1;
    if !parent.is(Rule::Coroutine, &own, span, sandbox_id) {
        return false;
    }
    parent.flags = START_AFTER_RESPONSE;
    sandbox.leftover.store(1);
    true
}
