//! Numbers that several CPUs, or several tasks in turn on one, change at once.
//!
//! `core` leaves most operations out for this target, which it takes for one without compare-and-swap; the instruction
//! set has had them since v3 (Linux 5.12), and the compiler emits them for the intrinsics.

use core::{
    cell::UnsafeCell,
    intrinsics::{self, AtomicOrdering::SeqCst},
};

/// 64 bits in a map value. BPF's fetching operations are sequentially consistent; there is no weaker form to ask for.
#[repr(transparent)]
pub struct Atomic(UnsafeCell<u64>);

// SAFETY: all that is done to it is done to the whole word at once.
unsafe impl Sync for Atomic {}

impl Atomic {
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: in bounds and aligned, since `self` is; a 64-bit load does not tear.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Adds, and gives what was there before.
    #[inline(always)]
    pub fn add(&self, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { intrinsics::atomic_xadd::<u64, u64, { SeqCst }>(self.0.get(), value) }
    }

    #[inline(always)]
    pub fn xor(&self, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { intrinsics::atomic_xor::<u64, u64, { SeqCst }>(self.0.get(), value) }
    }

    /// Takes a lock that is 1 while held; `false` if it is.
    #[inline(always)]
    pub fn try_lock(&self) -> bool {
        // SAFETY: as above.
        unsafe { intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.get(), 0, 1).1 }
    }

    #[inline(always)]
    pub fn unlock(&self) {
        self.store(0);
    }

    /// Sets to 0, and gives what was there before.
    #[inline(always)]
    pub fn take(&self) -> u64 {
        // SAFETY: as above.
        unsafe { intrinsics::atomic_xchg::<u64, { SeqCst }>(self.0.get(), 0) }
    }

    /// Sets to 1; whether it was 0.
    #[inline(always)]
    pub fn set_first(&self) -> bool {
        // SAFETY: as above.
        unsafe { intrinsics::atomic_xchg::<u64, { SeqCst }>(self.0.get(), 1) == 0 }
    }
}
