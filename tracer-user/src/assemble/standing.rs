//! Where a span stands while it is in flight: for those who cannot wait until its path is given out.

use std::sync::Arc;

use super::{
    Assembler,
    span::{Class, Join, Span},
};
use crate::path::{SpanId, TraceId};
use tracer_ebpf::record::Wire;

/// Which map of ids a span is found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A server span.
    Invocation,
    /// A client span, an opaque connection's too.
    Call,
}

/// Where a span in flight stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing<'a> {
    /// Of the path.
    pub trace_id: TraceId,
    /// The root of the path, as far as it is known now.
    pub root: SpanId,
    /// Of an invocation: the call that caused it. Of a call: the invocation that made it.
    pub above: Option<SpanId>,
    /// Of a call: what caused the invocation that made it, or that invocation itself if it is the root.
    pub caller: Option<SpanId>,
    /// Of an invocation: its function. Of a joined call: the function that it called.
    pub function: Option<Arc<str>>,
    /// Of a call: the Host header.
    pub host: Option<&'a str>,
    /// Both ends of the connection.
    pub wire: Wire,
    /// Whether the invocation is the first of a sandbox that was made while the agent watched.
    pub cold: bool,
}

impl Assembler {
    /// Where a span stands. `None` if it was given out, or was never here under this id.
    pub fn standing(&self, what: What, id: SpanId) -> Option<Standing<'_>> {
        let by_id = if what == What::Invocation { &self.invocations } else { &self.calls };
        let span = self.spans.get(by_id.get(id.0, &self.spans)? as usize)?;
        let tree = self.trees.get(span.tree as usize)?;
        let root = self.spans.get(tree.root as usize)?;
        let above = self.above(span);
        let function = match (span.class, span.callee) {
            (Class::Invocation, _) => Some(self.function(span.sandbox)),
            (_, 0) => None,
            (_, callee) => Some(self.function(callee)),
        };
        Some(Standing {
            trace_id: TraceId(root.trace_id),
            root: SpanId(root.id),
            above: above.map(|above| SpanId(above.id)),
            caller: above.filter(|_| what == What::Call).map(|above| SpanId(self.above(above).unwrap_or(above).id)),
            function,
            host: span.head.host.as_deref(),
            wire: span.wire,
            cold: span.cold.is_some(),
        })
    }

    fn above(&self, span: &Span) -> Option<&Span> {
        let by_id = match span.class {
            Class::Invocation if span.join == Join::No => return None,
            Class::Invocation => &self.calls,
            Class::Call | Class::Opaque => &self.invocations,
        };
        let above = self.spans.get(by_id.get(span.above, &self.spans)? as usize)?;
        (above.tree == span.tree).then_some(above)
    }
}
