use std::path::Path;

use proptest::prelude::*;

use super::{eval::Settings, *};
use crate::input::Format;

/// A path: calls as (callee, ms after the one before, ms until it starts, cold).
fn play(forecaster: &mut Forecaster, path: u64, at_ms: i64, calls: &[(&str, i64, i64, bool)]) {
    prefix(forecaster, path, at_ms, calls);
    forecaster.observe(Event::End { path, complete: true });
}

fn prefix(forecaster: &mut Forecaster, path: u64, at_ms: i64, calls: &[(&str, i64, i64, bool)]) -> i64 {
    let mut events: Vec<(i64, bool, u64)> = Vec::new();
    let mut at_us = at_ms * 1000;
    for (call, &(_, gap, wait, _)) in calls.iter().enumerate() {
        at_us += gap * 1000;
        events.push((at_us, false, call as u64));
        events.push((at_us + wait * 1000, true, call as u64));
    }
    events.sort_unstable();
    let last = at_us;
    for (at_us, start, call) in events.into_iter().filter(|event| event.0 <= last) {
        let (callee, _, _, cold) = calls[call as usize];
        forecaster.observe(if start {
            Event::Start { path, call, at_us, cold }
        } else {
            Event::Call { path, call, caller: call.checked_sub(1), callee, at_us }
        });
    }
    last
}

#[test]
fn learns_a_chain_and_its_times() {
    let mut forecaster = Forecaster::default();
    for path in 0..50 {
        play(
            &mut forecaster,
            path,
            path as i64 * 10_000,
            &[("a", 0, 1, false), ("b", 50, 1, false), ("c", 100 + path as i64 % 3, 1, false)],
        );
    }
    let now = prefix(&mut forecaster, 99, 1_000_000, &[("a", 0, 1, false)]);
    let next = forecaster.next(99, AsOf::Latest).unwrap();
    assert_eq!(next.callee.as_deref(), Some("b"));
    assert!(next.probability > 0.95 && next.known, "{next:?}");
    let forecasts = forecaster.forecast(99, now, 1000.0);
    let b = forecasts.iter().find(|forecast| &*forecast.callee == "b").unwrap();
    let c = forecasts.iter().find(|forecast| &*forecast.callee == "c").unwrap();
    assert!(b.known && (b.expected_ms.unwrap() - 50.0).abs() < 2.0, "{b:?}");
    assert!(c.probability > 0.9 && (c.expected_ms.unwrap() - 151.0).abs() < 4.0 && c.next < 0.1, "{c:?}");
    let ([least, most], expected) = (c.interval_ms.unwrap(), c.expected_ms.unwrap());
    assert!(least <= expected && expected <= most);
    // Nothing is due within 20 ms, and after 45 ms little is left to wait for.
    assert!(forecaster.forecast(99, now, 20.0).iter().all(|forecast| forecast.probability < 0.1));
    let later = forecaster.forecast(99, now + 45_000, 20.0);
    assert!(later[0].probability > 0.9 && (later[0].expected_ms.unwrap() - 5.0).abs() < 2.0, "{later:?}");
}

#[test]
fn says_that_a_path_ends() {
    let mut forecaster = Forecaster::default();
    for path in 0..50 {
        play(&mut forecaster, path, path as i64 * 1000, &[("a", 0, 1, false), ("b", 50, 1, false)]);
    }
    prefix(&mut forecaster, 99, 100_000, &[("a", 0, 1, false), ("b", 50, 1, false)]);
    assert!(forecaster.chance(99, AsOf::Call, None) > 0.9);
    assert_eq!(forecaster.next(99, AsOf::Call).unwrap().end, forecaster.chance(99, AsOf::Call, None));
}

