//! What is scored: the forecaster, and the baselines that it has to beat.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    AsOf, Event, Forecaster,
    table::{mix, name_hash},
};

/// A call that a method expects within the horizon.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) callee: Arc<str>,
    pub(super) probability: f32,
}

/// The likeliest next call, its probability, and the time until it comes, in ms.
#[derive(Clone, Debug, Default)]
pub(super) struct Guess {
    pub(super) callee: Option<Arc<str>>,
    pub(super) probability: f32,
    pub(super) after_ms: Option<f32>,
}

/// A method under test.
pub(super) trait Predict {
    /// Takes in what happened; learns from it unless frozen.
    fn observe(&mut self, event: Event<'_>);
    /// Stops learning.
    fn freeze(&mut self);
    /// The next call of a path.
    fn next(&self, path: u64, as_of: AsOf) -> Guess;
    /// The probability that `callee` is next; `None`: that the path ends.
    fn chance(&self, path: u64, as_of: AsOf, callee: Option<&str>) -> f32;
    /// The calls of a path within `horizon_ms` from `now_us`.
    fn within(&self, path: u64, now_us: i64, horizon_ms: f32) -> Vec<Expected>;
}

impl Predict for Forecaster {
    fn observe(&mut self, event: Event<'_>) {
        Forecaster::observe(self, event);
    }

    fn freeze(&mut self) {
        Forecaster::freeze(self, true);
    }

    fn next(&self, path: u64, as_of: AsOf) -> Guess {
        Forecaster::next(self, path, as_of).map_or_else(Guess::default, |next| Guess {
            callee: next.callee,
            probability: next.probability,
            after_ms: next.when_ms.map(|when| when[1]),
        })
    }

    fn chance(&self, path: u64, as_of: AsOf, callee: Option<&str>) -> f32 {
        Forecaster::chance(self, path, as_of, callee)
    }

    fn within(&self, path: u64, now_us: i64, horizon_ms: f32) -> Vec<Expected> {
        let forecasts = self.forecast(path, now_us, horizon_ms).into_iter();
        forecasts.map(|forecast| Expected { callee: forecast.callee, probability: forecast.probability }).collect()
    }
}

/// Counts of what came next, with the gaps before it.
#[derive(Debug, Default)]
struct Edges {
    total: u32,
    ends: u32,
    /// Callee → how often, and how often within 1, 2, 4, … ms.
    next: BTreeMap<Arc<str>, (u32, [u32; 24])>,
}

impl Edges {
    fn learn(&mut self, callee: Option<&str>, gap_ms: f32) {
        self.total += 1;
        let Some(callee) = callee else {
            self.ends += 1;
            return;
        };
        if !self.next.contains_key(callee) {
            self.next.insert(Arc::from(callee), (0, [0; 24]));
        }
        if let Some((count, gaps)) = self.next.get_mut(callee) {
            *count += 1;
            gaps.iter_mut().enumerate().filter(|gap| gap_ms <= (1_u32 << gap.0) as f32).for_each(|gap| *gap.1 += 1);
        }
    }

    fn guess(&self) -> Guess {
        let top = self.next.iter().max_by(|a, b| a.1.0.cmp(&b.1.0).then(b.0.cmp(a.0)));
        top.map_or_else(Guess::default, |(callee, (count, gaps))| Guess {
            callee: Some(callee.clone()),
            probability: *count as f32 / self.total.max(1) as f32,
            after_ms: gaps.iter().position(|gap| gap * 2 >= *count).map(|power| 0.75 * (1_u32 << power) as f32),
        })
    }

    fn chance(&self, callee: Option<&str>) -> f32 {
        let count = match callee {
            None => self.ends,
            Some(callee) => self.next.get(callee).map_or(0, |entry| entry.0),
        };
        // As in the forecaster, what was never seen keeps a share.
        (count as f32 + 0.5) / (self.total as f32 + 0.5 * (self.next.len() as f32 + 2.0))
    }

    fn within(&self, horizon_ms: f32) -> impl Iterator<Item = Expected> {
        let power = (horizon_ms.max(1.0).log2() as usize).min(23);
        self.next.iter().map(move |(callee, (_, gaps))| Expected {
            callee: callee.clone(),
            probability: gaps.get(power).map_or(0.0, |&gap| gap as f32 / self.total.max(1) as f32),
        })
    }
}

/// What a count goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    /// The latest callee: an order-1 Markov chain over the sequence of calls.
    Last,
    /// The set of callees so far, whatever their order.
    Set,
    /// Nothing: the most frequent callee, whatever came before.
    None,
}

