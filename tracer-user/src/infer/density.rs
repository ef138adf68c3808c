//! How long one event waits for another: a histogram of signed delays on a logarithmic axis, smoothed.

/// Bins to each side of zero. With [`STEP`] they reach e^(0.1·190) µs, about two days.
const HALF: usize = 190;
const BINS: usize = 2 * HALF + 1;
/// Width of a bin on the axis of [`axis`].
const STEP: f64 = 0.1;
/// How much rarer than an unusually long delay one is that is shorter than all before.
const BELOW: f64 = 0.01;

/// A delay in µs on the axis: linear within a µs of zero, logarithmic beyond, odd.
fn axis(delay_us: i64) -> f64 {
    let size = (delay_us.unsigned_abs() as f64).ln_1p();
    if delay_us < 0 { -size } else { size }
}

/// ln of how much of the axis a µs takes up at this delay.
fn ln_slope(delay_us: i64) -> f64 {
    -(delay_us.unsigned_abs() as f64).ln_1p()
}

fn bin(delay_us: i64) -> usize {
    let bin = (axis(delay_us) / STEP).round() as i64 + HALF as i64;
    bin.clamp(0, BINS as i64 - 1) as usize
}

/// Delays as they are counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Empty until there is something to count.
    bins: Vec<f32>,
    weight: f64,
    /// Sum of [`ln_slope`] over what was counted, so that the fit can be told without keeping the delays.
    slope: f64,
}

impl Counts {
    pub fn add(&mut self, delay_us: i64, weight: f64) {
        self.bins.resize(BINS, 0.0);
        if let Some(count) = self.bins.get_mut(bin(delay_us)) {
            *count += weight as f32;
        }
        self.weight += weight;
        self.slope += weight * ln_slope(delay_us);
    }

    /// Forgets a share of what was counted: `keep` of 1 keeps all.
    pub fn fade(&mut self, keep: f64) {
        self.bins.iter_mut().for_each(|count| *count *= keep as f32);
        self.weight *= keep;
        self.slope *= keep;
    }

    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// ln likelihood of what was counted under the density made of it, each delay left out in turn.
    pub fn fit(&self) -> f64 {
        if self.weight <= 0.0 {
            return 0.0;
        }
        let density = Density::of(self);
        let ln: f64 = self.bins.iter().zip(&density.ln).map(|(count, ln)| f64::from(*count) * f64::from(*ln)).sum();
        ln + self.slope
    }
}

/// The density made of counts, per µs.
#[derive(Clone, Debug)]
pub(super) struct Density {
    ln: Vec<f32>,
}

impl Density {
    /// Knows nothing: flat on the axis.
    pub fn flat() -> Self {
        Self { ln: vec![-(BINS as f32 * STEP as f32).ln(); BINS] }
    }

    pub fn of(counts: &Counts) -> Self {
        let weight = counts.weight;
        if weight <= 0.0 {
            return Self::flat();
        }
        // A triangle that narrows as delays come in; twice a moving average makes it.
        let width = 2.0 * weight.max(1.0).powf(-0.28);
        let reach = ((width / STEP).round() as usize).clamp(1, HALF / 2);
        let smooth = smooth(&counts.bins, reach);
        // What was never seen is as probable as the next new thing.
        let rare = (2.0 / (weight + 4.0)).min(0.5);
        // Things may take longer than ever before, but hardly less than they must.
        let least = counts.bins.iter().position(|count| *count > 0.0).unwrap_or(0).saturating_sub(1);
        let floor = rare / ((BINS - least) as f64 * STEP);
        let ln = |(at, count): (usize, f32)| {
            let floor = if at < least { BELOW * floor } else { floor };
            ((1.0 - rare) * f64::from(count) / (weight * STEP) + floor).ln() as f32
        };
        Self { ln: smooth.into_iter().enumerate().map(ln).collect() }
    }

    /// ln of the density per µs at a delay.
    pub fn ln(&self, delay_us: i64) -> f64 {
        let at = (axis(delay_us) / STEP + HALF as f64).clamp(0.0, (BINS - 1) as f64);
        let low = at as usize;
        let part = (at - low as f64) as f32;
        let a = self.ln.get(low).copied().unwrap_or(-20.0);
        let b = self.ln.get(low + 1).copied().unwrap_or(a);
        f64::from(a + (b - a) * part) + ln_slope(delay_us)
    }
}

/// A triangle of `reach` bins to each side, total mass kept.
fn smooth(bins: &[f32], reach: usize) -> Vec<f32> {
    let mut out = vec![0.0; bins.len()];
    let total = (reach * reach) as f32;
    let last = bins.len() as i64 - 1;
    for (at, count) in bins.iter().enumerate().filter(|(_, count)| **count > 0.0) {
        for offset in -(reach as i64) + 1..reach as i64 {
            let share = (reach as i64 - offset.abs()) as f32 / total;
            if let Some(bin) = out.get_mut((at as i64 + offset).clamp(0, last) as usize) {
                *bin += count * share;
            }
        }
    }
    out
}
