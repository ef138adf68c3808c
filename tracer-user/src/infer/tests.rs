//! On traces made here, whose truth is known; and on anything at all.

use std::path::Path;

use proptest::prelude::*;

use super::{
    calltrees::{Span, Trace, compress, hide, read},
    score::{Options, Score, score},
    *,
};

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A delay in µs: at least `least`, mostly under three times `usual`.
    fn delay(&mut self, least: i64, usual: i64) -> i64 {
        let part = (self.next() % 10_000) as f64 / 10_000.0;
        least + (-(1.0 - part).ln() * usual as f64) as i64
    }
}

fn span(trace: &mut Trace, parent: Option<usize>, service: &str, kind: &str, op: &str, start: i64, took: i64) -> usize {
    let id = trace.spans.len();
    trace.spans.push(Span {
        id: id.to_string(),
        parent: parent.map(|parent| parent.to_string()),
        service: service.into(),
        op: op.into(),
        kind: kind.into(),
        start_us: start,
        duration_us: took,
    });
    id
}

/// A shop: the front asks for stock, then for price and for stars at once; some ask for nothing.
fn shop(count: usize, gap: i64) -> Vec<Trace> {
    let mut dice = Dice(7);
    let mut start = 1_700_000_000_000_000;
    let mut traces = Vec::new();
    for number in 0..count {
        start += dice.delay(20, gap);
        let mut trace = Trace { spans: Vec::new() };
        let root = span(&mut trace, None, "front", "server", "/", start, 0);
        let mut at = start + dice.delay(150, 30);
        if number % 5 != 0 {
            let call = |trace: &mut Trace, to: &str, at: i64, took: i64| {
                let call = span(trace, Some(root), "front", "client", to, at, took);
                span(trace, Some(call), to, "server", to, at + 50, took - 100);
            };
            let took = dice.delay(900, 400);
            call(&mut trace, "stock", at, took);
            at += took + dice.delay(80, 20);
            let (price, stars) = (dice.delay(700, 300), dice.delay(500, 600));
            call(&mut trace, "price", at, price);
            let later = dice.delay(10, 5);
            call(&mut trace, "stars", at + later, stars);
            at += price.max(later + stars);
        }
        let end = at + dice.delay(60, 15);
        trace.spans[root].duration_us = end - start;
        traces.push(trace);
    }
    traces
}

fn whole(score: &Score) -> f64 {
    score.traces.right as f64 / score.traces.of as f64
}

#[test]
fn learns_the_graph_and_tells_overlapping_requests_apart() {
    let score = score(&shop(400, 1200), &Options::default());
    assert!(whole(&score) > 0.97, "{score}");
    assert!(score.first_come.right < score.traces.right, "{score}");
    assert!(score.top5.right >= score.traces.right && score.ece < 0.02, "{score}");
}

#[test]
fn denser_is_harder_but_not_hopeless() {
    let mut traces = shop(400, 1200);
    compress(&mut traces, 3.0);
    let score = score(&traces, &Options::default());
    assert!(whole(&score) > 0.85, "{score}");
}

#[test]
fn compressing_keeps_the_inside_of_a_trace() {
    let (before, mut after) = (shop(50, 1000), shop(50, 1000));
    compress(&mut after, 4.0);
    let starts = |traces: &[Trace]| traces.iter().map(|trace| trace.spans[0].start_us).collect::<Vec<_>>();
    assert_eq!(4 * (starts(&after)[49] - starts(&after)[0]) / 10, (starts(&before)[49] - starts(&before)[0]) / 10);
    for (before, after) in before.iter().zip(&after) {
        let offsets = |trace: &Trace| {
            let first = trace.spans[0].start_us;
            trace.spans.iter().map(|span| (span.start_us - first, span.duration_us)).collect::<Vec<_>>()
        };
        assert_eq!(offsets(before), offsets(after));
    }
}

