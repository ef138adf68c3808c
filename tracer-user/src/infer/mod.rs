//! Which invocation made a call, from timing and order alone.
//!
//! Where no exact rule applies (DESIGN.md, section 5) several invocations of a sandbox may have made a call. This
//! module ranks them: it learns from the record which calls each kind of invocation makes and what each call waits
//! for (`model`), starts from the moments that leave little doubt (`start`), and then finds the joint assignment
//! of all calls (`beam`), learns from it, and repeats. It is told no call graph, and its input has no place for one:
//! neither [`Invocation`] nor [`Call`] holds a trace, or a link from a call to the invocation that made it. What is
//! seen on the wire it is told: who called whom, and which invocation a call caused.
//!
//! Live, spans are observed as they end and [`Inference::resolve`] is called every few thousand of them; memory is
//! bounded by that window and by the number of operations.
//!
//! Pure and deterministic: no clock, no chance, and the order in which spans are observed carries nothing.

mod beam;
pub mod calltrees;
pub mod cli;
mod clues;
mod density;
mod model;
mod order;
pub mod score;
mod sets;
mod start;
#[cfg(test)]
mod tests;
pub mod traces;

use std::collections::BTreeMap;

use beam::{Group, Inv, Known, Limits, Sent, Solved};
pub use clues::{Clues, VALUES};
use model::{Begin, Child, Kind, Model, Parent};

/// A name, interned by the caller: a service, an operation.
pub type Sym = u32;

/// An observed invocation, numbered by the observer; the number decides nothing but ties between spans that are alike
/// in all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvocationId(pub u64);

/// An observed call, numbered by the observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A server span: a request that came in.
#[derive(Clone, Copy, Debug)]
pub struct Invocation {
    /// Where: a sandbox, or a service whose sandboxes cannot be told apart.
    pub service: Sym,
    /// What was asked for.
    pub op: Sym,
    /// The service that asked, as the wire shows it; none if it came from outside.
    pub caller: Option<Sym>,
    /// Request in, µs since any epoch.
    pub start_us: i64,
    /// Response out, µs since the same epoch; if it is open, when it was last known to be.
    pub end_us: i64,
    /// Whether it has not answered yet: then its end says nothing, and nothing is learned from it.
    pub open: bool,
    /// What it shares with its calls.
    pub clues: Clues,
}

/// A client span: a request that a service sent.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The service that sent it.
    pub service: Sym,
    /// Where it went.
    pub callee: Sym,
    /// What was asked for.
    pub op: Sym,
    /// Request out, µs since the epoch of the invocations.
    pub start_us: i64,
    /// Response in.
    pub end_us: i64,
    /// The invocation that it caused, joined by tag or wire, if that was observed.
    pub invocation: Option<InvocationId>,
    /// The invocation that made it, where that is known by another rule: learned from, and nobody else's.
    pub made_by: Option<InvocationId>,
    /// What it shares with the invocation that made it.
    pub clues: Clues,
}

/// How much is spent on an answer.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Most joint hypotheses per service at a time.
    pub width: usize,
    /// Times that a window is solved and learned from while the model is young.
    pub rounds: u32,
    /// Share of what was learned that is kept from one window to the next.
    pub keep: f64,
    /// Most kinds of invocations, and of calls, that are told apart; the rest is one kind. What is learned of one kind
    /// of invocation and one kind of call takes some 10 KB, and 60 KB if somebody makes all delays differ.
    pub most_kinds: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { width: 96, rounds: 6, keep: 0.9, most_kinds: 4096 }
    }
}

/// A decided call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The call.
    pub call: CallId,
    /// The invocation that made it; none if none can have.
    pub invocation: Option<InvocationId>,
    /// Probability that this is so.
    pub p: f64,
}

/// A set of calls that an invocation may have made.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The calls, ascending.
    pub calls: Vec<CallId>,
    /// Probability of exactly this set.
    pub p: f64,
}

/// A decided invocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// The invocation.
    pub invocation: InvocationId,
    /// The sets of calls that it may have made, the most probable first; not all of them.
    pub choices: Vec<Choice>,
}

