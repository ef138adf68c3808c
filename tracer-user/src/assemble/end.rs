//! Ends: a span is complete.

use tracer_ebpf::record::{End, Header, Kind, Reason};

use super::{Assembler, span::Class};
use crate::path::Channel;

impl Assembler {
    pub(super) fn end(&mut self, header: &Header, end: &End, class: Class) {
        self.totals.records.count(match class {
            Class::Invocation => Kind::InvocationEnd,
            Class::Call => Kind::CallEnd,
            Class::Opaque => Kind::OpaqueEnd,
        });
        self.ends(header, end, class);
    }

    pub(super) fn ends(&mut self, header: &Header, end: &End, class: Class) {
        let by_id = if class == Class::Invocation { &self.invocations } else { &self.calls };
        let stray = self.strays.get(&(end.conn, end.sequence, end.span));
        let by_id = by_id.get(end.span, &self.spans);
        let key = by_id.into_iter().chain(stray.copied()).find(|key| self.fits(*key, end, class));
        let Some(key) = key else {
            self.totals.ends_unknown += 1;
            return;
        };
        let span = &mut self.spans[key as usize];
        if span.ended {
            self.totals.ends_duplicate += 1;
            return;
        }
        self.totals.ends_matched += 1;
        span.ended = true;
        span.end_ns = header.at_ns;
        if span.pid == 0 {
            // A request is taken in before anybody has read it; who did is known by the end.
            span.pid = header.pid;
        }
        span.first_byte_ns = end.first_byte_ns;
        span.status = end.status;
        span.errno = end.errno;
        span.channel = Channel::of(end).filter(|_| class != Class::Invocation);
        // A reason of a newer kernel half tells that something is wrong, not what.
        span.reason = Reason::from_u8(end.reason).unwrap_or(Reason::Missed);
        if class == Class::Invocation {
            self.unit_ends(key, header);
        }
        let span = &self.spans[key as usize];
        if span.given_out() {
            self.give_out_again(key);
            return;
        }
        let (tree, awaited) = (span.tree, u32::from(span.awaited()));
        let delivery = (class == Class::Invocation && span.reason == Reason::Exited).then_some(span.above);
        let entry = &mut self.trees[tree as usize];
        entry.open -= awaited;
        entry.last_ns = entry.last_ns.max(header.at_ns);
        if entry.open > 0 && entry.root == key {
            let seq = entry.seq;
            self.settle(tree, seq);
        }
        self.check_ready(tree);
        if let Some(delivery) = delivery {
            self.undelivered(delivery, header, end);
        }
    }

    fn fits(&self, key: u32, end: &End, class: Class) -> bool {
        let span = &self.spans[key as usize];
        (span.conn, span.sequence, span.class) == (end.conn, end.sequence, class)
    }
}
