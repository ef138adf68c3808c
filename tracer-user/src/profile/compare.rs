//! What differs between two profiles, and is not chance.
//!
//! - Latencies: the Mann–Whitney test, which asks whether one of the new is slower than one of the old more often than not
//!   and assumes nothing of how latencies are distributed. A shift of the tail alone escapes it, so the share above a high
//!   quantile of both together is compared besides.
//! - Shares (errors, probability of an edge): the difference of two proportions.
//!
//! All are made at once, so the false discovery rate is held at 5 % over all of them (Benjamini and Hochberg). With enough
//! paths every difference is significant, so it must also be large enough to matter. The tests take invocations as
//! independent; a burst of slow ones is not, so compare spans of time that hold several.

use std::sync::Arc;

use serde::Serialize;

use super::{
    Profile,
    histogram::Histogram,
    stats::{Callee, Function, Name},
};

/// The share of wrong among all changes that are told.
pub const FALSE_DISCOVERY_RATE: f64 = 0.05;
/// A change of p50 that matters.
const SHIFT_MIN: f64 = 0.05;
/// A change of p99 that matters.
const TAIL_MIN: f64 = 0.10;
/// A change of a share that matters, in points of 1.
const SHARE_MIN: f64 = 0.01;
/// Fewer values than these are not compared.
const COUNT_MIN: u64 = 20;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Latency; `old` and `new` are p50 in µs.
    Latency,
    /// The slowest; `old` and `new` are p99 in µs.
    Tail,
    /// Share of failures.
    Errors,
    /// Share of the caller's invocations that make the call.
    Probability,
    /// Not there before; `new` is a count.
    Appeared,
    /// Not there any more; `old` is a count.
    Vanished,
}

/// A difference between two profiles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The function, or the caller.
    pub function: Arc<str>,
    /// The callee, if it is an edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callee: Option<Arc<str>>,
    /// What changed.
    pub what: What,
    /// Before.
    pub old: f64,
    /// Now.
    pub new: f64,
    /// How probable a difference as large is by chance.
    pub p: f64,
    /// The false discovery rate at which it would just be told.
    pub q: f64,
    #[serde(skip)]
    matters: bool,
}

impl Change {
    /// Whether it is for the worse; none where that depends.
    pub fn worse(&self) -> Option<bool> {
        match self.what {
            What::Latency | What::Tail | What::Errors => Some(self.new > self.old),
            What::Probability | What::Appeared | What::Vanished => None,
        }
    }
}

/// All changes from `old` to `new` that are neither chance nor too small to matter, the largest first.
pub fn compare(old: &Profile, new: &Profile) -> Vec<Change> {
    let mut changes = Vec::new();
    let names = union(old.functions.iter().map(|(key, _)| key), new.functions.iter().map(|(key, _)| key));
    for name in names {
        let of = |profile: &Profile| profile.functions.get(name.clone()).cloned();
        match (of(old), of(new)) {
            (Some(before), Some(after)) => function(&mut changes, name, &before, &after),
            (before, after) => presence(
                &mut changes,
                (&name.name, None),
                (before.map_or(0, |function| function.invocations), old.paths),
                (after.map_or(0, |function| function.invocations), new.paths),
            ),
        }
    }
    correct(&mut changes);
    changes.retain(|change| change.matters && change.q <= FALSE_DISCOVERY_RATE);
    let size = |change: &Change| {
        if change.old > 0.0 && change.new > 0.0 { (change.new / change.old).ln().abs() } else { f64::MAX }
    };
    changes.sort_by(|a, b| {
        size(b)
            .total_cmp(&size(a))
            .then_with(|| (&a.function, &a.callee, a.what).cmp(&(&b.function, &b.callee, b.what)))
    });
    changes
}