/// What [`Inference::resolve`] decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolution {
    /// Each decided call once, ascending.
    pub edges: Vec<Edge>,
    /// Each decided invocation once, ascending.
    pub choices: Vec<Choices>,
}

impl Resolution {
    /// Takes in what was decided later.
    pub fn extend(&mut self, later: Self) {
        self.edges.extend(later.edges);
        self.choices.extend(later.choices);
    }
}

/// Learns from spans and says which belong together.
#[derive(Debug, Default)]
pub struct Inference {
    config: Config,
    parents: BTreeMap<(Sym, Sym, Option<Sym>), Parent>,
    kinds: BTreeMap<(Sym, Sym, Sym), Kind>,
    services: BTreeMap<Sym, Service>,
}

#[derive(Debug, Default)]
struct Service {
    model: Model,
    /// What its clock counts in, µs.
    tick: i64,
    /// Windows learned from.
    windows: u32,
    invocations: Vec<(InvocationId, Inv)>,
    calls: Vec<(CallId, Sent, Links)>,
}

/// The invocations that a call is known to be tied to.
#[derive(Clone, Copy, Debug, Default)]
struct Links {
    caused: Option<InvocationId>,
    made_by: Option<InvocationId>,
}

impl Inference {
    /// With nothing learned yet.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes in an invocation that has ended.
    pub fn observe_invocation(&mut self, id: InvocationId, invocation: &Invocation) {
        let key = (invocation.service, invocation.op, invocation.caller);
        let new = self.parents.len() as Parent;
        let full = self.parents.len() >= self.config.most_kinds;
        let parent = self.parents.get(&key).copied().unwrap_or(if full { 0 } else { new });
        if parent == new {
            self.parents.insert(key, parent);
        }
        let inv = Inv {
            parent,
            start: invocation.start_us,
            end: invocation.end_us.max(invocation.start_us),
            open: invocation.open,
            clues: invocation.clues,
            group: None,
        };
        self.services.entry(invocation.service).or_default().invocations.push((id, inv));
    }

    /// Takes in a call that was answered.
    pub fn observe_call(&mut self, id: CallId, call: &Call) {
        let new = self.kinds.len() as Kind;
        let key = (call.service, call.callee, call.op);
        let full = self.kinds.len() >= self.config.most_kinds;
        let kind = self.kinds.get(&key).copied().unwrap_or(if full { 0 } else { new });
        if kind == new {
            self.kinds.insert(key, kind);
        }
        let sent = Sent {
            kind,
            start: call.start_us,
            end: call.end_us.max(call.start_us),
            callee: None,
            made_by: None,
            clues: call.clues,
        };
        let links = Links { caused: call.invocation, made_by: call.made_by };
        self.services.entry(call.service).or_default().calls.push((id, sent, links));
    }

    /// How many spans wait for a decision.
    pub fn pending(&self) -> usize {
        self.services.values().map(|service| service.invocations.len() + service.calls.len()).sum()
    }

    /// Decides what ended by `until_us`, learns from it and forgets it. Choose `until_us` so long ago that whatever
    /// overlaps it has ended and was observed.
    pub fn resolve(&mut self, until_us: i64) -> Resolution {
        let mut out = Resolution::default();
        let windows = self.solve();
        for (name, (window, solved)) in windows {
            if let Some(service) = self.services.get_mut(&name) {
                service.decide(&window, &solved, until_us, &mut out);
            }
        }
        out.edges.sort_unstable_by_key(|edge| edge.call);
        out.choices.sort_unstable_by_key(|choices| choices.invocation);
        out
    }
}

impl Service {
    /// Finds what the clock counts in, since `base`: a time that comes in whole milliseconds says no more than that.
    fn tick(&mut self, base: i64) {
        let times = self.invocations.iter().flat_map(|(_, inv)| [inv.start, inv.end]);
        let times = times.chain(self.calls.iter().flat_map(|(_, sent, _)| [sent.start, sent.end]));
        let mut tick = self.tick;
        for time in times {
            let (mut a, mut b) = (tick, time.saturating_sub(base).saturating_abs());
            while b != 0 {
                (a, b) = (b, a % b);
            }
            tick = a;
            if tick == 1 {
                break;
            }
        }
        if tick != self.tick {
            self.tick = tick;
            self.model = Model::default();
            self.windows = 0;
        }
    }

