//! Each finding is told where it is, and not where it nearly is.

use super::*;
use crate::profile::findings::{Confidence, Finding, Kind, Saves, findings};

fn of(profile: &Profile, kind: Kind) -> Option<Finding> {
    findings(profile).into_iter().find(|finding| finding.kind == kind)
}

fn told(profile: &Profile, kind: Kind) -> Finding {
    let finding = of(profile, kind).unwrap_or_else(|| panic!("{kind:?} is not told: {:#?}", findings(profile)));
    assert!(!finding.evidence.is_empty() && finding.evidence.len() <= 3);
    assert!(finding.evidence.iter().all(|evidence| evidence.trace_id.0[0] == 0xf00d));
    finding
}

fn silent(profile: &Profile, kind: Kind) {
    assert_eq!(of(profile, kind), None);
}

/// `f` reads `a`, then `b`; `flip` says in which paths the other way round.
fn two_reads(id: u64, flip: bool, status: u16, b_path: &str) -> Invocation {
    let (first, second) = if flip { ("b", "a") } else { ("a", "b") };
    let path = |name| if name == "b" { b_path.to_owned() } else { format!("/a/{id}") };
    let mut children = vec![outside(first, 100, 1000).asks("GET", &path(first), status)];
    children.push(outside(second, 1200, 3000).asks("GET", &path(second), 200));
    invocation("f", 0, 5000, children)
}

#[test]
fn independent_calls_in_either_order() {
    let found = told(&profile(100, |id| two_reads(id, id % 10 == 0, 200, &format!("/b/{id}"))), Kind::SerialCalls);
    assert_eq!((found.confidence, found.saves_us, found.times), (Confidence::Certain, 1000, 100));
    assert_eq!((found.function.as_deref(), found.callees), (Some("f"), vec!["a".to_owned(), "b".to_owned()]));
    // Twice in a hundred is another branch of the code; and too few show nothing.
    silent(&profile(100, |id| two_reads(id, id % 50 == 0, 200, &format!("/b/{id}"))), Kind::SerialCalls);
    silent(&profile(15, |id| two_reads(id, id % 5 == 0, 200, &format!("/b/{id}"))), Kind::SerialCalls);
}

#[test]
fn independent_calls_where_the_second_is_made_in_spite_of_the_first() {
    let failing = |id: u64| if id.is_multiple_of(20) { 404 } else { 200 };
    let found = told(&profile(100, |id| two_reads(id, false, failing(id), &format!("/b/{id}"))), Kind::SerialCalls);
    assert_eq!(found.confidence, Confidence::Likely);
    // Once it was not made: the first is needed, if only to know whether to go on.
    let mut nearly = profile(100, |id| two_reads(id, false, failing(id), &format!("/b/{id}")));
    nearly.add(&path(100, invocation("f", 0, 500, vec![outside("a", 100, 300).asks("GET", "/a", 404)])));
    silent(&nearly, Kind::SerialCalls);
}

#[test]
fn independent_calls_where_all_is_known_from_the_start() {
    assert_eq!(
        told(&profile(100, |id| two_reads(id, false, 200, "/prices")), Kind::SerialCalls).confidence,
        Confidence::Likely
    );
    let with_inbound = |id: u64, inbound: String, b: String| Invocation {
        http: Some(http("GET", &inbound, 200)),
        ..two_reads(id, false, 200, &b)
    };
    told(&profile(100, |id| with_inbound(id, format!("/item/{id}"), format!("/b/{id}"))), Kind::SerialCalls);
    // The second asks for something that only the first can have told.
    silent(&profile(100, |id| with_inbound(id, format!("/item/{id}"), format!("/b/{}", id + 1000))), Kind::SerialCalls);
    silent(&profile(100, |id| with_inbound(id, format!("/item/{id}"), format!("/{}", id + 1000))), Kind::SerialCalls);
    // Calls to the same callee, or that overlap already.
    silent(
        &profile(100, |_| {
            invocation(
                "f",
                0,
                5000,
                vec![outside("a", 100, 1000).asks("GET", "/x", 200), outside("b", 200, 3000).asks("GET", "/y", 200)],
            )
        }),
        Kind::SerialCalls,
    );
}

