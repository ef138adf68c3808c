//! Looks at the host: the facts from which [`crate::doctor`] judges whether and how the agent can run.
//!
//! Nothing here changes anything outside this process: programs are loaded and let go, and what is attached is attached
//! to a map of sockets of our own.

mod links;
mod probe;
mod selftest;

use std::{fs, io, path::Path};

pub use links::{Agent, agents, second_agent};
pub use selftest::{SelfTest, self_test};

use crate::cgroup::{self, Mount};

/// A kernel's version, as far as it orders releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// The oldest kernel that the agent runs on: `bpf_loop` is from 5.17, BTF tracepoints with socket storage and
    /// `cgroup`-typed arguments are found together in this long-term release (DESIGN.md, section 3).
    pub const FLOOR: Self = Self(6, 1, 0);

    /// Reads what uname(2) calls the release: `6.1.0-18-cloud-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self(next()?, next()?, next().unwrap_or(0)))
    }
}

/// A privilege (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Opens cgroups by id, reads other users' processes.
    DacReadSearch = 2,
    /// Loads and attaches programs for the network.
    NetAdmin = 12,
    /// Reads the environment of other users' processes.
    SysPtrace = 19,
    /// Lists the links of others; contains the two below.
    SysAdmin = 21,
    /// Loads tracing programs.
    Perfmon = 38,
    /// Makes maps, loads programs.
    Bpf = 39,
}

impl Capability {
    /// Without these nothing can be loaded and attached.
    pub const NEEDED: [Self; 3] = [Self::Bpf, Self::Perfmon, Self::NetAdmin];
    /// Without these something is missing, see [`crate::doctor`].
    pub const USED: [Self; 3] = [Self::SysAdmin, Self::SysPtrace, Self::DacReadSearch];

    /// The name by which setcap, systemd and container runtimes know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A set of privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether it has this one, or one that contains it (`bpf_capable` and `perfmon_capable`, include/linux/capability.h).
    pub fn has(self, capability: Capability) -> bool {
        let one = |capability: Capability| self.0 & 1 << capability as u8 != 0;
        match capability {
            Capability::Bpf | Capability::Perfmon => one(capability) || one(Capability::SysAdmin),
            _ => one(capability),
        }
    }

    /// Reads `CapEff` from `/proc/self/status`.
    fn parse(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }
}

/// How far the kernel is locked down (kernel_lockdown(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Nothing tells.
    Unknown,
    /// Not at all, or the kernel does not know lockdown.
    None,
    /// User space must not change the kernel: no kprobes into it, no writes to user memory from BPF.
    Integrity,
    /// User space must not read the kernel either.
    Confidentiality,
}

impl Lockdown {
    /// From `/sys/kernel/security/lockdown` (`none [integrity] confidentiality`) or, where that cannot be read, from the
    /// kernel's command line.
    fn read(file: io::Result<String>, security_mounted: bool, cmdline: &str) -> Self {
        let named = |name| match name {
            "none" => Some(Self::None),
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        };
        if let Ok(file) = file {
            let chosen = file.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            return chosen.and_then(|(name, _)| named(name)).unwrap_or(Self::Unknown);
        }
        let option = cmdline.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("lockdown="));
        match option.and_then(named) {
            Some(lockdown) => lockdown,
            // The file system is there and the file is not: the kernel was built without it.
            None if security_mounted => Self::None,
            None => Self::Unknown,
        }
    }
}

/// Something that was tried, and why it did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What: `sk_msg`, `tp_btf/tcp_rcv_space_adjust`, `RINGBUF`, …
    pub name: &'static str,
    /// The kernel's words where it refused.
    pub result: Result<(), String>,
}

/// What was tried with the privileges of the agent.
#[derive(Clone, Debug)]
pub struct Trials {
    /// Whether tracing programs may read kernel memory by `bpf_probe_read_kernel`, which lockdown=confidentiality takes.
    pub read_kernel: Result<(), String>,
    /// Each program type, loaded.
    pub programs: Vec<Probe>,
    /// Each map type, made.
    pub maps: Vec<Probe>,
    /// What enrolling a socket does.
    pub self_test: SelfTest,
}

impl Trials {
    fn run(types: &Result<probe::Types, String>) -> Self {
        Self {
            read_kernel: probe::read_kernel(types),
            programs: probe::programs(types),
            maps: probe::maps(),
            self_test: self_test(),
        }
    }
}

