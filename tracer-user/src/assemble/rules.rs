//! Each rule by itself.

use std::{net::Ipv4Addr, sync::Arc};

use tracer_ebpf::{
    record::{Body, End, Header, Reason, Record, Rule, START_FIRST, START_INBOUND, START_UNSAMPLED, Start, Tag, Wire},
    traceparent::Context,
};

use super::{Assembler, Config, SandboxInfo, What, trees::blank};
use crate::path::{Call, Invocation, JoinedBy, Late, Line, Node, Path, SpanId};

const MS: u64 = 1_000_000;
const CLIENT: u16 = 40_000;
const SERVER: u16 = 8080;

/// A request to write records of. Sandboxes share a network namespace unless told otherwise.
#[derive(Clone, Copy)]
struct Span {
    sandbox: u64,
    id: u64,
    parent: u64,
    conn: u64,
    sequence: u32,
    wire: Wire,
    tag: Tag,
    flags: u8,
}

fn wire(local: u16, remote: u16) -> Wire {
    let address = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
    Wire { local: address, remote: address, netns: 1, local_port: local, remote_port: remote, pad: 0 }
}

fn invocation(sandbox: u64, id: u64) -> Span {
    Span { sandbox, id, parent: 0, conn: id, sequence: 0, wire: wire(SERVER, CLIENT), tag: Tag::Off, flags: 0 }
}

fn call(sandbox: u64, id: u64, parent: u64) -> Span {
    let wire = wire(CLIENT, SERVER);
    Span { sandbox, id, parent, conn: id, sequence: 0, wire, tag: Tag::Injected, flags: 0 }
}

impl Span {
    fn inbound(self, parent: u64) -> Self {
        Self { parent, flags: self.flags | START_INBOUND, ..self }
    }

    fn flag(self, flags: u8) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    fn tag(self, tag: Tag) -> Self {
        Self { tag, ..self }
    }

    fn wire(self, wire: Wire) -> Self {
        Self { wire, ..self }
    }
}

struct Run {
    assembler: Assembler,
    at_ns: u64,
}

impl Run {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self { assembler: Assembler::new(config), at_ns: 1000 * MS }
    }

    /// A record, one ms after the last.
    fn record(&mut self, sandbox: u64, body: Body<'_>) {
        self.at_ns += MS;
        let header = Header { at_ns: self.at_ns, sandbox, kind: 0, tail_len: 0, pid: 5 };
        self.assembler.record(&Record { header, body });
    }

    fn start_of(span: Span, rule: Rule) -> Start {
        let context = Context { trace_id: [1, 2], span_id: span.id, flags: 1, pad: [0; 7] };
        let start = blank(context, span.parent, span.flags, rule, span.tag);
        Start { conn: span.conn, sequence: span.sequence, wire: span.wire, ..start }
    }

    fn enter(&mut self, span: Span) {
        let head = b"GET /x?q HTTP/1.1\r\nHost: h\r\n\r\n";
        self.record(span.sandbox, Body::InvocationStart(Self::start_of(span, Rule::None), head));
    }

    fn call(&mut self, span: Span) {
        let head = b"GET /x?q HTTP/1.1\r\nHost: h\r\n\r\n";
        let rule = if span.parent == 0 { Rule::None } else { Rule::Exclusive };
        self.record(span.sandbox, Body::CallStart(Self::start_of(span, rule), head));
    }

    fn end_of(span: Span, status: u16, reason: Reason, errno: u32) -> End {
        let (conn, sequence, reason) = (span.conn, span.sequence, reason as u8);
        End { conn, span: span.id, first_byte_ns: 0, sequence, status, reason, retransmits: 2, errno, rtt_us: 150 }
    }

    fn leave(&mut self, span: Span) {
        self.record(span.sandbox, Body::InvocationEnd(Self::end_of(span, 200, Reason::Complete, 0)));
    }

    fn answer(&mut self, span: Span) {
        self.record(span.sandbox, Body::CallEnd(Self::end_of(span, 200, Reason::Complete, 0)));
    }

    /// What is given out now.
    fn lines(&mut self) -> Vec<Line> {
        self.assembler.advance(self.at_ns);
        assert!(self.assembler.totals().balanced());
        std::iter::from_fn(|| self.assembler.take()).collect()
    }

    fn path(&mut self) -> Path {
        let mut lines = self.lines();
        match (lines.pop(), lines.is_empty()) {
            (Some(Line::Path(path)), true) => path,
            other => panic!("not one path: {other:?}, {lines:?}"),
        }
    }

    fn late(&mut self) -> Late {
        let mut lines = self.lines();
        match (lines.pop(), lines.is_empty()) {
            (Some(Line::Late(late)), true) => late,
            other => panic!("not one part: {other:?}, {lines:?}"),
        }
    }
}

