//! Puts parts that came late where they belong.
//!
//! The agent prints a path when its root has ended; what ends or begins later (calls after the answer, above all) comes as
//! a part of its own. So paths wait here, as many as a bound allows, before they are counted, and parts are put into them.

use std::{collections::VecDeque, mem};

use super::Profile;
use crate::path::{self, Line, Node, Path, SpanId};

/// Paths that wait.
pub const WAITING_MAX: usize = 128;

/// Paths that wait for their parts.
#[derive(Clone, Debug, Default)]
pub struct Late {
    /// In the order in which they came.
    waiting: VecDeque<Path>,
}

impl Late {
    /// Takes a line; the path that has waited longest is counted if there are too many.
    pub fn line(&mut self, profile: &mut Profile, line: Line) {
        match line {
            Line::Path(path) => {
                self.waiting.push_back(path);
                if self.waiting.len() > WAITING_MAX
                    && let Some(path) = self.waiting.pop_front()
                {
                    profile.add(&path);
                }
            }
            Line::Late(part) => {
                let mut part = Some(part);
                // A trace can have several paths; the newest are looked at first.
                for path in self.waiting.iter_mut().rev() {
                    match part.take() {
                        Some(late) => part = put(path, late),
                        None => break,
                    }
                }
                profile.late += u64::from(part.is_some());
            }
        }
    }

    /// Counts all that wait.
    pub fn finish(&mut self, profile: &mut Profile) {
        self.waiting.drain(..).for_each(|path| profile.add(&path));
    }
}

/// Puts a part into its path; gives it back if it belongs elsewhere.
fn put(path: &mut Path, mut late: path::Late) -> Option<path::Late> {
    if path.trace_id != late.trace_id {
        return Some(late);
    }
    let shift = late.start.0.saturating_sub(path.start.0);
    if let Some(old) = find(&mut path.root, late.root.span_id()) {
        move_by(&mut late.root, shift);
        let children = mem::take(children(old));
        *old = late.root;
        self::children(old).extend(children);
    } else {
        let Some(parent) = late.parent_span_id.and_then(|span| find(&mut path.root, span)) else { return Some(late) };
        move_by(&mut late.root, shift);
        let siblings = children(parent);
        let at = siblings.partition_point(|sibling| sibling.start_us() <= late.root.start_us());
        siblings.insert(at, late.root);
    }
    path.duration_us = path.root.duration_us().unwrap_or(path.duration_us);
    None
}

fn children(node: &mut Node) -> &mut Vec<Node> {
    match node {
        Node::Invocation(invocation) => &mut invocation.children,
        Node::Call(call) => &mut call.children,
    }
}

fn find(node: &mut Node, span: SpanId) -> Option<&mut Node> {
    if node.span_id() == span {
        return Some(node);
    }
    children(node).iter_mut().find_map(|child| find(child, span))
}

/// Makes the times of a part count from the start of its path.
fn move_by(node: &mut Node, us: i64) {
    let (start, first_byte) = match node {
        Node::Invocation(invocation) => (&mut invocation.start_us, &mut invocation.first_byte_us),
        Node::Call(call) => (&mut call.start_us, &mut call.first_byte_us),
    };
    *start = start.saturating_add(us);
    *first_byte = first_byte.map(|at| at.saturating_add(us));
    children(node).iter_mut().for_each(|child| move_by(child, us));
}
