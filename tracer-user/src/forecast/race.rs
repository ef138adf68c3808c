//! Which of several callees comes first, if each comes in its own time.

use super::timing::{Estimate, SAMPLES};

/// Callees that take part.
pub(super) const RUNNERS: usize = 6;

/// How a race comes out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// For each runner the probability that it comes first.
    pub(super) first: [f32; RUNNERS],
    /// When the first comes, from now in ms: what 10 %, 50 % and 90 % of outcomes lie below.
    pub(super) when: [f32; 3],
}

/// Runs the race: goes through all samples in order of time, and at each adds the probability that this runner comes
/// now and no other came before. Runners are taken to be independent.
pub(super) fn run(runners: &[Estimate]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut next = [0_usize; RUNNERS];
    let count = runners.len().min(RUNNERS);
    let mut passed = 0.0_f32;
    let mut marks = [0.1_f32, 0.5, 0.9].into_iter().enumerate().peekable();
    for _ in 0..count * SAMPLES {
        let mut soonest: Option<(f32, usize)> = None;
        // The chance that none has come yet, as a product, and the same without the one that comes now.
        let mut none_yet = 1.0_f32;
        for (index, (runner, &place)) in runners.iter().zip(&next).enumerate() {
            let samples = runner.samples();
            let Some(&time) = samples.get(place) else {
                none_yet = 0.0;
                continue;
            };
            none_yet *= (samples.len() - place) as f32 / samples.len() as f32;
            if soonest.is_none_or(|(least, _)| time < least) {
                soonest = Some((time, index));
            }
        }
        let Some((time, index)) = soonest.filter(|_| none_yet > 1e-4) else { break };
        let left = runners.get(index).map_or(1, |runner| runner.samples().len() - next[index]);
        let chance = none_yet / left as f32;
        outcome.first[index] += chance;
        next[index] += 1;
        passed += chance;
        while let Some((mark, _)) = marks.next_if(|&(_, share)| passed >= share) {
            outcome.when[mark] = time;
        }
        // Past the last mark there is none to come, should rounding keep `passed` below it.
        outcome.when.iter_mut().skip(marks.peek().map_or(3, |mark| mark.0)).for_each(|when| *when = time);
    }
    if passed > 0.0 {
        outcome.first.iter_mut().for_each(|chance| *chance /= passed);
    }
    outcome
}
