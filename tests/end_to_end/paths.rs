//! Call paths: every edge right and every call tagged, over the servers, connections and shapes that occur.

use std::{net::Ipv4Addr, thread};

use serde_json::{Value, json};

use crate::{
    agent::{self, Agent},
    client::{Client, Listener},
    functions::{self, Function, Kind},
    harness::{id, leaf, par, plan, seq, with},
    sandbox::Slice,
    truth::{self, Key},
};

#[test]
fn a_chain_over_three_runtimes_is_one_path() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let answer = python.client().run(&id("chain"), &plan([seq(&node, plan([seq(&go, leaf())]))]));
    let (trace, finished) = truth::assert_traced(agent, &[answer]);
    assert_eq!(trace.len(), 3);
    let lines: Vec<_> = truth::paths(&finished.lines).collect();
    assert_eq!(lines.len(), 1, "one request, one path: {lines:#?}");
    assert_eq!(lines[0]["fntrace"], 1);
    assert_eq!(lines[0]["complete"], true);
    for call in truth::calls(&finished.lines) {
        // nginx apart, which passes the header on, one live invocation is what decides.
        assert_eq!(call["parent_by"], "exclusive", "{call}");
        assert_eq!(call["http"]["method"], "POST");
        assert_eq!(call["http"]["status"], 200);
        assert_eq!(call["after_response"], false);
    }
}

#[test]
fn every_runtime_calls_every_other_one() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let mut answers = Vec::new();
    for caller in &functions {
        for callee in functions.iter().filter(|callee| callee.name() != caller.name()) {
            answers.push(caller.client().run(&id("pair"), &plan([seq(callee, leaf()), seq(callee, leaf())])));
        }
    }
    // Node.js has two clients that people use; the plan above goes by `fetch`.
    let by_http = with(seq(&functions[2], leaf()), json!({"client": "http"}));
    answers.push(functions[1].client().run(&id("node-http"), &plan([by_http.clone(), by_http])));
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 7 * 3);
}

#[test]
fn a_parallel_fan_out_keeps_its_calls_apart() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let wide = |callees: [&Function; 2]| {
        let calls: Vec<_> = (0..6).map(|n| par(callees[n % 2], leaf())).collect();
        plan(calls)
    };
    let answers = [
        node.client().run(&id("fan-node"), &wide([&python, &go])),
        python.client().run(&id("fan-python"), &wide([&node, &go])),
        go.client().run(&id("fan-go"), &wide([&python, &node])),
        node.client()
            .run(&id("fan-deep"), &plan([par(&python, plan([par(&go, leaf()), par(&go, leaf())])), par(&go, leaf())])),
    ];
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 3 * 7 + 5);
}

#[test]
pub fn a_proxy_passes_the_tag_on_and_its_parent_id_is_rewritten() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let before_go = Function::nginx(&slice, &go);
    let before_node = Function::nginx(&slice, &node);
    let agent = Agent::start(&slice);
    // The second request goes over connections that nginx has kept.
    let mut client = python.client();
    let tree = plan([seq(&before_node, plan([seq(&before_go, leaf())]))]);
    let mut answers = vec![client.run(&id("proxied"), &tree), client.run(&id("proxied"), &tree)];
    // Straight from the client nothing is there to pass on, so nginx's own call is tagged as any other.
    answers.push(before_go.client().run(&id("proxied-root"), &leaf()));
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 2 * 5 + 2);
    let (mut rewritten, mut injected) = (0, 0);
    for (key, traced) in &trace {
        let Some(call) = &traced.call else { continue };
        if traced.parent.as_ref().is_some_and(|parent| parent.id == key.id) && !key.id.starts_with("proxied-root") {
            assert_eq!((&call["tag"], &call["parent_by"]), (&json!("rewritten"), &json!("header")), "{key}: {call}");
            rewritten += 1;
        } else {
            assert_eq!(call["tag"], "injected", "{key}: {call}");
            injected += 1;
        }
    }
    assert_eq!((rewritten, injected), (4, 5));
}

