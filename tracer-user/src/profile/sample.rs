//! Single paths that a profile keeps to show.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    bounded::Merge,
    walk::{callee_of, end_of},
};
use crate::path::{Node, Path, Time, TraceId};

/// Spans of a sample; what a path has beyond is counted.
pub const SPANS_MAX: usize = 64;

/// A path, cut to what a timeline shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sample {
    /// How long it took, in µs.
    pub duration_us: u64,
    /// Its trace.
    pub trace_id: TraceId,
    /// When it began.
    pub start: Time,
    /// Its spans in depth-first order. A call and the invocation that it caused share one.
    pub spans: Vec<SampleSpan>,
    /// How many more it has.
    pub left_out: u64,
}

/// A span of a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SampleSpan {
    /// How many spans it is under.
    pub depth: u16,
    /// The function or service.
    pub name: Arc<str>,
    /// Start after the start of the path, in µs.
    pub start_us: i64,
    /// How long it took, in µs; none if it was not seen to end.
    pub duration_us: Option<u64>,
    /// When the callee's invocation began, if it is traced.
    pub inner_start_us: Option<i64>,
    /// How long the callee's invocation took.
    pub inner_us: Option<u64>,
    /// Whether it failed.
    pub failed: bool,
    /// Whether it was a cold start.
    pub cold: bool,
    /// Whether it is an external service.
    pub external: bool,
}

impl Sample {
    /// Of a path.
    pub fn of(path: &Path) -> Self {
        let mut sample =
            Self { duration_us: path.duration_us, trace_id: path.trace_id, start: path.start, ..Self::default() };
        sample.node(&path.root, 0);
        sample
    }

    fn node(&mut self, node: &Node, depth: u16) {
        let view = callee_of(node);
        if self.spans.len() < SPANS_MAX {
            let start_us = node.start_us();
            self.spans.push(SampleSpan {
                depth,
                name: view.name(),
                start_us,
                duration_us: end_of(node).map(|end| end.saturating_sub(start_us).max(0) as u64),
                inner_start_us: view.call.and(view.callee).map(|callee| callee.start_us),
                inner_us: view.call.and(view.callee).and_then(|callee| callee.duration_us),
                failed: view.failed(),
                cold: view.callee.is_some_and(|callee| callee.cold),
                external: view.external(),
            });
        } else {
            self.left_out += 1;
        }
        let children = view.callee.map_or(&[][..], |callee| &callee.children);
        children.iter().for_each(|child| self.node(child, depth.saturating_add(1)));
    }
}

/// The slowest path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowest(pub Option<Box<Sample>>);

/// The path whose trace id hashes least: as good as drawn by chance, but the same whatever the order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typical(pub Option<Box<Sample>>);

impl Slowest {
    /// Takes a path into account.
    pub fn add(&mut self, path: &Path) {
        // Nearly every path stops here, before anything is copied.
        if self.0.as_ref().is_none_or(|old| path.duration_us >= old.duration_us) {
            self.offer(Box::new(Sample::of(path)));
        }
    }

    fn offer(&mut self, new: Box<Sample>) {
        if self.0.as_ref().is_none_or(|old| new > *old) {
            self.0 = Some(new);
        }
    }
}

fn lot(trace_id: TraceId) -> u64 {
    let mixed = (trace_id.0[0] ^ trace_id.0[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Typical {
    /// Takes a path into account.
    pub fn add(&mut self, path: &Path) {
        if self.0.as_ref().is_none_or(|old| lot(path.trace_id) <= lot(old.trace_id)) {
            self.offer(Box::new(Sample::of(path)));
        }
    }

    fn offer(&mut self, new: Box<Sample>) {
        let rank = |sample: &Sample| lot(sample.trace_id);
        if self.0.as_ref().is_none_or(|old| (rank(&new), &new) < (rank(old), old)) {
            self.0 = Some(new);
        }
    }
}

impl Merge for Slowest {
    fn merge(&mut self, other: Self) {
        if let Some(sample) = other.0 {
            self.offer(sample);
        }
    }
}

impl Merge for Typical {
    fn merge(&mut self, other: Self) {
        if let Some(sample) = other.0 {
            self.offer(sample);
        }
    }
}
