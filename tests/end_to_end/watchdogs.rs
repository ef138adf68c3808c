//! Functions behind a proxy in their own sandbox, functions that are started for each request, and OpenWhisk's actions.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
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

/// A server in a sandbox, with all that it starts.
struct Server {
    address: SocketAddr,
    sandbox: Sandbox,
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(slice: &Slice, kind: &str, command: impl FnOnce(SocketAddr, &Sandbox) -> Command) -> Self {
        let sandbox = slice.sandbox(kind);
        let address = free_address(Ipv4Addr::LOCALHOST.into());
        let log = slice.files().join(format!("{}.log", sandbox.name()));
        let file = File::create(&log).unwrap();
        let mut command = command(address, &sandbox);
        command.env("K_SERVICE", sandbox.name()).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        let child = sandbox.spawn(command.stdout(file.try_clone().unwrap()).stderr(file));
        let mut server = Self { address, sandbox, child, log };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{kind} does not listen: {}", server.said());
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let response = Client::new(self.address)
            .request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
            .unwrap_or_else(|error| panic!("POST {path}: {error}\n{}", self.said()));
        serde_json::from_slice(&response.body)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", String::from_utf8_lossy(&response.body), self.said()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sandbox.kill();
        let _ = self.child.wait();
    }
}

/// The roots of all paths; each path has to be complete.
fn roots(finished: &Finished) -> Vec<&Value> {
    let roots = truth::paths(&finished.lines).map(|path| {
        assert_eq!(path["complete"], true, "{path:#}");
        &path["root"]
    });
    roots.collect()
}

/// Checks that an invocation made one call for each answer, and that each was received as it was recorded.
fn check_calls(invocation: &Value, answers: &Value, callee: &Function, rules: &[&str]) {
    let (calls, answers) = (invocation["children"].as_array().unwrap(), answers.as_array().unwrap());
    assert_eq!(calls.len(), answers.len(), "{invocation:#}");
    for (call, answer) in calls.iter().zip(answers) {
        assert_eq!(call["tag"], "injected", "{call:#}");
        assert!(rules.contains(&call["parent_by"].as_str().unwrap()), "{call:#}");
        assert_eq!(call["children"][0]["function"], callee.name(), "{call:#}");
        assert_eq!(call["children"][0]["joined_by"], "tag", "{call:#}");
        let sent = answer["traceparent"].as_str().unwrap();
        assert_eq!(sent.split('-').nth(2), call["span_id"].as_str(), "{call:#}");
    }
}

/// The one invocation below another, in the same sandbox, by way of one call.
fn nested(front: &Value) -> &Value {
    let calls = front["children"].as_array().unwrap();
    assert_eq!(calls.len(), 1, "{front:#}");
    let inner = &calls[0]["children"][0];
    assert_eq!((&inner["sandbox"], &inner["joined_by"]), (&front["sandbox"], &json!("tag")), "{front:#}");
    assert_ne!(inner["pid"], front["pid"], "{front:#}");
    inner
}

fn watchdog(mode: &str, process: &str, address: SocketAddr) -> Command {
    let mut command = Command::new(prepared(source().join(".cache/watchdog/function")));
    command.env("mode", mode).env("fprocess", process).env("listen", address.to_string());
    command
}

fn plan(callee: &Function, count: usize) -> Value {
    let calls: Vec<_> = (0..count).map(|_| json!({"url": callee.url(), "plan": {}})).collect();
    json!({"calls": calls})
}

