//! Patterns within one invocation. Each is tallied where it is seen; `findings.rs` decides what is worth telling.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};

use super::{
    stats::{Both, Edge, Function},
    walk::{Scene, View, span},
};

/// Calls one after the other whose paths differ in one part: fewer than these are no loop.
pub const LOOP_MIN: usize = 5;

/// A request, as far as it is known: method, path, query.
type Request<'a> = (&'a str, &'a str, Option<&'a str>);

fn request<'a>(view: &View<'a>) -> Option<Request<'a>> {
    match (view.http(), view.call) {
        (Some(http), _) => Some((&http.method, &http.path, http.query.as_deref())),
        // A connection that never came about: as good as a request.
        (None, Some(call)) if call.protocol.is_none() && call.error.is_some() => Some(("", "", None)),
        _ => None,
    }
}

fn reads(view: &View<'_>) -> bool {
    view.http().is_some_and(|http| matches!(&*http.method, "GET" | "HEAD"))
}

/// Tallies the patterns of all calls of an invocation to one callee, in order of start.
pub fn edge(edge: &mut Edge, scene: &Scene<'_>, calls: &[View<'_>]) {
    if calls.len() > 1 {
        retries(edge, scene, calls);
        repeats(edge, scene, calls);
        one_by_one(edge, scene, calls);
    }
    let trace_id = scene.path.trace_id;
    let unused = calls.iter().filter(|view| unused(scene, view)).filter_map(View::us).sum::<u64>();
    if unused > 0 {
        edge.unused.add(unused, trace_id);
    }
    let gave_up: Vec<u64> = calls.iter().filter(|view| gave_up(view)).filter_map(View::us).collect();
    gave_up.iter().for_each(|&us| edge.gave_up_after.add(us));
    if let Some(&us) = gave_up.first() {
        edge.gave_up.add(us, trace_id);
    }
    let cold = calls.iter().any(|view| view.callee.is_some_and(|callee| callee.cold) && !scene.after_response(view));
    if let (true, Some(us)) = (cold, scene.invocation.duration_us) {
        edge.latency_with_cold.add(us);
        edge.cold_tally.add(us, trace_id);
    }
}

/// A retry repeats a request after the last with the same request had failed.
fn retries(edge: &mut Edge, scene: &Scene<'_>, calls: &[View<'_>]) {
    let mut last: HashMap<Request<'_>, View<'_>> = HashMap::new();
    let (mut tried, mut won, mut vain) = (false, false, 0u64);
    for view in calls {
        let Some(request) = request(view) else { continue };
        let before = last.insert(request, *view).filter(View::failed).and_then(|before| before.end);
        let Some(before) = before.filter(|&end| end <= view.start) else { continue };
        edge.retries += 1;
        tried = true;
        if view.failed() {
            vain += view.end.map_or(0, |end| span(before, end));
        } else if view.end.is_some() {
            edge.retries_ok += 1;
            won = true;
        }
    }
    if tried && !won {
        edge.vain_retries.add(vain, scene.path.trace_id);
    }
}

/// The same read again, successful both times, one after the other, with no write to the callee between.
fn repeats(edge: &mut Edge, scene: &Scene<'_>, calls: &[View<'_>]) {
    let mut last: HashMap<Request<'_>, View<'_>> = HashMap::new();
    let mut saved = 0u64;
    for view in calls {
        if !reads(view) {
            // A write, or what may be one.
            last.clear();
            continue;
        }
        let good = view.end.is_some() && view.status().is_some_and(|status| (200..400).contains(&status));
        let Some(request) = request(view).filter(|_| good) else { continue };
        match last.get(&request) {
            Some(before) if before.end.is_some_and(|end| end <= view.start) => saved += view.us().unwrap_or(0).max(1),
            // Side by side: neither could have used what the other brought.
            Some(_) => {}
            None => {
                last.insert(request, *view);
            }
        }
    }
    if saved > 0 {
        edge.repeated.add(saved, scene.path.trace_id);
    }
}

