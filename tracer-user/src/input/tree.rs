//! Recorded calls as the path that the agent would have printed, for the profile.

use std::{borrow::Cow, sync::Arc};

use super::{Call, Trace};
use crate::path::{self, Invocation, Node, Path, PathType, SpanId, Time, TraceId, Version};

/// Calls between the root and the deepest one, as in the lines of the agent. What lies deeper is put there.
const DEPTH_MAX: u8 = 56;

/// The path of a trace. A call whose caller is not known is taken for one of the root's.
pub(super) fn path(trace: &Trace, number: u64) -> Option<Path> {
    let root = trace.calls.first()?;
    let above = parents(&trace.calls);
    let mut children: Vec<Vec<Node>> = vec![Vec::new(); trace.calls.len()];
    // Callees come after their callers, so from the back each is whole when it is its caller's turn.
    for (index, call) in trace.calls.iter().enumerate().skip(1).rev() {
        let mut below = std::mem::take(&mut children[index]);
        below.reverse();
        children[above[index]].push(node(call, index as u64, root.at_us, below));
    }
    let mut below = std::mem::take(&mut children[0]);
    below.reverse();
    let duration_us = root.served_us.or(root.ended_us).map(|end| span(root.at_us, end));
    let last_us = trace.calls.iter().filter_map(|call| call.ended_us.or(call.started_us)).max();
    Some(Path {
        fntrace: Version,
        kind: PathType::Path,
        trace_id: TraceId([0, number]),
        start: Time(root.at_us),
        duration_us: duration_us.unwrap_or_else(|| span(root.at_us, last_us.unwrap_or(root.at_us))),
        complete: true,
        missing: Vec::new(),
        root: invocation(root, 0, root.at_us, Some(root.at_us), below),
    })
}

/// For each call the index of the one that it is put under.
fn parents(calls: &[Call]) -> Vec<usize> {
    let mut depths: Vec<u8> = Vec::with_capacity(calls.len());
    let mut above: Vec<usize> = Vec::with_capacity(calls.len());
    for call in calls {
        let mut caller = call.caller.map_or(0, |caller| caller as usize);
        if depths.get(caller).is_some_and(|depth| *depth >= DEPTH_MAX) {
            caller = above[caller];
        }
        depths.push(depths.get(caller).map_or(0, |depth| depth + 1));
        above.push(caller);
    }
    above
}

fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

fn node(call: &Call, index: u64, base_us: i64, children: Vec<Node>) -> Node {
    let duration_us = call.ended_us.map(|end| span(call.at_us, end));
    let children = if call.external && children.is_empty() {
        Vec::new()
    } else {
        vec![invocation(call, 2 * index, base_us, call.started_us, children)]
    };
    Node::Call(path::Call {
        span_id: SpanId(2 * index + 1),
        trace_id: None,
        to: Arc::clone(&call.callee),
        peer: Arc::clone(&call.callee),
        host: None,
        start_us: call.at_us.saturating_sub(base_us),
        duration_us,
        first_byte_us: None,
        ended: call.ended_us.is_some(),
        http: None,
        protocol: None,
        tag: Cow::Borrowed("off"),
        parent_by: Cow::Borrowed("header"),
        probability: None,
        after_response: false,
        channel: None,
        error: None,
        children,
    })
}

fn invocation(call: &Call, id: u64, base_us: i64, started_us: Option<i64>, children: Vec<Node>) -> Node {
    let start_us = started_us.unwrap_or(call.at_us);
    let end_us = call.served_us.or(call.ended_us);
    Node::Invocation(Invocation {
        span_id: SpanId(id),
        trace_id: None,
        outside_parent: None,
        function: Arc::clone(&call.callee),
        sandbox: Arc::clone(&call.callee),
        pid: 0,
        start_us: start_us.saturating_sub(base_us),
        duration_us: end_us.map(|end| span(start_us, end)),
        first_byte_us: None,
        ended: end_us.is_some(),
        cold: call.cold == Some(true),
        cold_start: None,
        resource: None,
        http: None,
        joined_by: None,
        error: None,
        faas: None,
        children,
    })
}
