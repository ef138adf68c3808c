//! Holds the agent's edges against the truth.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

/// The rules whose edges are facts by their meaning. A wrong one is a defect, and fails the run.
pub const EXACT: [&str; 3] = ["header", "exclusive", "thread"];

/// An edge as the agent reports it.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The `parent_by` of the call.
    pub rule: String,
    /// The path, without the slash, of the invocation under which the call is; none at the root of a path.
    pub parent: Option<String>,
    /// Of an inferred edge: how sure the agent says it is.
    pub probability: Option<f64>,
    /// The call as it was printed.
    pub call: Value,
}

/// Every edge in the agent's lines, by the path of the call, without the slash.
pub fn edges(lines: &[Value]) -> HashMap<String, Edge> {
    let mut spans = HashMap::new();
    for line in lines.iter().filter(|line| line["type"] == "path" || line["type"] == "late") {
        // A part that came late replaces what was printed of it before, and may name its place only the first time.
        let parent = line["parent_span_id"].as_str().map(str::to_owned);
        add(&mut spans, parent, &line["root"]);
    }
    let mut edges = HashMap::new();
    for (parent, node) in spans.values().filter(|(_, node)| node["kind"] == "call") {
        let Some(id) = id_of(node) else { continue };
        // A parent that was itself printed nowhere: not the true one, whatever it is.
        let parent = parent.as_ref().map(|parent| spans.get(parent).and_then(|(_, node)| id_of(node)));
        let edge = Edge {
            rule: node["parent_by"].as_str().unwrap_or("?").to_owned(),
            parent: parent.map(|parent| parent.unwrap_or_else(|| "?".to_owned())),
            probability: node["probability"].as_f64(),
            call: node.clone(),
        };
        edges.insert(id, edge);
    }
    edges
}

type Spans = HashMap<String, (Option<String>, Value)>;

fn add(spans: &mut Spans, parent: Option<String>, node: &Value) {
    let span = node["span_id"].as_str().expect("a span has an id").to_owned();
    for child in node["children"].as_array().into_iter().flatten() {
        add(spans, Some(span.clone()), child);
    }
    let mut own = node.clone();
    own.as_object_mut().unwrap().remove("children");
    let parent = parent.or_else(|| spans.get(&span).and_then(|(parent, _)| parent.clone()));
    spans.insert(span, (parent, own));
}

fn id_of(node: &Value) -> Option<String> {
    node["http"]["path"].as_str().map(|path| path.trim_start_matches('/').to_owned())
}

/// How the edges of one row stand.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Per rule: right, wrong.
    pub rules: BTreeMap<String, (usize, usize)>,
    /// Calls that the agent left without a parent.
    pub unknown: usize,
    /// Calls that the agent did not report.
    pub missing: usize,
    /// Of inferred edges: the stated probability, and whether it was right.
    pub inferred: Vec<(f64, bool)>,
    /// Edges that are wrong, in words.
    pub wrong: Vec<String>,
}

impl Score {
    /// Takes in a call with its true parent.
    pub fn add(&mut self, id: &str, true_parent: &str, edge: Option<&Edge>) {
        let Some(edge) = edge else {
            self.missing += 1;
            return;
        };
        let Some(parent) = &edge.parent else {
            self.unknown += 1;
            return;
        };
        let right = parent == true_parent;
        let (rights, wrongs) = self.rules.entry(edge.rule.clone()).or_default();
        *(if right { rights } else { wrongs }) += 1;
        if let Some(probability) = edge.probability {
            self.inferred.push((probability, right));
        }
        if !right {
            self.wrong.push(format!("{id} of {true_parent} is under {parent}: {}", edge.call));
        }
    }

    pub fn right(&self) -> usize {
        self.rules.values().map(|(right, _)| right).sum()
    }

    pub fn wrong(&self) -> usize {
        self.rules.values().map(|(_, wrong)| wrong).sum()
    }

    pub fn edges(&self) -> usize {
        self.right() + self.wrong() + self.unknown + self.missing
    }

    /// Wrong edges under a rule that must have none.
    pub fn wrong_but_exact(&self) -> usize {
        EXACT.iter().filter_map(|rule| self.rules.get(*rule)).map(|(_, wrong)| wrong).sum()
    }
}
