//! Polled invocations: where a sandbox does not listen but asks a runtime API for its work ([`tracer_ebpf::runtime_api`]).
//!
//! The answer to a poll begins an invocation in the sandbox that asked, and is a call of the sandbox that answered, if
//! that is traced too: a delivery. Both end when the result has been sent, or come in. The polls themselves are waiting:
//! neither calls nor invocations.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_loop};
use core::ffi::c_void;
use tracer_ebpf::{
    counter::Counter,
    record::{Kind, Reason, Rule, START_FIRST, START_INBOUND, START_POLLED, Tag, report},
    runtime_api::{self, Delivery, Id, STEPS, request},
};

use crate::{
    attribution::{self, Invocation},
    connection::{Connection, role},
    exchange::{self, NO_SPAN},
    kernel,
    maps::{POLLED, RUNTIMES, count, count_call},
    pointer::Value,
    process,
    scratch::Scratch,
    stream,
};

/// By what a polled invocation is found again: both ends may be in one sandbox.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PolledKey {
    pub sandbox: u64,
    pub id: Id,
    /// See [`role`].
    pub side: u64,
}

/// A polled invocation, or its delivery.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Polled {
    pub id: Id,
    pub span: u64,
    /// The connection that it came on, and where, as its start has them.
    pub conn: u64,
    pub sequence: u32,
    /// The process that polled for it; 0 if not known, and for a delivery.
    pub pid: u32,
    /// When its result began to come, ns.
    pub first_byte_ns: u64,
}

impl Polled {
    const NONE: Self = Self { id: [0; 4], span: 0, conn: 0, sequence: 0, pid: 0, first_byte_ns: 0 };
}

/// The head of a request is in the record's tail: if it is to a runtime API, deals with it. `false` if it is a call, or
/// an invocation.
#[inline(always)]
pub fn takes(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, pid: u32) -> bool {
    runtime_api::may_be(&scratch.tail) && take(scratch.as_ptr(), connection.as_ptr(), pid) != 0
}

/// A function of its own, for the verifier, as are those below. It only says what there is to do: [`settle`] does it, for
/// deep down in a run there is little stack left ("combined stack size of 3 calls is 544. Too large", up to 6.7).
#[inline(never)]
extern "C" fn take(scratch: *mut Scratch, connection: *mut Connection, pid: u32) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(mut connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let what = runtime_api::asks(&scratch.tail, u32::from(scratch.header.tail_len));
    if what == request::NONE {
        return 0;
    }
    count(Counter::RuntimeApi);
    let ordinal = connection.requests;
    connection.span(ordinal).store(NO_SPAN);
    *connection.method(ordinal) = what;
    connection.requests = ordinal.wrapping_add(1);
    if connection.role == role::CLIENT {
        if what == request::NEXT {
            connection.pid = pid;
        } else if (what == request::INIT_ERROR || what == request::ERROR) && scratch.cut == 0 {
            // With what is behind the head: the error itself says what it is.
            let (from, to) = (scratch.cursor.head_at, scratch.cursor.end);
            scratch.tail_from_window(from, to.wrapping_sub(from));
        }
    }
    scratch.asks = u32::from(what);
    1
}

/// Does what the request that [`take`] took asks for.
#[inline(never)]
extern "C" fn begin(scratch: *mut Scratch, connection: *mut Connection) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(mut connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let what = scratch.asks as u8;
    let client = connection.role == role::CLIENT;
    match what {
        request::NEXT if client => polls(&mut scratch, &mut connection),
        request::INIT_ERROR if client => says(&mut scratch, &connection, report::INIT_FAILED),
        request::RESPONSE | request::ERROR => result_begins(&mut scratch, &mut connection, what),
        _ => {}
    }
    0
}