fn union<'a, K: Ord + 'a>(a: impl Iterator<Item = &'a K>, b: impl Iterator<Item = &'a K>) -> Vec<&'a K> {
    let mut keys: Vec<&K> = a.chain(b).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn function(changes: &mut Vec<Change>, name: &Name, old: &Function, new: &Function) {
    let of = (&name.name, None);
    latencies(changes, of, &old.latency, &new.latency);
    share(changes, of, What::Errors, (old.errors, old.invocations), (new.errors, new.invocations));
    let callees = union(old.edges.iter().map(|(key, _)| key), new.edges.iter().map(|(key, _)| key));
    for callee in callees {
        let of: (&Arc<str>, Option<&Callee>) = (&name.name, Some(callee));
        match (old.edges.get(callee.clone()), new.edges.get(callee.clone())) {
            (Some(before), Some(after)) => {
                latencies(changes, of, &before.latency, &after.latency);
                share(changes, of, What::Errors, (before.errors, before.calls), (after.errors, after.calls));
                let (before, after) = ((before.invocations, old.invocations), (after.invocations, new.invocations));
                share(changes, of, What::Probability, before, after);
            }
            (before, after) => presence(
                changes,
                of,
                (before.map_or(0, |edge| edge.invocations), old.invocations),
                (after.map_or(0, |edge| edge.invocations), new.invocations),
            ),
        }
    }
}

fn push(
    changes: &mut Vec<Change>,
    of: (&Arc<str>, Option<&Callee>),
    what: What,
    values: (f64, f64),
    p: f64,
    matters: bool,
) {
    changes.push(Change {
        function: Arc::clone(of.0),
        callee: of.1.map(|callee| Arc::clone(&callee.name)),
        what,
        old: values.0,
        new: values.1,
        p,
        q: 1.0,
        matters,
    });
}

fn latencies(changes: &mut Vec<Change>, of: (&Arc<str>, Option<&Callee>), old: &Histogram, new: &Histogram) {
    if old.count() < COUNT_MIN || new.count() < COUNT_MIN {
        return;
    }
    let both = |q: f64| (old.quantile(q) as f64, new.quantile(q) as f64);
    let moved =
        |(old, new): (f64, f64), least: f64| (new - old).abs() > old.min(new) * least && (new - old).abs() >= 1.0;
    push(changes, of, What::Latency, both(0.5), mann_whitney(old, new), moved(both(0.5), SHIFT_MIN));
    let high = match old.count().min(new.count()) {
        ..200 => 0.9,
        200..1000 => 0.95,
        _ => 0.99,
    };
    // The pooled quantile, found without copying: the least of the values seen that few enough are at or above.
    let all = (old.count() + new.count()) as f64;
    let limit = old.buckets().chain(new.buckets()).map(|(low, ..)| low);
    let limit = limit.filter(|&low| (old.from(low) + new.from(low)) as f64 <= all * (1.0 - high) * 1.000_001).min();
    if let Some(limit) = limit {
        let p = proportions((old.from(limit), old.count()), (new.from(limit), new.count()));
        push(changes, of, What::Tail, both(0.99), p, moved(both(0.99), TAIL_MIN));
    }
}

fn share(changes: &mut Vec<Change>, of: (&Arc<str>, Option<&Callee>), what: What, old: (u64, u64), new: (u64, u64)) {
    if old.1 < COUNT_MIN || new.1 < COUNT_MIN {
        return;
    }
    let ratio = |(part, of): (u64, u64)| part as f64 / of as f64;
    let (before, after) = (ratio(old), ratio(new));
    push(changes, of, what, (before, after), proportions(old, new), (after - before).abs() >= SHARE_MIN);
}

/// Something that is in one of the two only: how probable is it to miss it by chance in the other?
fn presence(changes: &mut Vec<Change>, of: (&Arc<str>, Option<&Callee>), old: (u64, u64), new: (u64, u64)) {
    let (what, (seen, of_seen), (_, missed)) =
        if old.0 == 0 { (What::Appeared, new, old) } else { (What::Vanished, old, new) };
    if seen == 0 || missed == 0 {
        return;
    }
    let rate = (seen as f64 / of_seen.max(1) as f64).min(1.0);
    let p = (1.0 - rate).powf(missed as f64);
    push(changes, of, what, (old.0 as f64, new.0 as f64), p, seen >= 3);
}

/// Twice the tail of the normal distribution.
fn two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() / std::f64::consts::SQRT_2).min(1.0)
}

