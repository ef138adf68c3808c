//! Eight bytes at a time: what is looked for in a line, without a branch per byte.

use crate::Window;

pub(crate) const LETTERS: u64 = 0x2020_2020_2020_2020;
pub(super) const TRACEPAR: u64 = u64::from_le_bytes(*b"tracepar");
pub(super) const CONTENT: u64 = u64::from_le_bytes(*b"content-");
pub(super) const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");

/// Offset of the first `\n` among the eight bytes of `word`; 8 if there is none.
#[inline(always)]
pub(super) const fn newline(word: u64) -> u32 {
    let x = word ^ 0x0a0a_0a0a_0a0a_0a0a;
    // The lowest bit set is exact; those above it may be the subtraction's borrow.
    let hits = x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080;
    let below = (hits & hits.wrapping_neg()).wrapping_sub(1);
    // Bytes up to and including the hit have their lowest bit set in `below`; without a hit all eight have, and one more.
    let count = ((below & 0x0101_0101_0101_0101).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32;
    count - 1 + (hits == 0) as u32
}

/// How many bytes one search step looks at.
pub(crate) const STRIDE: u32 = 32;

/// Offset of the first `\n` in the [`STRIDE`] bytes at `at`; [`STRIDE`] if there is none.
#[inline(always)]
pub(crate) fn find_newline<W: Window + ?Sized>(window: &W, at: u32) -> u32 {
    let a = newline(window.word(at));
    if a < 8 {
        return a;
    }
    let b = newline(window.word(at + 8));
    if b < 8 {
        return 8 + b;
    }
    let c = newline(window.word(at + 16));
    if c < 8 {
        return 16 + c;
    }
    24 + newline(window.word(at + 24))
}

/// RFC 9110 section 5.6.2: what a method may begin with. Exact for letters and digits, and takes in what else may stand
/// there; TLS records, PostgreSQL's start-up and other binary protocols begin with a byte that it leaves out.
#[inline(always)]
pub(super) const fn may_begin_method(byte: u8) -> bool {
    byte > b' ' && byte < 0x7f
}

/// Whether the eight bytes may be a method, as far as they are before a space: nothing that no text has, and no other
/// blank.
#[inline(always)]
pub(super) const fn may_be_method(word: u64) -> bool {
    // The lowest bit set is exact, as in `newline`.
    let odd = (word.wrapping_sub(0x2121_2121_2121_2121) & !word | word) & TOPS;
    let first = (odd & odd.wrapping_neg()) >> 7;
    (word ^ LETTERS) & first.wrapping_mul(0xff) == 0
}

#[inline(always)]
pub(super) const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

pub(super) const TOPS: u64 = 0x8080_8080_8080_8080;

/// The top bit of each byte of `word` that is neither space nor tab. Branchless, as are its users: a branch per byte
/// would double the verifier's work each time.
#[inline(always)]
pub(super) const fn not_blank(word: u64) -> u64 {
    let space = word ^ LETTERS;
    let tab = word ^ 0x0909_0909_0909_0909;
    (((space & !TOPS) + !TOPS) | space) & (((tab & !TOPS) + !TOPS) | tab) & TOPS
}

/// How many of the eight bytes, counted from the first, are blank before one that is not.
#[inline(always)]
pub(crate) const fn leading_blanks(word: u64) -> u32 {
    let hits = not_blank(word);
    let below = (hits & hits.wrapping_neg()).wrapping_sub(1) & !hits;
    (((below & TOPS) >> 7).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// How many of the eight bytes, counted from the last, are blank before one that is not.
#[inline(always)]
pub(super) const fn trailing_blanks(word: u64) -> u32 {
    let mut hits = not_blank(word);
    hits |= hits >> 8;
    hits |= hits >> 16;
    hits |= hits >> 32;
    8 - ((hits >> 7).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Length of the name of interest at `at`, whose first eight bytes are those of one; 0 if the rest is not.
#[inline(always)]
pub(super) fn name_len<W: Window + ?Sized>(window: &W, at: u32) -> u32 {
    let second = window.word(at + 8);
    if window.byte(at) | 0x20 == b'c' {
        return if (second | LETTERS) << 16 == u64::from_le_bytes(*b"length\0\0") << 16 { 14 } else { 0 };
    }
    // "trans" or "trace".
    if window.byte(at + 3) | 0x20 == b'n' {
        let is_it =
            (second | (LETTERS << 8)) == u64::from_le_bytes(*b"-encodin") && window.byte(at + 16) | 0x20 == b'g';
        return if is_it { 17 } else { 0 };
    }
    if (second | LETTERS) << 40 == u64::from_le_bytes(*b"ent\0\0\0\0\0") << 40 { 11 } else { 0 }
}

/// The number that the first `len` (1–8) digits of `word` spell, and whether one of them is no digit.
#[inline(always)]
pub(super) const fn decimal(word: u64, len: u32) -> (u64, bool) {
    // Right-aligned, with `0` shifted in before the digits.
    let shift = ((8 - (len & 15)) * 8) & 63;
    let padded = if shift == 0 { word } else { (word << shift) | (0x3030_3030_3030_3030 >> (64 - shift)) };
    let digits = padded.wrapping_sub(0x3030_3030_3030_3030);
    let bad = (digits | digits.wrapping_add(0x7676_7676_7676_7676)) & 0x8080_8080_8080_8080 != 0;
    let pairs = (digits & 0x000f_000f_000f_000f) * 10 + ((digits >> 8) & 0x000f_000f_000f_000f);
    let fours = (pairs & 0x0000_00ff_0000_00ff) * 100 + ((pairs >> 16) & 0x0000_00ff_0000_00ff);
    let eight = (fours & 0xffff) * 10_000 + ((fours >> 32) & 0xffff);
    (eight, bad)
}
