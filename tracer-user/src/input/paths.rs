//! The lines of `fntrace run --format ndjson`.

use std::sync::Arc;

use crate::path::{Line, Node};

use super::{Call, Trace};

/// Reads a line. `None` for a line that holds no path (`stats`, and types to come). A line of a newer version is read as
/// if it were of this one: keys are only ever added, so what is understood is right.
pub fn line(text: &str) -> Result<Option<Line>, String> {
    let error = match Line::parse(text) {
        Ok(line) => return Ok(line),
        Err(error) => error,
    };
    let newer = serde_json::from_str::<serde_json::Value>(text).ok().and_then(|mut value| {
        let version = value.get_mut("fntrace").filter(|version| version.as_u64().is_some_and(|version| version > 1))?;
        *version = 1.into();
        Line::parse(&value.to_string()).ok()
    });
    newer.ok_or_else(|| error.to_string())
}

/// Reads a line as a sequence. Parts that came late are passed over: their path was read without them.
pub(super) fn trace(text: &str) -> Result<Option<Trace>, String> {
    Ok(match line(text)? {
        Some(Line::Path(path)) => Some(Trace::from_path(path.start.0, &path.root)),
        Some(Line::Late(_)) | None => None,
    })
}

impl Trace {
    /// The calls under `root`, whose offsets count from `start_us` (µs since 1970).
    pub fn from_path(start_us: i64, root: &Node) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        // A node, the invocation's call that it is in, and whether that call itself is what caused it.
        let mut open: Vec<(&Node, Option<u32>, bool)> = vec![(root, None, false)];
        while let Some((node, caller, caused)) = open.pop() {
            let at_us = start_us.saturating_add(node.start_us());
            let ended_us = node.duration_us().map(|duration| at_us.saturating_add_unsigned(duration));
            let cause = caller.filter(|_| caused).and_then(|caller| calls.get_mut(caller as usize));
            let inside = match (node, cause) {
                (Node::Invocation(invocation), Some(call)) => {
                    call.callee = invocation.function.clone();
                    call.external = false;
                    call.started_us = Some(at_us);
                    call.cold = Some(invocation.cold);
                    call.served_us = ended_us.filter(|_| invocation.ended);
                    call.ended_us = call.ended_us.or(call.served_us);
                    caller
                }
                (Node::Invocation(invocation), None) => {
                    calls.push(Call {
                        at_us,
                        callee: invocation.function.clone(),
                        caller,
                        external: false,
                        started_us: Some(at_us),
                        served_us: ended_us.filter(|_| invocation.ended),
                        ended_us: ended_us.filter(|_| invocation.ended),
                        cold: Some(invocation.cold),
                    });
                    Some(calls.len() as u32 - 1)
                }
                (Node::Call(call), _) => {
                    calls.push(Call {
                        at_us,
                        // A name says more than an address, and stays when the address does not.
                        callee: call.host.as_deref().map_or_else(|| Arc::clone(&call.to), Arc::from),
                        caller,
                        external: true,
                        started_us: None,
                        served_us: None,
                        ended_us: ended_us.filter(|_| call.ended),
                        cold: None,
                    });
                    Some(calls.len() as u32 - 1)
                }
            };
            let causes = matches!(node, Node::Call(_));
            open.extend(node.children().iter().rev().map(|child| (child, inside, causes)));
        }
        Self::sorted(calls)
    }
}
