//! The calls that a running path will probably make, with probability and lead time.
//!
//! Events go in as they happen ([`Forecaster::observe`]); a forecast can be asked for at any time
//! ([`Forecaster::forecast`]). There is no training apart: every path that runs is learned from, and what is old fades.
//! Only what has happened by the time of the forecast is used. All tables are bounded: full of hostile names they hold
//! some 60 MB, and what was longest unused makes room.

mod counts;
mod delays;
mod model;
mod race;
mod state;
mod table;
mod timing;

use std::sync::Arc;

use counts::{END, Fun, NOVEL};
use model::{Model, Outlook};
use state::State;
use table::{Table, name_hash};
use timing::Timing;

/// Names remembered.
const NAMES: usize = 4096;
/// Observations below which a forecast says that it does not know.
const THIN: f32 = 5.0;

/// Something that happened in a path. `path` names the path, `call` a call in it (a span id, say); both are the
/// caller's to choose. Times are µs since 1970.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A call was made. The first of a path is the root, which nobody in the path called.
    Call {
        /// The path.
        path: u64,
        /// The call.
        call: u64,
        /// The call in whose invocation this one was made, if that is known.
        caller: Option<u64>,
        /// Who is called.
        callee: &'a str,
        /// When, in µs since 1970.
        at_us: i64,
    },
    /// The callee's sandbox began to work on the call.
    Start {
        /// The path.
        path: u64,
        /// The call.
        call: u64,
        /// When, in µs since 1970.
        at_us: i64,
        /// Whether the sandbox was made for it.
        cold: bool,
    },
    /// The call was answered.
    Answer {
        /// The path.
        path: u64,
        /// The call.
        call: u64,
        /// When, in µs since 1970.
        at_us: i64,
    },
    /// The path ended. `complete` is false if calls may have been missed: then its end teaches nothing.
    End {
        /// The path.
        path: u64,
        /// Whether all of it was seen.
        complete: bool,
    },
}

/// A call that may come.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Who will be called: a function or an external service.
    pub callee: Arc<str>,
    /// The probability that it is called within the horizon.
    pub probability: f32,
    /// The probability that it is what the path calls next.
    pub next: f32,
    /// The time until it is called, from now, in ms: as likely to be shorter as longer.
    pub expected_ms: f32,
    /// The time that it takes at least and at most with 80 % probability, from now, in ms.
    pub interval_ms: [f32; 2],
    /// False where too little was seen to stand by the numbers.
    pub known: bool,
}

/// What comes next in a path.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// The likeliest callee; `None` if nothing was ever seen to follow.
    pub callee: Option<Arc<str>>,
    /// Its probability.
    pub probability: f32,
    /// The probability that the path makes no more calls.
    pub end: f32,
    /// When the next call comes, if one comes, from now in ms: 10 %, 50 % and 90 % of outcomes lie below.
    pub when_ms: Option<[f32; 3]>,
    /// False where too little was seen to stand by the numbers.
    pub known: bool,
}

#[derive(Debug)]
struct Live {
    state: State,
    /// As it was just after the latest call, and, if anything has happened since, after that.
    outlooks: [Option<Box<Outlook>>; 2],
}

/// Learns from paths and forecasts their calls.
#[derive(Debug)]
pub struct Forecaster {
    names: Table<Arc<str>>,
    live: Table<Live>,
    model: Model,
    timing: Timing,
    frozen: bool,
}

impl Default for Forecaster {
    fn default() -> Self {
        Self::new(8192)
    }
}

impl Forecaster {
    /// One that knows nothing. It follows at most `paths` paths at a time, each with up to 6 kB; beyond that the path
    /// that was quiet for longest is dropped.
    pub fn new(paths: usize) -> Self {
        Self {
            names: Table::new(NAMES),
            live: Table::new(paths),
            model: Model::new(),
            timing: Timing::new(),
            frozen: false,
        }
    }

    /// Stops learning, or goes on with it. Paths are followed either way.
    pub fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Paths that are followed now.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Takes in an event. Events of one path come in order of time; an event that fits no path is passed over.
    pub fn observe(&mut self, event: Event<'_>) {
        match event {
            Event::Call { path, call, caller, callee, at_us } => self.call(path, call, caller, callee, at_us),
            Event::Start { path, call, at_us, cold } => {
                if let Some(live) = self.live.get_mut(path)
                    && live.state.start(call, at_us, cold)
                {
                    let now_us = live.state.now_us;
                    live.outlooks[1] = Some(Box::new(self.model.outlook(&self.timing, &live.state, now_us)));
                }
            }
            Event::Answer { path, call, at_us } => {
                if let Some(live) = self.live.get_mut(path)
                    && live.state.answer(call, at_us)
                {
                    let now_us = live.state.now_us;
                    live.outlooks[1] = Some(Box::new(self.model.outlook(&self.timing, &live.state, now_us)));
                }
            }
            Event::End { path, complete } => {
                let Some(live) = self.live.remove(path) else { return };
                if complete && !self.frozen {
                    self.learn(&live, END);
                    self.timing.learn_end(&live.state);
                }
            }
        }
    }

