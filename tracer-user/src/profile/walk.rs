//! From one path to the counts of a profile: times, critical path, shape and stacks.

use std::sync::Arc;

use super::{
    Profile, patterns, shape,
    stats::{Callee, Circle, Edge, Form, Function, Name, POSITIONS, Stack, Step, StepKind, clip},
};
use crate::path::{Call, Http, Invocation, Node, Path, shared};

/// A call, with the invocation that it caused if that is known; or an invocation alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub call: Option<&'a Call>,
    pub callee: Option<&'a Invocation>,
    pub start: i64,
    /// None if it was not seen to end.
    pub end: Option<i64>,
}

pub(super) fn callee_of(node: &Node) -> View<'_> {
    let (call, callee) = match node {
        Node::Invocation(invocation) => (None, Some(invocation)),
        // Only one invocation is ever joined to a call.
        Node::Call(call) => {
            let callee = call.children.iter().find_map(|child| match child {
                Node::Invocation(invocation) => Some(invocation),
                Node::Call(_) => None,
            });
            (Some(call), callee)
        }
    };
    View { call, callee, start: node.start_us(), end: end_of(node) }
}

pub(super) fn end_of(node: &Node) -> Option<i64> {
    node.duration_us().map(|us| node.start_us().saturating_add_unsigned(us))
}

/// The time from `from` to `to`; 0 if they are the wrong way round, as clocks and lost records can make them.
pub(super) fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

fn text(name: &Arc<str>) -> Arc<str> {
    let clipped = clip(name);
    if clipped.len() == name.len() { Arc::clone(name) } else { clipped.into() }
}

impl<'a> View<'a> {
    pub fn external(&self) -> bool {
        self.callee.is_none() && self.call.is_some_and(|call| call.to == call.peer)
    }

    pub fn name(&self) -> Arc<str> {
        match (self.callee, self.call) {
            (Some(callee), _) => text(&callee.function),
            (None, Some(call)) if call.to != call.peer => text(&call.to),
            (None, Some(call)) => text(call.host.as_ref().unwrap_or(&call.to)),
            (None, None) => Arc::default(),
        }
    }

    pub fn http(&self) -> Option<&'a Http> {
        let callee = self.callee.and_then(|callee| callee.http.as_ref());
        self.call.map_or(callee, |call| call.http.as_ref())
    }

    fn error(&self) -> Option<&'a str> {
        self.call.map_or_else(|| self.callee.and_then(|callee| callee.error.as_deref()), |call| call.error.as_deref())
    }

    pub fn status(&self) -> Option<u16> {
        self.http().and_then(|http| http.status)
    }

    pub fn failed(&self) -> bool {
        self.error().is_some() || self.status().is_some_and(|status| status >= 500 || matches!(status, 408 | 429))
    }

    /// Also counts what the caller did wrong: it did not get what it asked for.
    pub fn refused(&self) -> bool {
        self.failed() || self.status().is_some_and(|status| status >= 400)
    }

    /// Whether the agent saw it begin after the answer.
    fn late(&self) -> bool {
        self.call.is_some_and(|call| call.after_response)
    }

    /// Whether an answer may have waited for it.
    fn awaited(&self) -> bool {
        self.end.is_some() && !self.late()
    }

    pub fn us(&self) -> Option<u64> {
        self.end.map(|end| span(self.start, end))
    }
}

/// Everything about one invocation that more than one count needs.
pub(super) struct Scene<'a> {
    pub path: &'a Path,
    pub invocation: &'a Invocation,
    /// When it answered.
    pub end: Option<i64>,
    /// What it called, in order of start, and by what name.
    pub calls: Vec<(Callee, View<'a>)>,
}

impl<'a> Scene<'a> {
    fn new(path: &'a Path, invocation: &'a Invocation) -> Self {
        let mut calls: Vec<_> = invocation
            .children
            .iter()
            .map(callee_of)
            .map(|view| (Callee { name: view.name(), external: view.external() }, view))
            .collect();
        calls.sort_by_key(|(_, view)| view.start);
        let end = invocation.duration_us.map(|us| invocation.start_us.saturating_add_unsigned(us));
        Self { path, invocation, end, calls }
    }

