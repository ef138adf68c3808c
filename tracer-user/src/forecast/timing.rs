//! When a callee comes: the delays between what has happened in a path and the call.
//!
//! For each callee the delays from every earlier event of the path are kept: from each function's being called, from its
//! start (warm and cold apart, since a cold start slows what follows) and from its answer. Of the events that a path has
//! seen, the one whose delay varies least says when the callee comes. That finds the caller without being told: the
//! delay from the caller's start is nearly constant, that from anything else carries somebody's queue.

use serde::{Deserialize, Serialize};

use super::{
    counts::Fun,
    delays::Delays,
    state::{Moment, State},
    table::{Table, mix},
};

/// Functions whose delays are kept.
const FUNCTIONS: usize = 1024;
/// Anchors kept for each callee.
const ANCHORS: usize = 40;
/// Callees that are followed up for each function.
const FOLLOWERS: usize = 24;
/// Samples that an estimate takes into a race.
pub(super) const SAMPLES: usize = 24;

/// An event of a path from which delays are counted.
#[derive(Debug, Serialize, Deserialize)]
struct Anchor {
    of: Fun,
    moment: Moment,
    /// How often it was followed by the callee.
    count: u32,
    delays: Delays,
    /// The spread of the delays when the anchors were last put in order, in ms.
    spread: f32,
}

/// The event that seems to cause the call: it nearly always comes before it, and nothing else is as regular.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cause {
    of: Fun,
    /// An answer; else a start.
    answer: bool,
    /// The least delay from it, in ms.
    least: f32,
    spread: f32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Function {
    /// Calls to it.
    count: u32,
    /// Those of the least spread first, as of the last time they were put in order.
    anchors: Vec<Anchor>,
    cause: Option<Cause>,
    /// Callees that came later in the same path, the share of paths in which they did, and of how many.
    followers: Vec<Follower>,
}

/// A callee that comes after a function in some paths.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Follower {
    pub(super) callee: Fun,
    /// The share of paths in which it came, of late.
    pub(super) share: f32,
    /// Paths that the share rests on, at most 1000.
    pub(super) paths: f32,
}

/// Delays of all functions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Timing {
    functions: Table<Function>,
}

/// When a callee may come, from now, in ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    samples: [f32; SAMPLES],
    used: u8,
    /// The share of past delays that are not yet outlived: 1 just after the anchor, 0 when the callee is overdue.
    pub(super) alive: f32,
    /// Delays that the estimate rests on.
    pub(super) evidence: u32,
    /// What seems to cause the call has happened.
    pub(super) caused: bool,
    /// What seems to cause the call, and in which way it has happened, as a hash; 0 if nothing does.
    pub(super) cause: u64,
}

impl Estimate {
    /// No time at all.
    pub(super) const fn none() -> Self {
        Self { samples: [0.0; SAMPLES], used: 0, alive: 0.0, evidence: 0, caused: false, cause: 0 }
    }

    /// These times, at most [`SAMPLES`].
    #[cfg(test)]
    pub(super) fn of(times: &[f32]) -> Self {
        let mut estimate = Self { used: times.len() as u8, ..Self::none() };
        estimate.samples[..times.len()].copy_from_slice(times);
        estimate
    }

    /// In order of size.
    pub(super) fn samples(&self) -> &[f32] {
        self.samples.get(..usize::from(self.used)).unwrap_or_default()
    }

    /// The time, from now in ms, before which it comes with probability `share`.
    pub(super) fn quantile(&self, share: f32) -> f32 {
        let samples = self.samples();
        let place = share * samples.len().saturating_sub(1) as f32;
        let at = |index: usize| samples.get(index).or(samples.last()).copied().unwrap_or(0.0);
        let (low, high) = (at(place as usize), at(place as usize + 1));
        low + (high - low) * place.fract()
    }

    /// The median, from now in ms.
    pub(super) fn expected(&self) -> f32 {
        self.quantile(0.5).max(0.0)
    }

    /// What 80 % lie within, from now in ms.
    pub(super) fn interval(&self) -> [f32; 2] {
        [self.quantile(0.1).max(0.0), self.quantile(0.9).max(0.0)]
    }

