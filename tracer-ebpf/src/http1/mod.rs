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

mod body;
mod head;
pub(crate) mod word;

use crate::{Window, traceparent::Context};

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

    /// As [`Self::step`], at the beginning of a header line: a call of its own costs more than most lines do.
    #[inline(always)]
    pub fn next_line<W: Window + ?Sized>(&mut self, window: &W, cursor: &mut Cursor) -> Event {
        if cursor.at >= cursor.end {
            return Event::Drained;
        }
        self.line(window, cursor)
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
}

#[cfg(test)]
mod tests;
