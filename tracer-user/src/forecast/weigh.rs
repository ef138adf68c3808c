//! Weighs what experts say against each other: first which family of calls comes next, then which call of it.
//!
//! Calls with the same cause (say, the start of the function that makes them) are a family. When a family comes is a
//! matter of time; which of it comes first may be settled or a coin's throw. An expert can be good at the one and bad at
//! the other, so each question has weights of its own. In both, probabilities are multiplied, each to the power of its
//! weight. An expert has a weight for each degree of how much it has seen: what a thin context says is mostly noise, and
//! how much so is learned as well.

use serde::{Deserialize, Serialize};

use super::model::{EXPERTS, OUTCOMES};

/// Degrees of how much an expert has seen.
pub(super) const DEGREES: usize = 5;
/// The first step of a weight, and the squared slopes that it takes to make the next ones clearly smaller.
const STEP: f32 = 0.1;
const EASE: f32 = 5.0;
/// The least step, so that nothing is learned for good.
const LEAST_STEP: f32 = 0.002;

/// The degree of so many observations.
pub(super) fn degree(observations: f32) -> u8 {
    match observations {
        seen if seen <= 0.0 => 0,
        seen if seen < 2.5 => 1,
        seen if seen < 8.0 => 2,
        seen if seen < 32.0 => 3,
        _ => 4,
    }
}

/// What the experts say of each outcome.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Outcomes in use.
    pub(super) used: u8,
    pub(super) chances: [[f32; OUTCOMES]; EXPERTS],
    /// How much each expert has seen.
    pub(super) degrees: [u8; EXPERTS],
    /// The family of each outcome; 0 for what is alone.
    pub(super) families: [u64; OUTCOMES],
}

/// What experts say, as logarithms: of each outcome within its family, and of each family where its first member is.
struct Logs {
    /// The first member of each outcome's family.
    first: [usize; OUTCOMES],
    within: [[f32; OUTCOMES]; EXPERTS],
    families: [[f32; OUTCOMES]; EXPERTS],
}

impl Said {
    fn logs(&self) -> Logs {
        let used = usize::from(self.used);
        let first = std::array::from_fn(|at| match self.families.get(at) {
            Some(&family) if family != 0 => self.families.iter().position(|other| *other == family).unwrap_or(at),
            _ => at,
        });
        let mut logs = Logs { first, within: [[0.0; OUTCOMES]; EXPERTS], families: [[0.0; OUTCOMES]; EXPERTS] };
        for ((said, within), families) in self.chances.iter().zip(&mut logs.within).zip(&mut logs.families) {
            for (chance, first) in said.iter().zip(first).take(used) {
                families[first] += chance.max(1e-6);
            }
            families.iter_mut().take(used).filter(|sum| **sum > 0.0).for_each(|sum| *sum = sum.ln());
            for (index, (log, chance)) in within.iter_mut().zip(said).enumerate().take(used) {
                if self.families[index] != 0 {
                    *log = chance.max(1e-6).ln() - families[first[index]];
                }
            }
        }
        logs
    }
}

/// Makes probabilities of the logarithms of those outcomes that belong together.
fn normalise(sums: &[f32; OUTCOMES], together: impl Fn(usize) -> bool, chances: &mut [f32; OUTCOMES]) {
    let each = || sums.iter().enumerate().filter(|sum| together(sum.0));
    let most = each().map(|sum| *sum.1).fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = each().map(|(index, sum)| (index, (sum - most).exp())).fold(0.0, |total, (index, chance)| {
        chances[index] = chance;
        total + chance
    });
    each().for_each(|(index, _)| chances[index] /= total);
}

/// The weights of one question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Weights {
    of: [[f32; DEGREES]; EXPERTS],
    /// The sum of squared slopes: who was often moved moves less (Adagrad).
    moved: [[f32; DEGREES]; EXPERTS],
}

impl Weights {
    /// Those of experts that have seen much; with less they begin lower.
    pub(super) fn new(start: [f32; EXPERTS]) -> Self {
        let of = start.map(|weight| std::array::from_fn(|degree| weight * degree as f32 / (DEGREES - 1) as f32));
        Self { of, moved: [[0.0; DEGREES]; EXPERTS] }
    }

    fn sums(&self, degrees: &[u8; EXPERTS], logs: &[[f32; OUTCOMES]; EXPERTS]) -> [f32; OUTCOMES] {
        let mut sums = [0.0_f32; OUTCOMES];
        for ((weights, &degree), logs) in self.of.iter().zip(degrees).zip(logs) {
            let weight = weights[usize::from(degree)];
            sums.iter_mut().zip(logs).for_each(|(sum, log)| *sum += weight * log);
        }
        sums
    }

