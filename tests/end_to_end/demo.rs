//! `fntrace demo`, the first thing that a newcomer runs: every edge of every path is the one that the shop makes.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::agent::fntrace;

const REQUESTS: usize = 30;

fn demo(arguments: &[&str]) -> Vec<u8> {
    let mut command: Command = fntrace();
    command.args(["demo", "--requests", &REQUESTS.to_string(), "--rate", "1000"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `function (who it calls …)`, recursively; externals by their host, and a failed connection as such.
fn shape(node: &Value) -> String {
    let name = match node["kind"].as_str() {
        Some("invocation") => node["function"].as_str().unwrap().to_owned(),
        _ if node.get("error").is_some() => format!("!{}", node["error"].as_str().unwrap()),
        _ => node["host"].as_str().unwrap_or("?").to_owned(),
    };
    let children = node["children"].as_array().unwrap();
    // A call and the invocation that it caused are one edge.
    if node["kind"] == "call" && children.len() == 1 {
        assert_eq!(node["tag"], "injected", "{node}");
        assert_eq!(children[0]["joined_by"], "tag", "{node}");
        return shape(&children[0]);
    }
    let children: Vec<String> = children.iter().map(shape).collect();
    if children.is_empty() { name } else { format!("{name}({})", children.join(" ")) }
}

#[test]
fn every_edge_of_the_demo_is_right() {
    every_edge_is_right(&[]);
}

#[test]
fn in_containers_the_demo_is_the_same() {
    let lines = every_edge_is_right(&["--containers"]);
    let paths: Vec<&Value> = lines.iter().filter(|line| line["type"] == "path").collect();
    for path in &paths {
        let checkout = &path["root"]["resource"];
        assert_eq!((&checkout["faas.name"], &checkout["container.runtime.name"]), (&json!("checkout"), &json!("runc")));
        let container = path["root"]["sandbox"].as_str().unwrap().trim_start_matches('/').replace('/', "-");
        assert_eq!(checkout["container.id"], container, "{path}");
    }
    // The mailer loads for 120 ms, and a call waits for that.
    let waits: Vec<u64> = paths.iter().flat_map(|path| waits(&path["root"])).collect();
    assert!(!waits.is_empty() && waits.iter().all(|us| (120_000..10_000_000).contains(us)), "{waits:?}");
}

/// How long calls waited for cold starts.
fn waits(node: &Value) -> Vec<u64> {
    let own = node["cold_start"]["waited_us"].as_u64();
    let children = node["children"].as_array().into_iter().flatten().flat_map(waits);
    own.into_iter().chain(children).collect()
}

fn every_edge_is_right(arguments: &[&str]) -> Vec<Value> {
    let out = String::from_utf8(demo(&[&["--format", "ndjson"], arguments].concat())).unwrap();
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<&Value> = lines.iter().filter(|line| line["type"] == "path").collect();
    assert_eq!(paths.len(), REQUESTS);
    let (mut failed, mut cold) = (0, 0);
    for path in &paths {
        assert_eq!(path["complete"], true, "{path}");
        let shape = shape(&path["root"]);
        // Once for each item, one to three; the two in the middle start together, in either order.
        let rest = shape
            .strip_prefix("checkout(")
            .and_then(|rest| rest.strip_suffix(')'))
            .unwrap_or_else(|| panic!("{shape}"));
        let items = rest.split(' ').take_while(|word| *word == "inventory").count();
        assert!((1..=3).contains(&items), "{shape}");
        let rest = &rest["inventory ".len() * items..];
        let rest = rest.strip_prefix("pricing recommend ").or_else(|| rest.strip_prefix("recommend pricing "));
        match rest {
            Some("payment(bank.example) notify(mailer)") => {}
            Some("payment(bank.example)" | "payment(!connection refused)") => failed += 1,
            other => panic!("{shape}: {other:?}"),
        }
        cold += path.to_string().matches(r#""cold":true"#).count();
    }
    assert!(failed > 0, "the shop has a failing call");
    assert!(cold > 0, "the shop has a cold start");
    let stats = lines.last().unwrap();
    assert_eq!(stats["type"], "stats");
    assert!(stats["kernel"]["sends"].as_u64() > Some(0) && stats["kernel"]["reads"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["rules"]["none"], 0, "{stats}");
    lines
}

#[test]
fn the_tree_has_no_colour_where_there_is_no_terminal() {
    let out = String::from_utf8(demo(&["--format", "tree"])).unwrap();
    assert!(!out.contains('\x1b'), "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("checkout  POST /checkout")).count(), REQUESTS, "{out}");
    assert!(out.contains("mailer  POST /send") && out.contains("cold"), "{out}");
}
