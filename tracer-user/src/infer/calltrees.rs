//! The `call-trees` format: a trace a line, as published traces with true parents are kept. Read here, and taken
//! apart into what an agent would see and what is hidden from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::Context as _;
use serde::Deserialize;

use super::{Call, CallId, Clues, Inference, Invocation, InvocationId, Resolution, Sym};

/// One span of a line.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// Unique within the trace.
    pub id: String,
    /// The span that caused this one.
    pub parent: Option<String>,
    /// Who recorded it.
    pub service: String,
    /// What was asked for.
    pub op: String,
    /// `server`, `client`, or empty where the application does not say.
    #[serde(default)]
    pub kind: String,
    /// Begin, µs since 1970.
    pub start_us: i64,
    /// How long, in µs.
    pub duration_us: i64,
}

/// One line.
#[derive(Clone, Debug, Deserialize)]
pub struct Trace {
    /// Its spans, in any order.
    pub spans: Vec<Span>,
}

impl Trace {
    fn start(&self) -> i64 {
        self.spans.iter().map(|span| span.start_us).min().unwrap_or(0)
    }
}

/// Reads a file, gzip or plain.
///
/// # Errors
///
/// If it cannot be read, or a line is not a trace.
pub fn read(path: &Path) -> anyhow::Result<Vec<Trace>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut file = BufReader::new(file);
    let gzip = file.fill_buf().with_context(|| format!("cannot read {}", path.display()))?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> = if gzip { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut traces = Vec::new();
    for (number, line) in BufReader::new(plain).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if !line.trim().is_empty() {
            let trace = serde_json::from_str(&line);
            traces.push(trace.with_context(|| format!("{}, line {}: not a trace", path.display(), number + 1))?);
        }
    }
    Ok(traces)
}

/// Divides the gaps between the starts of traces; within a trace nothing moves.
pub fn compress(traces: &mut [Trace], by: f64) {
    let Some(first) = traces.iter().map(Trace::start).min() else { return };
    for trace in traces {
        let start = trace.start();
        let moved = first.saturating_add((start.saturating_sub(first) as f64 / by).round() as i64);
        let by = moved.saturating_sub(start);
        trace.spans.iter_mut().for_each(|span| span.start_us = span.start_us.saturating_add(by));
    }
}

/// What is hidden, by index of [`Seen`].
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// By call: the invocation that made it.
    pub parent: Vec<Option<usize>>,
    /// By call: the trace that it is of.
    pub trace_of_call: Vec<usize>,
    /// By call: whether the figures published for these files count it. They do if it goes to another service, and
    /// the service that sent it is itself called from one place only.
    pub counted: Vec<bool>,
    /// By invocation: the trace that it is of.
    pub trace: Vec<usize>,
    /// Traces.
    pub traces: usize,
}

/// What an agent on the wire would see, in an order that says nothing.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Server spans.
    pub invocations: Vec<Invocation>,
    /// Client spans; `invocation` is left out here and stands in `callee`.
    pub calls: Vec<Call>,
    /// By call: the index of the invocation that it caused.
    pub callee: Vec<Option<usize>>,
    /// Spans in the file.
    pub spans: usize,
}

impl Seen {
    /// Gives everything to the inference in the order in which it ended, and takes decisions as soon as more than
    /// `window` spans wait for one. Ids are indices.
    pub fn infer(&self, inference: &mut Inference, window: usize) -> Resolution {
        enum Item<'a> {
            Invocation(InvocationId, &'a Invocation),
            Call(CallId, Call),
        }
        let mut items = Vec::with_capacity(self.invocations.len() + self.calls.len());
        let (mut longest, mut out) = (0, Resolution::default());
        for (at, invocation) in self.invocations.iter().enumerate() {
            longest = longest.max(invocation.end_us.saturating_sub(invocation.start_us));
            items.push((invocation.end_us, Item::Invocation(InvocationId(at as u64), invocation)));
        }
        for ((at, call), callee) in self.calls.iter().enumerate().zip(&self.callee) {
            let invocation = callee.map(|at| InvocationId(at as u64));
            items.push((call.end_us, Item::Call(CallId(at as u64), Call { invocation, ..*call })));
        }
        items.sort_by_key(|(end, _)| *end);
        for (end, item) in items {
            match item {
                Item::Invocation(id, invocation) => inference.observe_invocation(id, invocation),
                Item::Call(id, call) => inference.observe_call(id, &call),
            }
            if inference.pending() >= window {
                out.extend(inference.resolve(end.saturating_sub(longest)));
            }
        }
        out.extend(inference.resolve(i64::MAX));
        out
    }
}

#[derive(Debug, Default)]
struct Names(HashMap<String, Sym>);

impl Names {
    fn of(&mut self, name: &str) -> Sym {
        let new = self.0.len() as Sym;
        *self.0.entry(name.to_owned()).or_insert(new)
    }
}

