//! The place is learned from stacks that are made up, and calls are placed by it.

use proptest::prelude::*;
use tracer_ebpf::record::{
    Answered, Body, End, HandBack, Header, Reason, Rule, STACK, Sought, Tag, Wire, place, sought,
};
use tracer_ebpf::{record::Record, traceparent::Context};

use super::{
    handed::Handing,
    learn::{Learner, Verdict},
};
use crate::{
    assemble::{Assembler, Config, trees::blank},
    path::{Line, Node},
};

const WORD: usize = 8;
const MS: u64 = 1_000_000;

/// A stack in which the unit shows at the word `at`, among words that are the same for all, or any.
fn stack(at: usize, unit: u64, noise: u64) -> Vec<u8> {
    let word = |index: usize| match index {
        index if index == at => unit,
        index if index % 3 == 0 => 0x7f00_0000_1000,
        // The same for all that happens at about the same time.
        index if index % 3 == 1 => 0x7f00_0000_0000 + (noise / (3 * MS)) * 64,
        index => 0x5500_0000_0000 + (noise.wrapping_mul(2_654_435_761) ^ index as u64) % 4096 * 8,
    };
    (0..STACK / WORD).flat_map(|index| word(index).to_ne_bytes()).collect()
}

/// Invocations of which `abreast` are live at once; each makes one call, which is over 2 ms later, and answers. Says which
/// place is learned; `shows` says whether the unit shows at all.
fn learned(at: usize, abreast: u64, shows: bool) -> Verdict {
    let mut learner = Learner::default();
    let (mut ends, mut all) = (std::collections::BTreeMap::new(), Vec::new());
    for number in 0..200u64 {
        let (read_ns, span) = (MS * (1 + number * 4 / abreast), 2 * number + 1);
        let (call_ns, answer_ns) = (read_ns + MS, read_ns + 4 * MS);
        ends.insert(span + 1, call_ns + 2 * MS);
        all.push((call_ns, sought::CALLS, span + 1, number, read_ns));
        all.push((answer_ns, sought::ANSWERS, span, number, read_ns));
    }
    all.sort_unstable();
    for (at_ns, what, span, number, read_ns) in all {
        // Addresses are used again, but not by two that live at once.
        let unit = if shows { 0x7e00_0000_0000 + number % (4 * abreast) * 64 } else { 0 };
        learner.add(at_ns, &Sought { span, tid: 1, what, is_new: 1 }, &stack(at, unit, at_ns + 7 * number));
        if what == sought::ANSWERS {
            learner.answered(span, read_ns);
        }
    }
    learner.verdict(|call| ends.get(&call).copied())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_place_is_learned_wherever_it_is(at in 0..STACK / WORD, abreast in 2..16u64) {
        let bytes = (at * WORD) as i64 - STACK as i64 / 2;
        let Verdict::Settled([first, _]) = learned(at, abreast, true) else { panic!("nothing was learned") };
        prop_assert_eq!(first as i64, bytes);
    }

    #[test]
    fn nothing_is_learned_where_no_unit_shows(at in 0..STACK / WORD, abreast in 2..16u64) {
        prop_assert_eq!(learned(at, abreast, false), Verdict::Settled([place::NOWHERE, 0]));
    }
}

struct Made {
    assembler: Assembler,
    pid: u32,
}

impl Made {
    fn record(&mut self, at_ns: u64, body: Body<'_>) {
        let header = Header { at_ns, sandbox: 1, kind: 0, tail_len: 0, pid: self.pid };
        self.assembler.record(&Record { header, body });
    }

