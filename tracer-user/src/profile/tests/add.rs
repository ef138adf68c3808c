//! What is counted for a path.

use super::*;
use crate::input::Format;
use crate::profile::{
    cli::read_lines,
    stats::{Callee, Edge, Function, Name, StepKind},
};

fn function<'a>(profile: &'a Profile, name: &str) -> &'a Function {
    profile.functions.get(Name { name: name.into() }).unwrap()
}

fn edge<'a>(profile: &'a Profile, from: &str, to: &str, external: bool) -> &'a Edge {
    function(profile, from).edges.get(Callee { name: to.into(), external }).unwrap()
}

/// `a` from 0 to 1000 calls `b` (100 to 400), and at the same time `x` (200 to 600); then `c` (700 to 900).
fn example() -> Profile {
    let children = vec![
        call("b", 100, 300, vec![]).node(),
        outside("x:1", 200, 400).node(),
        call("c", 700, 200, vec![]).asks("GET", "/c", 500),
    ];
    profile(1, |_| invocation("a", 0, 1000, children.clone()))
}

#[test]
fn times_are_split() {
    let profile = example();
    let a = function(&profile, "a");
    assert_eq!((a.latency.sum(), a.own.sum(), a.waiting.sum()), (1000, 300, 700));
    assert_eq!((a.invocations, a.roots, a.calls, a.calls_max.0), (1, 1, 3, 3));
    let b = function(&profile, "b");
    assert_eq!((b.queueing.sum(), b.latency.sum(), b.roots), (10, 280, 0));
    let to_b = edge(&profile, "a", "b", false);
    assert_eq!((to_b.latency.sum(), to_b.callee_latency.sum(), to_b.network.sum()), (300, 280, 20));
    assert_eq!((to_b.parallel, to_b.positions[0], to_b.delay.sum()), (1, 1, 100));
    let to_x = edge(&profile, "a", "x:1", true);
    assert_eq!((to_x.parallel, to_x.positions[1], to_x.callee_latency.count()), (1, 1, 0));
    let to_c = edge(&profile, "a", "c", false);
    assert_eq!((to_c.parallel, to_c.positions[2], to_c.errors), (0, 1, 1));
}

#[test]
fn the_critical_path_is_what_the_answer_waited_for() {
    let profile = example();
    let (form, shape) = profile.shapes.iter().next().unwrap();
    assert_eq!(&*form.shape, "a(b | x:1; c)");
    let steps: Vec<_> = shape.critical.iter().map(|(step, time)| (step.kind, &*step.name, time.us)).collect();
    let mut expect = [
        // c from 700 to 900 with 10 each way, then x from 200 to 600; b returned while x was open.
        (StepKind::Own, "a", 100 + 100 + 200),
        (StepKind::Network, "c", 20),
        (StepKind::Own, "c", 180),
        (StepKind::External, "x:1", 400),
    ];
    expect.sort();
    let mut steps = steps;
    steps.sort();
    assert_eq!(steps, expect);
    assert_eq!(profile.critical_us, 1000);
}

#[test]
fn shapes_do_not_grow_with_loops() {
    let shape = |count: i64, parallel: bool| {
        let calls: Vec<_> = (0..count).map(|at| outside("x", if parallel { 0 } else { at * 20 }, 10).node()).collect();
        let profile = profile(1, |_| invocation("a", 0, 10_000, calls.clone()));
        profile.shapes.iter().next().unwrap().0.shape.to_string()
    };
    assert_eq!(shape(3, false), "a(x ×3)");
    assert_eq!(shape(5, false), "a(x ×4+)");
    assert_eq!(shape(200, false), "a(x ×128+)");
    assert_eq!(shape(3, true), "a(x ×3)".to_owned());
}

#[test]
fn retries_and_calls_after_the_answer_are_counted() {
    let profile = profile(1, |_| {
        let children = vec![
            outside("x", 0, 10).asks("GET", "/1", 503),
            outside("x", 20, 10).asks("GET", "/1", 429),
            outside("x", 40, 10).asks("GET", "/1", 200),
            // Not the same request.
            outside("x", 60, 10).asks("GET", "/2", 200),
            Call { after_response: true, ..outside("y", 120, 10) }.node(),
            // Begun when the answer had left, though the agent did not say so.
            outside("y", 130, 10).node(),
        ];
        invocation("a", 0, 100, children)
    });
    let x = edge(&profile, "a", "x", true);
    assert_eq!((x.calls, x.errors, x.retries, x.retries_ok), (4, 2, 2, 1));
    assert_eq!(edge(&profile, "a", "y", true).after_response, 2);
    assert_eq!(function(&profile, "a").waiting.sum(), 40);
}

#[test]
fn folded_stacks_hold_all_work() {
    let profile = example();
    let mut stacks: Vec<_> = profile.stacks.iter().map(|(key, time)| (&*key.stack, time.us)).collect();
    stacks.sort_unstable();
    assert_eq!(
        stacks,
        [("a", 300), ("a;[network to b]", 20), ("a;[network to c]", 20), ("a;b", 280), ("a;c", 180), ("a;x:1", 400)]
    );
}