fn as_invocation(node: &Node) -> &Invocation {
    match node {
        Node::Invocation(invocation) => invocation,
        Node::Call(call) => panic!("a call: {call:?}"),
    }
}

fn as_call(node: &Node) -> &Call {
    match node {
        Node::Call(call) => call,
        Node::Invocation(invocation) => panic!("an invocation: {invocation:?}"),
    }
}

/// The invocation that the root's only call caused.
fn callee(path: &Path) -> Option<&Invocation> {
    as_call(&path.root.children()[0]).children.first().map(as_invocation)
}

/// One invocation calls, another is entered; both end.
fn pair(call: Span, callee: Span) -> (Run, Vec<Line>) {
    let mut run = Run::new();
    let root = invocation(1, 100).wire(wire(80, 9));
    run.enter(root);
    run.call(call);
    run.enter(callee);
    run.leave(callee);
    run.answer(call);
    run.leave(root);
    let lines = run.lines();
    (run, lines)
}

fn joined_by(lines: &[Line]) -> Option<JoinedBy> {
    let root = |line: &Line| match line {
        Line::Path(path) => callee(path).and_then(|callee| callee.joined_by),
        Line::Late(late) => panic!("{late:?}"),
    };
    let longest =
        lines.iter().rev().find(|line| matches!(line, Line::Path(path) if path.root.span_id() == SpanId(100)));
    longest.and_then(root)
}

