//! What a run wrote down, replayed: the same lines, without the kernel.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    agent::{Agent, fntrace, fntrace_ends},
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq},
    sandbox::Slice,
    truth,
};

struct Recording(PathBuf);

impl Recording {
    fn new(name: &str) -> Self {
        Self(env::temp_dir().join(format!("fntrace-test-{}-{name}", process::id())))
    }

    fn argument(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// The lines that come out but for the counts, the command's exit status, and what it said.
    fn replay(&self, format: &str) -> (Vec<Value>, Option<i32>, String) {
        let output = fntrace_ends(fntrace().args(["replay", "--format", format]).arg(&self.0));
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (paths(lines), output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn paths(lines: Vec<Value>) -> Vec<Value> {
    lines.into_iter().filter(|line| line["type"] != "stats").collect()
}

#[test]
fn a_recorded_run_replays_to_the_same_lines() {
    let (slice, recording) = (Slice::new(), Recording::new("whole"));
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--record", recording.argument()]);
    let plan = plan([seq(&node, plan([seq(&go, leaf())])), seq(&go, leaf())]);
    let answers = [python.client().run(&id("one"), &plan), python.client().run(&id("two"), &plan)];
    let (_, finished) = truth::assert_traced(agent, &answers);
    assert_eq!(fs::metadata(&recording.0).unwrap().permissions().mode() & 0o777, 0o600);
    let (again, code, said) = recording.replay("ndjson");
    assert_eq!(code, Some(0), "{said}");
    let first = paths(finished.lines);
    assert!(first.len() >= 2, "{first:#?}");
    assert_eq!(again, first);
    let (exported, code, said) = recording.replay("otlp-json");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("records"), "the counts: {said}");
    assert_eq!(ids(&exported, "spanId"), ids(&first, "span_id"));
}

/// The values that a key has anywhere in these lines, in order.
fn ids(lines: &[Value], key: &str) -> Vec<String> {
    fn collect(value: &Value, key: &str, found: &mut Vec<String>) {
        match value {
            Value::Array(all) => all.iter().for_each(|value| collect(value, key, found)),
            Value::Object(fields) => {
                found.extend(fields.get(key).and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, key, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    lines.iter().for_each(|line| collect(line, key, &mut found));
    found.sort_unstable();
    found
}

#[test]
fn what_a_killed_agent_has_recorded_is_replayed_and_said_to_be_cut() {
    let (slice, recording) = (Slice::new(), Recording::new("cut"));
    let [python, node, _] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--record", recording.argument()]);
    let answer = python.client().run(&id("cut"), &plan([seq(&node, leaf())]));
    assert_eq!(answer["children"].as_array().unwrap().len(), 1, "{answer}");
    agent.wait_for("path", |lines| lines.iter().any(|line| line["type"] == "path").then_some(()));
    agent.stop_by(Signal::KILL);
    let (again, code, said) = recording.replay("ndjson");
    assert_eq!((again.len(), code), (1, Some(1)), "{said}");
    assert!(said.contains("in the midst of the run"), "{said}");
}
