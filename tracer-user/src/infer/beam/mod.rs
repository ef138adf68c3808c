//! Which invocation of a service made each of its calls: the joint assignment, searched in the order of time.
//!
//! Hypotheses say to which live invocation each call so far belongs. A call splits each hypothesis by the invocations
//! that may have made it; the end of an invocation judges what was given to it. Hypotheses that agree on all that is
//! still live are merged, but their pasts are kept as a lattice, so that when nothing is live any more, or the lattice
//! has grown to its bound, one pass backwards gives the probability of each set of calls.

mod lattice;

use std::collections::BTreeMap;

use self::lattice::Past;
use super::{
    clues::{Belief, Clues, Pointer, pointers},
    model::{Begin, Child, Kind, Parent, Template},
    sets::{Set, Sets},
};

/// An invocation of the service; times in µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inv {
    pub parent: Parent,
    pub start: i64,
    pub end: i64,
    /// It has not ended.
    pub open: bool,
    pub clues: Clues,
    /// The visits of one trace to the service, by index, if it pays several.
    pub group: Option<u32>,
}

/// The visits of one trace to the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// How many.
    pub visits: u32,
    /// When the last of them began, µs.
    pub last: i64,
}

/// What the search knows beforehand.
#[derive(Debug)]
pub(super) struct Known {
    pub templates: BTreeMap<Parent, Template>,
    pub visits: Sets,
    pub belief: Belief,
}

/// A call that the service sent; times in µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub kind: Kind,
    pub start: i64,
    pub end: i64,
    /// The invocation that it caused, if that is one of the same service: it did not make the call.
    pub callee: Option<u32>,
    /// The invocation that made it, if that is known.
    pub made_by: Option<u32>,
    pub clues: Clues,
}

impl Sent {
    pub fn child(&self) -> Child {
        Child { kind: self.kind, start: self.start, end: self.end }
    }
}

/// A set of calls that an invocation may have made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    /// By index, ascending.
    pub calls: Vec<u32>,
    /// Probability.
    pub p: f64,
}

/// What the search found.
#[derive(Clone, Debug, Default)]
pub(super) struct Solved {
    /// By call: the invocation that made it.
    pub parent: Vec<Option<u32>>,
    /// By call: the probability that this is so.
    pub p: Vec<f64>,
    /// By invocation: the sets of calls that it may have made, the most probable first.
    pub choices: Vec<Vec<Choice>>,
    /// Calls whose clues pointed at somebody.
    pub pointed: Vec<Pointed>,
}

/// A call, the invocations that may have made it, and where its clues point.
#[derive(Clone, Debug)]
pub(super) struct Pointed {
    pub call: u32,
    pub candidates: Vec<u32>,
    pub pointers: Vec<Pointer>,
}

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most hypotheses at a time.
    pub width: usize,
    /// A hypothesis this much less probable than the best is given up, in ln.
    pub drop: f64,
    /// Most nodes of the lattice before it is cut.
    pub lattice: usize,
}

/// ln of how probable it is that nobody made a call, against a density per µs.
const NOBODY: f64 = -25.0;
/// Invocations passed over that count.
const MOST_OVER: usize = 3;
/// Sets kept for each invocation.
const MOST_CHOICES: usize = 8;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
enum Event {
    Open(u32),
    Call(u32),
    Close(u32),
}

/// What a hypothesis holds of one live invocation.
#[derive(Clone, Copy, Debug)]
struct Slot {
    set: Set,
    /// Its calls, the latest first, in the arena of calls.
    calls: u32,
    hash: u64,
    /// What its end will probably be worth, ln.
    outlook: f64,
}

#[derive(Clone, Debug)]
struct Hypothesis {
    /// ln of the sum over the pasts that were merged; ln of the best of them.
    sum: f64,
    best: f64,
    /// The outlook of all slots. What is given up is chosen by it, and nothing else: when an invocation ends is known
    /// long before the search gets there, and what does not fit need not be carried along until then.
    outlook: f64,
    /// Of all slots.
    hash: u64,
    past: u32,
    slots: Vec<Slot>,
    /// The calls of each live group.
    groups: Vec<Set>,
}

