//! Calls of event loops, placed by the runtime's unit of work that sent them.
//!
//! A loop that serves several invocations by turns (Python's asyncio) runs a unit of work, a task, for each. The kernel
//! half reads which one runs when a call is sent and when an invocation is answered. Whose a unit is shows only with its
//! answer: so the call waits for the answers of those that were live, and belongs to the one that the same unit gave.
//! A unit's address is its own as long as it lives, and it lives from when the request was read to the answer: what was
//! sent before that is another's.
//!
//! Where on the stack the unit shows is learned for each process ([`learn`]). All tables are bounded; what finds no room is
//! left as the kernel half has it, and counted.

mod handed;
mod learn;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use tracer_ebpf::record::{Answered, Header, Sought, Start, place};

use super::{
    Assembler,
    guess::{Hint, Place},
    span::{Class, Map},
};
use handed::Handing;
use learn::{Learner, Verdict};

/// Longest time that a call waits for the answers. Only the call waits, and what it caused.
const HOLD_NS: u64 = 10_000_000_000;
/// How often it is looked for calls that wait in vain.
const STEP_NS: u64 = 20_000_000;
/// A sandbox without such calls for so long is no longer watched.
const AWAKE_NS: u64 = 10_000_000_000;
/// Sandboxes watched, and calls that wait, in all.
const WATCHED: usize = 1024;
const HELD: usize = 16_384;
/// Of these, in one sandbox: each of its answers looks through them.
const HELD_OF_ONE: usize = 2048;
/// Processes of which it is being learned at a time where units show. Each may take 800 KB.
const LEARNERS: usize = 8;
/// Processes that found no room among these, and are asked again once there is.
const REFUSED: usize = 64;
/// The kernel half knows what was learned so much later, at most.
const TOLD_NS: u64 = 1_000_000_000;
/// Processes of which it is known.
const KNOWN: usize = 16_384;
/// Stacks that the kernel half is to show when what was learned fails, as many as for a new process.
const AGAIN: u64 = 384;
/// What was learned fails if more than one in so many calls wait in vain, of so many.
const IN_VAIN_PER: u32 = 20;
const IN_VAIN_OF: u32 = 64;
/// After so long it may be learned again, and each time twice as long after the last.
const AGAIN_NS: u64 = 2_000_000_000;

/// How probable a call can be at most that another thread sent than the loop's: it was woken by the unit's, but what for is
/// not certain.
const HANDED_P: f64 = 0.9;

/// The second word alone tells whose a call is if it is so probable; below that it was right in one of ten.
const SECOND_P: f64 = 0.8;

/// A call that waits.
#[derive(Debug)]
struct Held {
    place: Place,
    pid: u32,
    tid: u32,
    unit: [u64; 2],
    at_ns: u64,
    hint: Option<Hint>,
    /// Who answered with the second word, and so may have made it, if nobody answers with the first. Its path waits.
    second: Option<(Place, bool)>,
}

/// A sandbox with such calls.
#[derive(Debug, Default)]
struct Watch {
    /// When each invocation began that has not ended, and where it is; and by whom it is answered, once it is.
    running: BTreeMap<(u64, u32), Option<Answered>>,
    held: Vec<Held>,
    last_ns: u64,
}

/// A process of which it is known where units show, and how that has stood the test.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    places: [u64; 2],
    /// By the first word, and by the second: calls that were placed rightly as far as can be tested, and others.
    right: [u32; 2],
    wrong: [u32; 2],
    /// Since it was learned last: calls that found their invocation, and others.
    found: u32,
    in_vain: u32,
    /// When it was learned, and how long that is to do.
    learned_ns: u64,
    lasts_ns: u64,
}

impl Known {
    fn note(&mut self, word: usize, right: bool) {
        let counts = if right { &mut self.right } else { &mut self.wrong };
        counts[word] += 1;
        if counts[word] > 4096 {
            (self.right[word], self.wrong[word]) = (self.right[word] / 2, self.wrong[word] / 2);
        }
    }