/// Takes traces apart.
///
/// A span is an invocation, or a call, or, where the callee alone recorded it, both. Where the application does not
/// say what a span is, an operation whose caller is its own service and that never calls anything is a call to a
/// store: its kind on the wire, not its parent. `seed` shuffles what is seen.
pub fn hide(traces: &[Trace], seed: u64) -> (Seen, Truth) {
    let stores = stores(traces);
    let mut names = Names::default();
    let (mut seen, mut truth) = (Seen::default(), Truth { traces: traces.len(), ..Truth::default() });
    // Index of the span, of the trace, the call and its maker.
    for (number, trace) in traces.iter().enumerate() {
        seen.spans += trace.spans.len();
        let by_id: HashMap<&str, usize> =
            trace.spans.iter().enumerate().map(|(at, span)| (span.id.as_str(), at)).collect();
        let parent = |span: &Span| span.parent.as_deref().and_then(|id| by_id.get(id).copied());
        let client = |span: &Span| {
            span.kind == "client" || span.kind.is_empty() && stores.contains(&(span.service.as_str(), span.op.as_str()))
        };
        let mut invocation_of = vec![None; trace.spans.len()];
        for (at, span) in trace.spans.iter().enumerate().filter(|(_, span)| !client(span)) {
            if let Some(slot) = invocation_of.get_mut(at) {
                *slot = Some(seen.invocations.len());
            }
            let caller = parent(span).and_then(|at| trace.spans.get(at)).map(|caller| names.of(&caller.service));
            seen.invocations.push(Invocation {
                service: names.of(&span.service),
                op: names.of(&span.op),
                caller,
                start_us: span.start_us,
                end_us: span.start_us.saturating_add(span.duration_us.max(0)),
                open: false,
                clues: Clues::default(),
            });
            truth.trace.push(number);
        }
        let server_of: HashMap<usize, usize> = trace
            .spans
            .iter()
            .enumerate()
            .filter(|(_, span)| !client(span))
            .filter_map(|(at, span)| Some((parent(span)?, at)))
            .collect();
        for (at, span) in trace.spans.iter().enumerate() {
            let Some((by, maker)) = parent(span).and_then(|by| Some((by, trace.spans.get(by)?))) else { continue };
            // A server span under a client span: the call is that client span, and the link is on the wire.
            if client(maker) {
                continue;
            }
            let callee = if client(span) { server_of.get(&at).copied() } else { Some(at) };
            let to = callee.and_then(|at| trace.spans.get(at)).map_or(span.service.as_str(), |span| &span.service);
            seen.calls.push(Call {
                service: names.of(&maker.service),
                callee: names.of(to),
                op: names.of(&span.op),
                start_us: span.start_us,
                end_us: span.start_us.saturating_add(span.duration_us.max(0)),
                invocation: None,
                made_by: None,
                clues: Clues::default(),
            });
            seen.callee.push(callee.and_then(|at| invocation_of.get(at).copied().flatten()));
            truth.parent.push(invocation_of.get(by).copied().flatten());
            truth.trace_of_call.push(number);
        }
    }
    let mut callers = BTreeMap::<Sym, BTreeSet<Option<Sym>>>::new();
    for invocation in seen.invocations.iter().filter(|invocation| invocation.caller != Some(invocation.service)) {
        callers.entry(invocation.service).or_default().insert(invocation.caller);
    }
    let one = |service: Sym| callers.get(&service).is_none_or(|callers| callers.len() < 2);
    // A client span of its own says where it was recorded, not that it stayed there.
    let inside = |call: &Call| call.callee == call.service;
    truth.counted = seen.calls.iter().map(|call| !inside(call) && one(call.service)).collect();
    shuffle(seen, truth, seed)
}

/// Operations that are calls to a store, by service.
fn stores(traces: &[Trace]) -> BTreeSet<(&str, &str)> {
    let mut stores = BTreeMap::<(&str, &str), bool>::new();
    for trace in traces {
        let by_id: HashMap<&str, &Span> = trace.spans.iter().map(|span| (span.id.as_str(), span)).collect();
        for span in &trace.spans {
            let parent = span.parent.as_deref().and_then(|id| by_id.get(id));
            let inside = parent.is_some_and(|parent| parent.service == span.service);
            *stores.entry((&span.service, &span.op)).or_insert(true) &= inside;
            if let Some(parent) = parent {
                stores.insert((&parent.service, &parent.op), false);
            }
        }
    }
    stores.into_iter().filter(|(_, store)| *store).map(|(op, _)| op).collect()
}

fn shuffle(seen: Seen, truth: Truth, seed: u64) -> (Seen, Truth) {
    let invocations = order(seen.invocations.len(), seed);
    let calls = order(seen.calls.len(), seed ^ 0x5851_f42d_4c95_7f2d);
    let mut place = vec![0; invocations.len()];
    for (now, was) in invocations.iter().enumerate() {
        if let Some(place) = place.get_mut(*was) {
            *place = now;
        }
    }
    let moved = |at: &Option<usize>| at.and_then(|at| place.get(at).copied());
    let pick = |from: &[Option<usize>]| calls.iter().map(|at| from.get(*at).and_then(moved)).collect::<Vec<_>>();
    let truth = Truth {
        parent: pick(&truth.parent),
        counted: calls.iter().filter_map(|at| truth.counted.get(*at).copied()).collect(),
        trace_of_call: calls.iter().filter_map(|at| truth.trace_of_call.get(*at).copied()).collect(),
        trace: invocations.iter().filter_map(|at| truth.trace.get(*at).copied()).collect(),
        traces: truth.traces,
    };
    let seen = Seen {
        callee: pick(&seen.callee),
        invocations: invocations.iter().filter_map(|at| seen.invocations.get(*at).copied()).collect(),
        calls: calls.iter().filter_map(|at| seen.calls.get(*at).copied()).collect(),
        spans: seen.spans,
    };
    (seen, truth)
}

/// A shuffled order of so many, the same for the same seed.
fn order(length: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    let mut state = seed;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    for at in (1..length).rev() {
        order.swap(at, (next() % (at as u64 + 1)) as usize);
    }
    order
}
