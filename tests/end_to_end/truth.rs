//! Holds the agent's paths against what the functions themselves know.
//!
//! The truth comes from the answers: each invocation tells its id, its true parent and the `traceparent` that reached
//! it. The trace comes from the `path` lines: each invocation's `http.path` carries the same id. An nginx in between is
//! an invocation with the id of the function behind it, told by the `via` of the answer.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::agent::{Agent, Finished};

/// An invocation: which function, which id. A proxy and the function behind it share the id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub function: String,
    pub id: String,
}

/// What the functions say of an invocation.
#[derive(Clone, Debug)]
pub struct True {
    pub parent: Option<Key>,
    pub traceparent: Option<String>,
}

/// What the agent says of an invocation.
#[derive(Clone, Debug)]
pub struct Traced {
    pub parent: Option<Key>,
    /// The call that caused it; none at the root of a path.
    pub call: Option<Value>,
    /// The invocation's own node.
    pub node: Value,
    pub trace_id: String,
}

pub type Truth = BTreeMap<Key, True>;
pub type Trace = BTreeMap<Key, Traced>;

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.function, self.id)
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The true tree, from the answers to the client's requests. It also checks that every call got its answer and that
/// the functions agree on who called whom.
pub fn truth(answers: &[Value]) -> Truth {
    let mut truth = Truth::new();
    for answer in answers {
        add_answer(&mut truth, None, answer);
    }
    truth
}

fn add_answer(truth: &mut Truth, parent: Option<&Key>, answer: &Value) {
    if answer["listener"] == true || answer["error"].is_string() {
        return; // no invocation: an untraced listener, or nobody
    }
    let id = text(&answer["id"]).unwrap_or_else(|| panic!("an answer without id: {answer}"));
    assert_eq!(text(&answer["true_parent"]), parent.map(|parent| parent.id.clone()), "the true parent of {id}");
    let mut parent = parent.cloned();
    if answer["via"].is_object() {
        let proxy = Key { function: text(&answer["via"]["function"]).unwrap(), id: id.clone() };
        let entry = True { parent, traceparent: text(&answer["via"]["traceparent"]) };
        assert!(truth.insert(proxy.clone(), entry).is_none(), "{proxy} ran twice");
        parent = Some(proxy);
    }
    let key = Key { function: text(&answer["function"]).unwrap(), id };
    let entry = True { parent, traceparent: text(&answer["traceparent"]) };
    assert!(truth.insert(key.clone(), entry).is_none(), "{key} ran twice");
    for child in answer["children"].as_array().unwrap() {
        add_answer(truth, Some(&key), child);
    }
}

/// The traced tree, from the agent's lines.
pub fn trace(lines: &[Value]) -> Trace {
    let mut trace = Trace::new();
    for line in paths(lines) {
        let trace_id = text(&line["trace_id"]).unwrap_or_else(|| panic!("a path without trace_id: {line}"));
        add_node(&mut trace, &trace_id, None, None, &line["root"]);
    }
    trace
}

pub fn paths(lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(|line| line["type"] == "path")
}

fn add_node(trace: &mut Trace, trace_id: &str, parent: Option<&Key>, call: Option<&Value>, node: &Value) {
    let children = node["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    match node["kind"].as_str() {
        Some("call") => {
            for child in children {
                assert_eq!(child["kind"], "invocation", "below a call: {child}");
                add_node(trace, trace_id, parent, Some(node), child);
            }
        }
        Some("invocation") => {
            let path = text(&node["http"]["path"]).unwrap_or_else(|| panic!("an invocation without path: {node}"));
            let function = text(&node["function"]).unwrap_or_else(|| panic!("an invocation without function: {node}"));
            let key = Key { function, id: path.trim_start_matches('/').to_owned() };
            let traced = Traced {
                parent: parent.cloned(),
                call: call.cloned(),
                node: node.clone(),
                trace_id: trace_id.to_owned(),
            };
            assert!(trace.insert(key.clone(), traced).is_none(), "the agent reports {key} twice");
            for child in children {
                assert_eq!(child["kind"], "call", "below an invocation: {child}");
                add_node(trace, trace_id, Some(&key), None, child);
            }
        }
        _ => panic!("a node that is neither invocation nor call: {node}"),
    }
}

