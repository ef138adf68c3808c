//! When paths are given out, and in what form.

use std::{borrow::Cow, net::Ipv6Addr, sync::Arc};

use tracer_ebpf::record::{Reason, Rule, START_AFTER_RESPONSE, START_INBOUND, START_UNSAMPLED, Wire};

use super::{
    Assembler, SandboxInfo,
    span::{Class, Join, Map, NONE, Remembered, Span, Tree},
};
use crate::path::{
    Call, Faas, Http, Invocation, JoinedBy, Late, LateType, Line, Node, Path, PathType, SpanId, Time, TraceId, Version,
};
use crate::polled::Polled;

/// Most entries of `missing`: a path with thousands of open calls is described, not listed.
const MISSING_MAX: usize = 8;

#[derive(Debug, Default)]
struct Missing {
    what: Vec<String>,
    more: usize,
}

impl Missing {
    fn push(&mut self, what: impl FnOnce() -> String) {
        if self.what.len() < MISSING_MAX { self.what.push(what()) } else { self.more += 1 }
    }

    fn into_list(mut self) -> Vec<String> {
        if self.more > 0 {
            self.what.push(format!("{} more", self.more));
        }
        self.what
    }
}

impl Assembler {
    /// Tells the time, CLOCK_MONOTONIC in ns, and gives out what is complete or has waited long enough. To be called
    /// between batches of records, and at least every [`Config::settle_ns`](super::Config::settle_ns).
    pub fn advance(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        self.guess(false);
        self.give_up_units(false);
        let mut ready = std::mem::take(&mut self.ready);
        for (key, seq) in ready.drain(..) {
            let Some(tree) = self.trees.get(key as usize).filter(|tree| tree.seq == seq) else { continue };
            if tree.held > 0 {
                // Who holds it looks again.
            } else if tree.open == 0 {
                self.give_out(key, false);
            } else {
                // A call came after all.
                self.settle(key, seq);
            }
        }
        ready.append(&mut self.ready);
        self.ready = ready;
        while let Some((_, key, seq)) = self.settling.front().copied().filter(|(at, ..)| *at <= self.now_ns) {
            self.settling.pop_front();
            match self.trees.get(key as usize).filter(|tree| tree.seq == seq) {
                Some(tree) if tree.held > 0 => self.settle(key, seq),
                Some(_) => self.give_out(key, false),
                None => {}
            }
        }
    }

    /// Gives out all that is left, oldest first. No record will come after.
    pub fn finish(&mut self) {
        self.guess(true);
        self.give_up_units(true);
        while let Some((key, seq)) = self.by_age.pop_front() {
            if self.trees.get(key as usize).is_some_and(|tree| tree.seq == seq) {
                self.give_out(key, false);
            }
        }
    }

    /// Makes room for one more span.
    pub(super) fn make_room(&mut self) {
        while self.totals.open >= self.config.max_open as u64 {
            let Some((key, seq)) = self.by_age.pop_front() else { return };
            if let Some(tree) = self.trees.get(key as usize).filter(|tree| tree.seq == seq) {
                let done = tree.open == 0 && self.spans[tree.root as usize].ended;
                self.totals.evicted += u64::from(!done);
                self.give_out(key, !done);
            }
        }
    }

    /// The trace id of a tree, and whether its caller asked not to record it.
    pub(super) fn trace_of(&self, tree: &Tree) -> ([u64; 2], bool) {
        match tree.part_of {
            Some(part) => (part.trace_id, part.unsampled),
            None => {
                let root = &self.spans[tree.root as usize];
                (root.trace_id, root.flags & START_UNSAMPLED != 0)
            }
        }
    }

