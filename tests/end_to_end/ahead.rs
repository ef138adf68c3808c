//! What `run` makes of paths while it runs: a profile in a file, and forecasts of the calls to come.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, fntrace, fntrace_ends},
    client::Listener,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq},
    sandbox::Slice,
};

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// µs since 1970 of a time as the output writes it.
fn time_us(time: &Value) -> i64 {
    time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond()
}

#[test]
fn a_profile_beside_the_run_is_whole_at_every_read_and_in_the_end_that_of_the_lines() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let file = slice.files().join("profile.json");
    let agent = Agent::start_with(&slice, &["--profile", file.to_str().unwrap()]);
    let done = AtomicBool::new(false);
    let read = || -> Value {
        let text = fs::read_to_string(&file).expect("the file is there from the start");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("half a profile ({error}): {text}"))
    };
    const REQUESTS: usize = 60;
    let counts = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut counts = vec![read()["paths"].as_u64().unwrap()];
            while !done.load(Ordering::Relaxed) {
                counts.push(read()["paths"].as_u64().unwrap());
            }
            counts
        });
        let mut client = python.client();
        for _ in 0..REQUESTS {
            client.run(&id("profiled"), &plan([seq(&node, plan([seq(&go, leaf())])), seq(&go, leaf())]));
            thread::sleep(Duration::from_millis(50));
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(counts.is_sorted(), "{counts:?}");
    let mut versions = counts.clone();
    versions.dedup();
    assert!(versions.len() >= 3 && versions[0] == 0, "rewritten as paths come: {versions:?}");
    let finished = agent.stop();
    let last = read();
    assert_eq!(last["paths"], REQUESTS);

    // The lines that the same run printed, read back.
    let mut profile =
        fntrace().args(["profile", "--format", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = profile.stdin.take().unwrap();
    for line in &finished.lines {
        writeln!(lines, "{line}").unwrap();
    }
    drop(lines);
    let output = profile.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), last);
}

#[test]
fn a_profile_that_cannot_be_written_is_an_error_of_usage() {
    let slice = Slice::new();
    let mut command = fntrace();
    command.args(["run", "--cgroup", &slice.argument(), "--profile", "/nowhere/at/all.json"]);
    let output = fntrace_ends(&mut command);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/at/all.json"), "{output:?}");
}

/// The bar for the median. Of a debug build, beside other tests, far more than it takes; less than half a tick of the agent,
/// so that waiting for one is noticed. What it took is printed.
const LATEST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 20 } else { 1 });

#[test]
fn calls_are_forecast_before_they_are_made_and_at_once() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let bank = Listener::start();
    let (agent, stdout) = Agent::start_piped(&slice, &["--forecast"]);
    let reader = thread::spawn(move || {
        let lines = BufReader::new(stdout).lines();
        lines.map(|line| (serde_json::from_str::<Value>(&line.unwrap()).unwrap(), now_us())).collect::<Vec<_>>()
    });
    const REQUESTS: usize = 120;
    let mut client = python.client();
    for _ in 0..REQUESTS {
        let calls = [seq(&node, plan([seq(&go, leaf())])), json!({"url": bank.url()})];
        client.run(&id("forecast"), &plan(calls));
    }
    thread::sleep(Duration::from_millis(600));
    let status = { agent }.stop_by(Signal::INT).status;
    assert!(status.success());
    let lines = reader.join().unwrap();

    let of = |kind: &str| lines.iter().filter(|line| line.0["type"] == kind).collect::<Vec<_>>();
    let (forecasts, paths) = (of("forecast"), of("path"));
    assert_eq!(paths.len(), REQUESTS);
    // A third of the requests to learn from.
    for (path, _) in &paths[REQUESTS / 3..] {
        let (trace, root) = (&path["trace_id"], &path["root"]);
        let start_us = time_us(&path["start"]);
        let calls = root["children"].as_array().unwrap();
        let inner = &calls[0]["children"][0]["children"][0];
        let made = [(node.name(), &calls[0]), (go.name(), inner), (calls[1]["host"].as_str().unwrap(), &calls[1])];
        for (callee, call) in made {
            let expected = forecasts.iter().map(|line| &line.0).find(|line| {
                let calls = line["calls"].as_array().unwrap();
                line["trace_id"] == *trace && calls.iter().any(|call| call["callee"] == callee)
            });
            let line = expected.unwrap_or_else(|| panic!("{callee} was not forecast: {path}"));
            let made_us = start_us + call["start_us"].as_i64().unwrap();
            assert!(time_us(&line["time"]) < made_us, "{callee} was forecast after it was called: {line}, {call}");
        }
    }
    let external: Vec<&Value> = forecasts
        .iter()
        .flat_map(|line| line.0["calls"].as_array().unwrap())
        .filter(|call| call["external"] == true)
        .collect();
    let last = external.last().expect("an external service is forecast");
    assert!(last["channel"]["rtt_us"].as_u64() > Some(0), "{last}");
    let wrong = external.iter().find(|call| !call["callee"].as_str().unwrap().starts_with("127.0.0.1"));
    assert!(wrong.is_none(), "a function is taken for an external service: {wrong:?}");

    let mut delays: Vec<i64> = forecasts.iter().map(|(line, read_us)| read_us - time_us(&line["time"])).collect();
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!(
        "from the kernel's event to the line on standard output, {} lines: p50 {} µs, p90 {} µs, p99 {} µs",
        delays.len(),
        at(0.5),
        at(0.9),
        at(0.99)
    );
    assert!(at(0.5) < LATEST.as_micros() as i64, "{delays:?}");
    assert!(at(0.0) >= 0, "a line before its event: {delays:?}");
}
