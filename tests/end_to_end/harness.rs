//! Plans for the functions (tests/functions/README.md), ids, and tests of the harness on plain traffic: without an
//! agent, they show that a failing trace is the agent's fault.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    client::{Client, Listener},
    functions::{Function, Kind},
    sandbox::Slice,
    truth::{self, Key},
};

/// An id that no other request of this run has.
pub fn id(name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A plan that makes these calls.
pub fn plan(calls: impl Into<Vec<Value>>) -> Value {
    json!({"calls": calls.into()})
}

/// A plan that makes no call.
pub fn leaf() -> Value {
    json!({})
}

/// One call after the other.
pub fn seq(callee: &Function, plan: Value) -> Value {
    json!({"url": callee.url(), "mode": "seq", "plan": plan})
}

/// A call together with the `par` calls next to it.
pub fn par(callee: &Function, plan: Value) -> Value {
    json!({"url": callee.url(), "mode": "par", "plan": plan})
}

/// Adds further keys to a call.
pub fn with(mut call: Value, keys: Value) -> Value {
    for (key, value) in keys.as_object().unwrap() {
        call[key] = value.clone();
    }
    call
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn without_an_agent_each_function_answers_and_calls_each_other_one() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let nginx = Function::nginx(&slice, &functions[2]);
    for caller in &functions {
        let mut calls: Vec<_> = functions.iter().map(|callee| seq(callee, leaf())).collect();
        calls.extend(functions.iter().map(|callee| par(callee, leaf())));
        calls.push(with(seq(&functions[0], leaf()), json!({"fresh": true})));
        calls.push(with(seq(&functions[1], leaf()), json!({"client": "http", "headers": {"traceparent": "x"}})));
        calls.push(seq(&nginx, leaf()));
        let count = calls.len();
        let answer = caller.client().run(&id("plain"), &plan(calls));
        assert_eq!(answer["function"], caller.name());
        let truth = truth::truth(std::slice::from_ref(&answer));
        assert_eq!(truth.len(), 1 + count + 1, "the caller, its calls, and nginx: {answer:#}");
        let set = truth.values().filter(|known| known.traceparent.as_deref() == Some("x")).count();
        assert_eq!(set, 1, "nobody adds a traceparent, and one that was set arrives: {answer:#}");
        let own = Key { function: caller.name().to_owned(), id: answer["id"].as_str().unwrap().to_owned() };
        assert_eq!(truth.values().filter(|known| known.parent.as_ref() == Some(&own)).count(), count);
    }
}

#[test]
fn without_an_agent_bodies_arrive_and_faults_are_told() {
    let slice = Slice::new();
    let listener = Listener::start();
    for function in Kind::ALL.map(|kind| Function::start_v6(&slice, kind)) {
        let mut client = function.client();
        let body = b"POST / HTTP/1.1\r\n\r\n".repeat(500);
        for chunk in [None, Some(1000)] {
            let answer = client.send(&id("body"), &body, chunk);
            assert_eq!(answer["body"], json!({"length": body.len(), "sha256": sha256(&body)}));
        }
        let refused = format!("http://{}", crate::functions::free_address([127, 0, 0, 1].into()));
        let answer = client.run(&id("faults"), &plan([json!({"url": listener.url()}), json!({"url": refused})]));
        assert_eq!(answer["children"][0]["listener"], true, "{answer:#}");
        assert!(answer["children"][1]["error"].is_string(), "{answer:#}");
        assert_eq!(client.connects(), 1, "kept alive");
        assert_eq!(Client::new(function.address()).run(&id("pad"), &json!({"pad": 70_000}))["pad"], "x".repeat(70_000));
    }
    assert_eq!(listener.headers("traceparent"), [const { None }; 3]);
}
