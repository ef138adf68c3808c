//! Samples of one delay: the latest 64, in order of size, so that quantiles and truncation cost nothing to compute.

use serde::{Deserialize, Serialize};

/// Samples kept.
const DEPTH: usize = 64;

/// The latest delays, in ms.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Delays {
    /// In order of arrival, as a ring.
    ring: Vec<f32>,
    /// In order of size.
    sorted: Vec<f32>,
    next: u8,
}

impl Delays {
    /// Takes a sample, in ms.
    pub(super) fn learn(&mut self, delay: f32) {
        let delay = if delay.is_finite() { delay.max(0.0) } else { return };
        if self.ring.len() < DEPTH {
            self.ring.push(delay);
        } else if let Some(slot) = self.ring.get_mut(usize::from(self.next)) {
            let old = std::mem::replace(slot, delay);
            let place = self.sorted.partition_point(|&sample| sample < old);
            if place < self.sorted.len() {
                self.sorted.remove(place);
            }
            self.next = (self.next + 1) % DEPTH as u8;
        }
        let place = self.sorted.partition_point(|&sample| sample < delay);
        self.sorted.insert(place, delay);
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// In order of size, in ms.
    pub(super) fn sorted(&self) -> &[f32] {
        &self.sorted
    }

    /// The sample that `share` of all lie below, in ms; 0 if there is none.
    pub(super) fn quantile(&self, share: f32) -> f32 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted.get((share * last as f32).round() as usize).copied().unwrap_or(0.0)
    }

    /// How far the middle two thirds lie apart, in ms. What few samples say is trusted less.
    pub(super) fn spread(&self) -> f32 {
        let few = 1.0 + 6.0 / (self.len() as f32 + 0.1);
        (self.quantile(0.84) - self.quantile(0.16) + 1.0) * few
    }

    /// The share of samples that `elapsed` ms have not outlived.
    pub(super) fn alive(&self, elapsed: f32) -> f32 {
        let dead = self.sorted.partition_point(|&sample| sample < elapsed);
        (self.len() - dead) as f32 / (self.len().max(1)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_the_latest_in_order(delays in proptest::collection::vec(any::<f32>(), 0..300)) {
            let mut kept = Delays::default();
            let sound: Vec<f32> = delays.iter().copied().filter(|delay| delay.is_finite()).map(|d| d.max(0.0)).collect();
            for delay in delays {
                kept.learn(delay);
            }
            let mut latest = sound[sound.len().saturating_sub(DEPTH)..].to_vec();
            latest.sort_by(f32::total_cmp);
            prop_assert_eq!(kept.sorted(), &latest[..]);
        }
    }
}
