//! Requests and responses, as they are recognised: what they mean at either end of a connection.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use core::ptr;
use tracer_ebpf::{
    counter::Counter,
    http1::{mode, tag_state},
    record::{Kind, Reason, Rule, START_FIRST, START_HEAD_CUT, START_INBOUND, START_UNSAMPLED, Tag, Wire},
    traceparent::{Context, SAMPLED},
};

use crate::{
    attribution::{self, Invocation, Parent},
    connection::{Connection, OPEN_MAX, role},
    facts,
    kernel::Task,
    maps::{count, count_call},
    pointer::Value,
    process, runtime_api, sampling,
    scratch::Scratch,
};

/// 64 bits that are not 0. They need to be unlike each other, not secret: a span id is believed only where it was made.
#[inline(always)]
pub fn random_id() -> u64 {
    // SAFETY: the helper has no arguments.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    (u64::from(high) << 32) | u64::from(low) | 1 << 63 >> (high & 63)
}

/// Stands in the place of a span for an exchange that is neither a call nor an invocation. No span has it as its id but
/// with a probability of 2⁻⁶⁴.
pub const NO_SPAN: u64 = 1;

#[inline(always)]
fn new_trace() -> [u64; 2] {
    [random_id(), random_id()]
}

/// A trace that nobody has begun before.
#[inline(always)]
pub fn begin_trace(context: &mut Context) {
    context.trace_id = new_trace();
    context.flags = SAMPLED;
    context.pad = [0; 7];
}

/// Puts the head of the request at hand into the record's tail, or its beginning if it came in pieces;
/// [`Scratch::cut`] then says so.
#[inline(always)]
pub fn take_head(scratch: &mut Scratch, connection: &mut Connection) {
    let (from, to) = (scratch.cursor.head_at, scratch.cursor.at);
    scratch.cut = u32::from(connection.first_len != 0);
    if connection.first_len == 0 {
        scratch.tail_from_window(from, to.wrapping_sub(from));
        return;
    }
    let len = u64::from(connection.first_len);
    scratch.set_tail(connection.first.as_ptr(), len);
    connection.first_len = 0;
}

/// Makes room for one more open exchange; `false` if there is none, and the connection is given up.
#[inline(always)]
pub fn open(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) -> bool {
    if connection.open() > 0 && connection.response.flow.mode == mode::LOST {
        // The response to the last request went by unseen; this request shows that it is over.
        finish(scratch, connection, Reason::Missed, 0);
    }
    if connection.open() == 0 {
        if connection.response.flow.mode == mode::LOST {
            connection.response.flow.mode = mode::FIRST;
            // What went by unseen may have been the beginning of a tunnel.
            connection.response.unproven = 1;
        }
        connection.first_byte_ns = 0;
        connection.status = 0;
    }
    if connection.open() >= OPEN_MAX {
        count(Counter::Pipelined);
        finish(scratch, connection, Reason::Upgraded, 0);
        return false;
    }
    true
}

/// The sequence number of the first byte of the head that is complete.
#[inline(always)]
fn first_byte(scratch: &Scratch, connection: &Connection) -> u32 {
    scratch.sequence_here().wrapping_sub(connection.request.flow.head_len)
}

/// Copies the ends of a connection word by word. An assignment becomes a call that copies byte by byte.
#[inline(always)]
fn copy_wire(to: &mut Wire, from: &Wire) {
    const WORDS: usize = size_of::<Wire>() / size_of::<u32>();
    const _: () = assert!(size_of::<Wire>() % size_of::<u32>() == 0);
    let (to, from) = (ptr::from_mut(to).cast::<u32>(), ptr::from_ref(from).cast::<u32>());
    let mut i = 0;
    while i < WORDS {
        // SAFETY: within both; plain bytes, which need no alignment in map values.
        unsafe { to.add(i).write_unaligned(from.add(i).read_unaligned()) };
        i += 1;
    }
}

/// Fills in what all starts have in common.
#[inline(always)]
pub fn fill(scratch: &mut Scratch, connection: &Connection, flags: u8, live: u32, sequence: u32) {
    let start = scratch.start();
    start.conn = connection.cookie;
    copy_wire(&mut start.wire, &connection.wire);
    start.sequence = sequence;
    start.flags = if start.context.flags & SAMPLED == 0 { flags | START_UNSAMPLED } else { flags };
    start.rule = Rule::None as u8;
    start.tag = Tag::NoRequest as u8;
    start.trust = 0;
    start.pad = [0; 3];
    start.tid = 0;
    start.unit = [0; 2];
    start.live = if live > 255 { 255 } else { live as u8 };
}

