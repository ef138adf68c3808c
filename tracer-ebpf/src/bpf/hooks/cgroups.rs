//! mkdir, rmdir: `tp_btf/cgroup_mkdir(cgrp, path)` and `tp_btf/cgroup_rmdir(cgrp, path)`.
//!
//! kernel/cgroup/cgroup.c, cgroup_mkdir: fires within the system call, before any process can be in the new cgroup. So
//! a sandbox that appears while the agent runs is known before its first packet. System-wide: what is neither below a
//! sandbox nor matches a pattern of `--cgroup` is passed over.
//!
//! Without `--cgroup` the patterns are those of container runtimes, and what matches is only a candidate: its start is
//! told (see `births`), and user space makes it a sandbox if a function's platform shows in it.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns, helpers::generated::bpf_loop, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use aya_log_ebpf::debug;
use core::ffi::c_void;
use tracer_ebpf::{
    counter::Counter,
    glob::{Matcher, PATTERN_MAX, Pattern, STEPS, Step},
    record::Kind,
};

use crate::{
    attribution::Sandbox,
    births,
    kernel::{self, Typed},
    maps::{DISCOVERS, PATTERN_COUNT, PATTERNS, SANDBOXES, count},
    pointer::Value,
    scratch::{self, Scratch},
};

#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn fn_mkdir(context: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's arguments, typed by BTF.
    let Some(cgroup) = (unsafe { Typed::new(context.arg::<*const u8>(0)) }) else { return 0 };
    if !kernel::is_cgroup2(cgroup) {
        return 0;
    }
    let path = context.arg::<*const u8>(1);
    let parent = kernel::parent_cgroup_id(cgroup);
    let inherited = SANDBOXES.get_ptr(parent).is_some();
    // Where user space is to find the functions, what is in a container is as much a candidate as the container.
    let discovers = DISCOVERS.load() != 0;
    let candidate = discovers && births::is_known(parent);
    if !inherited && !candidate && PATTERN_COUNT.load() == 0 {
        return 0;
    }
    let Some(mut scratch) = scratch::take() else { return 0 };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    scratch.set_path(path);
    if inherited || candidate || matches_any(&mut scratch) {
        let id = kernel::cgroup_id(cgroup);
        let selected = inherited || !discovers;
        if selected && SANDBOXES.insert(id, Sandbox::new(), 0).is_err() {
            count(Counter::SandboxesFull);
        } else {
            debug!(&context, "sandbox {} appeared", id);
            births::begin(id);
            scratch.emit(Kind::SandboxBorn, id, 0);
        }
    }
    scratch::give_back(&scratch);
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn fn_rmdir(context: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's argument, typed by BTF.
    let Some(cgroup) = (unsafe { Typed::new(context.arg::<*const u8>(0)) }) else { return 0 };
    let id = kernel::cgroup_id(cgroup);
    if !kernel::is_cgroup2(cgroup) {
        return 0;
    }
    let was_candidate = births::end(id);
    if SANDBOXES.remove(id).is_err() && !was_candidate {
        return 0;
    }
    let Some(mut scratch) = scratch::take() else { return 0 };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    scratch.header.tail_len = 0;
    scratch.emit(Kind::SandboxGone, id, 0);
    scratch::give_back(&scratch);
    0
}

#[repr(C)]
struct Match {
    pattern: *const Pattern,
    scratch: *mut Scratch,
    matcher: Matcher,
    matched: u32,
}

#[inline(always)]
fn matches_any(scratch: &mut Value<Scratch>) -> bool {
    let mut i = 0;
    while i < 16 && i < PATTERN_COUNT.load() {
        if let Some(pattern) = PATTERNS.get_ptr(i) {
            let mut state = Match { pattern, scratch: scratch.as_ptr(), matcher: Matcher::default(), matched: 0 };
            // SAFETY: the callback has the form that bpf_loop asks for and gets the context that it expects.
            unsafe { bpf_loop(STEPS, step as *mut c_void, (&raw mut state).cast(), 0) };
            if state.matched == 1 {
                return true;
            }
        }
        i += 1;
    }
    false
}

#[inline(never)]
extern "C" fn step(_: u64, state: *mut c_void) -> i64 {
    // SAFETY: `matches_any` passes a `Match` on its stack, with pointers to map values.
    let state = unsafe { &mut *state.cast::<Match>() };
    // SAFETY: as above; both pointers were checked for null.
    let (Some(pattern), Some(scratch)) = (unsafe { (Value::new(state.pattern.cast_mut()), Value::new(state.scratch)) })
    else {
        return 1;
    };
    let path_len = u32::from(scratch.header.tail_len);
    let pattern_at = |at: u32| {
        let at = at as usize & 255;
        if at < PATTERN_MAX { pattern.bytes[at] } else { 0 }
    };
    match state.matcher.step(pattern.len, path_len, pattern_at, |at| scratch.path_byte(at)) {
        Step::More => 0,
        Step::Match => {
            state.matched = 1;
            1
        }
        Step::Differ => 1,
    }
}
