//! Joins records to call paths.
//!
//! Pure: no clock, no I/O, no kernel. Time, names and losses are pushed in as data, so that a recorded run replays to
//! the same bytes.
//!
//! A path is given out when its root and everything under it has ended, or [`Config::settle_ns`] after the root's end.
//! That happens in [`Assembler::advance`] only, which is called between batches of records: within a batch the order of
//! records of different connections does not matter. What comes for a path that was given out is given out as a
//! [`Late`](crate::path::Late) part. Spans that were given out are remembered for that, as many as
//! [`Config::remember`]; spans in flight are at most [`Config::max_open`].

mod birth;
mod clues;
mod emit;
mod guess;
mod join;
mod runtime;
mod span;
mod standing;
mod totals;
mod units;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
pub(crate) mod trees;

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};
use slab::Slab;
use tracer_ebpf::record::{
    Body, End, Header, Kind, Reason, Record, Rule, START_FIRST, START_POLLED, Start, Tag, decode,
};

use crate::{
    head::{Head, Keep},
    path::{Channel, Line, Resource},
};
use birth::Birth;
pub(crate) use emit::peer_name;
use guess::Hint;
use span::{Class, DEPTH_MAX, Join, Map, NONE, PartOf, Span, Tree};
pub use standing::{Standing, What};
pub use totals::{Joins, Records, Totals};

/// How the assembler works.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// How long a path waits for open parts after its root has ended, in ns.
    pub settle_ns: u64,
    /// Most spans in flight. Beyond, the oldest path is given out incomplete.
    pub max_open: usize,
    /// Most spans remembered after they were given out.
    pub remember: usize,
    /// Whether paths keep the query string.
    pub query: bool,
    /// Since when the records tell all, CLOCK_MONOTONIC in ns: a runtime that is older had invocations before.
    pub since_ns: u64,
    /// Least probability with which a call that no rule could place is hung under an invocation. At 1 nothing is
    /// inferred, and nothing waits for it.
    pub infer_min: f64,
    /// Whether calls of which the kernel half knows nothing, or little, are ranked by their timing over the whole record.
    pub infer_by_timing: bool,
    /// Spans per second that are looked at for that, in all sandboxes together: it bounds what inference costs, whatever
    /// the tenants do. A sandbox that has more is left alone for a while, and its calls stay as the kernel half has them.
    pub infer_rate: u64,
}

impl Default for Config {
    /// Two seconds; room for 100,000 invocations in flight with a call each, in about 100 MiB.
    fn default() -> Self {
        Self {
            settle_ns: 2_000_000_000,
            max_open: 200_000,
            remember: 16_384,
            query: false,
            since_ns: 0,
            infer_min: 0.5,
            infer_by_timing: false,
            infer_rate: 1000,
        }
    }
}

/// What is known of a sandbox from outside the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxInfo {
    /// The function's name.
    pub function: Arc<str>,
    /// The path below the cgroup v2 root.
    pub path: Arc<str>,
    /// What else is known of it.
    pub resource: Option<Arc<Resource>>,
}

/// Sandboxes whose names are kept after they are gone, for paths that are still to be given out.
const GONE_MAX: usize = 4096;
/// Sandboxes whose names are kept at all.
const SANDBOXES_MAX: usize = 1 << 17;

#[derive(Debug, Default)]
struct Sandbox {
    info: Option<SandboxInfo>,
    /// If that was seen.
    birth: Option<Birth>,
    gone: bool,
    /// A runtime that is ready for its first invocation.
    ready: Option<Ready>,
}

/// A runtime that polls, and has asked for its first invocation. Times are CLOCK_MONOTONIC, ns.
#[derive(Clone, Copy, Debug)]
struct Ready {
    pid: u32,
    began_ns: u64,
    at_ns: u64,
}