/// The Mann–Whitney U test with correction for ties (values of one bucket are equal) and for continuity.
pub fn mann_whitney(old: &Histogram, new: &Histogram) -> f64 {
    let (n_old, n_new) = (old.count() as f64, new.count() as f64);
    let all = n_old + n_new;
    let (mut below, mut u, mut ties) = (0.0, 0.0, 0.0);
    let (mut a, mut b) = (old.buckets().peekable(), new.buckets().peekable());
    loop {
        let low = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(&(a, ..)), None) => a,
            (None, Some(&(b, ..))) => b,
            (Some(&(a, ..)), Some(&(b, ..))) => a.min(b),
        };
        let from_old = a.next_if(|&(at, ..)| at == low).map_or(0.0, |(.., count)| count as f64);
        let from_new = b.next_if(|&(at, ..)| at == low).map_or(0.0, |(.., count)| count as f64);
        u += from_new * (below + from_old / 2.0);
        below += from_old;
        let tied = from_old + from_new;
        ties += tied * (tied * tied - 1.0);
    }
    let variance = n_old * n_new / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    if variance.is_nan() || variance <= 0.0 {
        return 1.0;
    }
    let distance = ((u - n_old * n_new / 2.0).abs() - 0.5).max(0.0);
    two_sided(distance / variance.sqrt())
}

/// Whether two shares differ: the pooled z test with correction for continuity. 1 where so few are expected that it does
/// not hold.
fn proportions((old, of_old): (u64, u64), (new, of_new): (u64, u64)) -> f64 {
    let (a, n, b, m) = (old as f64, of_old as f64, new as f64, of_new as f64);
    let pooled = (a + b) / (n + m);
    let expected = pooled.min(1.0 - pooled) * n.min(m);
    if expected.is_nan() || expected < 5.0 {
        return 1.0;
    }
    let difference = ((a / n - b / m).abs() - (1.0 / n + 1.0 / m) / 2.0).max(0.0);
    two_sided(difference / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt())
}

/// Benjamini and Hochberg: fills in `q`.
fn correct(changes: &mut [Change]) {
    changes.sort_by(|a, b| a.p.total_cmp(&b.p));
    let count = changes.len() as f64;
    let mut least = 1.0f64;
    for (at, change) in changes.iter_mut().enumerate().rev() {
        least = least.min(change.p * count / (at + 1) as f64);
        change.q = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::bounded::Merge;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.add(value));
        histogram
    }

    #[test]
    fn mann_whitney_agrees_with_the_textbook() {
        // scipy.stats.mannwhitneyu([19,22,16,29,24], [20,11,17,12], method="asymptotic"): 0.11134688653314041.
        let p = mann_whitney(&of([19, 22, 16, 29, 24]), &of([20, 11, 17, 12]));
        assert!((p - 0.111_346_886_533_140_41).abs() < 1e-9, "{p}");
        // With ties, [1,2,2,3,3,3,4], [2,3,4,4,5,5]: by the formula.
        let p = mann_whitney(&of([1, 2, 2, 3, 3, 3, 4]), &of([2, 3, 4, 4, 5, 5]));
        assert!((p - 0.07826242947714625).abs() < 1e-9, "{p}");
        assert_eq!(mann_whitney(&of([7; 30]), &of([7; 30])), 1.0);
    }

    #[test]
    fn chance_is_told_apart() {
        // Both halves of the same numbers, and the same with a fifth of the new half slower.
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            10_000 + (state >> 33) % 10_000
        };
        let (a, b) = (of((0..500).map(|_| next())), of((0..500).map(|_| next())));
        assert!(mann_whitney(&a, &b) > 0.05);
        let mut slower = of((0..400).map(|_| next()));
        slower.merge(of((0..100).map(|_| next() + 15_000)));
        assert!(mann_whitney(&a, &slower) < 1e-6);
    }

    #[test]
    fn many_tests_are_paid_for() {
        let change = |p| Change {
            function: "f".into(),
            callee: None,
            what: What::Latency,
            old: 1.0,
            new: 2.0,
            p,
            q: 1.0,
            matters: true,
        };
        let mut changes = vec![change(0.04), change(0.001), change(0.03), change(0.9)];
        correct(&mut changes);
        let q: Vec<f64> = changes.iter().map(|change| (change.q * 1e6).round() / 1e6).collect();
        assert_eq!(q, [0.004, 0.053333, 0.053333, 0.9]);
    }
}
