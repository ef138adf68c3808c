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
    index::Key as _,
    span::{Class, Join, NONE, PartOf, WireKey, mirror, same_netns},
};

impl Assembler {
    /// Looks for the call that caused a new invocation.
    pub(super) fn find_call(&mut self, invocation: u32) -> Option<(u32, Join)> {
        let span = &self.spans[invocation as usize];
        let tagged = if span.flags & START_INBOUND != 0 { self.calls.get(span.parent, &self.spans) } else { None };
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
        let wire = WireKey::known(span)
            .and_then(|key| self.calls_by_wire.get(key, &self.spans))
            .filter(|call| !self.spans[*call as usize].ambiguous && self.joinable(*call, invocation, Join::Wire));
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
        let found = self.unjoined_by_wire.get(WireKey::known(span)?, &self.spans)?;
        self.joinable(call, found, Join::Wire).then_some((found, Join::Wire))
    }

    /// Puts an invocation under its call. Either may have been given out.
    pub(super) fn join(&mut self, call: u32, invocation: u32, by: Join) {
        match by {
            Join::No => return,
            Join::Tag => self.totals.joins.tag += 1,
            Join::Wire => self.totals.joins.wire += 1,
        }
        self.no_longer_sought(invocation);
        self.no_longer_sought(call);
        self.spans[invocation as usize].join = by;
        self.spans[call as usize].join = by;
        self.spans[call as usize].callee = self.spans[invocation as usize].sandbox;
    }

    /// Notes an invocation for calls that come after it.
    pub(super) fn wait(&mut self, invocation: u32) {
        let span = &mut self.spans[invocation as usize];
        span.sought = true;
        if span.flags & START_INBOUND != 0 {
            // The first is enough: where several come with one parent, it is not the parent of one of our calls.
            self.waiting.entry(span.parent).or_insert(invocation);
        }
        if WireKey::known(span).is_some() {
            self.unjoined_by_wire.put(invocation, &self.spans);
        }
    }

    /// Takes a span out of the tables in which it waited for the other end of its exchange.
    pub(super) fn no_longer_sought(&mut self, key: u32) {
        let span = &mut self.spans[key as usize];
        if std::mem::take(&mut span.sought) {
            if span.class == Class::Invocation { self.no_longer_waiting(key) } else { self.forget_call_wire(key) }
        }
    }

    fn no_longer_waiting(&mut self, invocation: u32) {
        let span = &self.spans[invocation as usize];
        if span.flags & START_INBOUND != 0 && self.waiting.get(&span.parent) == Some(&invocation) {
            self.waiting.remove(&span.parent);
        }
        self.unjoined_by_wire.remove(WireKey::of(span), invocation);
    }

    /// Notes a call for invocations that come after it.
    pub(super) fn note_call_wire(&mut self, call: u32) {
        let Some(key) = WireKey::known(&self.spans[call as usize]) else { return };
        self.spans[call as usize].sought = true;
        let Some(first) = self.calls_by_wire.get(key, &self.spans) else {
            self.calls_by_wire.put(call, &self.spans);
            return;
        };
        let (span, other) = (&self.spans[call as usize], &self.spans[first as usize]);
        if other.ambiguous {
            return;
        }
        if other.sandbox == span.sandbox && same_netns(&other.wire, &span.wire) || other.ended {
            // The ports were used again.
            self.calls_by_wire.put(call, &self.spans);
        } else {
            // Two live calls say that this connection is theirs; one of them is in a namespace made to look like it.
            self.spans[first as usize].ambiguous = true;
            self.totals.joins.ambiguous += 1;
        }
    }

    fn forget_call_wire(&mut self, call: u32) {
        let key = WireKey::of(&self.spans[call as usize]);
        if let Some(found) = self.calls_by_wire.get(key, &self.spans)
            && (found == call || self.spans[found as usize].ambiguous)
        {
            self.spans[found as usize].ambiguous = false;
            self.calls_by_wire.remove(key, found);
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
