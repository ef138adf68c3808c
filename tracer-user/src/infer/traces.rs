//! Whole traces from single decisions: the most probable ways to hang the calls under a root.

use std::collections::BTreeMap;

use super::{CallId, Choices, InvocationId};

/// One way to make a whole trace: for each invocation of it the calls that it made.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// ln of the probability, the invocations taken for independent.
    pub ln_p: f64,
    /// The invocations of the trace, each with its calls, ascending.
    pub sets: BTreeMap<InvocationId, Vec<CallId>>,
}

/// Deepest trace that is followed: what is deeper is a loop, or hostile.
const DEEPEST: usize = 64;

/// Puts decisions together.
#[derive(Debug)]
pub struct Traces<'a> {
    choices: BTreeMap<InvocationId, &'a Choices>,
    caused: &'a BTreeMap<CallId, InvocationId>,
}

impl<'a> Traces<'a> {
    /// From decided invocations and the invocation that each call caused.
    pub fn new(choices: &'a [Choices], caused: &'a BTreeMap<CallId, InvocationId>) -> Self {
        Self { choices: choices.iter().map(|choices| (choices.invocation, choices)).collect(), caused }
    }

    /// The most probable whole traces under a root, at most `most`, the best first.
    pub fn best(&self, root: InvocationId, most: usize) -> Vec<Candidate> {
        self.under(root, most, 0)
    }

    fn under(&self, invocation: InvocationId, most: usize, depth: usize) -> Vec<Candidate> {
        let nothing = || vec![Candidate { ln_p: 0.0, sets: BTreeMap::new() }];
        let Some(choices) = self.choices.get(&invocation).filter(|_| depth < DEEPEST) else { return nothing() };
        let mut out = Vec::new();
        for choice in choices.choices.iter().take(most) {
            let mut ways = vec![Candidate {
                ln_p: choice.p.max(1e-12).ln(),
                sets: BTreeMap::from([(invocation, choice.calls.clone())]),
            }];
            for callee in choice.calls.iter().filter_map(|call| self.caused.get(call)) {
                let below = self.under(*callee, most, depth + 1);
                ways = best_of(ways.iter().flat_map(|way| below.iter().map(|below| join(way, below))).collect(), most);
            }
            out.extend(ways);
        }
        best_of(out, most)
    }
}

fn join(a: &Candidate, b: &Candidate) -> Candidate {
    let mut sets = a.sets.clone();
    sets.extend(b.sets.iter().map(|(invocation, calls)| (*invocation, calls.clone())));
    Candidate { ln_p: a.ln_p + b.ln_p, sets }
}

fn best_of(mut ways: Vec<Candidate>, most: usize) -> Vec<Candidate> {
    ways.sort_by(|a, b| b.ln_p.total_cmp(&a.ln_p));
    ways.truncate(most);
    ways
}
