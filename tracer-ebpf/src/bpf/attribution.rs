//! Which invocation a call belongs to (DESIGN.md, section 5), and the bookkeeping that it takes.
//!
//! Only live invocations are candidates: what has answered is no longer in `INVOCATIONS`, and a thread that still
//! remembers it remembers a key that is found no more.

use aya_ebpf::bindings::BPF_NOEXIST;
use core::ptr::{self, read_volatile};
use tracer_ebpf::{counter::Counter, record::Rule, traceparent::Context};

use crate::{
    atomic::Atomic,
    kernel::Task,
    maps::{CONTEXTS, INVOCATIONS, SANDBOXES, THREADS, count},
    pointer::Value,
    process,
};

/// What is known of a sandbox.
#[repr(C)]
pub struct Sandbox {
    /// How many invocations are live.
    pub live: Atomic,
    /// Set by the first invocation.
    pub seen: Atomic,
    /// All their span ids, XORed: with one live it is that one's. Both are changed without a lock, so what comes out is
    /// believed only if `INVOCATIONS` has it, for this sandbox.
    pub spans: Atomic,
    /// When two were last live at once, ns.
    pub overlap_ns: Atomic,
    /// How many of the live ones are not known (see [`begin_unknown`]).
    pub unknown: Atomic,
}

impl Sandbox {
    pub const fn new() -> Self {
        Self {
            live: Atomic::new(0),
            seen: Atomic::new(0),
            spans: Atomic::new(0),
            overlap_ns: Atomic::new(0),
            unknown: Atomic::new(0),
        }
    }
}

/// A live invocation.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Invocation {
    pub sandbox: u64,
    /// The trace that it continues or began, its own span id, and the flags for what it calls.
    pub context: Context,
    /// The parent id that came in; 0 if none did.
    pub inbound: u64,
    pub start_ns: u64,
    /// 1 if a runtime polled for it.
    pub polled: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ContextKey {
    pub sandbox: u64,
    pub parent: u64,
}

/// The live invocations that came with one parent id.
#[repr(C)]
pub struct Holders {
    pub count: Atomic,
    /// Their span ids, XORed: with one it is that one's.
    pub spans: Atomic,
}

impl Holders {
    const fn nobody() -> Self {
        Self { count: Atomic::new(0), spans: Atomic::new(0) }
    }
}

/// What a thread works for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    /// The invocation that it read last, or that its parent worked for.
    pub span: u64,
    pub sandbox: u64,
    /// 1 if it read the request itself, 0 if it has it by descent.
    pub read: u8,
    /// 1 if it read another's while that was live: then it tells nothing.
    pub several: u8,
    /// 1 once it has called while nothing was live: it has work of its own.
    pub background: u8,
    pub pad: [u8; 5],
}

/// The answer to "whose call is this?".
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parent {
    /// Its span id and the context for what it calls; all 0 with [`Rule::None`].
    pub context: Context,
    /// A [`Rule`].
    pub rule: u32,
    /// How many invocations were live.
    pub live: u32,
}

impl Parent {
    pub const NOBODY: Self =
        Self { context: Context { trace_id: [0; 2], span_id: 0, flags: 0, pad: [0; 7] }, rule: 0, live: 0 };

    /// Takes the invocation that was found under `span`. `false` if it has ended meanwhile: its memory may be another's
    /// by now, of another sandbox even (kernel/bpf/hashtab.c, htab_elem_free: at once where nothing is preallocated), so
    /// what it says of itself is compared after it was copied.
    #[inline(always)]
    fn is(&mut self, rule: Rule, found: &Value<Invocation>, span: u64, sandbox: u64) -> bool {
        copy(&mut self.context, &found.context);
        // SAFETY: fields of a map value.
        let (own, of) =
            unsafe { (read_volatile(&raw const found.context.span_id), read_volatile(&raw const found.sandbox)) };
        if own != span || self.context.span_id != span || of != sandbox {
            copy(&mut self.context, &Self::NOBODY.context);
            return false;
        }
        self.rule = rule as u32;
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

#[inline(always)]
pub fn sandbox(id: u64) -> Option<Value<Sandbox>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(SANDBOXES.get_ptr_mut(id)?) }
}

