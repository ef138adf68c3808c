//! Random call trees, and the records that a kernel would send of them.

use proptest::prelude::*;
use tracer_ebpf::{
    record::{
        End, HEAD_MAX, Header, Kind, Reason, Rule, START_AFTER_RESPONSE, START_INBOUND, Start, Tag, Wire, as_bytes,
    },
    traceparent::Context,
};

use crate::path::Node;

/// One µs, the finest that the output shows.
pub(crate) const US: u64 = 1000;

/// An invocation that a test wants.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// Which sandbox; the function has the same number.
    pub sandbox: u8,
    /// Whether its calls start together.
    pub parallel: bool,
    /// Work before each call, in µs.
    pub work_us: u16,
    pub calls: Vec<WantCall>,
}

/// A call that a test wants.
#[derive(Clone, Debug)]
pub(crate) struct WantCall {
    pub tag: Tag,
    /// Whether the application tries twice under one span id: the first request is lost on the way.
    pub retry: bool,
    /// Whether the invocation has answered before.
    pub after_response: bool,
    /// The invocation that it causes; none for an external service.
    pub target: Option<Want>,
}

/// What must come out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub span: u64,
    pub call: bool,
    pub start_us: i64,
    pub duration_us: Option<u64>,
    pub children: Vec<Shape>,
}

impl Shape {
    pub fn of(node: &Node) -> Self {
        Self {
            span: node.span_id().0,
            call: matches!(node, Node::Call(_)),
            start_us: node.start_us(),
            duration_us: node.duration_us(),
            children: node.children().iter().map(Self::of).collect(),
        }
    }

    pub fn count(&self) -> usize {
        1 + self.children.iter().map(Self::count).sum::<usize>()
    }

    fn sort(&mut self, order: &dyn Fn(u64) -> u64) {
        self.children.sort_by_key(|child| (child.start_us, child.span, order(child.span)));
        self.children.iter_mut().for_each(|child| child.sort(order));
    }
}

/// A record in the making.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub at_ns: u64,
    /// Socket cookie: the order of records of one connection's end is kept.
    pub conn: u64,
    pub bytes: Vec<u8>,
}

/// Trees and their records, in order of time.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub events: Vec<Event>,
    /// By the root's span id.
    pub roots: Vec<Shape>,
    pub calls: u64,
    pub joined: u64,
}

/// A request on a connection whose sequence is not known yet.
struct Request {
    conn: usize,
    call: bool,
    header: Header,
    start: Start,
    end: End,
    end_ns: u64,
    head: Vec<u8>,
}

/// A connection and when it is busy.
struct Conn {
    from: u8,
    to: u8,
    port: u16,
    busy: Vec<(u64, u64)>,
}

struct Builder {
    one_netns: bool,
    next_id: u64,
    conns: Vec<Conn>,
    requests: Vec<Request>,
    joined: u64,
}

/// The number of the sandbox that stands for an external service, and of the one that stands for outside callers.
const EXTERNAL: u8 = 200;
const OUTSIDE: u8 = 201;

impl World {
    /// Simulates the trees, each from its own time on, overlapping.
    pub fn new(wants: &[Want], one_netns: bool) -> Self {
        let mut builder = Builder { one_netns, next_id: 1, conns: Vec::new(), requests: Vec::new(), joined: 0 };
        let mut roots = Vec::new();
        for (index, want) in wants.iter().enumerate() {
            let at = 1_000_000 * US + index as u64 * 70 * US;
            let conn = builder.connect(OUTSIDE, want.sandbox, at, at + 1);
            let (mut shape, end) = builder.invocation(want, conn, at, at, 0, [7, index as u64 + 1], None);
            builder.conns[conn].busy.pop();
            builder.conns[conn].busy.push((at, end));
            shape.sort(&|_| 0);
            roots.push(shape);
        }
        builder.finish(roots)
    }
}

impl Builder {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        // Spread, as random ids are.
        self.next_id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A connection that is free in the whole time, kept alive from before or new.
    fn connect(&mut self, from: u8, to: u8, begin: u64, end: u64) -> usize {
        let free = |conn: &Conn| {
            from != OUTSIDE
                && (conn.from, conn.to) == (from, to)
                && conn.busy.iter().all(|(a, b)| end < *a || begin > *b)
        };
        let found = self.conns.iter().position(free).unwrap_or_else(|| {
            let port = 10_000 + self.conns.len() as u16;
            self.conns.push(Conn { from, to, port, busy: Vec::new() });
            self.conns.len() - 1
        });
        self.conns[found].busy.push((begin, end));
        found
    }

