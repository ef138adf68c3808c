//! What each thread works for, as far as the kernel sees it: by what it reads, by who made it, and by who woke it.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_probe_read_user};
use tracer_ebpf::{counter::Counter, traceparent::Context};

use super::{
    copy,
    lineage::{self, Work, by},
    live, trust,
};
use crate::{
    atomic::Atomic,
    facts,
    kernel::{self, Registers, Task, Typed},
    maps::{COROUTINES, LOCKS, THREAD_FILTER, THREAD_FILTER_SIZE, THREADS, count},
    pointer::Value,
    process::process,
};

/// How a thread came by what it works for.
pub mod how {
    /// It works for nobody that is known.
    pub const NOTHING: u8 = 0;
    /// It read the request in a call that would have blocked: it does nothing else until it has answered.
    pub const DEDICATED: u8 = 1;
    /// It serves several connections, and the one that it read last was this invocation's: a loop's turn.
    pub const TURN: u8 = 2;
    /// A thread at work for it made this one.
    pub const MADE: u8 = 3;
    /// A thread at work for it woke this one out of its wait for work.
    pub const WOKEN: u8 = 4;
}

/// How many calls and hand-overs may follow from an invocation that has answered, along each chain of threads. Without
/// an end, two threads that wake each other would carry it on for ever.
pub const AFTER_MAX: u8 = 16;

/// What a thread works for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    /// The invocation: its trace, span and flags. Kept beyond its end, for what is called after the response.
    pub context: Context,
    pub sandbox: u64,
    /// The goroutine that read last; 0 in all but Go.
    pub goroutine: u64,
    /// Where its stack ended when it first waited for many things at once; 0 if it has not: see [`crate::facts`].
    pub wait_sp: u64,
    /// The unit of work of the loop that woke it last out of a wait for work; 0 if none did.
    pub unit: [u64; 2],
    /// The call of which it is not certain who made it, and whose whole answer this thread has read; 0 if there is none, or
    /// if it has woken one since that may have waited for it.
    pub owes: u64,
    /// See [`how`].
    pub how: u8,
    /// 1 once it has called while nothing was live: it has work of its own.
    pub background: u8,
    /// Calls and hand-overs since the response: see [`AFTER_MAX`].
    pub after: u8,
    /// 1 as long as nothing has come of what it read last; and 1 if it then read another's: it reads several in a row and
    /// gets to work on them later, in an order that the kernel does not see. Or it was woken for one while at work for another.
    pub unused: u8,
    pub doubtful: u8,
    /// How the thread that made this one came by what it worked for: see [`how`].
    pub made_by: u8,
    /// 1 while it waits for the answer to a call of which it is not certain for whom it was.
    pub asks: u8,
    /// 1 if it has read the answer to the last such call itself.
    pub reads_own: u8,
}

impl Thread {
    const IDLE: Self = Self {
        context: Context { trace_id: [0; 2], span_id: 0, flags: 0, pad: [0; 7] },
        sandbox: 0,
        goroutine: 0,
        wait_sp: 0,
        unit: [0; 2],
        owes: 0,
        how: how::NOTHING,
        background: 0,
        after: 0,
        unused: 0,
        doubtful: 0,
        made_by: how::NOTHING,
        asks: 0,
        reads_own: 0,
    };

    #[inline(always)]
    fn is_live(&self) -> bool {
        self.how != how::NOTHING && live::invocation(self.context.span_id).is_some()
    }

    #[inline(always)]
    fn forget(&mut self) {
        self.how = how::NOTHING;
        self.context.span_id = 0;
    }

    /// Notes one more thing that comes after the response; `false` if it is one too many.
    #[inline(always)]
    pub fn after_response(&mut self) -> bool {
        if self.after >= AFTER_MAX {
            self.forget();
            return false;
        }
        self.after += 1;
        true
    }
}

/// A goroutine: the process, and the address of its `runtime.g`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Goroutine {
    pub pid: u64,
    pub g: u64,
}

/// A futex: the process, and its address.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Futex {
    pub pid: u64,
    pub address: u64,
}

#[inline(always)]
fn filter(tid: u32) -> Option<Value<Atomic>> {
    let slot = THREAD_FILTER.get_ptr_mut(tid & (THREAD_FILTER_SIZE as u32 - 1))?;
    // SAFETY: an element of an array, aligned to 8.
    unsafe { Value::new(slot.cast()) }
}