#[inline(always)]
pub fn invocation(span: u64) -> Option<Value<Invocation>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(INVOCATIONS.get_ptr_mut(span)?) }
}

/// The one invocation that has been live in a sandbox since it began.
#[inline(always)]
pub fn only(sandbox_id: u64) -> Option<Value<Invocation>> {
    let sandbox = sandbox(sandbox_id)?;
    let alone = if sandbox.live.load() == 1 { sandbox.spans.load() } else { 0 };
    invocation(alone).filter(|only| only.start_ns > sandbox.overlap_ns.load() && only.sandbox == sandbox_id)
}

#[inline(always)]
fn holders(key: ContextKey) -> Option<Value<Holders>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(CONTEXTS.get_ptr_mut(key)?) }
}

#[inline(always)]
fn thread(tid: u32) -> Option<Value<Thread>> {
    // SAFETY: a map look-up.
    unsafe { Value::new(THREADS.get_ptr_mut(tid)?) }
}

/// Notes that an invocation is live. Says whether it is the sandbox's first, and how many are live now.
#[inline(always)]
pub fn begin(span: u64, invocation: &Invocation) -> (bool, u32) {
    if INVOCATIONS.insert(span, invocation, 0).is_err() {
        count(Counter::InvocationsFull);
    }
    if invocation.inbound != 0 {
        let key = ContextKey { sandbox: invocation.sandbox, parent: invocation.inbound };
        // Several may have come with the same parent id (retries, or a caller that sends one id with all it does): as
        // long as they are live, it tells nothing.
        let _ = CONTEXTS.insert(key, Holders::nobody(), u64::from(BPF_NOEXIST));
        match holders(key) {
            Some(holders) => {
                holders.count.add(1);
                holders.spans.xor(span);
            }
            None => count(Counter::InvocationsFull),
        }
    }
    let Some(sandbox) = sandbox(invocation.sandbox) else { return (false, 0) };
    // Counted although the map may have refused it: one that is not known must still keep others from being alone.
    let others = sandbox.live.add(1) as u32;
    sandbox.spans.xor(span);
    if others > 0 {
        sandbox.overlap_ns.store(invocation.start_ns);
    }
    (sandbox.seen.set_first(), others.saturating_add(1))
}

/// Notes that an invocation has answered.
#[inline(always)]
pub fn end(span: u64, sandbox_id: u64) {
    if let Some(invocation) = invocation(span)
        && invocation.inbound != 0
    {
        let key = ContextKey { sandbox: sandbox_id, parent: invocation.inbound };
        if let Some(holders) = holders(key) {
            holders.spans.xor(span);
            if holders.count.add(u64::MAX) == 1 {
                let _ = CONTEXTS.remove(key);
            }
        }
    }
    let _ = INVOCATIONS.remove(span);
    if let Some(sandbox) = sandbox(sandbox_id) {
        sandbox.spans.xor(span);
        sandbox.live.add(u64::MAX);
    }
}

/// Notes that requests may be at work in a sandbox that are not known: nobody is alone in it then.
#[inline(always)]
pub fn begin_unknown(sandbox_id: u64, now: u64) {
    if let Some(sandbox) = sandbox(sandbox_id) {
        sandbox.live.add(1);
        sandbox.unknown.add(1);
        sandbox.overlap_ns.store(now);
    }
}

/// Takes [`begin_unknown`] back.
#[inline(always)]
pub fn end_unknown(sandbox_id: u64) {
    if let Some(sandbox) = sandbox(sandbox_id) {
        sandbox.unknown.add(u64::MAX);
        sandbox.live.add(u64::MAX);
    }
}

/// Notes that `task` read bytes of the request of `span`.
#[inline(always)]
pub fn reads(task: Task, span: u64, sandbox_id: u64) {
    count(Counter::Reads);
    if let Some(mut known) = thread(task.tid) {
        if known.span == span && known.read == 1 {
            return;
        }
        let alone = sandbox(sandbox_id).is_some_and(|sandbox| sandbox.live.load() <= 1);
        let other_lives = known.read == 1 && known.span != span && invocation(known.span).is_some();
        known.several = if alone {
            0
        } else if other_lives {
            1
        } else {
            known.several
        };
        known.span = span;
        known.sandbox = sandbox_id;
        known.read = 1;
        return;
    }
    note_thread(task, &Thread { span, sandbox: sandbox_id, read: 1, several: 0, background: 0, pad: [0; 5] });
}

