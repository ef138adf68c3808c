//! `--max-overhead`: keeps what the agent itself costs within a bound, by recording fewer paths.
//!
//! Once a second it measures both halves and moves one number, the [`Governor::level`]: so many paths a second of each
//! function are recorded. Functions that begin fewer stay fully recorded; those that begin more are sampled down to it.
//! What sampling cannot save (telling where messages begin and end, and whose calls are whose) stays: then the level is at
//! its least, and the counts say that the bound is exceeded.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;
use tracer_ebpf::record::FUNCTIONS_MAX;

use crate::agent::{Agent, RunTime, Sampling};

/// How often [`Governor::tick`] wants to be called.
pub const TICK: Duration = Duration::from_millis(100);
/// One measurement in so many ticks. Counting run time costs every program of the host two looks at the clock, so it is
/// on for the first tick of these only.
const TICKS: u32 = 10;
/// The level does not fall below: some path of each function is always to be seen.
const LEVEL_MIN: f64 = 1.0;
/// The most that the level rises and falls in one step: a measurement may have caught a moment that is not like others.
const RISE: f64 = 1.25;
const FALL: f64 = 0.2;
/// Aims so far below the bound.
const AIM: f64 = 0.9;

/// What the agent cost in the last second, as parts of the host's processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The programs of the kernel half.
    pub kernel: f64,
    /// This process.
    pub user: f64,
}

/// How many paths a second of each function are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    /// Infinite as long as all are.
    rate: f64,
}

impl Level {
    /// Moves with the cost, of which `bound` is allowed, where the busiest function begins `busiest` paths a second.
    fn moves(&mut self, cost: f64, bound: f64, busiest: f64) {
        if cost > bound {
            // What is above the busiest has no effect, so it does not begin to fall there.
            self.rate = (self.rate.min(busiest) * (AIM * bound / cost).max(FALL)).max(LEVEL_MIN);
        } else if self.rate.is_finite() {
            self.rate *= (AIM * bound / cost.max(f64::MIN_POSITIVE)).clamp(1.0, RISE);
            if self.rate > 2.0 * busiest {
                self.rate = f64::INFINITY;
            }
        }
    }

    /// The share of a function's paths that is recorded.
    fn share(self, rate: f64) -> f64 {
        if rate <= self.rate { 1.0 } else { self.rate / rate }
    }
}

/// A function, or all that have no place of their own.
#[derive(Debug)]
struct Function {
    name: Arc<str>,
    /// Paths that it had begun when last looked at.
    roots: u64,
    share: f64,
}

/// See the module.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Governor {
    bound: f64,
    sampling: Sampling,
    level: Level,
    cost: Cost,
    /// By place.
    functions: Vec<Function>,
    places: HashMap<Arc<str>, usize>,
    ticks: u32,
    counting: Option<(RunTime, Instant, Duration)>,
    last: (Instant, Duration),
}

/// What `stats` lines say of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The bound, in % of the host's processor time.
    pub max_overhead: f64,
    /// What the agent cost in the last second, in the same.
    pub overhead: f64,
    /// Of that, the kernel half.
    pub overhead_kernel: f64,
    /// Whether the level is at its least, and the bound is exceeded even so.
    pub exceeded: bool,
    /// How many paths a second of each function are recorded; `null` while all are.
    pub level: Option<f64>,
    /// The functions of which not all are, with the share that is.
    pub shares: HashMap<Arc<str>, f64>,
}

impl Governor {
    /// Begins to watch. `percent` of the host's processor time is allowed.
    ///
    /// # Errors
    ///
    /// If this process may not count the run time of programs (`CAP_SYS_ADMIN`), or a map cannot be written.
    pub fn start(percent: f64, agent: &mut Agent) -> Result<Self> {
        drop(RunTime::count()?);
        let mut sampling = agent.sampling()?;
        sampling.set_share(0, 1.0)?;
        let others = Function { name: Arc::from("(others)"), roots: 0, share: 1.0 };
        Ok(Self {
            bound: percent / 100.0,
            sampling,
            level: Level { rate: f64::INFINITY },
            cost: Cost::default(),
            functions: vec![others],
            places: HashMap::new(),
            ticks: 0,
            counting: None,
            last: (Instant::now(), cpu_time()),
        })
    }

