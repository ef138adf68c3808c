//! The records that the kernel half puts into the ring buffer, and how user space reads them back.
//!
//! Each record is a [`Header`], then the fixed part that [`Header::kind`] names, then [`Header::tail_len`] bytes. All
//! are `repr(C)` with explicit padding and made of plain integers, so that any bytes of the right length are a valid
//! value. Byte order is the machine's: records do not leave it, except in recordings, which say so.
//!
//! Causal order: a hook submits its record before the packet that it describes goes on, so a call's start comes before
//! the start of the invocation that it causes, and an invocation's end before the end of the call that caused it.
//! Records of unrelated connections may come in any order.

mod decode;
mod outcome;
#[cfg(test)]
mod tests;

pub use self::{
    decode::{Body, Plain, Record, as_bytes, decode},
    outcome::{Reason, Rule, Tag},
};
use crate::traceparent::Context;

/// Raised with any change to the form of a record: a recording says which it holds.
pub const LAYOUT: u32 = 1;

/// Most bytes of a message head that travel with a record. The rest is not needed to name a call.
pub const HEAD_MAX: usize = 1024;

/// Most bytes of a cgroup path that travel with a record (the kernel's own bound is PATH_MAX; longer ones are cut).
pub const PATH_MAX: usize = 1024;

/// Most functions that have a share of recorded paths of their own.
pub const FUNCTIONS_MAX: usize = 4096;
/// Most bytes of an environment that travel with a record. What the kernel half sends is for a process that is gone before
/// user space gets to read the whole of it.
pub const ENVIRONMENT_MAX: usize = 4096;

/// What a record says; the `kind` of its [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// A sandbox was made. No fixed part; the tail is its path below the cgroup v2 root. `sandbox` is its cgroup id.
    SandboxBorn = 1,
    /// A sandbox was removed. No fixed part, no tail.
    SandboxGone = 2,
    /// A request reached a server socket of a sandbox, or the answer to a poll a client socket ([`START_POLLED`]). Fixed
    /// part: [`Start`] (`span` is the invocation's); tail: head, of an answer with what is behind it.
    InvocationStart = 3,
    /// Its response has left, or will not. Fixed part: [`End`].
    InvocationEnd = 4,
    /// A sandbox sends a request, or failed to connect. Fixed part: [`Start`] (`span` is the call's); tail: head.
    CallStart = 5,
    /// The response to it is in, or will not come. Fixed part: [`End`].
    CallEnd = 6,
    /// A sandbox began to talk to something that does not speak HTTP/1. Fixed part: [`Start`]; no tail.
    OpaqueStart = 7,
    /// That connection was closed. Fixed part: [`End`].
    OpaqueEnd = 8,
    /// A runtime that polls for its invocations says how it fares. Fixed part: [`Report`]; tail: the request's head, of
    /// failures with what is behind it.
    RuntimeReport = 9,
    /// A process of a sandbox whose birth was seen began to run another program; only the first few are told. No fixed
    /// part; the tail is the beginning of its environment, as in `/proc/PID/environ`.
    SandboxExec = 16,
    /// A socket of a sandbox whose birth was seen began to listen; only the first few are told. Fixed part: [`Listen`].
    SandboxListens = 17,
    /// What was on the stack of a loop's thread when it made such a call, or answered: to learn where the runtime's unit of
    /// work (a task) shows in this process. Only the first few are told. Fixed part: [`Sought`]; tail: [`STACK`] bytes.
    UnitSought = 18,
    /// An invocation begins to answer, in a process whose units of work are known or sought. Fixed part: [`Answered`].
    Answered = 19,
    /// A thread that has read the whole answer to a call of which it is not certain who made it wakes one that serves an
    /// invocation and waits. Fixed part: [`HandBack`].
    HandBack = 20,
}

