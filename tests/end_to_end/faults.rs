//! The agent killed, stopped, replaced and starved under load: the traffic does not notice, and what is lost is counted.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Finished, fntrace, fntrace_ends},
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq, with},
    sandbox::Slice,
    truth,
};

/// No request may take longer, with the agent and what befalls it or without. Loading the programs takes a core for a
/// second or two, and CI has two of them.
const BOUND: Duration = Duration::from_secs(4);

const CLIENTS: usize = 4;

/// How long an agent stands still. A minute if `FNTRACE_LONG` is set.
fn standstill() -> Duration {
    Duration::from_secs(if std::env::var_os("FNTRACE_LONG").is_some() { 60 } else { 8 })
}

/// nginx before Go, which calls Node.js: three invocations and two calls a request, so ten records.
struct Functions {
    nginx: Function,
    _go: Function,
    node: Function,
}

const RECORDS: u64 = 10;

impl Functions {
    fn start(slice: &Slice) -> Self {
        let [node, go] = [Kind::Node, Kind::Go].map(|kind| Function::start(slice, kind));
        Self { nginx: Function::nginx(slice, &go), _go: go, node }
    }
}

/// Clients that send one request after the other until they are told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicUsize,
    tagged: AtomicUsize,
    failed: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Load {
    /// Carries out `faults` while the functions are under load. No request may fail or take longer than [`BOUND`].
    fn run(functions: &Functions, faults: impl FnOnce(&Self)) -> Self {
        let load = Self::default();
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let load = &load;
                scope.spawn(move || load.client(functions, client));
            }
            // The load ends also when what follows panics; otherwise the scope would wait for it.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                load.more(100);
                faults(&load);
            }));
            load.stop.store(true, Ordering::Relaxed);
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        let failed = load.failed.lock().unwrap();
        let done = load.done.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {done} requests failed: {:#?}", failed.len(), &failed[..failed.len().min(3)]);
        let slowest = *load.slowest.lock().unwrap();
        assert!(slowest < BOUND, "a request took {slowest:?}");
        drop(failed);
        load
    }

    /// Some keep their connections, some open a new one for each request, from end to end.
    fn client(&self, functions: &Functions, number: usize) {
        let fresh = number % 2 == 1;
        let tree = plan([with(seq(&functions.node, leaf()), json!({"fresh": fresh}))]);
        let mut client = functions.nginx.client();
        while !self.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let outcome = client.try_run(&id("load"), &tree, &[]);
            let took = start.elapsed();
            match outcome {
                Ok(answer) if answer["children"][0]["id"].is_string() && answer["children"][0]["error"].is_null() => {
                    if answer["children"][0]["traceparent"].is_string() {
                        self.tagged.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(answer) => self.failed.lock().unwrap().push(answer.to_string()),
                Err(error) => self.failed.lock().unwrap().push(error.to_string()),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            let mut slowest = self.slowest.lock().unwrap();
            *slowest = slowest.max(took);
            if fresh {
                client.close();
            }
        }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed) as u64
    }

    /// Waits for so many further requests.
    fn more(&self, count: usize) {
        let (from, deadline) = (self.done.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
        while self.done.load(Ordering::Relaxed) < from + count {
            assert!(Instant::now() < deadline, "the load stands still");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until calls are tagged: the agent works.
    fn tagged(&self) {
        let (from, deadline) = (self.tagged.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
        while self.tagged.load(Ordering::Relaxed) < from + 20 {
            assert!(Instant::now() < deadline, "no call is tagged");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn killed_stopped_and_replaced_under_load_it_fails_and_stalls_no_request() {
    let slice = Slice::new();
    let functions = Functions::start(&slice);
    Load::run(&functions, |load| {
        let untraced = *load.slowest.lock().unwrap();
        assert!(untraced < BOUND, "a request takes {untraced:?} here without an agent");
        for signal in [Signal::KILL, Signal::TERM] {
            let agent = Agent::start(&slice);
            load.tagged();
            let finished = agent.stop_by(signal);
            assert_eq!(finished.status.success(), signal == Signal::TERM, "{:#?}", finished.stderr);
            load.more(100);
        }
        let agent = Agent::start(&slice);
        load.tagged();
        agent.signal(Signal::STOP);
        thread::sleep(standstill());
        load.more(100);
        agent.signal(Signal::CONT);
        load.tagged();
        // Upgraded in place: the new one does not start beside the old one, and takes over when that has ended.
        let output = fntrace_ends(fntrace().args(["run", "--format", "ndjson", "--cgroup", &slice.argument()]));
        assert_eq!(output.status.code(), Some(3));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.lines().count() == 1 && stderr.contains("stop it first"), "{stderr}");
        load.tagged();
        agent.stop();
        let agent = Agent::start(&slice);
        load.tagged();
        agent.stop();
        load.more(100);
        eprintln!("slowest: {untraced:?} before, {:?} since", load.slowest.lock().unwrap());
    });
}

fn kernel(finished: &Finished, counter: &str) -> u64 {
    finished.stats()["kernel"][counter].as_u64().unwrap_or_else(|| panic!("no counter {counter}"))
}

/// Whether every call in the path has the invocation that it caused: all of them go to functions that are traced.
fn is_whole(node: &Value) -> bool {
    let children = node["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    (node["kind"] != "call" || children.len() == 1) && children.iter().all(is_whole)
}

#[test]
pub fn what_a_full_ring_buffer_refuses_is_counted_to_the_last_record() {
    let slice = Slice::new();
    let functions = Functions::start(&slice);
    // Small, so that it is full long before the agent goes on. All that is sent is seen from the first byte on.
    // Without the records that only inferring wants, there are as many for each request.
    let agent = Agent::start_with(&slice, &["--map-entries", "RECORDS=262144", "--infer-min", "1"]);
    let load = Load::run(&functions, |load| {
        agent.signal(Signal::STOP);
        thread::sleep(standstill());
        load.more(300);
        agent.signal(Signal::CONT);
        load.more(100);
    });
    // All is read again, so new paths are complete again.
    let tree = plan([seq(&functions.node, leaf())]);
    let after: Vec<Value> = (0..10).map(|_| functions.nginx.client().run(&id("after"), &tree)).collect();
    let known = truth::truth(&after);
    truth::wait(&agent, &known);
    let finished = agent.stop();
    let [records, lost] = ["records", "records_lost"].map(|name| kernel(&finished, name));
    let stats = finished.stats();
    let read: u64 = stats["records"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(lost > 0, "nothing was lost: {stats}");
    assert_eq!(records + lost, RECORDS * (load.count() + 10), "as many as were emitted: {stats}");
    assert_eq!((read, stats["lost"].as_u64()), (records, Some(lost)), "{stats}");
    let (mut complete, mut incomplete) = (0, 0);
    for path in truth::paths(&finished.lines) {
        let is_new = path["root"]["http"]["path"].as_str().is_some_and(|path| path.starts_with("/after"));
        if path["complete"] == true {
            complete += 1;
            assert!(is_whole(&path["root"]), "a part is missing from a path that is said to be complete: {path}");
        } else {
            incomplete += 1;
            assert!(!is_new, "{path}");
            assert!(path["missing"].as_array().is_some_and(|missing| !missing.is_empty()), "{path}");
        }
    }
    assert!(complete >= 10 && incomplete > 0, "{complete} complete, {incomplete} not");
    assert_eq!(stats["incomplete"], incomplete, "{stats}");
    eprintln!("{records} records read, {lost} lost; {complete} paths complete, {incomplete} not");
}

#[test]
pub fn full_maps_harm_no_traffic_and_are_counted() {
    let slice = Slice::new();
    let functions = Functions::start(&slice);
    let full = [
        ("INVOCATIONS=1", "invocations_full"),
        ("CONTEXTS=1", "invocations_full"),
        ("THREADS=1", "threads_full"),
        ("SOCKETS=1", "enrol_failed"),
    ];
    for (size, counter) in full {
        let agent = Agent::start_with(&slice, &["--map-entries", size]);
        Load::run(&functions, |load| load.more(200));
        let finished = agent.stop();
        assert!(kernel(&finished, counter) > 0, "{size}: {} {:#?}", finished.stats(), finished.stderr);
        if size.starts_with("SOCKETS") {
            assert!(finished.stats()["tags"]["not_enrolled"].as_u64() > Some(0), "{}", finished.stats());
        }
    }
}

#[test]
pub fn a_sandbox_that_finds_no_room_is_not_traced_and_counted() {
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    // The slice and the function are there; one more fits.
    let agent = Agent::start_with(&slice, &["--map-entries", "SANDBOXES=3"]);
    let [node, python] = [Kind::Node, Kind::Python].map(|kind| Function::start(&slice, kind));
    let answer = go.client().run(&id("room"), &plan([seq(&node, leaf()), seq(&python, plan([seq(&go, leaf())]))]));
    assert!(answer["children"][1]["traceparent"].is_string(), "{answer}");
    assert_eq!(answer["children"][1]["children"][0]["traceparent"], Value::Null, "{answer}");
    let finished = agent.stop();
    assert_eq!(kernel(&finished, "sandboxes_full"), 1, "{}", finished.stats());
}
