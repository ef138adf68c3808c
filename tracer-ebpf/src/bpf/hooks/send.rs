//! send: `sk_msg` on the sockhash of enrolled client sockets.
//!
//! net/ipv4/tcp_bpf.c, tcp_bpf_sendmsg: runs in the thread that sends, under the socket's lock, on each message before
//! TCP has it. Here a call is attributed and tagged. The rules are DESIGN.md's section 4; whatever is not certain lets
//! the message go as it came.

use aya_ebpf::{
    bindings::{
        sk_action::{SK_DROP, SK_PASS},
        sk_msg_md,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_msg_pop_data, bpf_msg_pull_data, bpf_msg_push_data, bpf_skc_to_tcp_sock},
    },
    macros::sk_msg,
    programs::SkMsgContext,
};
use tracer_ebpf::{
    counter::Counter,
    http1::{FIELDS_MAX, Flow, HEAD_LIMIT, mode, tag_state},
    record::{Rule, Tag},
    traceparent::{self, LINE_LEN, PARENT_AT},
};

use crate::{
    bound::clamp,
    connection::{self, Connection},
    exchange,
    kernel::{TcpSock, Typed},
    maps::{FLOOR, SOCKETS, TAG_MAX_HEAD, TAGGER, TAGGING, count},
    pointer::Value,
    runtime_api,
    scratch::{self, Scratch},
    stream::{self, Message, linear, outcome},
};

/// So much is made linear where there is no memory in one piece for the whole message: the longest segment (loopback's
/// is 65,483 bytes).
const LINEAR_MIN: u32 = 64 * 1024;

/// What the sockets hold, for as long as they are open; the agent may be gone before them.
#[sk_msg]
pub fn fn_send(context: SkMsgContext) -> u32 {
    // The map must outlive the agent too: what a peer has sent and nobody has read yet lies in queues that the kernel
    // empties when a socket leaves the map (net/core/skmsg.c, sk_psock_destroy). The sockets hold this program, and a
    // program holds the maps that it names.
    // SAFETY: no instruction at all, only the operand.
    unsafe { core::arch::asm!("/* {0} */", in(reg) &raw const SOCKETS, options(readonly, nostack)) };
    if FLOOR.load() != 0 {
        return SK_PASS;
    }
    let whole = size(context.msg);
    // The kernel pushes each piece (net/ipv4/tcp_bpf.c, tcp_bpf_push): what it leaves over goes out as a small segment,
    // and the message's last one then waits for that one's acknowledgement (Nagle, and Minshall's rule of it).
    if linear(context.msg) < whole {
        let _ = pull_all(context.msg, whole);
    }
    // SAFETY: the array holds a program of this type, or none; then the call comes back.
    unsafe { TAGGER.tail_call(&context, 0) };
    SK_PASS
}

/// The work, while there is an agent.
#[sk_msg]
pub fn fn_tag(context: SkMsgContext) -> u32 {
    let message = context.msg;
    // SAFETY: the context's socket is a full one.
    let connection = unsafe {
        let socket = (*message).__bindgen_anon_3.sk;
        if socket.is_null() { None } else { connection::get(socket.cast()) }
    };
    let Some(mut connection) = connection else { return SK_PASS };
    send(message, &mut connection)
}

#[inline(always)]
fn size(message: *mut sk_msg_md) -> u32 {
    // SAFETY: a field of the context.
    unsafe { (*message).size }
}

/// Makes the first `len` bytes one piece of memory.
#[inline(always)]
fn pull(message: *mut sk_msg_md, len: u32) -> bool {
    // SAFETY: the helper checks its arguments; pointers into the message are read anew afterwards.
    unsafe { bpf_msg_pull_data(message, 0, len, 0) == 0 }
}

/// Makes the message one piece, or else its beginning.
#[inline(always)]
fn pull_all(message: *mut sk_msg_md, whole: u32) -> bool {
    pull(message, whole) || (whole > LINEAR_MIN && pull(message, LINEAR_MIN))
}

