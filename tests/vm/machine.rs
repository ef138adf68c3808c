//! What an init does for those that come after it.

use std::{fs, io, os::fd::AsRawFd as _, path::Path};

use rustix::{
    mount::{MountFlags, mount},
    net::{AddressFamily, SocketType, socket},
    system::{RebootCommand, reboot},
};

/// What the command line of the kernel asks for.
#[derive(Debug)]
pub struct Options {
    /// The kernel is below the floor: the agent has to refuse it.
    pub refuse: bool,
    /// Cgroup v1 controllers are mounted beside v2, as on hosts of an older Docker.
    pub hybrid: bool,
    /// The kernel is locked down.
    pub lockdown: bool,
}

/// Mounts, and brings loopback up.
pub fn set_up() -> Options {
    // The root is in memory and can be written to: /tmp needs no mount.
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        place(kind, at, "");
    }
    place("securityfs", "/sys/kernel/security", "");
    let line = fs::read_to_string("/proc/cmdline").unwrap();
    let has = |word: &str| line.split_ascii_whitespace().any(|found| found == word);
    let options =
        Options { refuse: has("fntrace.refuse"), hybrid: has("fntrace.hybrid"), lockdown: has("lockdown=integrity") };
    if options.hybrid {
        place("tmpfs", "/sys/fs/cgroup", "");
        for controller in ["cpu,cpuacct", "pids", "net_cls,net_prio", "freezer"] {
            place("cgroup", &format!("/sys/fs/cgroup/{controller}"), controller);
        }
        place("cgroup", "/sys/fs/cgroup/systemd", "none,name=systemd");
        place("cgroup2", "/sys/fs/cgroup/unified", "");
    } else {
        place("cgroup2", "/sys/fs/cgroup", "");
    }
    loopback_up().expect("bring loopback up");
    options
}

fn place(kind: &str, at: &str, data: &str) {
    fs::create_dir_all(Path::new(at)).unwrap_or_else(|error| panic!("make {at}: {error}"));
    let data = std::ffi::CString::new(data).unwrap();
    mount(kind, at, kind, MountFlags::empty(), data.as_c_str()).unwrap_or_else(|error| panic!("mount {at}: {error}"));
}

fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all zeros is a valid request; the name is shorter than its place.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, and this one outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// QEMU is told to end where the machine would start again.
pub fn switch_off() -> ! {
    rustix::fs::sync();
    panic!("{:?}", reboot(RebootCommand::Restart));
}
