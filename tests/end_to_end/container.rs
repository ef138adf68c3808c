//! Containers by runc, and networks for them: made by a test below its slice, removed with it.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{client::Client, functions, sandbox::Slice};

/// How long a container may take to answer its first request.
const START: Duration = Duration::from_secs(30);

/// What a container is made of: the Go function of tests/functions in a file tree that holds nothing else.
#[derive(Clone, Debug)]
pub struct Spec {
    pub id: String,
    /// Its cgroup, below the slice.
    pub cgroup: String,
    pub environment: Vec<(&'static str, String)>,
    pub annotations: Value,
    /// The name of the network namespace; the host's if there is none.
    pub network: Option<String>,
    pub address: SocketAddr,
    /// In a user name space of its own, where root is nobody outside.
    pub user: bool,
}

/// A container that runs. It is deleted when it is dropped.
#[derive(Debug)]
pub struct Container {
    id: String,
    pub cgroup: String,
    pub address: SocketAddr,
    bundle: PathBuf,
}

impl Spec {
    /// In the host's network, at a free port, named by `K_SERVICE`.
    pub fn new(id: String, cgroup: impl Into<String>, function: &str) -> Self {
        Self {
            id,
            cgroup: cgroup.into(),
            environment: vec![("K_SERVICE", function.to_owned())],
            annotations: json!({}),
            network: None,
            address: functions::free_address(Ipv4Addr::LOCALHOST.into()),
            user: false,
        }
    }

    pub fn with(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((variable, value.into()));
        self
    }

    /// Writes the bundle, and gives the command that runs it to its end.
    pub fn prepare(&self, slice: &Slice) -> (Command, Container) {
        let rootfs = rootfs(slice);
        let bundle = slice.files().join(&self.id);
        fs::create_dir(&bundle).unwrap();
        let mut environment: Vec<String> =
            self.environment.iter().map(|(key, value)| format!("{key}={value}")).collect();
        environment.extend([format!("HOST={}", self.address.ip()), format!("PORT={}", self.address.port())]);
        let mut spaces = vec![json!({"type": "pid"}), json!({"type": "mount"}), json!({"type": "ipc"})];
        spaces.extend(self.network.iter().map(|name| json!({"type": "network", "path": format!("/run/netns/{name}")})));
        let mut linux = json!({"cgroupsPath": format!("{}/{}", slice.argument(), self.cgroup)});
        if self.user {
            spaces.push(json!({"type": "user"}));
            let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            linux["uidMappings"] = ids.clone();
            linux["gidMappings"] = ids;
        }
        linux["namespaces"] = Value::from(spaces);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/function"], "env": environment, "cwd": "/"},
            "root": {"path": rootfs, "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            ],
            "annotations": self.annotations,
            "linux": linux,
        });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let (output, errors) =
            (File::create(bundle.join("output")).unwrap(), File::create(bundle.join("errors")).unwrap());
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(&bundle).stdin(Stdio::null()).stdout(output).stderr(errors);
        let cgroup = format!("{}/{}", slice.argument(), self.cgroup);
        (command, Container { id: self.id.clone(), cgroup, address: self.address, bundle })
    }

    /// Starts it, and waits until it is there; not until it answers.
    pub fn start(&self, slice: &Slice) -> Container {
        let (mut command, container) = self.prepare(slice);
        let status = command.arg("--detach").arg(&self.id).status().expect("start runc; it is needed here");
        assert!(status.success(), "runc: {status}: {}", container.errors());
        container
    }
}

impl Container {
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What its process wrote on standard output.
    pub fn output(&self) -> String {
        fs::read_to_string(self.bundle.join("output")).unwrap_or_default()
    }

    pub fn errors(&self) -> String {
        fs::read_to_string(self.bundle.join("errors")).unwrap_or_default()
    }

    /// Waits until it answers; to be called where its network is.
    pub fn wait(self) -> Self {
        let deadline = Instant::now() + START;
        while !self.client().request("GET", "/ready", &[], b"").is_ok_and(|response| response.status == 200) {
            assert!(Instant::now() < deadline, "{} does not answer: {}", self.id, self.errors());
            thread::sleep(Duration::from_millis(5));
        }
        self
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let deleted = Command::new("runc").args(["delete", "--force"]).arg(&self.id).output();
        if thread::panicking() {
            eprintln!("--- what {} said:\n{}{}{deleted:?}", self.id, self.output(), self.errors());
        }
    }
}