fn twice(second: Node) -> Invocation {
    invocation("f", 0, 5000, vec![outside("a", 0, 1000).asks("GET", "/x", 200), second])
}

#[test]
fn the_same_read_again() {
    let found = told(&profile(10, |_| twice(outside("a", 2000, 700).asks("GET", "/x", 200))), Kind::RepeatedCall);
    assert_eq!((found.saves_us, found.times, found.total_us), (700, 10, 7000));
    let nearly = [
        outside("a", 2000, 700).asks("GET", "/y", 200),
        outside("a", 2000, 700).asks("POST", "/x", 200),
        outside("b", 2000, 700).asks("GET", "/x", 200),
        // At the same time; and a failure, which gave nothing to keep.
        outside("a", 500, 700).asks("GET", "/x", 200),
        outside("a", 2000, 700).asks("GET", "/x", 404),
    ];
    for second in nearly {
        silent(&profile(10, |_| twice(second.clone())), Kind::RepeatedCall);
    }
    // A write between: the second read may give something else.
    silent(
        &profile(10, |_| {
            let mut all = twice(outside("a", 2000, 700).asks("GET", "/x", 200));
            all.children.insert(1, outside("a", 1200, 100).asks("PUT", "/x", 204));
            all
        }),
        Kind::RepeatedCall,
    );
    // A retry is no repetition.
    silent(
        &profile(10, |_| {
            invocation(
                "f",
                0,
                5000,
                vec![outside("a", 0, 1000).asks("GET", "/x", 503), outside("a", 2000, 700).asks("GET", "/x", 200)],
            )
        }),
        Kind::RepeatedCall,
    );
    // In 2 of 100 invocations it is chance.
    silent(
        &profile(100, |id| twice(outside("a", 2000, 700).asks("GET", if id < 2 { "/x" } else { "/z" }, 200))),
        Kind::RepeatedCall,
    );
}

fn rows(count: i64, gap: i64, route: impl Fn(i64) -> String) -> Invocation {
    let rows = (0..count).map(|row| outside("db", 100 + row * gap, 100).asks("GET", &route(row), 200)).collect();
    invocation("f", 0, 10_000, rows)
}

#[test]
fn one_call_for_each_row() {
    let found = told(&profile(10, |_| rows(8, 110, |row| format!("/row/{row}"))), Kind::NPlusOne);
    assert_eq!((found.saves_us, found.times), (7 * 110, 10));
    silent(&profile(10, |_| rows(4, 110, |row| format!("/row/{row}"))), Kind::NPlusOne);
    // At the same time; different kinds; in two parts.
    silent(&profile(10, |_| rows(8, 50, |row| format!("/row/{row}"))), Kind::NPlusOne);
    silent(&profile(10, |_| rows(8, 110, |row| "/part".repeat(row as usize + 1))), Kind::NPlusOne);
    silent(&profile(10, |_| rows(8, 110, |row| format!("/row{row}/{row}"))), Kind::NPlusOne);
    silent(&profile(100, |id| rows(if id < 2 { 8 } else { 1 }, 110, |row| format!("/row/{row}"))), Kind::NPlusOne);
}

fn retried(last: u16) -> Invocation {
    invocation(
        "f",
        0,
        5000,
        vec![
            outside("a", 0, 100).asks("POST", "/x", 503),
            outside("a", 600, 100).asks("POST", "/x", 503),
            outside("a", 1700, 100).asks("POST", "/x", last),
        ],
    )
}

