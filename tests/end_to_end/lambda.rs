//! Invocations that runtimes poll for: AWS's runtimes under AWS's runtime interface emulator.
//!
//! The truth is what the functions answer: the invocation's id as the runtime knows it, the process that ran it, and the
//! `traceparent` that reached the function which they called.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
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
    Node,
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
        if self == Self::Node {
            let client = prepared(cache.join("lambda-node/node_modules/aws-lambda-ric/index.mjs"));
            let root = source().join("lambda/node");
            let handler = handler.replace("handler.", "index.");
            let task_root = format!("LAMBDA_TASK_ROOT={}", root.display());
            return ["/usr/bin/env", &task_root, "node", client.to_str().unwrap(), &handler].map(str::to_owned).into();
        }
        let file = match self {
            Self::Python => cache.join("lambda-python/venv/bin/python"),
            Self::Go => cache.join("lambda-go/function"),
            Self::Rust => cache.join("lambda-rust/release/fntrace-lambda-function"),
            Self::Node => unreachable!("it has no program of its own"),
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
        let mut emulator = Command::new(prepared(source().join(".cache/lambda-emulator/emulator")));
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
    // Shortly after another invocation a thread that did not read the request, or the event, may go on with that one's
    // work: likely, not certain.
    let allows = |rule: &Value, exact: &[&str]| {
        let rule = rule.as_str().unwrap();
        exact.contains(&rule) || (rule == "inferred" && invocation["cold"] == false)
    };
    assert!(allows(&delivery["parent_by"], &["exclusive"]), "{delivery:#}");
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
        assert!(allows(&call["parent_by"], &["process", "thread", "exclusive"]), "{call:#}");
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
#[ignore = "`cargo xtask platforms` builds the runtime, which takes a minute"]
fn what_aws_lambda_ric_is_handed_is_an_invocation() {
    traces_its_invocations(Runtime::Node);
}

/// The end of the one path, once it has been printed.
fn only_front(finished: &Finished) -> &Value {
    let fronts = fronts(finished);
    assert_eq!(fronts.len(), 1, "{:#?}", finished.lines);
    assert_eq!(fronts[0]["complete"], true, "{:#}", fronts[0]);
    &fronts[0]["root"]
}

/// A runtime API in the test's process, for what the emulator does not give: it never sends a trace id. Hands out one
/// event, and then nothing more.
fn one_event(id: &str, trace: &str, event: &Value) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    let event = event.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: {id}\r\nLambda-Runtime-Deadline-Ms: 4102444800000\r\n\
         Lambda-Runtime-Invoked-Function-Arn: {ARN}own\r\nLambda-Runtime-Trace-Id: {trace}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{event}",
        event.len()
    );
    let left = Arc::new(Mutex::new(Some(answer)));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (left, tell) = (Arc::clone(&left), tell.clone());
            thread::spawn(move || {
                let mut stream = stream;
                let mut bytes = vec![0; 65_536];
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    let mut request = String::from_utf8_lossy(&bytes[..len]).into_owned();
                    // Go sends results in chunks, with trailers.
                    let whole = |request: &str| request.contains("\r\n0\r\n") && request.ends_with("\r\n\r\n");
                    while request.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked\r\n")
                        && !whole(&request)
                    {
                        let Ok(len @ 1..) = stream.read(&mut bytes) else { return };
                        request += &String::from_utf8_lossy(&bytes[..len]);
                    }
                    if !request.starts_with("GET ") {
                        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
                        let _ = tell.send(request);
                    } else if let Some(answer) = left.lock().unwrap().take() {
                        let _ = stream.write_all(answer.as_bytes());
                    }
                }
            });
        }
    });
    (address, told)
}

