//! What is live: sandboxes, their invocations, and the contexts that these came with.

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_ebpf::{counter::Counter, traceparent::Context};

use crate::{
    atomic::Atomic,
    maps::{ANSWERED, CONTEXTS, GO_PROBES, INVOCATIONS, SANDBOXES, count},
    pointer::Value,
};

/// What is known of a sandbox. User space puts zeroes there: see `Agent::select`.
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
    /// How often the loop's turn told rightly and wrongly whose answer it was that left: see [`super::trust`].
    pub hits: Atomic,
    pub misses: Atomic,
    /// The same of who gave a thread the work that it hands back.
    pub handed_hits: Atomic,
    pub handed_misses: Atomic,
    /// 1 once there was a call in it that belonged to no live invocation.
    pub leftover: Atomic,
    /// When one last ended, ns.
    pub ended_ns: Atomic,
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
            hits: Atomic::new(0),
            misses: Atomic::new(0),
            handed_hits: Atomic::new(0),
            handed_misses: Atomic::new(0),
            leftover: Atomic::new(0),
            ended_ns: Atomic::new(0),
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
    /// 1 once a thread has read of its request. Before that it cannot have called.
    pub read: u64,
    /// 1 if a runtime polled for it.
    pub polled: u64,
    /// In `ANSWERED`: calls since the response.
    pub after: u64,
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
    const fn one(span: u64) -> Self {
        Self { count: Atomic::new(1), spans: Atomic::new(span) }
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
        if CONTEXTS.insert(key, Holders::one(span), u64::from(BPF_NOEXIST)).is_err() {
            match holders(key) {
                Some(holders) => {
                    holders.count.add(1);
                    holders.spans.xor(span);
                }
                None => count(Counter::InvocationsFull),
            }
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
pub fn end(span: u64, sandbox_id: u64, now: u64) {
    if let Some(invocation) = invocation(span) {
        if GO_PROBES.load() != 0 {
            let _ = ANSWERED.insert(span, &*invocation, 0);
        }
        if invocation.inbound != 0 {
            let key = ContextKey { sandbox: sandbox_id, parent: invocation.inbound };
            if let Some(holders) = holders(key) {
                holders.spans.xor(span);
                if holders.count.add(u64::MAX) == 1 {
                    let _ = CONTEXTS.remove(key);
                }
            }
        }
    }
    let _ = INVOCATIONS.remove(span);
    if let Some(sandbox) = sandbox(sandbox_id) {
        sandbox.spans.xor(span);
        sandbox.ended_ns.store(now);
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

/// The span of the one live invocation of this sandbox that came in with the context that the call carries.
#[inline(always)]
pub fn forwarded(sandbox: u64, carried: &Context) -> Option<u64> {
    let key = ContextKey { sandbox, parent: carried.span_id };
    let holders = holders(key)?;
    if holders.count.load() == 1 { Some(holders.spans.load()) } else { None }
}