/// Makes the context of a call: a span of its own, in its parent's trace if it has one.
#[inline(always)]
pub fn derive(scratch: &mut Scratch, sandbox: u64) {
    let Context { trace_id, span_id: parent, flags, .. } = scratch.parent.context;
    let start = scratch.start();
    start.context.trace_id = trace_id;
    start.context.flags = flags;
    start.context.pad = [0; 7];
    start.context.span_id = random_id();
    start.parent = parent;
    if parent == 0 {
        start.context.trace_id = new_trace();
        start.context.flags = sampling::flags_of_root(sandbox);
    }
}

/// A request has reached a server socket: an invocation begins.
#[inline(always)]
pub fn invocation_begins(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    if !open(scratch, connection) {
        return;
    }
    take_head(scratch, connection);
    if runtime_api::takes(scratch, connection, 0) {
        return;
    }
    let sequence = first_byte(scratch, connection);
    let flow = &connection.request.flow;
    let span = random_id();
    let mut flags = if scratch.cut == 1 { START_HEAD_CUT } else { 0 };
    let start = scratch.start();
    start.parent = 0;
    if flow.tag == tag_state::VALID && !flow.is_doubtful() {
        flags |= START_INBOUND;
        start.parent = flow.context.span_id;
        start.context = flow.context;
    } else {
        begin_trace(&mut start.context);
        let (room, wire) = (&mut scratch.exchange, &connection.wire);
        let sampled = sampling::flags_of_request(room, wire, sequence, connection.sandbox);
        scratch.start().context.flags = sampled;
    }
    let start = scratch.start();
    start.context.span_id = span;
    let (context, inbound) = (start.context, start.parent);
    let now = scratch.now;
    scratch.invocation =
        Invocation { sandbox: connection.sandbox, context, inbound, start_ns: now, read: 0, polled: 0, after: 0 };
    let (first, live) = attribution::begin(span, &scratch.invocation);
    if first {
        flags |= START_FIRST;
    }
    fill(scratch, connection, flags, live, sequence);
    let (ordinal, method) = (connection.requests, connection.request.flow.method);
    let recorded = sampling::is_recorded(&context);
    *connection.silent(ordinal) = !recorded as u8;
    connection.span(ordinal).store(span);
    *connection.sequence(ordinal) = sequence;
    *connection.method(ordinal) = method;
    connection.requests = ordinal.wrapping_add(1);
    if recorded {
        scratch.emit(Kind::InvocationStart, connection.sandbox, 0);
    }
    if connection.closed.load() == 1 {
        // Closed by another CPU since the packet was let in. Whoever comes last of the two ends it, or both try.
        finish(scratch, connection, Reason::Closed, 0);
    }
}

/// A request, whose head [`take_head`] took, is about to leave a client socket: decides whose call it is and what its tag says. What becomes of the tag
/// is for [`call_begins`] to say.
#[inline(always)]
pub fn attribute_call(scratch: &mut Scratch, connection: &mut Value<Connection>, task: Task) {
    let flow = &connection.request.flow;
    let carried = flow.tag == tag_state::VALID && !flow.is_doubtful();
    let carried_context = if carried { Some(&flow.context) } else { None };
    attribution::attribute(&mut scratch.parent, connection.sandbox, task, carried_context);
    // A goroutine of its own connects for net/http, and whoever comes first gets the connection.
    let of_goroutine = connection.connect_rule == Rule::Coroutine as u8 && connection.connect_flags == 0;
    if connection.requests == 0 && connection.connect_parent != 0 && !of_goroutine {
        let (span, flags, trust) = (connection.connect_parent, connection.connect_flags, connection.connect_trust);
        attribution::by_connect(&mut scratch.parent, connection.sandbox, span, flags, trust);
    }
    if scratch.parent.rule == Rule::None as u8 && scratch.parent.live > 1 && task.is_known() {
        attribution::misses(connection.sandbox);
    }
    derive(scratch, connection.sandbox);
    if carried && scratch.parent.rule != Rule::Header as u8 {
        scratch.start().context = flow.context;
    }
    let (live, more) = (scratch.parent.live, scratch.parent.flags);
    let sequence = first_byte(scratch, connection);
    let flags = if scratch.cut == 1 { START_HEAD_CUT | more } else { more };
    fill(scratch, connection, flags, live, sequence);
    scratch.start().trust = scratch.parent.trust;
}

