//! Calls of threads that work for others: whom a thread wakes when the answer is in, it has worked for.
//!
//! A pool's worker takes whatever comes next, and who was woken for a piece of work is often not who does it. But whoever
//! waits for the result is woken when it is there, by the thread that has read the answer, or by one that this thread has
//! woken for it. The kernel half tells of it where the one that is woken serves an invocation, and the futex that it waited
//! for is none that threads wait for in the midst of their work.
//!
//! Not told: calls that nobody waits for, calls whose answer was there before anybody waited, and of several calls that are
//! waited for together, or that one piece of work makes one after the other, all but the last.

use tracer_ebpf::record::{HandBack, Header};

use super::{Held, KNOWN};
use crate::assemble::{Assembler, guess::Place};

/// What a process gains by a call that is handed back (one that waits in vain costs 1), from what on its calls are held for
/// that, and what it can have at most: four have to come, and then one in nine or so. Who waits for several calls together is
/// woken by the last of them only.
const CREDIT: u32 = 8;
const CREDIT_MIN: u32 = 4 * CREDIT;
const CREDIT_MAX: u32 = 16 * CREDIT;

/// How far the threads of a process that work for others can be believed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Handing {
    pub credit: u32,
    /// Calls handed back to an invocation that had begun before them, and others.
    pub right: u32,
    pub wrong: u32,
}

impl Handing {
    /// Whether it is worth waiting for what a call's thread does next.
    pub fn is_worth_it(self) -> bool {
        self.credit >= CREDIT_MIN
    }

    fn note(&mut self, fits: bool) {
        if fits {
            self.credit = (self.credit + CREDIT).min(CREDIT_MAX);
            self.right += 1;
        } else {
            self.wrong += 1;
        }
        if self.right + self.wrong > 4096 {
            (self.right, self.wrong) = (self.right / 2, self.wrong / 2);
        }
    }

    pub fn waited_in_vain(&mut self) {
        self.credit = self.credit.saturating_sub(1);
    }

    /// How probably a call is that invocation's. Of those that are woken for another reason, most will have begun before the
    /// call, too: one that has not is taken to stand for five (assumed; what is stated is held against the truth by the edges).
    fn p(self) -> f64 {
        let (right, wrong) = (f64::from(self.right), f64::from(self.wrong));
        (right + 19.0) / (right + 5.0 * wrong + 20.0)
    }
}

impl Assembler {
    /// A thread has read the answer to a call, and wakes one that serves an invocation.
    pub(in crate::assemble) fn hands_back(&mut self, header: &Header, back: &HandBack) {
        let Some(call) = self.calls.get(back.call, &self.spans) else { return };
        let Some(maker) = self.invocations.get(back.span, &self.spans) else { return };
        let (made, span) = (&self.spans[call as usize], &self.spans[maker as usize]);
        if [made.sandbox, span.sandbox] != [header.sandbox; 2] {
            return;
        }
        if std::mem::replace(&mut self.spans[call as usize].handed_back, true) {
            return;
        }
        let (made, span) = (&self.spans[call as usize], &self.spans[maker as usize]);
        let fits = span.at_ns < made.at_ns;
        if self.units.handing.len() >= KNOWN {
            self.units.handing.clear();
        }
        let handing = self.units.handing.entry((header.sandbox, header.pid)).or_default();
        handing.note(fits);
        let p = handing.p();
        if !fits || span.given_out() {
            return;
        }
        let Some(watch) = self.units.sandboxes.get_mut(&span.sandbox) else { return };
        let maker = Place::of(maker, span);
        let found: Vec<Held> = watch.held.extract_if(.., |held| held.place.id == back.call).collect();
        for held in found {
            self.unit_decided(&held, Some((maker, p)));
        }
    }
}
