//! What holds for any call tree, and for any records at all.

use std::collections::VecDeque;

use proptest::prelude::*;
use tracer_ebpf::{
    record::{Answered, Body, End, HandBack, Header, Kind, Listen, Record, Report, Sought, Start, Wire},
    traceparent::Context,
};

use super::{
    Assembler, Config, Totals,
    trees::{Event, Shape, World, want},
};
use crate::{
    path::{Line, Node},
    sink::ndjson::Ndjson,
};

fn drain(assembler: &mut Assembler) -> Vec<Line> {
    std::iter::from_fn(|| assembler.take()).collect()
}

/// The roots of paths that must all be complete, in order of their span ids.
fn shapes(lines: &[Line]) -> Vec<Shape> {
    let mut shapes: Vec<_> = lines
        .iter()
        .map(|line| match line {
            Line::Path(path) => {
                assert!(path.complete, "{path:?}");
                Shape::of(&path.root)
            }
            Line::Late(late) => panic!("late: {late:?}"),
        })
        .collect();
    shapes.sort_by_key(|shape| shape.span);
    shapes
}

fn sorted(mut roots: Vec<Shape>) -> Vec<Shape> {
    roots.sort_by_key(|shape| shape.span);
    roots
}

/// Any order that keeps the order of each connection's end.
fn shuffle(events: &[Event], mut seed: u64) -> Vec<Event> {
    let mut queues: Vec<(u64, VecDeque<Event>)> = Vec::new();
    for event in events {
        match queues.iter_mut().find(|(conn, _)| *conn == event.conn) {
            Some((_, queue)) => queue.push_back(event.clone()),
            None => queues.push((event.conn, [event.clone()].into())),
        }
    }
    let mut out = Vec::new();
    while !queues.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = (seed >> 33) as usize % queues.len();
        if let Some(event) = queues[index].1.pop_front() {
            out.push(event);
        }
        if queues[index].1.is_empty() {
            queues.swap_remove(index);
        }
    }
    out
}

/// Spans in the lines, counting those of [`Assembler::give_out_again`] twice.
fn nodes(lines: &[Line]) -> usize {
    let root = |line: &Line| match line {
        Line::Path(path) => Shape::of(&path.root).count(),
        Line::Late(late) => Shape::of(&late.root).count(),
    };
    lines.iter().map(root).sum()
}

fn check(assembler: &Assembler, config: Config) {
    let totals: &Totals = assembler.totals();
    assert!(totals.balanced(), "{totals:?}");
    assert!(assembler.spans.len() <= config.max_open.max(1) + config.remember);
    assert!(assembler.trees.len() <= assembler.spans.len());
    let spans = assembler.spans.len();
    assert_eq!(assembler.calls.len() + assembler.invocations.len() + assembler.strays.len(), spans);
    assert!(assembler.waiting.len() <= spans && assembler.unjoined_by_wire.len() <= spans);
    assert!(assembler.calls_by_wire.len() <= spans);
    assert!(assembler.orphans.values().map(Vec::len).sum::<usize>() <= spans);
    assert!(assembler.remembered.len() <= config.remember);
    let bound = 2 * spans + 128;
    assert!(assembler.by_age.len() <= bound && assembler.settling.len() <= bound && assembler.ready.len() <= bound);
}

fn run(events: &[Event], config: Config, every: usize, lost: bool) -> (Assembler, Vec<Line>, Vec<u8>) {
    let mut assembler = Assembler::new(config);
    let (mut lines, mut now) = (Vec::new(), 0);
    for (index, event) in events.iter().enumerate() {
        assert!(assembler.read(&event.bytes));
        now = now.max(event.at_ns);
        if index % every == every - 1 {
            if lost {
                assembler.lost(index as u64);
            }
            assembler.advance(now);
            lines.append(&mut drain(&mut assembler));
            check(&assembler, config);
        }
    }
    assembler.finish();
    lines.append(&mut drain(&mut assembler));
    check(&assembler, config);
    assert_eq!(assembler.totals().open, 0);
    let mut sink = Ndjson::new(Vec::new());
    lines.iter().for_each(|line| sink.object(line).unwrap());
    let bytes = sink.into_inner();
    let back: Vec<_> =
        String::from_utf8_lossy(&bytes).lines().map(|line| Line::parse(line).unwrap().unwrap()).collect();
    assert_eq!(back, lines);
    (assembler, lines, bytes)
}