#[test]
fn a_watchdog_that_is_a_proxy_and_its_function_are_two_invocations_one_inside_the_other() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Python);
    let agent = Agent::start(&slice);
    let server = Server::start(&slice, "watchdog", |address, _| {
        let inner = free_address(Ipv4Addr::LOCALHOST.into());
        let function = prepared(source().join(".cache/go/function"));
        let mut command = watchdog("http", function.to_str().unwrap(), address);
        command.env("upstream_url", format!("http://{inner}"));
        command.env("HOST", inner.ip().to_string()).env("PORT", inner.port().to_string());
        command
    });
    let answers = [2, 0, 1].map(|count| server.post(&format!("/http-{count}"), &plan(&callee, count)));
    let finished = agent.stop();
    // It tries whether the function listens, too.
    let mut roots = roots(&finished);
    roots.retain(|root| root["kind"] == "invocation");
    assert_eq!(roots.len(), 3, "{:#?}\n{}", finished.lines, server.said());
    // Go's goroutines change threads; its process is what tells. Shortly after another one, that is likely, not certain.
    let rules = [&["exclusive"][..], &["exclusive", "inferred"], &["exclusive", "inferred"]];
    for ((front, answer), rules) in roots.iter().zip(&answers).zip(rules) {
        assert!(rules.contains(&front["children"][0]["parent_by"].as_str().unwrap()), "{front:#}");
        let rules: Vec<_> = rules.iter().map(|rule| if *rule == "exclusive" { "process" } else { rule }).collect();
        check_calls(nested(front), &answer["children"], &callee, &rules);
    }
}

#[test]
fn nginx_before_the_function_in_one_sandbox_is_no_hindrance() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Python);
    let agent = Agent::start(&slice);
    let server = Server::start(&slice, "nginx", |address, sandbox| {
        let inner = free_address(Ipv4Addr::LOCALHOST.into());
        let directory = slice.files().join(sandbox.name());
        fs::create_dir(&directory).unwrap();
        let template = fs::read_to_string(source().join("nginx/nginx.conf.template")).unwrap();
        let config = template
            .replace("@DIR@", directory.to_str().unwrap())
            .replace("@LISTEN@", &address.to_string())
            .replace("@UPSTREAM@", &inner.to_string())
            .replace("@FUNCTION@", sandbox.name());
        fs::write(directory.join("nginx.conf"), config).unwrap();
        let nginx = format!(
            "{} & PATH=$PATH:/usr/sbin exec nginx -e stderr -p {dir} -c {dir}/nginx.conf",
            prepared(source().join(".cache/go/function")).display(),
            dir = directory.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &nginx]).env("HOST", inner.ip().to_string()).env("PORT", inner.port().to_string());
        command
    });
    // The function may come up after nginx.
    while Client::new(server.address).request("GET", "/ready", &[], b"").unwrap().status != 200 {
        thread::sleep(Duration::from_millis(20));
    }
    let answer = server.post("/nginx", &plan(&callee, 2));
    let finished = agent.stop();
    let roots = roots(&finished);
    let front = roots.iter().find(|root| root["http"]["path"] == "/nginx").unwrap();
    check_calls(nested(front), &answer["children"], &callee, &["process", "inferred"]);
}

#[test]
fn a_child_that_a_watchdog_starts_works_for_the_request_that_it_was_started_for() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let script = source().join("watchdog/cgi-bin/function.py");
    let server = Server::start(&slice, "watchdog", |address, _| {
        watchdog("streaming", &format!("python3 {}", script.display()), address)
    });
    let calls: Vec<_> = (0..2).map(|n| format!("{}/fork-{n}", callee.url())).collect();
    let answers = [server.post("/fork", &json!({"calls": calls})), server.post("/fork", &json!({"calls": []}))];
    let at_once = at_once(&server, "/at-once", &callee);
    let finished = agent.stop();
    let roots = roots(&finished);
    assert_eq!(roots.len(), 2 + AT_ONCE, "{:#?}", finished.lines);
    for (root, answer) in roots.iter().zip(&answers) {
        assert_ne!(root["pid"], answer["pid"], "the child has read nothing from a socket");
        check_calls(root, &answer["children"], &callee, &["exclusive"]);
    }
    // Go's threads serve all of them: its goroutines tell who forks.
    check_at_once(&roots, "/at-once", &at_once, &callee, &["lineage"]);
}

