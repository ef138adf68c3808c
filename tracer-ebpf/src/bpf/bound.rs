//! Lengths whose bounds every verifier sees.

use core::arch::asm;

/// `len`, but at least `LEAST` and at most `MOST`.
///
/// Written in Rust, the compiler tests one copy of a length and uses another, or tests it less one, or drops a test that
/// it has proven; verifiers of older kernels (6.1) then do not see that the copy is bounded, too ("R2 unbounded memory
/// access", "invalid access to map value", "invalid zero-sized read"). Here both tests and what they guard are one
/// register, and the compiler knows nothing of the result.
#[inline(always)]
pub fn clamp<const LEAST: i32, const MOST: i32>(mut len: u64) -> u64 {
    // SAFETY: reads and writes the one register; the jumps stay inside.
    unsafe {
        asm!(
            "if {len} <= {most} goto +1",
            "{len} = {most}",
            "if {len} >= {least} goto +1",
            "{len} = {least}",
            len = inout(reg) len,
            least = const LEAST,
            most = const MOST,
            options(pure, nomem, nostack),
        );
    }
    len
}
