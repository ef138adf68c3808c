//! Which invocation made a call, from timing and order alone.
//!
//! Where no exact rule applies (DESIGN.md, section 5) several invocations of a sandbox may have made a call. This
//! module ranks them: it learns from the record which calls each kind of invocation makes and what each call waits
//! for ([`model`]), starts from the moments that leave little doubt ([`start`]), and then finds the joint assignment
//! of all calls ([`beam`]), learns from it, and repeats. It is told no call graph, and its input has no place for one:
//! neither [`Invocation`] nor [`Call`] holds a trace, or a link from a call to the invocation that made it. What is
//! seen on the wire it is told: who called whom, and which invocation a call caused.
//!
//! Pure and deterministic: no clock, no chance, and the order in which spans are observed carries nothing.

mod beam;
pub mod calltrees;
//pub mod cli;
mod density;
mod model;
pub mod score;
mod sets;
mod start;
pub mod traces;

use std::collections::BTreeMap;

use beam::{Inv, Limits, Sent, Solved};
use model::{Child, Kind, Model, Parent};

/// A name, interned by the caller: a service, an operation.
pub type Sym = u32;

/// An observed invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvocationId(pub u64);

/// An observed call.
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
    /// Response out, µs since the same epoch.
    pub end_us: i64,
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
}

