//! Traces with true parents, a line each, as distributed tracing stores them.

use foldhash::{HashMap, HashMapExt as _};
use serde::Deserialize;

use super::{Call, Trace};
use crate::path::Text;

#[derive(Deserialize)]
struct Tree<'a> {
    #[serde(borrow)]
    spans: Vec<Span<'a>>,
}

#[derive(Deserialize)]
struct Span<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(default, borrow)]
    parent: Option<Text<'a>>,
    #[serde(borrow)]
    service: Text<'a>,
    #[serde(default, borrow)]
    op: Text<'a>,
    #[serde(default, borrow)]
    kind: Text<'a>,
    start_us: i64,
    #[serde(default)]
    duration_us: Option<u64>,
}

/// A client span is a call; the server span under it says who was called and when that began. A server span that is not
/// under a client span is a call whose sending was not recorded. The outermost client span of a load generator counts
/// as a call too: it is the root.
pub(super) fn trace(text: &str) -> Result<Trace, String> {
    let tree: Tree<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut by_id: HashMap<&str, usize> = HashMap::with_capacity(tree.spans.len());
    by_id.extend(tree.spans.iter().enumerate().map(|(index, span)| (&*span.id.0, index)));
    let parent = |(index, span): (usize, &Span<'_>)| {
        let parent = span.parent.as_ref().and_then(|parent| by_id.get(&*parent.0).copied());
        parent.filter(|&parent| parent != index)
    };
    let parents: Vec<Option<usize>> = tree.spans.iter().enumerate().map(parent).collect();
    let parent_of = |index: usize| parents.get(index).copied().flatten();

    let mut calls: Vec<Call> = Vec::with_capacity(tree.spans.len());
    // For each span the call that it belongs to.
    let mut call_of: Vec<Option<u32>> = vec![None; tree.spans.len()];
    let is_server = |span: &Span<'_>| span.kind.0 == "server";
    for (index, span) in tree.spans.iter().enumerate() {
        let below_client = parent_of(index).and_then(|parent| tree.spans.get(parent)).is_some_and(|p| !is_server(p));
        if is_server(span) && below_client {
            continue;
        }
        if let Some(slot) = call_of.get_mut(index) {
            *slot = Some(calls.len() as u32);
        }
        let ended_us = span.duration_us.map(|duration| span.start_us.saturating_add_unsigned(duration));
        let server = is_server(span);
        calls.push(Call {
            at_us: span.start_us,
            callee: if server { span.service.shared() } else { span.op.shared() },
            caller: None,
            external: !server,
            started_us: server.then_some(span.start_us),
            served_us: ended_us.filter(|_| server),
            ended_us,
            cold: None,
        });
    }
    for (index, span) in tree.spans.iter().enumerate() {
        let parent = parent_of(index);
        let parents_call = parent.and_then(|parent| call_of.get(parent).copied().flatten());
        // A server span under a client span: the callee. Of several (a retry below the client), the first.
        if let (None, Some(call)) = (call_of.get(index).copied().flatten(), parents_call) {
            if let Some(slot) = call_of.get_mut(index) {
                *slot = Some(call);
            }
            if let Some(call) = calls.get_mut(call as usize).filter(|call| call.external) {
                call.callee = span.service.shared();
                call.external = false;
                call.started_us = Some(span.start_us);
                call.served_us = span.duration_us.map(|duration| span.start_us.saturating_add_unsigned(duration));
            }
        }
    }
    for index in 0..tree.spans.len() {
        let parents_call = parent_of(index).and_then(|parent| call_of.get(parent).copied().flatten());
        if let (Some(call), Some(parent)) = (call_of.get(index).copied().flatten(), parents_call)
            && call != parent
            && let Some(call) = calls.get_mut(call as usize)
        {
            call.caller = Some(parent);
        }
    }
    Ok(Trace::sorted(calls))
}
