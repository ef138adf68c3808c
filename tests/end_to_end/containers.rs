//! Real containers, made by runc: who they are, and how they start.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    container::{Container, Spec, long_id},
    functions::{self, Function, Kind},
    harness::{id, leaf, plan, seq},
    sandbox::Slice,
    truth::{self, Traced},
};

const POD: &str = "1b2e8d44-9f0a-4c9e-a6d1-3c5f0f1e2d3c";

fn call(url: String, plan: Value) -> Value {
    json!({"url": url, "mode": "seq", "plan": plan})
}

#[test]
fn containers_say_who_they_are() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let (pod, docker) = (long_id(), long_id());
    // Kubernetes by cgroupfs, Knative's variables; Docker's path, and the label of OpenFaaS; a name of the operator's own.
    let in_pod = Spec::new(pod.clone(), format!("kubepods/burstable/pod{POD}/{pod}"), "stock");
    let in_pod = in_pod.with("K_REVISION", "stock-00007").start(&slice).wait();
    let labelled = Spec {
        environment: Vec::new(),
        annotations: json!({"faas_function": "price"}),
        ..Spec::new(docker.clone(), format!("docker/{docker}"), "")
    };
    let labelled = labelled.with("HIDDEN", "1").start(&slice).wait();
    let name = format!("fntrace-plain-{}", std::process::id());
    let plain = Spec { environment: Vec::new(), user: true, ..Spec::new(name.clone(), "anywhere", "") };
    let plain = plain.start(&slice).wait();

    let inner = plan([call(plain.url(), leaf())]);
    let tree = plan([call(labelled.url(), inner)]);
    let request = id("who");
    let answer = in_pod.client().run(&request, &tree);
    assert!(answer["children"][0]["children"][0]["traceparent"].is_string(), "{answer}");

    let path = agent.wait_for("the path", |lines| path_of(lines, &request));
    let stock = &path["root"];
    let price = &stock["children"][0]["children"][0];
    let last = &price["children"][0]["children"][0];
    let resource = json!({"faas.name": "stock", "faas.version": "stock-00007", "faas.instance": pod, "container.id": pod,
        "container.runtime.name": "runc", "k8s.pod.uid": POD});
    assert_eq!((&stock["function"], &stock["resource"]), (&json!("stock"), &resource));
    let resource = json!({"faas.name": "price", "faas.instance": docker, "container.id": docker, "container.runtime.name": "docker"});
    assert_eq!((&price["function"], &price["resource"]), (&json!("price"), &resource));
    let resource = json!({"faas.name": name, "faas.instance": name, "container.id": name, "container.name": name,
        "container.runtime.name": "runc"});
    assert_eq!((&last["function"], &last["resource"]), (&json!(name), &resource));
    for (node, container) in [(stock, &in_pod), (price, &labelled), (last, &plain)] {
        assert_eq!(node["sandbox"], container.cgroup, "{node}");
    }
    for node in [price, last] {
        assert_eq!(node["joined_by"], "tag", "{node}");
    }
    agent.stop();
}

/// The line whose root is a request to `/id`.
pub fn path_of(lines: &[Value], id: &str) -> Option<Value> {
    truth::paths(lines).find(|line| line["root"]["http"]["path"] == format!("/{id}")).cloned()
}

/// The front of one function, as a platform has it: a call comes, and a container is made for it.
struct Front {
    listener: TcpListener,
    address: SocketAddr,
}

/// What the front saw, which is the truth about the start.
struct Seen {
    container: Container,
    /// From when runc was started until the container took the connection.
    start: Duration,
    /// What the container's process wrote.
    output: String,
}