    /// The probability that it comes within `horizon` ms, if it comes.
    pub(super) fn within(&self, horizon: f32) -> f32 {
        let samples = self.samples();
        samples.partition_point(|&sample| sample <= horizon) as f32 / samples.len().max(1) as f32
    }
}

impl Timing {
    pub(super) fn new() -> Self {
        Self { functions: Table::new(FUNCTIONS) }
    }

    /// Learns that `callee` was called at `now_us` in a path that stood at `state`.
    pub(super) fn learn_call(&mut self, state: &State, callee: Fun, now_us: i64) {
        let function = self.functions.touch(callee, Function::default);
        function.count += 1;
        if function.count >= 1 << 14 {
            function.count /= 2;
            function.anchors.iter_mut().for_each(|anchor| anchor.count /= 2);
        }
        for seen in state.seen() {
            for (moment, at_us) in seen.moments() {
                let delay = now_us.saturating_sub(at_us) as f32 / 1000.0;
                function.learn(seen.fun, moment, delay);
            }
        }
        // Often while little is known, then now and then.
        if function.count < 16 || function.count.is_multiple_of(8) {
            function.sort();
            function.cause = function.find_cause();
        }
    }

    /// Learns from a path that ended which functions were followed by which.
    pub(super) fn learn_end(&mut self, state: &State) {
        for seen in state.seen() {
            let function = self.functions.touch(seen.fun, Function::default);
            for follower in &mut function.followers {
                let came = state.find(follower.callee).is_some_and(|later| later.order > seen.order);
                follower.paths = (follower.paths + 1.0).min(1000.0);
                follower.share += (f32::from(u8::from(came)) - follower.share) / follower.paths;
            }
            for later in state.seen().filter(|later| later.order > seen.order) {
                if function.followers.iter().all(|follower| follower.callee != later.fun) {
                    if function.followers.len() >= FOLLOWERS {
                        let rarest =
                            function.followers.iter().enumerate().min_by(|a, b| a.1.share.total_cmp(&b.1.share));
                        let Some((index, _)) = rarest.filter(|(_, rarest)| rarest.share < 0.1) else { continue };
                        function.followers.swap_remove(index);
                    }
                    function.followers.push(Follower { callee: later.fun, share: 1.0, paths: 1.0 });
                }
            }
        }
    }

    /// The callees that come after a function.
    pub(super) fn followers(&self, fun: Fun) -> &[Follower] {
        self.functions.get(fun).map(|function| &*function.followers).unwrap_or_default()
    }

    /// When `callee` comes in a path that stands at `state`, at `now_us`. `None` if no delay to it is known.
    pub(super) fn estimate(&self, state: &State, callee: Fun, now_us: i64) -> Option<Estimate> {
        let function = self.functions.get(callee)?;
        let (anchor, at_us) = function.anchors.iter().find_map(|anchor| {
            let at_us = state.find(anchor.of)?.at(anchor.moment)?;
            Some((anchor, at_us))
        })?;
        // If what causes the call has not happened, the call is further off than the delay from the cause.
        let mut floor = 0.0;
        let (mut caused, mut by) = (false, 0);
        if let Some(cause) = function.cause {
            let seen = state.find(cause.of);
            caused = seen.is_some_and(|seen| seen.has(cause.answer));
            let cold = caused && seen.is_some_and(|seen| seen.at(Moment::Cold).is_some());
            by = mix(mix(20, cause.of), u64::from(caused) + u64::from(cold));
            if !caused && cause.spread < anchor.spread {
                floor = cause.least;
            }
        }
        let elapsed = now_us.saturating_sub(at_us) as f32 / 1000.0;
        Some(Estimate { caused, cause: by, ..remaining(&anchor.delays, elapsed, floor) })
    }
}

