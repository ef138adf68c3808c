//! Which invocations a process works for: those whose requests it has read.
//!
//! Where a sandbox runs several processes (a proxy before the function, workers that were forked ahead), several
//! invocations are live in it at once although each process works for one alone.

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_ebpf::counter::Counter;

use crate::{
    atomic::Atomic,
    connection::Connection,
    maps::{PROCESSES, UNITS, count},
    pointer::Value,
};

/// The live invocations that a process works for.
#[repr(C)]
pub struct Process {
    pub live: Atomic,
    /// Their span ids, XORed: with one live it is that one's.
    pub spans: Atomic,
    /// When two were last live at once, ns.
    pub overlap_ns: Atomic,
    /// When one last ended, ns.
    pub ended_ns: Atomic,
}

impl Process {
    const NEW: Self =
        Self { live: Atomic::new(0), spans: Atomic::new(0), overlap_ns: Atomic::new(0), ended_ns: Atomic::new(0) };

    /// The one invocation that it works for; 0 if it is none, or one of several.
    #[inline(always)]
    pub fn works_for(&self) -> u64 {
        if self.live.load() == 1 { self.spans.load() } else { 0 }
    }
}

#[inline(always)]
pub fn process(pid: u32) -> Option<Value<Process>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(PROCESSES.get_ptr_mut(pid)?) }
}

/// The entry of a process, made if there is none. It nearly always is there, and a look costs less than a refused insertion.
#[inline(always)]
fn entry(pid: u32) -> Option<Value<Process>> {
    if let Some(known) = process(pid) {
        return Some(known);
    }
    let _ = PROCESSES.insert(pid, Process::NEW, u64::from(BPF_NOEXIST));
    process(pid)
}

/// Notes that a process works for an invocation.
#[inline(always)]
pub fn begin(pid: u32, span: u64, now: u64) {
    let Some(process) = entry(pid) else {
        count(Counter::ThreadsFull);
        return;
    };
    if process.live.add(1) > 0 {
        process.overlap_ns.store(now);
    }
    process.spans.xor(span);
}

/// Takes [`begin`] back.
#[inline(always)]
pub fn end(pid: u32, span: u64, now: u64) {
    if let Some(process) = process(pid) {
        process.spans.xor(span);
        process.ended_ns.store(now);
        process.live.add(u64::MAX);
    }
}

#[inline(always)]
pub fn exits(pid: u32) {
    if PROCESSES.remove(pid).is_ok() {
        let _ = UNITS.remove(pid);
    }
}

/// A process has read the request of `span`, which is the open one of a server's connection.
#[inline(always)]
pub fn reads(connection: &mut Connection, ordinal: u32, pid: u32, span: u64, now: u64) {
    if connection.credited.load() == span {
        return;
    }
    stops(connection, now);
    begin(pid, span, now);
    connection.credited_pid = pid;
    connection.credited.store(span);
    if connection.span(ordinal).load() != span {
        // It has ended meanwhile, on another CPU, which may not have seen this. Who takes the span takes it back.
        stops(connection, now);
    }
}

/// The invocation that was noted for this connection is over.
#[inline(always)]
pub fn stops(connection: &mut Connection, now: u64) {
    let span = connection.credited.take();
    if span != 0 {
        end(connection.credited_pid, span, now);
    }
}