#[inline(always)]
fn send(message: *mut sk_msg_md, connection: &mut Value<Connection>) -> u32 {
    count(Counter::Sends);
    let whole = size(message);
    if connection.request.flow.mode == mode::OPAQUE {
        return SK_PASS;
    }
    let Some(socket) = socket(message) else { return SK_PASS };
    keep_in_step(connection.as_ptr(), socket.write_next());
    let verdict = follow(message, connection, whole);
    if verdict == SK_PASS {
        // With the tag, if it got one.
        let direction = &mut connection.request;
        direction.sequence = direction.sequence.wrapping_add(size(message));
    }
    verdict
}

/// The message begins at `sequence`, says TCP. If the flow stands elsewhere, then bytes went out that the hook did not
/// see (with the SYN, or by a write that began before the socket was in the sockhash), or the last message was not
/// taken whole: a non-blocking sender is told so and sends the rest again. The kernel does not show the hook the message
/// after such a short write (net/ipv4/tcp_bpf.c, tcp_bpf_send_verdict keeps `psock->eval`), so both may come together.
///
/// A function of its own, for the verifier: what follows is then looked at once and not once for each way through here.
#[inline(never)]
extern "C" fn keep_in_step(connection: *mut Connection, sequence: u32) -> u32 {
    // SAFETY: the caller's pointer to a map value.
    let Some(mut connection) = (unsafe { Value::new(connection) }) else { return 0 };
    let direction = &mut connection.request;
    let ahead = sequence.wrapping_sub(direction.sequence) as i32;
    if ahead == 0 {
        return 0;
    }
    let flow = &mut direction.flow;
    let known = if ahead > 0 {
        let unseen = u64::from(ahead.unsigned_abs());
        let within = flow.mode == mode::BODY && unseen < flow.remaining;
        if within {
            let _ = flow.pass_body(unseen);
        }
        within
    } else {
        let behind = direction.sequence.wrapping_sub(direction.body_end);
        flow.take_back(u64::from(ahead.unsigned_abs()), u64::from(behind))
    };
    direction.sequence = sequence;
    if !known && direction.flow.mode != mode::LOST {
        count(Counter::Desynced);
        direction.flow.mode = mode::LOST;
    }
    0
}

#[inline(always)]
fn follow(message: *mut sk_msg_md, connection: &mut Value<Connection>, whole: u32) -> u32 {
    let flow = &mut connection.request.flow;
    if flow.mode == mode::BODY && u64::from(whole) < flow.remaining {
        let _ = flow.pass_body(u64::from(whole));
        return SK_PASS;
    }
    let Some(mut scratch) = scratch::take() else {
        flow.mode = mode::LOST;
        return SK_PASS;
    };
    let verdict = look(message, &mut scratch, connection, whole);
    runtime_api::settle(&mut scratch, connection);
    scratch::give_back(&scratch);
    verdict
}

#[inline(always)]
fn look(message: *mut sk_msg_md, scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, whole: u32) -> u32 {
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    let begins = connection.request.flow.at_boundary() && is_proven(connection);
    scratch.may_pause = 1;
    scratch.sends = 1;
    scratch.tag_else = Tag::Pipelined as u32;
    let sequence = connection.request.sequence;
    stream::run::<Message, true>(Message(message), scratch, connection, 0, whole, sequence);
    if scratch.outcome != outcome::HEAD {
        return SK_PASS;
    }
    let verdict = call(message, scratch, connection, begins);
    if stream::request_body(scratch, connection) {
        stream::resume::<Message, true>(Message(message), scratch, connection);
    }
    verdict
}

/// Whether it is known of both directions where messages begin. The responses' side counts: what went by unseen there
/// may have been the beginning of a tunnel, and then nothing here is a request any more.
#[inline(always)]
fn is_proven(connection: &Connection) -> bool {
    connection.request.unproven | connection.response.unproven == 0 && connection.response.flow.mode != mode::LOST
}