#[test]
fn neither_ids_nor_the_order_of_the_input_say_anything() {
    let traces = shop(300, 800);
    let figures = |traces: &[Trace], seed: u64| {
        let score = score(traces, &Options { seed, ..Options::default() });
        (score.edges, score.traces, score.top5, score.ece.to_bits())
    };
    let first = figures(&traces, 1);
    let mut mixed = traces.clone();
    mixed.reverse();
    for (number, trace) in mixed.iter_mut().enumerate() {
        trace.spans.reverse();
        for span in &mut trace.spans {
            span.id = format!("x{}{number}", span.id);
            span.parent = span.parent.as_ref().map(|parent| format!("x{parent}{number}"));
        }
    }
    for seed in 2..5 {
        assert_eq!(figures(&mixed, seed), first, "seed {seed}");
    }
}

#[test]
fn small_windows_decide_nearly_as_well() {
    let traces = shop(600, 1500);
    let all = score(&traces, &Options::default());
    let some = score(&traces, &Options { window: 400, ..Options::default() });
    assert!(whole(&some) > whole(&all) - 0.03, "{some}{all}");
}

#[test]
fn a_call_that_nobody_can_have_made_has_no_invocation() {
    let mut inference = Inference::new(Config::default());
    let invocation = Invocation {
        service: 1,
        op: 1,
        caller: None,
        start_us: 1000,
        end_us: 2000,
        open: false,
        clues: Clues::default(),
    };
    inference.observe_invocation(InvocationId(1), &invocation);
    let call = Call {
        service: 1,
        callee: 2,
        op: 3,
        start_us: 5000,
        end_us: 6000,
        invocation: None,
        made_by: None,
        clues: Clues::default(),
    };
    inference.observe_call(CallId(1), &call);
    inference.observe_call(CallId(2), &Call { start_us: 1200, end_us: 1500, ..call });
    inference.observe_call(CallId(3), &Call { service: 9, ..call });
    let edges = inference.resolve(i64::MAX).edges;
    let of = |edge: &Edge| (edge.call.0, edge.invocation.map(|id| id.0));
    assert_eq!(edges.iter().map(of).collect::<Vec<_>>(), [(1, None), (2, Some(1)), (3, None)]);
    assert_eq!(inference.pending(), 0);
}

#[test]
fn what_is_still_open_waits() {
    let mut inference = Inference::new(Config::default());
    let invocation =
        Invocation { service: 1, op: 1, caller: None, start_us: 0, end_us: 100, open: false, clues: Clues::default() };
    let call = Call {
        service: 1,
        callee: 2,
        op: 3,
        start_us: 10,
        end_us: 20,
        invocation: None,
        made_by: None,
        clues: Clues::default(),
    };
    for (id, at) in [(1, 0), (2, 1000)] {
        let moved = Invocation { start_us: at, end_us: at + 100, ..invocation };
        inference.observe_invocation(InvocationId(id), &moved);
        inference.observe_call(CallId(id), &Call { start_us: at + 10, end_us: at + 20, ..call });
    }
    let first = inference.resolve(500);
    assert_eq!(first.edges.iter().map(|edge| edge.call.0).collect::<Vec<_>>(), [1]);
    assert_eq!((first.choices.len(), inference.pending()), (1, 2));
    let rest = inference.resolve(2000);
    assert_eq!(
        rest.edges.iter().map(|edge| (edge.call.0, edge.invocation)).collect::<Vec<_>>(),
        [(2, Some(InvocationId(2)))]
    );
    assert_eq!(inference.pending(), 0);
}

#[test]
fn the_kinds_of_spans_are_told_apart() {
    let mut trace = Trace { spans: Vec::new() };
    let root = span(&mut trace, None, "a", "", "in", 0, 100);
    let inner = span(&mut trace, Some(root), "a", "", "inner", 10, 80);
    let other = span(&mut trace, Some(inner), "b", "", "work", 20, 60);
    span(&mut trace, Some(other), "b", "", "store", 30, 10);
    let (seen, truth) = hide(&[trace], 1);
    // The store is called and calls nothing: no invocation. The others are both.
    assert_eq!((seen.invocations.len(), seen.calls.len()), (3, 3));
    assert_eq!(truth.counted.iter().filter(|counted| **counted).count(), 1);
    assert!(truth.parent.iter().all(Option::is_some));
}

