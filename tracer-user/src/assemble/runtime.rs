//! Invocations that runtimes poll for, and what the runtimes say of themselves.

use tracer_ebpf::record::{End, Header, Kind, Report, START_INBOUND, report};

use super::{
    Assembler,
    birth::Begun,
    sandboxes::Ready,
    span::{Class, Span},
};
use crate::polled::{Polled, error_type};

impl Assembler {
    /// Fills in what the answer to a poll says of the invocation that it is.
    pub(super) fn polled(&mut self, span: &mut Span, answer: &[u8]) {
        let mut polled = Polled::parse(answer);
        if let Some(context) = polled.in_event
            && span.flags & START_INBOUND == 0
        {
            // The kernel half did not look there: calls go on in a trace of their own. But whoever sent it is known now.
            span.flags |= START_INBOUND;
            span.parent = context.span_id;
        }
        let ready = self.sandboxes.get_mut(&span.sandbox).and_then(|sandbox| sandbox.ready.take());
        if let Some(ready) = ready.filter(|ready| ready.pid == span.pid) {
            polled.init_ns = Some(ready.at_ns.saturating_sub(ready.began_ns));
            // Its sandbox may be older than it: then the start is its own.
            let begun = span.cold.get_or_insert_with(|| Box::new(Begun::of_process(ready.began_ns)));
            begun.is_ready(ready.at_ns);
        }
        span.polled = Some(Box::new(polled));
    }

    /// Takes in what a runtime says of itself.
    pub(super) fn runtime_report(&mut self, header: &Header, told: &Report, head: &[u8]) {
        self.totals.records.count(Kind::RuntimeReport);
        if told.what == report::READY {
            let ready = Ready { pid: header.pid, began_ns: told.began_ns, at_ns: header.at_ns };
            let known = told.began_ns != 0 && told.began_ns >= self.config.since_ns;
            if let Some(sandbox) = self.sandbox_entry(header.sandbox) {
                sandbox.ready = known.then_some(ready);
            }
            return;
        }
        let Some(key) = self.invocations.get(told.span, &self.spans) else { return };
        let span = &mut self.spans[key as usize];
        if span.sandbox != header.sandbox || span.given_out() {
            return;
        }
        span.init_failed |= told.what == report::INIT_FAILED;
        span.polled.get_or_insert_default().error_type = error_type(head);
    }

    /// The process that an invocation was handed to has ended: nobody else will tell that of the delivery.
    pub(super) fn undelivered(&mut self, delivery: u64, header: &Header, end: &End) {
        let Some(key) = self.calls.get(delivery, &self.spans) else { return };
        let span = &self.spans[key as usize];
        if !span.ended && !span.given_out() {
            let end = End { conn: span.conn, sequence: span.sequence, span: span.id, ..*end };
            self.totals.undelivered += 1;
            self.ends(&Header { pid: span.pid, ..*header }, &end, Class::Call);
        }
    }
}