#[test]
fn an_amazon_trace_id_is_continued() {
    const ID: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
    const TRACE: &str = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1;Lineage=a:1|b:2";
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let (api, told) = one_event(ID, TRACE, &json!({"calls": [format!("{}/amazon", callee.url())]}));
    let sandbox = slice.sandbox("own");
    let mut command = Command::new(&Runtime::Go.command("")[0]);
    let mut child = sandbox.spawn(command.env("AWS_LAMBDA_RUNTIME_API", api.to_string()).stdout(Stdio::null()));
    let result = told.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(result.starts_with(&format!("POST /2018-06-01/runtime/invocation/{ID}/response ")), "{result}");
    let sent = result.split_once("\"traceparent\":\"").unwrap().1;
    let finished = agent.stop();
    sandbox.kill();
    child.wait().unwrap();
    let paths: Vec<_> = truth::paths(&finished.lines).collect();
    assert_eq!(paths.len(), 1, "{:#?}", finished.lines);
    assert_eq!(paths[0]["trace_id"], "5759e988bd862e3fe1be46a994272793", "{:#}", paths[0]);
    let root = &paths[0]["root"];
    assert_eq!((&root["faas"]["invocation_id"], &root["outside_parent"]), (&json!(ID), &json!("53995c3f42cd8ad8")));
    let call = &root["children"][0];
    assert_eq!((&call["parent_by"], &call["tag"]), (&json!("exclusive"), &json!("injected")), "{call:#}");
    assert_eq!(call["children"][0]["function"], callee.name(), "{call:#}");
    let expected = format!("00-5759e988bd862e3fe1be46a994272793-{}-01", call["span_id"].as_str().unwrap());
    assert!(sent.starts_with(&expected), "{sent}");
}

/// The runtime's sandbox is another than the emulator's, as where a platform serves the runtime API on the host.
#[test]
fn a_runtime_in_a_sandbox_of_its_own_is_joined_to_its_front() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let inside = slice.sandbox("inside");
    let agent = Agent::start(&slice);
    let runtime = Runtime::Python.command("handler.handle").join(" ");
    let enter = format!("echo 0 > {}; exec {runtime}", inside.procs_file().display());
    let emulated = Emulated::start_as(&slice, &["/bin/sh".to_owned(), "-c".to_owned(), enter], "300");
    let event = json!({"calls": [format!("{}/apart", callee.url())], "headers": {"traceparent": CONTEXT}});
    let answer = emulated.invoke(&event, &[]);
    assert!(answer["invocation_id"].is_string(), "{answer}\n{}", emulated.said());
    let finished = agent.stop();
    let front = only_front(&finished);
    assert_eq!(front["function"], emulated.name);
    let (delivery, invocation) = polled(front);
    let path = invocation["sandbox"].as_str().unwrap();
    assert!(path.ends_with(inside.name()) && !front["sandbox"].as_str().unwrap().ends_with(inside.name()), "{path}");
    assert_eq!(delivery["to"], invocation["function"], "{delivery:#}");
    assert_eq!(invocation["joined_by"], "wire");
    let call = &invocation["children"][0];
    assert_eq!((&call["tag"], &call["parent_by"]), (&json!("injected"), &json!("exclusive")), "{call:#}");
    assert_eq!(call["children"][0]["function"], callee.name(), "{call:#}");
}

const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Only the runtime is traced, not the front: what the platform puts into the event tells where it came from.
#[test]
fn a_context_in_the_event_is_the_outside_parent() {
    let slice = Slice::new();
    let outside = Slice::new();
    let inside = slice.sandbox("inside");
    let agent = Agent::start(&slice);
    let runtime = Runtime::Python.command("handler.handle").join(" ");
    let enter = format!("echo 0 > {}; exec {runtime}", inside.procs_file().display());
    let emulated = Emulated::start_as(&outside, &["/bin/sh".to_owned(), "-c".to_owned(), enter], "300");
    let answer = emulated.invoke(&json!({"headers": {"traceparent": CONTEXT}}), &[]);
    let finished = agent.stop();
    let paths: Vec<_> = truth::paths(&finished.lines).collect();
    assert_eq!(paths.len(), 1, "{:#?}", finished.lines);
    let root = &paths[0]["root"];
    assert_eq!(root["faas"]["invocation_id"], answer["invocation_id"], "{root:#}");
    assert_eq!(root["outside_parent"], "00f067aa0ba902b7", "{root:#}");
}

#[test]
fn errors_exits_and_time_outs_are_named() {
    names_what_went_wrong(&[Runtime::Python, Runtime::Go, Runtime::Rust]);
}

#[test]
#[ignore = "`cargo xtask platforms` builds the runtime, which takes a minute"]
fn errors_exits_and_time_outs_of_aws_lambda_ric_are_named() {
    names_what_went_wrong(&[Runtime::Node]);
}