    fn wire(&self, conn: usize, client: bool) -> Wire {
        let Conn { from, to, port, .. } = self.conns[conn];
        let address = |sandbox: u8| {
            let v4 = if self.one_netns { [127, 0, 0, 1] } else { [10, 0, 0, sandbox] };
            std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
        };
        let netns = |sandbox: u8| if self.one_netns { 1 } else { u64::from(sandbox) + 1 };
        let (from, to, server_port) = ((address(from), netns(from)), (address(to), netns(to)), 8000 + u16::from(to));
        let (local, remote) = if client { (from, to) } else { (to, from) };
        let (local_port, remote_port) = if client { (port, server_port) } else { (server_port, port) };
        Wire { local: local.0, remote: remote.0, netns: local.1, local_port, remote_port, pad: 0 }
    }

    #[expect(clippy::too_many_arguments, reason = "a test's helper")]
    fn request(&mut self, call: bool, conn: usize, sandbox: u8, at: u64, end_ns: u64, start: Start, reason: Reason) {
        let mut head =
            format!("GET /from/{} HTTP/1.1\r\nHost: fn{}\r\n\r\n", self.conns[conn].from, self.conns[conn].to);
        head.truncate(HEAD_MAX);
        let kind = if call { Kind::CallStart } else { Kind::InvocationStart };
        let header = Header {
            at_ns: at,
            sandbox: u64::from(sandbox) + 1,
            kind: kind as u16,
            tail_len: head.len() as u16,
            pid: 9,
        };
        let start = Start { conn: 2 * conn as u64 + u64::from(call), wire: self.wire(conn, call), ..start };
        let status = if reason == Reason::Complete { 200 } else { 0 };
        let end = End {
            conn: start.conn,
            span: start.context.span_id,
            first_byte_ns: 0,
            sequence: 0,
            status,
            reason: reason as u8,
            retransmits: 0,
            errno: 0,
            rtt_us: 0,
        };
        self.requests.push(Request { conn, call, header, start, end, end_ns, head: head.into_bytes() });
    }

    /// Simulates an invocation and what is under it; gives its shape and when it ended.
    #[expect(clippy::too_many_arguments, reason = "a test's helper")]
    fn invocation(
        &mut self,
        want: &Want,
        conn: usize,
        at: u64,
        base: u64,
        parent: u64,
        trace_id: [u64; 2],
        tag: Option<Tag>,
    ) -> (Shape, u64) {
        let span_id = self.id();
        let context = Context { trace_id, span_id, flags: 1, pad: [0; 7] };
        let (mut now, mut end, mut children) = (at, at + 5 * US, Vec::new());
        let ((early, late), _) = (want.calls.iter().partition::<Vec<_>, _>(|call| !call.after_response), ());
        for call in &early {
            now += u64::from(want.work_us) * US;
            let done = self.call(call, want.sandbox, span_id, now, base, trace_id, &mut children);
            end = end.max(done + 3 * US);
            if !want.parallel {
                now = done + US;
            }
        }
        let answered = end.max(now + US);
        now = answered;
        for call in &late {
            now = self.call(call, want.sandbox, span_id, now + 2 * US, base, trace_id, &mut children);
        }
        let flags = if tag.is_some_and(Tag::on_the_wire) { START_INBOUND } else { 0 };
        let parent = if flags != 0 { parent } else { 0 };
        let start = blank(context, parent, flags, Rule::None, Tag::Off);
        self.request(false, conn, want.sandbox, at, answered, start, Reason::Complete);
        let duration_us = Some((answered - at) / US);
        (Shape { span: span_id, call: false, start_us: ((at - base) / US) as i64, duration_us, children }, answered)
    }

