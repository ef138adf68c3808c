//! The calls that a running path will probably make, with probability and lead time.
//!
//! Events go in as they happen ([`Forecaster::observe`]); a forecast can be asked for at any time
//! ([`Forecaster::forecast`]). There is no training apart: every path that runs is learned from, and what is old fades.
//! Only what has happened by the time of the forecast is used. All tables are bounded: full of hostile names they hold
//! some 60 MB, and what was longest unused makes room.

pub mod cli;
mod counts;
mod decide;
mod delays;
pub mod eval;
pub mod live;
mod merge;
mod model;
mod predict;
mod race;
mod score;
mod show;
mod state;
mod table;
mod timing;
mod warm;
mod weigh;

#[cfg(test)]
mod published;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::path::{Channel, Version};
use counts::{END, Fun, NOVEL};
pub use decide::{ForecastType, Line, Rule};
use model::{Model, Outlook};
use state::State;
use table::{Table, name_hash};
use timing::Timing;

/// Names remembered.
const NAMES: usize = 4096;
/// Observations below which a forecast says that it does not know.
const THIN: f32 = 5.0;
/// Forecasts that are remembered as handed out, for each path.
const TOLD: usize = 32;

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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Who will be called: a function or an external service.
    pub callee: Arc<str>,
    /// Nobody was ever seen to begin to work on a call to it, so it seems to be an external service.
    pub external: bool,
    /// The probability that it is called within the horizon.
    pub probability: f32,
    /// The probability that it is what the path calls next.
    pub next: f32,
    /// The time until it is called, from now, in ms: as likely to be shorter as longer. `None` if no delay is known.
    pub expected_ms: Option<f32>,
    /// The time that it takes at least and at most with 80 % probability, from now, in ms.
    pub interval_ms: Option<[f32; 2]>,
    /// False where too little was seen to stand by the numbers.
    pub known: bool,
    /// Of an external service: the connection of the last call to it, as the kernel sees it from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
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

/// As of when a path is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// Just after its latest call.
    Call,
    /// After its latest event, which may be the start or the answer of a call.
    Latest,
}

#[derive(Debug, Serialize, Deserialize)]
struct Name {
    name: Arc<str>,
    /// A sandbox was seen to begin to work on a call to it.
    started: bool,
}

#[derive(Debug)]
struct Live {
    state: State,
    /// As it was just after the latest call, and, if anything has happened since, after that.
    outlooks: [Option<Box<Outlook>>; 2],
    /// Callees that were handed out by [`Forecaster::decide`], and until when that holds, in µs since 1970.
    told: Vec<(Fun, i64)>,
}

impl Live {
    fn outlook(&self, as_of: AsOf) -> Option<&Outlook> {
        let [call, later] = &self.outlooks;
        let later = later.as_deref().filter(|_| as_of == AsOf::Latest);
        later.or(call.as_deref())
    }
}

/// What stays of a forecaster in a file.
#[derive(Serialize, Deserialize)]
struct Learned<N, M, T> {
    fntrace: Version,
    names: N,
    model: M,
    timing: T,
}

/// Learns from paths and forecasts their calls.
#[derive(Debug)]
pub struct Forecaster {
    names: Table<Name>,
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

    /// Reads what [`Self::save`] wrote, for a forecaster that follows as many paths as the default.
    ///
    /// # Errors
    ///
    /// It is not what this version writes.
    pub fn load(reader: impl Read) -> io::Result<Self> {
        let Learned { names, model, timing, .. } = serde_json::from_reader(reader)?;
        Ok(Self { names, model, timing, ..Self::default() })
    }

