//! What is learned of each kind of invocation: which calls it makes, and what each of them waits for.
//!
//! The model of one invocation is generative: it chooses a set of calls, each call starts some delay after the event
//! that it waits for (its trigger), and the invocation ends some delay after the last of them. Which event triggers
//! which call is learned too: the one that explains the delays best.

use std::collections::BTreeMap;

use super::{
    clues::Belief,
    density::{Counts, Density},
    order::Odds,
    sets::{Set, Sets},
};

/// A kind of invocation: service, operation and who called. Interned.
pub(super) type Parent = u32;
/// A kind of call: callee and operation. Interned.
pub(super) type Kind = u32;

/// A call as the model sees it; times in µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    pub kind: Kind,
    pub start: i64,
    pub end: i64,
}

/// What a call, or the end of the invocation, waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trigger {
    /// The start of the invocation.
    Start,
    /// The last answer to an earlier call.
    LastEnd,
    /// The last answer that came in time.
    LastInTime,
    /// The start of the call before.
    LastStart,
    /// The answer to the latest call of a kind.
    EndOf(Kind),
    /// The start of the latest call of a kind.
    StartOf(Kind),
    /// The start of the last visit that the same trace pays to the service.
    LastVisit,
}

/// When an invocation began; µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub start: i64,
    /// When the trace's last visit to the service began, if it pays several.
    pub visit: Option<i64>,
}

/// Most earlier calls that are looked at for a trigger; an invocation may make any number.
const LOOK_BACK: usize = 24;
/// Most kinds of calls of one kind of invocation that serve as triggers.
const MOST_TRIGGERS: usize = 8;
/// Most kinds of calls that are learned for one kind of invocation.
const MOST_KINDS: usize = 128;

impl Trigger {
    /// When it happened, as seen at `at`; whether it is there at all, or the nearest thing to it was taken.
    fn time(self, begin: Begin, earlier: impl Iterator<Item = Child>, at: i64, until: i64) -> (i64, bool) {
        match self {
            Self::Start => return (begin.start, true),
            Self::LastVisit => return (begin.visit.unwrap_or(begin.start), begin.visit.is_some()),
            _ => {}
        }
        let mut last_end = None;
        for (index, child) in earlier.enumerate() {
            match self {
                Self::LastStart => return (child.start, true),
                Self::EndOf(kind) if kind == child.kind => return (child.end, true),
                Self::StartOf(kind) if kind == child.kind => return (child.start, true),
                Self::LastInTime if child.end > until => {}
                _ if child.end <= at => last_end = last_end.max(Some(child.end)),
                _ => {}
            }
            if index >= LOOK_BACK {
                break;
            }
        }
        match (self, last_end) {
            (Self::LastEnd | Self::LastInTime, Some(end)) => (end, true),
            (_, Some(end)) => (end, false),
            (_, None) => (begin.start, false),
        }
    }
}

/// The delays after a trigger, and after what was taken in its place.
#[derive(Clone, Debug, Default)]
struct Delays {
    main: Counts,
    instead: Counts,
}

impl Delays {
    fn weight(&self) -> f64 {
        self.main.weight() + self.instead.weight()
    }

    fn fade(&mut self, keep: f64) {
        self.main.fade(keep);
        self.instead.fade(keep);
    }
}

/// One event's delays after each trigger that it might have.
#[derive(Clone, Debug, Default)]
struct Waits(BTreeMap<Trigger, Delays>);

impl Waits {
    fn add(&mut self, trigger: Trigger, (time, found): (i64, bool), at: i64, weight: f64) {
        let delays = self.0.entry(trigger).or_default();
        let counts = if found { &mut delays.main } else { &mut delays.instead };
        counts.add(at.saturating_sub(time), weight);
    }

    /// ln likelihood of an event on average, under the best trigger.
    fn usual(&self, late: bool) -> f64 {
        let fit = |trigger: Trigger| {
            let delays = self.0.get(&trigger)?;
            Some((delays.main.fit() + delays.instead.fit()) / delays.weight().max(1e-9))
        };
        self.best(late).and_then(|factor| fit(factor.trigger)).unwrap_or(0.0)
    }

