//! Starts: a new span finds its place.

use tracer_ebpf::record::{Header, Kind, Rule, START_FIRST, START_POLLED, Start, Tag};

use super::{
    Assembler,
    guess::Hint,
    span::{Class, Span},
};
use crate::head::{Head, Keep};

impl Assembler {
    pub(super) fn invocation_start(&mut self, header: &Header, start: &Start, head: &[u8]) {
        self.totals.records.count(Kind::InvocationStart);
        if self.is_duplicate(start, Class::Invocation) {
            return;
        }
        self.make_room();
        let polled = start.flags & START_POLLED != 0;
        let request = if polled { &[] } else { head };
        let parsed = Head::parse(request, Keep { query: self.config.query, host: false });
        let mut span = Span::new(header, start, Class::Invocation, parsed);
        if start.flags & START_FIRST != 0 {
            let birth = self.sandboxes.get(&header.sandbox).and_then(|sandbox| sandbox.birth.as_ref());
            span.cold = birth.map(|birth| Box::new(birth.until(start.wire.local_port)));
        }
        if polled {
            self.polled(&mut span, head);
        }
        let key = self.insert(span);
        match self.find_call(key) {
            Some((call, by)) => {
                self.join(call, key, by);
                self.place(key, call);
            }
            None => {
                self.plant(key, None, false);
                self.wait(key);
            }
        }
        self.watch_invocation(key, head);
        self.unit_begins(key);
        // Calls that came before the invocation that made them.
        for call in self.orphans.remove(&start.context.span_id).unwrap_or_default() {
            if self.spans[call as usize].sandbox == header.sandbox {
                self.adopt(call, key);
            }
        }
    }

    pub(super) fn call_start(&mut self, header: &Header, start: &Start, head: &[u8], class: Class) {
        self.totals.records.count(if class == Class::Call { Kind::CallStart } else { Kind::OpaqueStart });
        if self.is_duplicate(start, class) {
            return;
        }
        self.make_room();
        // A delivery's head is that of an answer.
        let head = if start.tag == Tag::Polled as u8 { &[] } else { head };
        let parsed = Head::parse(head, Keep { query: self.config.query, host: true });
        let mut span = Span::new(header, start, class, parsed);
        let hint = Hint::of(start);
        if hint.is_some() {
            (span.parent, span.rule) = (0, Rule::None);
        }
        let parent = span.parent;
        self.totals.tags[span.tag as usize] += 1;
        self.totals.rules[span.rule as usize] += 1;
        let key = self.insert(span);
        match self.invocations.get(parent, &self.spans) {
            _ if parent == 0 => self.plant(key, None, false),
            Some(parent) if self.spans[parent as usize].sandbox == header.sandbox => self.place(key, parent),
            Some(_) => {
                self.totals.foreign_parents += 1;
                self.plant(key, None, true);
            }
            None => {
                self.plant(key, None, true);
                self.orphans.entry(parent).or_default().push(key);
            }
        }
        self.watch_call(key, head, start, hint);
        if class == Class::Opaque {
            return;
        }
        match self.find_invocation(key) {
            Some((invocation, by)) => {
                self.join(key, invocation, by);
                if self.spans[invocation as usize].given_out() {
                    // It was printed as a root; now its place is known.
                    self.spans[invocation as usize].above = start.context.span_id;
                    self.give_out_again(invocation);
                } else {
                    self.adopt(invocation, key);
                }
            }
            None => self.note_call_wire(key),
        }
    }

    /// Whether the record repeats one that was taken in.
    fn is_duplicate(&mut self, start: &Start, class: Class) -> bool {
        let id = start.context.span_id;
        let by_id = if class == Class::Invocation { &self.invocations } else { &self.calls };
        let known = by_id.get(id, &self.spans).is_some_and(|key| {
            let span = &self.spans[key as usize];
            (span.conn, span.sequence, span.class) == (start.conn, start.sequence, class)
        }) || self.strays.contains_key(&(start.conn, start.sequence, id));
        self.totals.duplicates += u64::from(known);
        known
    }

    /// Puts a span into the arena and makes it known by its id, unless the id is another's.
    fn insert(&mut self, mut span: Span) -> u32 {
        let (id, stray) = (span.id, (span.conn, span.sequence, span.id));
        // An id that the application chose, and that an outside caller was heard to use, may be a replay of that.
        let foreign = span.class == Class::Call && span.tag == Tag::Kept && self.waiting.contains_key(&id);
        let by_id = if span.class == Class::Invocation { &mut self.invocations } else { &mut self.calls };
        span.registered = id != 0 && !foreign && by_id.get(id, &self.spans).is_none();
        // Slab indices stay far below 2^32: the table's bounds are counted in spans of 300 bytes.
        let registered = span.registered;
        let key = self.spans.insert(span) as u32;
        if registered {
            by_id.put(key, &self.spans);
        } else {
            self.totals.joins.refused += 1;
            self.strays.insert(stray, key);
        }
        key
    }
}