#[inline(always)]
pub fn thread(tid: u32) -> Option<Value<Thread>> {
    if filter(tid)?.load() == 0 {
        return None;
    }
    // SAFETY: a map look-up.
    unsafe { Value::new(THREADS.get_ptr_mut(tid)?) }
}

/// The entry of a thread, made if there is none.
#[inline(always)]
pub fn entry(task: Task) -> Option<Value<Thread>> {
    if let Some(known) = thread(task.tid) {
        return Some(known);
    }
    // Not of this run's making: what is copied into the map lies in read-only memory, not on the stack.
    static IDLE: Thread = Thread::IDLE;
    // Counted first: whoever finds it in the map is to find it here.
    let filter = filter(task.tid)?;
    filter.add(1);
    if THREADS.insert(task.tid, &IDLE, u64::from(BPF_NOEXIST)).is_err() {
        filter.add(u64::MAX);
    }
    let made = thread(task.tid);
    if made.is_none() {
        count(Counter::ThreadsFull);
    }
    made
}

/// The goroutine that `task` runs; 0 if it runs none. Go keeps it in R14 and in the last word of the thread's own memory
/// (Go's ABIInternal for amd64; runtime/tls_arm64.s and asm_amd64.s): only there are both the same.
#[inline(always)]
pub fn goroutine(task: Typed, registers: Registers) -> u64 {
    let candidate = registers.r14();
    let base = kernel::thread_pointer(task);
    if candidate == 0 || base == 0 || candidate & 7 != 0 {
        return 0;
    }
    let mut word = 0u64;
    // SAFETY: a word on the stack; the helper checks the source.
    let failed = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, (base as usize).wrapping_sub(8) as *const _) };
    if failed == 0 && word == candidate { candidate } else { 0 }
}

/// Notes that `task` read bytes of the request of `span`. `dedicated`: in a call that would have blocked.
#[inline(always)]
pub fn reads_request(task: Task, g: u64, span: u64, sandbox: u64, dedicated: bool) {
    count(Counter::Reads);
    let Some(mut invocation) = live::invocation(span) else { return };
    if invocation.sandbox != sandbox {
        return;
    }
    invocation.read = 1;
    let Some(mut known) = entry(task) else { return };
    // It had read another's, and that is not answered: whatever the call that it reads with, it serves several.
    let several = known.how == how::DEDICATED && known.context.span_id != span && known.is_live();
    works(&mut known, &invocation.context, sandbox, g, if dedicated && !several { how::DEDICATED } else { how::TURN });
    // A loop's thread does whatever there is to do: that it was something of its own once tells nothing of the next.
    known.background = 0;
    if g != 0 {
        let key = Goroutine { pid: u64::from(task.pid), g };
        let _ = COROUTINES.insert(key, Work { span, by: by::READING }, 0);
    }
}

/// Notes that `task` read of the response to a call that `parent` made (0: nobody knows who).
#[inline(always)]
pub fn reads_response(task: Task, parent: u64, sandbox: u64) {
    let Some(mut known) = entry(task) else { return };
    if known.how != how::NOTHING && known.context.span_id == parent {
        return;
    }
    if known.how == how::DEDICATED && known.is_live() {
        return;
    }
    match live::invocation(parent) {
        Some(invocation) if invocation.sandbox == sandbox => {
            // Go's responses are read by one goroutine and used by another.
            works(&mut known, &invocation.context, sandbox, 0, how::TURN);
        }
        _ => known.forget(),
    }
}

/// Notes that `task` makes a call of which it is not certain for whom.
#[inline(always)]
pub fn asks(task: Task) {
    if let Some(mut known) = entry(task) {
        // One that has not may be at something else by now.
        known.asks = known.reads_own;
        known.owes = 0;
    }
}

/// Notes that `task` has read the whole answer to such a call, which the thread `asker` made.
#[inline(always)]
pub fn reads_asked(task: Task, call: u64, asker: u32) {
    let is_own = asker == task.tid;
    if !is_own && let Some(mut known) = thread(asker) {
        (known.asks, known.reads_own) = (0, 0);
    }
    if let Some(mut known) = entry(task) {
        if is_own {
            (known.asks, known.reads_own) = (0, 1);
        }
        known.owes = call;
    }
}