    #[expect(clippy::too_many_arguments, reason = "a test's helper")]
    fn call(
        &mut self,
        want: &WantCall,
        sandbox: u8,
        parent: u64,
        mut at: u64,
        base: u64,
        trace_id: [u64; 2],
        out: &mut Vec<Shape>,
    ) -> u64 {
        let span_id = self.id();
        let context = Context { trace_id, span_id, flags: 1, pad: [0; 7] };
        let flags = if want.after_response { START_AFTER_RESPONSE } else { 0 };
        let start = blank(context, parent, flags, Rule::Exclusive, want.tag);
        let to = want.target.as_ref().map_or(EXTERNAL, |target| target.sandbox);
        let shape = |at: u64, end: u64, children| Shape {
            span: span_id,
            call: true,
            start_us: ((at - base) / US) as i64,
            duration_us: Some((end - at) / US),
            children,
        };
        if want.retry && want.tag == Tag::Kept {
            // The connection broke, so it serves no other request.
            let conn = self.connect(sandbox, to, 0, u64::MAX);
            self.request(true, conn, sandbox, at, at + 2 * US, start, Reason::Closed);
            out.push(shape(at, at + 2 * US, Vec::new()));
            at += 4 * US;
        }
        // The connection is busy until the answer, which is not known before the simulation has gone through it: until
        // then it counts as busy for ever.
        let conn = self.connect(sandbox, to, at, u64::MAX);
        let (mut end, mut children) = (at + 10 * US, Vec::new());
        if let Some(target) = &want.target {
            self.joined += 1;
            let (child, done) = self.invocation(target, conn, at + 2 * US, base, span_id, trace_id, Some(want.tag));
            children.push(child);
            end = done + 2 * US;
        }
        let busy = &mut self.conns[conn].busy;
        if let Some(last) = busy.iter_mut().find(|(begin, end)| *begin == at && *end == u64::MAX) {
            last.1 = end;
        }
        self.request(true, conn, sandbox, at, end, start, Reason::Complete);
        out.push(shape(at, end, children));
        end
    }

    /// Numbers the requests of each connection and writes the records.
    fn finish(mut self, roots: Vec<Shape>) -> World {
        self.requests.sort_by_key(|request| (request.header.at_ns, !request.call));
        let mut sequences = std::collections::HashMap::new();
        let mut events = Vec::new();
        let mut calls = 0;
        for mut request in self.requests {
            let sequence = sequences.entry((request.conn, request.call)).or_insert(0);
            request.start.sequence = *sequence;
            request.end.sequence = *sequence;
            *sequence += 1;
            calls += u64::from(request.call);
            let bytes = [as_bytes(&request.header), as_bytes(&request.start), &request.head].concat();
            events.push(Event { at_ns: request.header.at_ns, conn: request.start.conn, bytes });
            let kind = if request.call { Kind::CallEnd } else { Kind::InvocationEnd };
            let header = Header { at_ns: request.end_ns, kind: kind as u16, tail_len: 0, ..request.header };
            let bytes = [as_bytes(&header), as_bytes(&request.end)].concat();
            events.push(Event { at_ns: request.end_ns, conn: request.start.conn, bytes });
        }
        events.sort_by_key(|event| event.at_ns);
        World { events, roots, calls, joined: self.joined }
    }
}

pub(crate) fn blank(context: Context, parent: u64, flags: u8, rule: Rule, tag: Tag) -> Start {
    Start {
        conn: 0,
        context,
        parent,
        wire: Wire::default(),
        sequence: 0,
        flags,
        rule: rule as u8,
        tag: tag as u8,
        live: 1,
        trust: 0,
        pad: [0; 3],
        tid: 0,
        unit: [0; 2],
    }
}

/// Any tree, a few deep.
pub(crate) fn want() -> impl Strategy<Value = Want> {
    let leaf = (0..4u8, any::<bool>(), 1..40u16).prop_map(|(sandbox, parallel, work_us)| Want {
        sandbox,
        parallel,
        work_us,
        calls: Vec::new(),
    });
    leaf.prop_recursive(4, 24, 4, |inner| {
        let tag = prop::sample::select(vec![Tag::Injected, Tag::Rewritten, Tag::Kept, Tag::Off, Tag::Split]);
        let call = (tag, any::<bool>(), prop::bool::weighted(0.2), prop::option::of(inner))
            .prop_map(|(tag, retry, after_response, target)| WantCall { tag, retry, after_response, target });
        (0..4u8, any::<bool>(), 1..40u16, prop::collection::vec(call, 0..5))
            .prop_map(|(sandbox, parallel, work_us, calls)| Want { sandbox, parallel, work_us, calls })
    })
}