/// A runtime asks for its next invocation. Whatever came on this connection before is over, answered or not.
#[inline(always)]
fn polls(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    if connection.polled_span != 0 {
        let id = connection.polled_id;
        if find(scratch, connection.sandbox, role::CLIENT, &id) && scratch.polled.span == connection.polled_span {
            over(scratch, connection.sandbox, role::CLIENT, Reason::Closed);
        }
        connection.polled_span = 0;
    }
    let pid = connection.pid;
    // Not on the stack: called from a step of `stream` under `fn_tag`, it has 96 bytes (Linux 6.1 rounds each frame up).
    scratch.polled = Polled::NONE;
    if pid != 0 && RUNTIMES.insert(pid, &scratch.polled, u64::from(BPF_NOEXIST)).is_ok() {
        says(scratch, connection, report::READY);
    }
}

/// A runtime's word on how it fares.
#[inline(always)]
fn says(scratch: &mut Value<Scratch>, connection: &Connection, what: u64) {
    let waits = attribution::only(connection.sandbox).map_or(0, |only| only.context.span_id);
    // Within the run of the process that sends, or the id of that would not be known.
    let began_ns = if connection.pid == 0 { 0 } else { kernel::process_began_ns() };
    let report = scratch.report();
    report.what = what;
    report.span = waits;
    report.began_ns = began_ns;
    report.pad = [0; 13];
    scratch.emit(Kind::RuntimeReport, connection.sandbox, connection.pid);
}

/// Takes a polled invocation, or its delivery, out of its map into `scratch.polled`.
#[inline(always)]
fn find(scratch: &mut Value<Scratch>, sandbox: u64, side: u8, id: &Id) -> bool {
    scratch.polled_key.sandbox = sandbox;
    scratch.polled_key.id = *id;
    scratch.polled_key.side = u64::from(side);
    let Some(found) = POLLED.get_ptr(&scratch.polled_key) else { return false };
    // SAFETY: a map value, not null.
    scratch.polled = unsafe { *found };
    // Of two that are here at once, one gets it.
    POLLED.remove(&scratch.polled_key).is_ok()
}

/// The result of an invocation is about to be sent, or comes in.
#[inline(always)]
fn result_begins(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, what: u8) {
    let id = runtime_api::id_of(&scratch.tail);
    let side = connection.role;
    if !find(scratch, connection.sandbox, side, &id) {
        return;
    }
    scratch.polled.first_byte_ns = scratch.now;
    connection.ending = scratch.polled;
    connection.ending_failed = u32::from(what == request::ERROR);
    if what == request::ERROR && side == role::CLIENT {
        let span = scratch.polled.span;
        let report = scratch.report();
        report.what = report::FAILED;
        report.span = span;
        report.began_ns = 0;
        report.pad = [0; 13];
        scratch.emit(Kind::RuntimeReport, connection.sandbox, connection.pid);
    }
    let span = scratch.polled.span;
    connection.ending_span.store(span);
}

/// A result has been sent to its end (or has come in), or will not be: its exchange is over. [`settle`] does what there
/// is to do about it, once for a run: in the middle of one it would cost the verifier more than all the rest.
#[inline(always)]
pub fn result_ends(scratch: &mut Scratch, reason: Reason) {
    scratch.result = reason as u32 + 1;
}

/// To be called at the end of a run over a packet or message, and of a connection.
#[inline(always)]
pub fn settle(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    if scratch.asks != u32::from(request::NONE) {
        begin(scratch.as_ptr(), connection.as_ptr());
    }
    if scratch.result != 0 && connection.ending_span.load() != 0 {
        let reason = scratch.result - 1;
        end(scratch.as_ptr(), connection.as_ptr(), reason);
    }
}

#[inline(never)]
extern "C" fn end(scratch: *mut Scratch, connection: *mut Connection, reason: u32) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    // Either direction may come to it, each on a CPU of its own.
    if connection.ending_span.take() == 0 {
        return 0;
    }
    scratch.polled = connection.ending;
    let failed = connection.ending_failed == 1 && reason == Reason::Complete as u32;
    let reason = if failed { Reason::Failed } else { Reason::from_u8(reason as u8).unwrap_or(Reason::Missed) };
    over(&mut scratch, connection.sandbox, connection.role, reason);
    0
}

