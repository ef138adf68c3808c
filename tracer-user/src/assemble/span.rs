//! The assembler's own form of spans and trees, and the keys by which they are found.

use std::{collections::HashMap, net::Ipv6Addr};

use tracer_ebpf::record::{Reason, Rule, Tag, Wire};

use super::birth::Begun;
use crate::{head::Head, path::Channel, polled::Polled};

/// Span ids can be a tenant's choice, so the hash is seeded; nothing may depend on a map's order.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Index of no span and of no tree.
pub(super) const NONE: u32 = u32::MAX;

/// Most spans between a line's root and its deepest node. serde_json reads 128 levels, two for each span; what lies
/// deeper is given out as a part of its own.
pub(super) const DEPTH_MAX: u8 = 56;

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A server span.
    Invocation,
    /// A client span.
    Call,
    /// A connection that does not speak HTTP/1. It may outlive any invocation (a pool), so no path waits for its end.
    Opaque,
}

/// How an invocation found its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// Not at all.
    No,
    /// By the tag.
    Tag,
    /// By the wire.
    Wire,
}

/// One span: in a tree while in flight, alone while remembered.
#[derive(Debug)]
pub(super) struct Span {
    /// CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// CLOCK_MONOTONIC, ns; valid if `ended`.
    pub end_ns: u64,
    /// CLOCK_MONOTONIC, ns; 0 if no byte of the response was seen.
    pub first_byte_ns: u64,
    pub trace_id: [u64; 2],
    /// Once given out: that of the path it was given out with.
    pub path_trace_id: [u64; 2],
    pub id: u64,
    /// As the record has it.
    pub parent: u64,
    /// Span id of the span above, once there is one.
    pub above: u64,
    pub conn: u64,
    pub wire: Wire,
    pub sequence: u32,
    /// The cgroup id.
    pub sandbox: u64,
    /// Of a joined call: the cgroup id of the invocation; else 0.
    pub callee: u64,
    pub pid: u32,
    /// NONE once it was given out.
    pub tree: u32,
    pub first_child: u32,
    pub last_child: u32,
    /// The next child of the same parent.
    pub next: u32,
    pub errno: u32,
    /// Of an inferred call: the probability that its invocation made it.
    pub per_mille: u16,
    pub status: u16,
    pub channel: Option<Channel>,
    pub class: Class,
    pub depth: u8,
    pub flags: u8,
    pub rule: Rule,
    pub tag: Tag,
    pub reason: Reason,
    /// Of an invocation: how it found its call. Of a call: how its invocation found it.
    pub join: Join,
    pub ended: bool,
    /// Of a call: a thread has been woken because the answer was in. What wakes another one later has another reason.
    pub handed_back: bool,
    /// Of the first request of a sandbox that was made while the agent watched: how that started.
    pub cold: Option<Box<Begun>>,
    /// It is in the map under its own id, and may be joined by it.
    pub registered: bool,
    /// Once given out: whether its path was unsampled, so that what comes late is not printed either.
    pub unsampled: bool,
    pub head: Head,
    /// A runtime that was to be set up for it could not be.
    pub init_failed: bool,
    /// Of an invocation that a runtime polled for: what the runtime API says of it.
    pub polled: Option<Box<Polled>>,
}

impl Span {
    pub fn given_out(&self) -> bool {
        self.tree == NONE
    }

    /// Order among siblings, the same whatever order the records came in.
    pub fn order(&self) -> (u64, u64, u64, u32) {
        (self.at_ns, self.id, self.conn, self.sequence)
    }

    /// Whether the receiver got this span's id, as far as the sender knows.
    pub fn tagged(&self) -> bool {
        self.class == Class::Call && self.tag.on_the_wire()
    }

    /// Whether a path waits for its end.
    pub fn awaited(&self) -> bool {
        self.class != Class::Opaque
    }
}

/// The path that a part belongs to, which was given out before.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartOf {
    pub trace_id: [u64; 2],
    pub above: u64,
    pub unsampled: bool,
}

/// A path, or a part, in flight.
#[derive(Debug)]
pub(super) struct Tree {
    /// Tells it from others that had the same index.
    pub seq: u64,
    pub root: u32,
    /// Spans in it.
    pub spans: u32,
    /// Spans whose end it waits for.
    pub open: u32,
    /// How often calls that are to be placed want it to stay: their own trees, and those of their candidates.
    pub held: u32,
    /// Depth of its deepest span.
    pub height: u8,
    /// The records lost when it began.
    pub lost: u64,
    /// The last time seen in it.
    pub last_ns: u64,
    pub part_of: Option<PartOf>,
    /// Why its root was cut off from the invocation that the record names.
    pub orphan: bool,
}

/// One request on one connection, the same from both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WireKey {
    client: u128,
    server: u128,
    /// Client port, server port, sequence.
    rest: u64,
    /// Of loopback addresses, which each namespace has for itself; else 0.
    netns: u64,
}

impl WireKey {
    /// `None` where the wire identifies nothing: no port, or loopback in a namespace that the kernel could not name.
    pub fn new(class: Class, wire: &Wire, sequence: u32) -> Option<Self> {
        let local = (u128::from_be_bytes(wire.local), wire.local_port);
        let remote = (u128::from_be_bytes(wire.remote), wire.remote_port);
        let netns = if loopback(wire.local) || loopback(wire.remote) { wire.netns } else { u64::MAX };
        if wire.local_port == 0 || wire.remote_port == 0 || netns == 0 {
            return None;
        }
        let (client, server) = if class == Class::Invocation { (remote, local) } else { (local, remote) };
        let rest = u64::from(client.1) << 48 | u64::from(server.1) << 32 | u64::from(sequence);
        Some(Self { client: client.0, server: server.0, rest, netns })
    }
}

fn loopback(address: [u8; 16]) -> bool {
    let address = Ipv6Addr::from(address);
    address.is_loopback() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback())
}

/// Whether both ends are certainly in one network namespace, where a four-tuple has one meaning at a time.
pub(super) fn same_netns(a: &Wire, b: &Wire) -> bool {
    a.netns != 0 && a.netns == b.netns
}

/// Whether `server` is the other end of `client`.
pub(super) fn mirror(client: &Wire, server: &Wire) -> bool {
    (client.local, client.local_port) == (server.remote, server.remote_port)
        && (client.remote, client.remote_port) == (server.local, server.local_port)
}