    /// The trigger under which the delays were the least surprise.
    fn best(&self, late: bool) -> Option<Factor> {
        let most = self.0.values().map(Delays::weight).fold(0.0, f64::max);
        let mut best: Option<(f64, Trigger, &Delays)> = None;
        // A trigger that has not been there from the beginning has seen too little to be compared.
        let fits = |trigger: &Trigger| late || *trigger != Trigger::LastInTime;
        let seen = self.0.iter().filter(|(trigger, delays)| delays.weight() >= 0.9 * most && fits(trigger));
        for (trigger, delays) in seen {
            let fit = (delays.main.fit() + delays.instead.fit()) / delays.weight().max(1e-9);
            if best.is_none_or(|(best, ..)| fit > best) {
                best = Some((fit, *trigger, delays));
            }
        }
        best.map(|(_, trigger, delays)| Factor {
            trigger,
            main: Density::of(&delays.main),
            instead: Density::of(&delays.instead),
            odds: Odds::default(),
        })
    }
}

/// What is counted of one kind of invocation.
#[derive(Clone, Debug, Default)]
struct Record {
    /// How often each set of calls was made.
    sets: BTreeMap<Vec<(Kind, u16)>, f64>,
    starts: BTreeMap<Kind, Waits>,
    /// By kind: ln odds that order is kept beyond chance.
    odds: BTreeMap<Kind, Odds>,
    /// From start to end of an invocation without calls.
    idle: Counts,
    end: Waits,
    /// By kind: how long after the end of the invocation its answer came, and how often it came before.
    outlasts: BTreeMap<Kind, (Counts, f64)>,
}

/// Whether answers come after the end as a rule.
fn mostly(after: &Counts, before: f64) -> bool {
    after.weight() > 2.0 * before
}

impl Record {
    /// Whether some calls outlast the invocation as a rule.
    fn late(&self) -> bool {
        self.outlasts.values().any(|(after, before)| mostly(after, *before))
    }
}

/// Delay after a chosen trigger.
#[derive(Clone, Debug)]
struct Factor {
    trigger: Trigger,
    main: Density,
    instead: Density,
    /// ln odds that order is kept beyond chance.
    odds: Odds,
}

impl Factor {
    /// `seen`: answers up to then count.
    fn ln(&self, begin: Begin, earlier: impl Iterator<Item = Child>, seen: i64, at: i64) -> f64 {
        let (time, found) = self.trigger.time(begin, earlier, seen, at);
        self.delay(time, found, at)
    }

    fn delay(&self, time: i64, found: bool, at: i64) -> f64 {
        let density = if found { &self.main } else { &self.instead };
        density.ln(at.saturating_sub(time))
    }
}

/// What is known of one kind of invocation, ready to be asked.
#[derive(Clone, Debug)]
pub(super) struct Template {
    sets: Sets,
    starts: Vec<(Kind, Factor)>,
    idle: Density,
    end: Option<Factor>,
    /// Kinds of calls that are answered after the invocation has ended, as a rule, and how long after.
    outlasts: Vec<(Kind, Density)>,
    /// ln of what the end of an invocation is worth on average.
    usual_end: f64,
    flat: Density,
}

impl Template {
    fn of(record: &Record) -> Self {
        Self {
            sets: Sets::of(&record.sets),
            starts: record
                .starts
                .iter()
                .filter_map(|(kind, waits)| {
                    let odds = record.odds.get(kind).copied().unwrap_or_default();
                    Some((*kind, Factor { odds, ..waits.best(false)? }))
                })
                .collect(),
            idle: Density::of(&record.idle),
            end: record.end.best(record.late()),
            outlasts: record
                .outlasts
                .iter()
                .filter(|(_, (after, before))| mostly(after, *before))
                .map(|(kind, (after, _))| (*kind, Density::of(after)))
                .collect(),
            usual_end: record.end.usual(record.late()),
            flat: Density::flat(),
        }
    }

