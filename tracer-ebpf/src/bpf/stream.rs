//! Runs a flow over the bytes of a packet or message, window by window, under `bpf_loop`.

use aya_ebpf::{
    bindings::{__sk_buff, sk_msg_md},
    helpers::generated::{bpf_loop, bpf_msg_pull_data, bpf_probe_read_kernel, bpf_skb_load_bytes},
};
use core::ffi::c_void;
use tracer_ebpf::{
    counter::Counter,
    http1::{After, CARRY, Cursor, Event, Side, method, mode, tag_state},
    record::{Reason, Rule, Tag},
    runtime_api::request,
};

use crate::{
    attribution,
    bound::clamp,
    connection::{Connection, Direction, FIRST_MAX, role},
    exchange, facts, kernel,
    maps::count,
    pointer::Value,
    runtime_api,
    scratch::{Scratch, WINDOW},
};

/// Most steps over one packet or message. What needs more (64 KiB of one-byte chunks, say) loses its framing.
const STEPS: u32 = 16_384;

/// Most lines of a head that one step passes over. Each of its own would cost more for the step than for the line.
const LINES: u32 = 4;

/// Where the bytes come from.
pub trait Source {
    /// Whether the run stops at a complete request head, for the tag.
    const PAUSES: bool;

    /// Copies `len` (1 to [`WINDOW`]) bytes at `at` to `to`.
    ///
    /// # Safety
    ///
    /// `to` must have room for [`WINDOW`] bytes.
    unsafe fn load(&self, at: u32, to: *mut u8, len: u64) -> bool;
}

/// A packet.
pub struct Packet(pub *mut __sk_buff);

impl Source for Packet {
    const PAUSES: bool = false;

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut u8, len: u64) -> bool {
        // SAFETY: the caller vouches for `to`; the helper checks `at`.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, to.cast(), len as u32) == 0 }
    }
}

/// How much of a message is in one piece, from where it was last pulled to.
#[inline(always)]
pub fn linear(message: *mut sk_msg_md) -> u32 {
    // SAFETY: fields of the context.
    unsafe { ((*message).__bindgen_anon_2.data_end as usize - (*message).__bindgen_anon_1.data as usize) as u32 }
}

/// A message on its way out.
pub struct Message(pub *mut sk_msg_md);

impl Source for Message {
    const PAUSES: bool = true;

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut u8, len: u64) -> bool {
        let at = at & 0xff_ffff;
        // SAFETY: fields of the context; the helper checks its arguments and makes `len` bytes at `at` readable; the other
        // one copies them.
        unsafe {
            // At the beginning nothing has been pulled yet but that. Elsewhere, where the message is one piece already,
            // pulling only moves the window of what may be read.
            let begins = at == 0 && linear(self.0) as u64 >= len;
            if !begins && bpf_msg_pull_data(self.0, at, at + len as u32, 0) != 0 {
                return false;
            }
            let data = (*self.0).__bindgen_anon_1.data as *const u8;
            bpf_probe_read_kernel(to.cast(), len as u32, data.cast()) == 0
        }
    }
}

/// What the steps share. On the stack: only pointers, which do not change, so that the verifier sees each step alike.
#[repr(C)]
struct Run<S> {
    source: S,
    scratch: *mut Scratch,
    connection: *mut Connection,
}

/// How a run ended; [`Scratch::outcome`].
pub mod outcome {
    /// The steps did not suffice.
    pub const UNFINISHED: u32 = 0;
    /// All bytes have been looked at.
    pub const DONE: u32 = 1;
    /// A request head is complete, `cursor.at` behind it; [`super::resume`] goes on.
    pub const HEAD: u32 = 2;
}

#[inline(always)]
pub fn direction<const REQUEST: bool>(connection: &mut Connection) -> &mut Direction {
    if REQUEST { &mut connection.request } else { &mut connection.response }
}

const fn side<const REQUEST: bool>() -> Side {
    if REQUEST { Side::Request } else { Side::Response }
}