/// Notes that `child` was made by `parent`.
#[inline(always)]
pub fn forks(parent: Task, child: Task) {
    let Some(known) = thread(parent.tid) else { return };
    if known.several == 1 || invocation(known.span).is_none() {
        return;
    }
    note_thread(
        child,
        &Thread { span: known.span, sandbox: known.sandbox, read: 0, several: 0, background: 0, pad: [0; 5] },
    );
}

#[inline(always)]
pub fn exits(task: Task) {
    let _ = THREADS.remove(task.tid);
}

/// Decides whose call it is that `task` makes now in `sandbox_id`. `carried` is the context that the call brings along.
///
/// `task` is unknown where the hook cannot be sure who sends. The answer goes to memory that the caller has, for the
/// stack's sake.
#[inline(always)]
pub fn attribute(parent: &mut Parent, sandbox_id: u64, task: Task, carried: Option<&Context>) {
    let carried = carried.map_or(ptr::null(), ptr::from_ref);
    *parent = Parent::NOBODY;
    decide(parent, sandbox_id, task.tid, task.pid, carried);
}

/// Overwrites [`Parent::NOBODY`]. A function of its own, for the verifier: what follows a call is then looked at once, and
/// not once for each rule.
#[inline(never)]
extern "C" fn decide(parent: *mut Parent, sandbox_id: u64, tid: u32, pid: u32, carried: *const Context) -> u32 {
    let task = Task { tid, pid };
    // SAFETY: the caller's pointers to map values or to its stack.
    let (parent, carried) = unsafe { (parent.as_mut(), carried.as_ref()) };
    if let Some(parent) = parent {
        decide_for(parent, sandbox_id, task, carried);
    }
    0
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
    let known = if task.is_known() { thread(task.tid) } else { None };
    let alone = if live == 1 { sandbox.spans.load() } else { 0 };
    if let Some(only) = invocation(alone)
        // Since it began: what another left running may still call.
        && only.start_ns > sandbox.overlap_ns.load()
    {
        let has_own_work = match &known {
            Some(known) => known.background == 1 && known.span != alone,
            None => false,
        };
        if !has_own_work && parent.is(Rule::Exclusive, &only, alone, sandbox_id) {
            return;
        }
    }
    if !task.is_known() {
        return;
    }
    let own = if sandbox.unknown.load() == 0 { process::works_for(task.pid) } else { 0 };
    let has_own_work = match &known {
        Some(known) => known.background == 1 && known.span != own,
        None => false,
    };
    if !has_own_work
        && let Some(found) = invocation(own)
        && process::alone_since(task.pid, found.start_ns)
        && parent.is(Rule::Process, &found, own, sandbox_id)
    {
        return;
    }
    // Before its first invocation a sandbox sets itself up; a thread that calls then need not have work of its own.
    let is_background = live == 0 && sandbox.seen.load() != 0;
    let Some(mut known) = known else {
        if is_background {
            note_thread(
                task,
                &Thread { span: 0, sandbox: sandbox_id, read: 0, several: 0, background: 1, pad: [0; 5] },
            );
        }
        return;
    };
    if known.sandbox == sandbox_id
        && known.several == 0
        && let Some(own) = invocation(known.span)
    {
        let rule = if known.read == 1 { Rule::Thread } else { Rule::Lineage };
        if parent.is(rule, &own, known.span, sandbox_id) {
            return;
        }
    }
    if is_background {
        known.background = 1;
    }
}

#[inline(always)]
fn note_thread(task: Task, new: &Thread) {
    if THREADS.insert(task.tid, new, 0).is_err() {
        count(Counter::ThreadsFull);
    }
}

/// The span of the one live invocation of this sandbox that came in with the context that the call carries.
#[inline(always)]
fn forwarded(sandbox: u64, carried: &Context) -> Option<u64> {
    let key = ContextKey { sandbox, parent: carried.span_id };
    let holders = holders(key)?;
    if holders.count.load() == 1 { Some(holders.spans.load()) } else { None }
}
