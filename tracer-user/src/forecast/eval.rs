//! Honest scoring: learn from the first lines of a file, forecast the rest.
//!
//! Paths are replayed as the events that they were, all paths merged by time, so a forecast knows what a live one would
//! have known: earlier events of its own path, and of others. A start is known when it happens and not before: a call's
//! wait and cold start do not help to forecast what comes while it still waits.
//!
//! `next_accuracy`, `log_loss` and `ece` score each call against the forecast that stood when it was made: the one after
//! the latest event of its path, which may be the start or the answer of an earlier call. That is what a platform that
//! listens acts on. `at_call_*` score the same calls against the forecast made just after the call before: less is known
//! then, as to methods that count calls alone.

use std::{
    cell::Cell,
    collections::HashMap,
    io::{self, BufRead, Read},
    path::Path,
};

use serde::Serialize;

use crate::input::{self, Format, Trace};

pub use super::score::Bin;
use super::{
    AsOf, Event, Forecaster, Rule,
    merge::Merge,
    predict::{Counting, KeepAlive, Predict},
    score::{Median, Reliability},
    table::mix,
    warm::{Keeping, Terms, Warmed, Warming},
};

/// The thresholds that are tried beside the one that the cost ratio gives.
const THRESHOLDS: [f32; 7] = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];
/// The probability above which a callee counts as forecast, for the set figures.
const FORECAST: f32 = 0.5;

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What the lines hold.
    pub format: Format,
    /// How far ahead, in seconds.
    pub horizon: f32,
    /// How long a sandbox takes to get warm, in seconds.
    pub warm_up: f32,
    /// See [`Rule::cost_ratio`].
    pub cost_ratio: f32,
    /// How long the keep-alive baseline keeps a sandbox, in seconds.
    pub keep_alive: f32,
    /// The share of lines that is learned from before scoring.
    pub train: f32,
    /// Goes on learning while scoring, each path after it was scored.
    pub online: bool,
    /// Shuffles the lines first, by this number: see [`shuffled`].
    pub shuffle: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::Paths,
            horizon: 2.0,
            warm_up: 0.5,
            cost_ratio: 0.25,
            keep_alive: 600.0,
            train: 0.8,
            online: false,
            shuffle: None,
        }
    }
}

/// The scores of one method.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    /// Share of calls that were the likeliest next callee as of the latest event before. Ends of paths do not count.
    pub next_accuracy: f64,
    /// The same just after the call before.
    pub at_call_accuracy: f64,
    /// Of the callees forecast for the horizon with a probability of at least one half, the share that came within it.
    pub set_precision: f64,
    /// Of the callees that came within the horizon, the share so forecast.
    pub set_recall: f64,
    /// Mean of −ln of the probability given to what came next, a call or the end, as of the latest event before.
    pub log_loss: f64,
    /// The same just after the call before.
    pub at_call_log_loss: f64,
    /// Expected calibration error of the likeliest next callee, ten bins of equal width, as of the latest event before.
    pub ece: f64,
    /// The same just after the call before.
    pub at_call_ece: f64,
    /// What chance alone would make of `ece` if every probability were right, given so many calls.
    pub ece_by_chance: f64,
    /// Median absolute error of the time until the next call, forecast just after the call before, in ms.
    pub time_mae_ms: f64,
    /// Median time from warming to the call at the threshold of the cost ratio, in ms.
    pub lead_ms: f64,
    /// Cold starts avoided at that threshold.
    pub cold_starts_avoided: u64,
    /// Sandbox-seconds that nobody used at that threshold.
    pub wasted_seconds: f64,
    /// All of that threshold.
    pub decision: Warmed,
    /// Other thresholds.
    pub thresholds: Vec<Warmed>,
    /// The reliability table of the likeliest next callee.
    pub reliability: Vec<Bin>,
    /// The reliability table of "is called within the horizon", over all callees.
    pub set_reliability: Vec<Bin>,
}

/// The scores of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: String,
    /// Paths learned from.
    pub train: u64,
    /// Paths scored.
    pub test: u64,
    /// Calls scored: all but the roots.
    pub calls: u64,
    /// Cold starts among the calls scored, as recorded; all calls, roots too, if the format does not tell.
    pub cold_starts: u64,
    /// Whether learning went on while scoring.
    pub online: bool,
    /// The number by which the lines were shuffled; null where the last lines are scored.
    pub shuffle: Option<u64>,
    /// How far ahead, in seconds.
    pub horizon: f32,
    /// Median absolute deviation of the time between calls in the paths learned from, in ms.
    pub time_mad_ms: f64,
    /// Of the forecaster.
    #[serde(flatten)]
    pub scores: Scores,
    /// Of the baselines.
    pub baselines: Baselines,
}

