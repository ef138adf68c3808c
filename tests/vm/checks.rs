//! What has to hold on every kernel.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    agent::{Agent, fntrace, fntrace_ends},
    capabilities,
    machine::Options,
    shop::{JoinedBy, Shop},
};

/// A check panics where it fails; it answers with what is worth telling where it does not.
pub type Check = fn(&Options) -> String;

/// The checks of this boot, in the order of what each takes for granted.
pub fn of(options: &Options) -> Vec<(&'static str, Check)> {
    if options.refuse {
        return vec![("refused", refused)];
    }
    vec![
        ("doctor", doctor),
        ("joined by tag, then SIGTERM", by_tag),
        ("joined by wire", by_wire),
        ("with the probes for Go", with_go_probes),
        ("kill -9", kill),
        ("demo", demo),
        ("three capabilities", three_capabilities),
    ]
}

/// `doctor` and `run` refuse, with the floor and what to do about it.
fn refused(_: &Options) -> String {
    let (code, report) = doctors_report();
    assert_eq!((code, &report["verdict"]), (Some(3), &Value::from("cannot")), "{report:#}");
    let mut said = vec![report["message"].as_str().unwrap().to_owned()];
    for arguments in [vec!["run", "--cgroup", "/"], vec!["demo"]] {
        let output = fntrace_ends(fntrace().args(&arguments));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        said.push(stderr);
    }
    for line in &said {
        assert!(line.contains("is too old") && line.contains("boot Linux 6.1 or newer"), "{line}");
    }
    "refuses".to_owned()
}

fn doctors_report() -> (Option<i32>, Value) {
    let output = fntrace_ends(fntrace().args(["doctor", "--json"]));
    let said = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    (output.status.code(), report)
}

fn found<'a>(report: &'a Value, name: &str) -> &'a str {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no check of {name}: {report:#}"))["found"].as_str().unwrap()
}

/// Nothing is missing on this kernel, and the doctor sees how it was booted. Tells what becomes of sockets that tags are
/// written on.
fn doctor(options: &Options) -> String {
    let (code, report) = doctors_report();
    assert_eq!(code, Some(0), "{report:#}");
    for check in report["checks"].as_array().unwrap() {
        let may_warn = check["name"] == "enrolled sockets" && check["unless_told"] == true;
        assert!(check["status"] == "ok" || may_warn, "{check:#}");
    }
    let mount = if options.hybrid { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" };
    assert_eq!(found(&report, "cgroup v2"), format!("mounted at {mount}"));
    assert_eq!(found(&report, "lockdown"), if options.lockdown { "integrity" } else { "none" });
    format!("{}; enrolled sockets: {}", report["verdict"].as_str().unwrap(), found(&report, "enrolled sockets"))
}

/// What `run` does unless told, where the doctor says that it tags; else what it does when told.
fn by_tag(_: &Options) -> String {
    let default = if doctors_report().1["verdict"] == "tags" { "auto" } else { "on" };
    let mut shop = Shop::open();
    let agent = Agent::start_with(&shop.slice, &["--tag", default]);
    for _ in 0..3 {
        shop.work(JoinedBy::Tag);
    }
    shop.assert_traced(agent, 3, JoinedBy::Tag);
    assert_detached();
    // On with the connections that were enrolled.
    shop.work(JoinedBy::Wire);
    format!("--tag {default}")
}

fn by_wire(_: &Options) -> String {
    let mut shop = Shop::open();
    let agent = Agent::start_with(&shop.slice, &["--tag", "off"]);
    for _ in 0..3 {
        shop.work(JoinedBy::Wire);
    }
    shop.assert_traced(agent, 3, JoinedBy::Wire);
    String::new()
}

/// There is no Go program here: that this kernel takes the programs, and all else goes on as ever.
fn with_go_probes(_: &Options) -> String {
    let mut shop = Shop::open();
    let agent = Agent::start_with(&shop.slice, &["--go-uprobes"]);
    shop.work(JoinedBy::Tag);
    shop.assert_traced(agent, 1, JoinedBy::Tag);
    assert_detached();
    String::new()
}

fn kill(_: &Options) -> String {
    let mut shop = Shop::open();
    let mut agent = Agent::start(&shop.slice);
    shop.work(JoinedBy::Tag);
    agent.signal(Signal::KILL);
    assert_eq!(agent.finish().status.signal(), Some(9));
    assert_detached();
    shop.wait_until_untagged();
    shop.work(JoinedBy::Wire);
    // Nothing is left that would keep the next one from the same sandboxes, nor from these very connections.
    let agent = Agent::start(&shop.slice);
    // Whether anything was at work on connections that are older than the agent, it may know only once a whole exchange has
    // gone over them: where the last answer left within a tick of its request.
    shop.work(JoinedBy::Wire);
    std::thread::sleep(Duration::from_secs(1));
    let before = agent.wait_for("paths of the first requests", |lines| (lines.len() >= 2).then_some(lines.len()));
    shop.work(JoinedBy::Wire);
    shop.assert_traced_behind(before, agent, 1, JoinedBy::Wire);
    String::new()
}

/// Every path of the demo is whole, and its calls are joined.
fn demo(_: &Options) -> String {
    const REQUESTS: usize = 5;
    let requests = REQUESTS.to_string();
    // By emulation it takes longer than anything else here; the whole boot has a limit.
    let output = fntrace().args(["demo", "--format", "ndjson", "--requests", &requests]).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<_> = lines.iter().filter(|line| line["type"] == "path").collect();
    assert!(paths.len() == REQUESTS && paths.iter().all(|path| path["complete"] == true), "{said}");
    let stats = lines.last().unwrap();
    let invocations = stats["records"]["invocation_start"].as_u64().unwrap();
    assert_eq!(said.matches(r#""joined_by":"tag""#).count() as u64, invocations - REQUESTS as u64, "{said}");
    assert_eq!((&stats["lost"], &stats["rules"]["none"]), (&0.into(), &0.into()), "{stats}");
    format!("{invocations} invocations")
}

fn three_capabilities(_: &Options) -> String {
    capabilities::the_needed_ones_suffice();
    capabilities::each_is_missed_by_its_name();
    "CAP_BPF CAP_PERFMON CAP_NET_ADMIN".to_owned()
}

/// No program is attached any more: nothing else here makes BPF links. The kernel lets go of them in its own time.
fn assert_detached() {
    let deadline = Instant::now() + Duration::from_secs(5);
    while any_link() {
        assert!(Instant::now() < deadline, "a BPF link is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn any_link() -> bool {
    /// BPF_LINK_GET_NEXT_ID.
    const NEXT: libc::c_long = 31;
    // start_id, next_id, open_flags (`union bpf_attr`, include/uapi/linux/bpf.h).
    let mut attr = [0u32; 3];
    // SAFETY: the kernel reads and writes these twelve bytes, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, NEXT, attr.as_mut_ptr(), size_of_val(&attr)) };
    let error = io::Error::last_os_error();
    assert!(result == 0 || error.raw_os_error() == Some(libc::ENOENT), "list the links: {error}");
    result == 0
}