/// A path that runs, as the counting methods see it.
#[derive(Debug, Default)]
struct Counted {
    /// Hashes of the callees so far.
    called: HashSet<u64>,
    /// What the next call is counted under.
    context: u64,
    latest_us: i64,
}

/// Counts of what followed in each context.
#[derive(Debug)]
pub(super) struct Counting {
    by: Context,
    frozen: bool,
    edges: HashMap<u64, Edges>,
    live: HashMap<u64, Counted>,
}

impl Counting {
    fn by(by: Context) -> Self {
        Self { by, frozen: false, edges: HashMap::new(), live: HashMap::new() }
    }

    /// Counts what follows each callee.
    pub(super) fn edges() -> Self {
        Self::by(Context::Last)
    }

    /// Counts what follows each set of callees.
    pub(super) fn sets() -> Self {
        Self::by(Context::Set)
    }

    /// Counts all callees together.
    pub(super) fn most_frequent() -> Self {
        Self::by(Context::None)
    }

    fn of(&self, path: u64) -> Option<&Edges> {
        self.edges.get(&self.live.get(&path)?.context)
    }
}

impl Predict for Counting {
    fn observe(&mut self, event: Event<'_>) {
        let (path, callee, at_us) = match event {
            Event::Call { path, callee, at_us, .. } => (path, Some(callee), at_us),
            Event::End { path, .. } => (path, None, 0),
            Event::Start { .. } | Event::Answer { .. } => return,
        };
        let before = self.live.remove(&path);
        if let Some(before) = before.as_ref().filter(|_| !self.frozen) {
            let gap_ms = at_us.saturating_sub(before.latest_us) as f32 / 1000.0;
            self.edges.entry(before.context).or_default().learn(callee, gap_ms);
        }
        let Some(callee) = callee else { return };
        let mut path_now = before.unwrap_or_default();
        path_now.latest_us = at_us;
        let name = name_hash(callee);
        path_now.context = match self.by {
            Context::Last => name,
            Context::Set if path_now.called.insert(name) => path_now.context.wrapping_add(mix(1, name)),
            Context::Set => path_now.context,
            Context::None => 0,
        };
        self.live.insert(path, path_now);
    }

    fn freeze(&mut self) {
        self.frozen = true;
    }

    fn next(&self, path: u64, _: AsOf) -> Guess {
        self.of(path).map_or_else(Guess::default, Edges::guess)
    }

    fn chance(&self, path: u64, _: AsOf, callee: Option<&str>) -> f32 {
        self.of(path).map_or(1e-3, |edges| edges.chance(callee))
    }

    fn within(&self, path: u64, _: i64, horizon_ms: f32) -> Vec<Expected> {
        let all = self.of(path).map(|edges| edges.within(horizon_ms));
        if self.by == Context::None {
            // Always the same one, whatever its probability.
            let top = all.and_then(|all| all.max_by(|a, b| a.probability.total_cmp(&b.probability)));
            top.map(|top| Expected { probability: 1.0, ..top }).into_iter().collect()
        } else {
            all.map(Iterator::collect).unwrap_or_default()
        }
    }
}

/// Forecasts nothing: what was used stays warm for a while.
#[derive(Debug)]
pub(super) struct KeepAlive {
    seconds: f32,
    used: BTreeMap<Arc<str>, i64>,
}

impl KeepAlive {
    pub(super) fn new(seconds: f32) -> Self {
        Self { seconds, used: BTreeMap::new() }
    }
}

impl Predict for KeepAlive {
    fn observe(&mut self, event: Event<'_>) {
        if let Event::Call { callee, at_us, .. } = event {
            if let Some(used) = self.used.get_mut(callee) {
                *used = at_us;
            } else {
                self.used.insert(Arc::from(callee), at_us);
            }
        }
    }

    fn freeze(&mut self) {}

    fn next(&self, _: u64, _: AsOf) -> Guess {
        Guess::default()
    }

    fn chance(&self, _: u64, _: AsOf, _: Option<&str>) -> f32 {
        1.0 / (self.used.len() as f32 + 2.0)
    }

    fn within(&self, _: u64, now_us: i64, _: f32) -> Vec<Expected> {
        let warm = self.used.iter().filter(|used| now_us.saturating_sub(*used.1) as f32 <= self.seconds * 1e6);
        warm.map(|(callee, _)| Expected { callee: callee.clone(), probability: 1.0 }).collect()
    }
}
