//! How far a loop's turn can be believed.
//!
//! "The invocation of the connection that this thread read last" is right as long as what a function does next follows
//! at once from what it read: not where a timer fires in between, or a scheduler puts things off. Whether it is so in a
//! sandbox shows with every answer that leaves: whose it is, is known, and what the rule would have said can be held
//! against it.

use tracer_ebpf::record::START_WEAK;

use super::{
    Parent, Sandbox,
    live::sandbox,
    thread::{how, thread},
};
use crate::{atomic::Atomic, kernel::Task, pointer::Value};

/// So many answers at least.
const HITS_MIN: u64 = 16;
/// At most one in so many may have been told wrongly.
const HITS_PER_MISS: u64 = 200;
/// What is older counts half.
const MEMORY: u64 = 512;
/// As likely right as wrong, of 255.
pub const EVEN: u8 = 127;
/// Three times in five, of 255.
pub const RATHER: u8 = 153;
/// Nine times in ten, of 255.
pub const LIKELY: u8 = 230;

/// An answer of the invocation `span` leaves `task`: had it been a call, whose would it have been?
#[inline(always)]
pub fn answers(task: Task, span: u64, sandbox_id: u64) {
    let Some(mut known) = thread(task.tid) else { return };
    if known.how != how::TURN {
        return;
    }
    known.unused = 0;
    if known.doubtful == 1 {
        return;
    }
    let Some(sandbox) = sandbox(sandbox_id) else { return };
    // With one it is no question.
    if sandbox.live.load() < 2 {
        return;
    }
    if known.context.span_id == span {
        sandbox.hits.add(1);
    } else {
        sandbox.misses.add(1);
    }
    forget_old(&sandbox.hits, &sandbox.misses);
}

/// A call goes out and nothing tells whose it is, though several are live: work goes on here that no read announces.
#[inline(always)]
pub fn misses(sandbox_id: u64) {
    if let Some(sandbox) = sandbox(sandbox_id) {
        sandbox.misses.add(1);
        forget_old(&sandbox.hits, &sandbox.misses);
    }
}

/// A thread that was given work wakes one that waits for an answer of its own: was it that one's work?
#[inline(always)]
pub fn hands_back(sandbox_id: u64, same: bool) {
    if let Some(sandbox) = sandbox(sandbox_id) {
        let counter = if same { &sandbox.handed_hits } else { &sandbox.handed_misses };
        counter.add(1);
        forget_old(&sandbox.handed_hits, &sandbox.handed_misses);
    }
}

/// Two CPUs may do so at once; then it counts a quarter.
#[inline(always)]
fn forget_old(hits: &Atomic, misses: &Atomic) {
    let (right, wrong) = (hits.load(), misses.load());
    if right + wrong >= MEMORY {
        hits.store(right / 2);
        misses.store(wrong / 2);
    }
}

/// Says of what the turn told how far it can be believed in this sandbox.
#[inline(always)]
pub fn judge(parent: &mut Parent, sandbox: &Value<Sandbox>, doubtful: bool) {
    // Loops that work on what they read at once are the common ones: without any evidence, four in five.
    weigh(parent, sandbox.hits.load(), sandbox.misses.load(), 4, 1);
    doubt(parent, doubtful);
}

/// The same of what a waking told. It is never certain: a thread that is about to wait may take other work without being
/// woken for it, and of work that nobody waits for it does not show whose it was.
#[inline(always)]
pub fn judge_handed(parent: &mut Parent, sandbox: &Value<Sandbox>, doubtful: bool) {
    // Who wakes is often not who has work to give (a lock is let go of): without any evidence, one in four.
    weigh(parent, sandbox.handed_hits.load(), sandbox.handed_misses.load(), 1, 3);
    parent.flags |= START_WEAK;
    doubt(parent, doubtful);
}

/// A thread that a loop made may be one of a pool that outlives the turn (Java's, on the carriers of virtual threads).
#[inline(always)]
pub fn at_most_likely(parent: &mut Parent) {
    parent.flags |= START_WEAK;
    if parent.trust > LIKELY {
        parent.trust = LIKELY;
    }
}

#[inline(always)]
fn doubt(parent: &mut Parent, doubtful: bool) {
    if doubtful {
        parent.flags |= START_WEAK;
        parent.trust = EVEN;
    }
}

#[inline(always)]
fn weigh(parent: &mut Parent, hits: u64, misses: u64, prior_hits: u64, prior_misses: u64) {
    if hits < HITS_MIN || misses * HITS_PER_MISS > hits {
        parent.flags |= START_WEAK;
    }
    let (hits, misses) = (hits + prior_hits, misses + prior_misses);
    parent.trust = (hits * 255).checked_div(hits + misses).unwrap_or(0) as u8;
}