/// Records in, paths out.
#[derive(Debug)]
pub struct Assembler {
    config: Config,
    totals: Totals,
    out: VecDeque<Line>,
    /// The latest time seen, CLOCK_MONOTONIC in ns. Never goes back.
    now_ns: u64,
    /// Wall clock less CLOCK_MONOTONIC, in ns.
    boot_to_wall_ns: i64,
    sandboxes: Map<u64, Sandbox>,
    gone: VecDeque<u64>,
    peers: emit::Peers,
    spans: Slab<Span>,
    trees: Slab<Tree>,
    next_seq: u64,
    /// Calls by span id.
    calls: Map<u64, u32>,
    /// Invocations by span id.
    invocations: Map<u64, u32>,
    /// Spans whose id another has, by connection, sequence and id.
    strays: Map<(u64, u32, u64), u32>,
    /// Calls without an invocation; NONE where two claim the connection.
    calls_by_wire: Map<span::WireKey, u32>,
    /// Invocations without a call, by the parent id that came in.
    waiting: Map<u64, u32>,
    unjoined_by_wire: Map<span::WireKey, u32>,
    /// Calls whose invocation has not been seen, by its id.
    orphans: Map<u64, Vec<u32>>,
    /// Index and seq of trees in order of age; may name trees that are no more.
    by_age: VecDeque<(u32, u64)>,
    /// Trees that seem to be complete.
    ready: Vec<(u32, u64)>,
    /// Deadline, index and seq of trees whose root has ended before the rest.
    settling: VecDeque<(u64, u32, u64)>,
    /// Spans that were given out, oldest first.
    remembered: VecDeque<u32>,
    /// Calls that are to be placed.
    guesses: guess::Guesses,
    /// Which unit of work made which call.
    units: units::Units,
}