#[test]
fn a_root_that_is_a_call_has_no_caller() {
    let mut profile = Profile::default();
    let root = call("b", 0, 100, vec![]).node();
    profile.add(&Path { root, duration_us: 100, ..path(1, invocation("", 0, 0, vec![])) });
    assert_eq!((profile.root_calls, profile.functions.len(), function(&profile, "b").roots), (1, 1, 1));
}

#[test]
fn broken_lines_are_told_and_passed_over() {
    let good = serde_json::to_string(&path(1, invocation("a", 0, 10, vec![]))).unwrap();
    let newer = good.replacen('{', r#"{"a key of tomorrow":{"x":[1]},"#, 1);
    let deep = "[".repeat(100_000);
    let input = format!(
        "{good}\n\n{{\"fntrace\":1,\n{newer}\n{{\"fntrace\":2,\"type\":\"path\"}}\n{{\"type\":\"stats\"}}\n\u{1b}[2J\n{deep}\n{good}"
    );
    let (mut profile, mut errors) = (Profile::default(), Vec::new());
    read_lines(
        &mut profile,
        &mut [input.as_bytes(), b"\n\xff\xfe"].concat().as_slice(),
        Format::Paths,
        "in",
        &mut errors,
    );
    assert_eq!(profile.paths, 3);
    let errors = String::from_utf8(errors).unwrap();
    let told: Vec<&str> = errors.lines().filter_map(|line| line.split(" passed over").next()).collect();
    assert_eq!(told, ["in: line 3", "in: line 5", "in: line 7", "in: line 8", "in: line 10"], "{errors}");
    assert!(!errors.contains('\u{1b}'));
}

#[test]
fn profiles_are_read_and_merged() {
    let (mut whole, mut random) = (Profile::default(), numbers());
    let mut lines = String::new();
    for part in 0..3 {
        let mut profile = Profile::default();
        for id in 0..20 {
            let path = path(part * 20 + id, shop(&mut random));
            profile.add(&path);
            whole.add(&path);
        }
        lines += &serde_json::to_string(&profile).unwrap();
        lines.push('\n');
    }
    let mut read = Profile::default();
    read_lines(&mut read, lines.as_bytes(), Format::Paths, "profiles", &mut Vec::new());
    assert!(read == whole);
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    use std::io::Write;
    let folder = std::env::temp_dir().join(format!("fntrace-profile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("profile.json");
    crate::profile::write_atomically(&file, |out| out.write_all(b"one")).unwrap();
    crate::profile::write_atomically(&file, |_| Err(std::io::Error::other("no"))).unwrap_err();
    assert_eq!(std::fs::read(&file).unwrap(), b"one");
    crate::profile::write_atomically(&file, |out| out.write_all(b"two")).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"two");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn parts_that_come_late_are_put_where_they_belong() {
    use crate::path::{Late, LateType, Line, SpanId, Time, Version};
    let whole = |ended: bool, mail: bool| {
        let mut slow = Call { span_id: SpanId(7), duration_us: Some(5000), ..outside("x", 100, 0) };
        if !ended {
            slow.duration_us = None;
        }
        let mut children = vec![slow.node()];
        if mail {
            children.push(Call { span_id: SpanId(8), after_response: true, ..outside("mail", 1200, 300) }.node());
        }
        path(1, invocation("a", 0, 1000, children))
    };
    let late = |parent: u64, us: i64, root: Node| {
        Line::Late(Late {
            fntrace: Version,
            kind: LateType::Late,
            trace_id: path(1, invocation("a", 0, 0, vec![])).trace_id,
            parent_span_id: Some(SpanId(parent)),
            start: Time(path(1, invocation("a", 0, 0, vec![])).start.0 + us),
            complete: true,
            missing: Vec::new(),
            root,
        })
    };
    let lines = [
        Line::Path(whole(false, false)),
        late(1, 100, Call { span_id: SpanId(7), ..outside("x", 0, 5000) }.node()),
        late(1, 1200, Call { span_id: SpanId(8), after_response: true, ..outside("mail", 0, 300) }.node()),
        late(99, 0, Call { span_id: SpanId(9), ..outside("nobody's", 0, 300) }.node()),
    ];
    let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    let mut profile = Profile::default();
    read_lines(&mut profile, text.join("\n").as_bytes(), Format::Paths, "in", &mut Vec::new());
    let mut expect = Profile { late: 1, ..Profile::default() };
    expect.add(&whole(true, true));
    assert_eq!(profile, expect);
    assert_eq!(edge(&profile, "a", "mail", true).after_response, 1);
}

#[test]
fn the_command_line_is_sound() {
    use crate::profile::cli::Args;
    use clap::Args as _;
    Args::augment_args(clap::Command::new("profile")).debug_assert();
    let parse = |args: &[&str]| Args::augment_args(clap::Command::new("profile")).try_get_matches_from(args);
    parse(&["profile", "-", "a.ndjson", "--format", "html", "--against", "old.json", "--top", "5", "-o", "x.html"])
        .unwrap();
    parse(&["profile", "--format", "pdf"]).unwrap_err();
}
