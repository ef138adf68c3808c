//! What is kept per connection: one value in socket storage, freed by the kernel with the socket.

use aya_ebpf::{bindings::BPF_SK_STORAGE_GET_F_CREATE, helpers::generated::bpf_sk_storage_get};
use core::{ffi::c_void, ptr};
use tracer_ebpf::{
    counter::Counter,
    http1::{Cursor, Flow},
    record::Wire,
    runtime_api::Id,
};

use crate::{
    atomic::Atomic,
    maps::{CONNECTIONS, count},
    pointer::Value,
    runtime_api::Polled,
};

/// Which end of the connection the sandbox's socket is.
pub mod role {
    pub const CLIENT: u8 = 1;
    pub const SERVER: u8 = 2;
}

/// How many exchanges may be open at once on a connection (HTTP/1.1 pipelining); a power of two.
pub const OPEN_MAX: u32 = 8;

/// Bytes of a head's beginning that are kept when it comes in pieces.
pub const FIRST_MAX: usize = 128;

/// One direction, with its place in the TCP stream.
#[repr(C)]
pub struct Direction {
    /// Held while a packet of this direction is parsed: two CPUs may have one each (net/ipv4/tcp_ipv4.c, tcp_v4_rcv
    /// runs the filter before it takes the socket).
    pub guard: Atomic,
    /// The sequence number of the next byte that the flow has not seen.
    pub sequence: u32,
    /// For what the send hook sees: the sequence number behind the body, or chunk, that was passed last.
    pub body_end: u32,
    /// The boundary at which this flow began was concluded, not proven: not good enough for a tag.
    pub unproven: u8,
    pub pad: [u8; 7],
    pub flow: Flow,
}

#[repr(C)]
pub struct Connection {
    /// The socket's cookie; 0 until the value is set up.
    pub cookie: u64,
    /// The cgroup id of the socket's sandbox.
    pub sandbox: u64,
    pub wire: Wire,
    /// See [`role`].
    pub role: u8,
    /// The send hook sees what this socket sends.
    pub enrolled: u8,
    /// The destination is one that a tag may reach.
    pub may_tag: u8,
    /// An opaque stream has been reported; [`Connection::opaque_span`] names it.
    pub opaque: u8,
    /// Requests begun and responses ended; their difference is what is open.
    pub requests: u32,
    pub responses: u32,
    pub status: u16,
    /// How many bytes of [`Connection::first`] are in use.
    pub first_len: u16,
    /// When the response at hand began, ns.
    pub first_byte_ns: u64,
    /// The process that reads from this socket (servers) or connected it (clients).
    pub pid: u32,
    /// The thread that read from a server's connection last, and when, in ns.
    pub read_tid: u32,
    pub read_ns: u64,
    pub opaque_span: u64,
    /// Who was at work when the socket connected: the span, and a rule.
    pub connect_parent: u64,
    pub connect_ns: u64,
    /// The invocation that made the last call on this connection; 0 if nobody knows.
    pub caller: u64,
    /// That call's span, if user space is to know who reads the answer; 0 otherwise.
    pub asks: u64,
    /// The thread that made it; 0 if the hook could not tell.
    pub asks_tid: u32,
    pub pad5: u32,
    pub connect_rule: u8,
    /// And how far it can be believed: see [`crate::attribution::Parent`].
    pub connect_flags: u8,
    pub connect_trust: u8,
    pub pad: u8,
    /// Segments that had been sent again when the last exchange ended.
    pub retransmits: u32,
    /// Span ids of the open exchanges, by ordinal modulo [`OPEN_MAX`]; 0 once ended.
    pub spans: [Atomic; OPEN_MAX as usize],
    /// The sequence numbers of their requests' first bytes.
    pub sequences: [u32; OPEN_MAX as usize],
    /// Methods of their requests ([`tracer_ebpf::http1::method`]).
    pub methods: [u8; OPEN_MAX as usize],
    /// 1 for those that are not recorded ([`crate::sampling`]).
    pub silent: [u8; OPEN_MAX as usize],
    pub request: Direction,
    pub response: Direction,
    /// 1 while requests may be at work that are not known: a server's connection that is not HTTP/1, or one that was in
    /// use when the agent came. It counts as one live invocation.
    pub unknown: Atomic,
    /// 1 once the socket is closed.
    pub closed: Atomic,
    /// The invocation that came in on a client socket, as the answer to a poll, and its id.
    pub polled_span: u64,
    pub polled_id: Id,
    /// The polled invocation (or its delivery) whose result is on its way on this connection; its span is 0 once that is
    /// dealt with.
    pub ending_span: Atomic,
    pub ending: Polled,
    /// 1 if the result is an error.
    pub ending_failed: u32,
    pub pad3: u32,
    /// The invocation that [`crate::process`] has been told of, and who works for it.
    pub credited: Atomic,
    pub credited_pid: u32,
    pub pad4: u32,
    /// The beginning of a request head that came in pieces.
    pub first: [u8; FIRST_MAX],
}

