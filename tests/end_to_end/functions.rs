//! The functions of tests/functions, each started in a sandbox of its own on a free loopback port.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    client::Client,
    sandbox::{Sandbox, Slice},
};

/// How long a framework may take to answer its first request. CI has two cores and several of them start at once.
const START: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Python,
    Node,
    Go,
}

/// A running function. Its sandbox is killed when it is dropped.
#[derive(Debug)]
pub struct Function {
    sandbox: Sandbox,
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Go];
}

impl Function {
    /// Starts a function on 127.0.0.1 and waits until it answers.
    pub fn start(slice: &Slice, kind: Kind) -> Self {
        Self::start_on(slice, kind, Ipv4Addr::LOCALHOST.into())
    }

    /// Starts a function on ::1 and waits until it answers.
    pub fn start_v6(slice: &Slice, kind: Kind) -> Self {
        Self::start_on(slice, kind, Ipv6Addr::LOCALHOST.into())
    }

    fn start_on(slice: &Slice, kind: Kind, host: IpAddr) -> Self {
        let mut function = Self::spawn(slice, kind, host);
        function.wait();
        function
    }

    /// Starts a function and returns at once: nothing has been sent to it yet.
    pub fn spawn(slice: &Slice, kind: Kind, host: IpAddr) -> Self {
        let address = free_address(host);
        let source = source();
        let cache = source.join(".cache");
        let (name, mut command) = match kind {
            Kind::Python => {
                let mut command = Command::new(prepared(cache.join("python/venv/bin/functions-framework")));
                command.arg("--source").arg(source.join("python/main.py")).args(["--target", "handle"]);
                // gunicorn takes the address as it is written in a URL.
                command.env("HOST", url_host(address.ip())).env("THREADS", "16").env("PYTHONDONTWRITEBYTECODE", "1");
                ("python", command)
            }
            Kind::Node => {
                let framework = "node/node_modules/@google-cloud/functions-framework/build/src/main.js";
                let mut command = Command::new("node");
                command.arg(prepared(cache.join(framework))).args(["--target", "handle", "--signature-type", "http"]);
                // It takes no address: it listens on all, on a socket for both families.
                command.arg("--source").arg(source.join("node")).env("NODE_ENV", "production");
                ("node", command)
            }
            Kind::Go => {
                let mut command = Command::new(go_program());
                command.env("HOST", address.ip().to_string());
                ("go", command)
            }
        };
        command.env("PORT", address.port().to_string());
        Self::enter(slice, slice.sandbox(name), command, address)
    }

    /// Starts nginx as a reverse proxy in front of `upstream` and waits until an answer comes through.
    pub fn nginx(slice: &Slice, upstream: &Self) -> Self {
        let address = free_address(upstream.address.ip());
        let sandbox = slice.sandbox("nginx");
        let directory = slice.files().join(sandbox.name());
        fs::create_dir(&directory).unwrap();
        let template = fs::read_to_string(source().join("nginx/nginx.conf.template")).unwrap();
        let config = template
            .replace("@DIR@", directory.to_str().unwrap())
            .replace("@LISTEN@", &address.to_string())
            .replace("@UPSTREAM@", &upstream.address.to_string())
            .replace("@FUNCTION@", sandbox.name());
        let file = directory.join("nginx.conf");
        fs::write(&file, config).unwrap();
        // Debian keeps it where an ordinary user's PATH does not look.
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut command = Command::new(program);
        command.arg("-e").arg("stderr").arg("-p").arg(&directory).arg("-c").arg(&file);
        let mut function = Self::enter(slice, sandbox, command, address);
        function.wait();
        function
    }

    /// Starts any other program that listens on `PORT` and waits until it answers. `program` may say why it is not to be
    /// had here.
    #[allow(dead_code, reason = "the truth bench starts its functions by it")]
    pub fn start_program(
        slice: &Slice,
        name: &str,
        host: IpAddr,
        program: impl FnOnce(SocketAddr) -> Result<Command, String>,
    ) -> Result<Self, String> {
        let address = free_address(host);
        let mut command = program(address)?;
        command.env("PORT", address.port().to_string());
        let mut function = Self::enter(slice, slice.sandbox(name), command, address);
        function.wait();
        Ok(function)
    }

    fn enter(slice: &Slice, sandbox: Sandbox, mut command: Command, address: SocketAddr) -> Self {
        let log = slice.files().join(format!("{}.log", sandbox.name()));
        let file = File::create(&log).unwrap();
        command
            .env("K_SERVICE", sandbox.name())
            .env("HOME", slice.files())
            .current_dir(slice.files())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        let child = sandbox.spawn(&mut command);
        Self { sandbox, child, address, log }
    }

    /// The name of the function, which is also its sandbox's.
    pub fn name(&self) -> &str {
        self.sandbox.name()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client of this function, outside of every sandbox.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + START;
        let mut client = self.client();
        while !client.request("GET", "/ready", &[], b"").is_ok_and(|response| response.status == 200) {
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "{} ended at its start: {ended:?}\n{}", self.name(), log());
            assert!(Instant::now() < deadline, "{} does not answer\n{}", self.name(), log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.sandbox.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- what {} said:\n{log}", self.name());
        }
    }
}

/// The function in Go.
pub fn go_program() -> PathBuf {
    prepared(source().join(".cache/go/function"))
}

pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/functions").canonicalize().unwrap()
}

pub fn prepared(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `cargo xtask functions` first", path.display());
    path
}

fn url_host(host: IpAddr) -> String {
    match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    }
}

/// A loopback address on which nothing listens. The port is below the range from which the kernel gives ports to
/// outgoing connections, so none of the tests' own connections can take it before the function does.
pub fn free_address(host: IpAddr) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    let start = (std::process::id() % u32::from(COUNT / 64)) as u16 * 64;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(offset)) % COUNT;
        // Both families, on all addresses: one of the functions listens that way.
        let free = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free {
            return SocketAddr::new(host, port);
        }
    }
    panic!("no free port on loopback");
}