/// Where a call went: the slot and its set after; the live group and its set after.
#[derive(Clone, Copy, Debug)]
struct Taken {
    slot: usize,
    set: Set,
    outlook: f64,
    group: Option<(usize, Set)>,
}

/// A live invocation that may have made a call: its slot, its live group.
#[derive(Clone, Copy, Debug)]
struct Able {
    slot: usize,
    inv: Inv,
    begin: Begin,
    group: Option<usize>,
    /// ln of what the clues say.
    clue: f64,
}

/// An invocation that waits to make a call: the split that gives it one, since when, and the odds for the order.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    split: usize,
    parent: Parent,
    since: i64,
    odds: f64,
}

/// A hypothesis with one more call.
#[derive(Clone, Copy, Debug)]
struct Split {
    of: usize,
    to: Option<Taken>,
    sum: f64,
    ln: f64,
    /// [`Hypothesis::outlook`] after it.
    outlook: f64,
}

impl Split {
    fn rank(&self) -> f64 {
        self.sum + self.outlook
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x2545_f491_4f6c_dd1d);
    x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

fn group_hash(group: u32, set: Set) -> u64 {
    mix(u64::from(group) | 1 << 40, set.index())
}

fn ln_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a >= b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}

/// The search over one service.
#[derive(Debug)]
pub(super) struct Search<'a> {
    invs: &'a [Inv],
    sent: &'a [Sent],
    groups: &'a [Group],
    known: &'a mut Known,
    limits: Limits,
    live: Vec<u32>,
    /// Group, and visits that have not ended.
    live_groups: Vec<(u32, u32)>,
    hypotheses: Vec<Hypothesis>,
    /// Call and the one before.
    calls: Vec<(u32, u32)>,
    pasts: Vec<Past>,
    solved: Solved,
}

/// Assigns the calls of one service to its invocations.
pub(super) fn solve(invs: &[Inv], sent: &[Sent], groups: &[Group], known: &mut Known, limits: Limits) -> Solved {
    let mut search = Search {
        invs,
        sent,
        groups,
        known,
        limits,
        live: Vec::new(),
        live_groups: Vec::new(),
        hypotheses: vec![Hypothesis {
            sum: 0.0,
            best: 0.0,
            outlook: 0.0,
            hash: 0,
            past: NONE,
            slots: Vec::new(),
            groups: Vec::new(),
        }],
        calls: Vec::new(),
        pasts: Vec::new(),
        solved: Solved {
            parent: vec![None; sent.len()],
            p: vec![0.0; sent.len()],
            choices: vec![Vec::new(); invs.len()],
            pointed: Vec::new(),
        },
    };
    search.run();
    search.finish()
}

