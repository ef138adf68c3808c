//! Learns where on a loop's stack the unit of work shows that runs.
//!
//! It is the place at which a call and the answer of the invocation that made it have the same word, and the answers of
//! others, that were live at the same time, have another. Whose a call was is not known, but what would follow can be
//! tested: for each call it has to be exactly one of those that were live, and that one must not have answered before the
//! call was over. Words that merely tell one moment from the next fail that: what was sent just before another's answer
//! would be that one's, and is not over.

use std::collections::BTreeSet;

use tracer_ebpf::record::{STACK, Sought, place};

const WORD: usize = size_of::<u64>();
/// Words of a stack.
const WORDS: usize = STACK / WORD;
/// Samples at which it is tried for the first time, how many more for the next one, and when it is given up.
const FIRST: usize = 96;
const STEP: usize = 64;
const LAST: usize = 352;
/// So many calls have to be told apart at the place, and at most one in so many may contradict it.
const TOLD_MIN: usize = 16;
const TOLD_PER_WRONG: usize = 25;

/// A stack, seen when a call was sent or an invocation answered.
#[derive(Debug)]
struct Sample {
    span: u64,
    at_ns: u64,
    /// Of an answer: when the request had been read; 0 as long as that is not known.
    read_ns: u64,
    words: Box<[u64]>,
}

/// What was seen of a process.
#[derive(Debug, Default)]
pub(super) struct Learner {
    calls: Vec<Sample>,
    answers: Vec<Sample>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NotYet,
    /// What the kernel half is to know ([`place`]).
    Settled(u64),
}

impl Learner {
    pub fn add(&mut self, at_ns: u64, sought: &Sought, stack: &[u8]) {
        let (words, _) = stack.as_chunks::<WORD>();
        let words = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let samples = if sought.call == 1 { &mut self.calls } else { &mut self.answers };
        if samples.len() < LAST {
            samples.push(Sample { span: sought.span, at_ns, read_ns: 0, words });
        }
    }

    /// The response of an invocation has left, whose request was read at this time.
    pub fn answered(&mut self, span: u64, read_ns: u64) {
        if let Some(answer) = self.answers.iter_mut().rev().find(|answer| answer.span == span) {
            answer.read_ns = read_ns;
        }
    }

    fn len(&self) -> usize {
        self.calls.len() + self.answers.len()
    }

    pub fn is_due(&self) -> bool {
        self.len() >= LAST || (self.len() >= FIRST && (self.len() - FIRST).is_multiple_of(STEP))
    }

    /// `ended_ns`: when a call was over, if it is.
    pub fn verdict(&self, ended_ns: impl Fn(u64) -> Option<u64>) -> Verdict {
        // Each call, with those that may have made it: live, and at work, when it was sent.
        let calls = self.calls.iter().map(|call| {
            let live = |answer: &&Sample| (1..call.at_ns).contains(&answer.read_ns) && call.at_ns < answer.at_ns;
            (call, ended_ns(call.span).unwrap_or(u64::MAX), self.answers.iter().filter(live).collect::<Vec<_>>())
        });
        let calls: Vec<_> = calls.filter(|(.., live)| live.len() > 1).collect();
        let mut best: Option<(i64, usize)> = None;
        for at in (0..WORDS).filter(|at| self.is_told_apart(*at)) {
            let (mut told, mut wrong) = (0, 0);
            for (call, ended_ns, live) in &calls {
                let word = call.words.get(at);
                let mut same = live.iter().filter(|answer| answer.words.get(at) == word);
                match (same.next(), same.next()) {
                    (None, _) => {}
                    (Some(answer), None) if *ended_ns <= answer.at_ns => told += 1,
                    _ => wrong += 1,
                }
            }
            let score = told as i64 - (wrong * TOLD_PER_WRONG) as i64;
            if told >= TOLD_MIN && wrong * TOLD_PER_WRONG <= told && best.is_none_or(|(most, _)| score > most) {
                best = Some((score, at));
            }
        }
        match best {
            Some((_, at)) => {
                let bytes = (at * WORD) as i64 - (STACK / 2) as i64;
                Verdict::Settled(bytes as u64)
            }
            None if self.len() >= LAST => Verdict::Settled(place::NOWHERE),
            None => Verdict::NotYet,
        }
    }

    /// Whether the answers' words at this place may be addresses of things that there are several of.
    fn is_told_apart(&self, at: usize) -> bool {
        const USER: std::ops::Range<u64> = 0x1_0000..1 << 56;
        let words = || self.answers.iter().filter_map(|answer| answer.words.get(at).copied());
        let address = |word: u64| USER.contains(&word) && word.is_multiple_of(WORD as u64);
        words().all(address) && words().collect::<BTreeSet<u64>>().len() > 2
    }
}
