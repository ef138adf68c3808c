//! Requests and responses, as they are recognised: what they mean at either end of a connection.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use tracer_ebpf::{
    counter::Counter,
    http1::{mode, tag_state},
    record::{End, Kind, Reason, Rule, START_FIRST, START_HEAD_CUT, START_INBOUND, START_UNSAMPLED, Start, Tag},
    traceparent::{Context, SAMPLED},
};

use crate::{
    attribution::{self, Invocation, Parent},
    connection::{Connection, OPEN_MAX, role},
    kernel::Task,
    maps::{count, count_call},
    pointer::Value,
    scratch::{Fixed, Scratch},
};

/// 64 bits that are not 0. They need to be unlike each other, not secret: a span id is believed only where it was made.
#[inline(always)]
pub fn random_id() -> u64 {
    // SAFETY: the helper has no arguments.
    let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    (u64::from(high) << 32) | u64::from(low) | 1 << 63 >> (high & 63)
}

#[inline(always)]
fn new_trace() -> [u64; 2] {
    [random_id(), random_id()]
}

/// Puts the head of the request at hand into the record's tail, or its beginning if it came in pieces. Says whether it
/// is cut.
#[inline(always)]
fn take_head(scratch: &mut Scratch, connection: &mut Connection) -> bool {
    let (from, to) = (scratch.cursor.head_at, scratch.cursor.at);
    if connection.first_len == 0 {
        scratch.tail_from_window(from, to.wrapping_sub(from));
        return false;
    }
    let len = u64::from(connection.first_len);
    scratch.set_tail(connection.first.as_ptr(), len);
    connection.first_len = 0;
    true
}

