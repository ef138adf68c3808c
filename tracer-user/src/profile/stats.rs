//! What a profile knows of a function, of an edge and of a shape of path. The fields' names are the keys of the JSON
//! form, their comments its schema. Times are in µs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    bounded::{Bounded, Key, Merge, Tally, merge_fields},
    histogram::Histogram,
    sample::{Sample, Slowest, Typical},
};

/// Functions with statistics of their own.
pub const FUNCTIONS_MAX: usize = 512;
/// Callees of one function with statistics of their own.
pub const EDGES_MAX: usize = 64;
/// Pairs of consecutive calls of one function.
pub const PAIRS_MAX: usize = 64;
/// Shapes of paths.
pub const SHAPES_MAX: usize = 1024;
/// Functions and services that add to the critical path of one shape.
pub const STEPS_MAX: usize = 32;
/// External services, over all functions.
pub const EXTERNALS_MAX: usize = 256;
/// Cycles in paths.
pub const CYCLES_MAX: usize = 64;
/// Stacks of the folded form.
pub const STACKS_MAX: usize = 4096;

macro_rules! key {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* } class $class:expr, parts $parts:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
        impl Key for $name {
            fn class(&self) -> u8 {
                let class: fn(&Self) -> bool = $class;
                u8::from(class(self))
            }
            fn parts(&self) -> [&str; 2] {
                let parts: for<'a> fn(&'a Self) -> [&'a str; 2] = $parts;
                parts(self)
            }
        }
    };
}

key! {
    /// A function or an external service, by name alone.
    Name {
        /// The name.
        name: Arc<str>
    } class |_| false, parts |key| [&key.name, ""]
}
key! {
    /// Whom a function calls.
    Callee {
        /// The function's name; of an external service the Host header, or else the address.
        name: Arc<str>,
        /// Whether it is outside of what is traced. A tenant can invent such names, so they come second.
        external: bool
    } class |key| key.external, parts |key| [&key.name, if key.external { "external" } else { "" }]
}
key! {
    /// Two different callees that were called one next to the other; `a` sorts before `b`.
    Both {
        /// The one.
        a: Arc<str>,
        /// The other.
        b: Arc<str>
    } class |_| false, parts |key| [&key.a, &key.b]
}
key! {
    /// A shape of path: `a(b; c | d ×2)` means that `a` calls `b`, then at the same time `c` once and `d` twice.
    Form {
        /// The shape.
        shape: Arc<str>
    } class |_| false, parts |key| [&key.shape, ""]
}
key! {
    /// Something that takes time on a critical path.
    Step {
        /// `own`: work of the function itself; `external`: an external service, its network included; `network`: between
        /// the caller's call and the callee's invocation.
        kind: StepKind,
        /// The function or service; with `network` the callee.
        name: Arc<str>
    } class |key| key.kind == StepKind::External, parts |key| [&key.name, key.kind.name()]
}
key! {
    /// Functions from the outermost to the innermost, with `;` between.
    Stack {
        /// The functions.
        stack: Arc<str>
    } class |_| false, parts |key| [&key.stack, ""]
}
key! {
    /// Functions that call each other in a circle within one path, with ` → ` between.
    Circle {
        /// The functions.
        cycle: Arc<str>
    } class |_| false, parts |key| [&key.cycle, ""]
}

/// See [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Work of the function itself.
    Own,
    /// Between caller and callee.
    Network,
    /// An external service.
    External,
}

impl StepKind {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Network => "network",
            Self::External => "external",
        }
    }
}