/// What is left of a delay after `elapsed` ms, knowing that at least `floor` ms are left.
fn remaining(delays: &Delays, elapsed: f32, floor: f32) -> Estimate {
    let sorted = delays.sorted();
    let outlived = sorted.partition_point(|&delay| delay < elapsed + floor);
    let left = sorted.get(outlived..).unwrap_or_default();
    let mut estimate = Estimate {
        samples: [0.0; SAMPLES],
        used: SAMPLES as u8,
        alive: delays.alive(elapsed),
        evidence: delays.len() as u32,
        caused: false,
        cause: 0,
    };
    if left.is_empty() {
        // Overdue: nothing in memory took so long. It is taken to come at a rate of what it usually varies by.
        let rate = (delays.quantile(0.9) - delays.quantile(0.1)).max(0.1 * elapsed).max(1.0);
        for (index, slot) in estimate.samples.iter_mut().enumerate() {
            let share = (index as f32 + 0.5) / SAMPLES as f32;
            *slot = floor - rate * (1.0 - share).ln();
        }
        return estimate;
    }
    if left.len() <= SAMPLES {
        estimate.used = left.len() as u8;
        for (slot, delay) in estimate.samples.iter_mut().zip(left) {
            *slot = delay - elapsed;
        }
        return estimate;
    }
    for (index, slot) in estimate.samples.iter_mut().enumerate() {
        let place = (2 * index + 1) * left.len() / (2 * SAMPLES);
        *slot = left.get(place).copied().unwrap_or(0.0) - elapsed;
    }
    estimate
}

impl Function {
    fn learn(&mut self, of: Fun, moment: Moment, delay: f32) {
        let place = self.anchors.iter().position(|anchor| anchor.of == of && anchor.moment == moment);
        let index = place.unwrap_or_else(|| {
            if self.anchors.len() >= ANCHORS {
                // The widest of those that had a chance to show.
                self.sort();
                self.anchors.pop();
            }
            self.anchors.push(Anchor { of, moment, count: 0, delays: Delays::default(), spread: f32::MAX });
            self.anchors.len() - 1
        });
        if let Some(anchor) = self.anchors.get_mut(index) {
            anchor.count += 1;
            anchor.delays.learn(delay);
        }
    }

    fn sort(&mut self) {
        self.anchors.iter_mut().for_each(|anchor| anchor.spread = anchor.delays.spread());
        self.anchors.sort_by(|a, b| a.spread.total_cmp(&b.spread));
    }

    fn find_cause(&self) -> Option<Cause> {
        let mut best: Option<Cause> = None;
        for anchor in self.anchors.iter().filter(|anchor| anchor.moment != Moment::Called && anchor.delays.len() >= 8) {
            let answer = anchor.moment == Moment::Answered;
            let alike = self.anchors.iter().filter(|other| {
                other.of == anchor.of && other.moment != Moment::Called && (other.moment == Moment::Answered) == answer
            });
            let count: u32 = alike.clone().map(|other| other.count).sum();
            let least = alike.map(|other| other.delays.quantile(0.02)).fold(f32::INFINITY, f32::min);
            let spread = anchor.spread;
            if count * 10 >= self.count * 9 && best.is_none_or(|best| spread < best.spread) {
                best = Some(Cause { of: anchor.of, answer, least, spread });
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(samples: impl IntoIterator<Item = f32>) -> Delays {
        let mut delays = Delays::default();
        samples.into_iter().for_each(|sample| delays.learn(sample));
        delays
    }

    #[test]
    fn what_is_outlived_is_left_out() {
        let delays = delays([100.0, 200.0, 300.0, 400.0]);
        let estimate = remaining(&delays, 250.0, 0.0);
        assert_eq!(estimate.samples(), [50.0, 150.0]);
        assert_eq!(estimate.alive, 0.5);
        assert_eq!(remaining(&delays, 250.0, 100.0).samples(), [150.0]);
    }

    #[test]
    fn overdue_still_gives_a_time() {
        let estimate = remaining(&delays([100.0, 110.0]), 500.0, 0.0);
        assert_eq!(estimate.alive, 0.0);
        assert!(estimate.samples().is_sorted() && estimate.quantile(0.5) > 0.0);
        assert!(estimate.within(1e9) == 1.0);
    }
}
