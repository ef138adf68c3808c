//! Memory to work in, larger than the 512 bytes of BPF stack.
//!
//! A send hook can be preempted by another task, and any hook of a process interrupted by one in softirq, on the same
//! CPU: per-CPU memory alone would let one program write into what another reads, and a tag end up in a stranger's
//! stream. So each CPU has a few slots, and a slot is taken by compare-and-swap and held for the run.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_ringbuf_discard, bpf_ringbuf_output, bpf_ringbuf_reserve,
    },
    macros::btf_map,
};
use tracer_ebpf::{
    Window,
    counter::Counter,
    http1::Cursor,
    record::{End, HEAD_MAX, Header, Kind, PATH_MAX, Report, Start},
    runtime_api::Delivery,
    traceparent::LINE_LEN,
};

use crate::{
    atomic::Atomic,
    attribution::{Invocation, Parent},
    bound::clamp,
    kernel::TcpSock,
    maps::{ASLEEP, RECORDS, count},
    pointer::Value,
    runtime_api::{Polled, PolledKey},
    sampling::Exchange,
};

/// Most bytes of a stream that are in the window at a time.
pub const WINDOW: u32 = 1024;

/// The window with what is carried before it and what a parser may look at behind it; a power of two.
const ROOM: usize = 2048;

const SLOTS: usize = 4;

/// The fixed part of a record.
#[repr(C)]
pub union Fixed {
    pub start: Start,
    pub end: End,
    pub report: Report,
}

#[repr(C)]
pub struct Scratch {
    /// 1 while held.
    taken: Atomic,
    /// Where the parser stands in the window.
    pub cursor: Cursor,
    /// Where the window begins, in the stream (carried bytes first, then the payload).
    pub window_at: u32,
    /// How long the stream is.
    pub stream_len: u32,
    /// Bytes carried over from the last segment: the stream's first.
    pub carried: u32,
    /// Where the payload begins in the packet or message.
    pub payload_at: u32,
    /// How the run over the stream ended ([`crate::stream::outcome`]).
    pub outcome: u32,
    /// 1 until a run of the send hook has paused: only the first head of a message can be tagged.
    pub may_pause: u32,
    /// The [`tracer_ebpf::record::Tag`] of calls that pass without having been tagged.
    pub tag_else: u32,
    /// 1 if the task that runs is the one that sends.
    pub sends: u32,
    /// 1 if the tail holds only the beginning of the head at hand.
    pub cut: u32,
    /// A [`tracer_ebpf::record::Reason`] and one, if a result was sent or came in: see [`crate::runtime_api::settle`].
    pub result: u32,
    /// A [`tracer_ebpf::runtime_api::request`], if one was taken whose head is in the tail: see
    /// [`crate::runtime_api::settle`].
    pub asks: u32,
    /// 1 if the exchange that ends is not recorded. Here, and not in a register: they are all in use there.
    pub silent: u32,
    /// 1 if the tail holds the answer to a poll: see [`crate::runtime_api::settle_answer`].
    pub answer: u32,
    /// 1 if it was seen to be asked for.
    pub asked: u32,
    /// The tag and the verdict of the call at hand.
    pub tag: u32,
    pub verdict: u32,
    /// CLOCK_MONOTONIC of this run, ns.
    pub now: u64,
    /// The socket's smoothed round-trip time in µs and the segments it has sent again, where a hook has it at hand; a
    /// time of 0 says that none has.
    pub rtt_us: u32,
    pub retransmits: u32,
    /// 1 once this run has handed a record over.
    emitted: u64,
    /// What the next step is to do ([`tracer_ebpf::http1::Event`]).
    pub next: u32,
    /// The sequence number of the stream's first byte, carried ones included.
    pub sequence: u32,
    /// Whose call it is.
    pub parent: Parent,
    /// A request on its way into a map of such, or out of it.
    pub exchange: Exchange,
    /// The invocation that begins, on its way into its map.
    pub invocation: Invocation,
    pub header: Header,
    pub fixed: Fixed,
    pub tail: Tail,
    /// The header line of the tag, with room to be read in words.
    pub line: [u8; LINE_LEN],
    pub pad2: [u8; 2],
    pub window: Buffer,
    /// What the answer of a runtime API says, and by what its invocation is known.
    pub delivery: Delivery,
    pub polled_key: PolledKey,
    pub polled: Polled,
}

/// A record's tail.
#[repr(C)]
pub struct Tail {
    bytes: [u8; HEAD_MAX],
    /// A word that begins at the last byte ends here.
    slack: [u8; 8],
}