    /// Whether such an invocation was ever seen to make such a call.
    pub fn knows(&self, kind: Kind) -> bool {
        self.starts.iter().any(|(known, _)| *known == kind)
    }

    /// ln probability that an invocation in `set` makes one more call of this kind, and makes it at its start.
    /// `earlier` has its calls so far, the latest first.
    ///
    /// Also what it waited for, if that was there and it makes no such call already, with the odds of [`super::order`].
    pub fn call(
        &mut self,
        set: Set,
        begin: Begin,
        earlier: impl Iterator<Item = Child> + Clone,
        next: Child,
    ) -> (f64, Set, Option<(i64, f64)>) {
        let (step, set) = self.sets.step(set, next.kind);
        let mut wait = None;
        let delay = match self.starts.iter().find(|(kind, _)| *kind == next.kind) {
            Some((_, factor)) => {
                let first = !earlier.clone().take(LOOK_BACK).any(|child| child.kind == next.kind);
                let (time, found) = factor.trigger.time(begin, earlier, next.start, next.start);
                let (since, there) = if factor.odds.since_start { (begin.start, true) } else { (time, found) };
                wait = (first && there).then_some((since, factor.odds.ln));
                factor.delay(time, found, next.start)
            }
            None => self.flat.ln(next.start.saturating_sub(begin.start)),
        };
        (step + delay, set, wait)
    }

    /// When what a call waited for happened, if it did, and it is the first of its kind.
    pub fn waits(
        &self,
        begin: Begin,
        earlier: impl Iterator<Item = Child> + Clone,
        next: Child,
    ) -> Option<(i64, bool)> {
        let (_, factor) = self.starts.iter().find(|(kind, _)| *kind == next.kind)?;
        let first = !earlier.clone().take(LOOK_BACK).any(|child| child.kind == next.kind);
        let (time, found) = factor.trigger.time(begin, earlier, next.start, next.start);
        first.then_some((time, found))
    }

    /// ln probability that an invocation in `set` makes no more calls and ends at `end`.
    pub fn end(&self, set: Set, begin: Begin, earlier: impl Iterator<Item = Child> + Clone, end: i64) -> f64 {
        let mut late = 0.0;
        if !self.outlasts.is_empty() {
            for child in earlier.clone().take(LOOK_BACK) {
                let density = self.outlasts.iter().find(|(kind, _)| *kind == child.kind);
                late += density.map_or(0.0, |(_, density)| density.ln(child.end.saturating_sub(end)));
            }
        }
        let delay = match (&self.end, set) {
            (_, Set::EMPTY) => self.idle.ln(end.saturating_sub(begin.start)),
            (Some(factor), _) => factor.ln(begin, earlier, i64::MAX, end),
            (None, _) => self.flat.ln(end.saturating_sub(begin.start)),
        };
        self.sets.stop(set) + delay + late
    }
}

impl Template {
    /// What the end of an invocation in `set` will probably be worth: as if it made no more calls, by the probability of
    /// that, and else what an end is worth on average.
    pub fn outlook(&self, set: Set, begin: Begin, earlier: impl Iterator<Item = Child> + Clone, end: i64) -> f64 {
        let stop = self.sets.stop(set).min(0.0);
        let now = self.end(set, begin, earlier, end);
        let later = (1.0 - stop.exp()).max(1e-9).ln() + self.usual_end;
        let (high, low) = if now >= later { (now, later) } else { (later, now) };
        high + (low - high).exp().ln_1p()
    }
}

/// Everything that was learned, by kind of invocation.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    records: BTreeMap<Parent, Record>,
    /// How often each set of calls was made by all visits of a trace together.
    visits: BTreeMap<Vec<(Kind, u16)>, f64>,
    /// How far clues are to be believed.
    pub belief: Belief,
}

/// How often each kind of call is there.
fn count(children: impl Iterator<Item = Kind>) -> BTreeMap<Kind, u16> {
    let mut set = BTreeMap::<Kind, u16>::new();
    for kind in children {
        let count = set.entry(kind).or_default();
        *count = count.saturating_add(1).min(super::sets::MOST_OF_A_KIND);
    }
    set
}