#[test]
fn a_function_that_forwards_its_header_is_a_proxy_too() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let forwarded = with(seq(&go, leaf()), json!({"forward": ["traceparent"]}));
    let answer = node.client().run(&id("forward"), &plan([seq(&python, plan([forwarded]))]));
    let (trace, _) = truth::assert_traced(agent, &[answer]);
    let call = trace.iter().find(|(key, _)| key.function == go.name()).and_then(|(_, traced)| traced.call.clone());
    let call = call.expect("a call to the last function");
    assert_eq!((&call["tag"], &call["parent_by"]), (&json!("rewritten"), &json!("header")), "{call}");
}

#[test]
fn requests_on_a_kept_connection_are_told_apart() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let mut answers = Vec::new();
    for root in [&go, &node] {
        let mut client = root.client();
        for _ in 0..20 {
            answers.push(client.run(&id("kept"), &plan([seq(&python, leaf())])));
        }
        assert_eq!(client.connects(), 1, "all 20 requests were to go over one connection");
    }
    let (trace, finished) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 80);
    assert_eq!(truth::paths(&finished.lines).count(), 40);
}

#[test]
fn each_request_on_a_fresh_connection_is_traced() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let mut answers = Vec::new();
    for caller in &functions {
        for callee in functions.iter().filter(|callee| callee.name() != caller.name()) {
            let mut client = caller.client();
            for _ in 0..3 {
                answers.push(client.run(&id("fresh"), &plan([with(seq(callee, leaf()), json!({"fresh": true}))])));
                client.close();
            }
            assert_eq!(client.connects(), 3);
        }
    }
    let (trace, _) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 6 * 3 * 2);
}

#[test]
fn a_chain_over_ipv6_is_one_path() {
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start_v6(&slice, kind));
    let nginx = Function::nginx(&slice, &go);
    assert!(nginx.address().is_ipv6());
    let agent = Agent::start(&slice);
    let answer = python.client().run(&id("v6"), &plan([seq(&node, plan([seq(&nginx, plan([seq(&python, leaf())]))]))]));
    let (trace, finished) = truth::assert_traced(agent, &[answer]);
    assert_eq!(trace.len(), 5);
    for call in truth::calls(&finished.lines) {
        assert!(call["peer"].as_str().is_some_and(|peer| peer.starts_with("[::1]:")), "{call}");
    }
}