proptest! {
    #[test]
    fn in_order_every_tree_comes_back(wants in prop::collection::vec(want(), 1..5), one_netns: bool, every in 1..9usize) {
        let world = World::new(&wants, one_netns);
        // A call after the response comes when the path may have been given out.
        let in_time = wants.iter().all(|want| !has_late(want));
        let every = if in_time { every } else { usize::MAX };
        let (assembler, lines, _) = run(&world.events, Config::default(), every, false);
        prop_assert_eq!(shapes(&lines), sorted(world.roots.clone()));
        let totals = assembler.totals();
        prop_assert_eq!(totals.joins.tag + totals.joins.wire, world.joined);
        prop_assert_eq!(totals.joins.none, world.calls - world.joined);
        prop_assert_eq!((totals.ends_unknown, totals.orphans, totals.outside_parents), (0, 0, 0));
    }

    #[test]
    fn in_any_order_every_tree_comes_back(wants in prop::collection::vec(want(), 1..5), seed: u64) {
        let world = World::new(&wants, true);
        let (_, lines, _) = run(&shuffle(&world.events, seed), Config::default(), usize::MAX, false);
        prop_assert_eq!(shapes(&lines), sorted(world.roots));
    }

    #[test]
    fn nothing_is_lost_silently(
        wants in prop::collection::vec(want(), 1..6),
        one_netns: bool,
        seed: u64,
        keep: Vec<bool>,
        every in 1..9usize,
        max_open in 0..20usize,
        remember in 0..20usize,
        settle_ns in 0..100_000u64,
    ) {
        let world = World::new(&wants, one_netns);
        let events = shuffle(&world.events, seed);
        let kept = |(index, _): &(usize, &Event)| keep.get(index % keep.len().max(1)).copied().unwrap_or(true);
        let events: Vec<_> = events.iter().enumerate().filter(kept).map(|(_, event)| event.clone()).collect();
        let config = Config { max_open, remember, settle_ns, ..Config::default() };
        let (assembler, lines, bytes) = run(&events, config, every, true);
        let totals = assembler.totals();
        prop_assert!(nodes(&lines) as u64 >= totals.reported);
        prop_assert_eq!(lines.len() as u64, totals.paths + totals.late);
        prop_assert_eq!(run(&events, config, every, true).2, bytes);
    }

    #[test]
    fn hostile_records_do_no_harm(
        records in prop::collection::vec(hostile(), 0..300),
        every in 1..30usize,
        max_open in 0..30usize,
        remember in 0..30usize,
    ) {
        let config = Config { max_open, remember, settle_ns: 3, query: true, ..Config::default() };
        let mut assembler = Assembler::new(config);
        let mut lines = Vec::new();
        for (index, (header, body)) in records.iter().enumerate() {
            assembler.record(&Record { header: *header, body: *body });
            if index % every == 0 {
                assembler.advance(header.at_ns);
            }
            check(&assembler, config);
            lines.append(&mut drain(&mut assembler));
        }
        assembler.finish();
        lines.append(&mut drain(&mut assembler));
        check(&assembler, config);
        let totals = assembler.totals();
        prop_assert_eq!(totals.open, 0);
        prop_assert_eq!(totals.records.sum(), records.len() as u64);
        prop_assert!(nodes(&lines) as u64 >= totals.reported);
        for line in &lines {
            let json = serde_json::to_string(line).unwrap();
            prop_assert_eq!(Line::parse(&json).unwrap(), Some(line.clone()));
        }
    }
}

fn has_late(want: &super::trees::Want) -> bool {
    want.calls.iter().any(|call| call.after_response || call.target.as_ref().is_some_and(has_late))
}

