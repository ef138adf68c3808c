//! The decision which invocation a call caused (DESIGN.md, section 5).
//!
//! The kernel submits a call's start before the invocation's, so the usual way is that an invocation looks for its
//! call. Where records were reordered, the call looks for invocations that wait.
//!
//! Sandboxes are hostile. What a tenant can choose: the span id of a call whose `traceparent` it sets itself
//! ([`Tag::Kept`]), the parent id that it sends, addresses in a namespace of its own. What it cannot: span ids of the
//! kernel half, socket cookies, a four-tuple twice in one namespace, the clock. Hence the rules of [`Assembler::joinable`].

use tracer_ebpf::record::{START_HEAD_CUT, START_INBOUND, Tag};

use super::{
    Assembler,
    span::{Class, Join, NONE, PartOf, WireKey, mirror, same_netns},
};

impl Assembler {
    /// Looks for the call that caused a new invocation.
    pub(super) fn find_call(&mut self, invocation: u32) -> Option<(u32, Join)> {
        let span = &self.spans[invocation as usize];
        let tagged = if span.flags & START_INBOUND != 0 { self.calls.get(&span.parent).copied() } else { None };
        // The exact mirror needs no second look-up: no other call can have that connection.
        if let Some(call) = tagged {
            let other = &self.spans[call as usize];
            if other.sequence == span.sequence
                && same_netns(&other.wire, &span.wire)
                && mirror(&other.wire, &span.wire)
                && self.joinable(call, invocation, Join::Tag)
            {
                return Some((call, Join::Tag));
            }
        }
        let wire = WireKey::new(Class::Invocation, &span.wire, span.sequence)
            .and_then(|key| self.calls_by_wire.get(&key).copied())
            .filter(|call| *call != NONE && self.joinable(*call, invocation, Join::Wire));
        if span.polled.is_some() && wire.is_some() {
            // It came by a delivery; what it carries names the call that came to the front before.
            return wire.map(|call| (call, Join::Wire));
        }
        if let Some(call) = tagged {
            // An application that retries may send one id on two connections: then the wire tells which it was.
            let exact = wire.filter(|wire| *wire != call).is_some_and(|wire| {
                let (span, wire) = (&self.spans[invocation as usize], &self.spans[wire as usize]);
                same_netns(&wire.wire, &span.wire) || (wire.tagged() && wire.id == span.parent)
            });
            if self.spans[call as usize].join != Join::No {
                self.totals.joins.replayed += 1;
            } else if exact || !self.joinable(call, invocation, Join::Tag) {
                self.totals.joins.contradicted += 1;
            } else {
                return Some((call, Join::Tag));
            }
        }
        wire.map(|call| (call, Join::Wire))
    }

    /// Whether nothing speaks against joining the two.
    fn joinable(&self, call: u32, invocation: u32, by: Join) -> bool {
        let (call, invocation) = (&self.spans[call as usize], &self.spans[invocation as usize]);
        // One invocation a call, one call an invocation; a call comes before what it causes, and not from under it.
        if call.class != Class::Call
            || call.join != Join::No
            || invocation.join != Join::No
            || call.at_ns > invocation.at_ns
            || (call.tree == invocation.tree && call.tree != NONE)
        {
            return false;
        }
        let one_netns = same_netns(&call.wire, &invocation.wire);
        match by {
            Join::No => false,
            // A call that went straight to the server's address in the server's namespace came by its own connection or
            // not at all. Where the addresses differ, a proxy or address translation may lie between.
            Join::Tag => {
                let straight = one_netns
                    && (call.wire.remote, call.wire.remote_port) == (invocation.wire.local, invocation.wire.local_port);
                call.registered
                    && call.tagged()
                    && (!straight || (mirror(&call.wire, &invocation.wire) && call.sequence == invocation.sequence))
            }
            // Across namespaces a tenant could imitate addresses, but not the tag that the call carries.
            Join::Wire => {
                let inbound = invocation.flags & START_INBOUND != 0;
                one_netns
                    || !call.tagged()
                    || (inbound && invocation.parent == call.id)
                    || (!inbound && invocation.flags & START_HEAD_CUT != 0)
            }
        }
    }

