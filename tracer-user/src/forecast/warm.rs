//! What would have come of warming sandboxes on forecasts: a simulation over recorded calls.
//!
//! A forecast above the threshold warms one sandbox for its callee, for the path it was made for. It is ready after the
//! warm-up time and is kept for the horizon or until that path calls the callee, whichever is first. The call finds it
//! ready: a cold start avoided, if the call was cold as recorded (where the data do not say what was cold, every call
//! counts as cold). Nobody calls it: the horizon was wasted.

use std::{collections::HashMap, sync::Arc};

use serde::Serialize;

use super::{predict::Expected, score::Median};

/// Terms of the simulation, times in µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) horizon_us: i64,
    pub(super) warm_up_us: i64,
    pub(super) cost_ratio: f32,
}

/// What a threshold would have brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Warmed {
    /// The probability above which a sandbox is warmed.
    pub threshold: f32,
    /// Sandboxes warmed.
    pub warmed: u64,
    /// Of these, used.
    pub used: u64,
    /// Share of the warmed that was used.
    pub precision: f64,
    /// Share of the calls (but for roots) that were forecast.
    pub recall: f64,
    /// Median time from warming to the call, in ms, over those used.
    pub lead_ms: f64,
    /// Cold calls that found a sandbox ready.
    pub cold_starts_avoided: u64,
    /// Seconds of sandboxes that nobody used.
    pub wasted_seconds: f64,
    /// Seconds that used sandboxes stood ready before the call came.
    pub idle_seconds: f64,
    /// Cold starts left plus needless sandboxes, priced by the cost ratio, in cold starts.
    pub cost: f64,
}

/// A simulation at one threshold.
#[derive(Debug)]
pub(super) struct Warming {
    threshold: f32,
    terms: Terms,
    /// Path → callee → when it was warmed.
    out: HashMap<u64, Vec<(Arc<str>, i64)>>,
    calls: u64,
    cold: u64,
    warmed: u64,
    used: u64,
    avoided: u64,
    wasted_us: i64,
    idle_us: i64,
    leads: Median,
}

impl Warming {
    pub(super) fn new(threshold: f32, terms: Terms) -> Self {
        Self {
            threshold,
            terms,
            out: HashMap::new(),
            calls: 0,
            cold: 0,
            warmed: 0,
            used: 0,
            avoided: 0,
            wasted_us: 0,
            idle_us: 0,
            leads: Median::default(),
        }
    }

    /// A path calls.
    pub(super) fn call(&mut self, path: u64, callee: &str, at_us: i64, cold: bool, root: bool) {
        self.calls += u64::from(!root);
        self.cold += u64::from(cold);
        let out = self.out.entry(path).or_default();
        let Some(place) = out.iter().position(|warm| &*warm.0 == callee) else { return };
        let (_, warmed_us) = out.swap_remove(place);
        let lead_us = at_us.saturating_sub(warmed_us);
        if lead_us > self.terms.horizon_us {
            self.wasted_us = self.wasted_us.saturating_add(self.terms.horizon_us);
            return;
        }
        self.used += 1;
        self.leads.add(lead_us as f64 / 1000.0);
        self.idle_us = self.idle_us.saturating_add(lead_us.saturating_sub(self.terms.warm_up_us).max(0));
        self.avoided += u64::from(cold && lead_us >= self.terms.warm_up_us);
    }

    /// A path was forecast at `now_us`.
    pub(super) fn forecast(&mut self, path: u64, now_us: i64, expected: &[Expected]) {
        let out = self.out.entry(path).or_default();
        for expected in expected.iter().filter(|expected| expected.probability > self.threshold) {
            if let Some(warm) = out.iter_mut().find(|warm| warm.0 == expected.callee) {
                if now_us.saturating_sub(warm.1) <= self.terms.horizon_us {
                    continue;
                }
                // The last one went unused; it still seems to be worth it.
                self.wasted_us = self.wasted_us.saturating_add(self.terms.horizon_us);
                warm.1 = now_us;
            } else {
                out.push((expected.callee.clone(), now_us));
            }
            self.warmed += 1;
        }
    }

    /// A path ended.
    pub(super) fn end(&mut self, path: u64) {
        let left = self.out.remove(&path).map_or(0, |out| out.len());
        self.wasted_us = self.wasted_us.saturating_add((left as i64).saturating_mul(self.terms.horizon_us));
    }

    pub(super) fn result(&self) -> Warmed {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let needless = (self.warmed - self.used) as f64;
        Warmed {
            threshold: self.threshold,
            warmed: self.warmed,
            used: self.used,
            precision: share(self.used, self.warmed),
            recall: share(self.used, self.calls),
            lead_ms: self.leads.get(),
            cold_starts_avoided: self.avoided,
            wasted_seconds: self.wasted_us as f64 / 1e6,
            idle_seconds: self.idle_us as f64 / 1e6,
            cost: (self.cold - self.avoided) as f64 + needless * f64::from(self.terms.cost_ratio),
        }
    }