/// What `scratch.polled` names is over.
#[inline(always)]
fn over(scratch: &mut Value<Scratch>, sandbox: u64, side: u8, reason: Reason) {
    let (span, conn, sequence, pid) =
        (scratch.polled.span, scratch.polled.conn, scratch.polled.sequence, scratch.polled.pid);
    let (first_byte_ns, now) = (scratch.polled.first_byte_ns, scratch.now);
    let end = scratch.end();
    end.conn = conn;
    end.span = span;
    end.first_byte_ns = first_byte_ns;
    end.sequence = sequence;
    end.status = 0;
    end.reason = reason as u8;
    end.retransmits = 0;
    end.errno = 0;
    end.rtt_us = 0;
    if side == role::SERVER {
        scratch.emit(Kind::CallEnd, sandbox, 0);
        return;
    }
    attribution::end(span, sandbox, now);
    if pid != 0 {
        process::end(pid, span, now);
        // SAFETY: a map look-up.
        if let Some(mut last) = RUNTIMES.get_ptr_mut(pid).and_then(|last| unsafe { Value::new(last) })
            && last.span == span
        {
            last.span = 0;
        }
    }
    scratch.emit(Kind::InvocationEnd, sandbox, pid);
}

/// The head of an answer to a poll is complete, and in the window: takes it, for [`settle_answer`].
#[inline(always)]
pub fn answered(scratch: &mut Value<Scratch>, connection: &Connection) {
    // With what is behind it: the event itself may hold a context.
    let (from, to) = (scratch.cursor.head_at, scratch.cursor.end);
    scratch.tail_from_window(from, to.wrapping_sub(from));
    scratch.answer = 1;
    scratch.polled.sequence = scratch.sequence_here().wrapping_sub(connection.response.flow.head_len);
}

/// To be called at the end of a run over responses: if one was the answer to a poll, an invocation begins where it came
/// in, and a delivery where it leaves. Not within the run: the stack of a BPF program has no room for that.
#[inline(always)]
pub fn settle_answer(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    if scratch.answer == 0 || read(scratch.as_ptr(), connection.as_ptr()) == 0 {
        return;
    }
    if connection.role == role::CLIENT {
        invocation_begins(scratch.as_ptr(), connection.as_ptr());
    } else {
        delivery_begins(scratch.as_ptr(), connection.as_ptr());
    }
}

/// Reads the answer, and notes what it delivers. 0 if that is not known, or was noted before.
#[inline(never)]
extern "C" fn read(scratch: *mut Scratch, connection: *mut Connection) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    scratch.delivery = Delivery::NEW;
    let mut state = scratch.as_ptr();
    // SAFETY: the callback has the form that bpf_loop asks for and gets the context that it expects.
    unsafe { bpf_loop(STEPS, step as *mut c_void, (&raw mut state).cast(), 0) };
    if scratch.delivery.id[0] == 0 {
        if scratch.asked == 1 {
            count(Counter::PollsUnread);
        }
        return 0;
    }
    let side = connection.role;
    scratch.polled_key.sandbox = connection.sandbox;
    scratch.polled_key.id = scratch.delivery.id;
    scratch.polled_key.side = u64::from(side);
    scratch.polled.id = scratch.delivery.id;
    scratch.polled.span = exchange::random_id();
    scratch.polled.conn = connection.cookie;
    scratch.polled.pid = if side == role::CLIENT { connection.pid } else { 0 };
    scratch.polled.first_byte_ns = 0;
    if POLLED.insert(&scratch.polled_key, &scratch.polled, u64::from(BPF_NOEXIST)).is_err() {
        // Full, or the same once more.
        count(Counter::InvocationsFull);
        return 0;
    }
    1
}

#[inline(never)]
extern "C" fn step(_: u64, scratch: *mut c_void) -> i64 {
    // SAFETY: `read` passes a pointer on its stack to its scratch slot, a map value.
    let Some(mut scratch) = (unsafe { Value::new(*scratch.cast::<*mut Scratch>()) }) else { return 1 };
    let len = u32::from(scratch.header.tail_len);
    let Scratch { delivery, tail, .. } = &mut *scratch;
    i64::from(!delivery.step(tail, len))
}