/// Runs the flow over `payload_len` bytes that begin at `payload_at` in the source, and at `sequence` in the stream.
#[inline(always)]
pub fn run<S: Source, const REQUEST: bool>(
    source: S,
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
    payload_at: u32,
    payload_len: u32,
    sequence: u32,
) {
    if direction::<REQUEST>(connection).flow.mode == mode::LOST {
        if REQUEST && connection.open() > 0 && connection.response.flow.mode != mode::LOST {
            // The response is still to come: this is the rest of the request that it answers, whatever it looks like.
            scratch.outcome = outcome::DONE;
            return;
        }
        // Perhaps a message begins here. If it does not look like one, the flow is lost again.
        let direction = direction::<REQUEST>(connection);
        direction.unproven = 1;
        direction.flow.begin_message(&mut Cursor::default());
        if REQUEST {
            connection.first_len = 0;
        }
    }
    let flow = &mut direction::<REQUEST>(connection).flow;
    scratch.carried = u32::from(flow.carry_len) & 0xff;
    // Used up, wherever the run ends: in a body, say, nothing else would say so.
    flow.carry_len = 0;
    scratch.payload_at = payload_at;
    scratch.sequence = sequence.wrapping_sub(scratch.carried);
    scratch.stream_len = scratch.carried + payload_len;
    scratch.window_at = 0;
    scratch.cursor = Cursor { at: 0, end: 0, head_at: 0 };
    resume::<S, REQUEST>(source, scratch, connection);
}

