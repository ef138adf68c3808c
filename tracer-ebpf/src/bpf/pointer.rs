//! The one place where raw pointers to map values become something with fields.

use core::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// A value in a BPF map, or in per-CPU memory that the holder has reserved.
///
/// Several CPUs may hold the same one. All fields are plain integers; what more than one hook writes is written with
/// atomics or guarded, and says so where it is declared.
///
/// Never null, so that an absent one is a null pointer and not an undefined register, which the verifier refuses to see
/// copied.
pub struct Value<T: 'static>(NonNull<T>);

impl<T> Value<T> {
    /// `None` for null, as map look-ups answer.
    ///
    /// # Safety
    ///
    /// A non-null `pointer` must come from a map look-up or a storage helper of this very program run: RCU then keeps
    /// it valid until the run ends, and the verifier knows its bounds.
    #[inline(always)]
    pub unsafe fn new(pointer: *mut T) -> Option<Self> {
        NonNull::new(pointer).map(Self)
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for Value<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: `new` asks for a pointer that is valid for this run; the types have no invalid bit patterns.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Value<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above. References live no longer than one statement or one guarded section.
        unsafe { self.0.as_mut() }
    }
}