    fn give_out(&mut self, key: u32, cut: bool) {
        let Some(tree) = self.trees.try_remove(key as usize) else { return };
        let (trace_id, unsampled) = self.trace_of(&tree);
        self.totals.open -= u64::from(tree.spans);
        let mut missing = Missing::default();
        if tree.lost < self.totals.lost {
            missing.push(|| format!("{} records were lost while it ran", self.totals.lost - tree.lost));
        }
        if cut {
            missing.push(|| "the rest: too many spans were in flight".to_owned());
        }
        let root = &self.spans[tree.root as usize];
        let (start_ns, above, root_id, root_parent) = (root.at_ns, root.above, root.id, root.parent);
        let duration_us = (if root.ended { root.end_ns } else { tree.last_ns }).saturating_sub(start_ns) / 1000;
        if tree.orphan {
            self.totals.orphans += 1;
            missing.push(|| format!("the invocation {} that made the call {}", SpanId(root_parent), SpanId(root_id)));
            self.no_longer_orphan(tree.root);
        }
        if unsampled {
            self.totals.unsampled += 1;
            self.totals.unsampled_spans += u64::from(tree.spans);
            self.pass_over(tree.root, trace_id);
        } else {
            self.totals.reported += u64::from(tree.spans);
            let root = self.node(tree.root, trace_id, start_ns, &mut missing);
            let missing = missing.into_list();
            let (complete, start) = (missing.is_empty(), self.wall(start_ns));
            let trace_id = TraceId(trace_id);
            let line = if tree.part_of.is_some() {
                self.totals.late += 1;
                let parent_span_id = Some(SpanId(above));
                Line::Late(Late {
                    fntrace: Version,
                    kind: LateType::Late,
                    trace_id,
                    parent_span_id,
                    start,
                    complete,
                    missing,
                    root,
                })
            } else {
                self.totals.paths += 1;
                self.totals.incomplete += u64::from(!complete);
                Line::Path(Path {
                    fntrace: Version,
                    kind: PathType::Path,
                    trace_id,
                    start,
                    duration_us,
                    complete,
                    missing,
                    root,
                })
            };
            self.out.push_back(line);
        }
        while self.remembered.len() > self.config.remember
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.forget(oldest);
        }
    }

    /// Gives out a span of which more is known than when it was given out first.
    pub(super) fn give_out_again(&mut self, key: u32) {
        let span = &mut self.spans[key as usize];
        if span.unsampled {
            self.totals.unsampled += 1;
            return;
        }
        let (trace_id, start_ns) = (span.path_trace_id, span.at_ns);
        let parent_span_id = (span.above != 0).then_some(SpanId(span.above));
        let mut missing = Missing::default();
        let root = self.fields(key, trace_id, start_ns, &mut missing, Vec::new());
        let missing = missing.into_list();
        self.totals.late += 1;
        self.out.push_back(Line::Late(Late {
            fntrace: Version,
            kind: LateType::Late,
            trace_id: TraceId(trace_id),
            parent_span_id,
            start: self.wall(start_ns),
            complete: missing.is_empty(),
            missing,
            root,
        }));
    }

    /// Makes the node of a span, with all under it, and moves the spans over to those that are remembered. As deep as
    /// [`DEPTH_MAX`](super::span::DEPTH_MAX) at most.
    fn node(&mut self, key: u32, trace_id: [u64; 2], base_ns: u64, missing: &mut Missing) -> Node {
        let mut children = Vec::with_capacity(self.children(key).count());
        let mut child = self.spans[key as usize].first_child;
        while child != NONE {
            children.push(self.node(child, trace_id, base_ns, missing));
            child = self.spans[child as usize].next;
        }
        let node = self.fields(key, trace_id, base_ns, missing, children);
        self.remember(key, trace_id, false);
        node
    }

    fn children(&self, key: u32) -> impl Iterator<Item = u32> {
        let next = |child: u32| (child != NONE).then_some(child);
        let first = next(self.spans[key as usize].first_child);
        std::iter::successors(first, move |child| next(self.spans[*child as usize].next))
    }

    /// As [`Self::node`], for paths that are not printed.
    fn pass_over(&mut self, key: u32, trace_id: [u64; 2]) {
        let mut child = self.spans[key as usize].first_child;
        while child != NONE {
            self.pass_over(child, trace_id);
            child = self.spans[child as usize].next;
        }
        self.remember(key, trace_id, true);
    }

    fn remember(&mut self, key: u32, trace_id: [u64; 2], unsampled: bool) {
        let span = &mut self.spans[key as usize];
        (span.tree, span.path_trace_id, span.unsampled) = (NONE, trace_id, unsampled);
        let Span { id, class, registered, sought, .. } = *span;
        self.remembered.push_back(Remembered { key, id, class, registered, sought });
    }

    fn fields(
        &mut self,
        key: u32,
        trace_id: [u64; 2],
        base_ns: u64,
        missing: &mut Missing,
        children: Vec<Node>,
    ) -> Node {
        let span = &mut self.spans[key as usize];
        // A span that is given out again needs its head then: one that has not ended, and a root that may yet be joined.
        let again = !span.ended || (span.class == Class::Invocation && span.join == Join::No);
        let head = if again { span.head.clone() } else { std::mem::take(&mut span.head) };
        let span = &self.spans[key as usize];
        let span_id = SpanId(span.id);
        if !span.ended && span.awaited() {
            let what = if span.class == Class::Invocation { "invocation" } else { "call" };
            missing.push(|| format!("the end of {what} {span_id}"));
        }
        let offset = |ns: u64| (ns.wrapping_sub(base_ns) as i64).div_euclid(1000);
        let http = head.is_some().then(|| Http {
            method: head.method,
            path: head.path,
            query: head.query,
            status: (span.status != 0).then_some(span.status),
        });
        let other_trace = (span.trace_id != trace_id).then_some(TraceId(span.trace_id));
        let start_us = offset(span.at_ns);
        let duration_us = span.ended.then(|| span.end_ns.saturating_sub(span.at_ns) / 1000);
        let first_byte_us = (span.first_byte_ns != 0).then(|| offset(span.first_byte_ns));
        if span.class == Class::Invocation {
            let outside = span.flags & START_INBOUND != 0 && span.join == Join::No;
            // A root that is given out again has its place now, and is no longer counted as come from outside.
            self.totals.outside_parents += u64::from(outside && !span.given_out());
            let SandboxInfo { function, path: sandbox, resource } = self.sandbox_info(span.sandbox);
            let cold_start = span.cold.as_ref().map(|begun| {
                let call = if span.join == Join::No { None } else { self.calls.get(span.above, &self.spans) };
                begun.cold_start(call.map(|call| self.spans[call as usize].at_ns), offset)
            });
            return Node::Invocation(Invocation {
                span_id,
                trace_id: other_trace,
                outside_parent: outside.then_some(SpanId(span.parent)),
                function,
                sandbox,
                resource,
                pid: span.pid,
                start_us,
                duration_us,
                first_byte_us,
                ended: span.ended,
                cold: span.cold.is_some(),
                cold_start,
                http,
                joined_by: match span.join {
                    Join::No => None,
                    Join::Tag => Some(JoinedBy::Tag),
                    Join::Wire => Some(JoinedBy::Wire),
                },
                error: error(span, missing, self.boot_to_wall_ns),
                faas: span.polled.as_deref().map(|polled| Box::new(faas(span, polled, self.boot_to_wall_ns))),
                children,
            });
        }
        self.totals.joins.none += u64::from(span.class == Class::Call && span.join == Join::No && !span.given_out());
        let peer = self.peers.name(&span.wire);
        let to = if span.callee == 0 { peer.clone() } else { self.function(span.callee) };
        Node::Call(Call {
            span_id,
            trace_id: other_trace,
            to,
            peer,
            host: head.host,
            start_us,
            duration_us,
            first_byte_us,
            ended: span.ended,
            http,
            protocol: (span.class == Class::Opaque).then_some(Cow::Borrowed("opaque")),
            tag: Cow::Borrowed(span.tag.name()),
            parent_by: Cow::Borrowed(span.rule.name()),
            probability: (span.rule == Rule::Inferred).then(|| f64::from(span.per_mille) / 1000.0),
            after_response: span.flags & START_AFTER_RESPONSE != 0,
            channel: span.channel,
            error: error(span, missing, self.boot_to_wall_ns),
            children,
        })
    }

    fn wall(&self, at_ns: u64) -> Time {
        let wall = i128::from(at_ns) + i128::from(self.boot_to_wall_ns);
        Time(i64::try_from(wall.div_euclid(1000)).unwrap_or(i64::MAX))
    }

    fn no_longer_orphan(&mut self, key: u32) {
        let parent = self.spans[key as usize].parent;
        if let Some(calls) = self.orphans.get_mut(&parent) {
            calls.retain(|call| *call != key);
            if calls.is_empty() {
                self.orphans.remove(&parent);
            }
        }
    }

    /// Lets go of a span that was given out.
    fn forget(&mut self, Remembered { key, id, class, registered, sought }: Remembered) {
        if sought {
            self.no_longer_sought(key);
        }
        if registered {
            let by_id = if class == Class::Invocation { &mut self.invocations } else { &mut self.calls };
            by_id.remove(id, key);
        } else {
            let span = &self.spans[key as usize];
            let stray = (span.conn, span.sequence, id);
            if self.strays.get(&stray) == Some(&key) {
                self.strays.remove(&stray);
            }
        }
        self.spans.remove(key as usize);
    }
}