type Row = (u8, i64, i64, u8);

/// Ids, times, durations and links of any kind, many of them alike.
fn anything() -> impl Strategy<Value = (Vec<Row>, Vec<Row>)> {
    let time = prop_oneof![4 => 0..200_i64, 1 => -50..50_i64, 1 => any::<i64>()];
    let rows = || prop::collection::vec((any::<u8>(), time.clone(), time.clone(), 0..4_u8), 0..40);
    (rows(), rows())
}

fn feed(inference: &mut Inference, (invocations, calls): &(Vec<Row>, Vec<Row>)) {
    for (id, start_us, end_us, name) in invocations {
        let name = u32::from(*name);
        let caller = (name > 1).then_some(name / 2);
        let open = id % 5 == 0;
        let clues = Clues { process: u32::from(id % 3), ids: [u64::from(id % 4), 0, 0, 0], ..Clues::default() };
        let (service, op) = (name / 2, name % 2);
        let invocation = Invocation { service, op, caller, start_us: *start_us, end_us: *end_us, open, clues };
        inference.observe_invocation(InvocationId(u64::from(*id)), &invocation);
    }
    for (id, start_us, end_us, name) in calls {
        let (service, callee) = (u32::from(name / 2), u32::from(name % 2));
        let invocation = (id % 3 > 0).then_some(InvocationId(u64::from(id / 2)));
        let made_by = (id % 4 == 0).then_some(InvocationId(u64::from(id / 3)));
        let clues = Clues { process: u32::from(id % 3), words: [u64::from(id % 4), 0, 0, 0], ..Clues::default() };
        let call = Call { service, callee, op: 0, start_us: *start_us, end_us: *end_us, invocation, made_by, clues };
        inference.observe_call(CallId(u64::from(*id)), &call);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn takes_anything_and_answers_the_same_each_time(spans in anything(), more in anything(), until in 0..300_i64) {
        let run = || {
            let mut inference = Inference::new(Config { width: 8, ..Config::default() });
            feed(&mut inference, &spans);
            let mut out = inference.resolve(until);
            feed(&mut inference, &more);
            out.extend(inference.resolve(i64::MAX));
            (out, inference.pending())
        };
        let (out, pending) = run();
        prop_assert_eq!(pending, 0);
        prop_assert_eq!(out.edges.len(), spans.1.len() + more.1.len());
        prop_assert_eq!(out.choices.len(), spans.0.len() + more.0.len());
        for edge in &out.edges {
            prop_assert!((0.0..=1.0).contains(&edge.p), "{:?}", edge);
        }
        prop_assert_eq!(&out, &run().0);
    }
}

/// The figures of the README. Needs `../shared/data`.
#[test]
#[ignore = "needs ../shared/data"]
fn public_traces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/call-trees");
    // File, compression, least per mille of whole traces right, of published edges.
    let floors = [
        ("hotel-25", 1.0, 999, 999),
        ("hotel-75", 1.0, 993, 993),
        ("hotel-25", 2.0, 985, 985),
        ("hotel-75", 2.0, 985, 985),
        ("hotel-25", 5.0, 985, 985),
        ("hotel-75", 5.0, 985, 985),
        ("media-25", 1.0, 920, 970),
        ("media-75", 1.0, 750, 910),
        ("node-25", 1.0, 994, 994),
        ("node-75", 1.0, 996, 996),
    ];
    for (name, by, all, published) in floors {
        let mut traces = read(&folder.join(format!("{name}.ndjson.gz"))).unwrap();
        compress(&mut traces, by);
        let score = score(&traces, &Options::default());
        assert!(1000 * score.traces.right >= all * score.traces.of, "{name} {by}\n{score}");
        assert!(1000 * score.counted.right >= published * score.counted.of, "{name} {by}\n{score}");
    }
}