/// A request head is complete, `cursor.at` behind it: attributes the call, tags it, records it.
#[inline(always)]
fn call(
    message: *mut sk_msg_md,
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
    begins: bool,
) -> u32 {
    let sender = stream::sender(connection, true);
    let head_end = scratch.window_at + scratch.cursor.at;
    let head_len = connection.request.flow.head_len;
    if !exchange::open(scratch, connection) {
        return SK_PASS;
    }
    exchange::take_head(scratch, connection);
    if runtime_api::takes(scratch, connection, sender.pid) {
        return SK_PASS;
    }
    exchange::attribute_call(scratch, connection, sender);
    let forwarded = scratch.parent.rule == Rule::Header as u8;
    let flow = &connection.request.flow;
    let mut verdict = SK_PASS;
    let tag = if TAGGING.load() == 0 {
        Tag::Off
    } else if flow.is_doubtful() {
        Tag::Malformed
    } else if flow.tag == tag_state::VALID && !forwarded {
        Tag::Kept
    } else if connection.may_tag == 0 {
        Tag::Destination
    } else if !begins || head_len > head_end {
        if is_proven(connection) { Tag::Split } else { Tag::Unproven }
    } else if connection.open() > 0 {
        // The other direction has to agree that an exchange begins here: while a response is still open, what looks like
        // a request may be the inside of a tunnel.
        Tag::Pipelined
    } else if forwarded {
        let at = head_end - head_len + flow.tag_at + PARENT_AT as u32;
        rewrite(message, at, scratch.start().context.span_id)
    } else if is_long(flow, head_end) {
        Tag::LongHead
    } else if !has_room(message) {
        Tag::NoRoom
    } else {
        // Before the empty line, which is one byte or two.
        let empty = if scratch.last_but_one() == b'\r' { 2 } else { 1 };
        let (tag, stuck) = insert(scratch, message, head_end - empty);
        if stuck {
            verdict = SK_DROP;
        }
        if tag == Tag::Injected {
            // The rest of the message has moved up.
            scratch.payload_at = LINE_LEN as u32;
            scratch.sequence = scratch.sequence.wrapping_add(LINE_LEN as u32);
        }
        tag
    };
    // By way of memory: what the verifier knows of either would make it follow the rest once for each outcome.
    scratch.tag = tag as u32;
    scratch.verdict = verdict;
    // SAFETY: a field of a map value.
    let tag = unsafe { (&raw const scratch.tag).read_volatile() };
    exchange::call_begins(scratch, connection, Tag::from_u8(tag as u8).unwrap_or(Tag::Refused), sender.pid);
    // SAFETY: as above.
    unsafe { (&raw const scratch.verdict).read_volatile() }
}

/// Whether a server might refuse the head because of the tag: what is left alone is not pushed over any limit.
#[inline(always)]
fn is_long(flow: &Flow, head_end: u32) -> bool {
    head_end > TAG_MAX_HEAD.load().saturating_sub(LINE_LEN as u32) || flow.fields >= FIELDS_MAX
}

/// Whether the send buffer takes the message whole, tag and all.
///
/// If it did not, a non-blocking sender would be told less than was taken: tcp_bpf_sendmsg counts in bytes after the
/// tag (net/ipv4/tcp_bpf.c, tcp_bpf_send_verdict, Linux 6.18). Both of what stops tcp_sendmsg_locked count: the buffer,
/// and TCP_NOTSENT_LOWAT (include/net/sock.h, __sk_stream_memory_free).
#[inline(always)]
fn has_room(message: *mut sk_msg_md) -> bool {
    let Some(socket) = socket(message) else { return false };
    let tagged = i64::from(size(message)) + LINE_LEN as i64;
    // Twice the size, for what the kernel charges beside the bytes themselves.
    socket.sock().send_room() > 2 * tagged + 4096 && socket.unsent_room() > tagged
}

#[inline(always)]
fn socket(message: *mut sk_msg_md) -> Option<TcpSock> {
    // SAFETY: the context's socket; the helper gives a typed pointer or null.
    unsafe {
        let socket = (*message).__bindgen_anon_3.sk;
        if socket.is_null() {
            return None;
        }
        Some(TcpSock(Typed::new(bpf_skc_to_tcp_sock(socket.cast()))?))
    }
}