#[test]
fn the_branch_that_started_first_goes_on_first() {
    // Two branches: x after a starts, y after b starts, whichever queue is shorter. Counting cannot tell which is next.
    let mut forecaster = Forecaster::default();
    for path in 0..200_u64 {
        let base = path as i64 * 100_000;
        let (wait_a, wait_b) = if path * 7 % 5 < 2 { (1000, 3000) } else { (3000, 1000) };
        let event = |forecaster: &mut Forecaster, call: u64, callee: &'static str, at_ms: i64| {
            forecaster.observe(Event::Call { path, call, caller: None, callee, at_us: (base + at_ms) * 1000 });
        };
        event(&mut forecaster, 0, "root", 0);
        event(&mut forecaster, 1, "a", 10);
        event(&mut forecaster, 2, "b", 11);
        let mut starts = [(1, wait_a, "x"), (2, wait_b, "y")];
        starts.sort_by_key(|start| start.1);
        for (call, wait, next) in starts {
            forecaster.observe(Event::Start { path, call, at_us: (base + wait) * 1000, cold: false });
            if path > 100 {
                let guess = forecaster.next(path, AsOf::Latest).unwrap();
                assert_eq!(guess.callee.as_deref(), Some(next), "{guess:?}");
                assert!(guess.probability > 0.8);
            }
            event(&mut forecaster, call + 2, next, wait + 500 + path as i64 % 9);
        }
        forecaster.observe(Event::End { path, complete: true });
    }
}

#[test]
fn siblings_keep_their_odds_whatever_else_has_happened() {
    // `a` calls `x` and `y` as soon as it starts, `x` first in 7 of 10 paths; Two of `b` to `e` are called before, at
    // random.
    let mut forecaster = Forecaster::default();
    let mut error = 0.0;
    for path in 0..400_u64 {
        let base = path as i64 * 1_000_000;
        let call = |forecaster: &mut Forecaster, call: u64, callee: &str, at_ms: i64| {
            forecaster.observe(Event::Call { path, call, caller: None, callee, at_us: base + at_ms * 1000 });
        };
        call(&mut forecaster, 0, "a", 0);
        for other in 0..2 {
            let name = [b'b' + (table::mix(path, other) % 4) as u8];
            call(&mut forecaster, other + 1, std::str::from_utf8(&name).unwrap(), 10 + other as i64);
        }
        forecaster.observe(Event::Start { path, call: 0, at_us: base + 50_000 + path as i64 % 7, cold: true });
        let x_first = table::mix(path, 99) % 10 < 7;
        if path >= 300 {
            let chances = ["x", "y"].map(|callee| forecaster.chance(path, AsOf::Latest, Some(callee)));
            assert!(chances[0] + chances[1] > 0.95, "{chances:?}");
            error += (chances[0] - 0.7).abs() / 100.0;
        }
        let order = if x_first { ["x", "y"] } else { ["y", "x"] };
        call(&mut forecaster, 9, order[0], 60);
        call(&mut forecaster, 10, order[1], 60);
        forecaster.observe(Event::End { path, complete: true });
    }
    assert!(error < 0.05, "{error}");
}

#[test]
fn knows_what_it_does_not_know() {
    let mut forecaster = Forecaster::default();
    assert!(forecaster.next(1, AsOf::Latest).is_none() && forecaster.forecast(1, 0, 1e3).is_empty());
    play(&mut forecaster, 1, 0, &[("a", 0, 1, false), ("b", 5, 1, false)]);
    prefix(&mut forecaster, 2, 1000, &[("a", 0, 1, false)]);
    assert!(forecaster.forecast(2, 0, 1000.0).iter().all(|forecast| !forecast.known));
    assert!(!forecaster.next(2, AsOf::Call).unwrap().known);
    prefix(&mut forecaster, 3, 1000, &[("stranger", 0, 1, false)]);
    assert!(forecaster.decide(3, 0, Rule { cost_ratio: 0.0, horizon_ms: 1e3 }).is_empty());
}

#[test]
fn tells_external_services_and_each_decision_once() {
    let mut forecaster = Forecaster::default();
    for path in 0..20 {
        let at_us = path as i64 * 1_000_000;
        forecaster.observe(Event::Call { path, call: 0, caller: None, callee: "a", at_us });
        forecaster.observe(Event::Start { path, call: 0, at_us, cold: false });
        forecaster.observe(Event::Call {
            path,
            call: 1,
            caller: Some(0),
            callee: "10.0.0.1:5432",
            at_us: at_us + 9000,
        });
        if path < 19 {
            forecaster.observe(Event::End { path, complete: true });
        }
    }
    forecaster.observe(Event::Call { path: 99, call: 0, caller: None, callee: "a", at_us: 99_000_000 });
    let rule = Rule { cost_ratio: 0.25, horizon_ms: 100.0 };
    let told = forecaster.decide(99, 99_000_000, rule);
    assert_eq!(told.len(), 1);
    assert!(told[0].external && told[0].known);
    assert!(forecaster.decide(99, 99_001_000, rule).is_empty());
    assert!(!forecaster.decide(99, 99_101_000, rule).is_empty(), "what was told has run out by now");
}