#[inline(never)]
extern "C" fn invocation_begins(scratch: *mut Scratch, connection: *mut Connection) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(mut connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let sequence = scratch.polled.sequence;
    // Who waits for it, if the runtime API is served in the same sandbox: it goes on in that one's trace.
    // Another polled one is not waiting, but side by side with it.
    let waits = attribution::only(connection.sandbox).filter(|only| only.polled == 0);
    let span = scratch.polled.span;
    let came = scratch.delivery.context;
    let mut flags = START_POLLED;
    let start = scratch.start();
    start.parent = 0;
    if came.span_id != 0 {
        flags |= START_INBOUND;
        start.parent = came.span_id;
        start.context = came;
    } else if let Some(waits) = waits {
        start.context = waits.context;
    } else {
        exchange::begin_trace(&mut start.context);
    }
    start.context.span_id = span;
    let (context, inbound) = (start.context, start.parent);
    let now = scratch.now;
    scratch.invocation =
        Invocation { sandbox: connection.sandbox, context, inbound, start_ns: now, read: 0, polled: 1, after: 0 };
    let (first, live) = attribution::begin(span, &scratch.invocation);
    if first {
        flags |= START_FIRST;
    }
    exchange::fill(&mut scratch, &connection, flags, live, sequence);
    connection.polled_span = span;
    connection.polled_id = scratch.polled.id;
    let pid = connection.pid;
    if pid != 0 {
        process::begin(pid, span, now);
        let _ = RUNTIMES.insert(pid, &scratch.polled, 0);
    }
    scratch.emit(Kind::InvocationStart, connection.sandbox, pid);
    0
}

#[inline(never)]
extern "C" fn delivery_begins(scratch: *mut Scratch, connection: *mut Connection) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let sequence = scratch.polled.sequence;
    let task = stream::sender(&connection, scratch.sends == 1);
    attribution::attribute(&mut scratch.parent, connection.sandbox, task, None);
    exchange::derive(&mut scratch, connection.sandbox);
    let (rule, live) = (scratch.parent.rule, scratch.parent.live);
    let (flags, trust) = (scratch.parent.flags, scratch.parent.trust);
    exchange::fill(&mut scratch, &connection, flags, live, sequence);
    let span = scratch.polled.span;
    let start = scratch.start();
    start.context.span_id = span;
    start.rule = rule;
    start.trust = trust;
    start.tag = Tag::Polled as u8;
    count_call(Tag::Polled as u32, u32::from(rule));
    scratch.emit(Kind::CallStart, connection.sandbox, connection.pid);
    0
}

/// A process has ended: what it worked for will not be answered.
#[inline(always)]
pub fn process_exits(pid: u32, now: u64) {
    let Some(last) = RUNTIMES.get_ptr(pid) else { return };
    // SAFETY: a map value, not null.
    let (span, id) = unsafe { ((*last).span, (*last).id) };
    if span == 0 {
        let _ = RUNTIMES.remove(pid);
        return;
    }
    let sandbox = attribution::invocation(span).map_or(0, |invocation| invocation.sandbox);
    let Some(mut scratch) = crate::scratch::take() else { return };
    scratch.now = now;
    if find(&mut scratch, sandbox, role::CLIENT, &id) && scratch.polled.span == span {
        over(&mut scratch, sandbox, role::CLIENT, Reason::Exited);
    }
    // Its delivery, if that was from the same sandbox.
    if find(&mut scratch, sandbox, role::SERVER, &id) {
        over(&mut scratch, sandbox, role::SERVER, Reason::Exited);
    }
    let _ = RUNTIMES.remove(pid);
    crate::scratch::give_back(&scratch);
}

const _: () = assert!(Rule::None as u8 == 0 && request::NEXT > tracer_ebpf::http1::method::CONNECT);
