//! HTTP/1.1 framing (RFC 9112), one direction of a connection at a time.
//!
//! A [`Flow`] knows where in the stream of messages it stands: in a head, in a body, in a chunk. It is driven by
//! [`Flow::step`], which looks at a [`Window`] of the stream and does one small piece of work, so that a BPF program can
//! run it under `bpf_loop` and a host program in a plain loop. The words that are not of interest are passed over eight
//! bytes at a time; no byte is looked at twice.
//!
//! A head may be cut anywhere. What [`Flow`] has to see in one piece (the name and value of three headers) is short:
//! where the stream stops inside such a line, the line's beginning is carried over in [`Flow::carry`] and the next window
//! starts with it. All else needs no memory.
//!
//! It never guesses. What it cannot frame for certain makes the connection opaque, for good.

use crate::{
    Window,
    traceparent::{self, Context},
};

/// Most bytes that are carried from one segment to the next; the longest line of interest that may be cut.
pub const CARRY: usize = 128;

/// Most bytes of a head that are looked through. Longer ones are framed, but not tagged.
pub const HEAD_LIMIT: u32 = 16 * 1024;

/// Most fields of a head with the tag. Python's `http.server` takes 99; Apache, gunicorn, Kestrel and hyper take 100.
pub const FIELDS_MAX: u8 = 99;

/// Where a flow stands.
pub mod mode {
    /// At the first line of a message.
    pub const FIRST: u8 = 0;
    /// Inside a request line, looking for its end.
    pub const FIRST_END: u8 = 1;
    /// At the beginning of a header line.
    pub const LINE: u8 = 2;
    /// Inside a line that does not matter.
    pub const SKIP: u8 = 3;
    /// Inside a line that does, looking for its end.
    pub const SEEK: u8 = 4;
    /// The head is complete; [`super::Flow::begin_body`] says what follows.
    pub const HEAD_DONE: u8 = 5;
    /// In a body, or a chunk, of [`super::Flow::remaining`] bytes.
    pub const BODY: u8 = 6;
    /// In a chunk's size.
    pub const CHUNK_SIZE: u8 = 7;
    /// After the size, before the line's end.
    pub const CHUNK_EXT: u8 = 8;
    /// At the line end after a chunk's data.
    pub const CHUNK_END: u8 = 9;
    /// In the trailer section.
    pub const TRAILER: u8 = 10;
    /// In a body that only the end of the connection ends.
    pub const UNTIL_CLOSE: u8 = 11;
    /// Not HTTP/1, or not any more. For good.
    pub const OPAQUE: u8 = 12;
    /// Bytes were missed. Waits until its driver can prove a boundary and sets `FIRST`.
    pub const LOST: u8 = 13;
}

/// What a [`Flow::step`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Nothing yet: step again.
    Step = 0,
    /// All that can be used of the window has been: `at` stands at what must come again, with more behind it.
    Drained = 1,
    /// A head is complete; `at` stands behind it.
    Head = 2,
    /// A message is complete; `at` stands behind it.
    End = 3,
    /// The flow has become opaque.
    Opaque = 4,
}

/// Which way the messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// From the client to the server.
    Request = 0,
    /// From the server to the client.
    Response = 1,
}

/// What [`Flow::begin_body`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum After {
    /// A body, or nothing more: the message goes on until [`Event::End`].
    Body = 0,
    /// No body: the message is complete.
    Nothing = 1,
    /// An interim response (1xx): the real one is still to come.
    Interim = 2,
    /// The flow has become opaque (upgrade, CONNECT, framing that cannot be trusted).
    Opaque = 3,
}

/// The request's method, as far as it changes the framing of the response.
pub mod method {
    /// Any other.
    pub const OTHER: u8 = 0;
    /// The response has no body.
    pub const HEAD: u8 = 1;
    /// After a 2xx the connection is a tunnel.
    pub const CONNECT: u8 = 2;
}

const CHUNKED: u8 = 1;
const HAS_LENGTH: u8 = 2;
/// A transfer coding that is not chunked.
const CODED: u8 = 4;
/// A head whose framing two readers might understand differently.
const BAD: u8 = 8;
/// The flow is inside a chunked body.
const IN_CHUNKS: u8 = 16;
/// The trailer's current line, or the chunk's size, has a byte.
const STARTED: u8 = 32;
/// A folded line, or one that begins with a bare CR: a `traceparent` might hide there.
const FOLDED: u8 = 64;