    /// How probably a call is its unit's invocation's, as this word tells. One that went on beyond the answer is another's
    /// nine times in ten (as measured).
    fn p(&self, word: usize, over: bool) -> f64 {
        let (right, wrong) = (f64::from(self.right[word]), f64::from(self.wrong[word]));
        // The first was learned by many calls; the second has to show that it says the same.
        let p = if word == 0 { (right + 19.0) / (right + wrong + 20.0) } else { right / (right + 4.0 * wrong + 10.0) };
        if over { p } else { p / 10.0 }
    }

    /// Whether too many calls wait in vain, and it is time to learn anew.
    fn fails(&mut self, now_ns: u64) -> bool {
        if self.found + self.in_vain < IN_VAIN_OF {
            return false;
        }
        let fails = self.in_vain * IN_VAIN_PER > self.found + self.in_vain;
        (self.found, self.in_vain) = (0, 0);
        fails && now_ns.saturating_sub(self.learned_ns) >= self.lasts_ns
    }
}

/// All that is known of units.
#[derive(Debug, Default)]
pub(super) struct Units {
    // In order, because what is given out must not depend on a map's.
    sandboxes: BTreeMap<u64, Watch>,
    held: usize,
    next_ns: u64,
    learners: Map<u32, Learner>,
    refused: VecDeque<u32>,
    known: Map<u32, Known>,
    handing: Map<u32, Handing>,
    learned: Vec<(u32, [u64; 3])>,
}

impl Assembler {
    /// Where the units of processes show, as learned since the last time: the process, and what the kernel half is to have
    /// for it: two places ([`tracer_ebpf::record::place`]), and how many more stacks it is to show.
    pub fn unit_places(&mut self) -> Vec<(u32, [u64; 3])> {
        std::mem::take(&mut self.units.learned)
    }

    /// Notes an invocation, if its sandbox is watched.
    pub(super) fn unit_begins(&mut self, key: u32) {
        let span = &self.spans[key as usize];
        if let Some(watch) = self.units.sandboxes.get_mut(&span.sandbox)
            && (!watch.held.is_empty() || self.now_ns.saturating_sub(watch.last_ns) < AWAKE_NS)
        {
            watch.running.insert((span.at_ns, key), None);
        }
    }

    /// Lets a call wait for its unit's answer; `false` if it cannot.
    pub(super) fn await_unit(&mut self, key: u32, start: &Start, hint: Option<Hint>) -> bool {
        let unit = start.unit;
        let hands =
            |pid: &u32| start.tid != 0 && self.units.handing.get(pid).is_some_and(|handing| handing.is_worth_it());
        let is_awaited = unit != [0; 2] || hands(&self.spans[key as usize].pid);
        if !is_awaited || self.config.infer_min >= 1.0 {
            return false;
        }
        let (sandbox, now_ns) = (self.spans[key as usize].sandbox, self.now_ns);
        if self.units.held >= HELD || !self.watch_units(sandbox) {
            self.totals.inference.refused += 1;
            return false;
        }
        let Some(watch) = self.units.sandboxes.get_mut(&sandbox) else { return false };
        if watch.held.len() >= HELD_OF_ONE {
            self.totals.inference.refused += 1;
            return false;
        }
        let span = &self.spans[key as usize];
        let place = Place::of(key, span);
        self.trees[span.tree as usize].held += 1;
        watch.last_ns = now_ns;
        watch.held.push(Held { place, pid: span.pid, tid: start.tid, unit, at_ns: span.at_ns, hint, second: None });
        self.units.held += 1;
        self.totals.inference.held += 1;
        true
    }

    /// Sees to it that a sandbox is watched; `false` if there is no room.
    fn watch_units(&mut self, sandbox: u64) -> bool {
        let now_ns = self.now_ns;
        let awake = |watch: &Watch| !watch.held.is_empty() || now_ns.saturating_sub(watch.last_ns) < AWAKE_NS;
        if self.units.sandboxes.get(&sandbox).is_some_and(awake) {
            return true;
        }
        if self.units.sandboxes.len() >= WATCHED {
            self.units.sandboxes.retain(|_, watch| awake(watch));
            if self.units.sandboxes.len() >= WATCHED {
                return false;
            }
        }
        let running = self.spans.iter().filter(|(_, span)| {
            span.sandbox == sandbox && span.class == Class::Invocation && !span.ended && !span.given_out()
        });
        let running = running.map(|(key, span)| ((span.at_ns, key as u32), None)).collect();
        self.units.sandboxes.insert(sandbox, Watch { running, held: Vec::new(), last_ns: now_ns });
        true
    }

