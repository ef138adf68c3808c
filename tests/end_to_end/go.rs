//! `--go-uprobes`: breakpoints in Go programs, which tell whose call each goroutine makes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    agent::{Agent, Finished},
    functions::{Function, Kind, go_program},
    harness::{id, leaf, par, plan, seq},
    sandbox::Slice,
    truth,
};

fn counted(finished: &Finished, counter: &str) -> u64 {
    finished.stats()["kernel"][counter].as_u64().unwrap_or_else(|| panic!("no {counter}: {}", finished.stats()))
}

/// Calls one after the other, and a fan-out.
fn tree(callee: &Function) -> Value {
    plan([seq(callee, leaf()), par(callee, leaf()), par(callee, leaf()), par(callee, leaf()), seq(callee, leaf())])
}

#[test]
pub fn every_call_of_concurrent_go_invocations_is_told_by_its_goroutine() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 20;
    let slice = Slice::new();
    let [caller, callee] = [(); 2].map(|()| Function::start(&slice, Kind::Go));
    let agent = Agent::start_with(&slice, &["--go-uprobes"]);
    let tree = tree(&callee);
    let answers: Vec<Value> = thread::scope(|scope| {
        let work = || {
            let mut client = caller.client();
            (0..REQUESTS).map(|_| client.run(&id("go"), &tree)).collect::<Vec<_>>()
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    let (trace, finished) = truth::assert_traced(agent, &answers);
    let calls: Vec<_> = trace.values().filter_map(|traced| traced.call.as_ref()).collect();
    assert_eq!(calls.len(), CLIENTS * REQUESTS * 5);
    for call in &calls {
        assert_eq!(call["parent_by"], "coroutine", "{call}");
    }
    assert_eq!(counted(&finished, "go_calls"), calls.len() as u64);
    assert_eq!(counted(&finished, "go_unknown"), 0);
    let probed = finished.stderr.iter().filter(|line| line.contains("is probed (go1.")).count();
    assert_eq!(probed, 1, "one file, though two sandboxes run it: {:#?}", finished.stderr);
    // The breakpoints are out again, and the functions go on.
    caller.client().run(&id("go"), &tree);
}

/// Before the first request it has not been looked at, or has: either way it is soon.
#[test]
fn a_go_program_that_comes_later_is_probed_too() {
    let slice = Slice::new();
    let agent = Agent::start_with(&slice, &["--go-uprobes"]);
    let [caller, callee] = [(); 2].map(|()| Function::start(&slice, Kind::Go));
    let deadline = Instant::now() + Duration::from_secs(10);
    let rule = loop {
        let answer = caller.client().run(&id("go"), &plan([seq(&callee, leaf())]));
        let truth = truth::truth(&[answer]);
        let trace = truth::wait(&agent, &truth);
        let rule = truth.keys().find_map(|key| trace[key].call.clone()).expect("a call")["parent_by"].clone();
        if rule == "coroutine" || Instant::now() > deadline {
            break rule;
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(rule, "coroutine");
    assert!(counted(&agent.stop(), "go_calls") > 0);
}

/// It reads its request before the agent is there, and calls when it is: nothing tells the goroutine's work.
#[test]
pub fn a_goroutine_that_is_older_than_the_probes_is_counted_as_unknown() {
    let slice = Slice::new();
    let [caller, callee] = [(); 2].map(|()| Function::start(&slice, Kind::Go));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let held = json!({"url": format!("http://{}", listener.local_addr().unwrap())});
    let finished = thread::scope(|scope| {
        let client = scope.spawn(|| caller.client().run(&id("go"), &plan([held, seq(&callee, leaf())])));
        let (mut call, _) = listener.accept().unwrap();
        let _ = call.read(&mut [0; 4096]).unwrap();
        let agent = Agent::start_with(&slice, &["--go-uprobes"]);
        let answer = json!({"listener": true}).to_string();
        write!(call, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).unwrap();
        let answer = client.join().unwrap();
        assert_eq!(answer["children"][1]["function"], callee.name(), "{answer:#}");
        agent.stop()
    });
    assert_eq!(counted(&finished, "go_unknown"), 1);
    assert_eq!(counted(&finished, "go_calls"), 0);
}

/// Takes the table of symbols out of a program, as the linker does with `-s`.
fn strip(program: &mut [u8]) {
    const SHT_NULL: u32 = 0;
    const SHT_SYMTAB: u32 = 2;
    let number = |at: usize, len: usize| -> usize {
        program[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    // e_shoff, e_shentsize, e_shnum of elf(5); sh_type is the second word of a section's header.
    let (table, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let kinds: Vec<_> = (0..count).map(|section| table + section * size + 4).collect();
    for at in kinds.into_iter().filter(|at| number(*at, 4) == SHT_SYMTAB as usize).collect::<Vec<_>>() {
        program[at..at + 4].copy_from_slice(&SHT_NULL.to_le_bytes());
    }
}

#[test]
fn a_stripped_go_program_is_named_and_left_alone() {
    let slice = Slice::new();
    let callee = Function::start(&slice, Kind::Go);
    let mut bytes = fs::read(go_program()).unwrap();
    strip(&mut bytes);
    let stripped = slice.files().join("stripped");
    fs::write(&stripped, bytes).unwrap();
    fs::set_permissions(&stripped, fs::Permissions::from_mode(0o755)).unwrap();
    let caller = Function::start_program(&slice, "stripped", Ipv4Addr::LOCALHOST.into(), |address| {
        let mut command = Command::new(&stripped);
        command.env("HOST", address.ip().to_string());
        Ok(command)
    });
    let caller = caller.unwrap();
    let agent = Agent::start_with(&slice, &["--go-uprobes"]);
    let answer = caller.client().run(&id("go"), &plan([seq(&callee, leaf())]));
    let (trace, finished) = truth::assert_traced(agent, &[answer]);
    let call = trace.values().find_map(|traced| traced.call.as_ref()).unwrap();
    assert_eq!(call["parent_by"], "exclusive", "as without probes: {call}");
    assert_eq!(counted(&finished, "go_calls"), 0);
    let said = |what: &str| finished.stderr.iter().filter(|line| line.contains(what)).count();
    assert_eq!(said("is not probed: it is stripped of its symbols (go1."), 1, "{:#?}", finished.stderr);
    assert_eq!(said("is probed (go1."), 1, "the callee: {:#?}", finished.stderr);
}
