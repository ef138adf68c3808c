//! Two callers in sandboxes of their own, and whom they call: functions of the demo, which need nothing but the agent's
//! own executable. For where the other functions cannot be had, as in a virtual machine.
//!
//! ```text
//! client ─┬─ notify ─ mailer      both in sandboxes
//!         └─ payment ─ listener   outside: it tells what arrived
//! ```

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    agent::{Agent, fntrace},
    client::{Client, Listener},
    sandbox::Slice,
};

/// How calls are to be joined with what they caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinedBy {
    /// By the tag that was written into them.
    Tag,
    /// By their connection: nothing was written.
    Wire,
}

/// Running functions.
#[derive(Debug)]
pub struct Shop {
    pub slice: Slice,
    listener: Listener,
    notify: Client,
    payment: Client,
    mailer: Function,
    _callers: [Function; 2],
}

#[derive(Debug)]
struct Function {
    address: SocketAddr,
    process: Child,
    /// It ends when this is closed.
    _lifeline: ChildStdin,
}

impl Shop {
    pub fn open() -> Self {
        let slice = Slice::new();
        let listener = Listener::start();
        let mailer = Function::start(&slice, "mailer", None);
        let notify = Function::start(&slice, "notify", Some(("MAILER_ADDR", mailer.address)));
        let payment = Function::start(&slice, "payment", Some(("BANK_ADDR", listener.address())));
        let [to_notify, to_payment] = [&notify, &payment].map(|function| Client::new(function.address));
        Self { slice, listener, notify: to_notify, payment: to_payment, mailer, _callers: [notify, payment] }
    }

    /// One request to each of the two, which they have to answer well, on connections that never break. What they call
    /// has to be tagged, or not.
    pub fn work(&mut self, joined_by: JoinedBy) {
        let before = self.calls();
        for (client, path) in [(&mut self.notify, "/notify"), (&mut self.payment, "/pay")] {
            let answer = client.request("POST", path, &[], b"{}").unwrap();
            assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
            assert_eq!(client.connects(), 1, "the connection to {path} broke");
        }
        let after = self.calls();
        assert_eq!(after.len(), 2, "{after:?}");
        assert!(before.is_empty() || before == after, "calls go over other connections: {before:?}, {after:?}");
        let arrived = self.listener.headers("traceparent").pop().expect("nothing has reached the listener");
        assert_eq!(arrived.is_some(), joined_by == JoinedBy::Tag, "it arrived with {arrived:?}");
    }

    /// Calls until the tag stays away. What tags is taken out by a worker of the kernel (kernel/bpf/arraymap.c,
    /// prog_array_map_clear) once an agent's last descriptor is closed: soon after its death, but not with it.
    pub fn wait_until_untagged(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            assert_eq!(self.payment.request("POST", "/pay", &[], b"{}").unwrap().status, 200);
            if self.listener.headers("traceparent").pop().expect("nothing has reached the listener").is_none() {
                return;
            }
            assert!(Instant::now() < deadline, "calls are still tagged, seconds after the agent's death");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends an agent by SIGTERM. It has to have traced every request of `works` times [`Shop::work`], each call where it
    /// belongs.
    pub fn assert_traced(&self, agent: Agent, works: usize, joined_by: JoinedBy) {
        self.assert_traced_behind(0, agent, works, joined_by);
    }

    /// The same, behind the agent's first `before` lines.
    pub fn assert_traced_behind(&self, before: usize, agent: Agent, works: usize, joined_by: JoinedBy) {
        let paths: Vec<Value> = agent.wait_for("path for each request", |lines| {
            let paths: Vec<_> = lines.iter().skip(before).filter(|line| line["type"] == "path").cloned().collect();
            (paths.len() >= 2 * works).then_some(paths)
        });
        let finished = agent.stop_by(Signal::TERM);
        assert_eq!(finished.status.code(), Some(0), "{:#?}", finished.stderr);
        let mut seen = [0, 0];
        for path in &paths {
            let root = &path["root"];
            let call = &root["children"][0];
            assert_eq!(
                (&path["complete"], &root["kind"], &call["kind"]),
                (&true.into(), &"invocation".into(), &"call".into()),
                "{path:#}"
            );
            assert_eq!(root["children"].as_array().unwrap().len(), 1, "{path:#}");
            // Shortly after another one, something of that might still have called: then it is said to be likely only.
            let likely = call["parent_by"] == "inferred" && call["probability"].as_f64().is_some_and(|p| p >= 0.9);
            assert!(call["parent_by"] == "exclusive" || likely, "{path:#}");
            assert_eq!(call["tag"] == "injected", joined_by == JoinedBy::Tag, "{path:#}");
            let callees = call["children"].as_array().unwrap();
            let sandbox = |node: &Value, name: &str| node["sandbox"].as_str().unwrap().contains(&format!("/{name}-"));
            if sandbox(root, "payment") {
                assert!(callees.is_empty(), "{path:#}");
                seen[0] += 1;
            } else {
                assert!(sandbox(root, "notify") && callees.len() == 1 && sandbox(&callees[0], "mailer"), "{path:#}");
                let how = if joined_by == JoinedBy::Tag { "tag" } else { "wire" };
                assert_eq!(callees[0]["joined_by"], how, "{path:#}");
                seen[1] += 1;
            }
        }
        assert_eq!(seen, [works; 2], "{paths:#?}");
    }

    /// The local ends of the two connections that the functions have made, as the kernel writes them.
    fn calls(&self) -> Vec<String> {
        let callees = [self.mailer.address, self.listener.address()];
        let remote = callees.map(|address| format!("0100007F:{:04X}", address.port()));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
        // Number, local end, remote end, state: 01 is established.
        let calls = rows.filter(|row| row.len() > 3 && row[3] == "01" && remote.iter().any(|remote| remote == row[2]));
        let mut local: Vec<_> = calls.map(|row| row[1].to_owned()).collect();
        local.sort();
        local
    }
}

impl Function {
    fn start(slice: &Slice, name: &str, peer: Option<(&str, SocketAddr)>) -> Self {
        let mut command = fntrace();
        command.args(["demo-function", name]).env("FUNCTION_NAME", name).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(peer.map(|(key, address)| (key, address.to_string())));
        let mut process = slice.sandbox(name).spawn(&mut command);
        let lifeline = process.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        Self { address: address.unwrap_or_else(|| panic!("{name} said {line:?}")), process, _lifeline: lifeline }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
