//! What a user would take instead: OpenTelemetry's auto-instrumentation for Node.js and Python, and a collector that throws
//! away what it gets.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::pair::Kind;

/// As of November 2026.
const PACKAGES: [&str; 2] = ["@opentelemetry/api@1.9.1", "@opentelemetry/auto-instrumentations-node@0.81.2"];

/// Takes OTLP over HTTP on loopback.
pub struct Collector {
    port: u16,
    /// Where Node.js's instrumentation lies.
    modules: Option<PathBuf>,
    bytes: Arc<AtomicU64>,
}

impl Collector {
    /// Starts it.
    pub fn start(root: &Path, kind: Kind) -> Result<Self> {
        let modules = if kind == Kind::Node { Some(Self::modules(root)?) } else { None };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let port = listener.local_addr()?.port();
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = Arc::clone(&counter);
                thread::spawn(move || {
                    // A client that goes away ends it.
                    let _ = swallow(stream, &counter);
                });
            }
        });
        Ok(Self { port, modules, bytes })
    }

    /// Installs the packages on the first time.
    fn modules(root: &Path) -> Result<PathBuf> {
        let directory = root.join("target/bench-opentelemetry");
        let modules = directory.join("node_modules");
        if !modules.join("@opentelemetry/auto-instrumentations-node").exists() {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
            crate::command::run(
                Command::new("npm")
                    .args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix"])
                    .arg(&directory)
                    .args(PACKAGES),
            )?;
        }
        Ok(modules)
    }

    /// What makes a server instrument itself and send here, all else as it is by default (for Python
    /// over HTTP, not gRPC).
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            // Traces only, as the agent's.
            ("OTEL_METRICS_EXPORTER", "none".to_owned()),
            ("OTEL_LOGS_EXPORTER", "none".to_owned()),
            // Not 5 s, so that some of it falls into a second of load; Node.js exports sooner by itself.
            ("OTEL_BSP_SCHEDULE_DELAY", "1000".to_owned()),
        ];
        match &self.modules {
            Some(modules) => {
                // By its file: a path, unlike a package's name, is not looked up in the package's exports.
                let register = modules.join("@opentelemetry/auto-instrumentations-node/build/src/register.js");
                environment.push(("NODE_OPTIONS", format!("--require {}", register.display())));
                // Not those that ask a cloud's metadata service: nothing is to leave this host, and spans wait for them.
                environment.push(("OTEL_NODE_RESOURCE_DETECTORS", "env,host,os,process".to_owned()));
            }
            None => environment.push(("OTEL_TRACES_EXPORTER", "otlp_proto_http".to_owned())),
        }
        environment
    }

    /// Whether anything came.
    pub fn stop(self) -> Result<()> {
        ensure!(self.bytes.load(Ordering::Relaxed) > 0, "the instrumentation exported nothing");
        Ok(())
    }
}

/// Reads requests, whose bodies have a length or come in chunks, and answers each.
fn swallow(stream: TcpStream, counter: &AtomicU64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            is_chunked |= line.starts_with("transfer-encoding:") && line.ends_with("chunked");
        }
        loop {
            if is_chunked {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                length = usize::from_str_radix(line.trim_end(), 16).unwrap_or(0);
            }
            // With the line's end that closes a chunk, also the last, which is empty.
            body.resize(length + if is_chunked { 2 } else { 0 }, 0);
            reader.read_exact(&mut body)?;
            counter.fetch_add(length as u64, Ordering::Relaxed);
            if !is_chunked || length == 0 {
                break;
            }
        }
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}
