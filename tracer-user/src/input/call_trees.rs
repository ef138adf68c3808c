//! Traces with true parents, a line each, as distributed tracing stores them.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use serde::Deserialize;

use super::{Call, Trace};

#[derive(Deserialize)]
struct Tree<'a> {
    #[serde(borrow)]
    spans: Vec<Span<'a>>,
}

#[derive(Deserialize)]
struct Span<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(default, borrow)]
    parent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(default, borrow)]
    op: Cow<'a, str>,
    #[serde(default, borrow)]
    kind: Cow<'a, str>,
    start_us: i64,
    #[serde(default)]
    duration_us: Option<u64>,
}

/// A client span is a call; the server span under it says who was called and when that began. A server span that is not
/// under a client span is a call whose sending was not recorded. The outermost client span of a load generator counts
/// as a call too: it is the root.
pub(super) fn trace(text: &str) -> Result<Trace, String> {
    let tree: Tree<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let by_id: HashMap<&str, usize> = tree.spans.iter().enumerate().map(|(index, span)| (&*span.id, index)).collect();
    let parent_of = |index: usize| -> Option<usize> {
        let parent = tree.spans.get(index)?.parent.as_deref()?;
        by_id.get(parent).copied().filter(|&parent| parent != index)
    };

    let mut calls: Vec<Call> = Vec::with_capacity(tree.spans.len());
    // For each span the call that it belongs to.
    let mut call_of: Vec<Option<u32>> = vec![None; tree.spans.len()];
    let is_server = |span: &Span<'_>| span.kind == "server";
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
            callee: if server { Arc::from(&*span.service) } else { Arc::from(&*span.op) },
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
                call.callee = Arc::from(&*span.service);
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