#[test]
fn connections_older_than_the_agent_are_traced() {
    let slice = Slice::new();
    let [_, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let nginx = Function::nginx(&slice, &go);
    let mut client = nginx.client();
    let tree = plan([seq(&node, leaf())]);
    client.run(&id("before"), &tree);
    let agent = Agent::start(&slice);
    // The first requests only show where a message begins; whether they are tagged yet is not said here.
    for _ in 0..3 {
        client.run(&id("first"), &tree);
    }
    let answers = [client.run(&id("old"), &tree), client.run(&id("old"), &tree)];
    assert_eq!(client.connects(), 1);
    let truth = truth::truth(&answers);
    let mut trace = truth::wait(&agent, &truth);
    trace.retain(|key, _| key.id.starts_with("old-"));
    if agent::repairs() {
        // Somebody may wait in a read on such a connection: it is not enrolled, and joined by the wire.
        truth::assert_same_edges(&truth, &trace);
        for call in trace.values().filter_map(|traced| traced.call.as_ref()) {
            assert_eq!(call["tag"], "not_enrolled", "{call}");
        }
    } else {
        truth::assert_tagged(&truth, &trace);
    }
    truth::assert_counts(&agent.stop());
}

#[test]
fn by_default_tags_are_written_where_they_change_nothing_else() {
    let slice = Slice::new();
    let [_, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start_with(&slice, &["--tag", "auto"]);
    let answers = [node.client().run(&id("default"), &plan([seq(&go, leaf()), seq(&go, leaf())]))];
    let truth = truth::truth(&answers);
    let trace = truth::wait(&agent, &truth);
    if agent::repairs() {
        truth::assert_same_edges(&truth, &trace);
        assert!(truth.values().all(|known| known.traceparent.is_none()), "a tag where its repair breaks reads");
    } else {
        truth::assert_tagged(&truth, &trace);
    }
    let finished = agent.stop();
    let warned = finished.stderr.iter().any(|line| line.contains("WARNING: calls are not tagged here"));
    assert_eq!(warned, agent::repairs(), "{:#?}", finished.stderr);
    truth::assert_counts(&finished);
}

#[test]
fn concurrent_invocations_of_a_threaded_server_are_never_mixed_up() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 10;
    let slice = Slice::new();
    let [python, node, go] = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let agent = Agent::start(&slice);
    let tree = plan([seq(&go, leaf()), par(&go, leaf()), par(&node, leaf()), seq(&node, leaf())]);
    let answers: Vec<Value> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = python.client();
                    (0..REQUESTS).map(|_| client.run(&id("many"), &tree)).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let truth = truth::truth(&answers);
    let trace = truth::wait(&agent, &truth);
    assert_eq!(truth.len(), CLIENTS * REQUESTS * 5);
    let mut unattributed = 0;
    for (key, known) in &truth {
        let traced = &trace[key];
        match &traced.call {
            Some(call) if call["parent_by"] == "none" => {
                assert_eq!(traced.parent, None, "nobody is the parent of {key}, says {call}");
                unattributed += 1;
            }
            // A guess, and said to be one.
            Some(call) if call["parent_by"] == "inferred" => {
                assert!(call["probability"].as_f64().is_some_and(|p| (0.5..=1.0).contains(&p)), "{call}");
                unattributed += 1;
            }
            _ => assert_eq!(traced.parent, known.parent, "the parent of {key}: {:?}", traced.call),
        }
    }
    let calls = truth.len() - answers.len();
    assert!(unattributed * 10 <= calls, "{unattributed} of {calls} calls have no parent, or a guess");
    truth::assert_counts(&agent.stop());
}

#[test]
fn a_sandbox_made_later_is_traced_from_its_first_packet() {
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let agent = Agent::start(&slice);
    let mut answers = Vec::new();
    let mut names = Vec::new();
    let mut late = Vec::new();
    for kind in Kind::ALL {
        let function = Function::spawn(&slice, kind, Ipv4Addr::LOCALHOST.into());
        // The very first connection that it accepts carries this request.
        answers.push(function.client().run_once_up(&id("cold"), &plan([seq(&go, leaf())])));
        answers.push(function.client().run(&id("warm"), &plan([seq(&go, leaf())])));
        names.push(function.name().to_owned());
        late.push(function);
    }
    let (trace, _) = truth::assert_traced(agent, &answers);
    for (key, traced) in trace.iter().filter(|(key, _)| names.contains(&key.function)) {
        assert_eq!(traced.node["cold"], key.id.starts_with("cold-"), "{key}: {}", traced.node);
    }
}

#[test]
fn a_pattern_selects_what_matches_now_and_what_will() {
    let slice = Slice::new();
    let early = Function::start(&slice, Kind::Go);
    // Go's sandboxes are named go-1, go-3 …; Python's are outside of it.
    let pattern = format!("{}/go-*", slice.argument());
    let name = format!("{pattern}=renamed");
    let agent = Agent::start_on(&pattern, &["--name", &name]);
    let python = Function::start(&slice, Kind::Python);
    let late = Function::start(&slice, Kind::Go);
    let answer = early.client().run(&id("pattern"), &plan([seq(&late, leaf()), seq(&python, leaf())]));
    assert!(answer["children"][0]["traceparent"].is_string(), "{answer}");
    let path = agent.wait_for("the path", |lines| {
        truth::paths(lines)
            .find(|line| {
                line["root"]["http"]["path"].as_str() == answer["id"].as_str().map(|id| format!("/{id}")).as_deref()
            })
            .cloned()
    });
    let calls = path["root"]["children"].as_array().unwrap();
    assert_eq!(path["root"]["function"], "renamed", "{path}");
    assert_eq!(calls[0]["to"], "renamed", "{path}");
    assert_eq!(calls[0]["children"][0]["joined_by"], "tag", "{path}");
    // Python is not selected: a leaf, by its address.
    assert_eq!(calls[1]["to"], python.address().to_string(), "{path}");
    assert_eq!(calls[1]["children"].as_array().map(Vec::len), Some(0), "{path}");
    let finished = agent.stop();
    assert!(
        !truth::paths(&finished.lines)
            .any(|line| line["root"]["sandbox"].as_str().is_some_and(|path| path.contains("python")))
    );
}

#[test]
fn a_call_to_an_untraced_listener_is_a_leaf() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let listener = Listener::start();
    let agent = Agent::start(&slice);
    let answers: Vec<_> = functions
        .iter()
        .map(|function| function.client().run(&id("leaf"), &plan([json!({"url": listener.url()})])))
        .collect();
    let (_, finished) = truth::assert_traced(agent, &answers);
    let calls = truth::calls(&finished.lines);
    assert_eq!(calls.len(), 3);
    let got = listener.headers("traceparent");
    for call in calls {
        assert_eq!(call["to"], listener.address().to_string(), "{call}");
        assert!(call["children"].as_array().is_none_or(Vec::is_empty), "{call}");
        let span = call["span_id"].as_str().unwrap();
        let tagged = got.iter().flatten().any(|traceparent| traceparent.contains(span));
        assert!(tagged, "{call} is not among what the listener got: {got:?}");
    }
}

