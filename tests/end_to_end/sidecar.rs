//! Knative's queue-proxy: a pod whose requests come to a proxy in one container, and from there to the function in
//! another. The pod is a network namespace of its own, as in Kubernetes: the proxy's ports are always the same.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    functions::{prepared, source},
    sandbox::{Sandbox, Slice},
    truth,
};

/// Where the proxy listens, where it finds the function, and where the one that the function calls listens.
const PROXY: u16 = 8012;
const FUNCTION: u16 = 8080;
const CALLEE: u16 = 8090;

/// A network namespace; it lives as long as the process that sleeps in it.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n");
        Self(child)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(program).stdin(Stdio::null());
        command
    }

    /// `None` as long as nobody answers with 200.
    fn post(&self, port: u16, path: &str, body: &Value) -> Option<Value> {
        let output = self
            .command("curl")
            .args(["--silent", "--fail", "--noproxy", "*", "--max-time", "30", "--data", &body.to_string()])
            .args(["--header", "content-type: application/json", &format!("http://127.0.0.1:{port}{path}")])
            .output()
            .unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn wait_until_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.post(PROXY, "/up", &json!({"calls": []})).is_none() {
            assert!(Instant::now() < deadline, "nobody answers");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program in a sandbox of its own.
struct Container<'a> {
    sandbox: Sandbox,
    child: Child,
    slice: &'a Slice,
}

impl<'a> Container<'a> {
    fn start(slice: &'a Slice, kind: &str, command: &mut Command) -> Self {
        let sandbox = slice.sandbox(kind);
        let log = File::create(slice.files().join(sandbox.name())).unwrap();
        let child = sandbox.spawn(command.stdout(log.try_clone().unwrap()).stderr(log));
        Self { sandbox, child, slice }
    }

    fn function(slice: &'a Slice, network: &Network, kind: &str, port: u16) -> Self {
        let program = prepared(source().join(".cache/go/function"));
        let mut command = network.command(program.to_str().unwrap());
        command.env("HOST", "127.0.0.1").env("PORT", port.to_string());
        Self::start(slice, kind, &mut command)
    }

    fn proxy(slice: &'a Slice, network: &Network) -> Self {
        let program = prepared(source().join(".cache/knative/queue-proxy"));
        let probe = json!({"tcpSocket": {"host": "127.0.0.1", "port": FUNCTION}, "successThreshold": 1});
        let mut command = network.command(program.to_str().unwrap());
        command
            .env("CONTAINER_CONCURRENCY", "0")
            .env("QUEUE_SERVING_PORT", PROXY.to_string())
            .env("QUEUE_SERVING_TLS_PORT", "8112")
            .env("USER_PORT", FUNCTION.to_string())
            .env("REVISION_TIMEOUT_SECONDS", "300")
            .env("SERVING_READINESS_PROBE", probe.to_string())
            .env("SERVING_LOGGING_CONFIG", "")
            .env("SERVING_LOGGING_LEVEL", "info")
            .env("SERVING_POD_IP", "127.0.0.1");
        for name in ["NAMESPACE", "CONFIGURATION", "REVISION", "POD"] {
            command.env(format!("SERVING_{name}"), "fntrace-test");
        }
        Self::start(slice, "queue-proxy", &mut command)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.sandbox.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let said = fs::read_to_string(self.slice.files().join(self.sandbox.name())).unwrap_or_default();
            eprintln!("--- what {} said:\n{said}", self.sandbox.name());
        }
    }
}

#[test]
#[ignore = "`cargo xtask platforms` builds Knative's queue-proxy, which takes minutes"]
fn what_knatives_queue_proxy_hands_to_the_function_is_one_path() {
    let slice = Slice::new();
    let network = Network::new();
    let agent = Agent::start(&slice);
    let callee = Container::function(&slice, &network, "callee", CALLEE);
    let function = Container::function(&slice, &network, "user-container", FUNCTION);
    let proxy = Container::proxy(&slice, &network);
    network.wait_until_up();
    let url = format!("http://127.0.0.1:{CALLEE}");
    let plan = |count: usize| json!({"calls": vec![json!({"url": url, "plan": {}}); count]});
    let answers: Vec<_> = (0..3).map(|n| network.post(PROXY, &format!("/{n}"), &plan(n)).unwrap()).collect();
    let finished = agent.stop();
    for (n, answer) in answers.iter().enumerate() {
        let of = |path: &&Value| path["root"]["http"]["path"] == format!("/{n}");
        let paths: Vec<_> = truth::paths(&finished.lines).filter(of).collect();
        let [path] = paths[..] else { panic!("{paths:#?}\n{:#?}", finished.lines) };
        let front = &path["root"];
        assert_eq!((&path["complete"], &front["function"]), (&json!(true), &json!(proxy.sandbox.name())), "{path:#}");
        let [handed] = &front["children"].as_array().unwrap()[..] else { panic!("{path:#}") };
        assert_eq!(handed["to"], function.sandbox.name(), "{path:#}");
        let invocation = &handed["children"][0];
        assert_eq!(invocation["function"], function.sandbox.name(), "{path:#}");
        let (calls, received) = (invocation["children"].as_array().unwrap(), answer["children"].as_array().unwrap());
        assert_eq!((calls.len(), received.len()), (n, n), "{path:#}");
        for (call, received) in calls.iter().zip(received) {
            assert_eq!(call["children"][0]["function"], callee.sandbox.name(), "{path:#}");
            let sent = received["traceparent"].as_str().unwrap();
            assert_eq!(sent.split('-').nth(2), call["span_id"].as_str(), "{path:#}");
        }
    }
}

/// The proxy says in a header of its own that nobody samples: seen from the function alone, that is the caller's wish.
#[test]
#[ignore = "`cargo xtask platforms` builds Knative's queue-proxy, which takes minutes"]
fn without_the_proxy_its_word_on_sampling_counts() {
    let (slice, outside) = (Slice::new(), Slice::new());
    let network = Network::new();
    let agent = Agent::start(&slice);
    let _function = Container::function(&slice, &network, "user-container", FUNCTION);
    let _proxy = Container::proxy(&outside, &network);
    network.wait_until_up();
    let answer = network.post(PROXY, "/0", &json!({"calls": []})).unwrap();
    let traceparent = answer["traceparent"].as_str().unwrap();
    assert!(traceparent.ends_with("-00"), "{traceparent}");
    let finished = agent.stop();
    assert_eq!(truth::paths(&finished.lines).count(), 0, "{:#?}", finished.lines);
    assert!(finished.stats()["unsampled"].as_u64().is_some_and(|count| count >= 2), "{}", finished.stats());
}