#[inline(always)]
fn works(known: &mut Thread, context: &Context, sandbox: u64, goroutine: u64, by: u8) {
    let other = known.how == how::TURN && known.context.span_id != context.span_id;
    known.doubtful = (other && known.unused == 1 && known.is_live()) as u8;
    known.unused = 1;
    copy(&mut known.context, context);
    known.sandbox = sandbox;
    known.goroutine = goroutine;
    known.how = by;
    known.after = 0;
}

/// Gives `to` what `from` works for.
#[inline(always)]
fn hand(from: &mut Thread, to: &mut Thread, by: u8) {
    if !from.is_live() && !from.after_response() {
        return;
    }
    let after = from.after;
    works(to, &from.context, from.sandbox, 0, by);
    to.after = after;
}

/// Notes that `child` was made by `parent`, the task that runs.
#[inline(always)]
pub fn forks(parent: Typed, child: Task) {
    let by = Task::of(parent);
    let known = thread(by.tid);
    if known.is_none() && process(by.pid).is_none() {
        return;
    }
    let g = kernel::registers(parent).map_or(0, |registers| goroutine(parent, registers));
    if g != 0 {
        // Go's threads work for whoever comes along. A process is made by a goroutine, whichever thread that runs on.
        if by.pid != child.pid
            && let Some(invocation) = live::invocation(lineage::work(by.pid, g).span)
            && let Some(mut made) = entry(child)
        {
            works(&mut made, &invocation.context, invocation.sandbox, 0, how::MADE);
        }
        return;
    }
    let Some(mut known) = known else { return };
    if known.how == how::NOTHING && known.owes == 0 {
        return;
    }
    let Some(mut made) = entry(child) else { return };
    if by.pid == child.pid {
        made.owes = known.owes;
    }
    if known.how == how::NOTHING {
        return;
    }
    hand(&mut known, &mut made, how::MADE);
    // What it was made for is no more certain than what its maker worked for.
    made.made_by = if known.how == how::MADE { known.made_by } else { known.how };
    made.doubtful = known.doubtful;
}

/// Notes that `task` runs another program from here on. Whom it works for is not changed by that; its stack is.
#[inline(always)]
pub fn executes(task: Task) {
    if let Some(mut known) = thread(task.tid) {
        known.wait_sp = 0;
        known.unit = [0; 2];
        facts::forget(task.pid);
    }
}

#[inline(always)]
pub fn exits(task: Task) {
    let Some(filter) = filter(task.tid) else { return };
    if filter.load() != 0 && THREADS.remove(task.tid).is_ok() {
        filter.add(u64::MAX);
    }
}

/// Notes that `wakee` is woken. `waker` is the task that runs: the one that wakes it, or one that was interrupted.
///
/// Two things can be learnt. Was it waiting for work, and did another thread of its process wake it from within a system
/// call made for that? Then it works for the same as that thread from now on. Did it wait for anything else that a loop
/// waits for? Then whatever it does next has nothing to do with what it did before.
#[inline(always)]
pub fn wakes(waker: Typed, wakee: Typed) {
    let (by, woken) = (Task::of(waker), Task::of(wakee));
    let known = thread(woken.tid);
    let giver = if by.pid == woken.pid && by.tid != woken.tid { thread(by.tid) } else { None };
    if known.is_none() && giver.is_none() {
        return;
    }
    let Some(waits) = kernel::registers(wakee) else { return };
    let waits_for = waits.waits_for();
    let mut known = known;
    if let Some(known) = &mut known
        && waits_for == kernel::Waits::Loop
        && known.wait_sp == 0
    {
        known.wait_sp = waits.sp();
    }
    if waits_for == kernel::Waits::Other {
        return;
    }
    if let Some(giver) = &giver
        && giver.wait_sp != 0
        && waits.waits_for_good()
        && facts::has_units(by.pid)
        && !facts::is_shared(woken, waits.first())
        && let Some(mut taker) = entry(woken)
        && taker.wait_sp == 0
    {
        facts::hands_unit(by, giver, woken, &mut taker.unit);
    }
    let mut giver = giver;
    if let Some(giver) = &mut giver
        && (giver.asks == 1 || giver.owes != 0)
        && waits_for == kernel::Waits::Futex
        && kernel::registers(waker).is_some_and(Registers::may_wake)
    {
        let serves = known.as_ref().is_some_and(|known| known.how == how::DEDICATED && known.is_live());
        if giver.asks == 1 {
            // It has no result yet that anybody could wait for.
            if serves {
                note_lock(woken, waits);
            }
        } else if may_be_result(woken, waits) {
            if serves {
                if let Some(known) = &known {
                    facts::hands_back(known.sandbox, known.context.span_id, giver.owes, by);
                }
                giver.owes = 0;
            } else if let Some(mut next) = entry(woken) {
                // Whoever deals with the answer may be another.
                next.owes = giver.owes;
            }
        }
    }
    if let Some(mut giver) = giver
        && giver.how != how::NOTHING
        && kernel::registers(waker).is_some_and(Registers::may_wake)
    {
        if let Some(mut known) = entry(woken) {
            handed(&mut giver, &mut known, woken, waits, waits_for);
        }
        return;
    }
    if let Some(mut known) = known {
        waited(&mut known, woken, waits, waits_for);
    }
}

