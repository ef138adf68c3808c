//! Which invocation a call belongs to (DESIGN.md, section 5), and the bookkeeping that it takes.
//!
//! [`live`] knows which invocations are live, [`thread`] what each thread works for, [`lineage`] what each goroutine does
//! if probes tell it, and [`trust`] how far a thread can be believed that serves many connections by turns. What has answered is no longer in `INVOCATIONS`: a thread
//! that remembers it remembers a key that is found no more, and can only say "after the response".

mod lineage;
mod live;
mod thread;
mod trust;

use core::ptr::{self, read_volatile};
use tracer_ebpf::{
    record::{Rule, START_AFTER_RESPONSE, START_WEAK},
    traceparent::Context,
};

pub use self::{
    lineage::{Persistent, Work, calls, meets, serves, started, starts, writes},
    live::{
        ContextKey, Holders, Invocation, Sandbox, begin, begin_unknown, end, end_unknown, invocation, only, sandbox,
    },
    thread::{
        Futex, Goroutine, Thread, asks, executes, exits, forks, gives_up, goroutine, reads_asked, reads_request,
        reads_response, thread, wakes,
    },
    trust::{answers, misses},
};
use self::{
    lineage::{by_lineage, work},
    live::forwarded,
    thread::{entry, how},
};
use crate::{
    kernel::{self, Task},
    maps::GO_PROBES,
    pointer::Value,
    process,
};

/// The answer to "whose call is this?".
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parent {
    /// Its span id and the context for what it calls; all 0 with [`Rule::None`].
    pub context: Context,
    /// A [`Rule`].
    pub rule: u8,
    /// Aligns the next two, which the compiler writes as one: "misaligned stack access".
    pub pad: u8,
    /// [`START_AFTER_RESPONSE`] and [`START_WEAK`].
    pub flags: u8,
    /// With [`START_WEAK`]: how likely it is right, of 255.
    pub trust: u8,
    /// How many invocations were live.
    pub live: u32,
}

impl Parent {
    pub const NOBODY: Self = Self {
        context: Context { trace_id: [0; 2], span_id: 0, flags: 0, pad: [0; 7] },
        rule: 0,
        pad: 0,
        flags: 0,
        trust: 0,
        live: 0,
    };

    /// Takes the invocation that was found under `span`. `false` if it has ended meanwhile: its memory may be another's
    /// by now, of another sandbox even (kernel/bpf/hashtab.c, free_htab_elem: whoever comes next may have it), so what it
    /// says of itself is compared after it was copied.
    #[inline(always)]
    pub fn is(&mut self, rule: Rule, found: &Value<Invocation>, span: u64, sandbox: u64) -> bool {
        copy(&mut self.context, &found.context);
        // SAFETY: fields of a map value.
        let (own, of) =
            unsafe { (read_volatile(&raw const found.context.span_id), read_volatile(&raw const found.sandbox)) };
        if own != span || self.context.span_id != span || of != sandbox {
            copy(&mut self.context, &Self::NOBODY.context);
            return false;
        }
        self.rule = rule as u8;
        true
    }
}

/// Copies a context word by word. An assignment becomes a call of memmove, whose frame is one too many below [`decide`]:
/// up to 6.7 the kernel rounds each up to 32 bytes ("combined stack size of 4 calls is 544. Too large").
#[inline(always)]
fn copy(to: &mut Context, from: &Context) {
    const WORDS: usize = size_of::<Context>() / size_of::<u64>();
    let (to, from) = (ptr::from_mut(to).cast::<u64>(), ptr::from_ref(from).cast::<u64>());
    let mut i = 0;
    while i < WORDS {
        // SAFETY: within both, which are as aligned as their words and have no padding that is not a field.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        i += 1;
    }
}

/// So long after an invocation has answered, what it left running may still call: how long a function in wide use keeps
/// a timer or a retry.
const LEFTOVER_NS: u64 = 1_000_000_000;

/// Decides whose call it is that `task` makes now in `sandbox_id`. `carried` is the context that the call brings along.
///
/// `task` is the one that runs, or unknown where the hook cannot be sure who sends. The answer goes to memory that the
/// caller has, for the stack's sake.
#[inline(always)]
pub fn attribute(parent: &mut Parent, sandbox_id: u64, task: Task, carried: Option<&Context>) {
    let carried = carried.map_or(ptr::null(), ptr::from_ref);
    *parent = Parent::NOBODY;
    parent.live = decide(parent, sandbox_id, task.tid, task.pid, carried);
}