    /// Tells what ended by `until`, and keeps the rest.
    fn decide(&mut self, window: &Window, solved: &Solved, until: i64, out: &mut Resolution) {
        let decided = |inv: &u32| self.invocations.get(*inv as usize).is_some_and(|(_, inv)| inv.end <= until);
        let later = self.invocations.iter().filter(|(_, inv)| inv.end > until);
        let waits = later.map(|(_, inv)| inv.start).min().unwrap_or(i64::MAX);
        let mut kept = Vec::new();
        for (at, call) in self.calls.iter().enumerate() {
            let (id, sent, _) = call;
            let parent = solved.parent.get(at).copied().flatten();
            if parent.map_or(sent.end <= until && sent.start < waits, |inv| decided(&inv)) {
                let invocation = parent.and_then(|inv| window.ids.get(inv as usize)).copied();
                let p = solved.p.get(at).copied().unwrap_or(0.0).clamp(0.0, 1.0);
                out.edges.push(Edge { call: *id, invocation, p });
            } else {
                kept.push(*call);
            }
        }
        for (at, choices) in solved.choices.iter().enumerate().filter(|(at, _)| decided(&(*at as u32))) {
            let Some(id) = window.ids.get(at) else { continue };
            let ids = |choice: &beam::Choice| {
                let id = |call: &u32| self.calls.get(*call as usize).map(|(id, ..)| *id);
                let mut calls: Vec<CallId> = choice.calls.iter().filter_map(id).collect();
                calls.sort_unstable();
                Choice { calls, p: choice.p }
            };
            out.choices.push(Choices { invocation: *id, choices: choices.iter().map(ids).collect() });
        }
        self.calls = kept;
        self.invocations.retain(|(_, inv)| inv.end > until);
    }
}

impl Inference {
    /// Solves the window and learns from it, several times while the model is young.
    fn solve(&mut self) -> BTreeMap<Sym, (Window, Solved)> {
        let mut windows: BTreeMap<Sym, (Window, Solved)> = BTreeMap::new();
        let mut rounds = 1;
        for (name, service) in &mut self.services {
            if service.windows < YOUNG {
                rounds = self.config.rounds.max(1);
            }
            windows.insert(*name, (Window::of(service), Solved::default()));
        }
        for round in 0..rounds {
            if round > 0 || self.services.values().all(|service| service.windows > 0) {
                group(&mut windows);
            }
            for (name, service) in &mut self.services {
                let Some((window, solved)) = windows.get_mut(name) else { continue };
                // The narrow search is good enough to learn from.
                let width = if round + 1 < rounds { self.config.width / 4 } else { self.config.width };
                let config = Config { width: width.max(1), ..self.config };
                window.solve(service, &config, solved);
            }
        }
        for (name, service) in &mut self.services {
            service.windows = service.windows.saturating_add(1);
            if let Some((window, solved)) = windows.get(name) {
                service.model.fade(self.config.keep);
                window.learn_solved(&mut service.model, solved);
            }
        }
        windows
    }
}

/// Windows after which a model is no longer young.
const YOUNG: u32 = 3;

/// What was observed of a service and is not decided.
#[derive(Debug, Default)]
struct Window {
    ids: Vec<InvocationId>,
    invs: Vec<Inv>,
    sent: Vec<Sent>,
    caused: Vec<Option<InvocationId>>,
    groups: Vec<Group>,
    /// Whether each invocation was called by its own service.
    inside: Vec<bool>,
    /// Learned in the round before.
    model: Option<Model>,
}

