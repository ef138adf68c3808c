//! How right the inference is, against the true parents that were hidden from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    CallId, Config, Inference, InvocationId, Resolution,
    calltrees::{Seen, Trace, Truth, hide},
    traces::Traces,
};

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For the inference.
    pub config: Config,
    /// Seed of the shuffle.
    pub seed: u64,
    /// Spans that may wait for a decision; memory is bounded by it.
    pub window: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { config: Config::default(), seed: 1, window: 1 << 18 }
    }
}

/// Bounds of the rows of the reliability table, in per mille of stated probability.
const BOUNDS: [u32; 8] = [0, 500, 700, 800, 900, 950, 990, 999];

/// One row of the reliability table: edges whose stated probability lies in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// Least stated probability of the row.
    pub from: f64,
    /// Edges in it.
    pub edges: usize,
    /// Mean stated probability.
    pub stated: f64,
    /// Share that is right.
    pub right: f64,
}

/// A share of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// So many.
    pub right: usize,
    /// Of so many.
    pub of: usize,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded down, so that 100.00 % is all.
        let per = (10_000 * self.right).checked_div(self.of).unwrap_or(10_000);
        write!(f, "{}.{:02} % ({} of {})", per / 100, per % 100, self.right, self.of)
    }
}

/// The score of one file.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// Spans in the file.
    pub spans: usize,
    /// Calls under the invocation that made them.
    pub edges: Share,
    /// Traces with every edge right and no edge too many.
    pub traces: Share,
    /// Traces with every edge right that the figures published for these files count; the others are hidden all the
    /// same.
    pub counted: Share,
    /// Traces that are among the five most probable.
    pub top5: Share,
    /// The first two for giving each call to the longest-running invocation that still lacks it, told the call graph.
    pub first_come: Share,
    /// Of the edges that are counted.
    pub first_come_counted: Share,
    /// Reliability of the stated probabilities.
    pub reliability: Vec<Row>,
    /// Expected calibration error: mean distance of stated probability and share right, over the rows.
    pub ece: f64,
    /// Time for learning and deciding.
    pub seconds: f64,
    /// Spans of the file a second.
    pub spans_per_second: f64,
}

/// Hides the edges of traces, infers them, and compares.
pub fn score(traces: &[Trace], options: &Options) -> Score {
    let (seen, truth) = hide(traces, options.seed);
    let begin = Instant::now();
    let resolution = seen.infer(&mut Inference::new(options.config), options.window);
    compare(&seen, &truth, &resolution, begin.elapsed())
}

fn compare(seen: &Seen, truth: &Truth, resolution: &Resolution, took: Duration) -> Score {
    let edges: BTreeMap<CallId, (Option<InvocationId>, f64)> =
        resolution.edges.iter().map(|edge| (edge.call, (edge.invocation, edge.p))).collect();
    let (mut wrong, mut wrong_counted) = (BTreeSet::<usize>::new(), BTreeSet::<usize>::new());
    let mut bins = vec![(0_usize, 0.0_f64, 0_usize); BOUNDS.len()];
    let mut right = 0;
    let mut sets = BTreeMap::<InvocationId, Vec<CallId>>::new();
    for at in 0..seen.calls.len() {
        let call = CallId(at as u64);
        let parent = truth.parent.get(at).copied().flatten().map(|at| InvocationId(at as u64));
        if let Some(parent) = parent {
            sets.entry(parent).or_default().push(call);
        }
        let (found, p) = edges.get(&call).copied().unwrap_or((None, 0.0));
        let same = found == parent;
        right += usize::from(same);
        if !same {
            wrong.extend(truth.trace_of_call.get(at));
            let owner = found.and_then(|id| truth.trace.get(id.0 as usize));
            wrong.extend(owner);
            if truth.counted.get(at) == Some(&true) {
                wrong_counted.extend(truth.trace_of_call.get(at));
                wrong_counted.extend(owner);
            }
        }
        let row = BOUNDS.iter().rposition(|bound| p * 1000.0 >= f64::from(*bound)).unwrap_or(0);
        if let Some((count, stated, hits)) = bins.get_mut(row) {
            *count += 1;
            *stated += p;
            *hits += usize::from(same);
        }
    }
    let of = truth.traces;
    let row = |(bound, (edges, stated, hits)): (&u32, &(usize, f64, usize))| {
        let count = (*edges).max(1) as f64;
        Row { from: f64::from(*bound) / 1000.0, edges: *edges, stated: stated / count, right: *hits as f64 / count }
    };
    let reliability: Vec<Row> = BOUNDS.iter().zip(&bins).map(row).collect();
    let gap = |row: &Row| (row.stated - row.right).abs() * row.edges as f64;
    let first = first_come(seen, truth);
    let seconds = took.as_secs_f64();
    Score {
        spans: seen.spans,
        edges: Share { right, of: seen.calls.len() },
        traces: Share { right: of - wrong.len(), of },
        top5: Share { right: top5(seen, truth, resolution, &wrong, &sets), of },
        counted: Share { right: of - wrong_counted.len(), of },
        first_come: Share { right: of - first.0, of },
        first_come_counted: Share { right: of - first.1, of },
        ece: reliability.iter().map(gap).sum::<f64>() / seen.calls.len().max(1) as f64,
        reliability,
        seconds,
        spans_per_second: seen.spans as f64 / seconds.max(1e-9),
    }
}