impl Search<'_> {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(2 * self.invs.len() + self.sent.len());
        for (index, inv) in self.invs.iter().enumerate() {
            events.push((inv.start, 0_u8, Event::Open(index as u32)));
            events.push((inv.end.max(inv.start), 2, Event::Close(index as u32)));
        }
        for (index, sent) in self.sent.iter().enumerate() {
            events.push((sent.start, 1, Event::Call(index as u32)));
        }
        events.sort_by_key(|(time, order, _)| (*time, *order));
        for (.., event) in events {
            match event {
                Event::Open(inv) => self.open(inv),
                Event::Call(call) => self.call(call),
                Event::Close(inv) => self.close(inv),
            }
        }
        self.settle();
    }

    fn open(&mut self, inv: u32) {
        self.live.push(inv);
        let group = self.group_of(inv);
        if let Some((index, group)) = group.filter(|(index, _)| self.live_groups.iter().all(|(live, _)| live != index))
        {
            self.live_groups.push((index, group.visits));
            for hypothesis in &mut self.hypotheses {
                hypothesis.hash = hypothesis.hash.wrapping_add(group_hash(index, Set::EMPTY));
                hypothesis.groups.push(Set::EMPTY);
            }
        }
        let outlook = self.outlook(inv);
        for hypothesis in &mut self.hypotheses {
            let hash = mix(u64::from(inv), 1);
            hypothesis.hash = hypothesis.hash.wrapping_add(hash);
            hypothesis.outlook += outlook;
            hypothesis.slots.push(Slot { set: Set::EMPTY, calls: NONE, hash, outlook });
        }
    }

    /// What the end of an invocation without calls so far will probably be worth.
    fn outlook(&self, inv: u32) -> f64 {
        let Some(found) = self.invs.get(inv as usize).filter(|inv| !inv.open) else { return 0.0 };
        let template = self.known.templates.get(&found.parent);
        template.map_or(0.0, |template| template.outlook(Set::EMPTY, self.begin(found), std::iter::empty(), found.end))
    }

    fn group_of(&self, inv: u32) -> Option<(u32, Group)> {
        let index = self.invs.get(inv as usize)?.group?;
        Some((index, *self.groups.get(index as usize)?))
    }

    fn begin(&self, inv: &Inv) -> Begin {
        let group = inv.group.and_then(|group| self.groups.get(group as usize));
        Begin { start: inv.start, visit: group.map(|group| group.last) }
    }

    fn call(&mut self, call: u32) {
        let Some(sent) = self.sent.get(call as usize).copied() else { return };
        let splits = self.split(call, &sent);
        self.adopt(call, splits);
    }

    /// The hypotheses with one more call, the improbable left out; by hypothesis.
    fn split(&mut self, call: u32, sent: &Sent) -> Vec<Split> {
        let mut splits: Vec<Split> = Vec::new();
        let mut waits: Vec<Waiting> = Vec::new();
        let able = self.able(call, sent);
        let known = sent.made_by.is_some() && !able.is_empty();
        for (index, hypothesis) in self.hypotheses.iter().enumerate() {
            waits.clear();
            if !known {
                splits.push(Split {
                    of: index,
                    to: None,
                    sum: hypothesis.sum + NOBODY,
                    ln: NOBODY,
                    outlook: hypothesis.outlook,
                });
            }
            for Able { slot: at, inv, begin, group, clue } in &able {
                let (Some(slot), Some(template)) =
                    (hypothesis.slots.get(*at), self.known.templates.get_mut(&inv.parent))
                else {
                    continue;
                };
                let earlier = Earlier { calls: &self.calls, sent: self.sent, at: slot.calls };
                let (mut ln, set, wait) = template.call(slot.set, *begin, earlier, sent.child());
                ln += clue;
                if let Some((since, odds)) = wait {
                    waits.push(Waiting { split: splits.len(), parent: inv.parent, since, odds });
                }
                let group = group.and_then(|at| Some((at, *hypothesis.groups.get(at)?))).map(|(at, set)| {
                    let (step, set) = self.known.visits.step(set, sent.kind);
                    ln += step;
                    (at, set)
                });
                let with = std::iter::once(sent.child()).chain(earlier);
                let outlook = if inv.open { 0.0 } else { template.outlook(set, *begin, with, inv.end) };
                let to = Some(Taken { slot: *at, set, outlook, group });
                let outlook = hypothesis.outlook - slot.outlook + outlook;
                splits.push(Split { of: index, to, sum: hypothesis.sum + ln, ln, outlook });
            }
            // Those that waited longer and are passed over.
            for waiting in &waits {
                let before = |other: &&Waiting| other.parent == waiting.parent && other.since < waiting.since;
                let over = waits.iter().filter(before).count().min(MOST_OVER);
                if let Some(split) = splits.get_mut(waiting.split).filter(|_| over > 0) {
                    split.ln -= waiting.odds * over as f64;
                    split.sum -= waiting.odds * over as f64;
                }
            }
        }
        let best = splits.iter().map(Split::rank).fold(f64::NEG_INFINITY, f64::max);
        splits.retain(|split| split.rank() >= best - self.limits.drop);
        if splits.len() > self.limits.width {
            // Stable: what is equal stays in the order of slots.
            splits.sort_by(|a, b| b.rank().total_cmp(&a.rank()));
            splits.truncate(self.limits.width);
            splits.sort_by_key(|split| split.of);
        }
        splits
    }

    /// Goes on with the hypotheses that have taken a call.
    fn adopt(&mut self, call: u32, splits: Vec<Split>) {
        let old = std::mem::take(&mut self.hypotheses);
        let mut splits = splits.into_iter().peekable();
        for (index, hypothesis) in old.into_iter().enumerate() {
            let mut hypothesis = Some(hypothesis);
            while let Some(split) = splits.next_if(|split| split.of == index) {
                let last = splits.peek().is_none_or(|split| split.of != index);
                let from = if last { hypothesis.take() } else { hypothesis.clone() };
                let Some(mut next) = from else { continue };
                next.sum = split.sum;
                next.best += split.ln;
                next.outlook = split.outlook;
                if let Some(Taken { slot, set, outlook, group }) = split.to
                    && let Some(slot) = next.slots.get_mut(slot)
                {
                    self.calls.push((call, slot.calls));
                    slot.calls = (self.calls.len() - 1) as u32;
                    (slot.set, slot.outlook) = (set, outlook);
                    next.hash = next.hash.wrapping_sub(slot.hash);
                    slot.hash = mix(slot.hash, u64::from(call));
                    next.hash = next.hash.wrapping_add(slot.hash);
                    if let Some((at, set)) = group
                        && let (Some(of), Some((index, _))) = (next.groups.get_mut(at), self.live_groups.get(at))
                    {
                        next.hash = next.hash.wrapping_sub(group_hash(*index, *of));
                        *of = set;
                        next.hash = next.hash.wrapping_add(group_hash(*index, set));
                    }
                }
                self.hypotheses.push(next);
            }
        }
    }

    /// The live invocations that may have made a call, with what its clues say for each.
    fn able(&mut self, call: u32, sent: &Sent) -> Vec<Able> {
        let mut able = self.candidates(sent);
        let pointers = pointers(&sent.clues, able.iter().map(|able| &able.inv.clues));
        let live = |able: &Able| self.live.get(able.slot).copied();
        if !pointers.is_empty() {
            able.iter_mut().enumerate().for_each(|(at, able)| able.clue = self.known.belief.ln(&pointers, at));
            let candidates = able.iter().filter_map(live).collect();
            self.solved.pointed.push(Pointed { call, candidates, pointers });
        }
        if let Some(maker) = able.iter().position(|able| live(able) == sent.made_by && sent.made_by.is_some()) {
            able = able.get(maker).copied().into_iter().collect();
        }
        able
    }

    /// The live invocations that may have made a call: those whose kind is known to, or if none is, all.
    fn candidates(&self, sent: &Sent) -> Vec<Able> {
        let live = || {
            let pick = |(at, inv): (usize, &u32)| {
                let found = self.invs.get(*inv as usize).filter(|_| sent.callee != Some(*inv))?;
                let group = found.group.and_then(|group| self.live_groups.iter().position(|(live, _)| *live == group));
                Some(Able { slot: at, inv: *found, begin: self.begin(found), group, clue: 0.0 })
            };
            self.live.iter().enumerate().filter_map(pick)
        };
        let knows = |inv: &Inv| self.known.templates.get(&inv.parent).is_some_and(|template| template.knows(sent.kind));
        let known: Vec<_> = live().filter(|able| knows(&able.inv)).collect();
        if known.is_empty() { live().collect() } else { known }
    }

    fn close(&mut self, inv: u32) {
        let Some(at) = self.live.iter().position(|live| *live == inv) else { return };
        let Some(found) = self.invs.get(inv as usize).copied() else { return };
        self.live.swap_remove(at);
        let template = self.known.templates.get(&found.parent);
        let begin = self.begin(&found);
        for hypothesis in &mut self.hypotheses {
            if at >= hypothesis.slots.len() {
                continue;
            }
            let slot = hypothesis.slots.swap_remove(at);
            let earlier = Earlier { calls: &self.calls, sent: self.sent, at: slot.calls };
            let judge = |template: &Template| template.end(slot.set, begin, earlier, found.end);
            let ln = if found.open { 0.0 } else { template.map_or(0.0, judge) };
            hypothesis.sum += ln;
            hypothesis.best += ln;
            hypothesis.outlook -= slot.outlook;
            hypothesis.hash = hypothesis.hash.wrapping_sub(slot.hash);
            self.pasts.push(Past::Closed { before: hypothesis.past, inv, calls: slot.calls });
            hypothesis.past = (self.pasts.len() - 1) as u32;
        }
        self.leave(inv);
        if self.hypotheses.len() > 1 {
            self.merge();
        }
        if self.live.is_empty() && self.live_groups.is_empty() || self.pasts.len() > self.limits.lattice {
            self.settle();
        }
    }

    /// Judges the calls of a trace's visits together when the last of them has ended.
    fn leave(&mut self, inv: u32) {
        let Some((index, _)) = self.group_of(inv) else { return };
        let Some(at) = self.live_groups.iter().position(|(live, _)| *live == index) else { return };
        if let Some((_, visits)) = self.live_groups.get_mut(at) {
            *visits = visits.saturating_sub(1);
            if *visits > 0 {
                return;
            }
        }
        self.live_groups.swap_remove(at);
        for hypothesis in self.hypotheses.iter_mut().filter(|hypothesis| at < hypothesis.groups.len()) {
            let set = hypothesis.groups.swap_remove(at);
            let ln = self.known.visits.stop(set);
            hypothesis.sum += ln;
            hypothesis.best += ln;
            hypothesis.hash = hypothesis.hash.wrapping_sub(group_hash(index, set));
        }
    }

    /// Makes one of the hypotheses that agree on all that is live, and gives up what has become improbable.
    fn merge(&mut self) {
        let rank = |hypothesis: &Hypothesis| hypothesis.sum + hypothesis.outlook;
        let best = self.hypotheses.iter().map(rank).fold(f64::NEG_INFINITY, f64::max);
        let drop = self.limits.drop;
        self.hypotheses.retain(|hypothesis| rank(hypothesis) >= best - drop);
        self.hypotheses.sort_by(|a, b| a.hash.cmp(&b.hash).then_with(|| b.best.total_cmp(&a.best)));
        let pasts = &mut self.pasts;
        self.hypotheses.dedup_by(|next, kept| {
            if next.hash != kept.hash {
                return false;
            }
            let sum = ln_add(kept.sum, next.sum);
            let share = (kept.sum - sum).exp();
            pasts.push(Past::Merged { one: kept.past, other: next.past, share, first: kept.best >= next.best });
            kept.past = (pasts.len() - 1) as u32;
            kept.sum = sum;
            kept.best = kept.best.max(next.best);
            true
        });
    }
}

/// The calls of a slot, the latest first, as the model sees them.
#[derive(Clone, Copy, Debug)]
struct Earlier<'a> {
    calls: &'a [(u32, u32)],
    sent: &'a [Sent],
    at: u32,
}

impl Iterator for Earlier<'_> {
    type Item = Child;

    fn next(&mut self) -> Option<Child> {
        let (call, before) = self.calls.get(self.at as usize)?;
        self.at = *before;
        self.sent.get(*call as usize).map(Sent::child)
    }
}
