//! The W3C `traceparent` header (Trace Context, level 1: <https://www.w3.org/TR/trace-context/>).

use crate::Window;

/// The header's name, lower case.
pub const NAME: &[u8; 11] = b"traceparent";

/// Length of a version-00 value: `00-` + 32 + `-` + 16 + `-` + 2.
pub const VALUE_LEN: usize = 55;

/// Where the parent id starts within a value.
pub const PARENT_AT: usize = 36;

/// Length of the whole header line that is written into a call, with its line end.
pub const LINE_LEN: usize = NAME.len() + 2 + VALUE_LEN + 2;

/// Bit 0 of the flags: the caller may have recorded the trace.
pub const SAMPLED: u8 = 1;

/// The ids that a `traceparent` carries. Ids are big-endian on the wire and kept as numbers here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// First and second half of the trace id; not both 0.
    pub trace_id: [u64; 2],
    /// The parent (span) id; not 0.
    pub span_id: u64,
    /// The flags octet; only [`SAMPLED`] is defined.
    pub flags: u8,
    #[doc(hidden)]
    pub pad: [u8; 7],
}

/// Reads eight lower-case hex digits (first digit in the lowest byte); sets bits of `bad` if they are anything else.
///
/// Decodes loosely, then encodes and compares: exact, and without a branch that the verifier would have to follow.
#[inline(always)]
pub(crate) const fn unhex_word(digits: u64, bad: &mut u64) -> u32 {
    let letters = (digits >> 6) & 0x0101_0101_0101_0101;
    let nibbles = ((digits & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9) & 0x0f0f_0f0f_0f0f_0f0f;
    let pairs = ((nibbles & 0x000f_000f_000f_000f) << 4) | ((nibbles >> 8) & 0x000f_000f_000f_000f);
    let fours = (pairs | (pairs >> 8)) & 0x0000_ffff_0000_ffff;
    let value = ((fours | (fours >> 16)) as u32).swap_bytes();
    *bad |= hex_word(value) ^ digits;
    value
}

#[inline(always)]
pub(crate) fn unhex64<W: Window + ?Sized>(window: &W, at: u32, bad: &mut u64) -> u64 {
    let high = unhex_word(window.word(at), bad);
    let low = unhex_word(window.word(at + 8), bad);
    (u64::from(high) << 32) | u64::from(low)
}

/// Reads the [`VALUE_LEN`] bytes at `at` as a version-00 value; `None` if they are not one. The caller has made sure
/// that the window holds them.
#[inline(always)]
pub fn parse<W: Window + ?Sized>(window: &W, at: u32) -> Option<Context> {
    let mut bad = 0;
    let high = unhex64(window, at + 3, &mut bad);
    let low = unhex64(window, at + 19, &mut bad);
    let span_id = unhex64(window, at + PARENT_AT as u32, &mut bad);
    // The last word is `-` and the flags, five bytes of the parent id before them.
    let last = window.word(at + 47);
    bad |= (last >> 40) & 0xff ^ b'-' as u64;
    let flags = unhex_word((last >> 48) << 48 | ZEROS, &mut bad) as u8;
    bad |= window.word(at) & 0x00ff_ffff ^ u64::from_le_bytes(*b"00-\0\0\0\0\0");
    bad |= window.word(at + 35) & 0xff ^ b'-' as u64;
    if bad != 0 || (high | low) == 0 || span_id == 0 {
        return None;
    }
    Some(Context { trace_id: [high, low], span_id, flags, pad: [0; 7] })
}

/// Six digits `0`, to fill up a word of two.
const ZEROS: u64 = 0x0000_3030_3030_3030;

/// The 16 hex digits of `value` as two little-endian words, ready to be stored.
///
/// Spreads the nibbles over bytes and turns each into its digit without a table or a branch: the kernel half writes
/// three of these per tagged call.
#[inline(always)]
pub const fn hex_words(value: u64) -> [u64; 2] {
    [hex_word((value >> 32) as u32), hex_word(value as u32)]
}

#[inline(always)]
const fn hex_word(value: u32) -> u64 {
    // Bring the most significant nibble to the lowest address.
    let mut x = value.swap_bytes() as u64;
    x = (x | (x << 16)) & 0x0000_ffff_0000_ffff;
    x = (x | (x << 8)) & 0x00ff_00ff_00ff_00ff;
    x = ((x >> 4) & 0x000f_000f_000f_000f) | ((x & 0x000f_000f_000f_000f) << 8);
    // Nibbles over 9 carry into bit 4 when 6 is added; they need 'a' - '0' - 10 = 39 more.
    let over = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    x + 0x3030_3030_3030_3030 + over * 39
}

/// Writes the header line `traceparent: 00-…\r\n`.
#[inline(always)]
pub fn write_line(out: &mut [u8; LINE_LEN], context: &Context) {
    *out = *b"traceparent: 00-00000000000000000000000000000000-0000000000000000-00\r\n";
    let mut put = |at: usize, value: u64| {
        let [a, b] = hex_words(value);
        out[at..at + 8].copy_from_slice(&a.to_le_bytes());
        out[at + 8..at + 16].copy_from_slice(&b.to_le_bytes());
    };
    put(16, context.trace_id[0]);
    put(32, context.trace_id[1]);
    put(49, context.span_id);
    let flags = hex_word(u32::from(context.flags)) >> 48;
    out[66] = flags as u8;
    out[67] = (flags >> 8) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_the_example_of_the_recommendation() {
        let context = parse(EXAMPLE, 0).unwrap();
        assert_eq!(context.trace_id, [0x4bf9_2f35_77b3_4da6, 0xa3ce_929d_0e0e_4736]);
        assert_eq!(context.span_id, 0x00f0_67aa_0ba9_02b7);
        assert_eq!(context.flags, SAMPLED);
    }

    fn line(context: &Context) -> [u8; LINE_LEN] {
        let mut line = [0; LINE_LEN];
        write_line(&mut line, context);
        line
    }

    #[test]
    fn writes_what_it_reads() {
        let line = line(&parse(EXAMPLE, 0).unwrap());
        assert_eq!(&line[..], [b"traceparent: ", EXAMPLE, b"\r\n"].concat());
    }

    #[test]
    fn refuses_what_the_recommendation_forbids() {
        for bad in [
            "00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "",
        ] {
            assert_eq!(parse(bad.as_bytes(), 0), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn survives_the_round_trip(high: u64, low in 1u64.., span_id in 1u64.., flags: u8) {
            let context = Context { trace_id: [high, low], span_id, flags, pad: [0; 7] };
            prop_assert_eq!(parse(&line(&context)[..], 13), Some(context));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>, at in 0u32..100) {
            let _ = parse(&bytes[..], at);
        }
    }
}