/// The call that [`attribute_call`] prepared goes out, with this outcome for its tag.
#[inline(always)]
pub fn call_begins(scratch: &mut Scratch, connection: &mut Value<Connection>, tag: Tag, pid: u32) {
    let rule = scratch.parent.rule;
    let ordinal = connection.requests;
    let span = scratch.start().context.span_id;
    let start = scratch.start();
    start.tag = tag as u8;
    start.rule = rule;
    *connection.sequence(ordinal) = start.sequence;
    let recorded = sampling::is_recorded(&start.context);
    *connection.silent(ordinal) = !recorded as u8;
    connection.span(ordinal).store(span);
    let method = connection.request.flow.method;
    *connection.method(ordinal) = method;
    connection.requests = ordinal.wrapping_add(1);
    connection.pid = pid;
    connection.caller = scratch.parent.context.span_id;
    facts::call_begins(scratch, connection);
    count_call(tag as u32, u32::from(rule));
    if !tag.on_the_wire() {
        let (sequence, flags) = (scratch.start().sequence, scratch.start().context.flags);
        sampling::tell(&mut scratch.exchange, &connection.wire, sequence, flags);
    }
    if recorded {
        scratch.emit(Kind::CallStart, connection.sandbox, pid);
    }
}

/// A connection attempt failed: a call that never was a request.
#[inline(always)]
pub fn connect_failed(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, errno: u32) {
    scratch.parent = Parent::NOBODY;
    if let Some(parent) = attribution::invocation(connection.connect_parent) {
        scratch.parent.context = parent.context;
        scratch.parent.rule = connection.connect_rule;
        scratch.parent.flags = connection.connect_flags;
        scratch.parent.trust = connection.connect_trust;
    }
    let now = scratch.now;
    scratch.now = connection.connect_ns;
    let recorded = unsent(scratch, connection, Kind::CallStart);
    scratch.now = now;
    let span = scratch.start().context.span_id;
    *connection.silent(0) = !recorded as u8;
    connection.span(0).store(span);
    *connection.sequence(0) = 0;
    connection.requests = 1;
    finish(scratch, connection, Reason::ConnectFailed, errno);
}

/// A call without a request of HTTP/1. Says whether it is recorded.
#[inline(always)]
fn unsent(scratch: &mut Scratch, connection: &Connection, kind: Kind) -> bool {
    derive(scratch, connection.sandbox);
    let (rule, live) = (scratch.parent.rule, scratch.parent.live);
    let more = scratch.parent.flags;
    fill(scratch, connection, more, live, 0);
    scratch.start().trust = scratch.parent.trust;
    scratch.start().rule = rule;
    scratch.header.tail_len = 0;
    count_call(Tag::NoRequest as u32, u32::from(rule));
    let recorded = sampling::is_recorded(&scratch.start().context);
    if recorded {
        scratch.emit(kind, connection.sandbox, connection.pid);
    }
    recorded
}

/// A connection turned out not to speak HTTP/1 before any exchange: from a client's end it is one call, as long as it
/// lasts.
#[inline(always)]
pub fn opaque_begins(scratch: &mut Scratch, connection: &mut Value<Connection>, task: Task) {
    if connection.role != role::CLIENT || connection.opaque != 0 || connection.requests != 0 {
        return;
    }
    attribution::attribute(&mut scratch.parent, connection.sandbox, task, None);
    // 2: not recorded.
    connection.opaque = if unsent(scratch, connection, Kind::OpaqueStart) { 1 } else { 2 };
    connection.opaque_span = scratch.start().context.span_id;
}

/// Puts the quality of a client's connection into the end at hand.
#[inline(always)]
fn measured(scratch: &mut Scratch, connection: &mut Connection) {
    let (rtt_us, retransmits) = (scratch.rtt_us, scratch.retransmits);
    let end = scratch.end();
    end.rtt_us = 0;
    end.retransmits = 0;
    if connection.role != role::CLIENT || rtt_us == 0 {
        return;
    }
    let more = retransmits.wrapping_sub(connection.retransmits);
    connection.retransmits = retransmits;
    end.rtt_us = rtt_us;
    end.retransmits = if more > 255 { 255 } else { more as u8 };
}

