//! Calls that no rule of the kernel half could place while invocations were live: held until their candidates have
//! answered, ranked over the record by [`crate::infer`], and hung under the most probable one with its probability.
//!
//! A sandbox is watched from its first such call on. What is certain is learned from as well, so that a guess rests on
//! what is usual for the function. Nothing is held longer than [`HOLD_NS`], and all tables are bounded; what finds no
//! room stays `none` and is counted.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use slab::Slab;
use tracer_ebpf::record::{Rule, START_AFTER_RESPONSE, START_WEAK, Start};

use super::{
    Assembler,
    clues::{Asked, callee},
    span::{Class, Join, NONE, Span},
};
use crate::infer::{Call, CallId, Config, Inference, Invocation, InvocationId};

/// Longest time that a call waits for its candidates to answer.
const HOLD_NS: u64 = 2_000_000_000;
/// How often a sandbox's calls are looked at, and how much later for each span that has to be: all that is not decided is
/// ranked anew each time, at about 20 µs a span in a release build.
const STEP_NS: u64 = 20_000_000;
const STEP_SPAN_NS: u64 = 500_000;
/// A sandbox without such calls for so long is no longer watched.
const AWAKE_NS: u64 = 10_000_000_000;
/// Sandboxes watched.
const WATCHED: usize = 256;
/// Calls held at a time, in all.
const HELD: usize = 16_384;
/// So many seconds' worth of [`Config::infer_rate`](super::Config::infer_rate) may come at once.
const BURST_S: u64 = 2;
/// So long a sandbox is left alone that had more: longer than any call is held.
const REST_NS: u64 = 3_000_000_000;
/// Most candidates of a call.
const CANDIDATES: usize = 128;
/// Spans of a sandbox that are ranked together; more are decided at once, whoever is still to answer.
const WINDOW: usize = 2048;
/// Spans that are learned from again and again while a sandbox is new, at each doubling: first, last.
const YOUNG: (usize, usize) = (64, 2048);
/// Windows without a call to place are learned from when they hold so many spans.
const LESSON: usize = 512;

/// Where in the arena a span is, if it is still the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: u32,
    pub id: u64,
}

impl Place {
    pub fn of(key: u32, span: &Span) -> Self {
        Self { key, id: span.id }
    }

    pub fn find(self, spans: &Slab<Span>) -> Option<&Span> {
        spans.get(self.key as usize).filter(|span| span.id == self.id)
    }

    pub fn in_flight(self, spans: &Slab<Span>) -> Option<&Span> {
        self.find(spans).filter(|span| !span.given_out())
    }
}

/// An invocation of a watched sandbox.
#[derive(Debug)]
struct Ran {
    place: Place,
    seen: Invocation,
    /// Decided and learned from; kept while the sandbox is new.
    old: bool,
}

/// A call of a watched sandbox.
#[derive(Debug)]
struct Made {
    place: Place,
    seen: Call,
    open: bool,
    old: bool,
    /// Of a call that is to be placed.
    held: Option<Held>,
    /// What was inferred.
    decided: Option<InvocationId>,
}

/// What the kernel half believes of a call without being certain ([`START_WEAK`]).
#[derive(Clone, Copy, Debug)]
pub(super) struct Hint {
    maker: InvocationId,
    p: f64,
    /// The invocation had answered: it is none of those that are live.
    after_response: bool,
}

impl Hint {
    pub fn of(start: &Start) -> Option<Self> {
        let weak = start.flags & START_WEAK != 0 && start.parent != 0;
        weak.then(|| Self {
            maker: InvocationId(start.parent),
            p: f64::from(start.trust) / 255.0,
            after_response: start.flags & START_AFTER_RESPONSE != 0,
        })
    }
}

/// Puts together what the record says of a call's maker and what the kernel half believes, each with its probability,
/// where `candidates` may have made it: two witnesses that know nothing of each other.
fn weigh(found: Option<(InvocationId, f64)>, hint: Option<Hint>, candidates: usize) -> Option<(InvocationId, f64)> {
    let (Some((best, p)), Some(hint)) = (found, hint) else { return found.or(hint.map(|hint| (hint.maker, hint.p))) };
    let others = candidates.saturating_sub(1).max(1) as f64;
    let (p_other, hint_other) = ((1.0 - p) / others, (1.0 - hint.p) / others);
    let (winner, score, rest) = if best == hint.maker {
        (best, p * hint.p, others * p_other * hint_other)
    } else {
        let (record, kernel) = (p * hint_other, p_other * hint.p);
        let rest = (others - 1.0) * p_other * hint_other;
        if record >= kernel { (best, record, kernel + rest) } else { (hint.maker, kernel, record + rest) }
    };
    Some((winner, score / (score + rest).max(f64::MIN_POSITIVE)))
}