/// Goes on where a run paused.
#[inline(always)]
pub fn resume<S: Source, const REQUEST: bool>(
    source: S,
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
) {
    scratch.outcome = outcome::UNFINISHED;
    scratch.next = Event::Step as u32;
    let mut run = Run { source, scratch: scratch.as_ptr(), connection: connection.as_ptr() };
    // SAFETY: the callback has the form that bpf_loop asks for and gets the context that it expects.
    unsafe {
        bpf_loop(STEPS, step::<S, REQUEST> as *mut c_void, (&raw mut run).cast(), 0);
    }
    if scratch.outcome == outcome::UNFINISHED {
        count(Counter::TooLong);
        direction::<REQUEST>(connection).flow.mode = mode::LOST;
    }
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

#[inline(never)]
extern "C" fn step<S: Source, const REQUEST: bool>(_: u64, run: *mut c_void) -> i64 {
    // SAFETY: `resume` passes a `Run<S>` on its stack, with pointers that were checked for null.
    let (source, scratch, connection) = unsafe {
        let run = &*run.cast::<Run<S>>();
        (&run.source, Value::new(run.scratch), Value::new(run.connection))
    };
    let (Some(mut scratch), Some(mut connection)) = (scratch, connection) else { return STOP };
    if scratch.next != Event::Step as u32 {
        return comes_of::<S, REQUEST>(source, &mut scratch, &mut connection);
    }
    let flow = &mut direction::<REQUEST>(&mut connection).flow;
    if flow.mode >= mode::OPAQUE {
        return stop(&mut scratch);
    }
    if flow.mode == mode::BODY || flow.mode == mode::UNTIL_CLOSE {
        let here = scratch.window_at + scratch.cursor.at;
        let (taken, event) = flow.pass_body(u64::from(scratch.stream_len - here));
        scratch.window_at = here + taken as u32;
        scratch.cursor = Cursor { at: 0, end: 0, head_at: 0 };
        if S::PAUSES && event != Event::Drained {
            direction::<REQUEST>(&mut connection).body_end = scratch.sequence_here();
        }
        if event == Event::End {
            scratch.next = Event::End as u32;
            return GO_ON;
        }
        return if scratch.window_at >= scratch.stream_len { stop(&mut scratch) } else { GO_ON };
    }
    if scratch.cursor.at >= scratch.cursor.end {
        return next_window::<S, REQUEST>(source, &mut scratch, &mut connection);
    }
    let Scratch { window, cursor, next, .. } = &mut *scratch;
    let mut event = flow.step(side::<REQUEST>(), window, cursor);
    let mut more = LINES - 1;
    while more > 0 && event == Event::Step && flow.mode == mode::LINE {
        event = flow.next_line(window, cursor);
        more -= 1;
    }
    *next = event as u32;
    GO_ON
}

/// What a step came to is dealt with by the next one: the verifier then follows the ways through the parser and the ways
/// through what comes of it one after the other, and not every pair of them.
#[inline(always)]
fn comes_of<S: Source, const REQUEST: bool>(
    source: &S,
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
) -> i64 {
    let event = scratch.next;
    scratch.next = Event::Step as u32;
    if event == Event::Drained as u32 {
        return next_window::<S, REQUEST>(source, scratch, connection);
    }
    if event == Event::Head as u32 {
        if S::PAUSES && scratch.may_pause == 1 {
            scratch.may_pause = 0;
            scratch.outcome = outcome::HEAD;
            return STOP;
        }
        return if head_complete::<S, REQUEST>(scratch, connection) { GO_ON } else { stop(scratch) };
    }
    if event == Event::End as u32 {
        message_ends::<REQUEST>(scratch, connection);
        return GO_ON;
    }
    becomes_opaque::<REQUEST>(scratch, connection);
    stop(scratch)
}

#[inline(always)]
fn stop(scratch: &mut Scratch) -> i64 {
    scratch.outcome = outcome::DONE;
    STOP
}

/// Gives the window up and fills it from where the flow stands, or carries over what is left when the stream is over.
#[inline(always)]
fn next_window<S: Source, const REQUEST: bool>(
    source: &S,
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
) -> i64 {
    if REQUEST && connection.first_len == 0 && connection.request.flow.in_head() {
        keep_first(scratch, connection);
    }
    let flow = &mut direction::<REQUEST>(connection).flow;
    flow.leave_window(&mut scratch.cursor);
    let here = scratch.window_at + scratch.cursor.at;
    let seen = scratch.window_at + scratch.cursor.end;
    let left = u64::from(scratch.stream_len.wrapping_sub(here));
    if seen >= scratch.stream_len && scratch.cursor.end > 0 {
        flow.carry_len = 0;
        if left > 0 && left <= CARRY as u64 {
            let from = scratch.cursor.at as usize & (WINDOW as usize * 2 - 1);
            // SAFETY: the carry is as long as `left` may be; the helper checks the source.
            let failed = unsafe {
                bpf_probe_read_kernel(
                    flow.carry.as_mut_ptr().cast(),
                    left as u32,
                    scratch.window.bytes.as_ptr().add(from).cast(),
                )
            };
            flow.carry_len = if failed == 0 { left as u16 } else { 0 };
        }
        return stop(scratch);
    }
    if left == 0 || left > 0x7fff_ffff {
        return stop(scratch);
    }
    load(source, scratch, flow.carry.as_ptr(), here)
}

/// Fills the window with the stream from `here`.
#[inline(always)]
fn load<S: Source>(source: &S, scratch: &mut Value<Scratch>, carry: *const u8, here: u32) -> i64 {
    let carried = u64::from(scratch.carried);
    let mut kept = 0;
    if here == 0 && carried != 0 {
        let carried = clamp::<1, { CARRY as i32 }>(carried);
        // SAFETY: the window is longer than a carry; the helper checks the source.
        let failed =
            unsafe { bpf_probe_read_kernel(scratch.window.bytes.as_mut_ptr().cast(), carried as u32, carry.cast()) };
        if failed != 0 {
            return STOP;
        }
        kept = carried;
    }
    let from = scratch.payload_at + (here + kept as u32).wrapping_sub(scratch.carried);
    let left = u64::from(scratch.stream_len) - u64::from(here) - kept;
    if left == 0 {
        return STOP;
    }
    let len = clamp::<1, { WINDOW as i32 }>(left);
    // SAFETY: at most 128 carried bytes and 1,024 more, in a buffer of 2,048.
    let loaded =
        unsafe { source.load(from, scratch.window.bytes.as_mut_ptr().add(kept as usize & (CARRY * 2 - 1)), len) };
    if !loaded {
        return STOP;
    }
    scratch.window_at = here;
    scratch.cursor = Cursor { at: 0, end: kept as u32 + len as u32, head_at: 0 };
    GO_ON
}

/// Keeps the beginning of a head that is not whole in its window.
#[inline(always)]
fn keep_first(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    let from = scratch.cursor.head_at as usize & (WINDOW as usize * 2 - 1);
    let left = u64::from(scratch.cursor.end.wrapping_sub(scratch.cursor.head_at));
    let len = if left > FIRST_MAX as u64 { FIRST_MAX as u64 } else { left };
    if len == 0 || len > FIRST_MAX as u64 {
        return;
    }
    // SAFETY: `first` is as long as `len` may be; the helper checks the source.
    let failed = unsafe {
        bpf_probe_read_kernel(
            connection.first.as_mut_ptr().cast(),
            len as u32,
            scratch.window.bytes.as_ptr().add(from).cast(),
        )
    };
    connection.first_len = if failed == 0 { len as u16 } else { 0 };
}

/// A head is complete: says what it begins. `false` if there is nothing more to look at.
#[inline(always)]
fn head_complete<S: Source, const REQUEST: bool>(
    scratch: &mut Value<Scratch>,
    connection: &mut Value<Connection>,
) -> bool {
    if REQUEST {
        // Only a client's messages can be paused at.
        if !S::PAUSES && connection.role == role::SERVER {
            exchange::invocation_begins(scratch, connection);
        } else {
            let tag = scratch.tag_else;
            observed_call(scratch, connection, tag);
        }
        return request_body(scratch, connection);
    }
    let ordinal = connection.responses;
    let answered = if connection.open() > 0 { *connection.method(ordinal) } else { method::OTHER };
    let flow = &mut connection.response.flow;
    let status = flow.status;
    let after = flow.begin_body(Side::Response, answered);
    if after == After::Interim {
        connection.response.flow.begin_message(&mut scratch.cursor);
        return true;
    }
    connection.status = status;
    if connection.role == role::SERVER && scratch.sends == 1 && connection.open() > 0 {
        let (task, span) = (sender(connection, true), connection.span(ordinal).load());
        if span != exchange::NO_SPAN {
            attribution::answers(task, span, connection.sandbox);
            facts::answers(connection, task, span);
        }
    }
    if connection.first_byte_ns == 0 {
        connection.first_byte_ns = scratch.now;
    }
    // A poll may be older than the agent; then nothing is known to be open.
    let polled = answered == request::NEXT || (answered == method::OTHER && connection.open() == 0);
    if polled && status == 200 {
        scratch.asked = u32::from(answered == request::NEXT);
        runtime_api::answered(scratch, connection);
    }
    match after {
        After::Nothing => message_ends::<false>(scratch, connection),
        After::Opaque => {
            if status == 101 || answered == method::CONNECT {
                // Also where boundaries are doubtful: the requests' side must not take a tunnel's bytes for requests.
                connection.response.unproven = 0;
            }
            becomes_opaque::<false>(scratch, connection);
        }
        _ => {}
    }
    true
}

/// A call that goes out without having passed the tag: `tag` says why.
#[inline(always)]
fn observed_call(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>, tag: u32) {
    let task = sender(connection, scratch.sends == 1);
    if !exchange::open(scratch, connection) {
        return;
    }
    exchange::take_head(scratch, connection);
    if runtime_api::takes(scratch, connection, task.pid) {
        return;
    }
    exchange::attribute_call(scratch, connection, task);
    let flow = &connection.request.flow;
    let carried = flow.tag == tag_state::VALID && !flow.is_doubtful() && scratch.parent.rule != Rule::Header as u8;
    let tag = if carried { Tag::Kept } else { Tag::from_u8(tag as u8).unwrap_or(Tag::NotEnrolled) };
    exchange::call_begins(scratch, connection, tag, task.pid);
}

/// The task that sends on this connection. A packet may also leave in softirq, on top of a stranger, be it another
/// thread of the same sandbox: `sends` says that the hook runs in the sender.
#[inline(always)]
pub fn sender(connection: &Connection, sends: bool) -> kernel::Task {
    let (task, cgroup) = kernel::current();
    if sends && cgroup == connection.sandbox { task } else { kernel::Task::UNKNOWN }
}

/// Goes on behind a complete request head. `false` if there is nothing more to look at.
#[inline(always)]
pub fn request_body(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) -> bool {
    if connection.request.flow.mode == mode::OPAQUE {
        // Given up: more is open than is followed.
        return false;
    }
    match connection.request.flow.begin_body(Side::Request, method::OTHER) {
        After::Nothing => {
            connection.request.flow.begin_message(&mut scratch.cursor);
            runtime_api::result_ends(scratch, Reason::Complete);
        }
        After::Opaque => {
            count(Counter::Opaque);
            return false;
        }
        _ => {}
    }
    true
}

#[inline(always)]
fn message_ends<const REQUEST: bool>(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    direction::<REQUEST>(connection).flow.begin_message(&mut scratch.cursor);
    if REQUEST {
        runtime_api::result_ends(scratch, Reason::Complete);
        return;
    }
    exchange::response_ends(scratch, connection, Reason::Complete, 0);
    if connection.open() == 0 {
        exchange::becomes_known(connection);
    }
    if connection.open() == 0 && connection.request.flow.at_boundary() {
        // A whole exchange fitted together: from here on boundaries are known.
        connection.request.unproven = 0;
        connection.response.unproven = 0;
    }
}

#[inline(always)]
fn becomes_opaque<const REQUEST: bool>(scratch: &mut Value<Scratch>, connection: &mut Value<Connection>) {
    let direction = direction::<REQUEST>(connection);
    if direction.unproven == 1 {
        direction.flow.mode = mode::LOST;
        if REQUEST {
            exchange::becomes_unknown(connection, scratch.now);
        }
        return;
    }
    count(Counter::Opaque);
    if REQUEST {
        let task = sender(connection, scratch.sends == 1);
        exchange::opaque_begins(scratch, connection, task);
    }
    exchange::finish(scratch, connection, Reason::Upgraded, 0);
}