/// What the forecaster has to beat.
#[derive(Clone, Debug, Serialize)]
pub struct Baselines {
    /// What followed each callee, counted.
    pub edge_counts: Scores,
    /// What followed each set of callees, counted.
    pub set_counts: Scores,
    /// Always the most frequent callee.
    pub most_frequent: Scores,
    /// No forecast: a used sandbox stays warm for a fixed time. Its decision and thresholds are its own simulation.
    pub keep_alive: Scores,
}

#[derive(Debug)]
struct Contender<P> {
    method: P,
    calls: u64,
    outcomes: u64,
    /// Just after the call before, and as of the latest event before; so are the two that follow.
    hits: [u64; 2],
    log_loss: [f64; 2],
    reliability: [Reliability; 2],
    set_reliability: Reliability,
    errors: Median,
    /// Forecast, came, both.
    set: [u64; 3],
    warmings: Vec<Warming>,
    /// For each path scored, when its latest call was.
    latest_us: HashMap<u64, i64>,
    horizon_ms: f32,
}

impl<P: Predict> Contender<P> {
    fn new(method: P, terms: Terms) -> Self {
        let rule = Rule { cost_ratio: terms.cost_ratio, horizon_ms: terms.horizon_us as f32 / 1000.0 };
        let thresholds = std::iter::once(rule.threshold()).chain(THRESHOLDS);
        Self {
            method,
            calls: 0,
            outcomes: 0,
            hits: [0; 2],
            log_loss: [0.0; 2],
            reliability: Default::default(),
            set_reliability: Reliability::default(),
            errors: Median::default(),
            set: [0; 3],
            warmings: thresholds.map(|threshold| Warming::new(threshold, terms)).collect(),
            latest_us: HashMap::new(),
            horizon_ms: rule.horizon_ms,
        }
    }

    /// Scores what is known before the event against the event, lets the method see it, and takes its forecasts.
    fn score(&mut self, trace: &Trace, index: u32, event: Event<'_>) {
        match event {
            Event::Call { path, callee, at_us, .. } => {
                if index > 0 {
                    self.score_next(path, Some(callee), at_us);
                }
                let cold = trace.calls.get(index as usize).is_some_and(|call| call.cold.unwrap_or(true));
                self.warmings.iter_mut().for_each(|warming| warming.call(path, callee, at_us, cold, index == 0));
                self.latest_us.insert(path, at_us);
                self.method.observe(event);
                self.score_set(trace, index, path, at_us);
            }
            Event::Start { path, at_us, .. } | Event::Answer { path, at_us, .. } => {
                self.method.observe(event);
                let expected = self.method.within(path, at_us, self.horizon_ms);
                self.warmings.iter_mut().for_each(|warming| warming.forecast(path, at_us, &expected));
            }
            Event::End { path, .. } => {
                self.score_next(path, None, 0);
                self.warmings.iter_mut().for_each(|warming| warming.end(path));
                self.latest_us.remove(&path);
                self.method.observe(event);
            }
        }
    }

    fn score_next(&mut self, path: u64, callee: Option<&str>, at_us: i64) {
        self.outcomes += 1;
        self.calls += u64::from(callee.is_some());
        for (slot, as_of) in [AsOf::Call, AsOf::Latest].into_iter().enumerate() {
            let chance = f64::from(self.method.chance(path, as_of, callee));
            self.log_loss[slot] -= chance.max(1e-9).ln();
            let Some(callee) = callee else { continue };
            let guess = self.method.next(path, as_of);
            let hit = guess.callee.as_deref() == Some(callee);
            self.hits[slot] += u64::from(hit);
            self.reliability[slot].add(guess.probability, hit);
            if let (AsOf::Call, Some(after_ms), Some(latest_us)) = (as_of, guess.after_ms, self.latest_us.get(&path)) {
                self.errors.add(f64::from((at_us.saturating_sub(*latest_us) as f32 / 1000.0 - after_ms).abs()));
            }
        }
    }