#[test]
fn retries_in_vain() {
    let found = told(&profile(5, |_| retried(503)), Kind::VainRetries);
    assert_eq!((found.saves_us, found.times), (1700, 5));
    silent(&profile(50, |id| retried(if id == 7 { 200 } else { 503 })), Kind::VainRetries);
    silent(&profile(1, |_| retried(503)), Kind::VainRetries);
    // Failures that nobody retries.
    silent(
        &profile(50, |id| {
            invocation(
                "f",
                0,
                500,
                vec![
                    outside("a", 0, 100).asks("POST", &format!("/{id}"), 503),
                    outside("a", 200, 100).asks("POST", "/other", 503),
                ],
            )
        }),
        Kind::VainRetries,
    );
}

#[test]
fn a_response_that_comes_too_late() {
    let late = |us| invocation("f", 0, 5000, vec![call("audit", 1000, us, vec![]).node()]);
    let found = told(&profile(10, |_| late(4001)), Kind::UnusedResult);
    assert_eq!((found.saves, found.saves_us), (Saves::Work, 4001));
    silent(&profile(10, |_| late(4000)), Kind::UnusedResult);
    silent(&profile(100, |id| late(if id < 5 { 9000 } else { 1000 })), Kind::UnusedResult);
    // Its first byte came in time, and it may have been used.
    let streamed = Call { first_byte_us: Some(4990), ..outside("x", 1000, 9000) };
    silent(&profile(10, |_| invocation("f", 0, 5000, vec![streamed.clone().node()])), Kind::UnusedResult);
    // A connection that outlives the answer is none.
    let pooled = Call { protocol: Some("opaque".into()), http: None, ..outside("x", 1000, 9000) };
    silent(&profile(10, |_| invocation("f", 0, 5000, vec![pooled.clone().node()])), Kind::UnusedResult);
    let guessed = Call { parent_by: "inferred".into(), ..outside("x", 1000, 9000) };
    silent(&profile(10, |_| invocation("f", 0, 5000, vec![guessed.clone().node()])), Kind::UnusedResult);
}

#[test]
fn circles() {
    let circle = |_| invocation("a", 0, 900, vec![call("b", 10, 700, vec![call("a", 50, 500, vec![]).node()]).node()]);
    let found = told(&profile(1, circle), Kind::Cycle);
    assert_eq!((found.seen.as_str(), found.saves_us), ("a → b → a within one path", 480));
    // The same circle, entered elsewhere, is the same finding.
    let elsewhere =
        |_| invocation("b", 0, 900, vec![call("a", 10, 700, vec![call("b", 50, 500, vec![]).node()]).node()]);
    assert_eq!(told(&profile(1, elsewhere), Kind::Cycle).seen, found.seen);
    assert_eq!(
        told(&profile(1, |_| invocation("a", 0, 90, vec![call("a", 10, 70, vec![]).node()])), Kind::Cycle).seen,
        "a → a within one path"
    );
    // Both ways, but never in one path; and twice side by side.
    silent(
        &profile(2, |id| {
            let (caller, callee) = if id == 0 { ("a", "b") } else { ("b", "a") };
            invocation(
                caller,
                0,
                900,
                vec![call(callee, 10, 300, vec![]).node(), call(callee, 400, 300, vec![]).node()],
            )
        }),
        Kind::Cycle,
    );
}

fn cold(id: u64, every: u64, extra: u64) -> Invocation {
    let is_cold = id.is_multiple_of(every);
    let us = 1000 + id % 100 + if is_cold { extra } else { 0 };
    let mut callee = call("b", 100, us, vec![]);
    if let Some(Node::Invocation(inner)) = callee.children.first_mut() {
        inner.cold = is_cold;
    }
    invocation("a", 0, us + 200, vec![callee.node()])
}