    pub fn after_response(&self, view: &View<'_>) -> bool {
        view.late() || self.end.is_some_and(|end| view.start >= end)
    }

    /// The time until the answer in which at least one call was open.
    fn waiting(&self, end: i64) -> u64 {
        let (mut covered, mut total) = (self.invocation.start_us, 0u64);
        for (_, view) in self.calls.iter().filter(|(_, view)| !view.late()) {
            let to = view.end.unwrap_or(end).min(end);
            total += span(view.start.max(covered), to);
            covered = covered.max(to);
        }
        total
    }

    /// Which calls were open together with another.
    fn parallel(&self) -> Vec<bool> {
        let mut parallel = vec![false; self.calls.len()];
        let mut longest: Option<(usize, i64)> = None;
        for (at, (_, view)) in self.calls.iter().enumerate() {
            // What did not end stays open as far as anyone knows, but proves nothing.
            let end = view.end.unwrap_or(view.start);
            if let Some((open, until)) = longest
                && view.start < until
            {
                parallel[at] = true;
                parallel[open] = true;
            }
            if longest.is_none_or(|(_, until)| end > until) {
                longest = Some((at, end));
            }
        }
        parallel
    }
}

/// What a walk over one path gathers.
#[derive(Default)]
struct Walk {
    /// The functions above, outermost first, and the same as one text.
    above: Vec<Arc<str>>,
    stack: String,
    /// The critical path, by step.
    steps: Vec<(Step, u64)>,
}

impl Profile {
    /// Counts a path. What the path alone decides is counted whether it is complete or not; `incomplete` says how many
    /// were not.
    pub fn add(&mut self, path: &Path) {
        self.paths += 1;
        self.incomplete += u64::from(!path.complete);
        self.first.add(path.start.0);
        self.last.add(path.start.0);
        let mut walk = Walk::default();
        let view = callee_of(&path.root);
        match view.callee {
            Some(invocation) => self.invocation(&mut walk, path, invocation, view.call.map(|_| view)),
            None => self.stack(&mut walk, &view.name(), view.us().unwrap_or(0)),
        }
        if view.call.is_some() {
            self.root_calls += 1;
        }
        if let Some(invocation) = view.callee {
            let function = self.functions.at(Name { name: text(&invocation.function) });
            function.roots += 1;
            function.slowest.add(path);
        }
        if let Some(end) = view.end {
            critical_call(&mut walk.steps, &view, view.start, end);
            self.critical_us += span(view.start, end);
        }
        self.shape(path, walk.steps);
    }

    fn shape(&mut self, path: &Path, mut steps: Vec<(Step, u64)>) {
        let shape = self.shapes.at(Form { shape: shape::of(&callee_of(&path.root)) });
        shape.paths += 1;
        if path.root.duration_us().is_some() {
            shape.latency.add(path.duration_us);
        }
        shape.sample.add(path);
        steps.sort_unstable();
        let mut steps = steps.into_iter().peekable();
        while let Some((step, mut us)) = steps.next() {
            while let Some((_, more)) = steps.next_if(|(next, _)| *next == step) {
                us += more;
            }
            let name = Name { name: Arc::clone(&step.name) };
            match step.kind {
                StepKind::Own => self.functions.at(name).critical_us += us,
                StepKind::External => self.externals.at(name).critical.add(us, path.trace_id),
                StepKind::Network => {}
            }
            let time = shape.critical.at(step);
            time.paths += 1;
            time.us += us;
        }
    }

    /// Counts the stack of functions above with `name` on top.
    fn stack(&mut self, walk: &mut Walk, name: &str, us: u64) {
        if us > 0 {
            let length = walk.stack.len();
            push_frame(&mut walk.stack, name);
            let key = Stack { stack: shared(&walk.stack) };
            let total = &mut self.stacks.at(key).us;
            *total = total.saturating_add(us);
            walk.stack.truncate(length);
        }
    }