    fn score_set(&mut self, trace: &Trace, index: u32, path: u64, at_us: i64) {
        let expected = self.method.within(path, at_us, self.horizon_ms);
        self.warmings.iter_mut().for_each(|warming| warming.forecast(path, at_us, &expected));
        let until_us = at_us.saturating_add((self.horizon_ms * 1000.0) as i64);
        let later = trace.calls.get(index as usize + 1..).unwrap_or_default();
        let mut came: Vec<&str> =
            later.iter().take_while(|call| call.at_us <= until_us).map(|call| &*call.callee).collect();
        came.sort_unstable();
        came.dedup();
        self.set[1] += came.len() as u64;
        for expected in &expected {
            let hit = came.binary_search(&&*expected.callee).is_ok();
            self.set_reliability.add(expected.probability, hit);
            if expected.probability >= FORECAST {
                self.set[0] += 1;
                self.set[2] += u64::from(hit);
            }
        }
    }

    fn scores(&self) -> Scores {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let outcomes = self.outcomes.max(1) as f64;
        let mut warmed = self.warmings.iter().map(Warming::result);
        let decision = warmed.next().unwrap_or_default();
        let [at_call, standing] = &self.reliability;
        Scores {
            next_accuracy: share(self.hits[1], self.calls),
            at_call_accuracy: share(self.hits[0], self.calls),
            set_precision: share(self.set[2], self.set[0]),
            set_recall: share(self.set[2], self.set[1]),
            log_loss: self.log_loss[1] / outcomes,
            at_call_log_loss: self.log_loss[0] / outcomes,
            ece: standing.ece(),
            at_call_ece: at_call.ece(),
            ece_by_chance: standing.chance_ece(),
            time_mae_ms: self.errors.get(),
            lead_ms: decision.lead_ms,
            cold_starts_avoided: decision.cold_starts_avoided,
            wasted_seconds: decision.wasted_seconds,
            decision,
            thresholds: warmed.collect(),
            reliability: standing.table(),
            set_reliability: self.set_reliability.table(),
        }
    }
}

/// Scores a file. `broken` is told of lines that cannot be read.
pub fn file(path: &Path, settings: &Settings, mut broken: impl FnMut(u64, &str)) -> io::Result<Report> {
    // The split needs the number of lines: a file is read twice, standard input is kept in memory.
    let mut kept = Vec::new();
    let from_stdin = path.as_os_str() == "-";
    if from_stdin {
        input::open(path)?.read_to_end(&mut kept)?;
    }
    let reader = || -> io::Result<Box<dyn BufRead + '_>> {
        if from_stdin { Ok(Box::new(kept.as_slice())) } else { Ok(input::open(path)?) }
    };
    let lines = Cell::new(0);
    let counted = |number, _: &str| {
        lines.set(number);
        Ok(())
    };
    input::lines(reader()?, input::MAX_LINE, counted, |number, _| lines.set(number));
    let mut report = read(reader()?, (lines.get() as f64 * f64::from(settings.train)) as u64, settings, &mut broken);
    report.file = path.display().to_string();
    Ok(report)
}

fn read(reader: impl BufRead, train: u64, settings: &Settings, broken: impl FnMut(u64, &str)) -> Report {
    let mut run = Run::new(settings);
    match settings.shuffle {
        None => input::traces(reader, settings.format, |number, trace| run.take(trace, number <= train), broken),
        Some(seed) => {
            let traces = shuffled(reader, settings.format, seed, broken);
            let train = (traces.len() as f64 * f64::from(settings.train)) as usize;
            traces.into_iter().enumerate().for_each(|(place, trace)| run.take(trace, place < train));
        }
    }
    run.report(settings)
}

/// Between the starts of paths that were shuffled, beyond the length of the one before, in µs.
const APART_US: i64 = 60_000_000;

/// The paths of a stream, all of them in memory, in an order that `seed` decides, one after the other. So published
/// evaluations split theirs. It is kinder than time: what is scored is learned from before and after, and drift is in
/// both parts alike. Which sandboxes would have been warm is lost with the times.
fn shuffled(reader: impl BufRead, format: Format, seed: u64, broken: impl FnMut(u64, &str)) -> Vec<Trace> {
    let mut ranked = Vec::new();
    input::traces(reader, format, |number, trace| ranked.push((mix(seed, number), trace)), broken);
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut begin_us = 0_i64;
    let traces = ranked.into_iter().map(|(_, mut trace)| {
        let by_us = trace.calls.first().map_or(0, |call| begin_us.saturating_sub(call.at_us));
        for call in &mut trace.calls {
            call.at_us = call.at_us.saturating_add(by_us);
            for at_us in [&mut call.started_us, &mut call.served_us, &mut call.ended_us].into_iter().flatten() {
                *at_us = at_us.saturating_add(by_us);
            }
            begin_us = begin_us.max(call.ended_us.or(call.started_us).unwrap_or(call.at_us));
        }
        begin_us = begin_us.saturating_add(APART_US);
        trace
    });
    traces.collect()
}