/// What is known of `traceparent` in the head.
pub mod tag_state {
    /// None so far.
    pub const ABSENT: u8 = 0;
    /// One, well-formed.
    pub const VALID: u8 = 1;
    /// One that is malformed, or more than one.
    pub const BAD: u8 = 2;
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Where it stands: see [`mode`].
    pub mode: u8,
    flags: u8,
    /// Requests: see [`method`].
    pub method: u8,
    /// What is known of `traceparent` in this head: see [`tag_state`].
    pub tag: u8,
    /// Responses: the status code.
    pub status: u16,
    /// How many bytes of [`Flow::carry`] are in use.
    pub carry_len: u16,
    /// Bytes of this head before the window.
    passed: u32,
    /// Where in the head the value of `traceparent` starts.
    pub tag_at: u32,
    /// How far into the line at hand the search for its end has come.
    scan: u32,
    /// Length of the head, once complete.
    pub head_len: u32,
    /// Bytes of the body or chunk still to come.
    pub remaining: u64,
    length: u64,
    /// Length and flags of the body, or chunk, that was passed last: see [`Flow::take_back`].
    passed_length: u64,
    passed_flags: u8,
    /// Lines of this head behind the first; 255 for more. A line that is cut counts twice.
    pub fields: u8,
    #[doc(hidden)]
    pub pad: [u8; 6],
    /// The `traceparent` of this head, if [`tag_state::VALID`].
    pub context: Context,
    /// The beginning of a line that the last segment cut.
    pub carry: [u8; CARRY],
}

/// A position in a window: what a driver keeps between steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cursor {
    /// The next byte to look at.
    pub at: u32,
    /// Where the window ends.
    pub end: u32,
    /// Where in the window the head began (0 if before it).
    pub head_at: u32,
}

const LETTERS: u64 = 0x2020_2020_2020_2020;
const TRACEPAR: u64 = u64::from_le_bytes(*b"tracepar");
const CONTENT: u64 = u64::from_le_bytes(*b"content-");
const TRANSFER: u64 = u64::from_le_bytes(*b"transfer");

