//! The lines of a head: the first one, and the three headers that are of interest.

use super::{
    BAD, CARRY, CHUNKED, CODED, Cursor, Event, FOLDED, Flow, HAS_LENGTH, Side, method, mode, tag_state,
    word::{
        CONTENT, LETTERS, STRIDE, TRACEPAR, TRANSFER, decimal, find_newline, is_blank, leading_blanks, may_be_method,
        may_begin_method, name_len, newline, trailing_blanks,
    },
};
use crate::{Window, traceparent};

impl Flow {
    #[inline(always)]
    pub(super) fn first<W: Window + ?Sized>(&mut self, side: Side, window: &W, cursor: &mut Cursor) -> Event {
        let available = cursor.end - cursor.at;
        let word = window.word(cursor.at);
        let byte = word as u8;
        if side == Side::Response {
            if byte != b'H' {
                return self.opaque();
            }
            if available < 12 {
                return Event::Drained;
            }
            // "HTTP/1." then any minor version, a space and three digits.
            let rest = window.word(cursor.at + 8);
            let hundreds = ((rest >> 8) as u8).wrapping_sub(b'0');
            let tens = ((rest >> 16) as u8).wrapping_sub(b'0');
            let ones = ((rest >> 24) as u8).wrapping_sub(b'0');
            if (word ^ u64::from_le_bytes(*b"HTTP/1.\0")) << 8 != 0
                || rest as u8 != b' '
                || hundreds > 9
                || tens > 9
                || ones > 9
            {
                return self.opaque();
            }
            self.status = u16::from(hundreds) * 100 + u16::from(tens) * 10 + u16::from(ones);
            self.mode = mode::SKIP;
            cursor.at += 12;
            return Event::Step;
        }
        // A client may send an empty line after a body (RFC 9112 section 2.2); it belongs to no message.
        if byte == b'\r' || byte == b'\n' {
            cursor.at += 1;
            cursor.head_at = cursor.at;
            return Event::Step;
        }
        if !may_begin_method(byte) {
            return self.opaque();
        }
        if available < 8 && newline(word) >= available {
            return Event::Drained;
        }
        if !may_be_method(word) {
            return self.opaque();
        }
        self.method = if word << 24 == u64::from_le_bytes(*b"HEAD \0\0\0") << 24 {
            method::HEAD
        } else if word == u64::from_le_bytes(*b"CONNECT ") {
            method::CONNECT
        } else {
            method::OTHER
        };
        self.mode = mode::FIRST_END;
        Event::Step
    }