/// Writes the header line into the message at `at`. On any failure takes it out again. The second answer is whether
/// even that failed.
#[inline(always)]
fn insert(scratch: &mut Value<Scratch>, message: *mut sk_msg_md, at: u32) -> (Tag, bool) {
    const LEN: u32 = LINE_LEN as u32;
    // The head in one piece, the message's first: where a later one has to be split, kernels before mid-2026 lose
    // bytes (net/core/filter.c, bpf_msg_push_data: `rsge.offset += start`). Where it is in one already, this costs
    // little.
    if !pull(message, at + 1) {
        return (Tag::Refused, false);
    }
    // SAFETY: the helper checks its arguments; pointers into the message are read anew afterwards.
    if unsafe { bpf_msg_push_data(message, at, LEN, 0) } != 0 {
        return (Tag::Refused, false);
    }
    // The new line lies in a piece of its own now, and a piece becomes a segment (Nagle again).
    let context = scratch.start().context;
    traceparent::write_line(&mut scratch.line, &context);
    let whole = size(message);
    if (pull_all(message, whole) || pull(message, at + LEN)) && write(message, at, &scratch.line) {
        return (Tag::Injected, false);
    }
    // SAFETY: as above.
    let stuck = unsafe { bpf_msg_pop_data(message, at, LEN, 0) } != 0;
    if stuck {
        count(Counter::TagStuck);
    }
    (Tag::Refused, stuck)
}

/// Writes the line into the linear part, and reads it back.
#[inline(always)]
fn write(message: *mut sk_msg_md, at: u32, line: &[u8; LINE_LEN]) -> bool {
    if at > HEAD_LIMIT {
        return false;
    }
    // SAFETY: the bounds are checked against the message's end, which the verifier insists on.
    unsafe {
        let at = clamp::<0, { HEAD_LIMIT as i32 }>(u64::from(at));
        let to = ((*message).__bindgen_anon_1.data as *mut u8).add(at as usize);
        if to.add(LINE_LEN) > (*message).__bindgen_anon_2.data_end as *mut u8 {
            return false;
        }
        // In words: the line is eight of them, a half and a quarter.
        let from = line.as_ptr();
        let mut differs = 0;
        let mut i = 0;
        while i < 64 {
            to.add(i).cast::<u64>().write_unaligned(from.add(i).cast::<u64>().read_unaligned());
            i += 8;
        }
        to.add(64).cast::<u32>().write_unaligned(from.add(64).cast::<u32>().read_unaligned());
        to.add(68).cast::<u16>().write_unaligned(from.add(68).cast::<u16>().read_unaligned());
        let mut i = 0;
        while i < LINE_LEN {
            differs |= to.add(i).read_volatile() ^ line[i];
            i += 1;
        }
        differs == 0
    }
}

/// Replaces the sixteen digits of the parent id at `at`.
#[inline(always)]
fn rewrite(message: *mut sk_msg_md, at: u32, span: u64) -> Tag {
    if at > HEAD_LIMIT {
        return Tag::LongHead;
    }
    let [high, low] = traceparent::hex_words(span);
    if !pull(message, at + 16) {
        return Tag::Refused;
    }
    // SAFETY: the bounds are checked against the message's end, which the verifier insists on.
    unsafe {
        let at = clamp::<0, { HEAD_LIMIT as i32 }>(u64::from(at));
        let to = ((*message).__bindgen_anon_1.data as *mut u8).add(at as usize);
        if to.add(16) > (*message).__bindgen_anon_2.data_end as *mut u8 {
            return Tag::Refused;
        }
        let mut i = 0;
        while i < 8 {
            to.add(i).write((high >> (8 * i)) as u8);
            to.add(8 + i).write((low >> (8 * i)) as u8);
            i += 1;
        }
    }
    Tag::Rewritten
}
