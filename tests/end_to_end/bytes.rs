//! Bytes: the agent changes nothing but the tag, whatever size and framing a body has and whatever it looks like.

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq, sha256, with},
    sandbox::Slice,
    truth,
};

/// A body that is a row of requests. To tag one of these would break it, to report one a phantom.
const LOOKALIKE: &str = "POST / HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\ntraceparent: 00-11111111111111111111111111111111-2222222222222222-01\r\n\r\n";
const SIZES: [usize; 7] = [1, 100, 4096, 8 << 10, 16_384 + 1, 64 << 10, 1 << 20];

fn bodies() -> Vec<Value> {
    let mut bodies = Vec::new();
    for text in ["0123456789abcdef\n", LOOKALIKE] {
        for length in SIZES {
            for chunked in [false, true] {
                bodies.push(json!({"text": text, "length": length, "chunked": chunked}));
            }
        }
    }
    bodies
}

fn expected(body: &Value) -> Value {
    let text = body["text"].as_str().unwrap().as_bytes();
    let length = body["length"].as_u64().unwrap() as usize;
    let bytes: Vec<u8> = text.iter().copied().cycle().take(length).collect();
    json!({"length": length, "sha256": sha256(&bytes)})
}

/// Lets one function send every body to another, with the calls tagged, and looks at what arrived.
fn bodies_arrive_from(caller: Kind, callee: Kind) {
    let slice = Slice::new();
    let callee = Function::start(&slice, callee);
    let caller = Function::start(&slice, caller);
    let agent = Agent::start(&slice);
    let bodies = bodies();
    let calls: Vec<_> = bodies.iter().map(|body| json!({"url": callee.url(), "body": body})).collect();
    let answer = caller.client().run(&id("bodies"), &plan(calls));
    for (body, child) in bodies.iter().zip(answer["children"].as_array().unwrap()) {
        assert_eq!(child["error"], Value::Null, "{body}");
        assert_eq!(child["body"], expected(body), "{body}");
        assert_eq!(child["sent"], child["body"]["sha256"], "{body}");
    }
    // As many invocations as requests: none of the bodies was taken for one.
    let (trace, _) = truth::assert_traced(agent, &[answer]);
    assert_eq!(trace.len(), 1 + bodies.len());
}

#[test]
fn bodies_that_python_sends_arrive_intact() {
    bodies_arrive_from(Kind::Python, Kind::Go);
}

#[test]
fn bodies_that_node_sends_arrive_intact() {
    bodies_arrive_from(Kind::Node, Kind::Python);
}

#[test]
fn bodies_that_go_sends_arrive_intact() {
    bodies_arrive_from(Kind::Go, Kind::Node);
}

#[test]
fn bodies_through_a_proxy_arrive_intact() {
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let nginx = Function::nginx(&slice, &go);
    let agent = Agent::start(&slice);
    let mut client = nginx.client();
    let mut answers = Vec::new();
    for body in bodies() {
        let length = body["length"].as_u64().unwrap() as usize;
        let bytes: Vec<u8> = body["text"].as_str().unwrap().bytes().cycle().take(length).collect();
        let chunk = (body["chunked"] == true).then_some(1 + length / 3);
        let answer = client.send(&id("proxied"), &bytes, chunk);
        assert_eq!(answer["body"], expected(&body), "{body}");
        answers.push(answer);
    }
    assert_eq!(client.connects(), 1, "a broken message would have cost the connection");
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 2 * answers.len());
}

#[test]
fn responses_arrive_intact() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let mut answers = Vec::new();
    for caller in &functions {
        let calls: Vec<_> = functions
            .iter()
            .filter(|callee| callee.name() != caller.name())
            .flat_map(|callee| SIZES.map(|length| with(seq(callee, leaf()), json!({"plan": {"pad": length}}))))
            .collect();
        let answer = caller.client().run(&id("pads"), &plan(calls));
        for (length, child) in SIZES.iter().cycle().zip(answer["children"].as_array().unwrap()) {
            assert!(child["pad"] == "x".repeat(*length), "a response of {length} bytes was changed");
        }
        answers.push(answer);
    }
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 3 * (1 + 2 * SIZES.len()));
}