    /// Looks for the end of a line whose beginning does not matter.
    #[inline(always)]
    pub(super) fn pass_line<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
        let found = cursor.at + self.scan + find_newline(window, cursor.at + self.scan);
        if found >= cursor.end {
            return self.pass_end(cursor);
        }
        if found >= cursor.at + self.scan + STRIDE {
            if self.mode == mode::FIRST_END {
                // Its last words are looked at when the end is found, so they must stay in the window.
                self.scan = 16;
                cursor.at = found - 16;
            } else {
                self.scan = 0;
                cursor.at = found;
            }
            return Event::Step;
        }
        self.scan = 0;
        match self.mode {
            mode::FIRST_END => {
                let end = found - u32::from(window.byte(found.wrapping_sub(1)) == b'\r');
                // The shortest is "A * HTTP/1.1"; what is shorter may not reach back before the line.
                if end < cursor.at + 9
                    || window.byte(end - 9) != b' '
                    || (window.word(end - 8) ^ u64::from_le_bytes(*b"HTTP/1.0")) & !(1 << 56) != 0
                {
                    return self.opaque();
                }
                self.mode = mode::LINE;
            }
            mode::CHUNK_EXT => {
                cursor.at = found + 1;
                return self.chunk_begins();
            }
            _ => self.mode = mode::LINE,
        }
        cursor.at = found + 1;
        Event::Step
    }

    #[inline(always)]
    fn pass_end(&mut self, cursor: &mut Cursor) -> Event {
        if self.mode == mode::FIRST_END {
            let keep = if cursor.end - cursor.at > 16 { 16 } else { cursor.end - cursor.at };
            cursor.at = cursor.end - keep;
        } else {
            cursor.at = cursor.end;
        }
        self.scan = 0;
        Event::Drained
    }

    #[inline(always)]
    pub(super) fn line<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
        let available = cursor.end - cursor.at;
        let word = window.word(cursor.at);
        let byte = word as u8;
        self.scan = 0;
        if byte == b'\n' {
            return self.head_ends(1, cursor);
        }
        if byte == b'\r' {
            if available < 2 {
                return Event::Drained;
            }
            if (word >> 8) as u8 == b'\n' {
                return self.head_ends(2, cursor);
            }
        }
        self.fields = self.fields.saturating_add(1);
        if byte == b'\r' || is_blank(byte) {
            self.flags |= FOLDED;
            self.mode = mode::SKIP;
            return self.pass_line(window, cursor);
        }
        let lower = word | LETTERS;
        if lower == TRACEPAR || lower == TRANSFER || (word | (LETTERS >> 8)) == CONTENT {
            if available < 18 && find_newline(window, cursor.at) >= available {
                return Event::Drained;
            }
            self.mode = if name_len(window, cursor.at) == 0 { mode::SKIP } else { mode::SEEK };
            return Event::Step;
        }
        if available < 8 && newline(word) >= available {
            return Event::Drained;
        }
        // In the same step: nearly every line of a head goes this way.
        self.mode = mode::SKIP;
        self.pass_line(window, cursor)
    }

    #[inline(always)]
    fn head_ends(&mut self, len: u32, cursor: &mut Cursor) -> Event {
        cursor.at += len;
        self.head_len = self.passed.saturating_add(cursor.at - cursor.head_at);
        self.mode = mode::HEAD_DONE;
        Event::Head
    }

    /// Looks for the end of a line of interest, whose beginning `cursor.at` keeps.
    #[inline(always)]
    pub(super) fn seek<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
        let found = cursor.at + self.scan + find_newline(window, cursor.at + self.scan);
        let seen = if found < cursor.end { found } else { cursor.end } - cursor.at;
        if seen > CARRY as u32 {
            // Longer than any of the three may be, wherever it is cut. Its name alone makes the framing doubtful.
            self.flags |= BAD;
            self.scan = 0;
            self.mode = mode::SKIP;
            return Event::Step;
        }
        if found >= cursor.end {
            self.mode = mode::LINE;
            self.scan = 0;
            return Event::Drained;
        }
        if found >= cursor.at + self.scan + STRIDE {
            self.scan += STRIDE;
            return Event::Step;
        }
        let len = found - cursor.at;
        self.header(window, cursor, len);
        self.scan = 0;
        self.mode = mode::LINE;
        cursor.at = found + 1;
        Event::Step
    }

    /// Reads the header line of `len` bytes (without `\n`) at `cursor.at`, whose first eight bytes are known.
    #[inline(always)]
    fn header<W: Window + ?Sized>(&mut self, window: &W, cursor: &Cursor, len: u32) {
        let at = cursor.at;
        let name_len = name_len(window, at);
        if name_len >= len {
            return;
        }
        let colon = window.byte(at + name_len);
        if is_blank(colon) {
            // Not allowed (RFC 9112 section 5.1), and read by some: whoever does sees another head than we.
            self.flags |= BAD;
            self.tag = tag_state::BAD;
            return;
        }
        if colon != b':' {
            return;
        }
        let line_end = at + len - u32::from(window.byte(at + len - 1) == b'\r');
        // Blanks on either side: up to eight are passed over; what has more is not understood, and then doubtful.
        let mut value_at = at + name_len + 1;
        value_at += leading_blanks(window.word(value_at));
        let value_end = line_end - trailing_blanks(window.word(line_end - 8));
        let value_len = value_end.saturating_sub(value_at);
        match name_len {
            11 => self.read_traceparent(window, cursor, value_at, value_len),
            14 => self.read_length(window, value_at, value_len),
            _ => self.read_coding(window, value_at, value_len),
        }
    }

    #[inline(always)]
    fn read_traceparent<W: Window + ?Sized>(&mut self, window: &W, cursor: &Cursor, at: u32, len: u32) {
        let first = self.tag == tag_state::ABSENT;
        self.tag = tag_state::BAD;
        if first
            && len as usize == traceparent::VALUE_LEN
            && let Some(context) = traceparent::parse(window, at)
        {
            self.context = context;
            self.tag_at = self.passed.saturating_add(at - cursor.head_at);
            self.tag = tag_state::VALID;
        }
    }

    #[inline(always)]
    fn read_length<W: Window + ?Sized>(&mut self, window: &W, at: u32, len: u32) {
        // 15 digits are a petabyte. The last eight are a word, those before them another, with zeros shifted in from below.
        let (value, bad) = match len {
            1..=8 => decimal(window.word(at), len),
            9..=15 => {
                let (high, bad_high) = decimal(window.word(at), len - 8);
                let (low, bad_low) = decimal(window.word(at + len - 8), 8);
                (high * 100_000_000 + low, bad_high | bad_low)
            }
            _ => (0, true),
        };
        if bad || (self.flags & HAS_LENGTH != 0 && self.length != value) {
            self.flags |= BAD;
        }
        self.flags |= HAS_LENGTH;
        self.length = value;
    }

    #[inline(always)]
    fn read_coding<W: Window + ?Sized>(&mut self, window: &W, at: u32, len: u32) {
        // The last coding decides (RFC 9112 section 6.1).
        if len >= 7 {
            let last = window.word(at + len - 7) | LETTERS;
            // Before it comes a comma, with blanks or without; the name of the header lies before the value.
            let blanks = trailing_blanks(window.word(at + len - 15));
            let alone = len == 7 || window.byte(at + len - 8 - blanks) == b',';
            if last << 8 == u64::from_le_bytes(*b"chunked\0") << 8 && alone {
                self.flags = (self.flags | CHUNKED) & !CODED;
                return;
            }
        }
        self.flags = (self.flags | CODED) & !CHUNKED;
    }
}