#[derive(Debug)]
struct Held {
    candidates: Vec<Place>,
    hint: Option<Hint>,
    /// How many were live as the kernel half counts them: it knows of some that have no record.
    live: u8,
}

/// A watched sandbox.
#[derive(Debug)]
struct Watch {
    inference: Inference,
    invocations: Vec<Ran>,
    calls: Vec<Made>,
    held: usize,
    /// When the last call to place came.
    held_ns: u64,
    /// Until when it is left alone.
    rests_ns: u64,
    next_ns: u64,
    /// Spans so far, and at how many all is learned again.
    seen: usize,
    again: usize,
    /// Spans that are not old.
    fresh: usize,
}

/// The watched sandboxes.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    // In order, because what is given out must not depend on a map's.
    sandboxes: BTreeMap<u64, Watch>,
    held: usize,
    /// When the spans so far will have been paid for, at the rate that is allowed.
    paid_ns: u64,
}

impl Guesses {
    /// Whether one more span may be looked at now.
    fn afford(&mut self, now_ns: u64, rate: u64) -> bool {
        let Some(cost_ns) = 1_000_000_000_u64.checked_div(rate) else { return false };
        let paid_ns = self.paid_ns.max(now_ns.saturating_sub(BURST_S * 1_000_000_000));
        if paid_ns >= now_ns {
            return false;
        }
        self.paid_ns = paid_ns + cost_ns;
        true
    }

    /// The sandbox, if it is watched and one more of its spans can be looked at.
    fn pay(&mut self, sandbox: u64, now_ns: u64, rate: u64) -> Option<&mut Watch> {
        if !self.sandboxes.get(&sandbox).is_some_and(|watch| watch.looks(now_ns)) {
            return None;
        }
        let affordable = self.afford(now_ns, rate);
        let watch = self.sandboxes.get_mut(&sandbox)?;
        if !affordable {
            watch.rest(now_ns);
            return None;
        }
        Some(watch)
    }
}

/// A call that was ranked.
#[derive(Debug)]
struct Decision {
    call: Place,
    candidates: Vec<Place>,
    /// Who made it, and the probability of that.
    maker: Option<(Place, f64)>,
}

fn config() -> Config {
    Config { width: 64, rounds: 4, keep: 0.98, most_kinds: 12 }
}

impl Watch {
    fn new() -> Self {
        Self {
            inference: Inference::new(config()),
            invocations: Vec::new(),
            calls: Vec::new(),
            held: 0,
            held_ns: 0,
            rests_ns: 0,
            next_ns: 0,
            seen: 0,
            again: YOUNG.0,
            fresh: 0,
        }
    }

    fn invocation(&mut self, place: Place, span: &Span, asked: &Asked) {
        let start_us = (span.at_ns / 1000) as i64;
        let seen = Invocation {
            service: 0,
            op: asked.op,
            caller: None,
            start_us,
            end_us: start_us,
            open: true,
            clues: asked.clues,
        };
        self.invocations.push(Ran { place, seen, old: false });
        self.count();
    }

    fn call(&mut self, place: Place, span: &Span, asked: &Asked, held: Option<Held>) {
        let start_us = (span.at_ns / 1000) as i64;
        let seen = Call {
            service: 0,
            callee: callee(&span.wire.remote, span.wire.remote_port),
            op: asked.op,
            start_us,
            end_us: start_us,
            invocation: None,
            made_by: (span.parent != 0).then_some(InvocationId(span.parent)),
            clues: asked.clues,
        };
        self.held += usize::from(held.is_some());
        self.calls.push(Made { place, seen, open: true, old: false, held, decided: None });
        self.count();
    }

    fn count(&mut self) {
        self.seen += 1;
        self.fresh += 1;
    }

    /// Whether it takes in what runs.
    fn looks(&self, now_ns: u64) -> bool {
        now_ns >= self.rests_ns && self.awake(now_ns)
    }

