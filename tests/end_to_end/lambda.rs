//! Invocations that runtimes poll for: AWS's runtimes under AWS's runtime interface emulator.
//!
//! The truth is what the functions answer: the invocation's id as the runtime knows it, the process that ran it, and the
//! `traceparent` that reached the function which they called.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    agent::{Agent, Finished},
    client::Client,
    functions::{Function, Kind, free_address, prepared, source},
    sandbox::{Sandbox, Slice},
    truth,
};

const INVOKE: &str = "/2015-03-31/functions/function/invocations";
const ARN: &str = "arn:aws:lambda:us-east-1:012345678912:function:";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runtime {
    Python,
    Go,
    Rust,
}

/// A function under the emulator, in a sandbox; or the emulator in one and the function in another.
struct Emulated {
    name: String,
    address: SocketAddr,
    log: PathBuf,
    sandbox: Sandbox,
    child: Child,
}

impl Runtime {

    /// The command that the emulator starts.
    fn command(self, handler: &str) -> Vec<String> {
        let cache = source().join(".cache");
        let file = match self {
            Self::Python => cache.join("lambda-python/venv/bin/python"),
            Self::Go => cache.join("lambda-go/function"),
            Self::Rust => cache.join("lambda-rust/target/debug/fntrace-lambda-function"),
        };
        let mut command = vec![prepared(file).to_str().unwrap().to_owned()];
        if self == Self::Python {
            command.extend(["-m", "awslambdaric", handler].map(str::to_owned));
        }
        command
    }
}

impl Emulated {
    fn start(slice: &Slice, runtime: Runtime) -> Self {
        Self::start_as(slice, &runtime.command("handler.handle"), "300")
    }

