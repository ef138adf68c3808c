//! What is known of a path while it runs.

use serde::{Deserialize, Serialize};

use super::{counts::Fun, table::mix};

/// Functions of a path that are remembered: the root and the latest others.
const SEEN: usize = 24;
/// Calls whose start or answer is waited for.
const OPEN: usize = 64;

/// What happened to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Moment {
    /// It was made.
    Called,
    /// A sandbox that was there began to work on it.
    Warm,
    /// A sandbox that was made for it began to work on it.
    Cold,
    /// It was answered.
    Answered,
}

/// The latest call to a function in this path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) fun: Fun,
    /// Which call of the path it was, counting from 0.
    pub(super) order: u32,
    called_us: i64,
    started: Option<(i64, bool)>,
    answered_us: Option<i64>,
}

impl Seen {
    /// When `moment` was, in µs since 1970.
    pub(super) fn at(&self, moment: Moment) -> Option<i64> {
        match moment {
            Moment::Called => Some(self.called_us),
            Moment::Warm => self.started.filter(|started| !started.1).map(|started| started.0),
            Moment::Cold => self.started.filter(|started| started.1).map(|started| started.0),
            Moment::Answered => self.answered_us,
        }
    }

    /// Whether it was answered, or else started.
    pub(super) fn has(&self, answer: bool) -> bool {
        if answer { self.answered_us.is_some() } else { self.started.is_some() }
    }

    /// What has happened.
    pub(super) fn moments(&self) -> impl Iterator<Item = (Moment, i64)> {
        let all = [Moment::Called, Moment::Warm, Moment::Cold, Moment::Answered];
        let this = *self;
        all.into_iter().filter_map(move |moment| this.at(moment).map(|at| (moment, at)))
    }
}

/// A call that may yet start or be answered.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: u64,
    fun: Fun,
    order: u32,
    /// The functions from the root to this call, as a hash.
    chain: u64,
}

/// A path that runs. Its size is bounded, whatever is called.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    seen: Vec<Seen>,
    open: Vec<Open>,
    /// Calls so far.
    pub(super) calls: u32,
    /// The latest three callees, newest first.
    latest: [Fun; 3],
    /// Hash of the set of functions called so far.
    called: u64,
    /// Hash of the set of starts (warm or cold) and answers so far.
    happened: u64,
    /// Hash of the chain of callers of the latest call.
    chain: u64,
    /// When the latest call was made, in µs since 1970.
    pub(super) called_us: i64,
    /// When the latest event was, in µs since 1970.
    pub(super) now_us: i64,
}

/// The contexts in which the next call is counted, by position in [`State::contexts`].
pub(super) const CONTEXTS: usize = 8;

impl State {
    /// The functions called so far, the latest call of each.
    pub(super) fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter()
    }

    /// The latest call to a function.
    pub(super) fn find(&self, fun: Fun) -> Option<&Seen> {
        self.seen.iter().find(|seen| seen.fun == fun)
    }

    /// The function of the root.
    pub(super) fn root(&self) -> Fun {
        self.seen.first().map_or(0, |seen| seen.fun)
    }

    /// The keys of the contexts: none, the latest one, two, three callees, the set of callees, the set and the latest,
    /// the set and what has happened to each, the chain of callers.
    pub(super) fn contexts(&self) -> [u64; CONTEXTS] {
        let [one, two, three] = self.latest;
        let first = mix(1, one);
        let second = mix(first, two);
        let set = mix(4, self.called);
        [
            mix(0, 0),
            first,
            mix(2, second),
            mix(3, mix(second, three)),
            set,
            mix(set, one),
            mix(mix(6, self.called), self.happened),
            mix(7, self.chain),
        ]
    }

    /// A call was made by the invocation of call `caller`.
    pub(super) fn call(&mut self, id: u64, caller: Option<u64>, fun: Fun, at_us: i64) {
        let order = self.calls;
        let above = caller.and_then(|caller| self.open.iter().find(|open| open.id == caller)).map_or(0, |o| o.chain);
        self.chain = mix(above, fun);
        self.calls = self.calls.saturating_add(1);
        let seen = Seen { fun, order, called_us: at_us, started: None, answered_us: None };
        if let Some(before) = self.seen.iter_mut().find(|before| before.fun == fun) {
            *before = seen;
        } else {
            self.called = self.called.wrapping_add(mix(8, fun));
            if self.seen.len() >= SEEN {
                // The root stays: much is counted from it.
                let oldest = self.seen.iter().enumerate().skip(1).min_by_key(|(_, seen)| seen.order);
                if let Some((index, _)) = oldest {
                    self.seen.remove(index);
                }
            }
            self.seen.push(seen);
        }
        if self.open.len() >= OPEN {
            self.open.remove(1);
        }
        self.open.push(Open { id, fun, order, chain: self.chain });
        self.latest = [fun, self.latest[0], self.latest[1]];
        self.called_us = at_us;
        self.now_us = self.now_us.max(at_us);
        if order == 0 {
            self.now_us = at_us;
        }
    }

    /// The callee began to work. Gives the callee, unless the call is not known.
    pub(super) fn start(&mut self, id: u64, at_us: i64, cold: bool) -> Option<Fun> {
        let open = self.open.iter().find(|open| open.id == id).copied()?;
        self.happened = self.happened.wrapping_add(mix(mix(9, open.fun), u64::from(cold)));
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.order == open.order) {
            seen.started = Some((at_us, cold));
        }
        self.now_us = self.now_us.max(at_us);
        Some(open.fun)
    }

    /// Whether a call is waited for.
    pub(super) fn is_open(&self, id: u64) -> bool {
        self.open.iter().any(|open| open.id == id)
    }

    /// The answer is there. A call that is not known is passed over.
    pub(super) fn answer(&mut self, id: u64, at_us: i64) {
        let Some(place) = self.open.iter().position(|open| open.id == id) else { return };
        let open = self.open.remove(place);
        self.happened = self.happened.wrapping_add(mix(10, open.fun));
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.order == open.order) {
            seen.answered_us = Some(at_us);
        }
        self.now_us = self.now_us.max(at_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_any_length_is_bounded() {
        let mut state = State::default();
        for id in 0..10_000 {
            state.call(id, id.checked_sub(1), id + 2, id as i64);
        }
        assert_eq!((state.seen.len(), state.open.len()), (SEEN, OPEN));
        assert_eq!((state.root(), state.latest[0]), (2, 10_001));
    }

    #[test]
    fn the_set_does_not_know_order_and_the_suffix_does() {
        let path = |funs: [u64; 3]| {
            let mut state = State::default();
            for (id, fun) in funs.into_iter().enumerate() {
                state.call(id as u64, None, fun, id as i64);
            }
            state.contexts()
        };
        let (one, other) = (path([2, 3, 4]), path([3, 2, 4]));
        assert_eq!((one[4], one[5]), (other[4], other[5]));
        assert_ne!(one[2], other[2]);
        assert_eq!(path([2, 2, 4])[4], path([4, 2, 4])[4]);
    }

    #[test]
    fn unknown_calls_do_not_start() {
        let mut state = State::default();
        state.call(1, None, 5, 0);
        assert_eq!((state.start(2, 3, true), state.start(1, 3, true)), (None, Some(5)));
        state.answer(1, 9);
        assert!(!state.is_open(1));
        state.answer(1, 12);
        assert_eq!(state.find(5).unwrap().at(Moment::Answered), Some(9));
        assert_eq!(state.find(5).unwrap().at(Moment::Cold), Some(3));
        assert_eq!(state.find(5).unwrap().at(Moment::Warm), None);
    }
}
