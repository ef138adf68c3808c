//! The records that the kernel half puts into the ring buffer, and how user space reads them back.
//!
//! Each record is a [`Header`], then the fixed part that [`Header::kind`] names, then [`Header::tail_len`] bytes. All
//! are `repr(C)` with explicit padding and made of plain integers, so that any bytes of the right length are a valid
//! value. Byte order is the machine's: records do not leave it, except in recordings, which say so.
//!
//! Causal order: a hook submits its record before the packet that it describes goes on, so a call's start comes before
//! the start of the invocation that it causes, and an invocation's end before the end of the call that caused it.
//! Records of unrelated connections may come in any order.

use crate::traceparent::Context;

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
            _ => return None,
        })
    }
}

/// Which rule decided the invocation that a call belongs to (DESIGN.md, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rule {
    /// Nobody was live, or nothing tells which of several it was: the call is the root of a path of its own.
    None = 0,
    /// The call carries the context of a live invocation of the same sandbox.
    Header = 1,
    /// One invocation alone has been live since it began.
    Exclusive = 2,
    /// The sending thread has read the request of one live invocation, and of no other.
    Thread = 3,
    /// The sending thread or process descends from one that works for a live invocation.
    Lineage = 4,
    /// The runtime's own unit of execution ties sender and reader.
    Coroutine = 5,
    /// The event loop's turn.
    Loop = 6,
    /// Ranked by user space.
    Inferred = 7,
    /// The sending process works for one invocation alone, and has since that began.
    Process = 8,
}

impl Rule {
    /// Every rule, in index order.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Header,
        Self::Exclusive,
        Self::Thread,
        Self::Lineage,
        Self::Coroutine,
        Self::Loop,
        Self::Inferred,
        Self::Process,
    ];

    /// The rule that a record's number stands for.
    pub const fn from_u8(rule: u8) -> Option<Self> {
        if (rule as usize) < Self::ALL.len() { Some(Self::ALL[rule as usize]) } else { None }
    }

    /// The name in the output (`parent_by`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Header => "header",
            Self::Exclusive => "exclusive",
            Self::Thread => "thread",
            Self::Lineage => "lineage",
            Self::Coroutine => "coroutine",
            Self::Loop => "loop",
            Self::Inferred => "inferred",
            Self::Process => "process",
        }
    }
}