/// Every call in the agent's lines.
pub fn calls(lines: &[Value]) -> Vec<&Value> {
    fn add<'a>(calls: &mut Vec<&'a Value>, node: &'a Value) {
        if node["kind"] == "call" {
            calls.push(node);
        }
        for child in node["children"].as_array().into_iter().flatten() {
            add(calls, child);
        }
    }
    let mut calls = Vec::new();
    for path in paths(lines) {
        add(&mut calls, &path["root"]);
    }
    calls
}

/// Waits until the agent has reported all that is true, and gives what it reported.
pub fn wait(agent: &Agent, truth: &Truth) -> Trace {
    let all = |lines: &[Value]| {
        let trace = trace(lines);
        truth.keys().all(|key| trace.contains_key(key)).then_some(trace)
    };
    let names = truth.keys().map(Key::to_string).collect::<Vec<_>>().join(" ");
    agent.wait_for(&format!("path with all of {names}"), all)
}

/// Asserts that the traced tree is the true tree, edge by edge, nothing missing and nothing more, and that every call
/// in it was really tagged: the receiver got what the agent says that it wrote.
pub fn assert_tagged(truth: &Truth, trace: &Trace) {
    assert_same_edges(truth, trace);
    for (key, known) in truth {
        let traced = &trace[key];
        match &traced.call {
            Some(call) => assert_on_the_wire(key, known, traced, call),
            // The server side is never touched: what the untraced client sent is what came in.
            None => assert_eq!(known.traceparent, None, "{key} is a root and got a traceparent from nowhere"),
        }
    }
}

/// Asserts that the traced tree is the true tree, whatever joined it.
pub fn assert_same_edges(truth: &Truth, trace: &Trace) {
    let parent = |parent: &Option<Key>| parent.as_ref().map_or_else(|| "-".to_owned(), Key::to_string);
    let known: BTreeMap<_, _> = truth.iter().map(|(key, known)| (key.to_string(), parent(&known.parent))).collect();
    let traced: BTreeMap<_, _> = trace.iter().map(|(key, traced)| (key.to_string(), parent(&traced.parent))).collect();
    assert_eq!(traced, known, "invocation and parent: left as the agent says, right as it was");
}

fn assert_on_the_wire(key: &Key, known: &True, traced: &Traced, call: &Value) {
    let tag = call["tag"].as_str().unwrap_or_default();
    assert!(tag == "injected" || tag == "rewritten", "the call to {key} was not tagged: {call}");
    let got = known.traceparent.as_deref().unwrap_or_else(|| panic!("{key} got no traceparent, but: {call}"));
    let span = call["span_id"].as_str().unwrap_or_default();
    let expected = format!("00-{}-{span}-", traced.trace_id);
    assert!(got.starts_with(&expected) && got.len() == 55, "{key} got {got}, the agent says {expected}..");
    assert_eq!(traced.node["joined_by"], "tag", "how {key} was joined");
}