/// A function over many invocations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Invocations.
    pub invocations: u64,
    /// Of these, roots of a path.
    pub roots: u64,
    /// Invocations that answered 5xx or broke below HTTP.
    pub errors: u64,
    /// Invocations that were not seen to end. They are in no time below.
    pub unfinished: u64,
    /// The first invocation of a sandbox; its cost is the difference of `cold_latency` and `latency`.
    pub cold: u64,
    /// Calls, over all invocations.
    pub calls: u64,
    /// The most calls in one invocation.
    pub calls_max: Most,
    /// From request in to response out.
    pub latency: Histogram,
    /// The same, cold starts only.
    pub cold_latency: Histogram,
    /// Latency less the time in which at least one call was open.
    pub own: Histogram,
    /// Time in which at least one call was open, until the answer.
    pub waiting: Histogram,
    /// From the caller's sending to the arrival in the sandbox, where the caller was traced: network, and queues ahead
    /// of the sandbox.
    pub queueing: Histogram,
    /// Own work on the critical paths of all paths.
    pub critical_us: u64,
    /// Whom it calls.
    pub edges: Bounded<Callee, Edge, EDGES_MAX>,
    /// Which calls it makes next to each other.
    pub pairs: Bounded<Both, Pair, PAIRS_MAX>,
    /// The slowest path that began here.
    pub slowest: Slowest,
}
merge_fields!(Function {
    invocations,
    roots,
    errors,
    unfinished,
    cold,
    calls,
    calls_max,
    latency,
    cold_latency,
    own,
    waiting,
    queueing,
    critical_us,
    edges,
    pairs,
    slowest,
});

/// The positions in the order of calls that are told apart; the last stands for all that follow.
pub const POSITIONS: usize = 8;

/// A function's calls to one callee.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Invocations of the caller with at least one such call; over all its invocations, the probability of the edge.
    pub invocations: u64,
    /// Calls.
    pub calls: u64,
    /// The most in one invocation.
    pub calls_max: Most,
    /// Calls that were open together with another call of the same invocation.
    pub parallel: u64,
    /// In how many invocations the first such call was the first, second, … of all calls; the last number stands for the
    /// eighth and all that follow.
    pub positions: [u64; POSITIONS],
    /// From the start of the invocation to the first such call.
    pub delay: Histogram,
    /// As the caller sees it.
    pub latency: Histogram,
    /// As the callee sees it, where it is traced.
    pub callee_latency: Histogram,
    /// The difference of the two: network, and queues on the way there and back.
    pub network: Histogram,
    /// The smoothed round-trip time of the connection, as the caller's kernel had it when the call ended. On a connection
    /// that is kept alive it tells more of the callee than of the network ([`Channel::rtt_us`](crate::path::Channel)), so
    /// what is shown is the least.
    #[serde(default)]
    pub rtt: Histogram,
    /// Segments that the caller's kernel sent again.
    #[serde(default)]
    pub retransmits: u64,
    /// Calls that failed: 5xx, 408, 429, or broken below HTTP.
    pub errors: u64,
    /// Calls that were not seen to end. They are in no time.
    pub unfinished: u64,
    /// Calls repeated after one with the same request had failed.
    pub retries: u64,
    /// Of these, those that succeeded.
    pub retries_ok: u64,
    /// Calls begun after the answer.
    pub after_response: u64,
    /// Calls whose caller is a guess (`parent_by` is `inferred`).
    pub inferred: u64,
    /// Failed calls (4xx included) after which the invocation made no other: whatever comes next depends on this one.
    pub stopped_by_failure: u64,
    /// Calls answered by a cold start.
    pub cold: u64,
    /// The caller's latency where the callee started cold.
    pub latency_with_cold: Histogram,
    /// How long calls lasted that were given up: no response came, and the callee was still at work.
    pub gave_up_after: Histogram,
    /// Least of the request paths, in the order of bytes. With `path_max`, tells whether they are all the same.
    pub path_min: Least,
    /// Greatest of the request paths.
    pub path_max: Greatest,
    /// Invocations that made the same successful read twice with no write between. Time: all such calls but the first.
    pub repeated: Tally,
    /// Invocations that made many calls one after the other whose paths differ in one part. Time: all but the longest.
    pub one_by_one: Tally,
    /// Invocations with retries none of which succeeded. Time: from the first failure to the end of the last retry.
    pub vain_retries: Tally,
    /// Invocations that answered before the response to a call came. Time: that of the call.
    pub unused: Tally,
    /// Invocations that waited for a cold start. Time: that of the caller.
    pub cold_tally: Tally,
    /// Invocations that gave up a call. Time: that of the call.
    pub gave_up: Tally,
}
merge_fields!(Edge {
    invocations,
    calls,
    calls_max,
    parallel,
    positions,
    delay,
    latency,
    callee_latency,
    network,
    rtt,
    retransmits,
    errors,
    unfinished,
    retries,
    retries_ok,
    after_response,
    inferred,
    stopped_by_failure,
    cold,
    latency_with_cold,
    gave_up_after,
    path_min,
    path_max,
    repeated,
    one_by_one,
    vain_retries,
    unused,
    cold_tally,
    gave_up,
});