impl Front {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Passes one call on to a container that runs for it alone, and waits until that is gone.
    fn serve(&self, slice: &Slice, spec: &Spec) -> Seen {
        let (mut caller, _) = self.listener.accept().unwrap();
        // The call is under way when the container is made.
        while caller.peek(&mut [0]).unwrap() == 0 {}
        let (mut command, container) = spec.prepare(slice);
        let begin = Instant::now();
        let mut runc = command.arg(&spec.id).spawn().expect("start runc; it is needed here");
        let mut sandbox = loop {
            match TcpStream::connect(spec.address) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => panic!("{}: {error}", spec.address),
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", container.errors());
            thread::yield_now();
        };
        let start = begin.elapsed();
        pass(&mut caller, &mut sandbox);
        let status = runc.wait().unwrap();
        assert!(status.success(), "{status}: {}", container.errors());
        let output = container.output();
        Seen { container, start, output }
    }
}

/// Passes the request on, and the answer back, until the function closes the connection.
fn pass(caller: &mut TcpStream, sandbox: &mut TcpStream) {
    let (mut from, mut to) = (caller.try_clone().unwrap(), sandbox.try_clone().unwrap());
    let requests = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
    let _ = io::copy(sandbox, caller);
    let _ = caller.shutdown(Shutdown::Both);
    requests.join().unwrap();
}

#[test]
fn a_container_that_lives_for_one_request_is_named_and_traced_in_full() {
    const CONTAINERS: usize = 5;
    let slice = Slice::new();
    let [caller, other] = [Function::start(&slice, Kind::Go), Function::start(&slice, Kind::Go)];
    let agent = Agent::start(&slice);
    let front = Front::new();
    let mut lives = Vec::new();
    let mut specs = Vec::new();
    let mut answers = Vec::new();
    for n in 0..CONTAINERS {
        let container = long_id();
        // Only the environment names it, and that is gone with the process.
        let spec = Spec::new(container.clone(), format!("kubepods/pod{POD}/{container}"), &format!("once-{n}"));
        let spec = spec.with("ONCE", "1").with("K_REVISION", "r1");
        let tree = plan([json!({"url": front.url(), "fresh": true, "plan": plan([seq(&other, leaf())])})]);
        let (answer, seen) = thread::scope(|scope| {
            let call = scope.spawn(|| caller.client().run(&id("once"), &tree));
            let seen = front.serve(&slice, &spec);
            // Its cgroup too, before the path is given out.
            drop(seen.container);
            (call.join().expect("the call"), seen.output)
        });
        let lived = seen.strip_prefix("lived ").and_then(|rest| rest.strip_suffix(" us\n")?.parse().ok());
        lives.push(Duration::from_micros(lived.unwrap_or_else(|| panic!("the function said {seen:?}"))));
        answers.push(answer);
        specs.push(spec);
    }
    let (trace, finished) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), CONTAINERS * 3);
    for (n, spec) in specs.iter().enumerate() {
        let (_, once) = trace.iter().find(|(key, _)| key.function == format!("once-{n}")).expect("it is named");
        let resource = json!({"faas.name": format!("once-{n}"), "faas.version": "r1", "faas.instance": spec.id,
            "container.id": spec.id, "k8s.pod.uid": POD});
        let mut found = once.node["resource"].clone();
        // Only where runc's state could still be read.
        found.as_object_mut().unwrap().remove("container.runtime.name");
        assert_eq!(found, resource);
        assert_eq!(once.node["cold"], true, "{}", once.node);
        assert!(once.node["cold_start"]["ready_us"].is_i64(), "{}", once.node);
        assert_eq!(once.node["children"].as_array().map(Vec::len), Some(1), "{}", once.node);
    }
    assert!(truth::paths(&finished.lines).all(|path| path["complete"] == true));
    // Each is traced, but a busy machine may make one live longer.
    assert!(lives.iter().any(|lived| *lived < Duration::from_millis(50)), "they lived {lives:?}");
    eprintln!("they lived {lives:?}");
}