/// Overwrites [`Parent::NOBODY`], and says how many invocations are live: where nobody uses what a function returns, the
/// compiler leaves anything in its register, and the verifier lets no pointer to the stack out. A function of its own,
/// for the verifier: what follows a call is then looked at once, and not once for each rule.
#[inline(never)]
extern "C" fn decide(parent: *mut Parent, sandbox_id: u64, tid: u32, pid: u32, carried: *const Context) -> u32 {
    let task = Task { tid, pid };
    // SAFETY: the caller's pointers to map values or to its stack.
    let (parent, carried) = unsafe { (parent.as_mut(), carried.as_ref()) };
    let Some(parent) = parent else { return 0 };
    decide_for(parent, sandbox_id, task, carried);
    parent.live
}

#[inline(always)]
fn decide_for(parent: &mut Parent, sandbox_id: u64, task: Task, carried: Option<&Context>) {
    let Some(sandbox) = sandbox(sandbox_id) else { return };
    let live = sandbox.live.load() as u32;
    parent.live = live;
    if let Some(context) = carried
        && let Some(own) = forwarded(sandbox_id, context)
        && let Some(found) = invocation(own)
        && found.context.trace_id[0] == context.trace_id[0]
        && found.context.trace_id[1] == context.trace_id[1]
        && parent.is(Rule::Header, &found, own, sandbox_id)
    {
        return;
    }
    if GO_PROBES.load() != 0 && task.is_known() && by_lineage(parent, &sandbox, sandbox_id, task) {
        return;
    }
    let known = if task.is_known() { thread(task.tid) } else { None };
    let alone = if live == 1 { sandbox.spans.load() } else { 0 };
    if let Some(only) = invocation(alone)
        // Since it began: what another left running may still call.
        && only.start_ns > sandbox.overlap_ns.load()
        && !known.as_ref().is_some_and(|known| is_elsewhere(known, &only, alone))
        && parent.is(Rule::Exclusive, &only, alone, sandbox_id)
    {
        doubt_alone(parent, &known, &only, sandbox.leftover.load() != 0, sandbox.ended_ns.load());
        return;
    }
    if !task.is_known() {
        return;
    }
    if sandbox.unknown.load() == 0
        && let Some(process) = process::process(task.pid)
        && let Some(only) = invocation(process.works_for())
        && only.start_ns > process.overlap_ns.load()
        && !known.as_ref().is_some_and(|known| is_elsewhere(known, &only, process.works_for()))
        && parent.is(Rule::Process, &only, process.works_for(), sandbox_id)
    {
        doubt_alone(parent, &known, &only, sandbox.leftover.load() != 0, process.ended_ns.load());
        return;
    }
    // Before its first invocation a sandbox sets itself up; a thread that calls then need not have work of its own.
    let is_background = live == 0 && sandbox.seen.load() != 0;
    let Some(mut known) = known else {
        if is_background && let Some(mut new) = entry(task) {
            new.sandbox = sandbox_id;
            new.background = 1;
            sandbox.leftover.store(1);
        }
        return;
    };
    if by_thread(parent, &mut known, &sandbox, sandbox_id, task) {
        return;
    }
    if is_background {
        known.background = 1;
        sandbox.leftover.store(1);
    }
}

/// `parent` is the one invocation that a sandbox, or a process, has worked for since it began. Where the one before it has
/// `ended` only shortly before (ns, 0 for never), or something was left running already, what that one has left may have
/// called. Nothing says so, but nothing says otherwise.
#[inline(always)]
fn doubt_alone(parent: &mut Parent, known: &Option<Value<Thread>>, only: &Invocation, left: bool, ended: u64) {
    let alone = parent.context.span_id;
    // A loop's thread does whatever there is to do, also what was left; and one that was woken may have been so for
    // something else.
    let works_for_it = known.as_ref().is_some_and(|known| {
        known.context.span_id == alone && known.how != how::WOKEN && !(left && known.how == how::TURN)
    });
    let has_own_work = known.as_ref().is_some_and(|known| known.background == 1);
    let quiet = !has_own_work && !left && (ended == 0 || only.start_ns.wrapping_sub(ended) > LEFTOVER_NS);
    if !works_for_it && !quiet {
        parent.flags = START_WEAK;
        parent.trust = if has_own_work { trust::RATHER } else { trust::LIKELY };
    }
}

