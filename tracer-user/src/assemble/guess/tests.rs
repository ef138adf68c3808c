//! What no rule could place: on functions whose truth is known, and on any call trees whose parents are hidden.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracer_ebpf::{
    record::{Body, End, Header, Kind, Reason, Record, Rule, START_WEAK, Start, Tag, Wire, as_bytes, decode},
    traceparent::Context,
};

use super::super::{
    Assembler, Config,
    trees::{Event, World, blank, want},
};
use super::{Hint, InvocationId, weigh};
use crate::{
    path::{Line, Node},
    sink::ndjson::Ndjson,
};

const US: u64 = 1000;
const MS: u64 = 1000 * US;

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn part(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1_u32 << 31)
    }

    /// `least` ns and more, `usual` more on average.
    fn delay(&mut self, least: u64, usual: u64) -> u64 {
        least + (-(1.0 - self.part()).ln() * usual as f64) as u64
    }
}

/// A function on an event loop: each request waits for a timer, and calls; how many requests at a time.
struct Timers {
    at_once: usize,
    /// A timer of so long, and so much more on average.
    timer: (u64, u64),
    /// Whether a call carries the id that its request came with.
    ids: bool,
}

/// Its records in order of time, and who made each call.
fn timers(of: &Timers, requests: u64) -> (Vec<(Header, OwnedBody)>, BTreeMap<u64, u64>) {
    let (mut dice, mut out, mut truth) = (Dice(3), Vec::new(), BTreeMap::new());
    let mut free = vec![MS; of.at_once];
    for number in 1..=requests {
        let (client, start) = free.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
        let (request, call) = (2 * number, 2 * number + 1);
        let head = |path: &str| {
            let id = if of.ids { format!("x-request-id: r{number}\r\n") } else { String::new() };
            format!("GET {path} HTTP/1.1\r\nHost: h\r\n{id}\r\n").into_bytes()
        };
        let called = start + dice.delay(100 * US, 50 * US) + dice.delay(of.timer.0, of.timer.1);
        let answered = called + dice.delay(MS, MS);
        let end = answered + dice.delay(100 * US, 30 * US);
        out.extend(exchange(false, request, (start, end), &head("/")));
        out.extend(exchange(true, call, (called, answered), &head("/stock")));
        truth.insert(call, request);
        free[client] = end + dice.delay(50 * US, 500 * US);
    }
    out.sort_by_key(|(header, _)| header.at_ns);
    (out, truth)
}

enum OwnedBody {
    Start(bool, Start, Vec<u8>),
    End(bool, End),
}

impl OwnedBody {
    fn body(&self) -> Body<'_> {
        match self {
            Self::Start(true, start, head) => Body::CallStart(*start, head),
            Self::Start(false, start, head) => Body::InvocationStart(*start, head),
            Self::End(true, end) => Body::CallEnd(*end),
            Self::End(false, end) => Body::InvocationEnd(*end),
        }
    }
}

fn exchange(call: bool, id: u64, (start_ns, end_ns): (u64, u64), head: &[u8]) -> [(Header, OwnedBody); 2] {
    let context = Context { trace_id: [id, 1], span_id: id, flags: 1, pad: [0; 7] };
    let wire = Wire { remote: [u8::from(call); 16], remote_port: 80, ..Wire::default() };
    let live = if call { 8 } else { 0 };
    let start = Start { conn: id, wire, live, ..blank(context, 0, 0, Rule::None, Tag::Off) };
    let end = End {
        conn: id,
        span: id,
        first_byte_ns: 0,
        sequence: 0,
        status: 200,
        reason: Reason::Complete as u8,
        retransmits: 0,
        errno: 0,
        rtt_us: 0,
    };
    let header = |at_ns| Header { at_ns, sandbox: 1, kind: 0, tail_len: 0, pid: 7 };
    [(header(start_ns), OwnedBody::Start(call, start, head.to_vec())), (header(end_ns), OwnedBody::End(call, end))]
}

/// How many inferred edges are right, and stated to be, in the second half of a run; and how many calls stay alone.
#[derive(Debug, Default)]
struct Outcome {
    right: f64,
    inferred: f64,
    stated: f64,
    alone: f64,
}