    /// It has more than can be paid for. What is held is still decided, then it sleeps.
    fn rest(&mut self, now_ns: u64) {
        (self.rests_ns, self.held_ns) = (now_ns.saturating_add(REST_NS), 0);
    }

    fn awake(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.held_ns) < AWAKE_NS || self.held > 0
    }

    /// The invocations that are live at `at_us`.
    fn live(&self, at_us: i64, spans: &Slab<Span>) -> Vec<Place> {
        let live = |ran: &&Ran| {
            let span = ran.place.in_flight(spans);
            ran.seen.start_us <= at_us && span.is_some_and(|span| !span.ended || (span.end_ns / 1000) as i64 >= at_us)
        };
        self.invocations.iter().filter(|ran| !ran.old).filter(live).map(|ran| ran.place).collect()
    }

    /// Looks up what has ended since.
    fn refresh(&mut self, spans: &Slab<Span>, now_ns: u64) {
        let now_us = (now_ns / 1000) as i64;
        for ran in self.invocations.iter_mut().filter(|ran| ran.seen.open) {
            let span = ran.place.find(spans);
            ran.seen.open = span.is_some_and(|span| !span.ended);
            let end_us = span.filter(|span| span.ended).map_or(now_us, |span| (span.end_ns / 1000) as i64);
            ran.seen.end_us = end_us.max(ran.seen.start_us);
            if let Some(span) = span {
                ran.seen.clues.process = span.pid;
            }
        }
        for made in self.calls.iter_mut().filter(|made| made.open) {
            let span = made.place.find(spans);
            made.open = span.is_some_and(|span| !span.ended);
            let end_us = span.filter(|span| span.ended).map_or(now_us, |span| (span.end_ns / 1000) as i64);
            made.seen.end_us = end_us.max(made.seen.start_us);
            let Some(span) = span.filter(|span| span.join != Join::No && span.callee == span.sandbox) else { continue };
            made.seen.invocation = spans.get(span.first_child as usize).map(|caused| InvocationId(caused.id));
        }
    }

    /// Places the calls whose candidates have answered, or that have waited long enough.
    fn decide(&mut self, spans: &Slab<Span>, now_ns: u64, force: bool) -> Vec<Decision> {
        let force = force || self.fresh > WINDOW;
        let answered = |place: &Place| place.in_flight(spans).is_none_or(|span| span.ended);
        let ripe: Vec<bool> = self
            .calls
            .iter()
            .map(|made| {
                made.held.as_ref().is_some_and(|held| {
                    let since = now_ns.saturating_sub((made.seen.start_us as u64).saturating_mul(1000));
                    force || since >= HOLD_NS || held.candidates.iter().all(answered)
                })
            })
            .collect();
        let any = ripe.iter().any(|ripe| *ripe);
        if !any && (self.held > 0 || self.fresh < LESSON) {
            return Vec::new();
        }
        self.refresh(spans, now_ns);
        let makers = self.rank();
        let places: BTreeMap<InvocationId, Place> =
            self.invocations.iter().map(|ran| (InvocationId(ran.place.id), ran.place)).collect();
        let mut decisions = Vec::new();
        for ((at, made), _) in self.calls.iter_mut().enumerate().zip(&ripe).filter(|(_, ripe)| **ripe) {
            let Some(held) = made.held.take() else { continue };
            self.held -= 1;
            let found = makers.get(&CallId(at as u64)).copied();
            // Who has no record may have made it as well as those that have.
            let known = held.candidates.len() as f64;
            let found = found.map(|(maker, p)| (maker, p * known / known.max(f64::from(held.live))));
            let found = weigh(found, held.hint, held.candidates.len().max(usize::from(held.live)));
            let maker = found.and_then(|(maker, p)| Some((*places.get(&maker)?, p)));
            made.decided = found.map(|(maker, _)| maker);
            decisions.push(Decision { call: made.place, candidates: held.candidates, maker });
        }
        self.tidy();
        decisions
    }

    /// Asks who made each call.
    fn rank(&mut self) -> BTreeMap<CallId, (InvocationId, f64)> {
        let again = self.again <= YOUNG.1 && self.seen >= self.again;
        if again {
            self.inference = Inference::new(config());
            self.again = (2 * self.again).max(self.seen.next_power_of_two());
        }
        for ran in self.invocations.iter().filter(|ran| again || !ran.old) {
            self.inference.observe_invocation(InvocationId(ran.place.id), &ran.seen);
        }
        for (at, made) in self.calls.iter().enumerate().filter(|(_, made)| again || !made.old) {
            let made_by = made.seen.made_by.or(made.decided.filter(|_| !again));
            self.inference.observe_call(CallId(at as u64), &Call { made_by, ..made.seen });
        }
        let edges = self.inference.resolve(i64::MAX).edges;
        edges.into_iter().filter_map(|edge| Some((edge.call, (edge.invocation?, edge.p)))).collect()
    }

    /// Lets go of what no call to place depends on.
    fn tidy(&mut self) {
        let waiting = self.calls.iter().filter(|made| made.held.is_some()).map(|made| made.seen.start_us).min();
        let waiting = waiting.unwrap_or(i64::MAX);
        let mut stay = BTreeSet::new();
        for ran in &mut self.invocations {
            ran.old |= !ran.seen.open && ran.seen.end_us < waiting;
            if !ran.old {
                stay.insert(InvocationId(ran.place.id));
            }
        }
        for made in &mut self.calls {
            let maker = made.seen.made_by.or(made.decided);
            made.old |= made.held.is_none() && maker.is_none_or(|maker| !stay.contains(&maker));
        }
        if self.again > YOUNG.1 {
            self.invocations.retain(|ran| !ran.old);
            self.calls.retain(|made| !made.old);
        }
        let fresh = |old: bool| usize::from(!old);
        self.fresh = self.invocations.iter().map(|ran| fresh(ran.old)).sum::<usize>()
            + self.calls.iter().map(|made| fresh(made.old)).sum::<usize>();
    }
}