impl Kind {
    /// The kind that a header's number stands for.
    pub const fn from_u16(kind: u16) -> Option<Self> {
        Some(match kind {
            1 => Self::SandboxBorn,
            2 => Self::SandboxGone,
            3 => Self::InvocationStart,
            4 => Self::InvocationEnd,
            5 => Self::CallStart,
            6 => Self::CallEnd,
            7 => Self::OpaqueStart,
            8 => Self::OpaqueEnd,
            9 => Self::RuntimeReport,
            16 => Self::SandboxExec,
            17 => Self::SandboxListens,
            18 => Self::UnitSought,
            19 => Self::Answered,
            20 => Self::HandBack,
            _ => return None,
        })
    }
}

/// [`Start::flags`]: the request came with a well-formed `traceparent`; [`Start::parent`] is its parent id.
pub const START_INBOUND: u8 = 1;
/// [`Start::flags`]: the caller asked not to record this trace (sampled flag off).
pub const START_UNSAMPLED: u8 = 2;
/// [`Start::flags`]: the parent had already answered when the call was made.
pub const START_AFTER_RESPONSE: u8 = 4;
/// [`Start::flags`]: the head came in pieces; the tail holds only its beginning.
pub const START_HEAD_CUT: u8 = 8;
/// [`Start::flags`]: the first request that this agent saw the sandbox receive.
pub const START_FIRST: u8 = 16;
/// [`Start::flags`]: the invocation is the answer to a poll; [`Start::sequence`] is that of the answer's first byte.
pub const START_POLLED: u8 = 64;
/// [`Start::flags`]: the rule is not certain here, and [`Start::trust`] says how likely it is right. Threads of this sandbox
/// have been seen to work for another than the one that they read last, or work may have been left from before.
pub const START_WEAK: u8 = 32;

/// What every record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// When it happened: CLOCK_MONOTONIC, in ns.
    pub at_ns: u64,
    /// The cgroup id of the sandbox.
    pub sandbox: u64,
    /// A [`Kind`].
    pub kind: u16,
    /// How many bytes follow the fixed part.
    pub tail_len: u16,
    /// The process (thread group id in the initial namespace) that sent or reads; 0 if the hook could not tell.
    pub pid: u32,
}

/// The two ends of a connection as the sandbox's socket sees them. IPv4 is written as IPv4-mapped IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Wire {
    /// The socket's own address.
    pub local: [u8; 16],
    /// The peer's address.
    pub remote: [u8; 16],
    /// The cookie of the socket's network namespace; 0 if the kernel could not tell.
    pub netns: u64,
    /// The socket's own port, host byte order.
    pub local_port: u16,
    /// The peer's port, host byte order.
    pub remote_port: u16,
    #[doc(hidden)]
    pub pad: u32,
}

/// A request: an invocation's, where it came in; a call's, where it goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Start {
    /// The socket cookie of the connection.
    pub conn: u64,
    /// For an invocation: the trace it continues or begins, its own span id and the flags that came in. For a call:
    /// what its tag says, or would say.
    pub context: Context,
    /// For an invocation: the parent id that came in ([`START_INBOUND`]), else 0. For a call: the span id of the
    /// invocation that made it; 0 with [`Rule::None`].
    pub parent: u64,
    /// Both ends.
    pub wire: Wire,
    /// The TCP sequence number of the request's first byte: the same at both ends, whatever either has missed, and
    /// another one when the ports are used again.
    pub sequence: u32,
    /// `START_*`.
    pub flags: u8,
    /// A [`Rule`]; calls only.
    pub rule: u8,
    /// A [`Tag`]; calls only.
    pub tag: u8,
    /// How many invocations were live in the sandbox at this moment, 255 for more; a connection on which requests may be
    /// at work that are not known counts as one.
    pub live: u8,
    /// With [`START_WEAK`]: how likely the parent is the right one, of 255.
    pub trust: u8,
    #[doc(hidden)]
    pub pad: [u8; 3],
    /// Calls only: the thread that sent it; 0 if the hook could not tell.
    pub tid: u32,
    /// Calls only: what the runtime's unit of work that sent it is known by in its process, by either word; 0 where that is
    /// not known.
    pub unit: [u64; 2],
}