#[test]
fn forgets_slowly() {
    let mut forecaster = Forecaster::default();
    for (round, next) in [("b", 300), ("c", 900)].into_iter().flat_map(|(next, times)| vec![next; times]).enumerate() {
        play(&mut forecaster, round as u64, round as i64 * 1000, &[("a", 0, 1, false), (next, 50, 1, false)]);
    }
    prefix(&mut forecaster, 9999, 10_000_000, &[("a", 0, 1, false)]);
    assert_eq!(forecaster.next(9999, AsOf::Call).unwrap().callee.as_deref(), Some("c"));
}

#[test]
fn hostile_names_take_bounded_memory() {
    let mut forecaster = Forecaster::new(100);
    for path in 0..6000_u64 {
        for call in 0..4 {
            let callee = format!("{path}-{call}");
            let at_us = (path * 10 + call) as i64;
            forecaster.observe(Event::Call { path, call, caller: call.checked_sub(1), callee: &callee, at_us });
        }
        if path % 3 == 0 {
            forecaster.observe(Event::End { path, complete: true });
        }
    }
    assert!(forecaster.live() <= 100);
    assert!(forecaster.names.len() <= NAMES);
}

fn any_event() -> impl Strategy<Value = (u8, u64, u64, u8, i64)> {
    let time = prop_oneof![0..5_000_000_i64, any::<i64>(), Just(i64::MAX), Just(i64::MIN)];
    (0_u8..8, 0_u64..4, 0_u64..6, 0_u8..5, time)
}

fn feed(forecaster: &mut Forecaster, event: (u8, u64, u64, u8, i64)) {
    let (kind, path, call, callee, at_us) = event;
    let callee = ["a", "b", "c", "", "\u{1b}[0m"][usize::from(callee)];
    forecaster.observe(match kind {
        0..=3 => Event::Call { path, call, caller: Some(call / 2).filter(|_| call > 0), callee, at_us },
        4 | 5 => Event::Start { path, call, at_us, cold: kind == 5 },
        6 => Event::Answer { path, call, at_us },
        _ => Event::End { path, complete: call % 2 == 0 },
    });
}

proptest! {
    #[test]
    fn hostile_streams_give_sound_numbers(
        events in proptest::collection::vec(any_event(), 0..300),
        now in any::<i64>(),
        horizon in any::<f32>(),
    ) {
        let mut forecaster = Forecaster::new(8);
        let mut twin = Forecaster::new(8);
        for event in events {
            feed(&mut forecaster, event);
            feed(&mut twin, event);
        }
        for path in 0..4 {
            prop_assert_eq!(forecaster.next(path, AsOf::Latest), twin.next(path, AsOf::Latest));
            prop_assert_eq!(forecaster.forecast(path, now, 1e3), twin.forecast(path, now, 1e3));
            if let Some(next) = forecaster.next(path, AsOf::Latest) {
                prop_assert!((0.0..=1.0).contains(&next.probability) && (0.0..=1.0).contains(&next.end));
            }
            for forecast in forecaster.forecast(path, now, horizon) {
                prop_assert!((0.0..=1.0).contains(&forecast.probability), "{:?}", forecast);
                prop_assert!(forecast.expected_ms.is_none_or(|ms| ms >= 0.0 && ms.is_finite()), "{:?}", forecast);
            }
        }
    }
}