    /// Writes what was learned, as one JSON object. Paths that run are not part of it.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn save(&self, writer: impl Write) -> io::Result<()> {
        let (names, model, timing) = (&self.names, &self.model, &self.timing);
        Ok(serde_json::to_writer(writer, &Learned { fntrace: Version, names, model, timing })?)
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
                let Some(live) = self.live.get_mut(path) else { return };
                let Some(fun) = live.state.start(call, at_us, cold) else { return };
                if let Some(name) = self.names.get_mut(fun) {
                    name.started = true;
                }
                live.outlooks[1] = Some(Box::new(self.model.outlook(&self.timing, &live.state, live.state.now_us)));
            }
            Event::Answer { path, call, at_us } => {
                let Some(live) = self.live.get_mut(path).filter(|live| live.state.is_open(call)) else { return };
                live.state.answer(call, at_us);
                live.outlooks[1] = Some(Box::new(self.model.outlook(&self.timing, &live.state, live.state.now_us)));
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
            self.names.touch(fun, || Name { name: Arc::from(callee), started: false });
        }
        let mut live = self.live.remove(path).unwrap_or_else(|| Live {
            state: State::default(),
            outlooks: [None, None],
            told: Vec::new(),
        });
        if live.state.calls > 0 && !self.frozen {
            self.learn(&live, fun);
            self.timing.learn_call(&live.state, fun, at_us);
        }
        live.state.call(call, caller, fun, at_us);
        live.told.retain(|told| told.0 != fun);
        let now_us = live.state.now_us;
        live.outlooks = [Some(Box::new(self.model.outlook(&self.timing, &live.state, now_us))), None];
        self.live.touch(path, || live);
    }

    fn learn(&mut self, live: &Live, next: Fun) {
        for outlook in live.outlooks.iter().flatten() {
            self.model.learn_weights(outlook, next);
        }
        if let Some(latest) = live.outlook(AsOf::Latest) {
            self.model.learn_order(latest, next);
        }
        self.model.learn_counts(&live.state, next);
    }

    /// What the path calls next.
    pub fn next(&self, path: u64, as_of: AsOf) -> Option<Next> {
        let outlook = self.live.get(path)?.outlook(as_of)?;
        let top = outlook.top();
        Some(Next {
            callee: top.and_then(|top| self.names.get(top.0)).map(|name| name.name.clone()),
            probability: top.map_or(0.0, |top| top.1),
            end: outlook.chance(END),
            when_ms: outlook.when,
            known: outlook.evidence >= THIN,
        })
    }

    /// The probability that the path calls `callee` next; `None` asks for the end of the path. A callee that is not
    /// among the candidates gets what is set apart for all such.
    pub fn chance(&self, path: u64, as_of: AsOf, callee: Option<&str>) -> f32 {
        let fun = callee.map_or(END, |callee| name_hash(callee).max(NOVEL + 1));
        self.live.get(path).and_then(|live| live.outlook(as_of)).map_or(0.0, |outlook| outlook.chance(fun))
    }

    /// The calls that the path may make within `horizon_ms` from `now_us` (µs since 1970), likeliest first.
    pub fn forecast(&self, path: u64, now_us: i64, horizon_ms: f32) -> Vec<Forecast> {
        let Some(live) = self.live.get(path) else { return Vec::new() };
        self.forecast_live(live, now_us, horizon_ms).into_iter().map(|forecast| forecast.1).collect()
    }

    /// The forecasts that are worth acting on and that were not handed out before for this path, at `now_us` (µs since
    /// 1970). What is handed out holds for the rule's horizon, or until the call comes.
    pub fn decide(&mut self, path: u64, now_us: i64, rule: Rule) -> Vec<Forecast> {
        let Some(live) = self.live.get(path) else { return Vec::new() };
        let mut worth = self.forecast_live(live, now_us, rule.horizon_ms);
        worth.retain(|(fun, forecast)| {
            let told = live.told.iter().any(|&(told, until_us)| told == *fun && until_us > now_us);
            !told && rule.acts_on(forecast)
        });
        let until_us = now_us.saturating_add((rule.horizon_ms * 1000.0) as i64);
        if let Some(live) = self.live.get_mut(path) {
            live.told.retain(|told| told.1 > now_us);
            let room = TOLD.saturating_sub(live.told.len());
            live.told.extend(worth.iter().take(room).map(|&(fun, _)| (fun, until_us)));
        }
        worth.into_iter().map(|(_, forecast)| forecast).collect()
    }

    fn forecast_live(&self, live: &Live, now_us: i64, horizon_ms: f32) -> Vec<(Fun, Forecast)> {
        let state = &live.state;
        let now_us = now_us.max(state.now_us);
        let fresh;
        let latest = live.outlook(AsOf::Latest).filter(|_| now_us == state.now_us);
        let outlook = match latest {
            Some(latest) => latest,
            None => {
                fresh = self.model.outlook(&self.timing, state, now_us);
                &fresh
            }
        };
        let mut forecasts = Vec::new();
        let mut done: Vec<Fun> = Vec::with_capacity(32);
        // What was not called yet is followed up from the root, for it has the longest record. Whether something is
        // called again only its context can tell, below.
        for follower in
            self.timing.followers(state.root()).iter().filter(|follower| state.find(follower.callee).is_none())
        {
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
            let Some(name) = self.names.get(follower.callee).filter(|_| probability > 0.001) else { continue };
            forecasts.push((
                follower.callee,
                Forecast {
                    callee: name.name.clone(),
                    external: !name.started,
                    probability,
                    next,
                    expected_ms: Some(estimate.expected()),
                    interval_ms: Some(estimate.interval()),
                    known,
                    channel: None,
                },
            ));
        }
        for (fun, chance) in outlook.outcomes().skip(2) {
            if chance < 0.01 || done.contains(&fun) {
                continue;
            }
            let Some(name) = self.names.get(fun) else { continue };
            let estimate = self.timing.estimate(state, fun, now_us);
            let within = estimate.map_or(0.5, |estimate| estimate.within(horizon_ms));
            forecasts.push((
                fun,
                Forecast {
                    callee: name.name.clone(),
                    external: !name.started,
                    probability: chance * within,
                    next: chance,
                    expected_ms: estimate.map(|estimate| estimate.expected()),
                    interval_ms: estimate.map(|estimate| estimate.interval()),
                    known: outlook.evidence >= THIN
                        && estimate.is_some_and(|estimate| estimate.evidence as f32 >= THIN),
                    channel: None,
                },
            ));
        }
        forecasts
            .sort_by(|(_, a), (_, b)| b.probability.total_cmp(&a.probability).then_with(|| a.callee.cmp(&b.callee)));
        forecasts
    }
}
