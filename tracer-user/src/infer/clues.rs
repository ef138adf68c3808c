//! What a request carries that its invocation may share with the calls that it makes: the process that serves it, the
//! ids in its headers, the words of its path.
//!
//! A clue points at those of the candidates that share something with the call which the others do not have. How far it
//! is to be believed is learned, each kind of clue by itself: how often it pointed at the invocation that made the call.

/// Values of one kind that are kept of a request.
pub const VALUES: usize = 4;
/// Kinds of clues: process, ids, words.
const KINDS: usize = 3;

/// Hashes of what a request carries; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clues {
    /// The process that sends or serves it.
    pub process: u32,
    /// Values of headers that applications hand on with a request, `x-request-id` and its like.
    pub ids: [u64; VALUES],
    /// Parts of path and query that look like somebody's number or name.
    pub words: [u64; VALUES],
}

impl Clues {
    /// By kind: whether two requests have a value in common; `None` if the first has none of that kind.
    fn shared(&self, other: &Self) -> [Option<bool>; KINDS] {
        let any = |own: &[u64], others: &[u64]| {
            let own = || own.iter().filter(|value| **value != 0);
            own().next().map(|_| own().any(|value| others.contains(value)))
        };
        let process = (self.process != 0 && other.process != 0).then_some(self.process == other.process);
        [process, any(&self.ids, &other.ids), any(&self.words, &other.words)]
    }
}

/// Where one kind of clue points: at some of the candidates, not at all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    kind: usize,
    /// By candidate, in the order asked for.
    at: Vec<bool>,
}

/// Where the clues of a call point.
pub(super) fn pointers<'a>(call: &Clues, candidates: impl Iterator<Item = &'a Clues> + Clone) -> Vec<Pointer> {
    let point = |kind: usize| {
        let at: Vec<bool> =
            candidates.clone().map(|of| call.shared(of).get(kind).copied().flatten() == Some(true)).collect();
        let pointed = at.iter().filter(|at| **at).count();
        (pointed > 0 && pointed < at.len()).then_some(Pointer { kind, at })
    };
    if *call == Clues::default() { Vec::new() } else { (0..KINDS).filter_map(point).collect() }
}

/// How far each kind of clue is to be believed: how often it pointed at the right one, and how often not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Belief {
    counts: [(f64, f64); KINDS],
}

impl Default for Belief {
    /// As much as one or two dozen observations would make of it: processes hardly hand requests to each other, ids are
    /// handed on to be found again, and the same word may mean nothing.
    fn default() -> Self {
        Self { counts: [(9.0, 1.0), (19.0, 1.0), (3.0, 1.0)] }
    }
}

impl Belief {
    /// ln of what the clues say for each of so many candidates, against none.
    pub fn ln(&self, pointers: &[Pointer], candidate: usize) -> f64 {
        let ln = |pointer: &Pointer| {
            let (right, wrong) = self.counts.get(pointer.kind).copied().unwrap_or((1.0, 1.0));
            let pointed = pointer.at.iter().filter(|at| **at).count().max(1) as f64;
            let others = (pointer.at.len() as f64 - pointed).max(1.0);
            let share = right / (right + wrong);
            let here = pointer.at.get(candidate).copied().unwrap_or(false);
            // Against the even chance of each.
            (if here { share / pointed } else { (1.0 - share) / others } * pointer.at.len() as f64).ln()
        };
        pointers.iter().map(ln).sum()
    }

    /// Learns from a call whose maker is known with some probability.
    pub fn learn(&mut self, pointers: &[Pointer], maker: usize, p: f64) {
        for pointer in pointers {
            let Some((right, wrong)) = self.counts.get_mut(pointer.kind) else { continue };
            if pointer.at.get(maker) == Some(&true) {
                *right += p;
            } else {
                *wrong += p;
            }
        }
    }

    /// Forgets a share.
    pub fn fade(&mut self, keep: f64) {
        let first = Self::default();
        for ((right, wrong), (least_right, least_wrong)) in self.counts.iter_mut().zip(first.counts) {
            *right = (*right * keep).max(least_right);
            *wrong = (*wrong * keep).max(least_wrong);
        }
    }
}