    /// A sandbox turned out to run this function.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn named(&mut self, cgroup: u64, function: &str) -> Result<()> {
        let place = match self.places.get(function) {
            Some(place) => *place,
            None if self.functions.len() >= FUNCTIONS_MAX => 0,
            None => {
                let (name, place): (Arc<str>, _) = (Arc::from(function), self.functions.len());
                self.sampling.set_share(place, 1.0)?;
                self.functions.push(Function { name: Arc::clone(&name), roots: 0, share: 1.0 });
                self.places.insert(name, place);
                place
            }
        };
        self.sampling.place(cgroup, place)
    }

    /// A sandbox is gone.
    pub fn gone(&mut self, cgroup: u64) {
        self.sampling.forget(cgroup);
    }

    /// Measures, and decides, when it is time to.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn tick(&mut self, agent: &Agent) -> Result<()> {
        self.ticks += 1;
        match self.ticks % TICKS {
            0 => self.counting = Some((RunTime::count()?, Instant::now(), agent.run_time()?)),
            1 => {
                if let Some((counting, begin, before)) = self.counting.take() {
                    let (time, run) = (begin.elapsed(), agent.run_time()?.saturating_sub(before));
                    drop(counting);
                    self.decide(run.as_secs_f64() / time.as_secs_f64())?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// `kernel`: processors that the kernel half kept busy.
    fn decide(&mut self, kernel: f64) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let (now, cpu) = (Instant::now(), cpu_time());
        let seconds = (now - self.last.0).as_secs_f64();
        let user = cpu.saturating_sub(self.last.1).as_secs_f64() / seconds;
        self.last = (now, cpu);
        self.cost = Cost { kernel: kernel / processors, user: user / processors };
        let mut rates = Vec::with_capacity(self.functions.len());
        for (place, function) in self.functions.iter_mut().enumerate() {
            let roots = self.sampling.roots(place)?;
            rates.push(roots.wrapping_sub(function.roots) as f64 / seconds);
            function.roots = roots;
        }
        let busiest = rates.iter().copied().fold(0.0, f64::max);
        self.level.moves(self.cost.kernel + self.cost.user, self.bound, busiest);
        for (place, (function, rate)) in self.functions.iter_mut().zip(rates).enumerate() {
            let share = self.level.share(rate);
            if share != function.share {
                self.sampling.set_share(place, share)?;
                function.share = share;
            }
        }
        Ok(())
    }

    /// What it has come to.
    pub fn report(&self) -> Report {
        let percent = |part: f64| (part * 1e5).round() / 1e3;
        let overhead = self.cost.kernel + self.cost.user;
        let sampled = self.functions.iter().filter(|function| function.share < 1.0);
        Report {
            max_overhead: percent(self.bound),
            overhead: percent(overhead),
            overhead_kernel: percent(self.cost.kernel),
            exceeded: overhead > self.bound && self.level.rate <= LEVEL_MIN,
            level: self.level.rate.is_finite().then_some(self.level.rate.round()),
            shares: sampled.map(|function| (Arc::clone(&function.name), percent(function.share) / 100.0)).collect(),
        }
    }
}

/// What this process has used.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which each recorded path costs `each`, whatever is recorded costs `base`, and functions begin `rates`.
    fn settle(level: &mut Level, rates: &[f64], base: f64, each: f64, bound: f64) -> f64 {
        let mut cost = 0.0;
        for _ in 0..60 {
            let recorded: f64 = rates.iter().map(|rate| rate * level.share(*rate)).sum();
            cost = base + recorded * each;
            level.moves(cost, bound, rates.iter().copied().fold(0.0, f64::max));
        }
        cost
    }

    #[test]
    fn the_frequent_are_sampled_and_the_rare_are_not() {
        let mut level = Level { rate: f64::INFINITY };
        let rates = [10_000.0, 3000.0, 5.0, 0.0];
        let cost = settle(&mut level, &rates, 0.001, 2e-6, 0.01);
        assert!((0.008..=0.01).contains(&cost), "{cost}");
        assert!(level.share(10_000.0) < level.share(3000.0) && level.share(3000.0) < 1.0);
        assert_eq!((level.share(5.0), level.share(0.0)), (1.0, 1.0));
    }

    #[test]
    fn within_the_bound_nothing_is_sampled() {
        let mut level = Level { rate: f64::INFINITY };
        settle(&mut level, &[1000.0, 5.0], 0.001, 2e-6, 0.01);
        assert_eq!(level.rate, f64::INFINITY);
    }

    #[test]
    fn when_the_load_goes_all_is_recorded_again() {
        let mut level = Level { rate: f64::INFINITY };
        settle(&mut level, &[10_000.0], 0.0, 2e-6, 0.01);
        assert!(level.share(10_000.0) < 1.0);
        settle(&mut level, &[100.0], 0.0, 2e-6, 0.01);
        assert_eq!(level.rate, f64::INFINITY);
    }

    #[test]
    fn what_sampling_cannot_save_leaves_some_of_each() {
        let mut level = Level { rate: f64::INFINITY };
        let cost = settle(&mut level, &[10_000.0, 0.5], 0.05, 2e-6, 0.01);
        assert!(cost > 0.01);
        assert_eq!((level.rate, level.share(0.5)), (LEVEL_MIN, 1.0));
    }
}