/// Peers by name. There are few of them, and a name costs more to make than all the rest of a call.
#[derive(Debug, Default)]
pub(super) struct Peers(Map<(u128, u16), Arc<str>>);

impl Peers {
    /// Beyond so many all are forgotten: a scan of the network is not worth a better rule.
    const MAX: usize = 4096;

    fn name(&mut self, wire: &Wire) -> Arc<str> {
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0
            .entry((u128::from_be_bytes(wire.remote), wire.remote_port))
            .or_insert_with(|| peer_name(wire).into())
            .clone()
    }
}

/// Address and port of the peer, IPv4 in its own form.
pub(crate) fn peer_name(wire: &Wire) -> String {
    let address = Ipv6Addr::from(wire.remote);
    match address.to_ipv4_mapped() {
        Some(v4) => format!("{v4}:{}", wire.remote_port),
        None => format!("[{address}]:{}", wire.remote_port),
    }
}

/// What went wrong below HTTP.
fn error(span: &Span, missing: &mut Missing, boot_to_wall_ns: i64) -> Option<Cow<'static, str>> {
    if !span.ended {
        return None;
    }
    match span.reason {
        Reason::Complete | Reason::Upgraded if span.init_failed => Some(Cow::Borrowed("the runtime could not start")),
        Reason::Complete | Reason::Upgraded if is_overdue(span, boot_to_wall_ns) => Some(Cow::Borrowed("timed out")),
        Reason::Complete | Reason::Upgraded => None,
        Reason::Failed => Some(Cow::Borrowed("failed")),
        Reason::Exited if is_overdue(span, boot_to_wall_ns) => Some(Cow::Borrowed("timed out")),
        Reason::Exited => Some(Cow::Borrowed("the runtime exited")),
        Reason::Closed if span.status != 0 || span.class == Class::Opaque => None,
        Reason::Closed => Some(Cow::Borrowed("closed before the response")),
        Reason::Missed => {
            missing.push(|| format!("bytes of {}", SpanId(span.id)));
            None
        }
        Reason::ConnectFailed => Some(errno(span.errno)),
    }
}