    fn start_as(slice: &Slice, command: &[String], timeout_s: &str) -> Self {
        let sandbox = slice.sandbox("lambda");
        let (address, api) = (free_address(Ipv4Addr::LOCALHOST.into()), free_address(Ipv4Addr::LOCALHOST.into()));
        let log = slice.files().join(format!("{}.log", sandbox.name()));
        let file = File::create(&log).unwrap();
        let mut emulator = Command::new(prepared(source().join(".cache/lambda-emulator/function")));
        emulator
            .args(["--runtime-interface-emulator-address", &address.to_string()])
            .args(["--runtime-api-address", &api.to_string()])
            .args(command)
            .env("AWS_LAMBDA_FUNCTION_NAME", sandbox.name())
            .env("AWS_LAMBDA_FUNCTION_TIMEOUT", timeout_s)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(source().join("lambda/python"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let child = sandbox.spawn(&mut emulator);
        let emulated = Self { name: sandbox.name().to_owned(), address, log, sandbox, child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the emulator does not listen\n{}", emulated.said());
            thread::sleep(Duration::from_millis(10));
        }
        emulated
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Invokes the function as a platform's client does; the answer, whatever its status.
    fn invoke(&self, event: &Value, headers: &[(&str, &str)]) -> Value {
        let mut client = Client::new(self.address);
        let response = client.request("POST", INVOKE, headers, event.to_string().as_bytes()).unwrap();
        serde_json::from_slice(&response.body)
            .unwrap_or_else(|_| json!(String::from_utf8_lossy(&response.body).into_owned()))
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        self.sandbox.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- what {} said:\n{}", self.name, self.said());
        }
    }
}

/// The invocation that a runtime polled for, below its front, and the delivery between them.
fn polled(front: &Value) -> (&Value, &Value) {
    let children = front["children"].as_array().unwrap();
    assert_eq!(children.len(), 1, "the front delivers once, and does nothing else: {front:#}");
    let delivery = &children[0];
    assert_eq!((&delivery["kind"], &delivery["tag"]), (&json!("call"), &json!("polled")), "{delivery:#}");
    assert_eq!(delivery["children"].as_array().unwrap().len(), 1, "{delivery:#}");
    (delivery, &delivery["children"][0])
}

/// Checks the path of one invocation: the front, what it hands out, and a call from there to `callee` for each of the
/// answer's children.
fn check(path: &Value, answer: &Value, function: &str, callee: &Function) {
    let front = &path["root"];
    assert_eq!(path["complete"], true, "{path:#}");
    assert_eq!((front["function"].as_str(), &front["http"]["path"]), (Some(function), &json!(INVOKE)), "{path:#}");
    let (delivery, invocation) = polled(front);
    assert_eq!(delivery["parent_by"], "exclusive", "{delivery:#}");
    assert_eq!((invocation["kind"].as_str(), invocation["function"].as_str()), (Some("invocation"), Some(function)));
    assert_eq!(invocation["joined_by"], "wire", "{invocation:#}");
    assert_eq!(invocation["faas"]["invocation_id"], answer["invocation_id"], "{invocation:#}");
    assert_eq!(invocation["faas"]["resource_id"], format!("{ARN}{function}"), "{invocation:#}");
    assert_eq!(invocation["pid"], answer["pid"], "{invocation:#}");
    assert!(invocation.get("http").is_none() && invocation.get("error").is_none(), "{invocation:#}");
    assert!(invocation["faas"]["deadline"].as_str().unwrap() > path["start"].as_str().unwrap(), "{path:#}");
    let span = |node: &Value| {
        let start = node["start_us"].as_i64().unwrap();
        (start, start + node["duration_us"].as_i64().unwrap_or_else(|| panic!("no end: {node:#}")))
    };
    let within = |outer: &Value, inner: &Value| {
        let ((a, d), (b, c)) = (span(outer), span(inner));
        // Each is cut to µs by itself.
        assert!(a <= b && b <= c && c <= d + 1, "{outer:#} does not hold {inner:#}");
    };
    within(front, delivery);
    within(delivery, invocation);
    let (calls, answers) = (invocation["children"].as_array().unwrap(), answer["children"].as_array().unwrap());
    assert_eq!(calls.len(), answers.len(), "polls and results are no calls: {invocation:#}");
    for (call, answer) in calls.iter().zip(answers) {
        assert_eq!(call["tag"], "injected", "{call:#}");
        assert!(["process", "thread", "exclusive"].contains(&call["parent_by"].as_str().unwrap()), "{call:#}");
        within(invocation, call);
        let below = &call["children"][0];
        assert_eq!(below["function"], callee.name(), "{call:#}");
        assert_eq!(below["joined_by"], "tag", "{call:#}");
        let trace_id = invocation.get("trace_id").unwrap_or(&path["trace_id"]).as_str().unwrap();
        let sent = format!("00-{trace_id}-{}-01", call["span_id"].as_str().unwrap());
        assert_eq!(answer["traceparent"], sent, "{call:#}");
    }
}

/// The paths that begin with a front, in order.
fn fronts(finished: &Finished) -> Vec<&Value> {
    let fronts = truth::paths(&finished.lines).filter(|path| path["root"]["http"]["path"] == INVOKE);
    fronts.collect()
}

fn traces_its_invocations(runtime: Runtime) {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let emulated = Emulated::start(&slice, runtime);
    let urls = |count: usize| (0..count).map(|n| format!("{}/{runtime:?}-{n}", callee.url())).collect::<Vec<_>>();
    let answers: Vec<Value> =
        [2, 0, 1].into_iter().map(|count| emulated.invoke(&json!({"calls": urls(count)}), &[])).collect();
    let finished = agent.stop();
    let fronts = fronts(&finished);
    assert_eq!(fronts.len(), 3, "{:#?}", finished.lines);
    assert_eq!(truth::paths(&finished.lines).count(), 3, "nothing else is a path: {:#?}", finished.lines);
    for (path, answer) in fronts.iter().zip(&answers) {
        assert!(answer["invocation_id"].is_string(), "{answer}\n{}", emulated.said());
        check(path, answer, &emulated.name, &callee);
    }
    let cold: Vec<_> = fronts.iter().map(|path| polled(&path["root"]).1["cold"] == true).collect();
    assert_eq!(cold, [true, false, false]);
    let init = |n: usize| polled(&fronts[n]["root"]).1["faas"]["init_us"].as_u64();
    let front_us = fronts[0]["duration_us"].as_u64().unwrap();
    assert!(init(0).is_some_and(|us| us > 0 && us < front_us), "{:?} of {front_us}", init(0));
    assert_eq!(init(1), None);
    // Three polls and three results, from both ends, and the poll that is still open.
    let kernel = &finished.stats()["kernel"];
    assert!(kernel["runtime_api"].as_u64().is_some_and(|count| (12..=14).contains(&count)), "{kernel}");
    assert_eq!(kernel["polls_unread"], 0, "{kernel}");
}

#[test]
pub fn what_awslambdaric_is_handed_is_an_invocation() {
    traces_its_invocations(Runtime::Python);
}

#[test]
fn what_aws_lambda_go_is_handed_is_an_invocation() {
    traces_its_invocations(Runtime::Go);
}

#[test]
fn what_lambda_runtime_is_handed_is_an_invocation() {
    traces_its_invocations(Runtime::Rust);
}

#[test]
pub fn an_answer_whose_head_is_not_whole_is_counted() {
    todo!()
}