/// Makes room for one more open exchange; `false` if there is none, and the connection is given up.
#[inline(always)]
fn open(scratch: &mut Scratch, connection: &mut Value<Connection>) -> bool {
    if connection.open() > 0 && connection.response.flow.mode == mode::LOST {
        // The response to the last request went by unseen; this request shows that it is over.
        finish(scratch, connection, Reason::Missed, 0);
    }
    if connection.open() == 0 {
        if connection.response.flow.mode == mode::LOST {
            connection.response.flow.mode = mode::FIRST;
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

/// A request has reached a server socket: an invocation begins.
#[inline(always)]
pub fn invocation_begins(scratch: &mut Scratch, connection: &mut Value<Connection>) {
    if !open(scratch, connection) {
        return;
    }
    let cut = take_head(scratch, connection);
    let flow = &connection.request.flow;
    let span = random_id();
    let mut flags = if cut { START_HEAD_CUT } else { 0 };
    let (inbound, context) = if flow.tag == tag_state::VALID && !flow.is_doubtful() {
        flags |= START_INBOUND;
        (
            flow.context.span_id,
            Context { trace_id: flow.context.trace_id, span_id: span, flags: flow.context.flags, pad: [0; 7] },
        )
    } else {
        (0, Context { trace_id: new_trace(), span_id: span, flags: SAMPLED, pad: [0; 7] })
    };
    if context.flags & SAMPLED == 0 {
        flags |= START_UNSAMPLED;
    }
    let method = flow.method;
    let invocation = Invocation { sandbox: connection.sandbox, context, inbound, start_ns: scratch.now };
    let (first, live) = attribution::begin(span, &invocation);
    if first {
        flags |= START_FIRST;
    }
    let ordinal = connection.requests;
    *connection.span(ordinal) = span;
    *connection.method(ordinal) = method;
    connection.requests = ordinal.wrapping_add(1);
    scratch.fixed = Fixed {
        start: Start {
            conn: connection.cookie,
            context,
            parent: inbound,
            wire: connection.wire,
            ordinal,
            flags,
            rule: Rule::None as u8,
            tag: Tag::NoRequest as u8,
            live: if live > 255 { 255 } else { live as u8 },
        },
    };
    scratch.emit(Kind::InvocationStart, connection.sandbox, 0);
}

/// A request is about to leave a client socket: decides whose call it is and what its tag says. The tail must hold the
/// head. What becomes of the tag is for [`call_begins`] to say.
#[inline(always)]
pub fn attribute_call(scratch: &mut Scratch, connection: &mut Value<Connection>, task: Option<Task>) -> Parent {
    let cut = take_head(scratch, connection);
    let flow = &connection.request.flow;
    let carried = flow.tag == tag_state::VALID && !flow.is_doubtful();
    let parent = attribution::attribute(connection.sandbox, task, if carried { Some(&flow.context) } else { None });
    let mut context =
        Context { trace_id: parent.context.trace_id, span_id: random_id(), flags: parent.context.flags, pad: [0; 7] };
    if carried && parent.rule != Rule::Header {
        context = flow.context;
    } else if parent.context.span_id == 0 {
        context.trace_id = new_trace();
        context.flags = SAMPLED;
    }
    let mut flags = if cut { START_HEAD_CUT } else { 0 };
    if context.flags & SAMPLED == 0 {
        flags |= START_UNSAMPLED;
    }
    scratch.fixed = Fixed {
        start: Start {
            conn: connection.cookie,
            context,
            parent: parent.context.span_id,
            wire: connection.wire,
            ordinal: connection.requests,
            flags,
            rule: parent.rule as u8,
            tag: Tag::NoRequest as u8,
            live: if parent.live > 255 { 255 } else { parent.live as u8 },
        },
    };
    parent
}

/// The call that [`attribute_call`] prepared goes out, with this outcome for its tag.
#[inline(always)]
pub fn call_begins(scratch: &mut Scratch, connection: &mut Value<Connection>, parent: &Parent, tag: Tag, pid: u32) {
    let tail_len = scratch.header.tail_len;
    // SAFETY: `attribute_call` has written this variant.
    let mut start = unsafe { scratch.fixed.start };
    if !open(scratch, connection) {
        return;
    }
    start.tag = tag as u8;
    start.ordinal = connection.requests;
    let method = connection.request.flow.method;
    *connection.span(start.ordinal) = start.context.span_id;
    *connection.method(start.ordinal) = method;
    connection.requests = start.ordinal.wrapping_add(1);
    connection.pid = pid;
    count_call(tag, parent.rule);
    scratch.header.tail_len = tail_len;
    scratch.fixed = Fixed { start };
    scratch.emit(Kind::CallStart, connection.sandbox, pid);
}

/// A connection attempt failed: a call that never was a request.
#[inline(always)]
pub fn connect_failed(scratch: &mut Scratch, connection: &mut Value<Connection>, errno: u32) {
    let rule = Rule::from_u8(connection.connect_rule).unwrap_or(Rule::None);
    let mut context = Context { trace_id: [0; 2], span_id: random_id(), flags: SAMPLED, pad: [0; 7] };
    if let Some(parent) = attribution::invocation(connection.connect_parent) {
        context.trace_id = parent.context.trace_id;
        context.flags = parent.context.flags;
    } else {
        context.trace_id = new_trace();
    }
    let now = scratch.now;
    *connection.span(0) = context.span_id;
    scratch.fixed = Fixed { start: opening(connection, context, rule, Tag::NoRequest) };
    scratch.header.tail_len = 0;
    scratch.now = connection.connect_ns;
    count_call(Tag::NoRequest, rule);
    scratch.emit(Kind::CallStart, connection.sandbox, connection.pid);
    scratch.now = now;
    connection.requests = 1;
    finish(scratch, connection, Reason::ConnectFailed, errno);
}

#[inline(always)]
fn opening(connection: &Connection, context: Context, rule: Rule, tag: Tag) -> Start {
    Start {
        conn: connection.cookie,
        context,
        parent: connection.connect_parent,
        wire: connection.wire,
        ordinal: 0,
        flags: if context.flags & SAMPLED == 0 { START_UNSAMPLED } else { 0 },
        rule: rule as u8,
        tag: tag as u8,
        live: 0,
    }
}

/// A connection turned out not to speak HTTP/1 before any exchange: from a client's end it is one call, as long as it
/// lasts.
#[inline(always)]
pub fn opaque_begins(scratch: &mut Scratch, connection: &mut Value<Connection>, task: Option<Task>) {
    if connection.role != role::CLIENT || connection.opaque != 0 || connection.requests != 0 {
        return;
    }
    let parent = attribution::attribute(connection.sandbox, task, None);
    let mut context =
        Context { trace_id: parent.context.trace_id, span_id: random_id(), flags: parent.context.flags, pad: [0; 7] };
    if parent.context.span_id == 0 {
        context.trace_id = new_trace();
        context.flags = SAMPLED;
    }
    connection.connect_parent = parent.context.span_id;
    connection.opaque = 1;
    connection.opaque_span = context.span_id;
    scratch.fixed = Fixed { start: opening(connection, context, parent.rule, Tag::NoRequest) };
    scratch.header.tail_len = 0;
    count_call(Tag::NoRequest, parent.rule);
    let pid = connection.pid;
    scratch.emit(Kind::OpaqueStart, connection.sandbox, pid);
}

/// The oldest open exchange has ended.
#[inline(always)]
pub fn response_ends(scratch: &mut Scratch, connection: &mut Value<Connection>, reason: Reason, errno: u32) {
    if connection.open() == 0 {
        return;
    }
    let ordinal = connection.responses;
    let span = *connection.span(ordinal);
    connection.responses = ordinal.wrapping_add(1);
    scratch.fixed = Fixed {
        end: End {
            conn: connection.cookie,
            span,
            first_byte_ns: connection.first_byte_ns,
            ordinal,
            status: connection.status,
            reason: reason as u8,
            pad: 0,
            errno,
            pad2: 0,
        },
    };
    connection.first_byte_ns = 0;
    connection.status = 0;
    let pid = connection.pid;
    if connection.role == role::SERVER {
        attribution::end(span, connection.sandbox);
        scratch.emit(Kind::InvocationEnd, connection.sandbox, pid);
    } else {
        scratch.emit(Kind::CallEnd, connection.sandbox, pid);
    }
}

/// Nothing more will come of what is open on this connection.
#[inline(always)]
pub fn finish(scratch: &mut Scratch, connection: &mut Value<Connection>, reason: Reason, errno: u32) {
    let mut i = 0;
    while i < OPEN_MAX {
        response_ends(scratch, connection, reason, errno);
        i += 1;
    }
    if reason != Reason::Missed {
        connection.request.flow.mode = mode::OPAQUE;
        connection.response.flow.mode = mode::OPAQUE;
    }
}

/// The connection of an opaque call was closed.
#[inline(always)]
pub fn opaque_ends(scratch: &mut Scratch, connection: &mut Value<Connection>) {
    if connection.opaque == 0 {
        return;
    }
    connection.opaque = 0;
    scratch.fixed = Fixed {
        end: End {
            conn: connection.cookie,
            span: connection.opaque_span,
            first_byte_ns: 0,
            ordinal: 0,
            status: 0,
            reason: Reason::Closed as u8,
            pad: 0,
            errno: 0,
            pad2: 0,
        },
    };
    let pid = connection.pid;
    scratch.emit(Kind::OpaqueEnd, connection.sandbox, pid);
}