/// The file tree of all containers of a slice: the function, which is statically linked, and a place for /proc.
fn rootfs(slice: &Slice) -> PathBuf {
    let rootfs = slice.files().join("rootfs");
    if !rootfs.exists() {
        fs::create_dir_all(rootfs.join("proc")).unwrap();
        fs::create_dir_all(rootfs.join("dev")).unwrap();
        let built = functions::source().join(".cache/go/function");
        fs::copy(functions::prepared(built), rootfs.join("function")).unwrap();
        // Also for who is nobody outside.
        for path in [slice.files(), &rootfs] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    rootfs
}

/// An id as containerd, Docker and their kin give.
pub fn long_id() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{:032x}{:032x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Network name spaces of a test: one as a host, with a bridge, and one for each sandbox.
#[derive(Debug)]
pub struct Networks {
    prefix: String,
    made: Vec<String>,
}

impl Networks {
    /// Makes the host's, which forwards.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("fntrace-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut networks = Self { prefix, made: Vec::new() };
        let host = networks.add("host");
        networks.inside(&host, &["ip", "link", "set", "lo", "up"]);
        networks.inside(&host, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        networks.inside(&host, &["ip", "link", "add", "bridge", "type", "bridge"]);
        networks.inside(&host, &["ip", "address", "add", "10.77.1.1/24", "dev", "bridge"]);
        networks.inside(&host, &["ip", "link", "set", "bridge", "up"]);
        networks
    }

    pub fn host(&self) -> &str {
        &self.made[0]
    }

    fn add(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        run(&["ip", "netns", "add", &name]);
        self.made.push(name.clone());
        self.inside(&name, &["ip", "link", "set", "lo", "up"]);
        name
    }

    /// A sandbox's network: at the bridge, or by a route of its own.
    pub fn sandbox(&mut self, name: &str, address: Ipv4Addr, at_bridge: bool) -> String {
        let (host, sandbox) = (self.host().to_owned(), self.add(name));
        // The name of a link has at most 15 characters.
        let link = format!("to-{name}");
        self.inside(&host, &["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &sandbox]);
        let [a, b, c, _] = address.octets();
        let gateway = Ipv4Addr::new(a, b, c, 1).to_string();
        if at_bridge {
            self.inside(&host, &["ip", "link", "set", &link, "master", "bridge"]);
        } else {
            self.inside(&host, &["ip", "address", "add", &format!("{gateway}/24"), "dev", &link]);
        }
        self.inside(&host, &["ip", "link", "set", &link, "up"]);
        self.inside(&sandbox, &["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        self.inside(&sandbox, &["ip", "link", "set", "eth0", "up"]);
        self.inside(&sandbox, &["ip", "route", "add", "default", "via", &gateway]);
        sandbox
    }

    /// Has an address of a service lead to a function, as kube-proxy does.
    pub fn service(&self, service: SocketAddr, function: SocketAddr) {
        let (address, port) = (service.ip().to_string(), service.port().to_string());
        let rule =
            ["-d", &address, "-p", "tcp", "--dport", &port, "-j", "DNAT", "--to-destination", &function.to_string()];
        self.inside(self.host(), &[&["iptables", "-t", "nat", "-A", "PREROUTING"], &rule[..]].concat());
        self.inside(self.host(), &[&["iptables", "-t", "nat", "-A", "OUTPUT"], &rule[..]].concat());
    }

    fn inside(&self, name: &str, command: &[&str]) {
        run(&[&["ip", "netns", "exec", name], command].concat());
    }

    /// Does something on a thread in the host's network.
    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new("/run/netns").join(self.host())).unwrap();
        thread::scope(|scope| {
            let inside = || {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(space.as_fd(), Some(kind)).expect("enter the name space");
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask functions` installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An address of a network that only a test knows.
pub fn private(network: u8, host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 77, network, host]), port)
}
