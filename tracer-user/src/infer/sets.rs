//! How probable each set of calls is, asked one call at a time.
//!
//! The probability of a set is a mixture of how often the whole set was seen and of how often each kind of call was
//! seen each number of times. Steps telescope: the probabilities of the steps to a set, and of the stop there,
//! multiply to the probability of the set, in whatever order its calls came.

use std::collections::BTreeMap;

use super::model::Kind;

/// A set of calls, by how many there are of each kind: a state of [`Sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set(u32);

impl Set {
    /// No call yet.
    pub const EMPTY: Self = Self(0);

    pub fn index(self) -> u64 {
        u64::from(self.0)
    }
}

/// Calls of one kind are counted up to here; more are as many.
pub(super) const MOST_OF_A_KIND: u16 = 48;
/// States that are kept; beyond them a set is not told from the one before.
const MOST_STATES: usize = 8192;
/// Probability that a call of a kind never seen is made at all, and of each more of a kind than was ever seen.
const NEW: f64 = 1e-4;

#[derive(Clone, Debug)]
struct State {
    set: Vec<(Kind, u16)>,
    /// ln probability of this set or a larger one; of this set.
    reach: f64,
    exact: f64,
    next: Vec<(Kind, u32)>,
}

/// The sets of one kind of invocation.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    /// Whole sets and their share.
    seen: Vec<(Vec<(Kind, u16)>, f64)>,
    /// Share of invocations with at least so many calls of a kind.
    tails: BTreeMap<Kind, Vec<f64>>,
    /// Weight of the second half of the mixture.
    apart: f64,
    states: Vec<State>,
}

impl Sets {
    pub fn of(counts: &BTreeMap<Vec<(Kind, u16)>, f64>) -> Self {
        let total = counts.values().sum::<f64>().max(1e-9);
        let once = counts.values().filter(|count| **count < 1.5).count() as f64;
        let mut tails = BTreeMap::<Kind, Vec<f64>>::new();
        for (set, count) in counts {
            for (kind, times) in set {
                let tail = tails.entry(*kind).or_default();
                let length = tail.len().max(usize::from(*times));
                tail.resize(length, 0.0);
                tail.iter_mut().take(usize::from(*times)).for_each(|share| *share += count / total);
            }
        }
        let mut sets = Self {
            seen: counts.iter().map(|(set, count)| (set.clone(), count / total)).collect(),
            tails,
            apart: ((once + 0.5) / (total + 1.0)).clamp(1e-4, 0.5),
            states: Vec::new(),
        };
        // The most probable first: where there are very many sets, the rest is left to the other half.
        sets.seen.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sets.seen.truncate(256);
        sets.add(Vec::new());
        sets
    }

    fn add(&mut self, set: Vec<(Kind, u16)>) -> u32 {
        let count = |other: &[(Kind, u16)], kind: Kind| other.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n);
        let holds = |other: &[(Kind, u16)]| set.iter().all(|(kind, times)| count(other, *kind) >= *times);
        let (mut reach, mut exact) = (0.0, 0.0);
        for (other, share) in &self.seen {
            if holds(other) {
                reach += share;
                if *other == set {
                    exact += share;
                }
            }
        }
        let (mut reach_apart, mut exact_apart) = (1.0, 1.0);
        for (kind, times) in &set {
            let (reach, exact) = match self.tails.get(kind) {
                Some(tail) => {
                    (at_least(tail, *times), at_least(tail, *times) - at_least(tail, times.saturating_add(1)))
                }
                None => (NEW.powi(i32::from(*times)), NEW.powi(i32::from(*times))),
            };
            reach_apart *= reach;
            exact_apart *= exact.max(1e-300);
        }
        for (_, tail) in self.tails.iter().filter(|(kind, _)| count(&set, **kind) == 0) {
            exact_apart *= 1.0 - at_least(tail, 1);
        }
        let mix = |whole: f64, apart: f64| ((1.0 - self.apart) * whole + self.apart * apart).max(1e-300).ln();
        let state = State { reach: mix(reach, reach_apart), exact: mix(exact, exact_apart), set, next: Vec::new() };
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    /// ln probability of one more call of a kind, and the set with it.
    pub fn step(&mut self, from: Set, kind: Kind) -> (f64, Set) {
        let Some(state) = self.states.get(from.0 as usize) else { return (NEW.ln(), from) };
        let reach = state.reach;
        let next = match state.next.iter().find(|(known, _)| *known == kind) {
            Some((_, next)) => *next,
            None => {
                let mut set = state.set.clone();
                match set.binary_search_by_key(&kind, |(kind, _)| *kind) {
                    Ok(at) => {
                        if let Some((_, times)) = set.get_mut(at) {
                            *times = times.saturating_add(1).min(MOST_OF_A_KIND);
                        }
                    }
                    Err(at) => set.insert(at, (kind, 1)),
                }
                // Another order of the same calls has been here, or there are as many as are counted.
                let known = self.states.iter().position(|state| state.set == set).map(|at| at as u32);
                let next = match known {
                    Some(next) => next,
                    None if self.states.len() >= MOST_STATES => return (NEW.ln(), from),
                    None => self.add(set),
                };
                if let Some(state) = self.states.get_mut(from.0 as usize) {
                    state.next.push((kind, next));
                }
                next
            }
        };
        let step = if next == from.0 {
            NEW.ln()
        } else {
            self.states.get(next as usize).map_or(NEW.ln(), |s| s.reach - reach)
        };
        (step, Set(next))
    }

    /// ln probability of no more calls.
    pub fn stop(&self, at: Set) -> f64 {
        self.states.get(at.0 as usize).map_or(0.0, |state| state.exact - state.reach)
    }
}

/// Share with at least so many; beyond what was seen, each more is improbable.
fn at_least(tail: &[f64], times: u16) -> f64 {
    let times = usize::from(times);
    match times.checked_sub(1) {
        None => 1.0,
        // Nothing is certain, or an invocation that lacks one call could not be told from an impossible one.
        Some(at) => match tail.get(at) {
            Some(share) => share.min(1.0 - NEW),
            None => tail.last().copied().unwrap_or(1.0).min(1.0 - NEW) * NEW.powi((times - tail.len()) as i32),
        },
    }
}
