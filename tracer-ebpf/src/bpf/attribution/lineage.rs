//! Whose work a goroutine does, as the probes in Go programs tell it (`--go-uprobes`, [`crate::hooks`]' `go`).
//!
//! A goroutine that reads a request works for it (the read hook notes that). What it starts with `go` works for the same,
//! and so on. The one that writes a call of net/http is another, which serves one connection for as long as it is open: it
//! is told before each write for whom.
//!
//! A goroutine is known by its address, which the runtime gives to the next one when it has ended. So every start of one
//! is noted, also one that is nobody's.

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

/// Nobody that is known.
const NOBODY: u64 = 0;

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
fn span_of(key: Goroutine) -> u64 {
    // SAFETY: a map look-up gave it.
    COROUTINES.get_ptr(key).map_or(NOBODY, |span| unsafe { span.read_volatile() })
}

/// What was noted before is gone, whatever comes: where there is an entry it is written to, so that no failure to make
/// room leaves it standing.
#[inline(always)]
fn works_for(key: Goroutine, span: u64) {
    match COROUTINES.get_ptr_mut(key) {
        // SAFETY: a map look-up gave it.
        Some(noted) => unsafe { noted.write_volatile(span) },
        None if span == NOBODY => {}
        None => {
            let _ = COROUTINES.insert(key, span, 0);
        }
    }
}

/// The goroutine `g` is about to make a call on this connection.
#[inline(always)]
pub fn calls(task: Task, g: u64, connection: u64) {
    let span = span_of(of(task, g));
    count(if span == NOBODY { Counter::GoUnknown } else { Counter::GoCalls });
    let key = Persistent { pid: u64::from(task.pid), connection };
    match CALLING.get_ptr_mut(key) {
        // SAFETY: a map look-up gave it.
        Some(noted) => unsafe { noted.write_volatile(span) },
        None if span == NOBODY => {}
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
    let span = CALLING.get_ptr(key).map_or(NOBODY, |span| unsafe { span.read_volatile() });
    works_for(of(task, g), span);
}

/// `task` begins to make a goroutine, for the goroutine `g`. It cannot make another one before this one is done.
#[inline(always)]
pub fn starts(task: Task, g: u64) {
    let span = span_of(of(task, g));
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
    let span = STARTING.get_ptr(task.tid).map_or(NOBODY, |span| unsafe { span.read_volatile() });
    works_for(of(task, g), span);
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
    let span = span_of(of(task, g));
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
