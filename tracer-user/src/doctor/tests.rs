use super::*;
use crate::{
    cgroup::Mount,
    host::{Agent, Trials},
};

/// A host where all is well; each test breaks one thing.
fn host() -> Facts {
    let fine = |names: &[&'static str]| names.iter().map(|name| Probe { name, result: Ok(()) }).collect();
    Facts {
        euid: 0,
        capabilities: Some(Capabilities(u64::MAX)),
        release: "6.12.48-cloud-amd64".into(),
        cgroup2: Some(Mount { point: "/sys/fs/cgroup".into(), root: "/".into() }),
        whole_tree: true,
        host_pids: true,
        btf: Ok(()),
        jit: Some(1),
        lockdown: Lockdown::Integrity,
        trials: Some(Trials {
            read_kernel: Ok(()),
            programs: fine(&["sock_ops", "sk_msg", "sk_skb", "tp_btf/sched_process_fork", "iter/tcp"]),
            maps: fine(&["RINGBUF", "SOCKHASH", "LPM_TRIE"]),
            self_test: SelfTest::Passes,
        }),
        agents: Vec::new(),
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = host();
    change(&mut facts);
    judge(&facts)
}

fn with_trials(change: impl FnOnce(&mut Trials)) -> Report {
    with(|facts| change(facts.trials.as_mut().unwrap()))
}

fn refuse(trials: &mut [Probe], name: &str) {
    trials.iter_mut().find(|probe| probe.name == name).unwrap().result = Err("Invalid argument (os error 22)".into());
}

#[test]
fn a_good_host_tags() {
    let report = judge(&host());
    assert_eq!(report.verdict(), Verdict::Tags);
    assert_eq!(report.refusal(), None);
    assert!(report.checks.iter().all(|check| check.status == Status::Ok && check.remedy.is_none()), "{report:?}");
}

#[test]
fn what_cannot_run_is_refused_in_one_line_with_the_remedy() {
    let none = |facts: &mut Facts, capabilities| {
        facts.capabilities = Some(capabilities);
        facts.trials = None;
    };
    for (report, reason, remedy) in [
        (with(|facts| facts.release = "5.15.0-1-amd64".into()), "Linux 5.15.0-1-amd64 is too old", "boot Linux 6.1"),
        (
            with(|facts| {
                facts.euid = 1000;
                none(facts, Capabilities(0));
            }),
            "uid 1000 without CAP_BPF CAP_PERFMON CAP_NET_ADMIN",
            "sudo",
        ),
        (
            with(|facts| none(facts, Capabilities(1 << Capability::SysAdmin as u8))),
            "root without CAP_NET_ADMIN",
            "give the container or service CAP_NET_ADMIN",
        ),
        (with(|facts| facts.cgroup2 = None), "cgroup v2: not mounted", "mount -t cgroup2"),
        (with(|facts| facts.whole_tree = false), "only a part", "--cgroupns=host"),
        (with(|facts| facts.btf = Err("No such file or directory".into())), "BTF", "CONFIG_DEBUG_INFO_BTF"),
        (
            with(|facts| {
                facts.lockdown = Lockdown::Confidentiality;
                facts.trials.as_mut().unwrap().read_kernel = Err("cannot use helper bpf_probe_read_kernel".into());
            }),
            "lockdown: confidentiality",
            "lockdown=integrity",
        ),
        (with_trials(|trials| refuse(&mut trials.programs, "sock_ops")), "sock_ops", "CONFIG_CGROUP_BPF"),
        (with_trials(|trials| refuse(&mut trials.maps, "RINGBUF")), "RINGBUF", "CONFIG_BPF_SYSCALL"),
    ] {
        let refusal = report.refusal().unwrap_or_else(|| panic!("{reason} was not refused"));
        assert!(refusal.starts_with("cannot run here: "), "{refusal}");
        assert!(refusal.contains(reason) && refusal.contains(remedy), "{refusal}");
        assert!(!refusal.contains('\n'), "{refusal}");
    }
}

#[test]
fn what_only_takes_the_tag_is_not_refused() {
    for (report, reason) in [
        (
            with_trials(|trials| trials.self_test = SelfTest::Fails("bytes arrived changed".into())),
            "bytes arrived changed",
        ),
        (with_trials(|trials| refuse(&mut trials.programs, "sk_msg")), "sk_msg"),
        (with_trials(|trials| refuse(&mut trials.maps, "SOCKHASH")), "SOCKHASH"),
    ] {
        assert_eq!(report.refusal(), None);
        let Verdict::Observes(why) = report.verdict() else { panic!("{reason}: {:?}", report.verdict()) };
        assert!(why.contains(reason), "{why}");
    }
}

#[test]
fn what_is_only_less_still_tags() {
    for report in [
        with(|facts| facts.jit = Some(0)),
        with(|facts| facts.jit = None),
        with(|facts| facts.host_pids = false),
        with(|facts| facts.release = "odd".into()),
        with(|facts| facts.capabilities = Some(Capabilities(1 << 12 | 1 << 38 | 1 << 39))),
        with(|facts| facts.agents = vec![Agent { cgroup: "/fns".into(), pid: Some(42) }]),
        with_trials(|trials| refuse(&mut trials.programs, "iter/tcp")),
    ] {
        assert_eq!(report.verdict(), Verdict::Tags);
        assert!(report.checks.iter().any(|check| check.status == Status::Warn), "{report:?}");
    }
}

#[test]
fn a_loopback_that_is_down_is_not_the_kernels_fault() {
    let reason = "connect over loopback: Network is unreachable (os error 101)";
    let report = with_trials(|trials| trials.self_test = SelfTest::Fails(reason.into()));
    assert!(report.verdict().line().ends_with("; bring loopback up: ip link set lo up"), "{:?}", report.verdict());
}

#[test]
fn the_loader_learns_what_it_has_to_do() {
    let needs = |breaks| with_trials(|trials| trials.self_test = SelfTest::NeedsVerdict { breaks });
    let report = needs(Vec::new());
    assert_eq!((report.verdict(), report.existing), (Verdict::Tags, true));
    let report = needs(vec!["splice(2)", "MSG_WAITALL"]);
    let Verdict::TagsIfTold(why) = report.verdict() else { panic!("{report:?}") };
    assert!(why.contains("splice(2), MSG_WAITALL; --tag on"), "{why}");
    assert_eq!(report.self_test, Some(SelfTest::NeedsVerdict { breaks: vec!["splice(2)", "MSG_WAITALL"] }));
    assert!(!with_trials(|trials| refuse(&mut trials.programs, "iter/tcp")).existing);
}

#[test]
fn lockdown_without_a_name_is_judged_by_what_it_does() {
    let find = |report: Report| report.checks.into_iter().find(|check| check.name == "lockdown").unwrap();
    let check = find(with(|facts| facts.lockdown = Lockdown::Unknown));
    assert_eq!((check.status, check.found.as_str()), (Status::Ok, "unknown (securityfs is not mounted)"));
    let check = find(with(|facts| {
        facts.lockdown = Lockdown::Unknown;
        facts.trials.as_mut().unwrap().read_kernel = Err("unknown func bpf_probe_read_kernel#113".into());
    }));
    assert_eq!(check.status, Status::Fail);
}

#[test]
fn the_table_has_colour_only_when_asked() {
    let report = with(|facts| facts.jit = Some(0));
    let mut plain = Vec::new();
    report.write_table(&mut plain, false).unwrap();
    let plain = String::from_utf8(plain).unwrap();
    assert!(!plain.contains('\x1b'), "{plain}");
    assert!(plain.contains("\nwarn  JIT "), "{plain}");
    assert!(plain.contains("→ sysctl -w net.core.bpf_jit_enable=1"), "{plain}");
    assert!(plain.ends_with("\n\nfntrace will run here and tag calls\n"), "{plain}");
    let mut painted = Vec::new();
    report.write_table(&mut painted, true).unwrap();
    assert!(painted.contains(&b'\x1b'));
}

#[test]
fn the_document_is_one_line_of_json() {
    let mut out = Vec::new();
    with(|facts| facts.cgroup2 = None).write_json(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches('\n').count(), 1);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["fntrace"], 1);
    assert_eq!(document["type"], "doctor");
    assert_eq!(document["verdict"], "cannot");
    let check = document["checks"].as_array().unwrap().iter().find(|check| check["name"] == "cgroup v2").unwrap();
    assert_eq!(check["status"], "fail");
}

#[test]
fn root_this_host_can_run_the_agent() {
    let report = checks();
    let mut out = Vec::new();
    report.write_table(&mut out, false).unwrap();
    eprintln!("{}", String::from_utf8_lossy(&out));
    assert_eq!(report.refusal(), None, "run as root, on a host that can");
}