/// Many reads of the same kind, each after the last, whose paths differ in one part: one call for each row of a list.
fn one_by_one(edge: &mut Edge, scene: &Scene<'_>, calls: &[View<'_>]) {
    if calls.len() < LOOP_MIN {
        return;
    }
    let mut saved = 0u64;
    let same_kind = |a: &View<'_>, b: &View<'_>| {
        let (Some(a_http), Some(b_http), Some(end)) = (a.http(), b.http(), a.end) else { return false };
        a_http.method == b_http.method
            && end <= b.start
            && !a.failed()
            && differs_at(&a_http.path, &b_http.path).is_some()
    };
    for run in calls.chunk_by(same_kind) {
        let at = |pair: &[View<'_>]| pair[0].http().zip(pair[1].http()).and_then(|(a, b)| differs_at(&a.path, &b.path));
        let mut places = run.windows(2).map(at);
        let first = places.next();
        if run.len() < LOOP_MIN || !places.all(|place| Some(place) == first) {
            continue;
        }
        let longest = run.iter().filter_map(View::us).max().unwrap_or(0);
        let end = run.last().and_then(|view| view.end).unwrap_or(run[0].start);
        saved += span(run[0].start, end).saturating_sub(longest);
    }
    if saved > 0 {
        edge.one_by_one.add(saved, scene.path.trace_id);
    }
}

/// The one part in which two paths of as many parts differ.
fn differs_at(a: &str, b: &str) -> Option<usize> {
    let (mut a, mut b, mut place) = (a.split('/'), b.split('/'), None);
    for at in 0.. {
        match (a.next(), b.next()) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) if place.is_none() => place = Some(at),
            _ => return None,
        }
    }
    place
}

/// The answer had left whole before the first byte of the response came.
fn unused(scene: &Scene<'_>, view: &View<'_>) -> bool {
    let came = view.call.and_then(|call| call.first_byte_us).or(view.end);
    let known = view.call.is_some_and(|call| call.protocol.is_none() && call.parent_by != "inferred");
    known
        && !view.failed()
        && !scene.after_response(view)
        && came.zip(scene.end).is_some_and(|(came, answered)| came > answered)
}

/// No response came, and the callee was still at work.
fn gave_up(view: &View<'_>) -> bool {
    let (Some(call), Some(callee), Some(end)) = (view.call, view.callee, view.end) else { return false };
    let at_work = callee.duration_us.is_none_or(|us| callee.start_us.saturating_add_unsigned(us) > end);
    at_work && call.error.is_some() && view.status().is_none()
}

/// Counts in which way neighbours in the order of calls follow each other.
pub fn pairs(function: &mut Function, scene: &Scene<'_>) {
    for pair in scene.calls.windows(2) {
        let [(first, before), (second, after)] = pair else { continue };
        let (Some(end), Some(us)) = (before.end, after.us()) else { continue };
        if first.name == second.name || scene.after_response(before) || scene.after_response(after) {
            continue;
        }
        let forward = first.name < second.name;
        let (a, b) = if forward { (&first.name, &second.name) } else { (&second.name, &first.name) };
        let pair = function.pairs.at(Both { a: Arc::clone(a), b: Arc::clone(b) });
        if after.start < end {
            pair.overlap += 1;
            continue;
        }
        let order = if forward { &mut pair.ab } else { &mut pair.ba };
        order.times += 1;
        order.in_spite += u64::from(before.refused());
        order.reads += u64::from(reads(before) && reads(after));
        order.known += u64::from(known(scene, after));
        pair.serial.add(us.min(before.us().unwrap_or(0)), scene.path.trace_id);
    }
}

/// Whether all that the request names was named by the request that the invocation answers.
fn known(scene: &Scene<'_>, view: &View<'_>) -> bool {
    let (Some(inbound), Some(http)) = (scene.invocation.http.as_ref(), view.http()) else { return false };
    // The first of several parts is the name of what is asked for, the rest are values.
    let parts = http.path.split('/').count();
    http.path
        .split('/')
        .skip(if parts > 2 { 2 } else { 1 })
        .all(|part| inbound.path.split('/').any(|given| given == part))
}