/// As the classic watchdog does it: who forks is a goroutine of its own, which has read nothing.
#[test]
fn a_child_that_another_goroutine_starts_is_known_where_goroutines_are_followed() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let script = source().join("watchdog/cgi-bin/function.py");
    let server = Server::start(&slice, "watchdog", |address, _| {
        watchdog("classic", &format!("python3 {}", script.display()), address)
    });
    let agent = Agent::start_with(&slice, &["--go-uprobes"]);
    let answers = at_once(&server, "/classic", &callee);
    let finished = agent.stop();
    let roots = roots(&finished);
    assert_eq!(roots.len(), AT_ONCE, "{:#?}", finished.lines);
    check_at_once(&roots, "/classic", &answers, &callee, &["lineage", "coroutine"]);
}

const AT_ONCE: usize = 8;

/// Requests that overlap, each with two calls.
fn at_once(server: &Server, path: &str, callee: &Function) -> Vec<Value> {
    thread::scope(|scope| {
        let ask = |n: usize| {
            let call = format!("{}/at-once-{n}", callee.url());
            let event = json!({"calls": [call, call], "sleep": 0.5});
            scope.spawn(move || server.post(&format!("{path}/{n}"), &event))
        };
        let asked: Vec<_> = (0..AT_ONCE).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

fn check_at_once(roots: &[&Value], path: &str, answers: &[Value], callee: &Function, rules: &[&str]) {
    for (n, answer) in answers.iter().enumerate() {
        let root = roots.iter().find(|root| root["http"]["path"] == format!("{path}/{n}"));
        let root = root.unwrap_or_else(|| panic!("no path of {n}: {roots:#?}"));
        check_calls(root, &answer["children"], callee, rules);
    }
}

/// Python's own CGI server: each request has a thread, which forks a child. Several at once are told apart.
#[test]
fn cgi_scripts_work_for_the_request_that_they_were_forked_for() {
    const CGI: &str = "/cgi-bin/function.py";
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let server = Server::start(&slice, "cgi", |address, _| {
        let mut command = Command::new(prepared(source().join(".cache/python/venv/bin/python")));
        command.args(["-W", "ignore", "-m", "http.server", "--cgi", "--bind", "127.0.0.1"]);
        command.arg(address.port().to_string());
        command.current_dir(source().join("watchdog"));
        command
    });
    let answers = at_once(&server, CGI, &callee);
    let finished = agent.stop();
    let roots = roots(&finished);
    assert_eq!(roots.len(), AT_ONCE, "{:#?}", finished.lines);
    // The body comes in on the socket itself, which is the script's standard input.
    check_at_once(&roots, CGI, &answers, &callee, &["exclusive", "thread", "lineage", "process"]);
}

/// An action of OpenWhisk's protocol: `/init` comes first, and is the cold start; `/run` is the work.
#[test]
fn an_openwhisk_action_is_cold_in_init_and_works_in_run() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let server = Server::start(&slice, "openwhisk", |address, _| {
        let mut command = Command::new(prepared(source().join(".cache/openwhisk/venv/bin/python")));
        command.arg(source().join("watchdog/openwhisk/action.py")).env("PORT", address.port().to_string());
        command
    });
    server.post("/init", &json!({"value": {"name": "function", "main": "main", "code": ""}}));
    let answer = server.post("/run", &json!({"value": {"calls": [format!("{}/whisk", callee.url())]}}));
    let finished = agent.stop();
    let roots = roots(&finished);
    let [init, run] = roots[..] else { panic!("{:#?}", finished.lines) };
    assert_eq!((&init["http"]["path"], &init["cold"]), (&json!("/init"), &json!(true)));
    assert_eq!((&run["http"]["path"], &run["cold"]), (&json!("/run"), &json!(false)));
    check_calls(run, &answer["children"], &callee, &["exclusive"]);
}