/// The oldest open exchange has ended.
#[inline(always)]
pub fn response_ends(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, reason: Reason, errno: u32) {
    if connection.open() == 0 {
        return;
    }
    let ordinal = connection.responses;
    scratch.silent = u32::from(*connection.silent(ordinal));
    // Either direction may end it, each on a CPU of its own (and the closing socket on a third): who takes the span does.
    let span = connection.span(ordinal).take();
    if span == 0 {
        return;
    }
    connection.responses = ordinal.wrapping_add(1);
    if span == NO_SPAN {
        connection.first_byte_ns = 0;
        connection.status = 0;
        runtime_api::result_ends(scratch, reason);
        return;
    }
    let end = scratch.end();
    end.conn = connection.cookie;
    end.span = span;
    end.first_byte_ns = connection.first_byte_ns;
    end.sequence = *connection.sequence(ordinal);
    end.status = connection.status;
    end.reason = reason as u8;
    end.errno = errno;
    measured(scratch, connection);
    connection.first_byte_ns = 0;
    connection.status = 0;
    // In one place for both, or the eight copies of this in `end_all` need more stack than there is up to 6.7.
    let kind = if connection.role == role::SERVER {
        process::stops(connection, scratch.now);
        attribution::end(span, connection.sandbox, scratch.now);
        Kind::InvocationEnd
    } else {
        Kind::CallEnd
    };
    scratch.emit_unless_silent(kind, connection.sandbox, connection.pid);
}

/// Nothing more will come of what is open on this connection.
#[inline(always)]
pub fn finish(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, reason: Reason, errno: u32) {
    end_all(scratch.as_ptr(), connection.as_ptr(), reason as u32, errno);
    if reason != Reason::Missed {
        connection.request.flow.mode = mode::OPAQUE;
        connection.response.flow.mode = mode::OPAQUE;
    }
    if reason == Reason::Upgraded {
        becomes_unknown(connection, scratch.now);
    }
}

/// From here on it is not known whether requests are at work on this connection.
#[inline(always)]
pub fn becomes_unknown(connection: &mut Value<Connection>, now: u64) {
    if connection.role != role::SERVER || !connection.unknown.set_first() {
        return;
    }
    attribution::begin_unknown(connection.sandbox, now);
    if connection.closed.load() == 1 {
        // By another CPU, which may not have seen it.
        becomes_known(connection);
    }
}

/// Nothing is at work on this connection but what is known.
#[inline(always)]
pub fn becomes_known(connection: &mut Value<Connection>) {
    if connection.unknown.take() != 0 {
        attribution::end_unknown(connection.sandbox);
    }
}

/// A function of its own, for the verifier: what follows a call is then looked at once, and not once for each way through
/// here.
#[inline(never)]
extern "C" fn end_all(scratch: *mut Scratch, connection: *mut Connection, reason: u32, errno: u32) -> u32 {
    // SAFETY: the callers' pointers to map values.
    let (Some(mut scratch), Some(mut connection)) = (unsafe { (Value::new(scratch), Value::new(connection)) }) else {
        return 0;
    };
    let reason = Reason::from_u8(reason as u8).unwrap_or(Reason::Missed);
    if connection.asks != 0 && connection.open() != 0 {
        attribution::gives_up(connection.asks_tid);
        connection.asks = 0;
    }
    let mut i = 0;
    while i < OPEN_MAX {
        response_ends(&mut scratch, &mut connection, reason, errno);
        i += 1;
    }
    0
}

/// The connection of an opaque call was closed.
#[inline(always)]
pub fn opaque_ends(scratch: &mut Scratch, connection: &mut Value<Connection>) {
    let recorded = connection.opaque == 1;
    connection.opaque = 0;
    if !recorded {
        return;
    }
    let end = scratch.end();
    end.conn = connection.cookie;
    end.span = connection.opaque_span;
    end.first_byte_ns = 0;
    end.sequence = 0;
    end.status = 0;
    end.reason = Reason::Closed as u8;
    end.errno = 0;
    measured(scratch, connection);
    let pid = connection.pid;
    scratch.emit(Kind::OpaqueEnd, connection.sandbox, pid);
}