/// Two calls of a function that are neighbours in its order of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// How often `b` was called after `a` had returned.
    pub ab: Order,
    /// How often `a` was called after `b` had returned.
    pub ba: Order,
    /// How often both were open at once.
    pub overlap: u64,
    /// The shorter of the two calls, where one followed the other.
    pub serial: Tally,
}
merge_fields!(Pair { ab, ba, overlap, serial });

/// One order of a [`Pair`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// How often.
    pub times: u64,
    /// How often the first had failed and the second was made all the same.
    pub in_spite: u64,
    /// How often both were reads (GET or HEAD).
    pub reads: u64,
    /// How often all parts of the second's path were in the path of the request that the invocation answered.
    pub known: u64,
}
merge_fields!(Order { times, in_spite, reads, known });

/// Paths of one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Paths.
    pub paths: u64,
    /// How long they took.
    pub latency: Histogram,
    /// What took time on their critical paths.
    pub critical: Bounded<Step, StepTime, STEPS_MAX>,
    /// One of them, chosen by a hash of its trace id.
    pub sample: Typical,
}
merge_fields!(Shape { paths, latency, critical, sample });

/// What a step adds to critical paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// In how many paths it was critical.
    pub paths: u64,
    /// For how long, in all.
    pub us: u64,
}
merge_fields!(StepTime { paths, us });

/// An external service over all functions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Calls.
    pub calls: u64,
    /// Calls that failed.
    pub errors: u64,
    /// How long they took.
    pub latency: Histogram,
    /// Paths on whose critical path it was. Time: there.
    pub critical: Tally,
}
merge_fields!(External { calls, errors, latency, critical });

/// The greatest number seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Most(pub u64);

impl Merge for Most {
    fn merge(&mut self, other: Self) {
        *self = (*self).max(other);
    }
}

/// Longest name or path that is kept, in bytes.
pub const TEXT_MAX: usize = 200;

/// A text cut to [`TEXT_MAX`] bytes, at a character's boundary.
pub fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

/// The least text seen, cut to [`TEXT_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Least(pub Option<Box<str>>);

/// The greatest text seen, cut to [`TEXT_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greatest(pub Option<Box<str>>);

impl Least {
    /// Takes a text into account.
    pub fn add(&mut self, text: &str) {
        let text = clip(text);
        if self.0.as_deref().is_none_or(|old| text < old) {
            self.0 = Some(text.into());
        }
    }
}

impl Greatest {
    /// Takes a text into account.
    pub fn add(&mut self, text: &str) {
        let text = clip(text);
        if self.0.as_deref().is_none_or(|old| text > old) {
            self.0 = Some(text.into());
        }
    }
}

impl Merge for Least {
    fn merge(&mut self, other: Self) {
        if let Some(text) = other.0 {
            self.add(&text);
        }
    }
}

impl Merge for Greatest {
    fn merge(&mut self, other: Self) {
        if let Some(text) = other.0 {
            self.add(&text);
        }
    }
}

impl Edge {
    /// Whether every call asked for the same path.
    pub fn same_path(&self) -> bool {
        self.path_min.0.is_some() && self.path_min.0 == self.path_max.0
    }
}

impl Shape {
    /// The sample path.
    pub fn sample(&self) -> Option<&Sample> {
        self.sample.0.as_deref()
    }
}
