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
    // For each runner the time of its next sample, the chance that it has not come yet, and the chance of one sample.
    // Those who do not take part never come and never have.
    let mut time = [f32::INFINITY; RUNNERS];
    let mut left = [1.0_f32; RUNNERS];
    let mut share = [0.0_f32; RUNNERS];
    for (index, runner) in runners.iter().take(RUNNERS).enumerate() {
        let Some(&first) = runner.samples().first() else { continue };
        time[index] = first;
        share[index] = 1.0 / runner.samples().len() as f32;
    }
    let mut passed = 0.0_f32;
    let mut mark = 0;
    for _ in 0..RUNNERS * SAMPLES {
        let mut index = 0;
        for other in 1..RUNNERS {
            if time[other] < time[index] {
                index = other;
            }
        }
        let now = time[index];
        if now == f32::INFINITY {
            break;
        }
        let others: f32 = (0..RUNNERS).map(|other| if other == index { 1.0 } else { left[other] }).product();
        let chance = others * share[index];
        outcome.first[index] += chance;
        passed += chance;
        while mark < 3 && passed >= [0.1, 0.5, 0.9][mark] {
            outcome.when[mark] = now;
            mark += 1;
        }
        // Should rounding keep `passed` below a mark, the last time stands for it.
        outcome.when[mark..].fill(now);
        next[index] += 1;
        left[index] -= share[index];
        let sample = runners.get(index).and_then(|runner| runner.samples().get(next[index]));
        // Whoever has no sample left has come for certain.
        match sample {
            Some(&sample) => time[index] = sample,
            None => break,
        }
        if passed > 0.998 {
            break;
        }
    }
    if passed > 0.0 {
        outcome.first.iter_mut().for_each(|chance| *chance /= passed);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sooner_wins_and_equals_share() {
        let sooner = Estimate::of(&[10.0, 11.0, 12.0]);
        let later = Estimate::of(&[20.0, 21.0, 22.0]);
        let outcome = run(&[later, sooner]);
        assert_eq!((outcome.first[0], outcome.when[1]), (0.0, 11.0));
        let even = run(&[sooner, sooner]);
        assert!((even.first[0] - 0.5).abs() < 0.17, "{even:?}");
        assert_eq!(run(&[]).first, [0.0; RUNNERS]);
    }

    #[test]
    fn overlap_gives_odds() {
        let early: Vec<f32> = (0..SAMPLES).map(|step| step as f32).collect();
        let late: Vec<f32> = (0..SAMPLES).map(|step| step as f32 + 6.5).collect();
        let outcome = run(&[Estimate::of(&early), Estimate::of(&late)]);
        let sure = early.iter().flat_map(|a| late.iter().map(move |b| f32::from(u8::from(a < b)))).sum::<f32>();
        assert!((outcome.first[0] - sure / (SAMPLES * SAMPLES) as f32).abs() < 0.01, "{outcome:?}");
    }
}