fn outcome(of: &Timers, requests: u64) -> Outcome {
    let (records, truth) = timers(of, requests);
    let mut assembler = Assembler::new(Config { infer_by_timing: true, infer_rate: 100_000, ..Config::default() });
    let mut outcome = Outcome::default();
    for (header, body) in &records {
        assembler.record(&Record { header: *header, body: body.body() });
        assembler.advance(header.at_ns);
    }
    assembler.finish();
    let totals = assembler.totals().clone();
    assert!(totals.balanced() && totals.inference.held > requests / 2, "{totals:?}");
    assert_eq!(totals.inference.held, totals.inference.placed + totals.inference.unplaced);
    assert_eq!(totals.late, 0, "a path that waits for a call is not given out");
    while let Some(line) = assembler.take() {
        let Line::Path(path) = line else { continue };
        match path.root {
            Node::Call(_) => outcome.alone += 1.0,
            Node::Invocation(root) => {
                for child in root.children.iter().filter(|child| child.span_id().0 > requests) {
                    let Node::Call(call) = child else { panic!("{child:?}") };
                    assert_eq!((&*call.parent_by, call.trace_id.is_some()), ("inferred", true));
                    let p = call.probability.unwrap();
                    assert!((0.5..=1.0).contains(&p), "{p}");
                    outcome.inferred += 1.0;
                    outcome.stated += p;
                    outcome.right += f64::from(u8::from(truth[&call.span_id.0] == root.span_id.0));
                }
            }
        }
    }
    outcome
}

#[test]
fn a_timer_of_its_own_length_tells_the_request() {
    let seen = outcome(&Timers { at_once: 8, timer: (10 * MS, 100 * US), ids: false }, 2000);
    assert!(seen.inferred > 900.0 && seen.right / seen.inferred > 0.9, "{seen:?}");
    assert!((seen.right - seen.stated).abs() / seen.inferred < 0.05, "{seen:?}");
}

#[test]
fn where_timers_are_of_any_length_the_end_of_the_request_tells() {
    let seen = outcome(&Timers { at_once: 8, timer: (MS, 10 * MS), ids: false }, 2000);
    assert!(seen.inferred > 900.0 && seen.right / seen.inferred > 0.9, "{seen:?}");
    assert!((seen.right - seen.stated).abs() / seen.inferred < 0.08, "{seen:?}");
}

#[test]
fn an_id_that_is_handed_on_tells_the_request() {
    let seen = outcome(&Timers { at_once: 8, timer: (MS, 10 * MS), ids: true }, 2000);
    assert!(seen.inferred > 950.0 && seen.right / seen.inferred > 0.98, "{seen:?}");
}

/// The records of a world with no rule for any call.
fn hidden(events: &[Event]) -> Vec<Event> {
    let hide = |event: &Event| match decode(&event.bytes) {
        Some(Record { header, body: Body::CallStart(start, head) }) => {
            let start = Start { parent: 0, rule: Rule::None as u8, live: 2, ..start };
            Event { bytes: [as_bytes(&header), as_bytes(&start), head].concat(), ..event.clone() }
        }
        _ => event.clone(),
    };
    events.iter().map(hide).collect()
}

/// What a node says of itself, with its parent.
fn nodes<'a>(node: &'a Node, above: Option<&'a Node>, out: &mut Vec<(&'a Node, Option<&'a Node>)>) {
    out.push((node, above));
    node.children().iter().for_each(|child| nodes(child, Some(node), out));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_span_is_given_out_once_and_guesses_stay_possible(
        wants in prop::collection::vec(want(), 1..8),
        every in 1..20usize,
        max_open in 3..200usize,
        infer_min in 0.0..1.2f64,
    ) {
        let world = World::new(&wants, true);
        let events = hidden(&world.events);
        let run = || {
            let mut assembler = Assembler::new(Config { max_open, infer_min, ..Config::default() });
            let mut lines = Vec::new();
            for (index, event) in events.iter().enumerate() {
                assert!(assembler.read(&event.bytes));
                if index % every == every - 1 {
                    assembler.advance(event.at_ns);
                    lines.extend(std::iter::from_fn(|| assembler.take()));
                }
            }
            assembler.finish();
            lines.extend(std::iter::from_fn(|| assembler.take()));
            let mut sink = Ndjson::new(Vec::new());
            lines.iter().for_each(|line| sink.object(line).unwrap());
            (assembler.totals().clone(), lines, sink.into_inner())
        };
        let (totals, lines, bytes) = run();
        prop_assert_eq!(&run().2, &bytes);
        prop_assert!(totals.balanced() && totals.open == 0, "{:?}", totals);
        let inference = &totals.inference;
        prop_assert_eq!(inference.held, inference.placed + inference.unplaced);
        prop_assert_eq!(totals.rules[Rule::Inferred as usize], inference.placed);
        prop_assert!(infer_min < 1.0 || inference.held == 0);
        for line in &lines {
            let root = match line { Line::Path(path) => &path.root, Line::Late(late) => &late.root };
            let mut all = Vec::new();
            nodes(root, None, &mut all);
            for (node, above) in all {
                let (Node::Call(call), Some(Node::Invocation(above))) = (node, above) else { continue };
                prop_assert!(&*call.parent_by == "inferred" && call.probability.unwrap() >= infer_min - 0.001);
                // It was live when the call was made.
                prop_assert!(above.start_us <= call.start_us);
                prop_assert!(above.duration_us.is_none_or(|took| above.start_us + took as i64 + 1 >= call.start_us));
            }
        }
    }
}

