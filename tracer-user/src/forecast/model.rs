//! The next call, by experts that are weighed against each other.
//!
//! Seven experts count what came next in a context (the latest callees, the set of callees so far, what has happened to
//! each of these, the chain of callers), each falling back on a shorter context where its own is thin. An eighth lets
//! the callees race in time ([`race`]). Their probabilities are multiplied, each to the power of a weight; the weights
//! follow the gradient of the log loss, call by call, so an expert that misleads in some place loses its say there.

use serde::{Deserialize, Serialize};

use super::{
    counts::{Counts, END, Fun, NOVEL},
    race::{self, Outcome, RUNNERS},
    state::{CONTEXTS, State},
    table::Table,
    timing::{Estimate, Timing},
};

/// Outcomes that are weighed: the end, the novel, and callees.
const OUTCOMES: usize = 14;
/// Experts.
const EXPERTS: usize = 8;
const RACE: usize = EXPERTS - 1;
/// Contexts remembered.
const MEMORY: usize = 1 << 16;
/// What a shorter context counts for in a longer one, in observations.
const BACK_OFF: f32 = 0.7;
/// The context of each expert, and the expert whose context it falls back on (`None`: the plain frequencies).
/// Contexts are positions in [`State::contexts`].
const LADDER: [(usize, Option<usize>); RACE] =
    [(1, None), (2, Some(0)), (3, Some(1)), (4, Some(0)), (5, Some(3)), (6, Some(4)), (7, Some(0))];
/// The richest expert that always speaks: what the race falls back on.
const RICHEST: usize = 5;
/// Contexts from which candidates are taken, richest first.
const CANDIDATES: [usize; CONTEXTS] = [6, 5, 4, 3, 2, 7, 1, 0];

/// What may come next in a path.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    used: u8,
    funs: [Fun; OUTCOMES],
    chances: [f32; OUTCOMES],
    logs: [[f32; OUTCOMES]; EXPERTS],
    /// Which set of weights it takes.
    place: u8,
    /// Observations behind the best context that had any.
    pub(super) evidence: f32,
    /// When the next call comes, if one comes, from now in ms: 10 %, 50 %, 90 %. `None` if no delay is known.
    pub(super) when: Option<[f32; 3]>,
}

impl Outlook {
    /// Outcomes and their probabilities, which sum to 1. [`END`] and [`NOVEL`] are the first two.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (Fun, f32)> {
        self.funs.iter().copied().zip(self.chances).take(usize::from(self.used))
    }

    /// The probability of an outcome; of one that is not listed, that of [`NOVEL`].
    pub(super) fn chance(&self, fun: Fun) -> f32 {
        self.chances.get(self.position(fun)).copied().unwrap_or(0.0)
    }

    /// The likeliest callee.
    pub(super) fn top(&self) -> Option<(Fun, f32)> {
        self.outcomes().skip(2).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
    }

    fn position(&self, fun: Fun) -> usize {
        let place = self.outcomes().position(|outcome| outcome.0 == fun);
        place.unwrap_or(1)
    }

    fn has(&self, fun: Fun) -> bool {
        self.outcomes().any(|outcome| outcome.0 == fun)
    }
}

/// Everything that is learned but the delays.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Model {
    contexts: Table<Counts>,
    /// Kept apart for just after a call and later, and for none, one or more of the likely callees having been caused.
    weights: [Weights; 6],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Weights {
    of: [f32; EXPERTS],
    steps: u32,
}

impl Weights {
    fn learn(&mut self, gradient: &[f32; EXPERTS]) {
        self.steps = self.steps.saturating_add(1);
        let rate = (0.1 / (self.steps as f32 + 20.0).sqrt()).max(0.002);
        for (weight, slope) in self.of.iter_mut().zip(gradient) {
            *weight = (*weight + rate * slope.clamp(-3.0, 3.0)).clamp(-1.0, 3.0);
        }
    }
}

impl Model {
    pub(super) fn new() -> Self {
        let start = Weights { of: [0.0, 0.0, 0.05, 0.1, 0.3, 0.35, 0.05, 0.35], steps: 0 };
        Self { contexts: Table::new(MEMORY), weights: std::array::from_fn(|_| start.clone()) }
    }