impl Window for Tail {
    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        let at = at as usize & (HEAD_MAX - 1);
        // SAFETY: masked to lie in the tail, with 8 bytes to spare. BPF loads need no alignment for map values.
        unsafe { self.bytes.as_ptr().add(at).cast::<u64>().read_unaligned() }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        let at = at as usize & (HEAD_MAX - 1);
        // SAFETY: masked to lie in the tail.
        unsafe { self.bytes.as_ptr().add(at).read() }
    }
}

/// Where the window's bytes are.
#[repr(C)]
pub struct Buffer {
    pub bytes: [u8; ROOM],
    /// A word that begins at the last byte ends here.
    slack: [u8; 8],
}

impl Window for Buffer {
    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        let at = at as usize & (ROOM - 1);
        // SAFETY: masked to lie in the buffer, with 8 bytes to spare. BPF loads need no alignment for map values.
        unsafe { self.bytes.as_ptr().add(at).cast::<u64>().read_unaligned() }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        let at = at as usize & (ROOM - 1);
        // SAFETY: masked to lie in the buffer.
        unsafe { self.bytes.as_ptr().add(at).read() }
    }
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, SLOTS> = PerCpuArray::new();

#[inline(always)]
fn try_slot(slot: u32) -> Option<Value<Scratch>> {
    // SAFETY: an element of a per-CPU array.
    let mut scratch = unsafe { Value::new(SCRATCH.get_ptr_mut(slot)?) }?;
    if !scratch.taken.try_lock() {
        return None;
    }
    scratch.rtt_us = 0;
    scratch.emitted = 0;
    scratch.result = 0;
    scratch.answer = 0;
    scratch.asks = 0;
    Some(scratch)
}

/// Takes a slot of this CPU. The caller must [`give_back`] it.
#[inline(always)]
pub fn take() -> Option<Value<Scratch>> {
    let scratch = try_slot(0).or_else(|| try_slot(1)).or_else(|| try_slot(2)).or_else(|| try_slot(3));
    if scratch.is_none() {
        count(Counter::ScratchBusy);
    }
    scratch
}

/// Gives the slot back, and wakes the reader if it sleeps and there is something for it.
#[inline(always)]
pub fn give_back(scratch: &Value<Scratch>) {
    let emitted = scratch.emitted == 1;
    scratch.taken.unlock();
    if emitted {
        wake();
    }
}

/// Waking costs more than all the rest of a record (an interrupt, for another CPU even). While records come, the reader
/// looks for them by itself; before it sleeps it sets [`ASLEEP`] and looks once more. On this side the record is in the
/// buffer before the number is read, with a barrier between (kernel/bpf/ringbuf.c, bpf_ringbuf_commit: xchg).
#[inline(always)]
pub fn wake() {
    // SAFETY: an element of an array, aligned to 8.
    let asleep = ASLEEP.get_ptr_mut(0).and_then(|slot| unsafe { Value::new(slot.cast::<Atomic>()) });
    let Some(asleep) = asleep else { return };
    if asleep.load() == 0 || asleep.take() == 0 {
        return;
    }
    // No helper does nothing but wake; giving up what was reserved can be told to. A buffer without room for it has not
    // been read for long: the reader does not sleep.
    // SAFETY: what was reserved is given up at once, untouched.
    unsafe {
        let nothing = bpf_ringbuf_reserve((&raw const RECORDS).cast_mut().cast(), 8, 0);
        if !nothing.is_null() {
            bpf_ringbuf_discard(nothing, u64::from(BPF_RB_FORCE_WAKEUP));
        }
    }
}

impl Scratch {
    /// The record's fixed part, as a start.
    #[inline(always)]
    pub fn start(&mut self) -> &mut Start {
        // SAFETY: any bytes are a `Start`.
        unsafe { &mut self.fixed.start }
    }

    /// The record's fixed part, as an end.
    #[inline(always)]
    pub fn end(&mut self) -> &mut End {
        // SAFETY: any bytes are an `End`.
        unsafe { &mut self.fixed.end }
    }

    /// The record's fixed part, as a runtime's report.
    #[inline(always)]
    pub fn report(&mut self) -> &mut Report {
        // SAFETY: any bytes are a `Report`.
        unsafe { &mut self.fixed.report }
    }

    /// Copies up to [`HEAD_MAX`] bytes of the window from `at` into the record's tail.
    #[inline(always)]
    pub fn tail_from_window(&mut self, at: u32, len: u32) {
        let at = at as usize & (ROOM - 1);
        // SAFETY: masked to lie in the buffer; `set_tail` bounds the length so that it stays there.
        let from = unsafe { self.window.bytes.as_ptr().add(at) };
        let room = ROOM as u64 - at as u64;
        let len = if u64::from(len) > room { room } else { u64::from(len) };
        self.set_tail(from, len);
    }

