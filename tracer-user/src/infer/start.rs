//! Where learning starts: which kind of invocation makes which kind of call, from the moments that leave little doubt.
//!
//! At most moments at most one invocation of each kind is live. Then the only question is which kind a call belongs
//! to, and the kind whose start and end stand in the tightest relation to it is the answer.

use std::collections::BTreeMap;

use super::{
    beam::{Inv, Sent},
    density::{Counts, Density},
    model::{Kind, Parent},
};

/// Most live invocations that are looked at for a call.
const MOST_LIVE: usize = 64;
/// Quiet calls of a kind that are enough to learn from.
const ENOUGH: usize = 24;
const ROUNDS: usize = 5;
/// The least that an invocation which overlaps another of its kind counts for.
const CROWDED: f64 = 0.02;

/// For each invocation how far to trust its calls: little while another of its kind is live, unless it always is.
pub(super) fn trust(invs: &[Inv]) -> Vec<f64> {
    let mut quiet = vec![true; invs.len()];
    // The invocation of each kind that ends last, of those so far.
    let mut last = BTreeMap::<Parent, (i64, usize)>::new();
    for (index, inv) in invs.iter().enumerate() {
        let (end, other) = last.get(&inv.parent).copied().unwrap_or((i64::MIN, index));
        if other != index && end >= inv.start {
            [index, other].into_iter().filter_map(|at| quiet.get_mut(at).map(|quiet| *quiet = false)).for_each(drop);
        }
        if inv.end >= end {
            last.insert(inv.parent, (inv.end, index));
        }
    }
    let mut counts = BTreeMap::<Parent, (usize, usize)>::new();
    for (inv, quiet) in invs.iter().zip(&quiet) {
        let (alone, crowded) = counts.entry(inv.parent).or_default();
        *(if *quiet { alone } else { crowded }) += 1;
    }
    let trust = |(inv, quiet): (&Inv, &bool)| {
        let (alone, crowded) = counts.get(&inv.parent).copied().unwrap_or_default();
        let lacking = ENOUGH.saturating_sub(alone) as f64;
        if *quiet { 1.0 } else { (lacking / crowded.max(1) as f64).clamp(CROWDED, 1.0) }
    };
    invs.iter().zip(&quiet).map(trust).collect()
}

#[derive(Debug, Default)]
struct Pair {
    weight: f64,
    from_start: Counts,
    to_end: Counts,
}

#[derive(Debug)]
struct Fit {
    ln_weight: f64,
    from_start: Density,
    to_end: Density,
}

impl Fit {
    fn ln(&self, inv: &Inv, sent: &Sent) -> f64 {
        self.ln_weight
            + self.from_start.ln(sent.start.saturating_sub(inv.start))
            + self.to_end.ln(inv.end.saturating_sub(sent.end))
    }
}

/// A first guess of the invocation that made each call. Both sorted by start.
pub(super) fn guess(invs: &[Inv], sent: &[Sent]) -> Vec<Option<u32>> {
    let candidates = live_at(invs, sent);
    let mut quiet: Vec<bool> = candidates.iter().map(|live| one_of_a_kind(invs, live)).collect();
    let mut enough = BTreeMap::<Kind, usize>::new();
    for (sent, quiet) in sent.iter().zip(&quiet) {
        *enough.entry(sent.kind).or_default() += usize::from(*quiet);
    }
    for (sent, quiet) in sent.iter().zip(&mut quiet) {
        *quiet |= enough.get(&sent.kind).is_none_or(|count| *count < ENOUGH);
    }
    let mut fits = BTreeMap::<(Parent, Kind), Fit>::new();
    for _ in 0..ROUNDS {
        let mut pairs = BTreeMap::<(Parent, Kind), Pair>::new();
        let mut totals = BTreeMap::<Kind, f64>::new();
        for ((sent, live), _) in sent.iter().zip(&candidates).zip(&quiet).filter(|(_, quiet)| **quiet) {
            for (at, share) in shares(invs, sent, live, &fits) {
                let Some(inv) = invs.get(at as usize) else { continue };
                let pair = pairs.entry((inv.parent, sent.kind)).or_default();
                pair.weight += share;
                pair.from_start.add(sent.start.saturating_sub(inv.start), share);
                pair.to_end.add(inv.end.saturating_sub(sent.end), share);
                *totals.entry(sent.kind).or_default() += share;
            }
        }
        let fit = |((parent, kind), pair): ((Parent, Kind), Pair)| {
            let total = totals.get(&kind).copied().unwrap_or(1.0).max(1e-9);
            let fit = Fit {
                ln_weight: (pair.weight / total).max(1e-6).ln(),
                from_start: Density::of(&pair.from_start),
                to_end: Density::of(&pair.to_end),
            };
            ((parent, kind), fit)
        };
        fits = pairs.into_iter().map(fit).collect();
    }
    let best = |(sent, live): (&Sent, &Vec<u32>)| {
        let shares = shares(invs, sent, live, &fits);
        shares.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then_with(|| b.0.cmp(&a.0))).map(|(at, _)| at)
    };
    sent.iter().zip(&candidates).map(best).collect()
}

/// How probably each of the live invocations made the call; before anything is known, all the same.
fn shares(invs: &[Inv], sent: &Sent, live: &[u32], fits: &BTreeMap<(Parent, Kind), Fit>) -> Vec<(u32, f64)> {
    let ln = |at: &u32| {
        let inv = invs.get(*at as usize)?;
        if fits.is_empty() {
            return Some((*at, 0.0));
        }
        Some((*at, fits.get(&(inv.parent, sent.kind))?.ln(inv, sent)))
    };
    let mut shares: Vec<(u32, f64)> = live.iter().filter_map(ln).collect();
    let top = shares.iter().map(|(_, ln)| *ln).fold(f64::NEG_INFINITY, f64::max);
    shares.iter_mut().for_each(|(_, share)| *share = (*share - top).exp());
    let total: f64 = shares.iter().map(|(_, share)| share).sum();
    shares.iter_mut().for_each(|(_, share)| *share /= total.max(1e-300));
    shares
}

/// For each call the invocations that are live when it starts.
fn live_at(invs: &[Inv], sent: &[Sent]) -> Vec<Vec<u32>> {
    let mut live: Vec<u32> = Vec::new();
    let mut next = invs.iter().enumerate().peekable();
    let mut out = Vec::with_capacity(sent.len());
    for call in sent {
        while let Some((index, _)) = next.next_if(|(_, inv)| inv.start <= call.start) {
            live.push(index as u32);
        }
        live.retain(|at| invs.get(*at as usize).is_some_and(|inv| inv.end >= call.start));
        out.push(live.iter().rev().filter(|at| call.callee != Some(**at)).take(MOST_LIVE).copied().collect());
    }
    out
}

fn one_of_a_kind(invs: &[Inv], live: &[u32]) -> bool {
    let mut kinds: Vec<_> = live.iter().filter_map(|at| invs.get(*at as usize)).map(|inv| inv.parent).collect();
    kinds.sort_unstable();
    kinds.windows(2).all(|pair| pair.first() != pair.last())
}