    fn call(&mut self, path: u64, call: u64, caller: Option<u64>, callee: &str, at_us: i64) {
        // The two lowest hashes are taken.
        let fun = name_hash(callee).max(NOVEL + 1);
        if !self.frozen || self.names.get(fun).is_none() {
            self.names.touch(fun, || Arc::from(callee));
        }
        let mut live =
            self.live.remove(path).unwrap_or_else(|| Live { state: State::default(), outlooks: [None, None] });
        if live.state.calls > 0 && !self.frozen {
            self.learn(&live, fun);
            self.timing.learn_call(&live.state, fun, at_us);
        }
        live.state.call(call, caller, fun, at_us);
        let now_us = live.state.now_us;
        live.outlooks = [Some(Box::new(self.model.outlook(&self.timing, &live.state, now_us))), None];
        self.live.touch(path, || live);
    }

    fn learn(&mut self, live: &Live, next: Fun) {
        for outlook in live.outlooks.iter().flatten() {
            self.model.learn_weights(outlook, next);
        }
        self.model.learn_counts(&live.state, next);
    }

    fn name(&self, fun: Fun) -> Option<Arc<str>> {
        self.names.get(fun).cloned()
    }

    /// What the path calls next, as far as is known at the latest event of the path.
    pub fn next(&self, path: u64) -> Option<Next> {
        let live = self.live.get(path)?;
        let outlook = live.outlooks[1].as_ref().or(live.outlooks[0].as_ref())?;
        let top = outlook.top();
        Some(Next {
            callee: top.and_then(|top| self.name(top.0)),
            probability: top.map_or(0.0, |top| top.1),
            end: outlook.chance(END),
            when_ms: outlook.when,
            known: outlook.evidence >= THIN,
        })
    }

    /// The probability that the path calls `callee` next, as far as is known at its latest event; `None` asks for the
    /// end of the path. A callee that is not among the candidates gets what is set apart for all such.
    pub fn chance(&self, path: u64, callee: Option<&str>) -> f32 {
        let Some(live) = self.live.get(path) else { return 0.0 };
        let fun = callee.map_or(END, |callee| name_hash(callee).max(NOVEL + 1));
        let outlook = live.outlooks[1].as_ref().or(live.outlooks[0].as_ref());
        outlook.map_or(0.0, |outlook| outlook.chance(fun))
    }

    /// The calls that the path may make within `horizon_ms` from `now_us` (µs since 1970), likeliest first.
    pub fn forecast(&self, path: u64, now_us: i64, horizon_ms: f32) -> Vec<Forecast> {
        let Some(live) = self.live.get(path) else { return Vec::new() };
        let state = &live.state;
        let now_us = now_us.max(state.now_us);
        let fresh;
        let latest = live.outlooks[1].as_deref().or(live.outlooks[0].as_deref()).filter(|_| now_us == state.now_us);
        let outlook = match latest {
            Some(latest) => latest,
            None => {
                fresh = self.model.outlook(&self.timing, state, now_us);
                &fresh
            }
        };
        let mut forecasts = Vec::new();
        let mut done: Vec<Fun> = Vec::with_capacity(32);
        let (last, root) = (state.last(), state.root());
        // What was not called yet is followed up from the root, for it has the longest record; what was, from the
        // latest call, for only that can tell how often it comes again.
        let fresh_ones = self.timing.followers(root).iter().filter(|follower| state.find(follower.callee).is_none());
        let again = self.timing.followers(last).iter().filter(|follower| state.find(follower.callee).is_some());
        for follower in fresh_ones.chain(again) {
            done.push(follower.callee);
            let Some(estimate) = self.timing.estimate(state, follower.callee, now_us) else { continue };
            // Bayes: it has not come yet, which speaks the more against it the longer it takes.
            let comes = follower.share * estimate.alive.max(0.02);
            let comes = comes / (comes + 1.0 - follower.share).max(1e-6);
            let next = if outlook.chance(follower.callee) > outlook.chance(NOVEL) {
                outlook.chance(follower.callee)
            } else {
                0.0
            };
            let probability = (comes * estimate.within(horizon_ms)).clamp(0.0, 1.0);
            let known = estimate.evidence as f32 >= THIN && follower.paths >= THIN;
            let Some(callee) = self.name(follower.callee).filter(|_| probability > 0.001) else { continue };
            forecasts.push(Forecast {
                callee,
                probability,
                next,
                expected_ms: estimate.quantile(0.5).max(0.0),
                interval_ms: [estimate.quantile(0.1).max(0.0), estimate.quantile(0.9).max(0.0)],
                known,
            });
        }
        for (fun, chance) in outlook.outcomes().skip(2) {
            if chance < 0.01 || done.contains(&fun) {
                continue;
            }
            let Some(callee) = self.name(fun) else { continue };
            let when = outlook.when.unwrap_or([0.0, horizon_ms, f32::MAX]);
            let probability = if when[1] <= horizon_ms { chance } else { 0.5 * chance };
            forecasts.push(Forecast {
                callee,
                probability,
                next: chance,
                expected_ms: when[1],
                interval_ms: [when[0], when[2]],
                known: false,
            });
        }
        forecasts.sort_by(|a, b| b.probability.total_cmp(&a.probability).then_with(|| a.callee.cmp(&b.callee)));
        forecasts
    }
}