impl Model {
    /// Forgets a share of what was learned, so that a changed function is followed.
    pub fn fade(&mut self, keep: f64) {
        self.visits.values_mut().for_each(|count| *count *= keep);
        self.visits.retain(|_, count| *count > 1e-3);
        self.belief.fade(keep);
        for record in self.records.values_mut() {
            record.sets.values_mut().for_each(|count| *count *= keep);
            record.sets.retain(|_, count| *count > 1e-3);
            record.idle.fade(keep);
            record.outlasts.values_mut().for_each(|(after, before)| {
                after.fade(keep);
                *before *= keep;
            });
            let waits = record.starts.values_mut().chain([&mut record.end]);
            waits.flat_map(|waits| waits.0.values_mut()).for_each(|delays| delays.fade(keep));
        }
    }

    /// Learns one invocation with its calls, sorted by start.
    pub fn learn(&mut self, parent: Parent, (begin, end): (Begin, i64), children: &[Child], weight: f64) {
        if weight <= 0.0 {
            return;
        }
        let record = self.records.entry(parent).or_default();
        let set = count(children.iter().map(|child| child.kind));
        let kinds: Vec<Kind> = set.keys().copied().take(MOST_TRIGGERS).collect();
        *record.sets.entry(set.into_iter().collect()).or_default() += weight;
        if children.is_empty() {
            record.idle.add(end.saturating_sub(begin.start), weight);
            return;
        }
        for (index, child) in children.iter().enumerate() {
            if record.starts.len() >= MOST_KINDS && !record.starts.contains_key(&child.kind) {
                continue;
            }
            let waits = record.starts.entry(child.kind).or_default();
            let before = children.get(..index).unwrap_or_default();
            let mut add = |trigger: Trigger| {
                let time = trigger.time(begin, before.iter().rev().copied(), child.start, child.start);
                waits.add(trigger, time, child.start, weight);
            };
            [Trigger::Start, Trigger::LastEnd, Trigger::LastStart, Trigger::LastVisit].into_iter().for_each(&mut add);
            for kind in &kinds {
                add(Trigger::EndOf(*kind));
                add(Trigger::StartOf(*kind));
            }
        }
        let mut add = |trigger: Trigger| {
            let time = trigger.time(begin, children.iter().rev().copied(), i64::MAX, end);
            record.end.add(trigger, time, end, weight);
        };
        [Trigger::Start, Trigger::LastEnd, Trigger::LastInTime].into_iter().for_each(&mut add);
        kinds.iter().for_each(|kind| add(Trigger::EndOf(*kind)));
        for child in children.iter().take(LOOK_BACK) {
            if record.outlasts.len() < MOST_TRIGGERS || record.outlasts.contains_key(&child.kind) {
                let (after, before) = record.outlasts.entry(child.kind).or_default();
                if child.end > end {
                    after.add(child.end.saturating_sub(end), weight);
                } else {
                    *before += weight;
                }
            }
        }
    }

    /// Takes in how far a kind of call keeps order.
    pub fn learn_order(&mut self, parent: Parent, kind: Kind, odds: Odds) {
        if let Some(record) = self.records.get_mut(&parent).filter(|record| record.starts.contains_key(&kind)) {
            record.odds.insert(kind, odds);
        }
    }

    /// Learns the calls that all visits of a trace made together.
    pub fn learn_visits(&mut self, kinds: impl Iterator<Item = Kind>, weight: f64) {
        *self.visits.entry(count(kinds).into_iter().collect()).or_default() += weight;
    }

    /// The calls of all visits of a trace, ready to be asked.
    pub fn visits(&self) -> Sets {
        Sets::of(&self.visits)
    }

    /// What was learned, ready to be asked.
    pub fn templates(&self) -> BTreeMap<Parent, Template> {
        self.records.iter().map(|(parent, record)| (*parent, Template::of(record))).collect()
    }
}