impl Assembler {
    /// Notes an invocation, if its sandbox is watched.
    pub(super) fn watch_invocation(&mut self, key: u32, head: &[u8]) {
        let span = &self.spans[key as usize];
        let paid = self.guesses.pay(span.sandbox, self.now_ns, self.config.infer_rate);
        if let Some(watch) = paid {
            watch.invocation(Place::of(key, span), span, &Asked::of(head, span.pid));
        }
    }

    /// Notes a call, if its sandbox is watched; holds it, if it is to be placed.
    pub(super) fn watch_call(&mut self, key: u32, head: &[u8], start: &Start, hint: Option<Hint>) {
        let live = start.live;
        let span = &self.spans[key as usize];
        let is_open = span.class == Class::Call && span.parent == 0 && span.rule == Rule::None;
        if is_open && live > 1 {
            self.unit_called(key, start.tid);
        }
        if is_open && live > 1 && self.await_unit(key, start, hint) {
            return;
        }
        // With one that is live there is nothing to rank.
        let may_rank = self.config.infer_by_timing
            && live > u8::from(hint.is_some())
            && hint.is_none_or(|hint| !hint.after_response);
        if is_open && may_rank && self.hold(key, head, live, hint) {
            return;
        }
        if let Some(hint) = hint {
            self.believe(key, hint);
        }
        let span = &self.spans[key as usize];
        let is_certain = span.parent != 0 && span.rule != Rule::Inferred && span.class == Class::Call;
        if is_certain && let Some(watch) = self.guesses.pay(span.sandbox, self.now_ns, self.config.infer_rate) {
            watch.call(Place::of(key, span), span, &Asked::of(head, span.pid), None);
        }
    }

    /// Hangs a call under the invocation that the kernel half believes it to be of.
    pub(super) fn believe(&mut self, call: u32, hint: Hint) {
        let Some(maker) = self.invocations.get(&hint.maker.0).copied() else { return };
        if hint.p >= self.config.infer_min && self.spans[maker as usize].sandbox == self.spans[call as usize].sandbox {
            self.hang(call, Place { key: maker, id: hint.maker.0 }, hint.p);
        }
    }

    pub(super) fn hang(&mut self, call: u32, maker: Place, p: f64) {
        let span = &mut self.spans[call as usize];
        self.totals.rules[span.rule as usize] -= 1;
        (span.rule, span.parent, span.per_mille) = (Rule::Inferred, maker.id, (p * 1000.0).round() as u16);
        self.totals.rules[span.rule as usize] += 1;
        self.adopt(call, maker.key);
    }