    /// Cold calls as recorded.
    pub(super) fn cold(&self) -> u64 {
        self.cold
    }
}

/// Fixed keep-alive: each sandbox that was used stays for some time, whoever calls next.
#[derive(Debug)]
pub(super) struct Keeping {
    keep_us: i64,
    terms: Terms,
    /// Function → since when each of its idle sandboxes is idle.
    idle: HashMap<Arc<str>, Vec<i64>>,
    calls: u64,
    cold: u64,
    kept: u64,
    used: u64,
    avoided: u64,
    wasted_us: i64,
    idle_us: i64,
}

impl Keeping {
    pub(super) fn new(keep_us: i64, terms: Terms) -> Self {
        let (idle, zero) = (HashMap::new(), 0);
        Self {
            keep_us,
            terms,
            idle,
            calls: zero,
            cold: zero,
            kept: zero,
            used: zero,
            avoided: zero,
            wasted_us: 0,
            idle_us: 0,
        }
    }

    /// A function is called, and is done with it at `done_us`.
    pub(super) fn call(&mut self, callee: &Arc<str>, at_us: i64, done_us: i64, cold: bool, root: bool) {
        self.calls += u64::from(!root);
        self.cold += u64::from(cold);
        self.kept += 1;
        let idle = self.idle.entry(callee.clone()).or_default();
        let before = idle.len();
        idle.retain(|since_us| at_us.saturating_sub(*since_us) <= self.keep_us);
        self.wasted_us = self.wasted_us.saturating_add(((before - idle.len()) as i64).saturating_mul(self.keep_us));
        // The one that was idle for the shortest time, as platforms do, so that the others run out.
        let free =
            idle.iter().enumerate().filter(|(_, since_us)| **since_us <= at_us).max_by_key(|(_, since_us)| **since_us);
        if let Some((place, &since_us)) = free {
            idle.swap_remove(place);
            self.used += 1;
            self.idle_us = self.idle_us.saturating_add(at_us.saturating_sub(since_us));
            self.avoided += u64::from(cold);
        }
        idle.push(done_us);
    }

    pub(super) fn result(&self) -> Warmed {
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let left: usize = self.idle.values().map(Vec::len).sum();
        let wasted_us = self.wasted_us.saturating_add((left as i64).saturating_mul(self.keep_us));
        // Priced by time, since these are kept for other times than the horizon.
        let horizons = (wasted_us as f64 + self.idle_us as f64) / self.terms.horizon_us.max(1) as f64;
        Warmed {
            threshold: 0.0,
            warmed: self.kept,
            used: self.used,
            precision: share(self.used, self.kept),
            recall: share(self.used, self.calls),
            lead_ms: 0.0,
            cold_starts_avoided: self.avoided,
            wasted_seconds: wasted_us as f64 / 1e6,
            idle_seconds: self.idle_us as f64 / 1e6,
            cost: (self.cold - self.avoided) as f64 + horizons * f64::from(self.terms.cost_ratio),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { horizon_us: 1_000_000, warm_up_us: 100_000, cost_ratio: 0.5 };

    fn expect(callee: &str, probability: f32) -> Vec<Expected> {
        vec![Expected { callee: callee.into(), probability }]
    }

    #[test]
    fn early_enough_late_and_never() {
        let mut warming = Warming::new(0.5, TERMS);
        for path in 0..3 {
            warming.call(path, "root", 0, false, true);
            warming.forecast(path, 0, &expect("a", 0.8));
            warming.forecast(path, 10, &expect("b", 0.4));
        }
        warming.call(0, "a", 300_000, true, false);
        warming.call(1, "a", 50_000, true, false);
        warming.call(2, "c", 50_000, true, false);
        (0..3).for_each(|path| warming.end(path));
        let result = warming.result();
        assert_eq!((result.warmed, result.used, result.cold_starts_avoided), (3, 2, 1));
        assert!((result.wasted_seconds - 1.0).abs() < 1e-9 && (result.idle_seconds - 0.2).abs() < 1e-9);
        assert!((result.cost - 2.5).abs() < 1e-9);
        assert!((result.recall - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn kept_alive_serves_the_next_and_runs_out() {
        let mut keeping = Keeping::new(500_000, TERMS);
        let callee: Arc<str> = "a".into();
        keeping.call(&callee, 0, 100_000, true, false);
        keeping.call(&callee, 50_000, 150_000, true, false);
        keeping.call(&callee, 300_000, 400_000, true, false);
        keeping.call(&callee, 2_000_000, 2_100_000, true, false);
        let result = keeping.result();
        assert_eq!((result.warmed, result.used, result.cold_starts_avoided), (4, 1, 1));
        assert!((result.wasted_seconds - 1.5).abs() < 1e-9);
    }
}
