//! Whether calls keep the order of what they wait for.
//!
//! Two invocations wait at the same time; will the one that waited first call first? If delays were independent, chance
//! would say how often. Where requests queue for a loop or a lock, it happens more often than that, and the order then
//! says more than the delays do. How much more is learned for each kind of call: the ln odds by which order is kept
//! beyond chance.

/// A call and what it waited for; ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub trigger: i64,
    pub call: i64,
    /// Probability that the two belong together.
    pub p: f64,
}

/// The ln odds by which the calls of a kind keep order beyond chance, and the order of what: of the invocations'
/// starts, or of the call's own triggers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
    pub ln: f64,
    pub since_start: bool,
}

/// What is thought of the odds before anything is seen: mean and variance.
const MEAN: f64 = 1.0;
const VARIANCE: f64 = 4.0;
/// Delays that stand for all.
const DELAYS: usize = 64;
/// Most odds, either way.
const MOST: f64 = 5.0;

/// The ln odds by which the calls of a kind keep order beyond chance.
pub(super) fn odds(waits: &mut [Wait]) -> f64 {
    waits.sort_by_key(|wait| (wait.trigger, wait.call));
    let mut delays: Vec<i64> = waits.iter().map(|wait| wait.call.saturating_sub(wait.trigger)).collect();
    delays.sort_unstable();
    let step = (delays.len() / DELAYS).max(1);
    let delays: Vec<i64> = delays.into_iter().skip(step / 2).step_by(step).collect();
    let mut gaps: Vec<i64> = delays.iter().flat_map(|a| delays.iter().map(move |b| a.saturating_sub(*b))).collect();
    gaps.sort_unstable();
    // By chance, a later trigger's call comes later if the first delay is not longer by more than the gap.
    let chance = |gap: i64| {
        let below = gaps.partition_point(|delay| *delay < gap);
        let same = gaps.partition_point(|delay| *delay <= gap);
        (below + same) as f64 / (2 * gaps.len()).max(1) as f64
    };
    let mut kept = 0.0;
    let mut chances = Vec::new();
    for pair in waits.windows(2) {
        let [first, second] = pair else { continue };
        let q = chance(second.trigger.saturating_sub(first.trigger));
        if !(0.001..0.995).contains(&q) || first.trigger == second.trigger {
            continue;
        }
        let sure = first.p.min(second.p).clamp(0.0, 1.0);
        kept += if first.call <= second.call { sure } else { 1.0 - sure };
        chances.push((q / (1.0 - q)).ln());
    }
    // The odds at which as many are expected to be kept as were.
    let (mut low, mut high) = (0.0, MOST);
    for _ in 0..40 {
        let odds = (low + high) / 2.0;
        let expected: f64 = chances.iter().map(|chance| 1.0 / (1.0 + (-(odds + chance)).exp())).sum();
        if kept - expected - (odds - MEAN) / VARIANCE > 0.0 { low = odds } else { high = odds }
    }
    (low + high) / 2.0
}