#[test]
fn an_empty_file_and_a_broken_one_are_scored_as_nothing() {
    let directory = std::env::temp_dir().join(format!("fntrace-forecast-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (name, text, broken) in [("empty", "", 0), ("broken", "{\n\nnonsense\n", 2)] {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        let mut count = 0;
        let report = eval::file(&path, &Settings::default(), |_, _| count += 1).unwrap();
        assert_eq!((report.train, report.test, count), (0, 0, broken));
        assert!(serde_json::to_string(&report).unwrap().contains("\"next_accuracy\":0.0"));
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// The figures of issue 6 on the public data. What the README of the data gives for high load was measured on a mix
/// with 30 % cold starts ([`super::published`]); the files hold the high-load part alone (80 % cold), where the same counter
/// gets far less. So there the bar is the counter over sets on the same file and split.
#[test]
#[ignore = "needs ../shared/data/faas-chains; some 10 s"]
fn figures_on_public_data() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/faas-chains");
    let folder = std::env::var_os("FNTRACE_DATA").map_or(folder, |data| Path::new(&data).join("faas-chains"));
    assert!(folder.is_dir(), "{} is not there: set FNTRACE_DATA to the folder of the public data", folder.display());
    // File, least accuracy just after the call before, least after the latest event.
    let bars = [
        ("tree-small-low", 1.0, 1.0),
        ("tree-small-rand-low", 0.951, 0.951),
        ("parallel-small-low", 0.997, 0.997),
        ("parallel-small-rand-low", 0.943, 0.943),
        ("fanout-small-rand-low", 1.0, 1.0),
        ("sequence-low", 1.0, 1.0),
        ("sequence-high", 1.0, 1.0),
        ("tree-small-high", 0.7597, 0.82),
        ("tree-small-rand-high", 0.796, 0.85),
        ("parallel-small-high", 0.755, 0.946),
        ("parallel-small-rand-high", 0.8075, 0.916),
        ("fanout-small-rand-high", 0.924, 0.92),
    ];
    for (name, next, latest) in bars {
        let settings = Settings { format: Format::FaasChains, ..Settings::default() };
        let path = folder.join(format!("{name}.ndjson.gz"));
        let report = eval::file(&path, &settings, |number, reason| panic!("{name}:{number}: {reason}")).unwrap();
        let scores = &report.scores;
        assert!(scores.at_call_accuracy >= next, "{name}: {} below {next}", scores.at_call_accuracy);
        assert!(scores.next_accuracy >= latest, "{name}: {} below {latest}", scores.next_accuracy);
        assert!(scores.ece <= 0.03, "{name}: calibration error {}", scores.ece);
        let sets = &report.baselines.set_counts;
        assert!(
            scores.next_accuracy >= sets.next_accuracy && scores.log_loss <= sets.log_loss,
            "{name}: sets do better"
        );
        assert!(scores.time_mae_ms < report.time_mad_ms, "{name}: {} ms", scores.time_mae_ms);
        let edges = report.baselines.edge_counts.decision.cost;
        assert!(!name.ends_with("high") || scores.decision.cost < edges, "{name}: edge counts decide better");
    }
}

/// Time of this thread on a processor: other work on the machine does not count.
fn busy() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A forecast costs at most 5 µs, and 1,000 paths are learned in at most 1 s.
#[test]
#[ignore = "measures time; needs --release and a quiet machine"]
fn figures_of_cost() {
    let mut forecaster = Forecaster::default();
    let names: Vec<String> = (0..12).map(|name| format!("function-{name}")).collect();
    // Two branches that overtake each other, so that there is always something to weigh.
    let path = |path: u64| -> Vec<(&str, i64, i64, bool)> {
        let swap =
            |call: usize| if call > 0 && path.wrapping_mul(0x9e37_79b9) >> call & 1 == 1 { call ^ 1 } else { call };
        (0..12)
            .map(|call| (names[swap(call).clamp(1, 11)].as_str(), 20, 5 + (path % 50) as i64, path.is_multiple_of(3)))
            .collect()
    };
    let begin = busy();
    for id in 0..1000 {
        play(&mut forecaster, id, id as i64 * 1000, &path(id));
    }
    let learning = busy() - begin;
    let now = prefix(&mut forecaster, 1000, 1_000_000, &path(1000)[..5]);
    let begin = busy();
    let rounds = 20_000;
    let mut sum = 0;
    for round in 0..rounds {
        sum += forecaster.forecast(1000, now + 1 + round, 2000.0).len();
    }
    let each = (busy() - begin) / rounds as u32;
    let begin = busy();
    for _ in 0..rounds {
        sum += usize::from(forecaster.next(1000, AsOf::Latest).is_some());
    }
    println!(
        "1,000 paths in {learning:?}, a forecast in {each:?}, what is next in {:?} ({sum})",
        (busy() - begin) / rounds as u32
    );
    assert!(learning.as_secs_f64() < 1.0, "{learning:?}");
    assert!(each.as_secs_f64() < 5e-6, "{each:?}");
}
