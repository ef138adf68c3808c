//! The pasts of the hypotheses, as a lattice: what was merged is there once. One pass backwards gives the most probable
//! assignment and the probability of each set of calls.

use super::{Choice, Hypothesis, MOST_CHOICES, NONE, Search, Solved, ln_add};

#[derive(Clone, Copy, Debug)]
pub(super) enum Past {
    Closed {
        before: u32,
        inv: u32,
        calls: u32,
    },
    /// Two pasts with one present; the share of the first, and whether it is the better one.
    Merged {
        one: u32,
        other: u32,
        share: f64,
        first: bool,
    },
}

impl Search<'_> {
    /// Reads the lattice and begins a new one with what is live.
    pub(super) fn settle(&mut self) {
        let chosen = self.read();
        let Some(best) = chosen else { return };
        // A call that was settled is not given again, and what is live goes on from the pasts that agree.
        let keep = |hypothesis: &Hypothesis| {
            let calls = hypothesis.slots.iter().flat_map(|slot| chain(&self.calls, slot.calls));
            calls.into_iter().all(|call| self.solved.parent.get(call as usize).is_some_and(Option::is_none))
        };
        let agree: Vec<bool> =
            self.hypotheses.iter().enumerate().map(|(index, hypothesis)| index == best || keep(hypothesis)).collect();
        let mut agree = agree.into_iter();
        self.hypotheses.retain(|_| agree.next().unwrap_or(false));
        let top = self.hypotheses.iter().map(|hypothesis| hypothesis.sum).fold(f64::NEG_INFINITY, f64::max);
        let old = std::mem::take(&mut self.calls);
        for hypothesis in &mut self.hypotheses {
            hypothesis.past = NONE;
            hypothesis.best -= top;
            hypothesis.sum -= top;
            for slot in &mut hypothesis.slots {
                let mut calls = chain(&old, slot.calls);
                calls.reverse();
                slot.calls = NONE;
                for call in calls {
                    self.calls.push((call, slot.calls));
                    slot.calls = (self.calls.len() - 1) as u32;
                }
            }
        }
        self.pasts.clear();
    }

    /// The most probable assignment and the probability of each set, of all that is in the lattice. The index of the
    /// hypothesis that it came from.
    fn read(&mut self) -> Option<usize> {
        let best = (0..self.hypotheses.len()).max_by(|a, b| {
            let of = |index: &usize| self.hypotheses.get(*index).map_or(f64::NEG_INFINITY, |h| h.best);
            of(a).total_cmp(&of(b)).then_with(|| b.cmp(a))
        })?;
        let mut at = self.hypotheses.get(best)?.past;
        while let Some(past) = self.pasts.get(at as usize) {
            at = match *past {
                Past::Closed { before, inv, calls } => {
                    for call in chain(&self.calls, calls) {
                        if let Some(parent) = self.solved.parent.get_mut(call as usize) {
                            *parent = Some(inv);
                        }
                    }
                    before
                }
                Past::Merged { one, other, first, .. } => {
                    if first {
                        one
                    } else {
                        other
                    }
                }
            };
        }
        let top = self.hypotheses.iter().map(|hypothesis| hypothesis.sum).fold(f64::NEG_INFINITY, ln_add);
        let mut weights = vec![0.0; self.pasts.len()];
        for hypothesis in &self.hypotheses {
            if let Some(weight) = weights.get_mut(hypothesis.past as usize) {
                *weight += (hypothesis.sum - top).exp();
            }
        }
        for at in (0..self.pasts.len()).rev() {
            let (Some(past), Some(weight)) = (self.pasts.get(at), weights.get(at).copied()) else { continue };
            if weight < 1e-9 {
                continue;
            }
            let mut pass = |to: u32, part: f64| {
                if let Some(weight) = weights.get_mut(to as usize) {
                    *weight += part;
                }
            };
            match *past {
                Past::Merged { one, other, share, .. } => {
                    pass(one, weight * share);
                    pass(other, weight * (1.0 - share));
                }
                Past::Closed { before, inv, calls } => {
                    pass(before, weight);
                    let mut calls = chain(&self.calls, calls);
                    calls.sort_unstable();
                    for call in &calls {
                        let same = self.solved.parent.get(*call as usize).is_some_and(|parent| *parent == Some(inv));
                        if let Some(p) = self.solved.p.get_mut(*call as usize).filter(|_| same) {
                            *p += weight;
                        }
                    }
                    let Some(choices) = self.solved.choices.get_mut(inv as usize) else { continue };
                    match choices.iter_mut().find(|choice| choice.calls == calls) {
                        Some(choice) => choice.p += weight,
                        None => choices.push(Choice { calls, p: weight }),
                    }
                }
            }
        }
        Some(best)
    }

    pub(super) fn finish(mut self) -> Solved {
        for choices in &mut self.solved.choices {
            choices.sort_by(|a, b| b.p.total_cmp(&a.p).then_with(|| a.calls.cmp(&b.calls)));
            choices.truncate(MOST_CHOICES);
        }
        self.solved
    }
}

/// The calls of a slot, the latest first.
fn chain(calls: &[(u32, u32)], mut at: u32) -> Vec<u32> {
    let mut out = Vec::new();
    while let Some((call, before)) = calls.get(at as usize) {
        out.push(*call);
        at = *before;
    }
    out
}