    fn invocation(&mut self, walk: &mut Walk, path: &Path, invocation: &Invocation, caller: Option<View<'_>>) {
        let name = text(&invocation.function);
        let scene = Scene::new(path, invocation);
        self.cycle(walk, &scene, &name);
        let own = self.count(&scene, &name, caller);
        self.stack(walk, &name, own);
        let length = walk.stack.len();
        push_frame(&mut walk.stack, &name);
        walk.above.push(name);
        for (callee, view) in &scene.calls {
            let us = view.us().unwrap_or(0);
            match view.callee {
                Some(inner) => {
                    let outside = us.saturating_sub(inner.duration_us.unwrap_or(us));
                    if view.call.is_some() {
                        self.stack(walk, &format!("[network to {}]", callee.name), outside);
                    }
                    self.invocation(walk, path, inner, view.call.map(|_| *view));
                }
                None => self.stack(walk, &callee.name, us),
            }
        }
        walk.above.pop();
        walk.stack.truncate(length);
    }

    fn cycle(&mut self, walk: &Walk, scene: &Scene<'_>, name: &Arc<str>) {
        let Some(from) = walk.above.iter().rposition(|above| above == name) else { return };
        let circle = &walk.above[from..];
        // Wherever the circle is entered, it is the same: told from its least name.
        let least = (0..circle.len()).min_by_key(|&at| &circle[at]).unwrap_or(0);
        let mut cycle = String::new();
        for at in 0..=circle.len().min(CYCLE_MAX) {
            if at > 0 {
                cycle.push_str(" → ");
            }
            cycle.push_str(&circle[(least + at) % circle.len()]);
        }
        let us = scene.invocation.duration_us.unwrap_or(0);
        self.cycles.at(Circle { cycle: cycle.into() }).add(us, scene.path.trace_id);
    }

    /// Counts what concerns the invocation and its calls; gives its own work.
    fn count(&mut self, scene: &Scene<'_>, name: &Arc<str>, caller: Option<View<'_>>) -> u64 {
        let function = self.functions.at(Name { name: Arc::clone(name) });
        let own = times(function, scene, caller);
        if scene.calls.is_empty() {
            return own;
        }
        let parallel = scene.parallel();
        // By callee, and in order of start within.
        let mut order: Vec<usize> = (0..scene.calls.len()).collect();
        order.sort_by(|&a, &b| scene.calls[a].0.cmp(&scene.calls[b].0));
        let mut calls: Vec<View<'_>> = Vec::with_capacity(order.len());
        for same in order.chunk_by(|&a, &b| scene.calls[a].0 == scene.calls[b].0) {
            let (callee, first) = &scene.calls[same[0]];
            let edge = function.edges.at(callee.clone());
            edge.invocations += 1;
            edge.calls_max.0 = edge.calls_max.0.max(same.len() as u64);
            edge.positions[same[0].min(POSITIONS - 1)] += 1;
            edge.delay.add(span(scene.invocation.start_us, first.start));
            calls.clear();
            for &at in same {
                let view = scene.calls[at].1;
                edge.parallel += u64::from(parallel[at]);
                edge.stopped_by_failure += u64::from(view.refused() && at + 1 == scene.calls.len());
                call(edge, scene, &view);
                calls.push(view);
            }
            patterns::edge(edge, scene, &calls);
            if callee.external {
                let external = self.externals.at(Name { name: Arc::clone(&callee.name) });
                for view in &calls {
                    external.calls += 1;
                    external.errors += u64::from(view.failed());
                    view.us().into_iter().for_each(|us| external.latency.add(us));
                }
            }
        }
        patterns::pairs(function, scene);
        own
    }
}

