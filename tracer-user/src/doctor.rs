//! `fntrace doctor`: what this host supports, what the agent will do here and what it will not, and the remedy.
//!
//! [`judge`] turns [`Facts`] into [`Check`]s and touches nothing, so that hosts that nobody here has are tested too.
//! `run` makes the same report and refuses, or goes on without tags, in the same words.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::host::{Capabilities, Capability, Facts, Lockdown, Probe, SelfTest, Version};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// The agent runs, with less.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One thing that the agent needs or can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The thing.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What that means for the agent here.
    pub means: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Whether calls go untagged because of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untagged: bool,
    /// Whether they are tagged all the same with `--tag on`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unless_told: bool,
}

impl Check {
    fn new(name: &'static str, status: Status, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self {
            name,
            status,
            found: found.into(),
            means: means.into(),
            remedy: None,
            untagged: false,
            unless_told: false,
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The reason and the remedy in one line.
    fn line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}: {}; {remedy}", self.name, self.found),
            None => format!("{}: {}", self.name, self.found),
        }
    }
}

/// What comes of all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Traces and tags.
    Tags,
    /// Traces, and tags only with `--tag on`; why.
    TagsIfTold(String),
    /// Traces, and joins by the wire alone; why.
    Observes(String),
    /// Does not start; why.
    Cannot(String),
}

impl Verdict {
    /// The word for scripts.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::TagsIfTold(_) => "tags_if_told",
            Self::Observes(_) => "observes",
            Self::Cannot(_) => "cannot",
        }
    }

    /// The line for people.
    pub fn line(&self) -> String {
        match self {
            Self::Tags => "fntrace will run here and tag calls".into(),
            Self::TagsIfTold(why) => format!("fntrace will run here and tag calls only with --tag on: {why}"),
            Self::Observes(why) => format!("fntrace will run here but not tag: {why}"),
            Self::Cannot(why) => format!("fntrace cannot run here: {why}"),
        }
    }
}

/// Every check, and what the loader has to know.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order in which they are shown: causes before what follows from them.
    pub checks: Vec<Check>,
    /// Whether a verdict program has to be attached; `None` if it was not tried.
    pub self_test: Option<SelfTest>,
    /// Whether `iter/tcp` loads: without it connections older than the agent are noticed at their next request.
    pub existing: bool,
}

impl Report {
    /// What comes of them.
    pub fn verdict(&self) -> Verdict {
        let first = |wanted: fn(&Check) -> bool| self.checks.iter().find(|check| wanted(check)).map(Check::line);
        if let Some(why) = first(|check| check.status == Status::Fail) {
            Verdict::Cannot(why)
        } else if let Some(why) = first(|check| check.untagged && !check.unless_told) {
            Verdict::Observes(why)
        } else if let Some(why) = first(|check| check.unless_told) {
            Verdict::TagsIfTold(why)
        } else {
            Verdict::Tags
        }
    }

    /// Why the agent cannot start, and the remedy, in one line.
    pub fn refusal(&self) -> Option<String> {
        let verdict = self.verdict();
        if let Verdict::Cannot(why) = verdict { Some(format!("cannot run here: {why}")) } else { None }
    }

    /// Writes the table.
    pub fn write_table(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        let paint = |code, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
        let width = |of: fn(&Check) -> &str, most: usize| {
            self.checks.iter().map(|check| of(check).chars().count()).filter(|width| *width <= most).max().unwrap_or(0)
        };
        let name = width(|check| check.name, 30);
        let found = width(|check| &check.found, 50);
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => paint("32", "ok  "),
                Status::Warn => paint("33", "warn"),
                Status::Fail => paint("31", "FAIL"),
            };
            let line = format!("{status}  {:name$}  {:found$}  {}", check.name, check.found, check.means);
            writeln!(out, "{}", line.trim_end())?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "{:indent$}{}", "", paint("1", &format!("→ {remedy}")), indent = 4 + 2 + name + 2)?;
            }
        }
        let code = match self.verdict() {
            Verdict::Tags => "32",
            Verdict::TagsIfTold(_) | Verdict::Observes(_) => "33",
            Verdict::Cannot(_) => "31",
        };
        writeln!(out, "\n{}", paint(code, &self.verdict().line()))
    }

    /// Writes one JSON document.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct Document<'a> {
            fntrace: u32,
            r#type: &'static str,
            verdict: &'static str,
            message: String,
            checks: &'a [Check],
        }
        let verdict = self.verdict();
        let (word, message) = (verdict.word(), verdict.line());
        let document = Document { fntrace: 1, r#type: "doctor", verdict: word, message, checks: &self.checks };
        serde_json::to_writer(&mut *out, &document)?;
        writeln!(out)
    }
}

