//! What `cargo xtask test --vm` starts as the first process of a virtual machine: mounts what an init mounts, runs every
//! check on this kernel, says how each came out, and switches the machine off.
//!
//! The kernel's command line chooses: `fntrace.refuse` for a kernel below the floor, `fntrace.hybrid` for cgroup v1 beside
//! v2. Each check is a line of JSON on the second serial port, so that no message of the kernel's can come in between;
//! what it prints besides goes to the first one, the console.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the check, in helpers as in checks")]

#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/agent.rs"]
mod agent;
#[path = "../end_to_end/capabilities.rs"]
mod capabilities;
mod checks;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/client.rs"]
mod client;
mod machine;
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../end_to_end/sandbox.rs"]
mod sandbox;
#[path = "../end_to_end/shop.rs"]
mod shop;

use std::{
    fs::{self, File},
    io::Write as _,
    panic,
    sync::Mutex,
    time::Instant,
};

use serde_json::json;

/// Where the results go.
const RESULTS: &str = "/dev/ttyS1";

/// What a failed check said; a panic's message is gone by the time that it is caught.
static FAILURE: Mutex<String> = Mutex::new(String::new());

fn main() {
    assert_eq!(std::process::id(), 1, "not a test for this machine: `cargo xtask test --vm` boots it");
    let options = machine::set_up();
    let mut results = File::options().write(true).open(RESULTS).unwrap();
    panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        *FAILURE.lock().unwrap() = panic.to_string();
    }));
    for (name, check) in checks::of(&options) {
        eprintln!("check: {name}");
        let start = Instant::now();
        let outcome = panic::catch_unwind(|| check(&options));
        let ok = outcome.is_ok();
        let says = outcome.unwrap_or_else(|_| FAILURE.lock().unwrap().clone());
        let line = json!({"check": name, "ok": ok, "says": says, "seconds": start.elapsed().as_secs_f32()});
        writeln!(results, "{line}").unwrap();
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    writeln!(results, "{}", json!({"end": release.trim()})).unwrap();
    results.flush().unwrap();
    machine::switch_off();
}