#[test]
fn a_cold_start_is_told_from_the_birth_to_the_first_request() {
    const START: Duration = Duration::from_millis(150);
    let slice = Slice::new();
    let caller = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let front = Front::new();
    let spec = Spec::new(format!("fntrace-cold-{}", std::process::id()), "cold", "cold");
    let spec = spec.with("ONCE", "1").with("START", format!("{}ms", START.as_millis()));
    let tree = plan([json!({"url": front.url(), "fresh": true})]);
    let (cold, seen) = thread::scope(|scope| {
        let call = scope.spawn(|| caller.client().run(&id("cold"), &tree));
        let seen = front.serve(&slice, &spec);
        (call.join().expect("the call"), seen)
    });
    // Another one is there before it is called.
    let warm = Spec::new(format!("fntrace-warm-{}", std::process::id()), "warm", "warm").start(&slice);
    while TcpStream::connect(warm.address).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
    let warm = caller.client().run(&id("warm"), &plan([call(warm.url(), leaf())]));

    let (trace, _) = truth::assert_traced(agent, &[cold, warm]);
    let node = |function: &str| trace.iter().find(|(key, _)| key.function == function).expect("it is traced").1;
    let times = |traced: &Traced| {
        let start = &traced.node["cold_start"];
        let time = |key: &str| start[key].as_i64().unwrap_or_else(|| panic!("no {key}: {start}"));
        [time("born_us"), time("started_us"), time("ready_us"), traced.node["start_us"].as_i64().unwrap()]
    };
    let (cold, warm) = (node("cold"), node("warm"));
    let [born, started, ready, first] = times(cold);
    assert!(born < started && started < ready && ready <= first, "in their order: {}", cold.node);
    let us = |time: Duration| time.as_micros() as i64;
    assert!(ready - started >= us(START), "the function's own start: {}", cold.node);
    assert!(ready - born <= us(seen.start), "no longer than the front saw ({:?}): {}", seen.start, cold.node);
    let call = cold.call.as_ref().unwrap();
    let (from, took) = (call["start_us"].as_i64().unwrap(), call["duration_us"].as_i64().unwrap());
    assert!(from < born && first < from + took, "the call waits from before the birth: {call}");
    let waited = cold.node["cold_start"]["waited_us"].as_i64();
    // Either is rounded by itself.
    assert!(waited.is_some_and(|waited| (waited - (ready - born)).abs() <= 1), "{}", cold.node);
    assert!(ready - born < took, "a part of the wait, what runc did before it made the cgroup is another: {call}");

    let [born, started, ready, first] = times(warm);
    assert!(born < started && started < ready && ready < first, "{}", warm.node);
    assert_eq!(warm.node["cold_start"]["waited_us"], 0, "{}", warm.node);
    assert!(caller_is_not_cold(&trace), "the caller was there before the agent");
}

#[test]
fn a_chain_of_programs_goes_by_the_one_that_serves() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let address = functions::free_address(Ipv4Addr::LOCALHOST.into());
    let function = functions::prepared(functions::source().join(".cache/go/function"));
    // A shell, its child, the program that this becomes; only the last one's environment has the name, and with it goes.
    let script =
        format!("env K_SERVICE=chained PORT={} HOST=127.0.0.1 ONCE=1 '{}'; true", address.port(), function.display());
    let sandbox = slice.sandbox("anything");
    let mut shell = sandbox.spawn(Command::new("/bin/sh").args(["-c", &script]).env_clear().stdout(Stdio::null()));
    let request = id("chain");
    crate::client::Client::new(address).run_once_up(&request, &leaf());
    assert!(shell.wait().unwrap().success());
    let path = agent.wait_for("the path", |lines| path_of(lines, &request));
    let root = &path["root"];
    assert_eq!((&root["function"], &root["resource"]), (&json!("chained"), &json!({"faas.name": "chained"})), "{path}");
    // The start is the shell's, and the serving process the last of the chain.
    assert!(root["cold_start"]["started_us"].as_i64() < root["cold_start"]["ready_us"].as_i64(), "{path}");
    assert_ne!(root["pid"], shell.id(), "{path}");
    let finished = agent.stop();
    assert_eq!(finished.stats()["records"]["sandbox_exec"], 3, "shell, env, function: {}", finished.stats());
}

fn caller_is_not_cold(trace: &truth::Trace) -> bool {
    let mut callers = trace.iter().filter(|(key, _)| key.function.starts_with("go-")).map(|(_, traced)| &traced.node);
    callers.all(|node| node["cold"] == false && node["cold_start"].is_null())
}