/// What a futex gains that shows itself to be a lock, from what on it is taken for one, and what it can have at most. It
/// loses 1 whenever a thread is woken from it that may have waited for a result: a thread of Java waits for everything at
/// one and the same futex.
const LOCK_SHOWN: u64 = 4;
const LOCK_CERTAIN: u64 = 16;
const LOCK_MOST: u64 = 64;

#[inline(always)]
fn lock(task: Task, registers: Registers) -> Option<Value<u64>> {
    let key = Futex { pid: u64::from(task.pid), address: registers.first() };
    // SAFETY: a map look-up.
    unsafe { Value::new(LOCKS.get_ptr_mut(key)?) }
}

#[inline(always)]
fn is_lock(task: Task, registers: Registers) -> bool {
    lock(task, registers).is_some_and(|seen| *seen >= LOCK_CERTAIN)
}

/// Notes that threads which had work of their own waited for this futex: it guards something, and no work comes by it.
/// (Python's interpreter lock, above all, which every thread waits for in the middle of what it does.)
#[inline(always)]
fn note_lock(task: Task, registers: Registers) {
    if let Some(mut seen) = lock(task, registers) {
        *seen = (*seen + LOCK_SHOWN).min(LOCK_MOST);
        return;
    }
    let key = Futex { pid: u64::from(task.pid), address: registers.first() };
    let _ = LOCKS.insert(key, LOCK_SHOWN, 0);
}

/// Whether a thread that is woken from this futex may have waited for a result.
#[inline(always)]
fn may_be_result(task: Task, registers: Registers) -> bool {
    let Some(mut seen) = lock(task, registers) else { return true };
    let is_lock = *seen >= LOCK_CERTAIN;
    if *seen > 0 {
        *seen -= 1;
    }
    !is_lock
}

/// `known` was woken by `giver`, which works for somebody, out of a wait that may be one for work.
#[inline(always)]
fn handed(giver: &mut Thread, known: &mut Thread, woken: Task, waits: Registers, waits_for: kernel::Waits) {
    let same = known.context.span_id == giver.context.span_id;
    if known.how == how::DEDICATED && known.is_live() {
        if giver.how == how::WOKEN && !is_lock(woken, waits) {
            trust::hands_back(giver.sandbox, same);
        }
        if same && giver.how == how::WOKEN {
            // What it was given to do is done.
            giver.forget();
        } else if !same && giver.how == how::DEDICATED && waits_for == kernel::Waits::Futex {
            // What a thread was given by a waking may be another's work: that it wakes somebody else shows no lock.
            note_lock(woken, waits);
        }
        return;
    }
    if waits_for == kernel::Waits::Futex && is_lock(woken, waits) {
        return;
    }
    if known.how == how::MADE && same {
        return;
    }
    // A loop that wakes another one, or is woken: whoever runs there next runs by turns.
    let by = if giver.how == how::TURN || waits_for == kernel::Waits::Loop { how::TURN } else { how::WOKEN };
    // What it was at before is not over, as far as anybody can tell: it may as well go on with that.
    let torn = !same && (known.how == how::MADE || known.how == how::WOKEN) && known.is_live();
    hand(giver, known, by);
    known.doubtful = torn as u8;
}

/// `known` was woken by nobody who works for anybody.
#[inline(always)]
fn waited(known: &mut Thread, woken: Task, waits: Registers, waits_for: kernel::Waits) {
    let keeps = match known.how {
        how::NOTHING => return,
        how::DEDICATED => known.is_live(),
        how::MADE => waits_for == kernel::Waits::Loop || is_lock(woken, waits),
        _ => waits_for == kernel::Waits::Futex && is_lock(woken, waits),
    };
    if !keeps {
        known.forget();
    }
}