impl Connection {
    /// Forgets what an earlier connection of the same socket left behind (connect(2) with AF_UNSPEC, or again after a
    /// failure). What was open on it has ended with it.
    #[inline(always)]
    pub fn reset(&mut self) {
        self.enrolled = 0;
        self.may_tag = 0;
        self.opaque = 0;
        self.requests = 0;
        self.responses = 0;
        self.status = 0;
        self.first_len = 0;
        self.first_byte_ns = 0;
        self.pid = 0;
        self.caller = 0;
        self.asks = 0;
        self.read_ns = 0;
        self.retransmits = 0;
        self.polled_span = 0;
        self.ending_span.store(0);
        self.closed.store(0);
        for direction in [&mut self.request, &mut self.response] {
            direction.unproven = 0;
            direction.flow.begin_message(&mut Cursor::default());
        }
    }

    /// How many exchanges are open.
    #[inline(always)]
    pub fn open(&self) -> u32 {
        self.requests.wrapping_sub(self.responses)
    }

    /// The span of the exchange with this ordinal.
    #[inline(always)]
    pub fn span(&self, ordinal: u32) -> &Atomic {
        &self.spans[(ordinal & (OPEN_MAX - 1)) as usize]
    }

    /// The sequence number of the exchange with this ordinal.
    #[inline(always)]
    pub fn sequence(&mut self, ordinal: u32) -> &mut u32 {
        &mut self.sequences[(ordinal & (OPEN_MAX - 1)) as usize]
    }

    /// The method of the exchange with this ordinal.
    #[inline(always)]
    pub fn method(&mut self, ordinal: u32) -> &mut u8 {
        &mut self.methods[(ordinal & (OPEN_MAX - 1)) as usize]
    }

    /// Whether the exchange with this ordinal is kept silent about.
    #[inline(always)]
    pub fn silent(&mut self, ordinal: u32) -> &mut u8 {
        &mut self.silent[(ordinal & (OPEN_MAX - 1)) as usize]
    }
}

/// The connection of a socket that has been noted; `None` for all others.
///
/// # Safety
///
/// `socket` must be a pointer that the verifier knows to be a full socket.
#[inline(always)]
pub unsafe fn get(socket: *mut c_void) -> Option<Value<Connection>> {
    // SAFETY: the caller vouches for the socket; a null value and no flags only look up.
    unsafe {
        let value = bpf_sk_storage_get((&raw const CONNECTIONS).cast_mut().cast(), socket, ptr::null_mut(), 0);
        Value::new(value.cast::<Connection>())
    }
}

/// The connection of a socket, zeroed if it is new.
///
/// # Safety
///
/// As for [`get`].
#[inline(always)]
pub unsafe fn make(socket: *mut c_void) -> Option<Value<Connection>> {
    // SAFETY: the caller vouches for the socket.
    unsafe {
        let value = bpf_sk_storage_get(
            (&raw const CONNECTIONS).cast_mut().cast(),
            socket,
            ptr::null_mut(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        );
        let connection = Value::new(value.cast::<Connection>());
        if connection.is_none() {
            count(Counter::NotNoted);
        }
        connection
    }
}
