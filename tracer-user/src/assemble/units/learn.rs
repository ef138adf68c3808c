//! Learns where on a loop's stack the unit of work shows that runs.
//!
//! It is the place at which a call and the answer of the invocation that made it have the same word, and the answers of
//! others, that were live at the same time, have another. Whose a call was is not known, but what would follow can be
//! tested: for each call it has to be exactly one of those that were live, and that one must not have answered before the
//! call was over. Words that merely tell one moment from the next fail that: what was sent just before another's answer
//! would be that one's, and is not over.

use std::collections::{BTreeMap, BTreeSet};

use tracer_ebpf::record::{STACK, Sought, place, sought};

const WORD: usize = size_of::<u64>();
/// Words of a stack.
const WORDS: usize = STACK / WORD;
/// Samples at which it is tried for the first time, how many more for the next one, and when it is given up.
const FIRST: usize = 224;
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
    /// Of threads that were woken and have made no call since.
    handed: BTreeMap<u32, Sample>,
    shown: usize,
    last_ns: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NotYet,
    /// What the kernel half is to know ([`place`]): two places, or that there is none.
    Settled([u64; 2]),
}

impl Learner {
    pub fn add(&mut self, at_ns: u64, sought: &Sought, stack: &[u8]) {
        let (words, _) = stack.as_chunks::<WORD>();
        let words = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let sample = Sample { span: sought.span, at_ns, read_ns: 0, words };
        self.shown += 1;
        self.last_ns = at_ns;
        if self.shown > LAST {
            return;
        }
        match sought.what {
            sought::CALLS => self.calls.push(sample),
            sought::ANSWERS => self.answers.push(sample),
            _ => drop(self.handed.insert(sought.tid, sample)),
        }
    }

    /// A thread has made a call. If it was woken for that, then by whom counts.
    pub fn called(&mut self, tid: u32, span: u64) {
        if self.calls.len() < LAST
            && let Some(handed) = self.handed.remove(&tid)
        {
            self.calls.push(Sample { span, ..handed });
        }
    }

    /// The response of an invocation has left, whose request was read at this time.
    pub fn answered(&mut self, span: u64, read_ns: u64) {
        if let Some(answer) = self.answers.iter_mut().rev().find(|answer| answer.span == span) {
            answer.read_ns = read_ns;
        }
    }

    /// When it was shown a stack last.
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    pub fn is_due(&self) -> bool {
        self.shown >= LAST || (self.shown >= FIRST && (self.shown - FIRST).is_multiple_of(STEP))
    }

    /// `ended_ns`: when a call was over, if it is.
    pub fn verdict(&self, ended_ns: impl Fn(u64) -> Option<u64>) -> Verdict {
        // Each call, with those that may have made it: live, and at work, when it was sent.
        let calls = self.calls.iter().map(|call| {
            let live = |answer: &&Sample| (1..call.at_ns).contains(&answer.read_ns) && call.at_ns < answer.at_ns;
            let live = self.answers.iter().filter(live).collect::<Vec<_>>();
            Asked { call, ended_ns: ended_ns(call.span).unwrap_or(u64::MAX), live }
        });
        let calls: Vec<Asked<'_>> = calls.filter(|asked| asked.live.len() > 1).collect();
        let places: Vec<(usize, Vec<Said>)> = (0..WORDS)
            .filter(|at| self.is_told_apart(*at))
            .map(|at| (at, calls.iter().map(|asked| asked.says(at)).collect()))
            .collect();
        let mut first: Option<(usize, &(usize, Vec<Said>))> = None;
        for place in &places {
            let told = place.1.iter().filter(|said| matches!(said, Said::One(_))).count();
            let wrong = place.1.iter().filter(|said| matches!(said, Said::Wrong)).count();
            if told >= TOLD_MIN && wrong * TOLD_PER_WRONG <= told && first.is_none_or(|(most, _)| told > most) {
                first = Some((told, place));
            }
        }
        let Some((_, (at, said))) = first else {
            return if self.shown >= LAST { Verdict::Settled([place::NOWHERE, 0]) } else { Verdict::NotYet };
        };
        // The way that a unit is woken shifts what it has on the stack: a second place may tell what the first does not, if
        // not of these calls then of others. It must never contradict, and is of no use if it tells the same always.
        let worth = |(_, other): &&(usize, Vec<Said>)| {
            let pairs = || said.iter().zip(other);
            let count = |which: fn(&(&Said, &Said)) -> bool| pairs().filter(which).count();
            let contradicts = count(|pair| match pair {
                (Said::One(a), Said::One(b)) => a != b,
                (_, Said::Wrong) => true,
                _ => false,
            });
            let new = count(|pair| matches!(pair, (Said::None | Said::Wrong, Said::One(_))));
            let both = count(|pair| matches!(pair, (Said::One(_), Said::One(_))));
            let differs = new > 0 || count(|pair| matches!(pair, (Said::One(_), Said::None))) > 0;
            if contradicts == 0 && both >= TOLD_MIN / 2 { (new, differs, both) } else { (0, false, 0) }
        };
        let second = places.iter().filter(|other| worth(other).1).max_by_key(worth).map_or(*at, |(at, _)| *at);
        let bytes = |at: usize| ((at * WORD) as i64 - (STACK / 2) as i64) as u64;
        Verdict::Settled([bytes(*at), bytes(second)])
    }

    /// Whether the answers' words at this place may be addresses of things that there are several of.
    fn is_told_apart(&self, at: usize) -> bool {
        let words = || self.answers.iter().filter_map(|answer| answer.words.get(at).copied());
        let addresses = words().filter(|word| is_address(*word));
        2 * addresses.clone().count() > self.answers.len() && addresses.collect::<BTreeSet<u64>>().len() > 2
    }
}

/// Whether a word may be the address of an object in a process's memory.
fn is_address(word: u64) -> bool {
    const USER: std::ops::Range<u64> = 0x1_0000..1 << 56;
    USER.contains(&word) && word.is_multiple_of(WORD as u64)
}

/// A call, and the answers of those that were live.
struct Asked<'a> {
    call: &'a Sample,
    ended_ns: u64,
    live: Vec<&'a Sample>,
}

/// What a place says of a call.
#[derive(Clone, Copy)]
enum Said {
    /// Nobody had the word.
    None,
    /// The invocation with this span had it.
    One(u64),
    /// Several had it, or one that answered before the call was over.
    Wrong,
}

impl Asked<'_> {
    fn says(&self, at: usize) -> Said {
        let Some(word) = self.call.words.get(at).filter(|word| is_address(**word)) else { return Said::None };
        let mut same = self.live.iter().filter(|answer| answer.words.get(at) == Some(word));
        match (same.next(), same.next()) {
            (None, _) => Said::None,
            (Some(answer), None) if self.ended_ns <= answer.at_ns => Said::One(answer.span),
            _ => Said::Wrong,
        }
    }
}
