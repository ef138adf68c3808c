//! Profiles merge exactly.

use proptest::prelude::*;

use super::*;
use crate::profile::{
    bounded::Merge,
    stats::{EDGES_MAX, FUNCTIONS_MAX},
};

/// Any path at all, in time and out of it.
fn node(depth: u32) -> BoxedStrategy<Node> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "evil\u{1b};\"<x>\n", ""]);
    let route = prop::sample::select(vec!["/", "/x/1", "/x/2", "/x/3", "/y"]);
    let leaf = (
        name,
        -50i64..2000,
        prop::option::of(0u64..1500),
        route,
        0u8..32,
        prop::sample::select(vec![200u16, 404, 503]),
    );
    let children =
        if depth == 0 { Just(Vec::new()).boxed() } else { prop::collection::vec(node(depth - 1), 0..7).boxed() };
    (leaf, children)
        .prop_map(|((name, start, us, route, flags, status), children)| {
            let mut inner = invocation(name, start + 5, us.unwrap_or(0).saturating_sub(10), children);
            inner.duration_us = us;
            inner.cold = flags & 1 != 0;
            let mut call = outside(name, start, us.unwrap_or(0));
            call.duration_us = us;
            call.after_response = flags & 2 != 0;
            call.http = Some(http(if flags & 4 == 0 { "GET" } else { "POST" }, route, status));
            call.error = (flags & 24 == 24).then_some("closed before the response".into());
            if flags & 8 != 0 {
                call.children = vec![Node::Invocation(inner)];
            } else if flags & 16 != 0 {
                return Node::Invocation(inner);
            }
            Node::Call(call)
        })
        .boxed()
}

fn paths() -> impl Strategy<Value = Vec<Path>> {
    // Trace ids repeat, as they do where one trace has several roots.
    prop::collection::vec((0u64..30, node(3)), 0..12).prop_map(|roots| {
        let make = |(id, root): (u64, Node)| Path {
            duration_us: root.duration_us().unwrap_or(0),
            root,
            ..path(id, invocation("", 0, 0, Vec::new()))
        };
        roots.into_iter().map(make).collect()
    })
}

fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Profile {
    let mut profile = Profile::default();
    paths.into_iter().for_each(|path| profile.add(path));
    profile
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merged_parts_are_the_whole(a in paths(), b in paths(), c in paths()) {
        let whole = of(a.iter().chain(&b).chain(&c));
        let mut left = of(&a);
        left.merge(of(&b));
        left.merge(of(&c));
        let mut right = of(&c);
        right.merge(of(&b));
        let mut outer = right.clone();
        outer.merge(of(&a));
        let mut inner = of(&a);
        inner.merge(right);
        prop_assert_eq!(&left, &whole);
        prop_assert_eq!(&outer, &whole);
        prop_assert_eq!(&inner, &whole);
        prop_assert_eq!(&of(c.iter().rev().chain(b.iter().rev()).chain(a.iter().rev())), &whole);
        // And what is written is read back the same, under the findings that stand beside it.
        let json = serde_json::to_string(&whole).unwrap();
        prop_assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), whole);
    }

    #[test]
    fn times_add_up(paths in paths()) {
        for path in &paths {
            let profile = of([path]);
            for (_, function) in profile.functions.iter() {
                prop_assert_eq!(function.own.sum() + function.waiting.sum(), function.latency.sum());
            }
            for (_, shape) in profile.shapes.iter() {
                let steps: u64 = shape.critical.iter().map(|(_, time)| time.us).sum();
                prop_assert_eq!(steps + shape.critical.other().map_or(0, |time| time.us), profile.critical_us);
            }
        }
    }
}

#[test]
fn names_without_end_are_counted_in_other_and_still_merge() {
    let mut random = numbers();
    let mut flood = |count: u64| -> Vec<Path> {
        let make = |id| {
            let calls =
                (0..random(4)).map(|at| outside(&format!("host{}", random(900)), at as i64 * 10, 5).node()).collect();
            path(id, invocation(&format!("f{}", random(3) * random(600)), 0, 100, calls))
        };
        (0..count).map(make).collect()
    };
    let (a, b) = (flood(6000), flood(6000));
    let whole = of(a.iter().chain(&b));
    let mut merged = of(&b);
    merged.merge(of(&a));
    assert!(merged == whole);
    assert_eq!(whole.functions.len(), FUNCTIONS_MAX);
    let kept: u64 = whole.functions.iter().map(|(_, function)| function.invocations).sum();
    assert_eq!(kept + whole.functions.other().unwrap().invocations, 12_000);
    let json = serde_json::to_string(&whole).unwrap();
    assert!(serde_json::from_str::<Profile>(&json).unwrap() == whole);
}

#[test]
fn a_tenant_that_calls_names_without_end_floods_its_own_function_only() {
    let make = |id: u64| {
        let calls = vec![outside(&format!("host{id}"), 10, 5).node(), call("friend", 50, 40, vec![]).node()];
        let (name, calls) = if id.is_multiple_of(2) { ("tenant", calls) } else { ("other", vec![]) };
        invocation(name, 0, 100, calls)
    };
    let profile = profile(1000, make);
    let edges = &profile.functions.iter().find(|(name, _)| &*name.name == "tenant").unwrap().1.edges;
    assert_eq!((edges.len(), edges.other().unwrap().calls), (EDGES_MAX, 500 - (EDGES_MAX as u64 - 1)));
    assert!(edges.iter().any(|(callee, edge)| &*callee.name == "friend" && edge.calls == 500));
}