impl Assembler {
    /// An assembler that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            totals: Totals::default(),
            out: VecDeque::new(),
            now_ns: 0,
            boot_to_wall_ns: 0,
            sandboxes: Map::default(),
            gone: VecDeque::new(),
            peers: emit::Peers::default(),
            spans: Slab::new(),
            trees: Slab::new(),
            next_seq: 0,
            calls: Map::default(),
            invocations: Map::default(),
            strays: Map::default(),
            calls_by_wire: Map::default(),
            waiting: Map::default(),
            unjoined_by_wire: Map::default(),
            orphans: Map::default(),
            by_age: VecDeque::new(),
            ready: Vec::new(),
            settling: VecDeque::new(),
            remembered: VecDeque::new(),
            guesses: guess::Guesses::default(),
            units: units::Units::default(),
        }
    }

    /// Sets the wall clock less CLOCK_MONOTONIC, in ns, for paths that are given out from now on.
    pub fn clock(&mut self, boot_to_wall_ns: i64) {
        self.boot_to_wall_ns = boot_to_wall_ns;
    }

    /// Names a sandbox, before or after its first record.
    pub fn sandbox(&mut self, cgroup_id: u64, info: SandboxInfo) {
        if let Some(sandbox) = self.sandbox_entry(cgroup_id) {
            sandbox.info = Some(info);
        }
    }

    /// What the assembler has counted.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Takes what was given out, oldest first.
    pub fn take(&mut self) -> Option<Line> {
        self.out.pop_front()
    }

    /// Reads a record from its bytes. `false` if they are none.
    pub fn read(&mut self, bytes: &[u8]) -> bool {
        let record = decode(bytes);
        match &record {
            Some(record) => self.record(record),
            None => self.totals.undecodable += 1,
        }
        record.is_some()
    }

    /// The records that the ring buffer has refused since the start. Paths in flight are incomplete from then on. To be
    /// called before [`Self::advance`], so that no path of the batch gets away as complete.
    pub fn lost(&mut self, so_far: u64) {
        self.totals.lost = self.totals.lost.max(so_far);
    }

    /// Takes in a record.
    pub fn record(&mut self, record: &Record<'_>) {
        let header = &record.header;
        self.now_ns = self.now_ns.max(header.at_ns);
        match record.body {
            Body::SandboxBorn(path) => self.born(header, path),
            Body::SandboxGone => self.sandbox_gone(header),
            Body::InvocationStart(start, head) => self.invocation_start(header, &start, head),
            Body::CallStart(start, head) => self.call_start(header, &start, head, Class::Call),
            Body::OpaqueStart(start) => self.call_start(header, &start, &[], Class::Opaque),
            Body::InvocationEnd(end) => self.end(header, &end, Class::Invocation),
            Body::CallEnd(end) => self.end(header, &end, Class::Call),
            Body::OpaqueEnd(end) => self.end(header, &end, Class::Opaque),
            Body::RuntimeReport(report, head) => self.runtime_report(header, &report, head),
            Body::SandboxExec(_) => {
                self.totals.records.count(Kind::SandboxExec);
                if let Some(birth) = self.birth(header.sandbox) {
                    birth.executes(header.at_ns);
                }
            }
            Body::Answered(answered) => {
                self.totals.records.count(Kind::Answered);
                self.unit_answers(header, &answered);
            }
            Body::HandBack(back) => {
                self.totals.records.count(Kind::HandBack);
                self.hands_back(header, &back);
            }
            Body::UnitSought(sought, stack) => {
                self.totals.records.count(Kind::UnitSought);
                self.unit_sought(header, &sought, stack);
            }
            Body::SandboxListens(listen) => {
                self.totals.records.count(Kind::SandboxListens);
                if let Some(birth) = self.birth(header.sandbox) {
                    birth.listens(header.at_ns, listen.port);
                }
            }
        }
    }

    fn sandbox_entry(&mut self, cgroup_id: u64) -> Option<&mut Sandbox> {
        if self.sandboxes.len() >= SANDBOXES_MAX && !self.sandboxes.contains_key(&cgroup_id) {
            self.totals.sandboxes_full += 1;
            return None;
        }
        Some(self.sandboxes.entry(cgroup_id).or_default())
    }

    fn born(&mut self, header: &Header, path: &[u8]) {
        self.totals.records.count(Kind::SandboxBorn);
        let fallback: Arc<str> = String::from_utf8_lossy(path).into();
        if let Some(sandbox) = self.sandbox_entry(header.sandbox) {
            if sandbox.gone {
                *sandbox = Sandbox::default();
            }
            sandbox.birth = Some(Birth::new(header.at_ns));
            let info = || SandboxInfo { function: fallback.clone(), path: fallback, resource: None };
            sandbox.info.get_or_insert_with(info);
        }
    }

    fn birth(&mut self, cgroup_id: u64) -> Option<&mut Birth> {
        self.sandboxes.get_mut(&cgroup_id)?.birth.as_mut()
    }

    fn sandbox_gone(&mut self, header: &Header) {
        self.totals.records.count(Kind::SandboxGone);
        let Some(sandbox) = self.sandboxes.get_mut(&header.sandbox) else { return };
        if !std::mem::replace(&mut sandbox.gone, true) {
            self.gone.push_back(header.sandbox);
        }
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
            && self.sandboxes.get(&oldest).is_some_and(|sandbox| sandbox.gone)
        {
            self.sandboxes.remove(&oldest);
        }
    }

    fn new_span(header: &Header, start: &Start, class: Class, head: Head) -> Span {
        Span {
            at_ns: header.at_ns,
            end_ns: 0,
            first_byte_ns: 0,
            trace_id: start.context.trace_id,
            path_trace_id: [0; 2],
            id: start.context.span_id,
            parent: start.parent,
            above: 0,
            conn: start.conn,
            wire: start.wire,
            sequence: start.sequence,
            sandbox: header.sandbox,
            callee: 0,
            pid: header.pid,
            tree: NONE,
            first_child: NONE,
            last_child: NONE,
            next: NONE,
            errno: 0,
            per_mille: 0,
            status: 0,
            channel: None,
            class,
            depth: 0,
            flags: start.flags,
            rule: Rule::from_u8(start.rule).unwrap_or(Rule::None),
            tag: Tag::from_u8(start.tag).unwrap_or(Tag::NoRequest),
            reason: Reason::Complete,
            join: Join::No,
            ended: false,
            handed_back: false,
            cold: None,
            registered: false,
            unsampled: false,
            head,
            init_failed: false,
            polled: None,
        }
    }

    fn invocation_start(&mut self, header: &Header, start: &Start, head: &[u8]) {
        self.totals.records.count(Kind::InvocationStart);
        if self.is_duplicate(start, Class::Invocation) {
            return;
        }
        self.make_room();
        let polled = start.flags & START_POLLED != 0;
        let request = if polled { &[] } else { head };
        let parsed = Head::parse(request, Keep { query: self.config.query, host: false });
        let mut span = Self::new_span(header, start, Class::Invocation, parsed);
        if start.flags & START_FIRST != 0 {
            let birth = self.sandboxes.get(&header.sandbox).and_then(|sandbox| sandbox.birth.as_ref());
            span.cold = birth.map(|birth| Box::new(birth.until(start.wire.local_port)));
        }
        if polled {
            self.polled(&mut span, head);
        }
        let key = self.insert(span);
        match self.find_call(key) {
            Some((call, by)) => {
                self.join(call, key, by);
                self.place(key, call);
            }
            None => {
                self.plant(key, None, false);
                self.wait(key);
            }
        }
        self.watch_invocation(key, head);
        self.unit_begins(key);
        // Calls that came before the invocation that made them.
        for call in self.orphans.remove(&start.context.span_id).unwrap_or_default() {
            if self.spans[call as usize].sandbox == header.sandbox {
                self.adopt(call, key);
            }
        }
    }

    fn call_start(&mut self, header: &Header, start: &Start, head: &[u8], class: Class) {
        self.totals.records.count(if class == Class::Call { Kind::CallStart } else { Kind::OpaqueStart });
        if self.is_duplicate(start, class) {
            return;
        }
        self.make_room();
        // A delivery's head is that of an answer.
        let head = if start.tag == Tag::Polled as u8 { &[] } else { head };
        let parsed = Head::parse(head, Keep { query: self.config.query, host: true });
        let mut span = Self::new_span(header, start, class, parsed);
        let hint = Hint::of(start);
        if hint.is_some() {
            (span.parent, span.rule) = (0, Rule::None);
        }
        let parent = span.parent;
        self.totals.tags[span.tag as usize] += 1;
        self.totals.rules[span.rule as usize] += 1;
        let key = self.insert(span);
        match self.invocations.get(&parent).copied() {
            _ if parent == 0 => self.plant(key, None, false),
            Some(parent) if self.spans[parent as usize].sandbox == header.sandbox => self.place(key, parent),
            Some(_) => {
                self.totals.foreign_parents += 1;
                self.plant(key, None, true);
            }
            None => {
                self.plant(key, None, true);
                self.orphans.entry(parent).or_default().push(key);
            }
        }
        self.watch_call(key, head, start, hint);
        if class == Class::Opaque {
            return;
        }
        match self.find_invocation(key) {
            Some((invocation, by)) => {
                self.join(key, invocation, by);
                if self.spans[invocation as usize].given_out() {
                    // It was printed as a root; now its place is known.
                    self.spans[invocation as usize].above = start.context.span_id;
                    self.give_out_again(invocation);
                } else {
                    self.adopt(invocation, key);
                }
            }
            None => self.note_call_wire(key),
        }
    }

    /// Whether the record repeats one that was taken in.
    fn is_duplicate(&mut self, start: &Start, class: Class) -> bool {
        let id = start.context.span_id;
        let by_id = if class == Class::Invocation { &self.invocations } else { &self.calls };
        let known = by_id.get(&id).is_some_and(|key| {
            let span = &self.spans[*key as usize];
            (span.conn, span.sequence, span.class) == (start.conn, start.sequence, class)
        }) || self.strays.contains_key(&(start.conn, start.sequence, id));
        self.totals.duplicates += u64::from(known);
        known
    }

    /// Puts a span into the arena and makes it known by its id, unless the id is another's.
    fn insert(&mut self, mut span: Span) -> u32 {
        let (id, stray) = (span.id, (span.conn, span.sequence, span.id));
        // An id that the application chose, and that an outside caller was heard to use, may be a replay of that.
        let foreign = span.class == Class::Call && span.tag == Tag::Kept && self.waiting.contains_key(&id);
        let by_id = if span.class == Class::Invocation { &mut self.invocations } else { &mut self.calls };
        span.registered = id != 0 && !foreign && !by_id.contains_key(&id);
        // Slab indexes stay far below 2^32: the table's bounds are counted in spans of 300 bytes.
        if span.registered {
            let key = self.spans.insert(span) as u32;
            by_id.insert(id, key);
            key
        } else {
            self.totals.joins.refused += 1;
            let key = self.spans.insert(span) as u32;
            self.strays.insert(stray, key);
            key
        }
    }

    /// Makes a span the root of a new tree.
    fn plant(&mut self, key: u32, part_of: Option<PartOf>, orphan: bool) {
        let span = &mut self.spans[key as usize];
        let seq = self.next_seq;
        self.next_seq += 1;
        let tree = self.trees.insert(Tree {
            seq,
            root: key,
            spans: 1,
            open: u32::from(span.awaited()),
            height: 0,
            held: 0,
            lost: self.totals.lost,
            last_ns: span.at_ns,
            part_of,
            orphan,
        }) as u32;
        span.tree = tree;
        span.above = part_of.map_or(0, |part| part.above);
        self.totals.open += 1;
        if self.by_age.len() > 2 * self.trees.len() + 64 {
            let trees = &self.trees;
            self.by_age.retain(|(tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
        }
        self.by_age.push_back((tree, seq));
    }

    /// Puts a new span under another, or into a part of its own if that one was given out or lies too deep.
    fn place(&mut self, key: u32, above: u32) {
        let parent = &self.spans[above as usize];
        if parent.given_out() || parent.depth >= DEPTH_MAX {
            let part = self.part_of(above);
            self.plant(key, Some(part), false);
            return;
        }
        let (tree, depth, id) = (parent.tree, parent.depth + 1, parent.id);
        let span = &mut self.spans[key as usize];
        (span.tree, span.depth, span.above) = (tree, depth, id);
        let (awaited, at_ns) = (u32::from(span.awaited()), span.at_ns);
        let tree = &mut self.trees[tree as usize];
        tree.spans += 1;
        tree.open += awaited;
        tree.height = tree.height.max(depth);
        tree.last_ns = tree.last_ns.max(at_ns);
        self.totals.open += 1;
        self.link(key, above);
    }

    /// Puts a tree, by its root, under a span that came after it.
    fn adopt(&mut self, root: u32, above: u32) {
        let (from, parent) = (self.spans[root as usize].tree, &self.spans[above as usize]);
        let Some(tree) = self.trees.get(from as usize) else { return };
        if tree.root != root || from == parent.tree {
            return;
        }
        if parent.given_out() || parent.depth + tree.height >= DEPTH_MAX {
            let part = self.part_of(above);
            self.spans[root as usize].above = part.above;
            let tree = &mut self.trees[from as usize];
            (tree.part_of, tree.orphan) = (Some(part), false);
            return;
        }
        let (into, depth, id) = (parent.tree, parent.depth + 1, parent.id);
        let moved = self.trees.remove(from as usize);
        let tree = &mut self.trees[into as usize];
        tree.spans += moved.spans;
        tree.open += moved.open;
        tree.held += moved.held;
        tree.height = tree.height.max(depth + moved.height);
        tree.last_ns = tree.last_ns.max(moved.last_ns);
        tree.lost = tree.lost.min(moved.lost);
        self.spans[root as usize].above = id;
        let mut below = vec![root];
        while let Some(key) = below.pop() {
            let span = &mut self.spans[key as usize];
            span.tree = into;
            span.depth += depth;
            let mut child = span.first_child;
            while child != NONE {
                below.push(child);
                child = self.spans[child as usize].next;
            }
        }
        self.link(root, above);
        self.check_ready(into);
    }

    /// Puts a span among its parent's children, in order.
    fn link(&mut self, key: u32, above: u32) {
        let order = self.spans[key as usize].order();
        let (mut before, mut after) = (self.spans[above as usize].last_child, NONE);
        if before != NONE && self.spans[before as usize].order() > order {
            (before, after) = (NONE, self.spans[above as usize].first_child);
            while after != NONE && self.spans[after as usize].order() < order {
                (before, after) = (after, self.spans[after as usize].next);
            }
        }
        self.spans[key as usize].next = after;
        match before {
            NONE => self.spans[above as usize].first_child = key,
            before => self.spans[before as usize].next = key,
        }
        if after == NONE {
            self.spans[above as usize].last_child = key;
        }
    }

    fn end(&mut self, header: &Header, end: &End, class: Class) {
        self.totals.records.count(match class {
            Class::Invocation => Kind::InvocationEnd,
            Class::Call => Kind::CallEnd,
            Class::Opaque => Kind::OpaqueEnd,
        });
        self.ends(header, end, class);
    }

    fn ends(&mut self, header: &Header, end: &End, class: Class) {
        let by_id = if class == Class::Invocation { &self.invocations } else { &self.calls };
        let stray = self.strays.get(&(end.conn, end.sequence, end.span));
        let key = by_id.get(&end.span).into_iter().chain(stray).copied().find(|key| self.fits(*key, end, class));
        let Some(key) = key else {
            self.totals.ends_unknown += 1;
            return;
        };
        let span = &mut self.spans[key as usize];
        if span.ended {
            self.totals.ends_duplicate += 1;
            return;
        }
        self.totals.ends_matched += 1;
        span.ended = true;
        span.end_ns = header.at_ns;
        if span.pid == 0 {
            // A request is taken in before anybody has read it; who did is known by the end.
            span.pid = header.pid;
        }
        span.first_byte_ns = end.first_byte_ns;
        span.status = end.status;
        span.errno = end.errno;
        span.channel = Channel::of(end).filter(|_| class != Class::Invocation);
        // A reason of a newer kernel half tells that something is wrong, not what.
        span.reason = Reason::from_u8(end.reason).unwrap_or(Reason::Missed);
        if class == Class::Invocation {
            self.unit_ends(key, header);
        }
        let span = &self.spans[key as usize];
        if span.given_out() {
            self.give_out_again(key);
            return;
        }
        let (tree, awaited) = (span.tree, u32::from(span.awaited()));
        let delivery = (class == Class::Invocation && span.reason == Reason::Exited).then_some(span.above);
        let entry = &mut self.trees[tree as usize];
        entry.open -= awaited;
        entry.last_ns = entry.last_ns.max(header.at_ns);
        if entry.open > 0 && entry.root == key {
            let seq = entry.seq;
            self.settle(tree, seq);
        }
        self.check_ready(tree);
        if let Some(delivery) = delivery {
            self.undelivered(delivery, header, end);
        }
    }

    fn fits(&self, key: u32, end: &End, class: Class) -> bool {
        let span = &self.spans[key as usize];
        (span.conn, span.sequence, span.class) == (end.conn, end.sequence, class)
    }

    fn check_ready(&mut self, tree: u32) {
        let entry = &self.trees[tree as usize];
        if entry.open == 0 && entry.held == 0 && self.spans[entry.root as usize].ended {
            let entry = (tree, entry.seq);
            if self.ready.len() > 2 * self.trees.len() + 64 {
                let trees = &self.trees;
                self.ready.retain(|(tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
                self.ready.dedup();
            }
            self.ready.push(entry);
        }
    }

    fn settle(&mut self, tree: u32, seq: u64) {
        if self.settling.len() > 2 * self.trees.len() + 64 {
            let trees = &self.trees;
            self.settling.retain(|(_, tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
        }
        self.settling.push_back((self.now_ns.saturating_add(self.config.settle_ns), tree, seq));
    }
}