    /// What may come next in a path that stands at `state`, at `now_us`.
    pub(super) fn outlook(&self, timing: &Timing, state: &State, now_us: i64) -> Outlook {
        let keys = state.contexts();
        let counts: [Option<&Counts>; CONTEXTS] = keys.map(|key| self.contexts.get(key));
        let later = now_us > state.called_us;
        let mut outlook = Outlook {
            used: 2,
            funs: [END; OUTCOMES],
            chances: [0.0; OUTCOMES],
            logs: [[0.0; OUTCOMES]; EXPERTS],
            place: 3 * u8::from(later),
            evidence: 0.0,
            when: None,
        };
        outlook.funs[1] = NOVEL;
        for context in CANDIDATES {
            if context == 0 && outlook.used > 4 {
                break;
            }
            for &(fun, _) in counts[context].map(Counts::seen).unwrap_or_default() {
                if usize::from(outlook.used) < OUTCOMES && !outlook.has(fun) {
                    outlook.funs[usize::from(outlook.used)] = fun;
                    outlook.used += 1;
                }
            }
        }
        let used = usize::from(outlook.used);
        let mut chances = [[0.0_f32; OUTCOMES]; EXPERTS];
        let plain = counts[0];
        let total = plain.map_or(0.0, Counts::total);
        let mut base = [0.0_f32; OUTCOMES];
        for (slot, &fun) in base.iter_mut().zip(&outlook.funs).take(used) {
            let count = plain.map_or(0.0, |counts| counts.of(fun));
            *slot = (count + 0.5) / (total + 0.5 * used as f32);
        }
        for (expert, (context, lower)) in LADDER.into_iter().enumerate() {
            let lower = lower.map_or(base, |lower| chances[lower]);
            let total = counts[context].map_or(0.0, Counts::total);
            if total > 0.0 && (context == 4 || outlook.evidence == 0.0) {
                outlook.evidence = total;
            }
            for index in 0..used {
                let count = counts[context].map_or(0.0, |counts| counts.of(outlook.funs[index]));
                chances[expert][index] = (count + BACK_OFF * lower[index]) / (total + BACK_OFF);
            }
        }
        chances[RACE] = outlook.race(timing, state, now_us, &chances);
        for (logs, chances) in outlook.logs.iter_mut().zip(&chances) {
            logs.iter_mut().zip(chances).take(used).for_each(|(log, chance)| *log = chance.max(1e-6).ln());
        }
        self.weigh(&mut outlook);
        outlook
    }

    fn weigh(&self, outlook: &mut Outlook) {
        let used = usize::from(outlook.used);
        let weights = self.weights[usize::from(outlook.place)].of;
        let mut sums = [0.0_f32; OUTCOMES];
        for (weight, logs) in weights.iter().zip(&outlook.logs) {
            sums.iter_mut().zip(logs).take(used).for_each(|(sum, log)| *sum += weight * log);
        }
        let most = sums.iter().take(used).copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for (chance, sum) in outlook.chances.iter_mut().zip(sums).take(used) {
            *chance = (sum - most).exp();
            total += *chance;
        }
        outlook.chances.iter_mut().take(used).for_each(|chance| *chance /= total);
    }

    /// Learns what came after an outlook: moves the weights.
    pub(super) fn learn_weights(&mut self, outlook: &Outlook, next: Fun) {
        let truth = outlook.position(next);
        let mut gradient = [0.0_f32; EXPERTS];
        for (slope, logs) in gradient.iter_mut().zip(&outlook.logs) {
            let expected: f32 = logs.iter().zip(outlook.chances).map(|(log, chance)| log * chance).sum();
            *slope = logs[truth] - expected;
        }
        self.weights[usize::from(outlook.place)].learn(&gradient);
    }

    /// Learns what came next after `state`: counts it.
    pub(super) fn learn_counts(&mut self, state: &State, next: Fun) {
        for key in state.contexts() {
            self.contexts.touch(key, Counts::default).learn(next);
        }
    }
}

impl Outlook {
    /// Lets the likeliest callees race; the end and the novel keep their share.
    fn race(
        &mut self,
        timing: &Timing,
        state: &State,
        now_us: i64,
        chances: &[[f32; OUTCOMES]; EXPERTS],
    ) -> [f32; OUTCOMES] {
        let richest = chances[RICHEST];
        let used = usize::from(self.used);
        let mut order: [usize; OUTCOMES] = std::array::from_fn(|index| index);
        let callees = order.get_mut(2..used).unwrap_or_default();
        callees.sort_unstable_by(|&a, &b| richest[b].total_cmp(&richest[a]));
        let mut runners = [(0_usize, Estimate::none()); RUNNERS];
        let mut count = 0;
        for &index in callees.iter().take(RUNNERS) {
            // Whom neither the set nor what happened to it lets come next does not take part.
            let likely = richest[index].max(chances[RICHEST - 1][index]) > 0.004;
            if let Some(estimate) = timing.estimate(state, self.funs[index], now_us).filter(|_| likely || count == 0) {
                runners[count] = (index, estimate);
                count += 1;
            }
        }
        if count == 0 {
            return richest;
        }
        let caused = runners.iter().take(count).filter(|runner| runner.1.caused).count();
        self.place += caused.min(2) as u8;
        let estimates = runners.map(|runner| runner.1);
        let Outcome { first, when } = race::run(estimates.get(..count).unwrap_or_default());
        self.when = Some(when);
        let mut chances = richest;
        if count > 1 {
            let share: f32 = runners.iter().take(count).map(|runner| richest[runner.0]).sum();
            for (&(index, _), first) in runners.iter().zip(first).take(count) {
                chances[index] = 0.98 * first * share + 0.02 * richest[index];
            }
        }
        chances
    }
}