    /// An invocation begins to answer.
    pub(super) fn unit_answers(&mut self, header: &Header, answered: &Answered) {
        let Some(key) = self.invocations.get(&answered.span).copied() else { return };
        let span = &self.spans[key as usize];
        if let Some(learner) = self.units.learners.get_mut(&header.pid) {
            learner.answered(answered.span, answered.read_ns);
        }
        let watch = self.units.sandboxes.get_mut(&span.sandbox);
        if let Some(by) = watch.and_then(|watch| watch.running.get_mut(&(span.at_ns, key))) {
            *by = Some(*answered);
        }
    }

    /// An invocation has ended: the calls that its unit made are its own.
    pub(super) fn unit_ends(&mut self, key: u32, header: &Header) {
        let span = &self.spans[key as usize];
        let Some(watch) = self.units.sandboxes.get_mut(&span.sandbox) else { return };
        let Some(Some(answered)) = watch.running.remove(&(span.at_ns, key)) else { return };
        if answered.read_ns == 0 || span.given_out() {
            return;
        }
        let (unit, during) = (answered.unit, answered.read_ns..header.at_ns);
        let is_its = |held: &Held, word: usize| {
            unit[word] != 0 && held.unit[word] == unit[word] && held.pid == header.pid && during.contains(&held.at_ns)
        };
        let maker = Place::of(key, span);
        let found: Vec<Held> = watch.held.extract_if(.., |held| is_its(held, 0)).collect();
        let over = |held: &Held| held.place.find(&self.spans).is_some_and(|call| call.ended);
        for held in watch.held.iter_mut().filter(|held| is_its(held, 1) && held.second.is_none()) {
            held.second = Some((maker, over(held)));
            self.trees[span.tree as usize].held += 1;
        }
        for held in found {
            let over = held.place.find(&self.spans).is_some_and(|call| call.ended);
            let Some(known) = self.units.known.get_mut(&held.pid) else {
                self.unit_decided(&held, None);
                continue;
            };
            known.found += 1;
            known.note(0, over);
            if held.unit[1] != 0 && unit[1] != 0 {
                // What the second word would have told.
                match held.second {
                    Some((other, _)) => known.note(1, other == maker),
                    None if held.unit[1] == unit[1] => known.note(1, over),
                    None => {}
                }
            }
            let p = known.p(0, over).min(if held.tid == answered.read_tid { 1.0 } else { HANDED_P });
            self.unit_decided(&held, Some((maker, p)));
        }
    }

    /// Lets go of calls whose unit nobody answered with; of all with `force`.
    pub(super) fn give_up_units(&mut self, force: bool) {
        let now_ns = self.now_ns;
        if self.units.held == 0 || (now_ns < self.units.next_ns && !force) {
            return;
        }
        self.units.next_ns = now_ns.saturating_add(STEP_NS);
        let mut in_vain = Vec::new();
        for watch in self.units.sandboxes.values_mut().filter(|watch| !watch.held.is_empty()) {
            let spans = &self.spans;
            // It may have been given out, to make room.
            while let Some((at_ns, key)) = watch.running.keys().next().copied()
                && spans.get(key as usize).is_none_or(|span| span.at_ns != at_ns || span.ended)
            {
                watch.running.pop_first();
            }
            let oldest_ns = watch.running.keys().next().map_or(u64::MAX, |(at_ns, _)| *at_ns);
            let late =
                |held: &mut Held| force || held.at_ns < oldest_ns || now_ns.saturating_sub(held.at_ns) >= HOLD_NS;
            in_vain.extend(watch.held.extract_if(.., late));
        }
        for held in in_vain {
            let known = self.units.known.get(&held.pid);
            let second = held.second.zip(known).map(|((maker, over), known)| (maker, known.p(1, over)));
            let second = second.filter(|(_, p)| *p >= SECOND_P);
            self.unit_decided(&held, second);
            if held.unit == [0; 2] {
                self.units.handing.entry(held.pid).or_default().waited_in_vain();
            }
            let Some(known) = self.units.known.get_mut(&held.pid) else { continue };
            if second.is_some() {
                known.found += 1;
                continue;
            }
            known.in_vain += 1;
            if known.fails(now_ns) && !self.units.learners.contains_key(&held.pid) {
                known.lasts_ns = (2 * known.lasts_ns).max(AGAIN_NS);
                known.learned_ns = now_ns;
                self.units.learned.push((held.pid, [known.places[0], known.places[1], AGAIN]));
            }
        }
    }

