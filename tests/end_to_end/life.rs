//! The agent's life: how it starts, refuses, ends and is killed, and that the traffic does not notice.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, Output},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, fntrace, fntrace_ends},
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq, with},
    sandbox::Slice,
    truth,
};

/// Most requests that one test makes while it waits for something.
const MANY: usize = 20_000;

fn is_one_line(output: &Output, status: &[i32]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| status.contains(&code)), "{}: {stderr}", output.status);
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    stderr
}

fn a_signal_ends_it_and_leaves_the_traffic_alone(signal: Signal) {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let tree = plan([seq(&node, plan([seq(&python, leaf())]))]);
    let mut client = go.client();
    let answers: Vec<_> = (0..5).map(|_| client.run(&id("before"), &tree)).collect();
    let truth = truth::truth(&answers);
    truth::wait(&agent, &truth);
    let finished = agent.stop_by(signal);
    assert_eq!(finished.status.code(), Some(0), "{:#?}", finished.stderr);
    truth::assert_tagged(&truth, &truth::trace(&finished.lines));
    truth::assert_counts(&finished);
    // On with the connections that were enrolled.
    for _ in 0..5 {
        let answer = client.run(&id("after"), &tree);
        let after = truth::truth(std::slice::from_ref(&answer));
        assert_eq!(after.len(), 3, "{answer:#}");
        assert!(after.values().all(|known| known.traceparent.is_none()), "something is still attached: {answer:#}");
    }
    assert_eq!(client.connects(), 1);
}

#[test]
fn sigterm_ends_it_and_leaves_the_traffic_alone() {
    a_signal_ends_it_and_leaves_the_traffic_alone(Signal::TERM);
}

#[test]
fn sigint_ends_it_and_leaves_the_traffic_alone() {
    a_signal_ends_it_and_leaves_the_traffic_alone(Signal::INT);
}

#[test]
fn what_is_in_flight_at_the_end_is_not_lost() {
    let slice = Slice::new();
    let [python, node, _] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let answer = node.client().run(&id("last"), &plan([seq(&python, leaf())]));
    // At once, well within the settle time.
    let finished = agent.stop();
    let truth = truth::truth(&[answer]);
    truth::assert_tagged(&truth, &truth::trace(&finished.lines));
    truth::assert_counts(&finished);
}

