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
mod end;
mod forest;
mod guess;
mod index;
mod join;
mod runtime;
mod sandboxes;
mod span;
mod standing;
mod start;
mod totals;
mod units;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;
#[cfg(test)]
pub(crate) mod trees;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use slab::Slab;
use tracer_ebpf::record::{Body, Kind, Record, decode};

use crate::path::Line;
pub(crate) use emit::peer_name;
use index::Index;
use sandboxes::Sandbox;
pub use sandboxes::SandboxInfo;
use span::{Class, Map, Remembered, Span, Tree, WireKey};
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
    calls: Index<u64>,
    /// Invocations by span id.
    invocations: Index<u64>,
    /// Spans whose id another has, by connection, sequence and id.
    strays: Map<(u64, u32, u64), u32>,
    /// Calls without an invocation.
    calls_by_wire: Index<WireKey>,
    /// Invocations without a call, by the parent id that came in.
    waiting: Map<u64, u32>,
    /// All invocations without a call.
    unjoined_by_wire: Index<WireKey>,
    /// Calls whose invocation has not been seen, by its id.
    orphans: Map<u64, Vec<u32>>,
    /// Index and seq of trees in order of age; may name trees that are no more.
    by_age: VecDeque<(u32, u64)>,
    /// Trees that seem to be complete.
    ready: Vec<(u32, u64)>,
    /// Deadline, index and seq of trees whose root has ended before the rest.
    settling: VecDeque<(u64, u32, u64)>,
    /// Spans that were given out, oldest first.
    remembered: VecDeque<Remembered>,
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
            calls: Index::default(),
            invocations: Index::default(),
            strays: Map::default(),
            calls_by_wire: Index::default(),
            waiting: Map::default(),
            unjoined_by_wire: Index::default(),
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
}
