//! What keeps the cost down: the reader is woken by batch, and `--sample` and `--max-overhead` record less.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    agent::Agent,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq},
    sandbox::Slice,
    truth,
};

/// The id of the request that a path's root answered.
fn root_id(path: &Value) -> &str {
    path["root"]["http"]["path"].as_str().unwrap_or_default().trim_start_matches('/')
}

/// The reader sleeps between any two of these, and goes to sleep at all sorts of moments. A wake-up that is lost costs what
/// is left of the 50 ms until the agent looks by itself: 25 ms on average.
#[test]
fn a_lone_record_wakes_the_reader_at_once() {
    const REQUESTS: u64 = 60;
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let mut client = go.client();
    let mut delays: Vec<Duration> = (0..REQUESTS)
        .map(|number| {
            thread::sleep(Duration::from_millis(number * 7 % 31));
            let id = id("lone");
            client.run(&id, &leaf());
            let answered = Instant::now();
            agent.wait_for("path", |lines| truth::paths(lines).any(|path| root_id(path) == id).then_some(()));
            answered.elapsed()
        })
        .collect();
    delays.sort();
    let median = delays[delays.len() / 2];
    assert!(median < Duration::from_millis(10), "a path is on standard output after {median:?}: {delays:?}");
    truth::assert_counts(&agent.stop());
}

/// Sends requests for half of which nothing may be seen: a path is recorded whole or not at all, and the tag says which.
fn sampled_paths_are_whole(tag: &str) {
    const REQUESTS: usize = 80;
    let slice = Slice::new();
    let [python, go] = [Kind::Python, Kind::Go].map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--tag", tag, "--sample", "0.5"]);
    let mut client = python.client();
    let answers: Vec<Value> =
        (0..REQUESTS).map(|_| client.run(&id("half"), &plan([seq(&go, leaf()), seq(&go, leaf())]))).collect();
    let finished = agent.stop();
    let paths: Vec<&Value> = truth::paths(&finished.lines).collect();
    assert!((REQUESTS / 5..REQUESTS * 4 / 5).contains(&paths.len()), "{} of {REQUESTS} paths", paths.len());
    let mut recorded = 0;
    for answer in &answers {
        let path = paths.iter().find(|path| root_id(path) == answer["id"].as_str().unwrap());
        recorded += usize::from(path.is_some());
        for callee in answer["children"].as_array().unwrap() {
            let flag = callee["traceparent"].as_str().map(|context| context.ends_with("-01"));
            assert_eq!(flag, (tag == "on").then_some(path.is_some()), "{callee}");
        }
        if let Some(path) = path {
            let calls = path["root"]["children"].as_array().unwrap();
            assert_eq!(calls.iter().filter(|call| call["children"][0]["kind"] == "invocation").count(), 2, "{path}");
            assert_eq!(path["complete"], true, "{path}");
        }
    }
    // Nothing but whole paths: no part of one that was not recorded.
    assert_eq!(recorded, paths.len());
    let unsampled = (REQUESTS - recorded) * 5;
    assert_eq!(finished.stats()["kernel"]["unsampled"], unsampled, "{}", finished.stats());
    truth::assert_counts(&finished);
}

#[test]
pub fn a_sampled_path_is_recorded_whole_or_not_at_all_with_tags() {
    sampled_paths_are_whole("on");
}

#[test]
fn a_sampled_path_is_recorded_whole_or_not_at_all_without_tags() {
    sampled_paths_are_whole("off");
}

/// Under a load that costs more than is allowed, the function that has it is sampled until the agent keeps to the bound.
/// Of a function that is called now and then every path is there.
#[test]
fn the_governor_samples_the_frequent_and_leaves_the_rare() {
    let slice = Slice::new();
    let [busy, rare] = [Kind::Go, Kind::Node].map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--tag", "off", "--max-overhead", "5", "--stats-every", "500ms"]);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let overhead = |line: &Value| line["governor"]["overhead"].as_f64();
    let ids: Vec<String> = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = busy.client();
                while !stop.load(Ordering::Relaxed) {
                    client.run("busy", &leaf());
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Each line is looked at once: a test that is slow to read would have the agent wait, and cost nothing.
            let mut seen = 0;
            agent.wait_for("bound exceeded", |lines| {
                let new = &lines[std::mem::replace(&mut seen, lines.len())..];
                new.iter().filter_map(overhead).find(|cost| *cost > 5.0)
            });
            // What it had to record before is still to be worked off.
            for most in [100.0, 5.0] {
                let kept = |line: &Value| {
                    let share = line.pointer(&format!("/governor/shares/{}", busy.name()))?.as_f64()?;
                    (overhead(line)? <= most && share < 0.5).then_some(())
                };
                agent.wait_for("bound kept", |lines| {
                    let new = &lines[std::mem::replace(&mut seen, lines.len())..];
                    new.iter().find_map(kept)
                });
            }
            let mut client = rare.client();
            (0..10)
                .map(|_| {
                    let id = id("rare");
                    client.run(&id, &leaf());
                    thread::sleep(Duration::from_millis(300));
                    id
                })
                .collect()
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let finished = agent.stop();
    let stats = finished.stats();
    for id in &ids {
        assert!(truth::paths(&finished.lines).any(|path| root_id(path) == id), "{id} is missing: {stats}");
    }
    let recorded = truth::paths(&finished.lines).filter(|path| root_id(path) == "busy").count() as u64;
    let unsampled = stats["kernel"]["unsampled"].as_u64().unwrap();
    assert!(unsampled > 0 && recorded > 0, "{stats}");
    assert_eq!(recorded + unsampled, sent.load(Ordering::Relaxed), "{stats}");
    assert_eq!(stats["kernel"]["records_lost"], 0, "{stats}");
    assert!(!stats["governor"]["shares"].as_object().unwrap().contains_key(rare.name()), "{stats}");
    // Once it keeps to the bound, it does so for most of the time.
    let costs: Vec<f64> = finished.lines.iter().filter_map(overhead).collect();
    let exceeded = costs.iter().position(|cost| *cost > 5.0).unwrap();
    let kept = exceeded + costs[exceeded..].iter().position(|cost| *cost <= 5.0).unwrap();
    let since = &costs[kept..];
    assert!(since.iter().filter(|cost| **cost <= 6.5).count() * 3 >= since.len() * 2, "{costs:?}");
}

#[test]
fn without_an_option_nothing_is_sampled() {
    const REQUESTS: usize = 300;
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let mut client = go.client();
    for _ in 0..REQUESTS {
        client.run("all", &leaf());
    }
    let finished = agent.stop();
    assert_eq!(truth::paths(&finished.lines).count(), REQUESTS);
    assert_eq!(finished.stats()["kernel"]["unsampled"], 0);
    assert!(finished.stats().get("governor").is_none());
}