    fn unit_decided(&mut self, held: &Held, maker: Option<(Place, f64)>) {
        self.units.held -= 1;
        let call = held.place.in_flight(&self.spans).map(|_| held.place.key);
        let maker = maker.filter(|(_, p)| *p >= self.config.infer_min);
        match (call, maker) {
            (Some(call), Some((maker, p))) => {
                self.totals.inference.placed += 1;
                self.hang(call, maker, p);
            }
            (Some(call), None) => {
                self.totals.inference.unplaced += 1;
                if let Some(hint) = held.hint {
                    self.believe(call, hint);
                }
            }
            (None, _) => self.totals.inference.unplaced += 1,
        }
        for place in [Some(held.place), held.second.map(|(maker, _)| maker)].into_iter().flatten() {
            let Some(tree) = place.in_flight(&self.spans).map(|span| span.tree) else { continue };
            let entry = &mut self.trees[tree as usize];
            entry.held = entry.held.saturating_sub(1);
            self.check_ready(tree);
        }
    }

    /// A call was made of which it is not certain who made it, by this thread.
    pub(super) fn unit_called(&mut self, key: u32, tid: u32) {
        let span = &self.spans[key as usize];
        if let Some(learner) = self.units.learners.get_mut(&span.pid) {
            learner.called(tid, span.id);
        }
    }

    /// What was on the stack when a call was sent or an invocation answered.
    pub(super) fn unit_sought(&mut self, header: &Header, sought: &Sought, stack: &[u8]) {
        let pid = header.pid;
        if sought.is_new == 1 && !self.units.learners.contains_key(&pid) {
            let learned_ns = self.units.known.get(&pid).map(|known| known.learned_ns);
            if learned_ns.is_some_and(|learned_ns| header.at_ns.saturating_sub(learned_ns) < TOLD_NS) {
                // It has not been told yet.
                return;
            }
            // Another process with the same id.
            self.units.known.remove(&pid);
            self.units.handing.remove(&pid);
        }
        if !self.units.learners.contains_key(&pid) && self.units.learners.len() >= LEARNERS {
            // A process that is gone, or has stopped making such calls, does not keep others from being learned.
            let oldest = self.units.learners.iter().map(|(pid, learner)| (learner.last_ns(), *pid)).min();
            let stale = oldest.filter(|(last_ns, _)| header.at_ns.saturating_sub(*last_ns) >= AWAKE_NS);
            let Some((_, stale)) = stale else {
                self.totals.inference.refused += 1;
                if self.units.refused.len() < REFUSED && !self.units.refused.contains(&pid) {
                    self.units.refused.push_back(pid);
                }
                return;
            };
            self.units.learners.remove(&stale);
        }
        self.units.refused.retain(|refused| *refused != pid);
        let learner = self.units.learners.entry(pid).or_default();
        learner.add(header.at_ns, sought, stack);
        if !learner.is_due() {
            return;
        }
        let ended_ns = |call: u64| {
            let span = &self.spans[*self.calls.get(&call)? as usize];
            span.ended.then_some(span.end_ns)
        };
        match learner.verdict(ended_ns) {
            Verdict::NotYet => {}
            Verdict::Settled(places) => {
                self.units.learners.remove(&pid);
                if self.units.known.len() >= KNOWN {
                    self.units.known.clear();
                }
                let known = self.units.known.entry(pid).or_default();
                // What is not found again is not forgotten: another time the same may be true again.
                if places[0] != place::NOWHERE || known.places == [place::SOUGHT; 2] {
                    known.places = places;
                }
                known.learned_ns = self.now_ns;
                self.units.learned.push((pid, [known.places[0], known.places[1], 0]));
                // Its stacks so far found no room; those to come will.
                if let Some(next) = self.units.refused.pop_front() {
                    self.units.learned.push((next, [place::SOUGHT, 0, AGAIN]));
                }
            }
        }
    }
}