    /// Looks for an invocation that came before the call which caused it.
    pub(super) fn find_invocation(&self, call: u32) -> Option<(u32, Join)> {
        let span = &self.spans[call as usize];
        // Only ids of the kernel half: one that the application chose may be that of an outside caller, heard before.
        if span.tagged()
            && span.tag != Tag::Kept
            && let Some(&found) = self.waiting.get(&span.id)
            && self.joinable(call, found, Join::Tag)
        {
            return Some((found, Join::Tag));
        }
        let key = WireKey::new(Class::Call, &span.wire, span.sequence)?;
        let found = self.unjoined_by_wire.get(&key).copied()?;
        self.joinable(call, found, Join::Wire).then_some((found, Join::Wire))
    }

    /// Puts an invocation under its call. Either may have been given out.
    pub(super) fn join(&mut self, call: u32, invocation: u32, by: Join) {
        match by {
            Join::No => return,
            Join::Tag => self.totals.joins.tag += 1,
            Join::Wire => self.totals.joins.wire += 1,
        }
        self.no_longer_waiting(invocation);
        self.forget_call_wire(call);
        self.spans[invocation as usize].join = by;
        self.spans[call as usize].join = by;
        self.spans[call as usize].callee = self.spans[invocation as usize].sandbox;
    }

    /// Notes an invocation for calls that come after it.
    pub(super) fn wait(&mut self, invocation: u32) {
        let span = &self.spans[invocation as usize];
        if span.flags & START_INBOUND != 0 {
            // The first is enough: where several come with one parent, it is not the parent of one of our calls.
            self.waiting.entry(span.parent).or_insert(invocation);
        }
        if let Some(key) = WireKey::new(Class::Invocation, &span.wire, span.sequence) {
            self.unjoined_by_wire.insert(key, invocation);
        }
    }

    /// Takes an invocation out of the tables in which it waited.
    pub(super) fn no_longer_waiting(&mut self, invocation: u32) {
        let span = &self.spans[invocation as usize];
        if span.flags & START_INBOUND != 0 && self.waiting.get(&span.parent) == Some(&invocation) {
            self.waiting.remove(&span.parent);
        }
        if let Some(key) = WireKey::new(Class::Invocation, &span.wire, span.sequence)
            && self.unjoined_by_wire.get(&key) == Some(&invocation)
        {
            self.unjoined_by_wire.remove(&key);
        }
    }

    /// Notes a call for invocations that come after it.
    pub(super) fn note_call_wire(&mut self, call: u32) {
        let span = &self.spans[call as usize];
        let Some(key) = WireKey::new(Class::Call, &span.wire, span.sequence) else { return };
        let (wire, sandbox) = (span.wire, span.sandbox);
        let entry = self.calls_by_wire.entry(key).or_insert(call);
        if *entry == call || *entry == NONE {
            return;
        }
        let other = &self.spans[*entry as usize];
        if other.sandbox == sandbox && same_netns(&other.wire, &wire) || other.ended {
            // The ports were used again.
            *entry = call;
        } else {
            // Two live calls say that this connection is theirs; one of them is in a namespace made to look like it.
            *entry = NONE;
            self.totals.joins.ambiguous += 1;
        }
    }

    /// Takes a call out of the table of connections.
    pub(super) fn forget_call_wire(&mut self, call: u32) {
        let span = &self.spans[call as usize];
        if let Some(key) = WireKey::new(Class::Call, &span.wire, span.sequence)
            && self.calls_by_wire.get(&key).is_some_and(|found| *found == call || *found == NONE)
        {
            self.calls_by_wire.remove(&key);
        }
    }

    /// What a tree under `span` is part of, if `span` was given out or lies too deep.
    pub(super) fn part_of(&self, span: u32) -> PartOf {
        let span = &self.spans[span as usize];
        let (trace_id, unsampled) = match self.trees.get(span.tree as usize) {
            Some(tree) => self.trace_of(tree),
            None => (span.path_trace_id, span.unsampled),
        };
        PartOf { trace_id, above: span.id, unsampled }
    }
}
