//! What the assembler counts, so that nothing is lost silently.

use serde::Serialize;
use tracer_ebpf::record::{Kind, Rule, Tag};

/// Counts since the start. Two sums always hold; the tests check them:
///
/// - starts (`invocation_start` + `call_start` + `opaque_start`) = `reported` + `unsampled_spans` + `duplicates` + `open`
/// - ends + `undelivered` = `ends_matched` + `ends_unknown` + `ends_duplicate`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Records by kind.
    pub records: Records,
    /// Bytes that were not a record.
    pub undecodable: u64,
    /// Records that the ring buffer refused.
    pub lost: u64,
    /// Paths given out.
    pub paths: u64,
    /// Of these, `complete:false`.
    pub incomplete: u64,
    /// Parts given out apart from their path.
    pub late: u64,
    /// Paths and parts not given out because the caller asked not to record the trace.
    pub unsampled: u64,
    /// Paths given out before their end because too many spans were open.
    pub evicted: u64,
    /// Spans in flight now.
    pub open: u64,
    /// Spans given out, each once.
    pub reported: u64,
    /// Spans of unsampled paths.
    pub unsampled_spans: u64,
    /// Starts of a span that was known: the same connection, sequence and span id again.
    pub duplicates: u64,
    /// Ends that found their start.
    pub ends_matched: u64,
    /// Ends whose start was never seen, or is forgotten.
    pub ends_unknown: u64,
    /// Ends of a span that had ended.
    pub ends_duplicate: u64,
    /// Deliveries that ended with the process that they were for.
    pub undelivered: u64,
    /// Calls by outcome of the tag, in the order of [`Tag::ALL`].
    #[serde(serialize_with = "tags")]
    pub tags: [u64; Tag::ALL.len()],
    /// Calls by attribution rule, in the order of [`Rule::ALL`].
    #[serde(serialize_with = "rules")]
    pub rules: [u64; Rule::ALL.len()],
    /// How calls found the invocation that they caused.
    pub joins: Joins,
    /// Calls that no rule of the kernel half could place.
    pub inference: Inference,
    /// Invocations that came with a parent that is no call seen here.
    pub outside_parents: u64,
    /// Calls whose invocation is not known, though the record names one: each is the root of an incomplete path.
    pub orphans: u64,
    /// Of these, calls that named an invocation of another sandbox.
    pub foreign_parents: u64,
    /// Sandboxes that found no room in the table of names; they go by their cgroup id.
    pub sandboxes_full: u64,
}

/// Records by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Records {
    /// [`Kind::SandboxBorn`].
    pub sandbox_born: u64,
    /// [`Kind::SandboxGone`].
    pub sandbox_gone: u64,
    /// [`Kind::InvocationStart`].
    pub invocation_start: u64,
    /// [`Kind::InvocationEnd`].
    pub invocation_end: u64,
    /// [`Kind::CallStart`].
    pub call_start: u64,
    /// [`Kind::CallEnd`].
    pub call_end: u64,
    /// [`Kind::OpaqueStart`].
    pub opaque_start: u64,
    /// [`Kind::OpaqueEnd`].
    pub opaque_end: u64,
    /// [`Kind::RuntimeReport`].
    pub runtime_report: u64,
    /// [`Kind::SandboxExec`].
    pub sandbox_exec: u64,
    /// [`Kind::SandboxListens`].
    pub sandbox_listens: u64,
    /// [`Kind::UnitSought`].
    pub unit_sought: u64,
    /// [`Kind::Answered`].
    pub answered: u64,
    /// [`Kind::HandBack`].
    pub hand_back: u64,
}

/// How calls found the invocation that they caused, and why some did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Joins {
    /// By the tag.
    pub tag: u64,
    /// By the wire.
    pub wire: u64,
    /// HTTP calls given out without an invocation: external services, functions that are not traced, failures.
    pub none: u64,
    /// Tags that named a call which another invocation had joined: a retry below HTTP, or a replay by a tenant.
    pub replayed: u64,
    /// Tags that the wire, or the order of time, contradicted.
    pub contradicted: u64,
    /// Span ids set by an application that were not adopted because another span or an outside caller has them.
    pub refused: u64,
    /// Connections that two calls claim, in namespaces that cannot be told apart: not joined by the wire.
    pub ambiguous: u64,
}

/// Calls that no rule of the kernel half could place while invocations were live. `held` is the sum of `placed`,
/// `unplaced` and those that still wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inference {
    /// Held back until their candidates have answered.
    pub held: u64,
    /// Hung under the most probable candidate.
    pub placed: u64,
    /// Left as they were: nobody was probable enough.
    pub unplaced: u64,
    /// Not held, because nobody is known who may have made them, or too many are, or there was no room.
    pub refused: u64,
}

impl Records {
    /// All of them.
    pub fn sum(&self) -> u64 {
        let sandboxes = self.sandbox_born + self.sandbox_gone + self.sandbox_exec + self.sandbox_listens;
        let facts = self.unit_sought + self.answered + self.hand_back;
        sandboxes + facts + self.runtime_report + self.starts() + self.ends()
    }

    /// Those that begin a span.
    pub fn starts(&self) -> u64 {
        self.invocation_start + self.call_start + self.opaque_start
    }

    /// Those that end one.
    pub fn ends(&self) -> u64 {
        self.invocation_end + self.call_end + self.opaque_end
    }

    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::SandboxBorn => &mut self.sandbox_born,
            Kind::SandboxGone => &mut self.sandbox_gone,
            Kind::InvocationStart => &mut self.invocation_start,
            Kind::InvocationEnd => &mut self.invocation_end,
            Kind::CallStart => &mut self.call_start,
            Kind::CallEnd => &mut self.call_end,
            Kind::OpaqueStart => &mut self.opaque_start,
            Kind::OpaqueEnd => &mut self.opaque_end,
            Kind::RuntimeReport => &mut self.runtime_report,
            Kind::SandboxExec => &mut self.sandbox_exec,
            Kind::SandboxListens => &mut self.sandbox_listens,
            Kind::UnitSought => &mut self.unit_sought,
            Kind::Answered => &mut self.answered,
            Kind::HandBack => &mut self.hand_back,
        } += 1;
    }
}

impl Totals {
    /// Whether every start and every end is accounted for.
    pub fn balanced(&self) -> bool {
        self.records.starts() == self.reported + self.unsampled_spans + self.duplicates + self.open
            && self.records.ends() + self.undelivered == self.ends_matched + self.ends_unknown + self.ends_duplicate
    }
}

fn tags<S: serde::Serializer>(counts: &[u64; Tag::ALL.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Tag::ALL.iter().map(|tag| tag.name()).zip(counts))
}

fn rules<S: serde::Serializer>(counts: &[u64; Rule::ALL.len()], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Rule::ALL.iter().map(|rule| rule.name()).zip(counts))
}