    /// Holds a call until it can be ranked; `false` if it cannot be.
    fn hold(&mut self, key: u32, head: &[u8], live: u8, hint: Option<Hint>) -> bool {
        if self.config.infer_min >= 1.0 {
            return false;
        }
        let (sandbox, now_ns) = (self.spans[key as usize].sandbox, self.now_ns);
        if self.guesses.held >= HELD || !self.watch(sandbox) || !self.guesses.afford(now_ns, self.config.infer_rate) {
            self.totals.inference.refused += 1;
            return false;
        }
        let Some(watch) = self.guesses.sandboxes.get_mut(&sandbox) else { return false };
        let span = &self.spans[key as usize];
        let candidates = watch.live((span.at_ns / 1000) as i64, &self.spans);
        if candidates.is_empty() || candidates.len() > CANDIDATES {
            self.totals.inference.refused += 1;
            return false;
        }
        let place = Place::of(key, span);
        for held in candidates.iter().chain([&place]) {
            if let Some(span) = held.in_flight(&self.spans) {
                self.trees[span.tree as usize].held += 1;
            }
        }
        watch.held_ns = now_ns;
        watch.call(place, span, &Asked::of(head, span.pid), Some(Held { candidates, hint, live }));
        self.guesses.held += 1;
        self.totals.inference.held += 1;
        true
    }

    /// Sees to it that a sandbox is watched; `false` if there is no room.
    fn watch(&mut self, sandbox: u64) -> bool {
        let now_ns = self.now_ns;
        let known = self.guesses.sandboxes.get(&sandbox);
        if known.is_some_and(|watch| now_ns < watch.rests_ns) {
            return false;
        }
        if known.is_some_and(|watch| watch.awake(now_ns)) {
            return true;
        }
        if known.is_none() && self.guesses.sandboxes.len() >= WATCHED {
            let idle = self.guesses.sandboxes.iter().filter(|(_, watch)| watch.held == 0);
            let Some((oldest, _)) = idle.min_by_key(|(_, watch)| watch.held_ns) else { return false };
            let oldest = *oldest;
            self.guesses.sandboxes.remove(&oldest);
        }
        let watch = self.guesses.sandboxes.entry(sandbox).or_insert_with(Watch::new);
        // What was seen before it slept is learned; what runs now began unwatched.
        watch.invocations.clear();
        watch.calls.clear();
        (watch.fresh, watch.held_ns) = (0, now_ns);
        let running = |(_, span): &(usize, &Span)| {
            span.sandbox == sandbox && span.class == Class::Invocation && !span.given_out()
        };
        for (key, span) in self.spans.iter().filter(running) {
            let asked = Asked { op: 0, clues: crate::infer::Clues { process: span.pid, ..Default::default() } };
            watch.invocation(Place::of(key as u32, span), span, &asked);
        }
        true
    }

    /// Places calls that can be placed; all of them with `force`.
    pub(super) fn guess(&mut self, force: bool) {
        let now_ns = self.now_ns;
        let mut decisions = Vec::new();
        for watch in self.guesses.sandboxes.values_mut() {
            if watch.fresh == 0 || (watch.next_ns > now_ns && !force) {
                continue;
            }
            watch.next_ns = now_ns.saturating_add(STEP_NS.max(watch.fresh as u64 * STEP_SPAN_NS));
            if watch.awake(now_ns) {
                decisions.append(&mut watch.decide(&self.spans, now_ns, force));
            } else {
                watch.invocations.clear();
                watch.calls.clear();
                watch.fresh = 0;
            }
        }
        for decision in &decisions {
            self.guesses.held -= 1;
            self.settle_guess(decision);
        }
    }

    fn settle_guess(&mut self, decision: &Decision) {
        let call = decision.call.in_flight(&self.spans).map(|_| decision.call.key);
        let maker = decision.maker.filter(|(_, p)| *p >= self.config.infer_min);
        let maker = maker.filter(|(place, _)| place.find(&self.spans).is_some());
        if let (Some(call), Some((maker, p))) = (call, maker) {
            self.totals.inference.placed += 1;
            self.hang(call, maker, p);
        } else {
            self.totals.inference.unplaced += 1;
        }
        for held in decision.candidates.iter().chain([&decision.call]) {
            let Some(tree) = held.in_flight(&self.spans).map(|span| span.tree) else { continue };
            let entry = &mut self.trees[tree as usize];
            entry.held = entry.held.saturating_sub(1);
            if tree != NONE {
                self.check_ready(tree);
            }
        }
    }
}