/// Records whose fields come from so few values that everything collides with everything.
fn hostile() -> impl Strategy<Value = (Header, Body<'static>)> {
    let heads = prop::sample::select(vec![&b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n"[..], b"", b"\x1b[2J", b"POST "]);
    let wire = (0..3u8, 0..3u8, 0..3u64, 0..3u16, 0..3u16).prop_map(|(a, b, netns, local_port, remote_port)| Wire {
        local: [a; 16],
        remote: [b; 16],
        netns,
        local_port,
        remote_port,
        pad: 0,
    });
    let start = (0..4u64, 0..6u64, 0..6u64, wire, 0..3u32, any::<u8>(), 0..10u8, 0..16u8).prop_map(
        |(conn, span_id, parent, wire, sequence, flags, rule, tag)| Start {
            conn,
            context: Context { trace_id: [1, span_id % 2], span_id, flags, pad: [0; 7] },
            parent,
            wire,
            sequence,
            // Mostly sampled.
            flags: if flags & 0x80 == 0 { flags & !2 } else { flags },
            rule,
            tag,
            live: 1,
            trust: 40 * span_id as u8,
            pad: [0; 3],
            tid: 0,
            unit: [0; 2],
        },
    );
    let end = (0..4u64, 0..6u64, 0..3u32, any::<u64>(), any::<u16>(), 0..9u8).prop_map(
        |(conn, span, sequence, first_byte_ns, status, reason)| End {
            conn,
            span,
            first_byte_ns,
            sequence,
            status,
            reason,
            retransmits: 0,
            errno: 111,
            rtt_us: 0,
        },
    );
    let at = prop_oneof![0..50u64, Just(0), Just(u64::MAX)];
    let kinds = prop_oneof![1..10u16, 16..21u16];
    (at, 0..3u64, kinds, start, end, heads).prop_map(|(at_ns, sandbox, kind, start, end, head)| {
        let header = Header { at_ns, sandbox, kind, tail_len: head.len() as u16, pid: 1 };
        let body = match Kind::from_u16(kind).unwrap() {
            Kind::SandboxBorn => Body::SandboxBorn(head),
            Kind::SandboxGone => Body::SandboxGone,
            Kind::InvocationStart => Body::InvocationStart(start, head),
            Kind::InvocationEnd => Body::InvocationEnd(end),
            Kind::CallStart => Body::CallStart(start, head),
            Kind::CallEnd => Body::CallEnd(end),
            Kind::OpaqueStart => Body::OpaqueStart(start),
            Kind::OpaqueEnd => Body::OpaqueEnd(end),
            Kind::RuntimeReport => {
                let report = Report { what: end.sequence.into(), span: end.span, began_ns: at_ns, pad: [0; 13] };
                Body::RuntimeReport(report, head)
            }
            Kind::SandboxExec => Body::SandboxExec(head),
            Kind::SandboxListens => Body::SandboxListens(Listen { port: 80, pad: [0; 6] }),
            Kind::HandBack => Body::HandBack(HandBack { span: end.span, call: end.conn, tid: 1, pad: 0 }),
            Kind::UnitSought => Body::UnitSought(Sought { span: end.span, tid: 1, what: end.status, is_new: 0 }, head),
            Kind::Answered => Body::Answered(Answered {
                span: end.span,
                read_ns: end.first_byte_ns,
                unit: [7; 2],
                read_tid: 1,
                pad: 0,
            }),
        };
        (header, body)
    })
}

/// A chain of calls is the deepest tree there is.
#[test]
fn a_chain_of_any_depth_is_printed_in_parts_that_can_be_read() {
    use super::trees::{Want, WantCall};
    use tracer_ebpf::record::Tag;
    let mut want = Want { sandbox: 0, parallel: false, work_us: 1, calls: Vec::new() };
    for _ in 0..200 {
        let call = WantCall { tag: Tag::Injected, retry: false, after_response: false, target: Some(want) };
        want = Want { sandbox: 0, parallel: false, work_us: 1, calls: vec![call] };
    }
    let world = World::new(&[want], true);
    let (assembler, lines, _) = run(&world.events, Config::default(), usize::MAX, false);
    assert_eq!(nodes(&lines), 401);
    assert_eq!(assembler.totals().reported, 401);
    assert!(lines.iter().all(|line| match line {
        Line::Path(path) => path.complete && matches!(path.root, Node::Invocation(_)),
        Line::Late(late) => late.complete && late.parent_span_id.is_some(),
    }));
}

/// The figure of DESIGN.md, section 8: 200,000 paths of 5 calls a second on one core.
#[test]
#[ignore = "a measurement: cargo test --release -p tracer-user throughput -- --ignored --nocapture"]
fn throughput() {
    use super::trees::{Want, WantCall};
    use tracer_ebpf::record::Tag;
    let target = |calls| Want { sandbox: 1, parallel: false, work_us: 3, calls };
    let call = |target| WantCall { tag: Tag::Injected, retry: false, after_response: false, target };
    for (what, joined) in [("calls to functions", true), ("calls to services", false)] {
        let want = target((0..5).map(|_| call(joined.then(|| target(Vec::new())))).collect());
        let world = World::new(&vec![want; 3000], true);
        let mut assembler = Assembler::new(Config::default());
        let mut sink = Ndjson::new(std::io::sink());
        let (mut assemble, mut paths) = (std::time::Duration::ZERO, 0_u32);
        let mut print = std::time::Duration::ZERO;
        for _ in 0..30 {
            for id in 1..3 {
                assembler.sandbox(
                    id,
                    super::SandboxInfo { function: "function".into(), path: "/fns/function".into(), resource: None },
                );
            }
            let begin = std::time::Instant::now();
            let mut lines = Vec::with_capacity(3000);
            for batch in world.events.chunks(256) {
                batch.iter().for_each(|event| assert!(assembler.read(&event.bytes)));
                assembler.advance(0);
                lines.extend(std::iter::from_fn(|| assembler.take()));
            }
            assemble += begin.elapsed();
            paths += lines.len() as u32;
            let begin = std::time::Instant::now();
            lines.iter().for_each(|line| sink.object(line).unwrap());
            print += begin.elapsed();
            drop(lines);
            // The same ids again: nothing may be remembered of them.
            assembler = Assembler::new(Config::default());
        }
        let rate = |time: std::time::Duration| f64::from(paths) / time.as_secs_f64();
        println!(
            "{what}: {:.0} paths/s assembled, {:.0} paths/s printed, {} records a path",
            rate(assemble),
            rate(print),
            world.events.len() / 3000
        );
    }
}
