//! What the tag may and may not do: it is left out when told so, yields to the application's own, and joins nothing
//! that this agent did not mint.

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq, with},
    sandbox::Slice,
    truth::{self, Key},
};

/// A chain whose calls must go out as they are, and still be joined: by the wire.
fn joined_without_tag(arguments: &[&str], tag: &str) {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let nginx = Function::nginx(&slice, &go);
    let agent = Agent::start_with(&slice, arguments);
    let mut client = python.client();
    let tree = plan([seq(&node, plan([seq(&nginx, leaf())]))]);
    let answers = [client.run(&id("untagged"), &tree), client.run(&id("untagged"), &tree)];
    let truth = truth::truth(&answers);
    truth::wait(&agent, &truth);
    let finished = agent.stop();
    let trace = truth::trace(&finished.lines);
    truth::assert_same_edges(&truth, &trace);
    for (key, traced) in &trace {
        assert_eq!(truth[key].traceparent, None, "{key} got a tag");
        if let Some(call) = &traced.call {
            assert_eq!(call["tag"], tag, "{call}");
            assert_eq!(traced.node["joined_by"], "wire", "{}", traced.node);
        }
    }
    truth::assert_counts(&finished);
    assert_eq!(finished.stats()["tags"][tag], 6);
}

#[test]
pub fn with_the_tag_off_no_byte_is_changed_and_paths_are_joined_by_the_wire() {
    joined_without_tag(&["--tag", "off"], "off");
}

#[test]
pub fn a_destination_outside_of_tag_to_gets_no_tag() {
    joined_without_tag(&["--tag-to", "192.0.2.0/24"], "destination");
}

#[test]
fn a_destination_inside_of_tag_to_gets_one() {
    let slice = Slice::new();
    let [_, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--tag-to", "192.0.2.0/24", "--tag-to", "127.0.0.1/32"]);
    let answer = node.client().run(&id("inside"), &plan([seq(&go, leaf())]));
    truth::assert_traced(agent, &[answer]);
}

#[test]
pub fn a_traceparent_that_the_application_set_is_kept_and_adopted() {
    // Letter case and spacing of the name are the application's business.
    for (n, name) in ["traceparent", "Traceparent", "TRACEPARENT"].into_iter().enumerate() {
        let slice = Slice::new();
        let [python, _, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
        let agent = Agent::start(&slice);
        let span = format!("00f067aa0ba902b{n}");
        let own = format!("00-4bf92f3577b34da6a3ce929d0e0e473{n}-{span}-01");
        let call = with(seq(&go, leaf()), json!({"headers": {name: own}}));
        let answer = python.client().run(&id("own"), &plan([call]));
        assert_eq!(answer["children"][0]["traceparent"], own, "{name}");
        let truth = truth::truth(std::slice::from_ref(&answer));
        truth::wait(&agent, &truth);
        let finished = agent.stop();
        let trace = truth::trace(&finished.lines);
        truth::assert_same_edges(&truth, &trace);
        let call = trace.values().find_map(|traced| traced.call.clone()).expect("a call");
        assert_eq!(call["tag"], "kept", "{call}");
        assert_eq!(call["span_id"], span, "the call goes by the id that the application gave it: {call}");
        truth::assert_counts(&finished);
    }
}

#[test]
pub fn a_malformed_traceparent_is_left_alone() {
    let slice = Slice::new();
    let [python, _, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let values =
        ["", "x", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-01"];
    let calls = values.map(|value| with(seq(&go, leaf()), json!({"headers": {"traceparent": value}})));
    let answer = python.client().run(&id("malformed"), &plan(calls));
    let got: Vec<_> = answer["children"].as_array().unwrap().iter().map(|child| child["traceparent"].clone()).collect();
    assert_eq!(got, values);
    let truth = truth::truth(&[answer]);
    truth::wait(&agent, &truth);
    let finished = agent.stop();
    truth::assert_same_edges(&truth, &truth::trace(&finished.lines));
    assert_eq!(finished.stats()["tags"]["malformed"], values.len());
    truth::assert_counts(&finished);
}

#[test]
fn a_replayed_traceparent_joins_nothing() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let victim = python.client().run(&id("victim"), &plan([seq(&go, leaf())]));
    let stolen =
        victim["children"][0]["traceparent"].as_str().expect("the call of the victim was not tagged").to_owned();
    // Another tenant sends it from its sandbox, and somebody sends it from outside of all.
    let replay = with(seq(&go, leaf()), json!({"headers": {"traceparent": stolen}}));
    let tenant = node.client().run(&id("tenant"), &plan([replay]));
    let outside = go.client().run_with(&id("outside"), &leaf(), &[("traceparent", &stolen)]);
    assert_eq!(tenant["children"][0]["traceparent"], stolen.as_str(), "what the application set was changed");
    let truth = truth::truth(&[victim.clone(), tenant, outside.clone()]);
    truth::wait(&agent, &truth);
    let finished = agent.stop();
    // The true edges and no other: the tenant's call is its own, the request from outside has no parent.
    let trace = truth::trace(&finished.lines);
    truth::assert_same_edges(&truth, &trace);
    let victims = Key { function: python.name().to_owned(), id: victim["id"].as_str().unwrap().to_owned() };
    let path = trace[&victims].trace_id.clone();
    // A traceparent from outside is continued, as the recommendation asks, in a path of its own that says so.
    let (own, outside_too): (Vec<_>, Vec<_>) = truth::paths(&finished.lines)
        .filter(|line| line["trace_id"] == path.as_str())
        .partition(|line| line["root"].get("outside_parent").is_none());
    assert_eq!(own.len(), 1, "nothing may be added to the victim's path: {own:#?}");
    assert_eq!(own[0]["root"]["children"][0]["children"].as_array().map(Vec::len), Some(1), "{own:#?}");
    for line in outside_too {
        assert_eq!(line["root"]["kind"], "invocation", "{line}");
    }
    let of_outside = Key { function: go.name().to_owned(), id: outside["id"].as_str().unwrap().to_owned() };
    assert_eq!(trace[&of_outside].call.as_ref().map(|call| &call["kind"]), None::<&Value>);
}

#[test]
fn a_path_shows_no_query_and_no_control_characters() {
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let target = "/quiet-\x1b[31m\u{7f}?token=secret";
    let response = go.client().request("GET", target, &[], b"").unwrap();
    // net/http refuses such a target; the agent must bear it all the same.
    assert!(response.status == 200 || response.status == 400);
    let good = go.client().request("GET", "/loud?token=secret", &[], b"").unwrap();
    assert_eq!(good.status, 200);
    agent.wait_for("path", |lines| {
        truth::paths(lines).any(|line| line["root"]["http"]["path"] == "/loud").then_some(())
    });
    for line in agent.stop().lines {
        let text = line.to_string();
        assert!(!text.contains("secret"), "{text}");
        assert!(!text.contains("\\u001b") && !text.contains("\\u007f") && !text.contains('\u{7f}'), "{text}");
    }
}