impl Window {
    fn of(service: &mut Service) -> Self {
        // The key is what was seen and nothing else; what is equal in all of it is the same to us.
        service.invocations.sort_by_key(|(id, inv)| (inv.start, inv.end, inv.parent, *id));
        service.calls.sort_by_key(|(id, sent, _)| (sent.start, sent.end, sent.kind, *id));
        let own: BTreeMap<InvocationId, u32> =
            service.invocations.iter().enumerate().map(|(at, (id, _))| (*id, at as u32)).collect();
        let base = service.invocations.first().map_or(0, |(_, inv)| inv.start);
        service.tick(base);
        let tick = service.tick.max(1);
        let ticks = |time: i64| time.saturating_sub(base).div_euclid(tick);
        let own = |id: Option<InvocationId>| id.and_then(|id| own.get(&id).copied());
        let sent: Vec<Sent> = service
            .calls
            .iter()
            .map(|(_, sent, links)| Sent {
                callee: own(links.caused),
                made_by: own(links.made_by),
                start: ticks(sent.start),
                end: ticks(sent.end),
                ..*sent
            })
            .collect();
        let mut inside = vec![false; service.invocations.len()];
        for at in sent.iter().filter_map(|sent| sent.callee) {
            inside.iter_mut().skip(at as usize).take(1).for_each(|inside| *inside = true);
        }
        Self {
            ids: service.invocations.iter().map(|(id, _)| *id).collect(),
            invs: service
                .invocations
                .iter()
                .map(|(_, inv)| Inv { start: ticks(inv.start), end: ticks(inv.end), ..*inv })
                .collect(),
            sent,
            caused: service.calls.iter().map(|(.., links)| links.caused).collect(),
            groups: Vec::new(),
            inside,
            model: None,
        }
    }

    /// One round: solve with what is known, learn from what was found.
    fn solve(&mut self, service: &Service, config: &Config, solved: &mut Solved) {
        let known = || {
            let mut model = service.model.clone();
            model.fade(config.keep);
            model
        };
        let model = self.model.take().unwrap_or_else(|| {
            let mut model = known();
            if service.windows < YOUNG {
                self.learn_guess(&mut model, &start::guess(&self.invs, &self.sent), &start::trust(&self.invs));
            }
            model
        });
        let limits = Limits { width: config.width, drop: 12.0, lattice: 200_000 };
        let mut ready = Known { templates: model.templates(), visits: model.visits(), belief: model.belief };
        *solved = beam::solve(&self.invs, &self.sent, &self.groups, &mut ready, limits);
        let mut model = known();
        self.learn_solved(&mut model, solved);
        self.model = Some(model);
    }

    /// Learns each invocation with the calls that it is thought to have made.
    fn learn_guess(&self, model: &mut Model, parents: &[Option<u32>], trust: &[f64]) {
        let mut children: Vec<Vec<Child>> = vec![Vec::new(); self.invs.len()];
        for (sent, parent) in self.sent.iter().zip(parents) {
            if let Some(children) = parent.and_then(|parent| children.get_mut(parent as usize)) {
                children.push(sent.child());
            }
        }
        for ((inv, children), trust) in self.invs.iter().zip(&children).zip(trust).filter(|((inv, _), _)| !inv.open) {
            model.learn(inv.parent, (self.begin(inv), inv.end), children, *trust);
        }
        self.learn_visits(model, parents);
    }

    /// Learns each invocation with the calls that it most probably made, by the probability of that.
    fn learn_solved(&self, model: &mut Model, solved: &Solved) {
        let mut children = Vec::new();
        for (inv, choices) in self.invs.iter().zip(&solved.choices).filter(|(inv, _)| !inv.open) {
            let Some(choice) = choices.first() else { continue };
            children.clear();
            children.extend(choice.calls.iter().filter_map(|call| self.sent.get(*call as usize)).map(Sent::child));
            model.learn(inv.parent, (self.begin(inv), inv.end), &children, choice.p.min(1.0));
        }
        self.learn_visits(model, &solved.parent);
        self.learn_order(model, &solved.parent, &solved.p);
        self.learn_clues(model, solved);
    }

    fn learn_visits(&self, model: &mut Model, parents: &[Option<u32>]) {
        let mut together: Vec<Vec<Kind>> = vec![Vec::new(); self.groups.len()];
        for (sent, parent) in self.sent.iter().zip(parents) {
            let group = parent.and_then(|parent| self.invs.get(parent as usize)).and_then(|inv| inv.group);
            if let Some(kinds) = group.and_then(|group| together.get_mut(group as usize)) {
                kinds.push(sent.kind);
            }
        }
        for kinds in together {
            model.learn_visits(kinds.into_iter(), 1.0);
        }
    }