    fn start(&mut self, at_ns: u64, span_id: u64, call: Option<[u64; 2]>) {
        let context = Context { trace_id: [span_id, 1], span_id, flags: 1, pad: [0; 7] };
        let wire = Wire { remote: [1; 16], remote_port: 80, ..Wire::default() };
        let unit = call.unwrap_or_default();
        let start = blank(context, 0, 0, Rule::None, Tag::Off);
        let start = tracer_ebpf::record::Start { conn: span_id, wire, live: 8, tid: 1, unit, ..start };
        let head = b"GET /x HTTP/1.1\r\n\r\n";
        let body = if call.is_some() { Body::CallStart(start, head) } else { Body::InvocationStart(start, head) };
        self.record(at_ns, body);
    }

    fn end(&mut self, at_ns: u64, span: u64, call: bool) {
        let reason = Reason::Complete as u8;
        let end = End {
            conn: span,
            span,
            first_byte_ns: 0,
            sequence: 0,
            status: 200,
            reason,
            retransmits: 0,
            errno: 0,
            rtt_us: 0,
        };
        self.record(at_ns, if call { Body::CallEnd(end) } else { Body::InvocationEnd(end) });
    }

    fn answer(&mut self, at_ns: u64, span: u64, read_ns: u64, unit: [u64; 2]) {
        self.record(at_ns, Body::Answered(Answered { span, read_ns, unit, read_tid: 1, pad: 0 }));
        self.end(at_ns + 1, span, false);
    }

    /// Whose the call 100 is in what is given out.
    fn maker(mut self) -> Option<u64> {
        self.assembler.finish();
        let mut maker = None;
        while let Some(line) = self.assembler.take() {
            let Line::Path(path) = line else { continue };
            let Node::Invocation(root) = &path.root else { continue };
            if !root.children.is_empty() {
                maker = Some(root.span_id.0);
            }
        }
        maker
    }
}

/// Two are live; the first answers first. The call is sent between `read_ns` of either and its answer.
fn placed(unit: [u64; 2], first: [u64; 2], second: [u64; 2], first_read_ns: u64) -> Option<u64> {
    let mut made = Made { assembler: Assembler::new(Config { settle_ns: 1000 * MS, ..Config::default() }), pid: 7 };
    let known = super::Known { right: [50; 2], ..Default::default() };
    made.assembler.units.known.insert(7, known);
    made.start(MS, 1, None);
    made.start(MS, 2, None);
    made.start(3 * MS, 100, Some(unit));
    made.end(4 * MS, 100, true);
    made.answer(5 * MS, 1, first_read_ns, first);
    made.answer(6 * MS, 2, 2 * MS, second);
    made.maker()
}

#[test]
fn a_call_is_its_units() {
    assert_eq!(placed([16, 0], [16, 0], [24, 0], 2 * MS), Some(1));
    assert_eq!(placed([24, 0], [16, 0], [24, 0], 2 * MS), Some(2));
    assert_eq!(placed([32, 0], [16, 0], [24, 0], 2 * MS), None, "nobody's");
}

#[test]
fn the_first_word_says_more_than_the_second() {
    assert_eq!(placed([24, 8], [16, 8], [24, 0], 2 * MS), Some(2));
    assert_eq!(placed([32, 8], [16, 8], [24, 0], 2 * MS), Some(1), "where only the second is known");
}

#[test]
fn what_was_sent_before_the_request_was_read_is_anothers() {
    assert_eq!(placed([16, 0], [16, 0], [24, 0], 4 * MS), None);
}

#[test]
fn processes_that_go_before_they_are_learned_keep_no_others_from_it() {
    let mut made = Made { assembler: Assembler::new(Config::default()), pid: 0 };
    let shows = |made: &mut Made, pid: u32, at_ns: u64| {
        made.pid = pid;
        let sought = Sought { span: 1, tid: 1, what: sought::CALLS, is_new: 1 };
        made.record(at_ns, Body::UnitSought(sought, &stack(0, 0, 0)));
        made.assembler.units.learners.contains_key(&pid)
    };
    for pid in 0..super::LEARNERS as u32 {
        assert!(shows(&mut made, pid, MS));
    }
    assert!(!shows(&mut made, 100, 2 * MS), "no room, and all are at it");
    assert_eq!(made.assembler.totals.inference.refused, 1);
    assert!(shows(&mut made, 100, 20_000 * MS), "the others are gone for long");
    assert!(!made.assembler.units.learners.contains_key(&0), "the oldest has made room");
}

