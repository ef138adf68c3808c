//! The next call, by experts that are weighed against each other ([`weigh`]).
//!
//! Seven experts count what came next in a context (the latest callees, the set of callees so far, what has happened to
//! each of these, the chain of callers), each falling back on a shorter context where its own is thin. An eighth lets
//! the callees race in time ([`race`]) and counts in which order those come that have the same cause: whatever else has
//! happened in the path, that order follows its own odds, and is learned soon where it is looked at alone. The weights
//! follow the gradient of the log loss, call by call, so an expert that misleads in some place loses its say there.

use serde::{Deserialize, Serialize};

use super::{
    counts::{Counts, END, Fun, NOVEL},
    race::{self, Outcome, RUNNERS},
    state::{CONTEXTS, State},
    table::{Table, mix},
    timing::{Estimate, Timing},
    weigh::{self, DEGREES, Said, Weights, degree},
};

/// Outcomes that are weighed: the end, the novel, and callees.
pub(super) const OUTCOMES: usize = 14;
/// Experts.
pub(super) const EXPERTS: usize = 8;
const RACE: usize = EXPERTS - 1;
/// Contexts remembered.
const MEMORY: usize = 1 << 16;
/// What a shorter context counts for in a longer one, in observations.
const BACK_OFF: f32 = 0.5;
/// What the race counts for in the order of those that have the same cause, in observations.
const RACE_BACK_OFF: f32 = 4.0;
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
    funs: [Fun; OUTCOMES],
    chances: [f32; OUTCOMES],
    said: Said,
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
        self.funs.iter().copied().zip(self.chances).take(usize::from(self.said.used))
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
    families: [Weights; 6],
    /// The same within a family, for just after a call and later.
    within: [Weights; 2],
}

impl Model {
    pub(super) fn new() -> Self {
        let families = Weights::new([0.0, 0.0, 0.04, 0.09, 0.26, 0.3, 0.04, 0.43]);
        let within = Weights::new([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.0, 0.8]);
        Self {
            contexts: Table::new(MEMORY),
            families: std::array::from_fn(|_| families.clone()),
            within: std::array::from_fn(|_| within.clone()),
        }
    }

    /// What may come next in a path that stands at `state`, at `now_us`.
    pub(super) fn outlook(&self, timing: &Timing, state: &State, now_us: i64) -> Outlook {
        let keys = state.contexts();
        let counts: [Option<&Counts>; CONTEXTS] = keys.map(|key| self.contexts.get(key));
        let later = now_us > state.called_us;
        let mut outlook = Outlook {
            funs: [END; OUTCOMES],
            chances: [0.0; OUTCOMES],
            said: Said {
                used: 2,
                chances: [[0.0; OUTCOMES]; EXPERTS],
                degrees: [DEGREES as u8 - 1; EXPERTS],
                families: [0; OUTCOMES],
            },
            place: 3 * u8::from(later),
            evidence: 0.0,
            when: None,
        };
        outlook.funs[1] = NOVEL;
        for context in CANDIDATES {
            if context == 0 && outlook.said.used > 4 {
                break;
            }
            for &(fun, _) in counts[context].map(Counts::seen).unwrap_or_default() {
                if usize::from(outlook.said.used) < OUTCOMES && !outlook.has(fun) {
                    outlook.funs[usize::from(outlook.said.used)] = fun;
                    outlook.said.used += 1;
                }
            }
        }
        let used = usize::from(outlook.said.used);
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
            outlook.said.degrees[expert] = degree(total);
            if total > 0.0 && (context == 4 || outlook.evidence == 0.0) {
                outlook.evidence = total;
            }
            for index in 0..used {
                let count = counts[context].map_or(0.0, |counts| counts.of(outlook.funs[index]));
                chances[expert][index] = (count + BACK_OFF * lower[index]) / (total + BACK_OFF);
            }
        }
        chances[RACE] = outlook.race(&self.contexts, timing, state, now_us, &chances);
        outlook.said.chances = chances;
        let [families, within] = [&self.families[usize::from(outlook.place)], &self.within[usize::from(later)]];
        outlook.chances = weigh::weigh(&outlook.said, families, within);
        outlook
    }

    /// Learns what came after an outlook: moves the weights.
    pub(super) fn learn_weights(&mut self, outlook: &Outlook, next: Fun) {
        let place = usize::from(outlook.place);
        let (families, within) = (&mut self.families[place], &mut self.within[place / 3]);
        weigh::learn(&outlook.said, &outlook.chances, outlook.position(next), families, within);
    }

    /// Learns what came after the latest outlook: counts it within its family.
    pub(super) fn learn_order(&mut self, outlook: &Outlook, next: Fun) {
        let family = outlook.said.families[outlook.position(next)];
        if family != 0 {
            self.contexts.touch(family, Counts::default).learn(next);
        }
    }

    /// Learns what came next after `state`: counts it.
    pub(super) fn learn_counts(&mut self, state: &State, next: Fun) {
        for key in state.contexts() {
            self.contexts.touch(key, Counts::default).learn(next);
        }
    }
}

impl Outlook {
    /// Lets the likeliest callees race; the end and the novel keep their share. Those with the same cause are a family:
    /// of what it has won together, each gets what it was counted to come first.
    fn race(
        &mut self,
        contexts: &Table<Counts>,
        timing: &Timing,
        state: &State,
        now_us: i64,
        chances: &[[f32; OUTCOMES]; EXPERTS],
    ) -> [f32; OUTCOMES] {
        let richest = chances[RICHEST];
        let used = usize::from(self.said.used);
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
        if count == 1 {
            return chances;
        }
        let share: f32 = runners.iter().take(count).map(|runner| richest[runner.0]).sum();
        for (&(index, estimate), mut chance) in runners.iter().zip(first).take(count) {
            let alike = || (0..count).filter(|&other| estimate.cause != 0 && runners[other].1.cause == estimate.cause);
            if alike().count() > 1 {
                // Who is in it tells two moments apart: some of a family may have come before.
                let members = alike().map(|other| mix(21, self.funs[runners[other].0])).fold(0, u64::wrapping_add);
                let family = mix(estimate.cause, members);
                self.said.families[index] = family;
                let (counts, won) = (contexts.get(family), alike().map(|other| first[other]).sum::<f32>());
                let total = counts.map_or(0.0, Counts::total);
                let came = counts.map_or(0.0, |counts| counts.of(self.funs[index]));
                chance = (won * came + RACE_BACK_OFF * chance) / (total + RACE_BACK_OFF);
            }
            chances[index] = 0.98 * chance * share + 0.02 * richest[index];
        }
        chances
    }
}