    /// Copies up to [`HEAD_MAX`] bytes from kernel memory into the record's tail.
    #[inline(always)]
    pub fn set_tail(&mut self, from: *const u8, len: u64) {
        self.header.tail_len = 0;
        if len == 0 {
            return;
        }
        let len = clamp::<1, { HEAD_MAX as i32 }>(len);
        // SAFETY: the tail is as long as `len` may be; the helper checks the source.
        let failed = unsafe { bpf_probe_read_kernel(self.tail.bytes.as_mut_ptr().cast(), len as u32, from.cast()) };
        if failed == 0 {
            self.header.tail_len = len as u16;
        }
    }

    /// Copies a path of the kernel to where a record without a fixed part has its tail.
    #[inline(always)]
    pub fn set_path(&mut self, from: *const u8) {
        // SAFETY: the fixed part and the tail together have room for more than that; the helper checks the source.
        let len = unsafe { bpf_probe_read_kernel_str((&raw mut self.fixed).cast(), PATH_MAX as u32, from.cast()) };
        // The length counts the final zero.
        self.header.tail_len = if len > 0 && len <= PATH_MAX as i64 { len as u16 - 1 } else { 0 };
    }

    /// A byte of the path that [`Self::set_path`] took.
    #[inline(always)]
    pub fn path_byte(&self, at: u32) -> u8 {
        let at = at as usize & (PATH_MAX - 1);
        // SAFETY: masked to lie in what the fixed part and the tail take up together.
        unsafe { (&raw const self.fixed).cast::<u8>().add(at).read() }
    }

    /// The sequence number of the byte that the cursor stands at.
    #[inline(always)]
    pub fn sequence_here(&self) -> u32 {
        self.sequence.wrapping_add(self.window_at).wrapping_add(self.cursor.at)
    }

    /// The byte before the last one that the cursor has passed.
    #[inline(always)]
    pub fn last_but_one(&self) -> u8 {
        self.window.byte(self.cursor.at.wrapping_sub(2))
    }

    /// Notes the quality of the connection, for the end of a call.
    #[inline(always)]
    pub fn measure(&mut self, socket: TcpSock) {
        self.rtt_us = socket.rtt_us();
        self.retransmits = socket.retransmits();
    }

    /// Hands the record to user space, or counts it as lost.
    #[inline(always)]
    pub fn emit(&mut self, kind: Kind, sandbox: u64, pid: u32) {
        let fixed = match kind {
            Kind::SandboxBorn | Kind::SandboxGone => 0,
            // See `births`.
            Kind::SandboxExec | Kind::SandboxListens => 0,
            // See `facts`.
            Kind::UnitSought | Kind::Answered | Kind::HandBack => 0,
            Kind::InvocationStart | Kind::CallStart | Kind::OpaqueStart => size_of::<Start>() as u64,
            Kind::InvocationEnd | Kind::CallEnd | Kind::OpaqueEnd => size_of::<End>() as u64,
            Kind::RuntimeReport => size_of::<Report>() as u64,
        };
        let tail = match kind {
            Kind::SandboxBorn | Kind::InvocationStart | Kind::CallStart | Kind::RuntimeReport => {
                u64::from(self.header.tail_len)
            }
            _ => 0,
        };
        self.header.at_ns = self.now;
        self.header.sandbox = sandbox;
        self.header.kind = kind as u16;
        self.header.pid = pid;
        self.header.tail_len = tail as u16;
        let len = size_of::<Header>() as u64 + fixed + if tail > HEAD_MAX as u64 { HEAD_MAX as u64 } else { tail };
        self.output(len);
    }

    /// The same, but for what is not recorded.
    #[inline(always)]
    pub fn emit_unless_silent(&mut self, kind: Kind, sandbox: u64, pid: u32) {
        // SAFETY: a field of a map value.
        if unsafe { (&raw const self.silent).read_volatile() } == 0 {
            self.emit(kind, sandbox, pid);
        }
    }

    #[inline(always)]
    fn output(&mut self, len: u64) {
        // SAFETY: header, fixed part and tail lie one behind the other; `len` is at most their sum.
        let failed = unsafe {
            bpf_ringbuf_output(
                (&raw const RECORDS).cast_mut().cast(),
                (&raw mut self.header).cast(),
                len,
                u64::from(BPF_RB_NO_WAKEUP),
            )
        };
        self.emitted = 1;
        count(if failed == 0 { Counter::Records } else { Counter::RecordsLost });
    }
}