/// Looks at this host and judges. Takes less than two seconds, or four where enrolled sockets fail the test.
pub fn checks() -> Report {
    judge(&Facts::gather())
}

/// The command: prints the report to standard output. Exit status 3 if the agent cannot run here.
pub fn run(json: bool) -> io::Result<ExitCode> {
    let report = checks();
    let mut out = io::stdout().lock();
    let written = if json {
        report.write_json(&mut out)
    } else {
        let colour = out.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        report.write_table(&mut out, colour)
    };
    match written.and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    Ok(if report.refusal().is_some() { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// Judges a host by what was found.
pub fn judge(facts: &Facts) -> Report {
    let mut checks = vec![kernel(&facts.release), privileges(facts.euid, facts.capabilities)];
    checks.extend(lesser_privileges(facts.capabilities));
    checks.extend([cgroup2(facts), pids(facts.host_pids), btf(&facts.btf), jit(facts.jit)]);
    let Some(trials) = &facts.trials else {
        checks.push(lockdown(facts.lockdown, None));
        return Report { checks, self_test: None, existing: false };
    };
    checks.push(lockdown(facts.lockdown, Some(&trials.read_kernel)));
    checks.extend(trials.programs.iter().map(|probe| program(probe, &trials.self_test)));
    checks.extend(trials.maps.iter().map(map));
    // What cannot even be loaded has been reported as that.
    let loads =
        |name| trials.programs.iter().chain(&trials.maps).any(|probe| probe.name == name && probe.result.is_ok());
    if loads("sk_msg") && loads("SOCKHASH") {
        checks.push(enrolment(&trials.self_test));
    }
    checks.extend(facts.agents.iter().map(|agent| {
        Check::new("other agents", Status::Warn, agent.to_string(), "run refuses the same sandboxes, above and below")
            .remedy("stop it, or choose other sandboxes with --cgroup")
    }));
    Report { checks, self_test: Some(trials.self_test.clone()), existing: loads("iter/tcp") }
}

fn kernel(release: &str) -> Check {
    let Version(major, minor, _) = Version::FLOOR;
    let needs = format!("{major}.{minor} or newer is needed");
    match Version::parse(release) {
        Some(version) if version >= Version::FLOOR => {
            Check::new("kernel", Status::Ok, format!("Linux {release}"), needs)
        }
        Some(_) => Check::new("kernel", Status::Fail, format!("Linux {release} is too old"), needs)
            .remedy(format!("boot Linux {major}.{minor} or newer")),
        None => Check::new("kernel", Status::Warn, format!("cannot read the release `{release}`"), needs),
    }
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" ")
}

fn privileges(euid: u32, set: Option<Capabilities>) -> Check {
    let set = set.unwrap_or(Capabilities(0));
    let missing: Vec<_> = Capability::NEEDED.into_iter().filter(|one| !set.has(*one)).collect();
    let who = if euid == 0 { "root".to_owned() } else { format!("uid {euid}") };
    if missing.is_empty() {
        return Check::new("privileges", Status::Ok, who, "may load and attach programs");
    }
    Check::new(
        "privileges",
        Status::Fail,
        format!("{who} without {}", names(&missing)),
        "may not load or attach programs",
    )
    .remedy(if euid == 0 {
        format!("give the container or service {}", names(&missing))
    } else {
        "run as root: sudo fntrace".to_owned()
    })
}

/// Those without which something is missing; nothing to say when they are there or when nothing runs anyway.
fn lesser_privileges(set: Option<Capabilities>) -> Vec<Check> {
    let Some(set) = set.filter(|set| Capability::NEEDED.iter().all(|one| set.has(*one))) else { return Vec::new() };
    let missing = Capability::USED.into_iter().filter(|one| !set.has(*one));
    missing
        .map(|one| {
            let means = match one {
                Capability::SysPtrace => "functions of other users are named by container or cgroup only",
                Capability::SysAdmin => "a second agent on the same sandboxes goes unnoticed",
                _ => "cgroups are looked up by id the slow way",
            };
            Check::new("privileges", Status::Warn, format!("no {}", one.name()), means)
                .remedy(format!("grant {}, or run as root", one.name()))
        })
        .collect()
}

fn cgroup2(facts: &Facts) -> Check {
    match &facts.cgroup2 {
        None => {
            Check::new("cgroup v2", Status::Fail, "not mounted", "sandboxes are cgroups v2: there is nothing to trace")
                .remedy("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified")
        }
        Some(mount) if !facts.whole_tree => {
            let found = format!("only a part, at {}", mount.point.display());
            Check::new("cgroup v2", Status::Fail, found, "the kernel's paths of sandboxes are not those seen here")
                .remedy("run in the host's cgroup namespace, with its cgroup v2 mounted (docker: --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup)")
        }
        Some(mount) => {
            Check::new("cgroup v2", Status::Ok, format!("mounted at {}", mount.point.display()), "--cgroup is below it")
        }
    }
}

fn pids(host: bool) -> Check {
    if host {
        return Check::new("processes", Status::Ok, "the host's", "functions are named by their environment");
    }
    Check::new(
        "processes",
        Status::Warn,
        "a pid namespace of its own",
        "functions are named by container or cgroup only",
    )
    .remedy("run in the host's pid namespace (docker: --pid=host)")
}

fn btf(btf: &Result<(), String>) -> Check {
    match btf {
        Ok(()) => Check::new("BTF", Status::Ok, "/sys/kernel/btf/vmlinux", "fields are found by name"),
        Err(words) => Check::new("BTF", Status::Fail, words, "fields of kernel structures cannot be found")
            .remedy("boot a kernel with CONFIG_DEBUG_INFO_BTF=y and mount sysfs at /sys"),
    }
}

fn jit(jit: Option<u8>) -> Check {
    match jit {
        Some(0) => Check::new("JIT", Status::Warn, "off", "each packet of a sandbox costs several times as much")
            .remedy("sysctl -w net.core.bpf_jit_enable=1"),
        Some(_) => Check::new("JIT", Status::Ok, "on", "programs run as machine code"),
        None => Check::new(
            "JIT",
            Status::Warn,
            "unknown",
            "without it each packet of a sandbox costs several times as much",
        )
        .remedy("run in the host's network namespace, where it can be seen (docker: --network=host)"),
    }
}

fn lockdown(lockdown: Lockdown, read_kernel: Option<&Result<(), String>>) -> Check {
    let found = match lockdown {
        Lockdown::Unknown => "unknown (securityfs is not mounted)",
        Lockdown::None => "none",
        Lockdown::Integrity => "integrity",
        Lockdown::Confidentiality => "confidentiality",
    };
    match (lockdown, read_kernel) {
        // What it lets through counts, not what it is called.
        (_, Some(Ok(()))) => Check::new("lockdown", Status::Ok, found, "lets through all that the agent uses"),
        (Lockdown::Confidentiality, None) | (_, Some(Err(_))) => {
            let why = match (lockdown, read_kernel) {
                (Lockdown::Unknown | Lockdown::None, Some(Err(words))) => format!("{found}: {words}"),
                _ => found.to_owned(),
            };
            Check::new("lockdown", Status::Fail, why, "tracing programs may not read kernel memory")
                .remedy("boot with lockdown=integrity; the agent needs no less")
        }
        (_, None) => Check::new("lockdown", Status::Ok, found, "not tried for want of privileges"),
    }
}

fn program(probe: &Probe, self_test: &SelfTest) -> Check {
    let job = match probe.name {
        "sock_ops" => "sees connections being made",
        "cgroup_skb/ingress" => "sees requests come in",
        "cgroup_skb/egress" => "sees requests and responses leave",
        "sk_msg" => "tags calls",
        "sk_skb" if matches!(self_test, SelfTest::NeedsVerdict { .. }) => "repairs FIONREAD, see below",
        "sk_skb" => "repairs FIONREAD, not needed here",
        "tp_btf/tcp_rcv_space_adjust" => "sees which thread reads a request",
        "tp_btf/sched_process_fork" => "follows work into children",
        "tp_btf/sched_process_exit" => "forgets the dead",
        "tp_btf/sched_process_exec" => "sees what a new sandbox runs",
        "tp_btf/cgroup_mkdir" => "sees sandboxes appear",
        "tp_btf/cgroup_rmdir" => "sees sandboxes go",
        "iter/tcp" => "finds connections older than the agent",
        _ => "",
    };
    let Err(words) = &probe.result else { return Check::new(probe.name, Status::Ok, "loads", job) };
    let check = |status, means: &str| Check::new(probe.name, status, words, means);
    match probe.name {
        "sk_msg" => Check { untagged: true, ..check(Status::Warn, "calls are not tagged") }
            .remedy("boot a kernel with CONFIG_NET_SOCK_MSG=y"),
        "sk_skb" => check(Status::Warn, "FIONREAD cannot be repaired where it needs to be"),
        "iter/tcp" => check(Status::Warn, "connections older than the agent are not tagged")
            .remedy("boot a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_PROC_FS=y"),
        _ => check(Status::Fail, &format!("cannot load what {job}")).remedy(
            "boot a kernel with CONFIG_BPF_SYSCALL=y CONFIG_CGROUP_BPF=y CONFIG_BPF_EVENTS=y CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

fn map(probe: &Probe) -> Check {
    let job = match probe.name {
        "RINGBUF" => "carries records to user space",
        "SK_STORAGE" => "holds the state of a connection",
        "SOCKHASH" => "holds the sockets whose calls are tagged",
        "LPM_TRIE" => "holds the networks that tags may reach",
        "HASH" => "holds sandboxes, invocations and threads",
        "PROG_ARRAY" => "stops the tagging when the agent is gone",
        _ => "",
    };
    let Err(words) = &probe.result else { return Check::new(probe.name, Status::Ok, "can be made", job) };
    if probe.name == "SOCKHASH" {
        let check = Check::new(probe.name, Status::Warn, words, "calls are not tagged");
        return Check { untagged: true, ..check }.remedy("boot a kernel with CONFIG_NET_SOCK_MSG=y");
    }
    Check::new(probe.name, Status::Fail, words, format!("cannot make what {job}"))
        .remedy("boot a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_NET=y")
}

fn enrolment(self_test: &SelfTest) -> Check {
    const NAME: &str = "enrolled sockets";
    match self_test {
        SelfTest::Passes => Check::new(NAME, Status::Ok, "behave like others", "tags change nothing but the head"),
        SelfTest::NeedsVerdict { breaks } if breaks.is_empty() => Check::new(
            NAME,
            Status::Ok,
            "FIONREAD is wrong, a verdict program repairs it",
            "the agent attaches one; about 0.3 µs a round trip",
        ),
        SelfTest::NeedsVerdict { breaks } => {
            let found = format!("FIONREAD is wrong, and its repair breaks {}", breaks.join(", "));
            let check = Check::new(NAME, Status::Warn, found, "calls are tagged only with --tag on");
            Check { untagged: true, unless_told: true, ..check }
                .remedy("--tag on if no traced function reads its connections so; else calls are joined by the wire")
        }
        SelfTest::Fails(reason) => {
            let check = Check::new(NAME, Status::Warn, reason, "nothing is enrolled, so nothing is tagged");
            Check { untagged: true, ..check }.remedy(if reason.contains("over loopback") {
                "bring loopback up: ip link set lo up"
            } else {
                "calls are joined by the wire instead; boot another kernel to have them tagged"
            })
        }
    }
}

#[cfg(test)]
mod tests;