fn names_what_went_wrong(runtimes: &[Runtime]) {
    for &runtime in runtimes {
        let slice = Slice::new();
        let agent = Agent::start(&slice);
        let emulated = Emulated::start_as(&slice, &runtime.command("handler.handle"), "5");
        let failed = emulated.invoke(&json!({"fail": true}), &[]);
        let word = failed["errorType"].as_str().unwrap_or_else(|| panic!("{runtime:?}: {failed}")).to_owned();
        emulated.invoke(&json!({"exit": true}), &[]);
        emulated.invoke(&json!({"sleep": 30}), &[]);
        let finished = agent.stop();
        let paths = fronts(&finished);
        assert_eq!(paths.len(), 3, "{runtime:?}: {:#?}\n{}", finished.lines, emulated.said());
        let said = |n: usize| {
            let invocation = polled(&paths[n]["root"]).1;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&invocation["error"]), text(&invocation["faas"]["error_type"]))
        };
        // The header that says so is the runtime's choice of word.
        assert_eq!(said(0).0, "failed", "{runtime:?}: {:#}", paths[0]);
        assert!(said(0).1.contains(&word) || said(0).1 == "unhandled", "{runtime:?}: {:?}, {word}", said(0));
        assert_eq!(said(1), ("the runtime exited".to_owned(), "Runtime.ExitError".to_owned()), "{runtime:?}");
        assert_eq!(said(2), ("timed out".to_owned(), "Sandbox.Timedout".to_owned()), "{runtime:?}");
        for path in paths {
            assert_eq!(path["complete"], true, "{runtime:?}: {path:#}");
        }
    }
}

#[test]
fn a_runtime_that_cannot_start_is_named_where_it_was_waited_for() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let emulated = Emulated::start_as(&slice, &Runtime::Python.command("no_such_module.handle"), "300");
    let answer = emulated.invoke(&json!({}), &[]);
    assert_eq!(answer["errorType"], "Runtime.ImportModuleError", "{answer}");
    let finished = agent.stop();
    let front = only_front(&finished);
    assert_eq!(front["error"], "the runtime could not start", "{front:#}");
    assert_eq!(front["faas"]["error_type"], "Runtime.ImportModuleError", "{front:#}");
}

/// A runtime that polled before the agent came: what it is handed next is traced, and is not its first.
#[test]
fn a_poll_that_is_older_than_the_agent_is_answered_with_an_invocation() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let emulated = Emulated::start(&slice, Runtime::Python);
    emulated.invoke(&json!({}), &[]);
    let agent = Agent::start(&slice);
    let event = json!({"calls": [format!("{}/older", callee.url())]});
    let answers = [emulated.invoke(&event, &[]), emulated.invoke(&event, &[])];
    let finished = agent.stop();
    let invocations = finished.lines.iter().flat_map(polled_in).collect::<Vec<_>>();
    assert_eq!(invocations.len(), 2, "{:#?}", finished.lines);
    for (invocation, answer) in invocations.iter().zip(&answers) {
        assert_eq!(invocation["faas"]["invocation_id"], answer["invocation_id"]);
        assert_eq!((&invocation["cold"], &invocation["faas"]["init_us"]), (&json!(false), &Value::Null));
    }
    check(fronts(&finished)[1], &answers[1], &emulated.name, &callee);
}

/// Every polled invocation at or below a node or line.
fn polled_in(node: &Value) -> Vec<&Value> {
    let mut found = if node["faas"]["invocation_id"].is_string() { vec![node] } else { Vec::new() };
    let below = node["children"].as_array().into_iter().flatten().chain(node.get("root"));
    found.extend(below.flat_map(polled_in));
    found
}

/// A stand-in for a runtime and its API, for an answer that no real one gives so far: a long header before the id.
#[test]
pub fn an_answer_whose_head_is_not_whole_is_counted() {
    let slice = Slice::new();
    let sandbox = slice.sandbox("long");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let agent = Agent::start(&slice);
    let ask = format!("http://{address}/2018-06-01/runtime/invocation/next");
    let mut asks = sandbox.spawn(Command::new("curl").args(["--silent", "--noproxy", "*", &ask]).stdout(Stdio::null()));
    let (mut stream, _) = listener.accept().unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nLambda-Runtime-Client-Context: {}\r\n\
         Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\nContent-Length: 2\r\n\r\n{{}}",
        "x".repeat(3000)
    );
    // In two pieces, the second of which begins within the line.
    stream.write_all(&answer.as_bytes()[..3060]).unwrap();
    thread::sleep(Duration::from_millis(50));
    stream.write_all(&answer.as_bytes()[3060..]).unwrap();
    assert!(asks.wait().unwrap().success());
    let finished = agent.stop();
    assert_eq!(finished.stats()["kernel"]["polls_unread"], 1, "{}", finished.stats());
    assert_eq!(truth::paths(&finished.lines).count(), 0, "{:#?}", finished.lines);
}