#[test]
fn a_refused_connection_is_a_leaf_with_its_error() {
    let slice = Slice::new();
    let functions = Kind::ALL.map(|kind| Function::start(&slice, kind));
    let nobody = functions::free_address(Ipv4Addr::LOCALHOST.into());
    let agent = Agent::start(&slice);
    let failing = json!({"url": format!("http://{nobody}")});
    let answers: Vec<_> =
        functions.iter().map(|function| function.client().run(&id("refused"), &plan([failing.clone()]))).collect();
    let (trace, finished) = truth::assert_traced(agent, &answers);
    let calls = truth::calls(&finished.lines);
    assert_eq!(calls.len(), 3, "{calls:#?}");
    for call in calls {
        assert_eq!(call["to"], nobody.to_string(), "{call}");
        assert_eq!(call["tag"], "no_request", "{call}");
        assert!(call["error"].is_string(), "{call}");
    }
    for (function, answer) in functions.iter().zip(&answers) {
        let key = Key { function: function.name().to_owned(), id: answer["id"].as_str().unwrap().to_owned() };
        assert_eq!(trace[&key].node["children"][0]["to"], nobody.to_string(), "the call is below the one that made it");
    }
}

#[test]
fn what_is_in_no_sandbox_is_not_touched() {
    let slice = Slice::new();
    let other = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let outside = [Function::start(&other, Kind::Go), Function::start(&other, Kind::Python)];
    let agent = Agent::start(&slice);
    // Outside to outside: not seen. Outside to inside: a root, and the request comes in as it was sent.
    let answer = outside[1].client().run(&id("outside"), &plan([seq(&outside[0], leaf()), seq(&go, leaf())]));
    let [untraced, inside] = [&answer["children"][0], &answer["children"][1]];
    assert_eq!(untraced["traceparent"], Value::Null);
    assert_eq!(inside["traceparent"], Value::Null);
    let mut client = Client::new(go.address());
    let traced = client.run(&id("inside"), &plan([seq(&outside[0], leaf())]));
    agent.wait_for("path of the last request", |lines| (truth::paths(lines).count() == 2).then_some(()));
    let finished = agent.stop();
    let trace = truth::trace(&finished.lines);
    assert!(trace.keys().all(|key| key.function == go.name()), "{trace:#?}");
    let ids: Vec<_> = trace.keys().map(|key| Value::from(key.id.as_str())).collect();
    assert!(ids.contains(&traced["id"]) && ids.contains(&inside["id"]), "{ids:?}");
    assert!(
        traced["children"][0]["traceparent"].is_string(),
        "a call that leaves a sandbox is tagged wherever it goes"
    );
}
