//! `fntrace run` without `--cgroup`: it finds functions, and takes nothing else. What stands for the host is a slice.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use fntrace::{cgroup::Mount, host};
use serde_json::json;

use crate::{
    agent::{Agent, fntrace},
    container::{Spec, long_id},
    containers::path_of,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq},
    sandbox::Slice,
    truth,
};

/// What the agent said of a container that it took.
fn found(stderr: &[String], container: &str) -> Option<String> {
    stderr.iter().find(|line| line.starts_with("fntrace: found") && line.contains(container)).cloned()
}

/// The cgroups that an agent is attached to.
fn attached(agent: &Agent) -> BTreeSet<String> {
    let agents = host::agents(&Mount::find().unwrap()).unwrap();
    agents.into_iter().filter(|found| found.pid == Some(agent.pid())).map(|found| found.cgroup).collect()
}

#[test]
fn only_functions_of_known_platforms_are_traced() {
    const POD: &str = "1b2e8d44-9f0a-4c9e-a6d1-3c5f0f1e2d3c";
    let slice = Slice::new();
    let [first, other, later, stranger] = [(); 4].map(|()| long_id());
    let pod = format!("kubepods/burstable/pod{POD}");
    let early = Spec::new(first.clone(), format!("{pod}/{first}"), "stock").start(&slice).wait();
    // A container that nobody claims, and a function that is in none.
    let unclaimed = |id: &String| Spec { environment: Vec::new(), ..Spec::new(id.clone(), format!("docker/{id}"), "") };
    let database = unclaimed(&other).start(&slice).wait();
    let elsewhere = Function::start(&slice, Kind::Go);

    let mut command = fntrace();
    command.args(["run", "--discover-below", &slice.argument(), "--format", "ndjson", "--tag", "on"]);
    let agent = Agent::start_command(command);
    // More of both after it. The function is one by its label alone.
    let labelled = Spec { annotations: json!({"faas_function": "price"}), ..unclaimed(&later) };
    let late = labelled.start(&slice).wait();
    let cache = unclaimed(&stranger).start(&slice).wait();

    // What its programs are attached to, as the kernel has it: once the late one is known, these two and nothing else.
    let wanted = BTreeSet::from([early.cgroup.clone(), late.cgroup.clone()]);
    let deadline = Instant::now() + Duration::from_secs(5);
    while attached(&agent) != wanted {
        assert!(Instant::now() < deadline, "it is attached to {:?}, not to {wanted:?}", attached(&agent));
        thread::sleep(Duration::from_millis(20));
    }

    // Everybody calls everybody else.
    let leaf_at = |url: String| json!({"url": url, "mode": "seq", "plan": leaf()});
    let urls = [early.url(), late.url(), database.url(), cache.url()];
    let all = plan(urls.iter().cloned().map(leaf_at).chain([seq(&elsewhere, leaf())]).collect::<Vec<_>>());
    let ids = [(); 5].map(|()| id("found"));
    let [early_id, late_id, ..] = &ids;
    let mut answers = Vec::new();
    for (container, id) in [&early, &late, &database, &cache].into_iter().zip(&ids) {
        answers.push(container.client().run(id, &all));
    }
    answers.push(elsewhere.client().run(&ids[4], &all));

    for (n, answer) in answers.iter().enumerate() {
        for child in answer["children"].as_array().unwrap() {
            assert_eq!(child["traceparent"].is_string(), n < 2, "only calls of functions are tagged: {child}");
        }
    }
    let paths = [(early_id, "stock"), (late_id, "price")].map(|(id, function)| {
        let path = agent.wait_for("a path", |lines| path_of(lines, id));
        assert_eq!(path["root"]["function"], function, "{path}");
        path
    });
    // Between the two there are joins; what they call elsewhere is a leaf.
    for path in &paths {
        let calls = path["root"]["children"].as_array().unwrap();
        let joined = calls.iter().map(|call| call["children"].as_array().map_or(0, Vec::len)).collect::<Vec<_>>();
        assert_eq!(joined, [1, 1, 0, 0, 0], "{path}");
    }
    assert_eq!(attached(&agent), wanted, "still");
    drop((late, cache));
    let finished = agent.stop();
    let roots = truth::paths(&finished.lines).map(|line| line["root"]["sandbox"].as_str().unwrap().to_owned());
    assert!(roots.into_iter().all(|root| root.ends_with(&first) || root.ends_with(&later)), "{:#?}", finished.lines);
    let say = |container| found(&finished.stderr, container).unwrap_or_default();
    assert!(say(&first).ends_with("function stock of Knative, by K_SERVICE"), "{:#?}", finished.stderr);
    assert!(say(&later).ends_with("function price of OpenFaaS, by faas_function"), "{:#?}", finished.stderr);
    assert_eq!(found(&finished.stderr, &other), None);
    assert_eq!(found(&finished.stderr, &stranger), None);
    let told = finished.stderr.iter().any(|line| {
        line.starts_with("fntrace: tracing") && line.contains("1 containers now") && line.contains("1 other containers")
    });
    assert!(told, "{:#?}", finished.stderr);
    // Each of the two made five calls and took seven requests; nothing else came to the kernel half's eyes.
    assert_eq!(finished.stats()["records"]["call_start"], 10, "{}", finished.stats());
}