/// Whether a thread may be at work for something other than the one live invocation of its sandbox.
#[inline(always)]
fn is_elsewhere(known: &Thread, only: &Invocation, alone: u64) -> bool {
    if known.how != how::NOTHING && known.context.span_id == alone {
        return false;
    }
    // It is still at what it did before, be it that this is all it does, or that nobody has read the new request yet.
    match known.how {
        how::NOTHING => false,
        how::DEDICATED | how::MADE => true,
        _ => only.read == 0,
    }
}

/// What the sending thread works for. `false` if it is not known.
#[inline(always)]
fn by_thread(
    parent: &mut Parent,
    known: &mut Value<Thread>,
    sandbox: &Value<Sandbox>,
    sandbox_id: u64,
    task: Task,
) -> bool {
    let current = kernel::current_task();
    let g = match kernel::registers(current) {
        // Only where a thread goes from one invocation to the other can it run goroutines.
        Some(registers) if known.how == how::TURN || known.how == how::NOTHING => goroutine(current, registers),
        _ => 0,
    };
    if g != 0
        && let span = work(task.pid, g).span
        && let Some(own) = invocation(span)
        && parent.is(Rule::Coroutine, &own, span, sandbox_id)
    {
        return true;
    }
    if known.how == how::NOTHING || known.sandbox != sandbox_id {
        return false;
    }
    let span = known.context.span_id;
    let rule = match known.how {
        how::DEDICATED => Rule::Thread,
        how::TURN if g != 0 => Rule::Coroutine,
        how::TURN => Rule::Loop,
        _ => Rule::Lineage,
    };
    if let Some(own) = invocation(span) {
        if !parent.is(rule, &own, span, sandbox_id) {
            return false;
        }
        match known.how {
            how::TURN if g == 0 || g != known.goroutine => {
                trust::judge(parent, sandbox, known.doubtful == 1);
                known.unused = 0;
            }
            how::WOKEN => trust::judge_handed(parent, sandbox, known.doubtful == 1),
            how::MADE if known.made_by == how::TURN => {
                trust::judge(parent, sandbox, known.doubtful == 1);
                if task.tid != task.pid {
                    trust::at_most_likely(parent);
                }
            }
            how::MADE if known.made_by == how::WOKEN => trust::judge_handed(parent, sandbox, known.doubtful == 1),
            _ => {}
        }
        return true;
    }
    // Go's threads go on with whatever is to be done.
    if g != 0 || !known.after_response() {
        return false;
    }
    copy(&mut parent.context, &known.context);
    parent.rule = if rule as u8 == Rule::Thread as u8 { Rule::Lineage as u8 } else { rule as u8 };
    parent.flags = START_AFTER_RESPONSE;
    sandbox.leftover.store(1);
    judge_after(parent, known, sandbox, task);
    true
}

/// How certain it is that a thread still works for an invocation that has answered.
#[inline(always)]
fn judge_after(parent: &mut Parent, known: &Thread, sandbox: &Value<Sandbox>, task: Task) {
    let is_process = task.tid == task.pid;
    match (known.how, known.made_by) {
        (how::TURN, _) | (how::MADE, how::TURN) => trust::judge(parent, sandbox, known.doubtful == 1),
        (how::WOKEN, _) | (how::MADE, how::WOKEN) => trust::judge_handed(parent, sandbox, known.doubtful == 1),
        // A process that was made for it goes with it.
        (how::MADE, _) if is_process => return,
        _ => {}
    }
    // It may as well have turned to one of those that are live: one of a pool takes the next piece of work without waiting
    // in between.
    if parent.live > 0 || (known.how == how::MADE && known.made_by == how::TURN && !is_process) {
        let before = if parent.flags & START_WEAK == 0 { u8::MAX } else { parent.trust };
        parent.flags |= START_WEAK;
        parent.trust = if before < trust::LIKELY { before } else { trust::LIKELY };
    }
}

/// Who was at work when the socket connected explains the first request on it, if the sending thread tells nothing
/// better. It is as certain as that was; and if several are live by now, no more than a loop's turn is here, for a pool may
/// give the connection to whoever waits longest.
#[inline(always)]
pub fn by_connect(parent: &mut Parent, sandbox_id: u64, span: u64, flags: u8, trust: u8) {
    let is_open = parent.rule == Rule::None as u8 || parent.rule == Rule::Loop as u8;
    if is_open
        && let Some(own) = invocation(span)
        && parent.is(Rule::Loop, &own, span, sandbox_id)
    {
        parent.flags = flags;
        parent.trust = trust;
        if flags & START_WEAK == 0
            && parent.live > 1
            && let Some(sandbox) = sandbox(sandbox_id)
        {
            trust::judge(parent, &sandbox, false);
        }
    }
}