/// Asserts that the final statistics count the very calls that the paths show, by tag outcome.
pub fn assert_counts(finished: &Finished) {
    let mut shown = BTreeMap::<String, u64>::new();
    for call in calls(&finished.lines) {
        *shown.entry(call["tag"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
    }
    let counted = finished.stats()["tags"].as_object().expect("stats.tags");
    let counted: BTreeMap<String, u64> = counted
        .iter()
        .map(|(tag, count)| (tag.clone(), count.as_u64().expect("a count")))
        .filter(|(_, count)| *count != 0)
        .collect();
    assert_eq!(counted, shown, "calls by tag outcome: left stats.tags, right the paths");
}

/// Asserts the common case in one go: every edge right, every call tagged, the counters agree. Ends the agent.
pub fn assert_traced(agent: Agent, answers: &[Value]) -> (Trace, Finished) {
    let truth = truth(answers);
    assert_tagged(&truth, &wait(&agent, &truth));
    let finished = agent.stop();
    // Once more over everything it said: nothing more may have come.
    let trace = trace(&finished.lines);
    assert_tagged(&truth, &trace);
    assert_counts(&finished);
    (trace, finished)
}

/// The comparison itself: it must accept the right output and refuse each way of being wrong.
mod comparison {
    use std::panic::catch_unwind;

    use serde_json::{Value, json};

    use super::{assert_same_edges, assert_tagged, trace, truth};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    /// A calls nginx, which passes on to B; then A calls nobody.
    fn answers() -> [Value; 1] {
        let got = |span: &str| format!("00-{TRACE}-{span}-01");
        [json!({"id": "a", "true_parent": null, "traceparent": null, "function": "A", "children": [
            {"id": "a.0", "true_parent": "a", "traceparent": got("2222222222222222"), "function": "B", "children": [],
             "via": {"function": "nginx", "traceparent": got("1111111111111111")}},
            {"id": "a.1", "error": "connection refused"}]})]
    }

    fn path() -> Value {
        json!({"type": "path", "trace_id": TRACE, "root":
            {"kind": "invocation", "function": "A", "http": {"path": "/a"}, "children": [
                {"kind": "call", "span_id": "1111111111111111", "tag": "injected", "children": [
                    {"kind": "invocation", "function": "nginx", "http": {"path": "/a.0"}, "joined_by": "tag", "children": [
                        {"kind": "call", "span_id": "2222222222222222", "tag": "rewritten", "children": [
                            {"kind": "invocation", "function": "B", "http": {"path": "/a.0"}, "joined_by": "tag"}]}]}]},
                {"kind": "call", "span_id": "3333333333333333", "tag": "no_request"}]}})
    }

    #[test]
    fn the_right_output_is_accepted() {
        assert_tagged(&truth(&answers()), &trace(&[json!({"type": "stats"}), path()]));
    }

    #[test]
    fn no_output_is_refused() {
        assert!(catch_unwind(|| assert_same_edges(&truth(&answers()), &trace(&[]))).is_err());
    }

    #[test]
    fn every_wrong_output_is_refused() {
        let call = "/root/children/0";
        let proxy = "/root/children/0/children/0";
        let last = "/root/children/0/children/0/children/0";
        let wrong = [
            ("an edge is missing", proxy.to_owned() + "/children", json!([])),
            ("the function is another", last.to_owned() + "/children/0/function", json!("C")),
            ("the id is another", last.to_owned() + "/children/0/http/path", json!("/a.9")),
            ("the tag is not said", call.to_owned() + "/tag", json!("refused")),
            ("the tag is not what arrived", last.to_owned() + "/span_id", json!("1111111111111111")),
            ("the trace is another", "/trace_id".to_owned(), json!("00000000000000000000000000000001")),
            ("it was joined by the wire", proxy.to_owned() + "/joined_by", json!("wire")),
            (
                "an invocation more",
                "/root/children/1/children".to_owned(),
                json!([{"kind": "invocation", "function": "B", "http": {"path": "/"}}]),
            ),
        ];
        for (what, pointer, value) in wrong {
            let mut path = path();
            let (at, key) = pointer.rsplit_once('/').unwrap();
            path.pointer_mut(at).unwrap()[key] = value;
            let refused = catch_unwind(|| assert_tagged(&truth(&answers()), &trace(&[path]))).is_err();
            assert!(refused, "accepted although {what}");
        }
        let mut twice = path();
        twice["root"]["children"][0]["children"][0]["http"]["path"] = json!("/a");
        twice["root"]["children"][0]["children"][0]["function"] = json!("A");
        assert!(catch_unwind(|| trace(&[twice])).is_err(), "accepted although an invocation is there twice");
    }

    #[test]
    fn a_tag_that_did_not_arrive_is_refused() {
        for pointer in ["/children/0/traceparent", "/children/0/via/traceparent"] {
            let mut answers = answers();
            *answers[0].pointer_mut(pointer).unwrap() = Value::Null;
            assert!(catch_unwind(|| assert_tagged(&truth(&answers), &trace(&[path()]))).is_err(), "{pointer}");
        }
    }
}