macro_rules! tags {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $name:literal,)*) => {
        /// What became of the tag on a call (DESIGN.md, section 4). Also the index of its counter in the per-CPU array
        /// `TAGS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Tag { $($(#[$doc])* $variant = $number,)* }

        impl Tag {
            /// Every outcome, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in the output (`tag`, and the keys of `stats.tags`).
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

tags! {
    /// A header line was written and read back.
    Injected = 0 "injected",
    /// The forwarded context of the invocation was there: its parent id was rewritten in place.
    Rewritten = 1 "rewritten",
    /// The application set one: kept, and its ids adopted.
    Kept = 2 "kept",
    /// Tagging is off, by flag or because the self-test failed.
    Off = 3 "off",
    /// The destination is outside `--tag-to`.
    Destination = 4 "destination",
    /// The socket is not in the sockhash.
    NotEnrolled = 5 "not_enrolled",
    /// No request boundary has been proven on this connection yet (it is older than the agent, or bytes were missed).
    Unproven = 6 "unproven",
    /// The head was not whole in one message.
    Split = 7 "split",
    /// With the tag, the head would be longer than `--tag-max-head`, or have more fields than servers take.
    LongHead = 8 "long_head",
    /// There is a `traceparent` that is malformed, or more than one, or folded lines that might hide one.
    Malformed = 9 "malformed",
    /// The request is not the first in its message.
    Pipelined = 10 "pipelined",
    /// The send buffer has no room to spare.
    NoRoom = 11 "no_room",
    /// The kernel refused to make room or to make the message linear. No test provokes it: it takes a kernel without
    /// memory.
    Refused = 12 "refused",
    /// Nothing was sent: the connection failed, or is not HTTP/1.
    NoRequest = 13 "no_request",
    /// An invocation that a runtime polled for: it goes out as an answer, and there is no request to tag.
    Polled = 14 "polled",
}

impl Tag {
    /// The outcome that a record's number stands for.
    pub const fn from_u8(tag: u8) -> Option<Self> {
        if (tag as usize) < Self::ALL.len() { Some(Self::ALL[tag as usize]) } else { None }
    }

    /// Whether the receiver gets a `traceparent` that names this call.
    pub const fn on_the_wire(self) -> bool {
        matches!(self, Self::Injected | Self::Rewritten | Self::Kept)
    }
}

/// Why an exchange ended; [`End::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The response was seen to its last byte.
    Complete = 0,
    /// The connection was closed first (for a body that the close ends, after the head of the response: complete).
    Closed = 1,
    /// The connection was never made; [`End::errno`] says why.
    ConnectFailed = 2,
    /// The connection became opaque (upgrade, CONNECT).
    Upgraded = 3,
    /// Bytes were missed; the end is where the next exchange on the connection began.
    Missed = 4,
    /// Polled invocations: the runtime says that it has failed.
    Failed = 5,
    /// Polled invocations: the process that worked for it has ended before.
    Exited = 6,
}

impl Reason {
    /// The reason that a record's number stands for.
    pub const fn from_u8(reason: u8) -> Option<Self> {
        Some(match reason {
            0 => Self::Complete,
            1 => Self::Closed,
            2 => Self::ConnectFailed,
            3 => Self::Upgraded,
            4 => Self::Missed,
            5 => Self::Failed,
            6 => Self::Exited,
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
    pub const ANSWERS: u32 = 0;
    /// A call is sent.
    pub const CALLS: u32 = 1;
    /// A thread that has waited for work is woken.
    pub const HANDS: u32 = 2;
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
    pub what: u32,
}

const _: () = assert!(size_of::<Header>() == 24);
const _: () = assert!(size_of::<Answered>() == 40);
const _: () = assert!(size_of::<Sought>() == 16);

const _: () = assert!(size_of::<Listen>() == 8);
const _: () = assert!(size_of::<Wire>() == 48);
const _: () = assert!(size_of::<Start>() == 8 + 32 + 8 + 48 + 32);
const _: () = assert!(size_of::<End>() == 40);

/// A record as user space reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What all records have.
    pub header: Header,
    /// What this one says.
    pub body: Body<'a>,
}

/// The part of a [`Record`] that depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// [`Kind::SandboxBorn`], with the path.
    SandboxBorn(&'a [u8]),
    /// [`Kind::SandboxGone`].
    SandboxGone,
    /// [`Kind::InvocationStart`], with the head.
    InvocationStart(Start, &'a [u8]),
    /// [`Kind::InvocationEnd`].
    InvocationEnd(End),
    /// [`Kind::CallStart`], with the head.
    CallStart(Start, &'a [u8]),
    /// [`Kind::CallEnd`].
    CallEnd(End),
    /// [`Kind::OpaqueStart`].
    OpaqueStart(Start),
    /// [`Kind::OpaqueEnd`].
    OpaqueEnd(End),
    /// [`Kind::RuntimeReport`], with the head.
    RuntimeReport(Report, &'a [u8]),
    /// [`Kind::SandboxExec`], with the environment.
    SandboxExec(&'a [u8]),
    /// [`Kind::SandboxListens`].
    SandboxListens(Listen),
    /// [`Kind::UnitSought`], with the stack.
    UnitSought(Sought, &'a [u8]),
    /// [`Kind::Answered`].
    Answered(Answered),
}

/// Reads one record; `None` if the bytes are not one.
pub fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (header, rest) = take::<Header>(bytes)?;
    let body = match Kind::from_u16(header.kind)? {
        Kind::SandboxBorn => Body::SandboxBorn(rest.get(..usize::from(header.tail_len))?),
        Kind::SandboxGone => Body::SandboxGone,
        kind @ (Kind::InvocationStart | Kind::CallStart) => {
            let (start, rest) = take::<Start>(rest)?;
            let head = rest.get(..usize::from(header.tail_len))?;
            if kind == Kind::CallStart { Body::CallStart(start, head) } else { Body::InvocationStart(start, head) }
        }
        Kind::OpaqueStart => Body::OpaqueStart(take::<Start>(rest)?.0),
        Kind::InvocationEnd => Body::InvocationEnd(take::<End>(rest)?.0),
        Kind::CallEnd => Body::CallEnd(take::<End>(rest)?.0),
        Kind::OpaqueEnd => Body::OpaqueEnd(take::<End>(rest)?.0),
        Kind::RuntimeReport => {
            let (report, rest) = take::<Report>(rest)?;
            Body::RuntimeReport(report, rest.get(..usize::from(header.tail_len))?)
        }
        Kind::SandboxExec => Body::SandboxExec(rest.get(..usize::from(header.tail_len))?),
        Kind::SandboxListens => Body::SandboxListens(take::<Listen>(rest)?.0),
        Kind::Answered => Body::Answered(take::<Answered>(rest)?.0),
        Kind::UnitSought => {
            let (sought, rest) = take::<Sought>(rest)?;
            Body::UnitSought(sought, rest.get(..usize::from(header.tail_len))?)
        }
    };
    Some(Record { header, body })
}

/// Types for which any bytes of the right length are a value.
///
/// # Safety
///
/// `repr(C)`, no padding, and every field such a type itself.
pub unsafe trait Plain: Copy {}

// SAFETY: integers and arrays of them, padding spelled out; the sizes are asserted above.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for Start {}
// SAFETY: as above.
unsafe impl Plain for End {}
// SAFETY: as above.
unsafe impl Plain for Report {}
// SAFETY: as above.
unsafe impl Plain for Listen {}
// SAFETY: as above.
unsafe impl Plain for Answered {}
// SAFETY: as above.
unsafe impl Plain for Sought {}

fn take<T: Plain>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (value, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `value` is as long as `T`, any bytes are a `T` (`Plain`), and the read asks for no alignment.
    Some((unsafe { value.as_ptr().cast::<T>().read_unaligned() }, rest))
}

/// The bytes of a record's fixed part, for the side that writes and for recordings.
pub fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` types have no padding, so all their bytes are initialised; the borrow keeps them alive.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_survives_the_round_trip() {
        let start = Start {
            conn: 7,
            context: Context { trace_id: [1, 2], span_id: 3, flags: 1, pad: [0; 7] },
            parent: 4,
            wire: Wire { local: [1; 16], remote: [2; 16], netns: 5, local_port: 80, remote_port: 81, pad: 0 },
            sequence: 6,
            flags: START_INBOUND,
            rule: Rule::Exclusive as u8,
            tag: Tag::Injected as u8,
            live: 1,
            trust: 0,
            pad: [0; 3],
            tid: 10,
            unit: [12, 13],
        };
        let header = Header { at_ns: 1, sandbox: 2, kind: Kind::CallStart as u16, tail_len: 5, pid: 9 };
        let bytes = [as_bytes(&header), as_bytes(&start), b"GET /"].concat();
        assert_eq!(decode(&bytes), Some(Record { header, body: Body::CallStart(start, b"GET /") }));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn numbers_and_names_agree() {
        for (index, tag) in Tag::ALL.iter().enumerate() {
            assert_eq!(*tag as usize, index);
            assert_eq!(Tag::from_u8(index as u8), Some(*tag));
        }
        for (index, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, index);
        }
        assert_eq!(Tag::from_u8(200), None);
        assert_eq!(Rule::from_u8(200), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