/// The response to a [`Start`], matched by `conn` and `sequence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct End {
    /// The socket cookie of the connection.
    pub conn: u64,
    /// The span id that the [`Start`] had.
    pub span: u64,
    /// When the response's first byte passed, CLOCK_MONOTONIC in ns; 0 if none did.
    pub first_byte_ns: u64,
    /// As in [`Start`].
    pub sequence: u32,
    /// The status code; 0 if there was no response.
    pub status: u16,
    /// A [`Reason`].
    pub reason: u8,
    /// Calls only: segments that the socket has sent again since the last exchange on it ended; 255 for more.
    pub retransmits: u8,
    /// For [`Reason::ConnectFailed`], the socket's error number (positive).
    pub errno: u32,
    /// Calls only: the smoothed round-trip time in µs; 0 if the kernel has not measured one.
    pub rtt_us: u32,
}

/// What a [`Report`] says.
pub mod report {
    /// The runtime asks for its first invocation: it has set itself up.
    pub const READY: u64 = 1;
    /// The runtime could not set itself up.
    pub const INIT_FAILED: u64 = 2;
    /// An invocation has failed; its end comes in a record of its own.
    pub const FAILED: u64 = 3;
}

/// What a runtime that polls says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Report {
    /// See [`report`].
    pub what: u64,
    /// The invocation that failed; of set-ups, the one that waits for it in the same sandbox, 0 if that is not known.
    pub span: u64,
    /// When the runtime's process began, CLOCK_MONOTONIC in ns.
    pub began_ns: u64,
    #[doc(hidden)]
    pub pad: [u64; 13],
}

// The tail lies behind the longest fixed part there is.
const _: () = assert!(size_of::<Report>() == size_of::<Start>());
/// Where a sandbox takes requests from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Listen {
    /// The socket's port, host byte order.
    pub port: u16,
    #[doc(hidden)]
    pub pad: [u8; 6],
}

/// Where on its loop's stack a process's unit of work shows: bytes from where the stack ended when the loop first waited, or
/// one of these.
pub mod place {
    /// That is to be learned.
    pub const SOUGHT: u64 = 0;
    /// It shows nowhere.
    pub const NOWHERE: u64 = 1;
}

/// Bytes of a stack that a [`Sought`] carries: as many below the place where it ended when the thread waited, as above.
pub const STACK: usize = 2048;

/// By whom an invocation is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Answered {
    /// The invocation.
    pub span: u64,
    /// When its request was read last, CLOCK_MONOTONIC in ns; 0 if that was not seen.
    pub read_ns: u64,
    /// As in [`Start`], of the unit that answers.
    pub unit: [u64; 2],
    /// The thread that read the request.
    pub read_tid: u32,
    #[doc(hidden)]
    pub pad: u32,
}

/// What a [`Sought`] says.
pub mod sought {
    /// An invocation answers.
    pub const ANSWERS: u16 = 0;
    /// A call is sent.
    pub const CALLS: u16 = 1;
    /// A thread that has waited for work is woken.
    pub const HANDS: u16 = 2;
}

/// Whose the stack is that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sought {
    /// The call, or the invocation that answers; 0 with [`sought::HANDS`].
    pub span: u64,
    /// The thread; with [`sought::HANDS`] the one that is woken.
    pub tid: u32,
    /// See [`sought`].
    pub what: u16,
    /// 1 as long as the kernel half has no place for the process: one that has its id by now, if there was one.
    pub is_new: u16,
}

/// Who is woken when the answer to a call is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct HandBack {
    /// The invocation that the woken thread serves.
    pub span: u64,
    /// The call.
    pub call: u64,
    /// The thread that read its answer.
    pub tid: u32,
    #[doc(hidden)]
    pub pad: u32,
}

const _: () = assert!(size_of::<HandBack>() == 24);
const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<Answered>() == 40);
const _: () = assert!(size_of::<Sought>() == 16);

const _: () = assert!(size_of::<Listen>() == 8);
const _: () = assert!(size_of::<Wire>() == 48);
const _: () = assert!(size_of::<Start>() == 8 + 32 + 8 + 48 + 32);
const _: () = assert!(size_of::<End>() == 40);