impl Default for Config {
    fn default() -> Self {
        Self { width: 96, rounds: 4, keep: 0.9 }
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

/// Learns from spans and says which belong together.
#[derive(Debug, Default)]
pub struct Inference {
    config: Config,
    next: u64,
    parents: BTreeMap<(Sym, Sym, Option<Sym>), Parent>,
    kinds: BTreeMap<(Sym, Sym, Sym), Kind>,
    services: BTreeMap<Sym, Service>,
}

#[derive(Debug, Default)]
struct Service {
    model: Model,
    /// Windows learned from.
    windows: u32,
    invocations: Vec<(InvocationId, Inv)>,
    calls: Vec<(CallId, Sent, Option<InvocationId>)>,
}

impl Inference {
    /// With nothing learned yet.
    pub fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// Takes in an invocation that has ended.
    pub fn observe_invocation(&mut self, invocation: &Invocation) -> InvocationId {
        let id = InvocationId(self.next);
        self.next += 1;
        let key = (invocation.service, invocation.op, invocation.caller);
        let new = self.parents.len() as Parent;
        let parent = *self.parents.entry(key).or_insert(new);
        let inv = Inv { parent, start: invocation.start_us, end: invocation.end_us.max(invocation.start_us) };
        self.services.entry(invocation.service).or_default().invocations.push((id, inv));
        id
    }

    /// Takes in a call that was answered.
    pub fn observe_call(&mut self, call: &Call) -> CallId {
        let id = CallId(self.next);
        self.next += 1;
        let new = self.kinds.len() as Kind;
        let kind = *self.kinds.entry((call.service, call.callee, call.op)).or_insert(new);
        let sent = Sent { kind, start: call.start_us, end: call.end_us.max(call.start_us), callee: None };
        self.services.entry(call.service).or_default().calls.push((id, sent, call.invocation));
        id
    }

    /// How many spans wait for a decision.
    pub fn pending(&self) -> usize {
        self.services.values().map(|service| service.invocations.len() + service.calls.len()).sum()
    }

    /// Decides what ended by `until_us`, learns from it and forgets it. Choose `until_us` so long ago that whatever
    /// overlaps it has ended and was observed.
    pub fn resolve(&mut self, until_us: i64) -> Resolution {
        let mut out = Resolution::default();
        for service in self.services.values_mut() {
            service.resolve(&self.config, until_us, &mut out);
        }
        out.edges.sort_unstable_by_key(|edge| edge.call);
        out.choices.sort_unstable_by_key(|choices| choices.invocation);
        out
    }
}

impl Service {
    fn resolve(&mut self, config: &Config, until: i64, out: &mut Resolution) {
        // The key is what was seen and nothing else; what is equal in all of it is the same to us.
        self.invocations.sort_by_key(|(id, inv)| (inv.start, inv.end, inv.parent, *id));
        self.calls.sort_by_key(|(id, sent, _)| (sent.start, sent.end, sent.kind, *id));
        let own: BTreeMap<InvocationId, u32> =
            self.invocations.iter().enumerate().map(|(at, (id, _))| (*id, at as u32)).collect();
        let invs: Vec<Inv> = self.invocations.iter().map(|(_, inv)| *inv).collect();
        let callee = |link: &Option<InvocationId>| link.and_then(|id| own.get(&id).copied());
        let sent: Vec<Sent> =
            self.calls.iter().map(|(_, sent, link)| Sent { callee: callee(link), ..*sent }).collect();
        let solved = self.solve(config, &invs, &sent);

        let decided = |inv: &u32| invs.get(*inv as usize).is_some_and(|inv| inv.end <= until);
        let waits = invs.iter().filter(|inv| inv.end > until).map(|inv| inv.start).min().unwrap_or(i64::MAX);
        let mut kept = Vec::new();
        for (at, (id, ..)) in self.calls.iter().enumerate() {
            let parent = solved.parent.get(at).copied().flatten();
            let (start, end) = sent.get(at).map_or((0, 0), |sent| (sent.start, sent.end));
            if parent.map_or(end <= until && start < waits, |inv| decided(&inv)) {
                let invocation = parent.and_then(|inv| self.invocations.get(inv as usize)).map(|(id, _)| *id);
                let p = solved.p.get(at).copied().unwrap_or(0.0).clamp(0.0, 1.0);
                out.edges.push(Edge { call: *id, invocation, p });
            } else {
                kept.extend(self.calls.get(at).copied());
            }
        }
        for (at, choices) in solved.choices.iter().enumerate().filter(|(at, _)| decided(&(*at as u32))) {
            let Some((id, _)) = self.invocations.get(at) else { continue };
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

    /// Solves the window and learns from it, until both agree or the rounds are over.
    fn solve(&mut self, config: &Config, invs: &[Inv], sent: &[Sent]) -> Solved {
        if invs.is_empty() {
            return Solved { parent: vec![None; sent.len()], p: vec![1.0; sent.len()], choices: Vec::new() };
        }
        let mut known = std::mem::take(&mut self.model);
        known.fade(config.keep);
        let mut model = known.clone();
        let young = self.windows < 3;
        if young {
            learn(&mut model, invs, sent, &start::guess(invs, sent), &start::trust(invs));
        }
        let limits = Limits { width: config.width, drop: 12.0, lattice: 200_000 };
        let mut solved = Solved::default();
        for _ in 0..if young { config.rounds.max(1) } else { 1 } {
            solved = beam::solve(invs, sent, &mut model.templates(), limits);
            let sure = |choices: &Vec<beam::Choice>| choices.first().map_or(0.0, |choice| choice.p);
            let trust: Vec<f64> = solved.choices.iter().map(sure).collect();
            model = known.clone();
            learn(&mut model, invs, sent, &solved.parent, &trust);
        }
        self.model = model;
        self.windows = self.windows.saturating_add(1);
        solved
    }
}

/// Learns each invocation with the calls that it is thought to have made.
fn learn(model: &mut Model, invs: &[Inv], sent: &[Sent], parents: &[Option<u32>], trust: &[f64]) {
    let mut children: Vec<Vec<Child>> = vec![Vec::new(); invs.len()];
    for (sent, parent) in sent.iter().zip(parents) {
        if let Some(children) = parent.and_then(|parent| children.get_mut(parent as usize)) {
            children.push(sent.child());
        }
    }
    for ((inv, children), trust) in invs.iter().zip(&children).zip(trust) {
        model.learn(inv.parent, (inv.start, inv.end), children, *trust);
    }
}