/// A file on its way through all methods.
struct Run {
    field: Field,
    online: bool,
    gaps: Median,
    /// Learned from, scored.
    paths: [u64; 2],
    merge: Merge,
}

impl Run {
    fn new(settings: &Settings) -> Self {
        let (field, merge) = (Field::new(settings), Merge::default());
        Self { field, online: settings.online, gaps: Median::default(), paths: [0; 2], merge }
    }

    fn take(&mut self, trace: Trace, learn: bool) {
        let field = &mut self.field;
        if learn {
            self.paths[0] += 1;
            let times = trace.calls.iter().map(|call| call.at_us);
            let pairs = times.clone().zip(times.skip(1));
            pairs.for_each(|(before, after)| self.gaps.add(after.saturating_sub(before) as f64 / 1000.0));
            self.merge.push(trace, |_, _, event| field.observe(event));
            return;
        }
        if self.paths[1] == 0 {
            self.merge.finish(|_, _, event| field.observe(event));
            if !self.online {
                field.freeze();
            }
        }
        self.paths[1] += 1;
        self.merge.push(trace, |trace, index, event| field.score(trace, index, event));
    }

    fn report(mut self, settings: &Settings) -> Report {
        let field = &mut self.field;
        if self.paths[1] > 0 {
            self.merge.finish(|trace, index, event| field.score(trace, index, event));
        }
        Report {
            file: String::new(),
            train: self.paths[0],
            test: self.paths[1],
            calls: field.forecaster.calls,
            cold_starts: field.forecaster.warmings.first().map_or(0, Warming::cold),
            online: settings.online,
            shuffle: settings.shuffle,
            horizon: settings.horizon,
            time_mad_ms: self.gaps.deviation(self.gaps.get()),
            scores: field.forecaster.scores(),
            baselines: field.baselines(),
        }
    }
}

/// All methods, side by side on the same events.
#[derive(Debug)]
struct Field {
    forecaster: Contender<Forecaster>,
    edges: Contender<Counting>,
    sets: Contender<Counting>,
    frequent: Contender<Counting>,
    keep_alive: Contender<KeepAlive>,
    keeping: Keeping,
}

impl Field {
    fn new(settings: &Settings) -> Self {
        let micros = |seconds: f32| (f64::from(seconds) * 1e6) as i64;
        let terms = Terms {
            horizon_us: micros(settings.horizon),
            warm_up_us: micros(settings.warm_up),
            cost_ratio: settings.cost_ratio,
        };
        Self {
            forecaster: Contender::new(Forecaster::default(), terms),
            edges: Contender::new(Counting::edges(), terms),
            sets: Contender::new(Counting::sets(), terms),
            frequent: Contender::new(Counting::most_frequent(), terms),
            keep_alive: Contender::new(KeepAlive::new(settings.keep_alive), terms),
            keeping: Keeping::new(micros(settings.keep_alive), terms),
        }
    }

    fn freeze(&mut self) {
        self.forecaster.method.freeze(true);
        self.edges.method.freeze();
        self.sets.method.freeze();
        self.frequent.method.freeze();
    }

    fn observe(&mut self, event: Event<'_>) {
        self.forecaster.method.observe(event);
        self.edges.method.observe(event);
        self.sets.method.observe(event);
        self.frequent.method.observe(event);
        self.keep_alive.method.observe(event);
    }

    fn score(&mut self, trace: &Trace, index: u32, event: Event<'_>) {
        if let (Event::Call { at_us, .. }, Some(call)) = (event, trace.calls.get(index as usize)) {
            let done_us = call.ended_us.or(call.started_us).unwrap_or(at_us);
            self.keeping.call(&call.callee, at_us, done_us, call.cold.unwrap_or(true), index == 0);
        }
        self.forecaster.score(trace, index, event);
        self.edges.score(trace, index, event);
        self.sets.score(trace, index, event);
        self.frequent.score(trace, index, event);
        self.keep_alive.score(trace, index, event);
    }

    fn baselines(&self) -> Baselines {
        let mut keep_alive = self.keep_alive.scores();
        keep_alive.decision = self.keeping.result();
        keep_alive.thresholds = Vec::new();
        keep_alive.lead_ms = 0.0;
        keep_alive.cold_starts_avoided = keep_alive.decision.cold_starts_avoided;
        keep_alive.wasted_seconds = keep_alive.decision.wasted_seconds;
        Baselines {
            edge_counts: self.edges.scores(),
            set_counts: self.sets.scores(),
            most_frequent: self.frequent.scores(),
            keep_alive,
        }
    }
}