/// Two are live when a thread makes calls of which nobody knows whose they are; it wakes the second when the last is over.
/// Says whose calls are whose: the maker, and how many.
fn handed(handing: Handing, calls: u64, back: Option<u64>, second_at_ns: u64) -> Vec<(u64, usize)> {
    let mut made = Made { assembler: Assembler::new(Config { settle_ns: 1000 * MS, ..Config::default() }), pid: 7 };
    made.assembler.units.handing.insert((1, 7), handing);
    made.start(MS, 1, None);
    if second_at_ns < 3 * MS {
        made.start(second_at_ns, 2, None);
    }
    for call in 100..100 + calls {
        made.start(3 * MS, call, Some([0; 2]));
        made.end(4 * MS, call, true);
    }
    if second_at_ns >= 3 * MS {
        made.start(second_at_ns, 2, None);
    }
    if let Some(span) = back {
        made.record(6 * MS, Body::HandBack(HandBack { span, call: 99 + calls, tid: 1, pad: 0 }));
    }
    made.end(8 * MS, 1, false);
    made.end(8 * MS, 2, false);
    made.assembler.finish();
    let mut makers = Vec::new();
    while let Some(line) = made.assembler.take() {
        let Line::Path(path) = line else { continue };
        let Node::Invocation(root) = &path.root else { continue };
        if !root.children.is_empty() {
            makers.push((root.span_id.0, root.children.len()));
        }
    }
    makers
}

#[test]
fn a_call_is_whose_thread_its_answer_wakes() {
    let worth_it = Handing { credit: 100, right: 50, wrong: 0 };
    assert_eq!(handed(worth_it, 1, Some(2), 2 * MS), [(2, 1)]);
    assert_eq!(handed(worth_it, 1, Some(1), 2 * MS), [(1, 1)]);
    assert_eq!(handed(worth_it, 3, Some(2), 2 * MS), [(2, 1)], "what it called before may be another's");
    assert_eq!(handed(worth_it, 1, None, 2 * MS), [], "nobody was woken");
    assert_eq!(handed(worth_it, 1, Some(2), 5 * MS), [], "it began after the call");
    let unreliable = Handing { credit: 100, right: 10, wrong: 40 };
    assert_eq!(handed(unreliable, 1, Some(2), 2 * MS), [], "less probable than is shown");
    assert_eq!(
        handed(Handing::default(), 1, Some(2), 2 * MS),
        [],
        "not held before it has shown itself to be worth it"
    );
}

#[test]
fn threads_that_hand_nothing_back_are_soon_not_waited_for() {
    let mut handing = Handing { credit: 32, right: 4, wrong: 0 };
    assert!(handing.is_worth_it());
    handing.waited_in_vain();
    assert!(!handing.is_worth_it());
}

#[test]
fn a_process_with_the_id_of_another_is_learned_anew() {
    let shown = |learned_ns: u64, at_ns: u64, is_new: u16| {
        let mut made = Made { assembler: Assembler::new(Config::default()), pid: 7 };
        let known = super::Known { learned_ns, ..Default::default() };
        made.assembler.units.known.insert(7, known);
        let sought = Sought { span: 1, tid: 1, what: sought::CALLS, is_new };
        made.record(at_ns, Body::UnitSought(sought, &stack(0, 0, 0)));
        (made.assembler.units.known.contains_key(&7), made.assembler.units.learners.contains_key(&7))
    };
    assert_eq!(shown(MS, 5000 * MS, 1), (false, true), "another process");
    assert_eq!(shown(MS, 5000 * MS, 0), (true, true), "the same, which is asked again");
    assert_eq!(shown(MS, 2 * MS, 1), (true, false), "what was learned is on its way to the kernel half");
}
