//! What follows a head: whether there is a body, where it ends, and the frames of chunks.

use super::{After, BAD, CHUNKED, CODED, Cursor, Event, Flow, HAS_LENGTH, IN_CHUNKS, STARTED, Side, method, mode};

impl Flow {
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
    pub(super) fn chunk_byte(&mut self, byte: u8, cursor: &mut Cursor) -> Event {
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
    pub(super) fn chunk_begins(&mut self) -> Event {
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