    fn learn_clues(&self, model: &mut Model, solved: &Solved) {
        for pointed in &solved.pointed {
            let at = pointed.call as usize;
            let (Some(Some(parent)), Some(p)) = (solved.parent.get(at), solved.p.get(at)) else { continue };
            if let Some(maker) = pointed.candidates.iter().position(|candidate| candidate == parent) {
                model.belief.learn(&pointed.pointers, maker, p.clamp(0.0, 1.0));
            }
        }
    }

    fn learn_order(&self, model: &mut Model, parents: &[Option<u32>], p: &[f64]) {
        let templates = model.templates();
        let mut earlier: Vec<Vec<Child>> = vec![Vec::new(); self.invs.len()];
        let mut waits = BTreeMap::<(Parent, Kind), (Vec<order::Wait>, Vec<order::Wait>)>::new();
        for ((sent, parent), p) in self.sent.iter().zip(parents).zip(p) {
            let Some(at) = parent.map(|parent| parent as usize) else { continue };
            let (Some(inv), Some(earlier)) = (self.invs.get(at), earlier.get_mut(at)) else { continue };
            let begin = self.begin(inv);
            let template = templates.get(&inv.parent);
            let waited = template.and_then(|of| of.waits(begin, earlier.iter().rev().copied(), sent.child()));
            if let Some((trigger, there)) = waited {
                let wait = order::Wait { trigger: inv.start, call: sent.start, p: *p };
                let (by_start, by_trigger) = waits.entry((inv.parent, sent.kind)).or_default();
                by_start.push(wait);
                if there {
                    by_trigger.push(order::Wait { trigger, ..wait });
                }
            }
            earlier.push(sent.child());
        }
        for ((parent, kind), (mut by_start, mut by_trigger)) in waits {
            let (start, trigger) = (order::odds(&mut by_start), order::odds(&mut by_trigger));
            let odds = order::Odds { ln: start.max(trigger), since_start: start > trigger };
            model.learn_order(parent, kind, odds);
        }
    }

    fn begin(&self, inv: &Inv) -> Begin {
        let visit = inv.group.and_then(|group| self.groups.get(group as usize)).map(|group| group.last);
        Begin { start: inv.start, visit }
    }
}

/// Finds, by the edges of the round before, the visits that a trace pays to the same service.
fn group(windows: &mut BTreeMap<Sym, (Window, Solved)>) {
    let mut above = BTreeMap::<InvocationId, InvocationId>::new();
    for (window, solved) in windows.values() {
        for (caused, parent) in window.caused.iter().zip(&solved.parent) {
            if let (Some(caused), Some(by)) = (caused, parent.and_then(|by| window.ids.get(by as usize))) {
                above.insert(*caused, *by);
            }
        }
    }
    let root = |mut id: InvocationId| {
        for _ in 0..DEEPEST {
            let Some(by) = above.get(&id) else { break };
            id = *by;
        }
        id
    };
    for (window, _) in windows.values_mut() {
        let mut groups = BTreeMap::<InvocationId, (u32, Group)>::new();
        for ((id, inv), inside) in window.ids.iter().zip(&mut window.invs).zip(&window.inside) {
            inv.group = None;
            if *inside {
                continue;
            }
            let new = groups.len() as u32;
            let (index, group) = groups.entry(root(*id)).or_insert((new, Group { visits: 0, last: inv.start }));
            group.visits += 1;
            group.last = group.last.max(inv.start);
            inv.group = Some(*index);
        }
        let several = groups.values().filter(|(_, group)| group.visits > 1).count();
        if 2 * several < groups.len() {
            window.invs.iter_mut().for_each(|inv| inv.group = None);
            groups.clear();
        }
        let mut groups: Vec<(u32, Group)> = groups.into_values().collect();
        groups.sort_by_key(|(index, _)| *index);
        window.groups = groups.into_iter().map(|(_, group)| group).collect();
    }
}

/// Deepest trace that is followed.
const DEEPEST: usize = 64;