#[test]
fn starting_and_killing_it_under_load_fails_no_request() {
    let slice = Slice::new();
    let [_, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let nginx = Function::nginx(&slice, &go);
    // The second on a connection that the agent sees being made: where enrolled sockets need a repair, older ones are not
    // tagged.
    let tree = plan([seq(&node, plan([seq(&go, leaf())])), with(seq(&node, leaf()), json!({"fresh": true}))]);
    let (stop, done, tagged) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let more = |count: usize| {
        let (from, deadline) = (done.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(30));
        while done.load(Ordering::Relaxed) < from + count {
            assert!(Instant::now() < deadline, "the load stands still");
            thread::sleep(Duration::from_millis(5));
        }
    };
    let failed: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = nginx.client();
                    let mut failed = Vec::new();
                    for _ in 0..MANY {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        match client.try_run(&id("load"), &tree, &[]) {
                            Ok(answer) if answer.to_string().contains("\"error\"") => failed.push(answer.to_string()),
                            Ok(answer) if answer["children"][1]["traceparent"].is_string() => {
                                tagged.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(_) => {}
                            Err(error) => failed.push(error.to_string()),
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    failed
                })
            })
            .collect();
        // The load ends also when what follows panics; otherwise the scope would wait for it.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            more(50);
            for round in 1..=3 {
                let mut agent = Agent::start(&slice);
                more(100);
                agent.signal(Signal::KILL);
                let finished = agent.finish();
                assert_eq!(
                    finished.status.signal(),
                    Some(9),
                    "round {round}: it ended by itself: {:#?}",
                    finished.stderr
                );
                more(100);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let failed = clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failed
    });
    assert!(
        failed.is_empty(),
        "{} of {} requests failed: {:#?}",
        failed.len(),
        done.into_inner(),
        &failed[..failed.len().min(3)]
    );
    assert!(tagged.into_inner() > 0, "no call was tagged while the agent ran");
    // Nothing is pinned: not a tag after the last kill, and a new agent starts on the same sandboxes.
    let answer = nginx.client().run(&id("untagged"), &tree);
    assert!(truth::truth(&[answer]).values().all(|known| known.traceparent.is_none()));
    let agent = Agent::start(&slice);
    let answers = [node.client().run(&id("again"), &plan([seq(&go, leaf())]))];
    let truth = truth::truth(&answers);
    truth::assert_same_edges(&truth, &{
        let mut trace = truth::wait(&agent, &truth);
        trace.retain(|key, _| truth.contains_key(key));
        trace
    });
    agent.stop();
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let slice = Slice::new();
    let [python, node, _] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let (mut agent, stdout) = Agent::start_piped(&slice, &[]);
    let mut client = node.client();
    let tree = plan([seq(&python, leaf())]);
    client.run(&id("head"), &tree);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).unwrap(); // and closes the pipe, as `head -n 1` does
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["type"], "path", "{line}");
    client.run(&id("head"), &tree);
    let finished = agent.finish();
    assert_eq!(finished.status.code(), Some(0), "{:#?}", finished.stderr);
    let after: Vec<_> =
        finished.stderr.iter().skip_while(|line| !line.starts_with("fntrace: tracing")).skip(1).collect();
    assert!(after.is_empty(), "{after:#?}");
    assert_eq!(
        client.run(&id("after"), &tree)["children"][0]["traceparent"],
        Value::Null,
        "something is still attached"
    );
}

#[test]
fn a_second_agent_on_the_same_sandboxes_is_refused() {
    let slice = Slice::new();
    let [python, node, _] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    for below in ["", &format!("/{}", python.name())] {
        let cgroup = format!("{}{below}", slice.argument());
        let output = fntrace_ends(fntrace().args(["run", "--format", "ndjson", "--cgroup", &cgroup]));
        is_one_line(&output, &[3]);
    }
    // And the first one goes on.
    let answer = node.client().run(&id("first"), &plan([seq(&python, leaf())]));
    truth::assert_traced(agent, &[answer]);
}

#[test]
fn two_agents_on_sandboxes_of_their_own_do_not_meet() {
    let slices = [Slice::new(), Slice::new()];
    let functions = slices.each_ref().map(|slice| [Kind::Node, Kind::Go].map(|kind| Function::start(slice, kind)));
    let agents = slices.each_ref().map(Agent::start);
    for (agent, [node, go]) in agents.into_iter().zip(&functions) {
        let answer = node.client().run(&id("apart"), &plan([seq(go, leaf())]));
        truth::assert_traced(agent, &[answer]);
    }
}

#[test]
fn a_cgroup_that_does_not_exist_is_refused() {
    let slice = Slice::new();
    let missing = format!("{}/missing", slice.argument());
    let stderr = is_one_line(&fntrace_ends(fntrace().args(["run", "--cgroup", &missing])), &[2, 3]);
    assert!(stderr.contains(&missing), "it does not say which: {stderr}");
}

#[test]
fn without_root_it_is_refused() {
    let slice = Slice::new();
    // Where an unprivileged user can reach it.
    let copy = slice.files().join("fntrace");
    fs::copy(fntrace().get_program(), &copy).unwrap();
    for path in [slice.files(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&copy);
    command.args(["run", "--cgroup", &slice.argument()]).current_dir("/").uid(65534).gid(65534);
    let stderr = is_one_line(&fntrace_ends(&mut command), &[3]);
    assert!(stderr.contains("root") || stderr.contains("CAP_"), "it does not say what is missing: {stderr}");
}