/// What was found. Everything that [`crate::doctor::judge`] looks at, so that its judgments are tested without the host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The effective user id.
    pub euid: u32,
    /// The effective capabilities; `None` if they could not be read.
    pub capabilities: Option<Capabilities>,
    /// The kernel's release as uname(2) gives it.
    pub release: String,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<Mount>,
    /// Whether the mount point shows the root of the whole hierarchy.
    pub whole_tree: bool,
    /// Whether the agent sees processes by the numbers that the kernel half reports.
    pub host_pids: bool,
    /// Whether the kernel describes its types.
    pub btf: Result<(), String>,
    /// `net.core.bpf_jit_enable`; `None` if it cannot be read.
    pub jit: Option<u8>,
    /// How far the kernel is locked down.
    pub lockdown: Lockdown,
    /// What only a privileged process can try; `None` if this one is not.
    pub trials: Option<Trials>,
    /// Agents that trace here already.
    pub agents: Vec<Agent>,
}

impl Facts {
    /// Looks. Takes less than two seconds, or four where enrolled sockets fail the test.
    pub fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path);
        let cgroup2 = Mount::find().ok();
        let capabilities = read("/proc/self/status").ok().and_then(|status| Capabilities::parse(&status));
        let privileged = capabilities.is_some_and(|set| Capability::NEEDED.iter().all(|one| set.has(*one)));
        let btf = probe::Types::read();
        Self {
            // SAFETY: takes nothing and cannot fail.
            euid: unsafe { libc::geteuid() },
            capabilities,
            release: read("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            whole_tree: cgroup2.as_ref().is_some_and(shows_everything),
            // PROC_PID_INIT_INO, include/linux/proc_ns.h.
            host_pids: fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]")),
            jit: read("/proc/sys/net/core/bpf_jit_enable").ok().and_then(|value| value.trim().parse().ok()),
            lockdown: Lockdown::read(
                read("/sys/kernel/security/lockdown"),
                read("/sys/kernel/security/lsm").is_ok(),
                &read("/proc/cmdline").unwrap_or_default(),
            ),
            trials: privileged.then(|| Trials::run(&btf)),
            btf: btf.map(drop),
            agents: cgroup2.as_ref().and_then(|mount| agents(mount).ok()).unwrap_or_default(),
            cgroup2,
        }
    }
}

/// Whether the mount point is the root cgroup, whose id is 1 (kernel/cgroup/cgroup.c, `cgroup_setup_root`). It is not in
/// a cgroup namespace, as in a container, where only a part is seen and goes by other paths than the kernel's.
fn shows_everything(mount: &Mount) -> bool {
    cgroup::id(&mount.point).is_ok_and(|id| id == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered() {
        for (release, version) in [
            ("6.18.44-fc-v509", Version(6, 18, 44)),
            ("6.1.0-18-cloud-amd64", Version(6, 1, 0)),
            ("6.1", Version(6, 1, 0)),
            ("5.15.0+", Version(5, 15, 0)),
        ] {
            assert_eq!(Version::parse(release), Some(version), "{release}");
        }
        assert_eq!(Version::parse("linux"), None);
        assert!(Version(5, 19, 17) < Version::FLOOR && Version(6, 1, 0) >= Version::FLOOR);
        assert!(Version(6, 10, 0) > Version(6, 9, 9));
    }

    #[test]
    fn sys_admin_contains_what_the_kernel_says_it_does() {
        let admin = Capabilities(1 << Capability::SysAdmin as u8);
        assert!(admin.has(Capability::Bpf) && admin.has(Capability::Perfmon));
        assert!(!admin.has(Capability::NetAdmin) && !admin.has(Capability::SysPtrace));
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t000001fffeffffff\n";
        let set = Capabilities::parse(status).unwrap();
        assert!(set.has(Capability::Bpf) && set.has(Capability::NetAdmin) && set.has(Capability::DacReadSearch));
        assert_eq!(Capabilities::parse("Name:\tx\n"), None);
    }

    #[test]
    fn lockdown_is_read_where_it_can_be() {
        let none = || Err(io::Error::from(io::ErrorKind::NotFound));
        for (file, mounted, cmdline, expected) in [
            (Ok("none [integrity] confidentiality\n"), true, "", Lockdown::Integrity),
            (Ok("[none] integrity confidentiality\n"), true, "lockdown=integrity", Lockdown::None),
            (Ok("garbage"), true, "", Lockdown::Unknown),
            (Err(()), false, "quiet lockdown=confidentiality", Lockdown::Confidentiality),
            (Err(()), false, "lockdown=integrity lockdown=none", Lockdown::None),
            (Err(()), false, "quiet", Lockdown::Unknown),
            (Err(()), true, "quiet", Lockdown::None),
        ] {
            let file = file.map_or_else(|()| none(), |text| Ok(text.to_owned()));
            assert_eq!(Lockdown::read(file, mounted, cmdline), expected, "{cmdline}");
        }
    }
}