    /// Follows the gradient of the log loss: `truth` came, of what was given these chances.
    fn learn(
        &mut self,
        degrees: &[u8; EXPERTS],
        logs: &[[f32; OUTCOMES]; EXPERTS],
        chances: &[f32; OUTCOMES],
        truth: usize,
    ) {
        for (((weights, moved), &degree), logs) in self.of.iter_mut().zip(&mut self.moved).zip(degrees).zip(logs) {
            let expected: f32 = logs.iter().zip(chances).map(|(log, chance)| log * chance).sum();
            let slope = (logs[truth] - expected).clamp(-3.0, 3.0);
            let (weight, moved) = (&mut weights[usize::from(degree)], &mut moved[usize::from(degree)]);
            *moved += slope * slope;
            let step = (STEP / (EASE + *moved).sqrt()).max(LEAST_STEP);
            *weight = (*weight + step * slope).clamp(-1.0, 3.0);
        }
    }
}

/// The probability of each outcome.
pub(super) fn weigh(said: &Said, families: &Weights, within: &Weights) -> [f32; OUTCOMES] {
    let (logs, used) = (said.logs(), usize::from(said.used));
    let mut chances = [0.0; OUTCOMES];
    let sums = families.sums(&said.degrees, &logs.families);
    normalise(&sums, |at| at < used && logs.first[at] == at, &mut chances);
    let sums = within.sums(&said.degrees, &logs.within);
    let mut shares = [1.0; OUTCOMES];
    for first in (0..used).filter(|&at| logs.first[at] == at && said.families[at] != 0) {
        normalise(&sums, |at| at < used && logs.first[at] == first, &mut shares);
    }
    std::array::from_fn(|at| if at < used { chances[logs.first[at]] * shares[at] } else { 0.0 })
}

/// Learns that the outcome `truth` came, which with the others had been given `chances`.
pub(super) fn learn(
    said: &Said,
    chances: &[f32; OUTCOMES],
    truth: usize,
    families: &mut Weights,
    within: &mut Weights,
) {
    let logs = said.logs();
    let first = logs.first[truth];
    let mut sums = [0.0; OUTCOMES];
    for (chance, &first) in chances.iter().zip(&logs.first) {
        sums[first] += chance;
    }
    families.learn(&said.degrees, &logs.families, &sums, first);
    if said.families[truth] != 0 {
        let of_family = |at: usize| if logs.first[at] == first { chances[at] / sums[first].max(1e-9) } else { 0.0 };
        within.learn(&said.degrees, &logs.within, &std::array::from_fn(of_family), truth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes 2 and 3 are a family, 4 is alone. One expert knows when a family comes, another which of it is first.
    fn said() -> Said {
        let mut chances = [[0.0; OUTCOMES]; EXPERTS];
        chances.iter_mut().for_each(|said| said[..5].copy_from_slice(&[0.1, 0.1, 0.3, 0.3, 0.2]));
        chances[0][..5].copy_from_slice(&[0.01, 0.01, 0.05, 0.9, 0.03]);
        chances[1][..5].copy_from_slice(&[0.1, 0.1, 0.36, 0.04, 0.4]);
        let families = std::array::from_fn(|at| if at == 2 || at == 3 { 77 } else { 0 });
        Said { used: 5, chances, degrees: [DEGREES as u8 - 1; EXPERTS], families }
    }

    #[test]
    fn each_question_has_the_expert_that_answers_it() {
        let (said, start) = (said(), Weights::new([0.1; EXPERTS]));
        let (mut families, mut within) = (start.clone(), start);
        for _ in 0..2000 {
            let chances = weigh(&said, &families, &within);
            assert!((chances.iter().sum::<f32>() - 1.0).abs() < 1e-5 && chances[5..] == [0.0; OUTCOMES - 5]);
            learn(&said, &chances, 2, &mut families, &mut within);
        }
        let chances = weigh(&said, &families, &within);
        assert!(chances[2] > 0.9, "{chances:?}");
        assert!(families.of[0][4] > families.of[1][4] && within.of[1][4] > within.of[0][4]);
    }

    #[test]
    fn what_a_thin_context_says_is_weighed_apart() {
        let (mut said, start) = (said(), Weights::new([0.5; EXPERTS]));
        let (mut families, mut within) = (start.clone(), start);
        said.degrees[0] = degree(1.0);
        assert_eq!([0.0, 1.0, 5.0, 20.0, 1e6].map(degree), [0, 1, 2, 3, 4]);
        let before = families.of[0];
        let chances = weigh(&said, &families, &within);
        learn(&said, &chances, 4, &mut families, &mut within);
        assert!(families.of[0][1] < before[1] && families.of[0][4] == before[4], "{:?}", families.of[0]);
        assert_eq!(within.of, Weights::new([0.5; EXPERTS]).of, "what is alone teaches nothing of families");
    }
}
