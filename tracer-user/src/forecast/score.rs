//! Sums over forecasts and what came of them.

use serde::Serialize;

/// Bins of the reliability table: ten of equal width.
const BINS: usize = 10;

/// How often what was given a probability came true.
#[derive(Clone, Debug, Default)]
pub(super) struct Reliability {
    /// Forecasts, sum of their probabilities, those that came true, sum of variances.
    bins: [(u64, f64, u64, f64); BINS],
}

/// A bin of the reliability table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Forecasts with a probability in this tenth.
    pub count: u64,
    /// Their mean probability.
    pub confidence: f64,
    /// The share that came true.
    pub frequency: f64,
}

impl Reliability {
    pub(super) fn add(&mut self, probability: f32, came: bool) {
        let bin = ((probability * BINS as f32) as usize).min(BINS - 1);
        if let Some(bin) = self.bins.get_mut(bin) {
            bin.0 += 1;
            bin.1 += f64::from(probability);
            bin.2 += u64::from(came);
            bin.3 += f64::from(probability * (1.0 - probability));
        }
    }

    /// The expected calibration error: the mean over forecasts of how far their bin's mean probability is from the share
    /// that came true.
    pub(super) fn ece(&self) -> f64 {
        let total: u64 = self.bins.iter().map(|bin| bin.0).sum();
        self.bins.iter().map(|bin| (bin.1 - bin.2 as f64).abs()).sum::<f64>() / total.max(1) as f64
    }

    /// What [`Self::ece`] would be on average if every probability were right: with few forecasts chance alone moves the
    /// shares.
    pub(super) fn chance_ece(&self) -> f64 {
        let total: u64 = self.bins.iter().map(|bin| bin.0).sum();
        // The mean absolute deviation of a normal distribution with the bin's variance.
        let by_chance: f64 = self.bins.iter().map(|bin| (bin.3 * std::f64::consts::FRAC_2_PI).sqrt()).sum();
        by_chance / total.max(1) as f64
    }

    pub(super) fn table(&self) -> Vec<Bin> {
        let mean = |sum: f64, count: u64| sum / count.max(1) as f64;
        let bins = self.bins.iter();
        bins.map(|bin| Bin { count: bin.0, confidence: mean(bin.1, bin.0), frequency: mean(bin.2 as f64, bin.0) })
            .collect()
    }
}

/// The median of samples of any number in bounded memory: logarithmic bins 1 % wide.
#[derive(Clone, Debug, Default)]
pub(super) struct Median {
    bins: Vec<u64>,
    total: u64,
}

impl Median {
    const BASE: f64 = 1.01;
    const LEAST: f64 = 1e-3;

    pub(super) fn add(&mut self, sample: f64) {
        let bin =
            if sample.is_finite() { ((sample / Self::LEAST).max(1.0).ln() / Self::BASE.ln()) as usize } else { return };
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        if let Some(count) = self.bins.get_mut(bin) {
            *count += 1;
        }
        self.total += 1;
    }

    /// The median; 0 of no samples.
    pub(super) fn get(&self) -> f64 {
        let mut passed = 0;
        for (bin, count) in self.bins.iter().enumerate() {
            passed += count;
            if passed * 2 >= self.total && passed > 0 {
                return Self::LEAST * Self::BASE.powf(bin as f64 + 0.5);
            }
        }
        0.0
    }

    /// The median distance of the samples from `centre`.
    pub(super) fn deviation(&self, centre: f64) -> f64 {
        let mut deviations = Self::default();
        for (bin, &count) in self.bins.iter().enumerate().filter(|bin| *bin.1 > 0) {
            let sample = Self::LEAST * Self::BASE.powf(bin as f64 + 0.5);
            let distance = (sample - centre).abs();
            deviations.add(distance);
            let place = ((distance / Self::LEAST).max(1.0).ln() / Self::BASE.ln()) as usize;
            if let Some(slot) = deviations.bins.get_mut(place) {
                *slot += count - 1;
            }
            deviations.total += count - 1;
        }
        deviations.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_liar_is_found_out() {
        let mut honest = Reliability::default();
        let mut liar = Reliability::default();
        for round in 0..1000 {
            honest.add(0.75, round % 4 != 0);
            liar.add(0.95, round % 4 != 0);
        }
        assert!(honest.ece() < 1e-6 && (liar.ece() - 0.2).abs() < 1e-6);
        assert_eq!(honest.table()[7].count, 1000);
    }

    #[test]
    fn medians_are_within_a_percent() {
        let mut median = Median::default();
        for sample in 1..=999 {
            median.add(f64::from(sample));
        }
        assert!((median.get() / 500.0 - 1.0).abs() < 0.01);
        assert!((median.deviation(median.get()) / 250.0 - 1.0).abs() < 0.03);
        assert_eq!(Median::default().get(), 0.0);
    }
}