/// Whether a polled invocation has ended after its deadline.
fn is_overdue(span: &Span, boot_to_wall_ns: i64) -> bool {
    let deadline_ms = span.polled.as_deref().map_or(0, |polled| polled.deadline_ms);
    let end_ms = (i128::from(span.end_ns) + i128::from(boot_to_wall_ns)).div_euclid(1_000_000);
    span.ended && deadline_ms != 0 && end_ms >= i128::from(deadline_ms)
}

/// What the runtime API said of an invocation. Where the platform has no word for what went wrong, Lambda's own is used.
fn faas(span: &Span, polled: &Polled, boot_to_wall_ns: i64) -> Faas {
    let named = match span.reason {
        _ if is_overdue(span, boot_to_wall_ns) => Some("Sandbox.Timedout"),
        Reason::Exited if span.ended => Some("Runtime.ExitError"),
        _ => None,
    };
    Faas {
        invocation_id: polled.invocation_id.clone(),
        resource_id: polled.resource_id.clone(),
        deadline: i64::try_from(polled.deadline_ms).ok().filter(|ms| *ms != 0).map(|ms| Time(ms.saturating_mul(1000))),
        init_us: polled.init_ns.map(|ns| ns / 1000),
        error_type: polled.error_type.clone().or(named.map(Box::from)),
    }
}

/// The errors that `connect()` gives, in words (errno-base.h and errno.h of x86 and arm64, which agree in these).
fn errno(errno: u32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        1 | 13 => "not permitted",
        99 => "no address to connect from",
        101 => "network unreachable",
        103 => "connection aborted",
        104 => "connection reset",
        110 => "connection timed out",
        111 => "connection refused",
        112 => "host is down",
        113 => "no route to host",
        other => return Cow::Owned(format!("error {other}")),
    })
}