/// Offset of the first `\n` among the eight bytes of `word`; 8 if there is none.
#[inline(always)]
const fn newline(word: u64) -> u32 {
    let x = word ^ 0x0a0a_0a0a_0a0a_0a0a;
    // The lowest bit set is exact; those above it may be the subtraction's borrow.
    let hits = x.wrapping_sub(0x0101_0101_0101_0101) & !x & 0x8080_8080_8080_8080;
    let below = (hits & hits.wrapping_neg()).wrapping_sub(1);
    // Bytes up to and including the hit have their lowest bit set in `below`; without a hit all eight have, and one more.
    let count = ((below & 0x0101_0101_0101_0101).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32;
    count - 1 + (hits == 0) as u32
}

/// How many bytes one search step looks at.
const STRIDE: u32 = 32;

/// Offset of the first `\n` in the [`STRIDE`] bytes at `at`; [`STRIDE`] if there is none.
#[inline(always)]
fn find_newline<W: Window + ?Sized>(window: &W, at: u32) -> u32 {
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
const fn may_begin_method(byte: u8) -> bool {
    byte > b' ' && byte < 0x7f
}

/// Whether the eight bytes may be a method, as far as they are before a space: nothing that no text has, and no other
/// blank.
#[inline(always)]
const fn may_be_method(word: u64) -> bool {
    // The lowest bit set is exact, as in `newline`.
    let odd = (word.wrapping_sub(0x2121_2121_2121_2121) & !word | word) & TOPS;
    let first = (odd & odd.wrapping_neg()) >> 7;
    (word ^ LETTERS) & first.wrapping_mul(0xff) == 0
}

#[inline(always)]
const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

const TOPS: u64 = 0x8080_8080_8080_8080;

/// The top bit of each byte of `word` that is neither space nor tab. Branchless, as are its users: a branch per byte
/// would double the verifier's work each time.
#[inline(always)]
const fn not_blank(word: u64) -> u64 {
    let space = word ^ LETTERS;
    let tab = word ^ 0x0909_0909_0909_0909;
    (((space & !TOPS) + !TOPS) | space) & (((tab & !TOPS) + !TOPS) | tab) & TOPS
}

/// How many of the eight bytes, counted from the first, are blank before one that is not.
#[inline(always)]
const fn leading_blanks(word: u64) -> u32 {
    let hits = not_blank(word);
    let below = (hits & hits.wrapping_neg()).wrapping_sub(1) & !hits;
    (((below & TOPS) >> 7).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// How many of the eight bytes, counted from the last, are blank before one that is not.
#[inline(always)]
const fn trailing_blanks(word: u64) -> u32 {
    let mut hits = not_blank(word);
    hits |= hits >> 8;
    hits |= hits >> 16;
    hits |= hits >> 32;
    8 - ((hits >> 7).wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// Length of the name of interest at `at`, whose first eight bytes are those of one; 0 if the rest is not.
#[inline(always)]
fn name_len<W: Window + ?Sized>(window: &W, at: u32) -> u32 {
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

impl Flow {
    /// A flow at the beginning of a connection.
    pub const NEW: Self = Self {
        mode: mode::FIRST,
        flags: 0,
        method: method::OTHER,
        tag: tag_state::ABSENT,
        status: 0,
        carry_len: 0,
        passed: 0,
        tag_at: 0,
        scan: 0,
        head_len: 0,
        remaining: 0,
        length: 0,
        passed_length: 0,
        passed_flags: 0,
        fields: 0,
        pad: [0; 6],
        context: Context { trace_id: [0, 0], span_id: 0, flags: 0, pad: [0; 7] },
        carry: [0; CARRY],
    };

    /// Whether the next byte, as far as this flow knows, begins a message.
    #[inline(always)]
    pub fn at_boundary(&self) -> bool {
        self.mode == mode::FIRST && self.passed == 0 && self.carry_len == 0
    }

    /// Whether a head has begun and is not complete.
    #[inline(always)]
    pub fn in_head(&self) -> bool {
        self.mode <= mode::SEEK && !self.at_boundary()
    }

    /// Whether the head at hand may hide a `traceparent` that was not recognised, or is not certain to be framed.
    #[inline(always)]
    pub fn is_doubtful(&self) -> bool {
        self.tag == tag_state::BAD || self.flags & (BAD | FOLDED) != 0 || self.has_two_lengths()
    }

    /// Whether the body's length is given in two ways. RFC 9112 section 6.3 says which one counts, and that a sender who
    /// gives both may be out to have two readers understand different ones.
    #[inline(always)]
    fn has_two_lengths(&self) -> bool {
        self.flags & HAS_LENGTH != 0 && self.flags & (CHUNKED | CODED) != 0
    }

    /// Sets the flow to the beginning of a message, in the place where `cursor` stands.
    #[inline(always)]
    pub fn begin_message(&mut self, cursor: &mut Cursor) {
        self.mode = mode::FIRST;
        self.flags = 0;
        self.method = method::OTHER;
        self.tag = tag_state::ABSENT;
        self.fields = 0;
        self.carry_len = 0;
        self.passed = 0;
        self.scan = 0;
        self.length = 0;
        self.remaining = 0;
        cursor.head_at = cursor.at;
    }

    /// Must be called when the window is given up at `cursor.at`: what follows is counted from there.
    #[inline(always)]
    pub fn leave_window(&mut self, cursor: &mut Cursor) {
        if self.mode <= mode::SEEK {
            self.passed = self.passed.saturating_add(cursor.at - cursor.head_at);
        }
        cursor.head_at = cursor.at;
    }

    #[inline(always)]
    fn opaque(&mut self) -> Event {
        self.mode = mode::OPAQUE;
        Event::Opaque
    }

    /// Does one piece of work in a head or in the frame of a chunk. Not to be called in [`mode::BODY`],
    /// [`mode::UNTIL_CLOSE`], [`mode::OPAQUE`] and [`mode::LOST`], in which there is nothing to look at, nor in
    /// [`mode::HEAD_DONE`].
    #[inline(always)]
    pub fn step<W: Window + ?Sized>(&mut self, side: Side, window: &W, cursor: &mut Cursor) -> Event {
        if cursor.at >= cursor.end {
            return Event::Drained;
        }
        match self.mode {
            mode::FIRST => self.first(side, window, cursor),
            mode::FIRST_END | mode::SKIP | mode::CHUNK_EXT => self.pass_line(window, cursor),
            mode::LINE => self.line(window, cursor),
            mode::SEEK => self.seek(window, cursor),
            mode::CHUNK_SIZE | mode::CHUNK_END | mode::TRAILER => self.chunk_byte(window.byte(cursor.at), cursor),
            _ => Event::Drained,
        }
    }

    #[inline(always)]
    fn first<W: Window + ?Sized>(&mut self, side: Side, window: &W, cursor: &mut Cursor) -> Event {
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
    fn pass_line<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
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
    fn line<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
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
            return Event::Step;
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
        self.mode = mode::SKIP;
        Event::Step
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
    fn seek<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
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

    /// Decides what follows a complete head. `request_method` is that of the request that a response answers.
    #[inline(always)]
    pub fn begin_body(&mut self, side: Side, request_method: u8) -> After {
        if self.flags & BAD != 0 {
            self.mode = mode::OPAQUE;
            return After::Opaque;
        }
        if side == Side::Response {
            let tunnel = request_method == method::CONNECT && self.status / 100 == 2;
            if self.status == 101 || tunnel {
                self.mode = mode::OPAQUE;
                return After::Opaque;
            }
            if self.status < 200 {
                self.mode = mode::FIRST;
                return After::Interim;
            }
            if request_method == method::HEAD || self.status == 204 || self.status == 304 {
                self.mode = mode::FIRST;
                return After::Nothing;
            }
        }
        if side == Side::Request && self.has_two_lengths() {
            self.mode = mode::OPAQUE;
            return After::Opaque;
        }
        if self.flags & CHUNKED != 0 {
            self.flags = (self.flags | IN_CHUNKS) & !STARTED;
            self.length = 0;
            self.mode = mode::CHUNK_SIZE;
            return After::Body;
        }
        if self.flags & CODED != 0 {
            // A request whose end cannot be told must be refused by the server (RFC 9112 section 6.3).
            self.mode = if side == Side::Request { mode::OPAQUE } else { mode::UNTIL_CLOSE };
            return if side == Side::Request { After::Opaque } else { After::Body };
        }
        if self.flags & HAS_LENGTH != 0 && self.length > 0 {
            self.remaining = self.length;
            self.mode = mode::BODY;
            return After::Body;
        }
        if side == Side::Response && self.flags & HAS_LENGTH == 0 {
            self.mode = mode::UNTIL_CLOSE;
            return After::Body;
        }
        self.mode = mode::FIRST;
        After::Nothing
    }

    /// Passes over up to `available` bytes in [`mode::BODY`] or [`mode::UNTIL_CLOSE`]; says how many, and whether the
    /// message is complete.
    #[inline(always)]
    pub fn pass_body(&mut self, available: u64) -> (u64, Event) {
        if self.mode != mode::BODY {
            return (available, Event::Drained);
        }
        if available < self.remaining {
            self.remaining -= available;
            return (available, Event::Drained);
        }
        let taken = self.remaining;
        self.remaining = 0;
        self.passed_length = self.length;
        self.passed_flags = self.flags;
        if self.flags & IN_CHUNKS != 0 {
            self.mode = mode::CHUNK_END;
            return (taken, Event::Step);
        }
        (taken, Event::End)
    }

    /// Of what was stepped over last, `bytes` did not go out after all and will come again. Goes back into the body (or
    /// chunk) at hand, or into the one before, behind whose end the flow stands by `behind` bytes. `false` if they reach
    /// beyond that, and then the flow knows nothing any more.
    #[inline(always)]
    pub fn take_back(&mut self, bytes: u64, behind: u64) -> bool {
        if self.mode == mode::BODY && bytes <= self.length.saturating_sub(self.remaining) {
            self.remaining += bytes;
            return true;
        }
        if bytes <= behind || bytes - behind > self.passed_length {
            return false;
        }
        self.mode = mode::BODY;
        self.flags = self.passed_flags;
        self.length = self.passed_length;
        self.remaining = bytes - behind;
        self.carry_len = 0;
        true
    }

    /// A chunk's size is a few bytes, so is what stands around it: byte by byte.
    #[inline(always)]
    fn chunk_byte(&mut self, byte: u8, cursor: &mut Cursor) -> Event {
        cursor.at += 1;
        if self.mode == mode::CHUNK_END {
            if byte == b'\n' {
                self.mode = mode::CHUNK_SIZE;
                self.length = 0;
                self.flags &= !STARTED;
            } else if byte != b'\r' {
                return self.opaque();
            }
            return Event::Step;
        }
        if self.mode == mode::TRAILER {
            if byte == b'\n' {
                if self.flags & STARTED == 0 {
                    return Event::End;
                }
                self.flags &= !STARTED;
            } else if byte != b'\r' {
                self.flags |= STARTED;
            }
            return Event::Step;
        }
        let lower = byte | 0x20;
        let digit = if byte.wrapping_sub(b'0') < 10 {
            byte.wrapping_sub(b'0')
        } else if lower.wrapping_sub(b'a') < 6 {
            lower.wrapping_sub(b'a') + 10
        } else {
            16
        };
        if digit < 16 {
            if self.length >> 52 != 0 {
                return self.opaque();
            }
            self.length = (self.length << 4) | u64::from(digit);
            self.flags |= STARTED;
            return Event::Step;
        }
        if self.flags & STARTED == 0 {
            return self.opaque();
        }
        match byte {
            b'\n' => self.chunk_begins(),
            b'\r' | b';' | b' ' | b'\t' => {
                self.mode = mode::CHUNK_EXT;
                self.scan = 0;
                Event::Step
            }
            _ => self.opaque(),
        }
    }

    #[inline(always)]
    fn chunk_begins(&mut self) -> Event {
        self.flags &= !STARTED;
        if self.length == 0 {
            self.mode = mode::TRAILER;
        } else {
            self.remaining = self.length;
            self.mode = mode::BODY;
        }
        Event::Step
    }
}

/// The number that the first `len` (1–8) digits of `word` spell, and whether one of them is no digit.
#[inline(always)]
const fn decimal(word: u64, len: u32) -> (u64, bool) {
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

#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