/// Counts what concerns the invocation alone; gives its own work.
fn times(function: &mut Function, scene: &Scene<'_>, caller: Option<View<'_>>) -> u64 {
    let invocation = scene.invocation;
    function.invocations += 1;
    function.cold += u64::from(invocation.cold);
    let status = invocation.http.as_ref().and_then(|http| http.status);
    function.errors += u64::from(invocation.error.is_some() || status.is_some_and(|status| status >= 500));
    function.calls += scene.calls.len() as u64;
    function.calls_max.0 = function.calls_max.0.max(scene.calls.len() as u64);
    if let Some(caller) = caller {
        function.queueing.add(span(caller.start, invocation.start_us));
    }
    let (Some(us), Some(end)) = (invocation.duration_us, scene.end) else {
        function.unfinished += 1;
        return 0;
    };
    let waiting = scene.waiting(end).min(us);
    function.latency.add(us);
    if invocation.cold {
        function.cold_latency.add(us);
    }
    function.own.add(us - waiting);
    function.waiting.add(waiting);
    us - waiting
}

/// Counts what concerns a call alone.
fn call(edge: &mut Edge, scene: &Scene<'_>, view: &View<'_>) {
    edge.calls += 1;
    edge.errors += u64::from(view.failed());
    edge.after_response += u64::from(scene.after_response(view));
    edge.inferred += u64::from(view.call.is_some_and(|call| call.parent_by == "inferred"));
    match view.us() {
        Some(us) => {
            edge.latency.add(us);
            if let (Some(_), Some(inner)) = (view.call, view.callee.and_then(|callee| callee.duration_us)) {
                edge.callee_latency.add(inner);
                edge.network.add(us.saturating_sub(inner));
            }
        }
        None => edge.unfinished += 1,
    }
    if let Some(channel) = view.call.and_then(|call| call.channel) {
        edge.rtt.add(u64::from(channel.rtt_us));
        edge.retransmits += u64::from(channel.retransmits);
    }
    edge.cold += u64::from(view.callee.is_some_and(|callee| callee.cold));
    if let Some(http) = view.http() {
        edge.path_min.add(&http.path);
        edge.path_max.add(&http.path);
    }
}

/// Functions of a cycle that are named.
const CYCLE_MAX: usize = 16;

fn push_frame(stack: &mut String, name: &str) {
    if !stack.is_empty() {
        stack.push(';');
    }
    // The two characters that mean something in the folded form.
    let special = |char| matches!(char, ';' | '\n');
    if name.contains(special) { stack.push_str(&name.replace(special, "_")) } else { stack.push_str(name) }
}

/// Adds the critical path of a call to `steps`, as far as it lies between `from` and `to`.
fn critical_call(steps: &mut Vec<(Step, u64)>, view: &View<'_>, from: i64, to: i64) {
    let step = |kind| Step { kind, name: view.name() };
    match view.callee {
        Some(callee) => {
            let begin = callee.start_us.clamp(from, to);
            let end = callee.duration_us.map_or(to, |us| callee.start_us.saturating_add_unsigned(us)).clamp(begin, to);
            let network = span(from, begin) + span(end, to);
            if view.call.is_some() && network > 0 {
                steps.push((step(StepKind::Network), network));
            }
            critical(steps, callee, begin, end);
        }
        None => {
            steps.push((step(if view.external() { StepKind::External } else { StepKind::Network }), span(from, to)))
        }
    }
}

/// Walks back from the end: the call that returned last before a moment is what that moment waited for; where none was
/// open, the function worked itself. Calls that were still open when the next critical one began were not waited for.
fn critical(steps: &mut Vec<(Step, u64)>, invocation: &Invocation, from: i64, to: i64) {
    let mut calls: Vec<View<'_>> = invocation.children.iter().map(callee_of).filter(View::awaited).collect();
    calls.sort_by_key(|view| (view.end, view.start));
    let (mut own, mut cursor) = (0u64, to);
    for view in calls.iter().rev() {
        let Some(end) = view.end else { continue };
        let start = view.start.max(from);
        if end > cursor || end <= from || start >= end {
            continue;
        }
        own += span(end, cursor);
        critical_call(steps, view, start, end);
        cursor = start;
    }
    own += span(from, cursor);
    if own > 0 {
        steps.push((Step { kind: StepKind::Own, name: text(&invocation.function) }, own));
    }
}