#[test]
fn two_witnesses_that_agree_are_believed_more_and_one_that_is_surer_wins() {
    let hint = |maker, p| Some(Hint { maker: InvocationId(maker), p, after_response: false });
    let found = |maker, p| Some((InvocationId(maker), p));
    let (who, p) = weigh(found(1, 0.8), hint(1, 0.8), 2).unwrap();
    assert!(who == InvocationId(1) && p > 0.9, "{who:?} {p}");
    let (who, p) = weigh(found(1, 0.6), hint(2, 0.95), 2).unwrap();
    assert!(who == InvocationId(2) && (0.9..0.95).contains(&p), "{who:?} {p}");
    let (who, p) = weigh(found(1, 0.95), hint(2, 0.6), 8).unwrap();
    assert!(who == InvocationId(1) && p < 0.95, "{who:?} {p}");
    assert_eq!(weigh(None, hint(2, 0.7), 8).unwrap(), (InvocationId(2), 0.7));
    assert_eq!(weigh(found(1, 0.7), None, 8).unwrap(), (InvocationId(1), 0.7));
    assert!(weigh(None, None, 8).is_none());
    for (p, q, n) in [(0.0, 0.0, 1), (1.0, 1.0, 1), (1.0, 1.0, 9), (0.0, 1.0, 1), (1.0, 0.0, 3)] {
        for maker in [1, 2] {
            let (_, p) = weigh(found(1, p), hint(maker, q), n).unwrap();
            assert!((0.0..=1.0).contains(&p));
        }
    }
}

/// What the kernel half only believes is never given out as the rule's fact: it is inferred, with what it is worth, or,
/// below the least that is asked for, nobody's.
#[test]
fn a_belief_of_the_kernel_half_is_a_guess_in_the_output() {
    for (trust, infer_min, expected) in [(230, 0.5, "inferred"), (100, 0.5, "none"), (230, 1.0, "none")] {
        let mut assembler = Assembler::new(Config { infer_min, settle_ns: MS, ..Config::default() });
        let context = |span_id| Context { trace_id: [1, 2], span_id, flags: 1, pad: [0; 7] };
        let mut give = |kind: Kind, at_ns, start: Start| {
            let header = Header { at_ns, sandbox: 7, kind: kind as u16, tail_len: 0, pid: 1 };
            assembler.read(&[as_bytes(&header), as_bytes(&start)].concat());
        };
        give(Kind::InvocationStart, MS, Start { conn: 1, ..blank(context(5), 0, 0, Rule::None, Tag::Off) });
        let call = blank(context(6), 5, START_WEAK, Rule::Exclusive, Tag::Off);
        give(Kind::CallStart, 2 * MS, Start { conn: 2, trust, ..call });
        assembler.finish();
        let mut by = Vec::new();
        while let Some(line) = assembler.take() {
            let Line::Path(path) = line else { panic!("{line:?}") };
            match path.root {
                Node::Call(call) => by.push(call.parent_by),
                Node::Invocation(root) => by.extend(root.children.into_iter().map(|child| match child {
                    Node::Call(call) => call.parent_by,
                    Node::Invocation(_) => panic!("it has no invocation below it"),
                })),
            }
        }
        assert_eq!(by, [expected], "{trust} of 255, at least {infer_min}");
    }
}
