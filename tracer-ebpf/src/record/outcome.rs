//! What was decided of a call, what became of its tag, and how an exchange ended.

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

/// Why an exchange ended; [`super::End::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The response was seen to its last byte.
    Complete = 0,
    /// The connection was closed first (for a body that the close ends, after the head of the response: complete).
    Closed = 1,
    /// The connection was never made; [`super::End::errno`] says why.
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