#[test]
fn cold_starts_in_the_tail() {
    let found = told(&profile(500, |id| cold(id, 40, 50_000)), Kind::ColdStarts);
    assert_eq!((found.function.as_deref(), found.saves), (Some("a"), Saves::P99));
    assert!((49_000..51_000).contains(&found.saves_us), "{}", found.saves_us);
    // So cheap that the p99 is hardly higher; so rare that the p99 is not theirs; too few to tell.
    silent(&profile(500, |id| cold(id, 40, 200)), Kind::ColdStarts);
    silent(&profile(1000, |id| cold(id, 250, 50_000)), Kind::ColdStarts);
    silent(&profile(90, |id| cold(id, 10, 50_000)), Kind::ColdStarts);
    // The slowest are slow without them, too.
    silent(
        &profile(500, |id| {
            let mut all = cold(id, 40, 5000);
            if id % 40 == 1 {
                all.duration_us = Some(60_000);
            }
            all
        }),
        Kind::ColdStarts,
    );
}

#[test]
fn a_hot_service() {
    let share = |us| profile(50, |_| invocation("f", 0, 1000, vec![outside("pay.example", 100, us).node()]));
    let found = told(&share(310), Kind::HotExternal);
    assert_eq!((found.function, found.callees, found.saves_us), (None, vec!["pay.example".to_owned()], 310));
    silent(&share(290), Kind::HotExternal);
    // As slow, but another call takes longer at the same time; traced, so no external service; too few paths.
    silent(
        &profile(50, |_| {
            invocation("f", 0, 1000, vec![outside("pay.example", 100, 500).node(), call("b", 110, 600, vec![]).node()])
        }),
        Kind::HotExternal,
    );
    silent(&profile(50, |_| invocation("f", 0, 1000, vec![call("b", 100, 600, vec![]).node()])), Kind::HotExternal);
    silent(&profile(10, |_| invocation("f", 0, 1000, vec![outside("x", 100, 600).node()])), Kind::HotExternal);
}

/// `a` calls `b`, which takes `us`; `a` gives up after `limit`.
fn limited(us: u64, limit: u64) -> Invocation {
    let mut callee = call("b", 100, us.min(limit), vec![]);
    if us > limit {
        callee.http = Some(Http { status: None, ..http("GET", "/", 0) });
        callee.error = Some("closed before the response".into());
        callee.children = vec![Node::Invocation(invocation("b", 110, us, vec![]))];
    }
    invocation("a", 0, us.min(limit) + 200, vec![callee.node()])
}

#[test]
fn a_timeout_below_the_p99() {
    let slow = |id: u64| 1000 + id * 10;
    let found = told(&profile(100, |id| limited(slow(id), 1900)), Kind::ShortTimeout);
    assert_eq!((found.times, found.saves_us), (9, 1900));
    // Longer than the p99: only what hangs is cut.
    silent(&profile(1000, |id| limited(if id % 250 == 0 { 90_000 } else { 1000 + id }, 10_000)), Kind::ShortTimeout);
    // Callers that go away when they like are no timer.
    silent(&profile(100, |id| limited(slow(id), 1000 + id % 7 * 100)), Kind::ShortTimeout);
    // The callee broke: it was no longer at work.
    silent(
        &profile(100, |id| {
            let mut all = limited(slow(id), 1900);
            if let Some(Node::Call(call)) = all.children.first_mut()
                && let Some(Node::Invocation(inner)) = call.children.first_mut()
            {
                inner.duration_us = Some(500.max(slow(id) / 2).min(1800));
            }
            all
        }),
        Kind::ShortTimeout,
    );
}

#[test]
fn the_largest_saving_comes_first() {
    let both = profile(100, |id| {
        let mut all = twice(outside("a", 2000, 700).asks("GET", "/x", 200));
        all.children.extend(rows(8, 110, |row| format!("/row/{id}/{row}")).children);
        all
    });
    let found = findings(&both);
    assert!(found.len() >= 2 && found.windows(2).all(|pair| pair[0].total_us >= pair[1].total_us), "{found:#?}");
}