/// Traces that are right, or whose truth is among the five most probable ways to make them.
fn top5(
    seen: &Seen,
    truth: &Truth,
    resolution: &Resolution,
    wrong: &BTreeSet<usize>,
    sets: &BTreeMap<InvocationId, Vec<CallId>>,
) -> usize {
    let caused = seen.callee.iter().enumerate();
    let caused: BTreeMap<CallId, InvocationId> =
        caused.filter_map(|(at, callee)| Some((CallId(at as u64), InvocationId((*callee)? as u64)))).collect();
    let whole = Traces::new(&resolution.choices, &caused);
    let called: BTreeSet<_> = caused.values().copied().collect();
    let mut found = vec![true; truth.traces];
    for (at, trace) in truth.trace.iter().enumerate() {
        let id = InvocationId(at as u64);
        if called.contains(&id) || !wrong.contains(trace) {
            continue;
        }
        let none = Vec::new();
        let holds = |(id, calls): (&InvocationId, &Vec<CallId>)| {
            let mut true_calls = sets.get(id).unwrap_or(&none).clone();
            true_calls.sort_unstable();
            true_calls == *calls
        };
        // Four, and the one that was decided, which is wrong here.
        if !whole.best(id, 4).iter().any(|candidate| candidate.sets.iter().all(holds)) {
            found.iter_mut().skip(*trace).take(1).for_each(|found| *found = false);
        }
    }
    found.iter().filter(|found| **found).count()
}

/// Traces that first come, first served gets wrong, although told which operation makes which call.
fn first_come(seen: &Seen, truth: &Truth) -> (usize, usize) {
    let kind = |at: usize| seen.invocations.get(at).map(|i| (i.service, i.op, i.caller));
    let mut makers = BTreeMap::<_, BTreeSet<_>>::new();
    for (call, parent) in seen.calls.iter().zip(&truth.parent) {
        let key = (call.service, call.callee, call.op);
        makers.entry(key).or_default().extend(parent.and_then(kind));
    }
    let mut order: Vec<usize> = (0..seen.invocations.len()).collect();
    order.sort_by_key(|at| seen.invocations.get(*at).map(|i| (i.start_us, i.end_us)));
    let mut by_service = BTreeMap::<_, Vec<usize>>::new();
    for at in order {
        by_service.entry(seen.invocations.get(at).map(|i| i.service)).or_default().push(at);
    }
    let mut calls: Vec<usize> = (0..seen.calls.len()).collect();
    calls.sort_by_key(|at| seen.calls.get(*at).map(|c| (c.start_us, c.end_us)));
    let mut given = BTreeSet::new();
    let (mut wrong, mut wrong_counted) = (BTreeSet::<usize>::new(), BTreeSet::<usize>::new());
    for at in calls {
        let Some(call) = seen.calls.get(at) else { continue };
        let key = (call.service, call.callee, call.op);
        let known = makers.get(&key);
        let fits = |of: &&usize| {
            let live =
                seen.invocations.get(**of).is_some_and(|i| i.start_us <= call.start_us && i.end_us >= call.start_us);
            live && known.is_some_and(|known| kind(**of).is_some_and(|kind| known.contains(&kind)))
                && !given.contains(&(**of, key))
        };
        let found = by_service.get(&Some(call.service)).and_then(|of| {
            let end = of.partition_point(|of| seen.invocations.get(*of).is_some_and(|i| i.start_us <= call.start_us));
            of.get(end.saturating_sub(256)..end)?.iter().find(fits).copied()
        });
        given.extend(found.map(|of| (of, key)));
        if found != truth.parent.get(at).copied().flatten() {
            let of = [truth.trace_of_call.get(at), found.and_then(|of| truth.trace.get(of))];
            wrong.extend(of.into_iter().flatten());
            if truth.counted.get(at) == Some(&true) {
                wrong_counted.extend(of.into_iter().flatten());
            }
        }
    }
    (wrong.len(), wrong_counted.len())
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "spans                        {}", self.spans)?;
        writeln!(f, "edges right                  {}", self.edges)?;
        writeln!(f, "whole traces right           {}", self.traces)?;
        writeln!(f, "  among the five best        {}", self.top5)?;
        writeln!(f, "  of published edges         {}", self.counted)?;
        writeln!(f, "first come first served      {}", self.first_come)?;
        writeln!(f, "  of published edges         {}", self.first_come_counted)?;
        writeln!(f, "time                         {:.2} s, {:.0} spans/s", self.seconds, self.spans_per_second)?;
        writeln!(f, "calibration error            {:.4}", self.ece)?;
        writeln!(f, "  stated from    edges   mean stated   right")?;
        for row in self.reliability.iter().filter(|row| row.edges > 0) {
            writeln!(f, "  {:<11.3} {:>8} {:>13.4} {:>7.4}", row.from, row.edges, row.stated, row.right)?;
        }
        Ok(())
    }
}
