//! Two servers, the first of which calls the second for each request that it gets, over connections that it keeps.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use super::sandbox::Slice;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Nginx,
    Node,
    Go,
    Python,
}

/// What the Python servers run on, and OpenTelemetry for them. As of November 2026.
const PYTHON: [&str; 7] = [
    "flask==3.1.3",
    "gunicorn==27.0.1",
    "requests==2.34.2",
    "opentelemetry-distro==0.66b1",
    "opentelemetry-exporter-otlp-proto-http==1.45.1",
    "opentelemetry-instrumentation-flask==0.66b1",
    "opentelemetry-instrumentation-requests==0.66b1",
];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx → nginx",
            Self::Node => "Node.js → Node.js",
            Self::Go => "Go → Go",
            Self::Python => "Python → Python (Flask on gunicorn's threads, requests)",
        }
    }
}

/// A running pair. Both end when it is dropped.
pub struct Pair {
    children: Vec<Child>,
    /// The switches that end all that runs in the sandboxes: servers have children of their own.
    kill: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    files: PathBuf,
    front: u16,
}

impl Pair {
    /// Starts both on the processors that `cpus` names, and waits until they listen. No request is made: the first
    /// connection between the two is to come under the agent's eyes.
    pub fn start(root: &Path, slice: &Slice, kind: Kind, cpus: &str) -> Result<Self> {
        Self::start_with(root, slice, kind, cpus, &[])
    }

    /// The same with more in their environment.
    pub fn start_with(
        root: &Path,
        slice: &Slice,
        kind: Kind,
        cpus: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let files = std::env::temp_dir().join(format!("fntrace-bench-{}", std::process::id()));
        fs::create_dir_all(&files).with_context(|| format!("make {}", files.display()))?;
        let (front, back) = (free_port()?, free_port()?);
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let mut pair = Self { children: Vec::new(), kill: Vec::new(), environment, files, front };
        pair.server(root, slice, kind, cpus, "back", back, None)?;
        pair.server(root, slice, kind, cpus, "front", front, Some(back))?;
        for port in [back, front] {
            wait(port)?;
        }
        Ok(pair)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.front)
    }

    #[expect(clippy::too_many_arguments, reason = "where, what, and on what")]
    fn server(
        &mut self,
        root: &Path,
        slice: &Slice,
        kind: Kind,
        cpus: &str,
        name: &str,
        port: u16,
        upstream: Option<u16>,
    ) -> Result<()> {
        let servers = root.join("xtask/src/bench/servers");
        let mut command = Command::new("taskset");
        command.args(["-c", cpus]);
        match kind {
            Kind::Nginx => {
                let directory = self.files.join(format!("nginx-{name}"));
                fs::create_dir_all(&directory)?;
                let config = directory.join("nginx.conf");
                fs::write(&config, nginx(&directory, port, upstream))?;
                let program = crate::command::find("nginx").context("nginx is missing")?;
                command.arg(program).arg("-e").arg("stderr").arg("-p").arg(&directory).arg("-c").arg(&config);
            }
            Kind::Node => {
                command.arg("node").arg(servers.join("server.js"));
            }
            Kind::Go => {
                let program = self.files.join("go-server");
                if !program.exists() {
                    crate::command::run(
                        Command::new("go")
                            .args(["build", "-buildvcs=false", "-o"])
                            .arg(&program)
                            .arg("server.go")
                            .current_dir(&servers)
                            .env("GOTOOLCHAIN", "local"),
                    )?;
                }
                command.arg(program);
            }
            Kind::Python => {
                let programs = python(root)?.join("bin");
                if !self.environment.is_empty() {
                    command.arg(programs.join("opentelemetry-instrument"));
                }
                command.arg(programs.join("gunicorn")).args([
                    "--workers",
                    "1",
                    "--threads",
                    "16",
                    "--log-level",
                    "error",
                ]);
                command.arg("--bind").arg(format!("127.0.0.1:{port}")).arg("server:app").current_dir(&servers);
                command.env("PYTHONDONTWRITEBYTECODE", "1");
            }
        }
        command.env("PORT", port.to_string()).env("NODE_ENV", "production").stdin(Stdio::null()).stdout(Stdio::null());
        command.env("OTEL_SERVICE_NAME", name).envs(self.environment.iter().cloned());
        if let Some(upstream) = upstream {
            command.env("UPSTREAM", upstream.to_string());
        }
        self.kill.push(slice.make(name)?.join("cgroup.kill"));
        self.children.push(slice.spawn(name, &mut command)?);
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for kill in &self.kill {
            let _ = fs::write(kill, "1");
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An environment with [`PYTHON`] in it, made on the first time.
fn python(root: &Path) -> Result<PathBuf> {
    let environment = root.join("target/bench-python");
    let made = environment.join("made");
    if fs::read_to_string(&made).is_ok_and(|with| with == PYTHON.join("\n")) {
        return Ok(environment);
    }
    crate::command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    crate::command::run(Command::new(environment.join("bin/python")).args(pip).args(PYTHON))?;
    fs::write(&made, PYTHON.join("\n")).with_context(|| format!("write {}", made.display()))?;
    Ok(environment)
}

fn nginx(directory: &Path, port: u16, upstream: Option<u16>) -> String {
    let location = match upstream {
        Some(_) => "proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection \"\";",
        None => "return 200 \"hello from behind\\n\";",
    };
    let upstream = upstream.map_or_else(String::new, |port| {
        format!("upstream back {{ server 127.0.0.1:{port}; keepalive 64; keepalive_requests 1000000; }}")
    });
    let directory = directory.display();
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr error;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 10000000;\n\
           client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;\n\
           uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;\n\
           {upstream}\n\
           server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }} }}\n"
    )
}

/// A port on loopback that nothing has, below those that outgoing connections get.
fn free_port() -> Result<u16> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 200) as u16 * 50;
    for _ in 0..10_000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("::", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on loopback")
}

fn wait(port: u16) -> Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(begin.elapsed() < Duration::from_secs(20), "nothing listens on port {port}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