#[test]
fn a_path_says_what_the_contract_promises() {
    let mut run = Run::new();
    run.assembler.clock(1_795_424_400_000 * MS as i64 - 1000 * MS as i64);
    let info = |function: &str, path: &str| SandboxInfo {
        function: Arc::from(function),
        path: Arc::from(path),
        resource: None,
    };
    run.assembler.sandbox(1, info("checkout", "/fns/checkout-1"));
    run.assembler.sandbox(2, info("inventory", "/fns/inventory-1"));
    let (root, out, inner) = (invocation(1, 100).wire(wire(80, 9)), call(1, 7, 100), invocation(2, 8).inbound(7));
    run.enter(root);
    run.call(out);
    run.enter(inner);
    run.leave(inner);
    run.answer(out);
    assert!(run.lines().is_empty());
    run.leave(root);
    let json = serde_json::to_string(&run.path()).unwrap();
    let expect = concat!(
        r#"{"fntrace":1,"type":"path","trace_id":"00000000000000010000000000000002","start":"2026-11-23T09:00:00.001000Z","#,
        r#""duration_us":5000,"complete":true,"root":{"kind":"invocation","span_id":"0000000000000064","#,
        r#""function":"checkout","sandbox":"/fns/checkout-1","pid":5,"start_us":0,"duration_us":5000,"cold":false,"#,
        r#""http":{"method":"GET","path":"/x","status":200},"children":[{"kind":"call","span_id":"0000000000000007","#,
        r#""to":"inventory","peer":"127.0.0.1:8080","host":"h","start_us":1000,"duration_us":3000,"#,
        r#""http":{"method":"GET","path":"/x","status":200},"tag":"injected","parent_by":"exclusive","#,
        r#""after_response":false,"channel":{"rtt_us":150,"retransmits":2},"#,
        r#""children":[{"kind":"invocation","span_id":"0000000000000008","function":"inventory","#,
        r#""sandbox":"/fns/inventory-1","pid":5,"start_us":2000,"duration_us":1000,"cold":false,"#,
        r#""http":{"method":"GET","path":"/x","status":200},"joined_by":"tag","children":[]}]}]}}"#,
    );
    assert_eq!(json, expect);
    let more = json.replacen("{", r#"{"key_of_the_future":[1],"#, 1);
    assert!(matches!(Line::parse(&more).unwrap(), Some(Line::Path(_))));
    assert_eq!(Line::parse(r#"{"fntrace":1,"type":"stats"}"#).unwrap(), None);
    assert!(Line::parse(&json.replace("\"fntrace\":1", "\"fntrace\":2")).is_err());
}

#[test]
fn a_span_in_flight_has_its_standing() {
    let mut run = Run::new();
    let (root, out, inner) = (invocation(1, 100).wire(wire(80, 9)), call(1, 7, 100), invocation(2, 8).inbound(7));
    let further = Span { conn: 900, ..call(2, 9, 8) };
    run.enter(root);
    run.call(out);
    let stands = |run: &Run, what, id| {
        let standing = run.assembler.standing(what, SpanId(id))?;
        let host = standing.host.map(str::to_owned);
        Some((standing.root.0, standing.above.map(|id| id.0), standing.caller.map(|id| id.0), standing.function, host))
    };
    assert_eq!(stands(&run, What::Call, 7), Some((100, Some(100), Some(100), None, Some("h".to_owned()))));
    run.enter(inner);
    run.call(further);
    let function = |id| Some(Arc::from(format!("cgroup:{id}")));
    assert_eq!(stands(&run, What::Invocation, 100), Some((100, None, None, function(1), None)));
    assert_eq!(stands(&run, What::Call, 7).and_then(|standing| standing.3), function(2));
    assert_eq!(stands(&run, What::Invocation, 8), Some((100, Some(7), None, function(2), None)));
    // What caused the invocation that makes the call is the call above it.
    assert_eq!(stands(&run, What::Call, 9).map(|standing| (standing.1, standing.2)), Some((Some(8), Some(7))));
    assert_eq!(stands(&run, What::Call, 100), None);
    [further, out].into_iter().for_each(|span| run.answer(span));
    [inner, root].into_iter().for_each(|span| run.leave(span));
    run.lines();
    assert_eq!(stands(&run, What::Call, 7), None, "given out");
}

#[test]
fn joins() {
    let out = call(1, 7, 100);
    assert_eq!(joined_by(&pair(out, invocation(2, 8).inbound(7)).1), Some(JoinedBy::Tag));
    assert_eq!(joined_by(&pair(out.tag(Tag::Off), invocation(2, 8)).1), Some(JoinedBy::Wire));
    // Another sequence is another request.
    let next = Span { sequence: 1, ..invocation(2, 8) };
    assert_eq!(joined_by(&pair(out.tag(Tag::Off), next).1), None);
    // Loopback of another namespace is another address, and of an unknown one may be.
    for netns in [0, 2] {
        let elsewhere = invocation(2, 8).wire(Wire { netns, ..wire(SERVER, CLIENT) });
        assert_eq!(joined_by(&pair(out.tag(Tag::Off), elsewhere).1), None);
    }
    // What is tagged may pass through a proxy, and then the wires differ.
    let behind = invocation(2, 8).inbound(7).wire(wire(9999, 50_000));
    assert_eq!(joined_by(&pair(out, behind).1), Some(JoinedBy::Tag));
    // A span id that was not sent joins nothing.
    assert_eq!(joined_by(&pair(out.tag(Tag::Off), behind).1), None);
}

#[test]
fn the_wire_contradicts_a_tag() {
    // The call went straight to this server, on another connection.
    let forged = invocation(2, 8).inbound(7).wire(wire(SERVER, CLIENT + 1));
    let (run, lines) = pair(call(1, 7, 100), forged);
    assert_eq!((joined_by(&lines), lines.len()), (None, 2));
    assert_eq!((run.assembler.totals().joins.contradicted, run.assembler.totals().outside_parents), (1, 1));
}

#[test]
fn across_namespaces_the_wire_yields_to_the_tag() {
    let ends = |netns, local, remote, from: u16, to: u16| Wire {
        local: [local; 16],
        remote: [remote; 16],
        netns,
        local_port: from,
        remote_port: to,
        pad: 0,
    };
    let out = call(1, 7, 100).wire(ends(1, 1, 2, CLIENT, SERVER));
    let inner = invocation(2, 8).wire(ends(2, 2, 1, SERVER, CLIENT));
    assert_eq!(joined_by(&pair(out.tag(Tag::Off), inner).1), Some(JoinedBy::Wire));
    // The call carried a tag; what has the same addresses without it is an imitation.
    assert_eq!(joined_by(&pair(out, inner).1), None);
    assert_eq!(joined_by(&pair(out, inner.inbound(99)).1), None);
    assert_eq!(joined_by(&pair(out, inner.inbound(7)).1), Some(JoinedBy::Tag));
}

#[test]
fn a_connection_that_two_namespaces_claim_joins_nothing_by_the_wire() {
    let mut run = Run::new();
    let address = |last| Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets();
    let seen_in = |netns| Wire { local: address(1), remote: address(2), netns, ..wire(CLIENT, SERVER) };
    run.call(call(1, 10, 0).tag(Tag::Off).wire(seen_in(1)));
    run.call(call(2, 20, 0).tag(Tag::Off).wire(seen_in(2)));
    assert_eq!(run.assembler.totals().joins.ambiguous, 1);
    let server = Wire { local: address(2), remote: address(1), netns: 3, ..wire(SERVER, CLIENT) };
    run.enter(invocation(3, 30).wire(server));
    run.leave(invocation(3, 30).wire(server));
    let lines = run.lines();
    assert!(matches!(&lines[..], [Line::Path(path)] if matches!(path.root, Node::Invocation(_))), "{lines:?}");
}

#[test]
fn sandboxes_beyond_the_table_are_counted() {
    let mut run = Run::new();
    for id in 0..=super::sandboxes::SANDBOXES_MAX as u64 {
        run.record(id, Body::SandboxBorn(b"/x"));
    }
    assert_eq!(run.assembler.totals().sandboxes_full, 1);
}

#[test]
fn a_tag_joins_once() {
    let mut run = Run::new();
    let (root, out) = (invocation(1, 100).wire(wire(80, 9)), call(1, 7, 100));
    let (first, replay) = (invocation(2, 8).inbound(7), invocation(3, 9).inbound(7).wire(wire(70, 71)));
    run.enter(root);
    run.call(out);
    run.enter(first);
    run.enter(replay);
    run.leave(replay);
    let path = run.path();
    assert_eq!(as_invocation(&path.root).outside_parent, Some(SpanId(7)));
    run.leave(first);
    run.answer(out);
    run.leave(root);
    assert_eq!(callee(&run.path()).map(|callee| callee.span_id), Some(SpanId(8)));
    assert_eq!((run.assembler.totals().joins.replayed, run.assembler.totals().joins.tag), (1, 1));
}

#[test]
fn a_tenant_cannot_adopt_an_outside_callers_id() {
    let mut run = Run::new();
    // Two invocations of one outside caller; the first one's tenant calls under the caller's own id.
    let mine = invocation(1, 100).inbound(7).wire(wire(80, 9));
    let theirs = invocation(2, 8).inbound(7).wire(wire(81, 9));
    run.enter(mine);
    run.call(call(1, 7, 100).tag(Tag::Kept));
    run.enter(theirs);
    run.leave(theirs);
    assert_eq!(as_invocation(&run.path().root).outside_parent, Some(SpanId(7)));
    assert_eq!(run.assembler.totals().joins.refused, 1);
}

#[test]
fn cold_means_that_the_birth_was_seen() {
    for (born, first, cold) in [(true, START_FIRST, true), (false, START_FIRST, false), (true, 0, false)] {
        let mut run = Run::new();
        if born {
            run.record(1, Body::SandboxBorn(b"/fns/a"));
        }
        let root = invocation(1, 100).flag(first);
        run.enter(root);
        run.leave(root);
        let path = run.path();
        let root = as_invocation(&path.root);
        assert_eq!((root.cold, &*root.sandbox), (cold, if born { "/fns/a" } else { "cgroup:1" }));
    }
}

#[test]
fn unsampled_paths_are_counted_not_printed() {
    let mut run = Run::new();
    let (root, out) = (invocation(1, 100).flag(START_UNSAMPLED), call(1, 7, 100));
    run.enter(root);
    run.leave(root);
    assert!(run.lines().is_empty());
    run.call(out);
    run.answer(out);
    assert!(run.lines().is_empty());
    assert_eq!((run.assembler.totals().unsampled, run.assembler.totals().unsampled_spans), (2, 2));
}

#[test]
fn calls_without_an_invocation_are_roots() {
    let mut run = Run::new();
    let timer = call(1, 7, 0);
    run.call(timer);
    run.answer(timer);
    let path = run.path();
    assert!(path.complete && as_call(&path.root).parent_by == "none");
    // One whose invocation was not seen, and one that names another sandbox's.
    run.enter(invocation(2, 100));
    for (orphan, parent) in [(8, 99), (9, 100)] {
        let orphan = call(1, orphan, parent);
        run.call(orphan);
        run.answer(orphan);
        let path = run.path();
        assert!(!path.complete);
        assert!(path.missing[0].contains(&SpanId(parent).to_string()), "{:?}", path.missing);
    }
    assert_eq!((run.assembler.totals().orphans, run.assembler.totals().foreign_parents), (2, 1));
}

#[test]
fn a_path_waits_for_open_calls_then_they_come_late() {
    let mut run = Run::new();
    let (root, out) = (invocation(1, 100), call(1, 7, 100));
    run.enter(root);
    run.call(out);
    run.leave(root);
    run.at_ns += Config::default().settle_ns - 1;
    assert!(run.lines().is_empty());
    run.at_ns += 1;
    let path = run.path();
    assert!(!path.complete && !as_call(&path.root.children()[0]).ended);
    assert_eq!(path.missing, ["the end of call 0000000000000007"]);
    // Its end, then a call that begins when all is over.
    run.answer(out);
    let late = run.late();
    assert_eq!((late.parent_span_id, late.root.span_id()), (Some(SpanId(100)), SpanId(7)));
    assert_eq!(as_call(&late.root).host.as_deref(), Some("h"));
    assert!(late.complete && late.root.duration_us().is_some());
    let after = call(1, 9, 100);
    run.call(after);
    run.answer(after);
    assert_eq!(run.late().parent_span_id, Some(SpanId(100)));
    assert_eq!(run.assembler.totals().late, 2);
}

#[test]
fn losses_mark_the_paths_in_flight_and_no_others() {
    let mut run = Run::new();
    let (before, after) = (invocation(1, 100), invocation(1, 101));
    run.enter(before);
    run.assembler.lost(3);
    run.leave(before);
    assert_eq!(run.path().missing, ["3 records were lost while it ran"]);
    run.enter(after);
    run.assembler.lost(3);
    run.leave(after);
    assert!(run.path().complete);
}

#[test]
fn the_oldest_path_gives_way() {
    let mut run = Run::with(Config { max_open: 2, ..Config::default() });
    for id in 100..103 {
        run.enter(invocation(1, id));
    }
    let path = run.path();
    assert_eq!((path.root.span_id(), path.complete), (SpanId(100), false));
    assert_eq!((run.assembler.totals().evicted, run.assembler.totals().open), (1, 2));
    run.leave(invocation(1, 100));
    assert_eq!(run.late().parent_span_id, None);
    run.assembler.finish();
    assert_eq!(run.lines().len(), 2);
}

#[test]
fn failures_are_named() {
    let mut run = Run::new();
    let (root, refused, cut) = (invocation(1, 100), call(1, 7, 100), call(1, 8, 100));
    run.enter(root);
    run.call(refused);
    run.record(1, Body::CallEnd(Run::end_of(refused, 0, Reason::ConnectFailed, 111)));
    run.call(cut);
    run.record(1, Body::CallEnd(Run::end_of(cut, 0, Reason::Closed, 0)));
    run.leave(root);
    let path = run.path();
    let errors: Vec<_> = path.root.children().iter().map(|child| as_call(child).error.clone()).collect();
    assert_eq!(errors, [Some("connection refused".into()), Some("closed before the response".into())]);
    assert!(path.complete);
}

#[test]
fn no_path_waits_for_an_opaque_connection() {
    let mut run = Run::new();
    let (root, pool) = (invocation(1, 100), call(1, 7, 100).tag(Tag::NoRequest));
    run.enter(root);
    run.record(1, Body::OpaqueStart(Run::start_of(pool, Rule::Exclusive)));
    run.leave(root);
    let path = run.path();
    let child = as_call(&path.root.children()[0]);
    assert_eq!((path.complete, child.ended, child.protocol.as_deref()), (true, false, Some("opaque")));
    run.record(1, Body::OpaqueEnd(Run::end_of(pool, 0, Reason::Closed, 0)));
    assert!(as_call(&run.late().root).ended);
}

#[test]
fn repeated_and_strange_records_are_counted() {
    let mut run = Run::new();
    let root = invocation(1, 100);
    run.enter(root);
    run.enter(root);
    run.leave(Span { sequence: 5, ..root });
    run.leave(root);
    run.leave(root);
    assert!(!run.assembler.read(b"no record"));
    assert_eq!(run.lines().len(), 1);
    let totals = run.assembler.totals();
    assert_eq!((totals.duplicates, totals.ends_unknown, totals.ends_duplicate, totals.undecodable), (1, 1, 1, 1));
}

#[test]
fn an_invocation_that_was_printed_finds_its_call_after_all() {
    let mut run = Run::new();
    let (root, inner) = (invocation(1, 100).wire(wire(80, 9)), invocation(2, 8).inbound(7));
    run.enter(root);
    let out = Run::start_of(call(1, 7, 100), Rule::Exclusive);
    let sent_ns = run.at_ns;
    run.enter(inner);
    run.leave(inner);
    assert_eq!(as_invocation(&run.path().root).outside_parent, Some(SpanId(7)));
    let header = Header { at_ns: sent_ns, sandbox: 1, kind: 0, tail_len: 0, pid: 5 };
    run.assembler.record(&Record { header, body: Body::CallStart(out, b"") });
    let late = run.late();
    assert_eq!((late.parent_span_id, late.root.span_id()), (Some(SpanId(7)), SpanId(8)));
    assert_eq!(as_invocation(&late.root).joined_by, Some(JoinedBy::Tag));
}
