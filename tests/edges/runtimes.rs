//! What is measured: the runtimes, and what each is asked to do.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

/// What one invocation does; tests/functions/edges/README.md has the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    Seq,
    Par,
    Errgroup,
    Timer,
    Pool,
    After,
    Retry,
    Stream,
    Fresh,
    Proxy,
}

use Shape::{After, Errgroup, Fresh, Par, Pool, Proxy, Retry, Seq, Stream, Timer};

impl Shape {
    /// As the functions know it.
    pub fn name(self) -> &'static str {
        match self {
            Seq => "seq",
            Par => "par",
            Errgroup => "errgroup",
            Timer => "timer",
            Pool => "pool",
            After => "after",
            Retry => "retry",
            Stream => "stream",
            Fresh => "fresh",
            Proxy => "proxy",
        }
    }

    /// How many calls it makes.
    pub fn calls(self) -> usize {
        match self {
            Par | Errgroup => 4,
            Seq | Stream => 3,
            Timer | Pool | After | Retry | Fresh => 2,
            Proxy => 1,
        }
    }
}

/// A function in one framework.
#[derive(Debug)]
pub struct Runtime {
    pub name: &'static str,
    pub shapes: &'static [Shape],
    pub start: Start,
}

#[derive(Debug)]
pub enum Start {
    /// What is to be run, without PORT and CALLEE in its environment. It may say why it cannot be run here.
    Program(fn(SocketAddr) -> Result<Command, String>),
    /// The same, and the agent has `--go-uprobes`.
    Probed(fn(SocketAddr) -> Result<Command, String>),
    /// nginx, which passes each request on to the callee.
    Nginx,
}

/// All of them, in the order of the table. `After` is the last shape of each: once a function has called while nobody was
/// live, the agent trusts it less.
pub const ALL: &[Runtime] = &[
    Runtime {
        name: "Python functions-framework, gunicorn threads, requests",
        shapes: &[Seq, Par, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(python_threads),
    },
    Runtime {
        name: "Python gunicorn prefork, requests",
        shapes: &[Seq, Par, Timer, Retry, Stream, Fresh],
        start: Start::Program(python_prefork),
    },
    Runtime {
        name: "Python FastAPI, uvicorn, httpx",
        shapes: &[Seq, Par, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(python_fast),
    },
    Runtime {
        name: "Python aiohttp",
        shapes: &[Seq, Par, Timer, Retry, Stream, Fresh, After],
        start: Start::Program(python_loop),
    },
    Runtime {
        name: "Node.js functions-framework, fetch",
        shapes: &[Seq, Par, Timer, Retry, Stream, Fresh, After],
        start: Start::Program(node_framework),
    },
    Runtime {
        name: "Node.js http, keep-alive agent",
        shapes: &[Seq, Par, Timer, Retry, Stream, Fresh, After],
        start: Start::Program(node_http),
    },
    Runtime {
        name: "Go net/http",
        shapes: &[Seq, Par, Errgroup, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(go),
    },
    Runtime {
        name: "Go net/http, --go-uprobes",
        shapes: &[Seq, Par, Errgroup, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Probed(go),
    },
    Runtime {
        name: "Java HttpServer, 64 threads, java.net.http",
        shapes: &[Seq, Par, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(java_threads),
    },
    Runtime {
        name: "Java HttpServer, virtual threads, java.net.http",
        shapes: &[Seq, Par, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(java_virtual),
    },
    Runtime {
        name: "Rust axum, reqwest, tokio",
        shapes: &[Seq, Par, Timer, Pool, Retry, Stream, Fresh, After],
        start: Start::Program(rust),
    },
    Runtime { name: "nginx", shapes: &[Proxy], start: Start::Nginx },
];

/// Those of the bounded form: a thread per request, an event loop, goroutines, a proxy.
pub const BOUNDED: [&str; 4] = [ALL[0].name, ALL[4].name, ALL[6].name, ALL[ALL.len() - 1].name];

/// As many at once as the bench asks for.
const THREADS: &str = "64";

fn python_threads(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("python/venv/bin/functions-framework"));
    command.arg("--source").arg(source().join("edges/python/threads.py")).args(["--target", "handle"]);
    Ok(python(command, address))
}

fn python_prefork(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("python/venv/bin/gunicorn"));
    command.args(["--workers", "4", "--bind", &address.to_string(), "threads:wsgi"]);
    Ok(python(command, address))
}

fn python_fast(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("python/venv/bin/uvicorn"));
    command.args(["--no-access-log", "--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.arg("fast:app");
    Ok(python(command, address))
}

fn python_loop(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("python/venv/bin/python"));
    command.arg(source().join("edges/python/loop.py"));
    Ok(python(command, address))
}

fn python(mut command: Command, address: SocketAddr) -> Command {
    command.env("HOST", address.ip().to_string()).env("THREADS", THREADS);
    command.env("PYTHONPATH", source().join("edges/python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn node_framework(_: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new("node");
    command.arg(prepared("node/node_modules/@google-cloud/functions-framework/build/src/main.js"));
    // Its sources may only be a directory, whose package.json names the file.
    command.arg("--source").arg(source().join("edges/node")).args(["--target", "handle", "--signature-type", "http"]);
    command.env("NODE_ENV", "production");
    Ok(command)
}

fn node_http(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new("node");
    command.arg(source().join("edges/node/http.js"));
    command.env("HOST", address.ip().to_string()).env("NODE_ENV", "production");
    Ok(command)
}

fn go(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("edges/go/function"));
    command.env("HOST", address.ip().to_string());
    Ok(command)
}

fn java_threads(address: SocketAddr) -> Result<Command, String> {
    Ok(java("java".into(), "fixed", address))
}

fn java_virtual(address: SocketAddr) -> Result<Command, String> {
    let program = jdk().ok_or("no JDK of 21 or newer is here (on PATH, or in /usr/lib/jvm)")?;
    Ok(java(program, "virtual", address))
}

fn java(program: PathBuf, workers: &str, address: SocketAddr) -> Command {
    let mut command = Command::new(program);
    command.arg("-cp").arg(prepared("edges/java")).arg("Function");
    command.env("HOST", address.ip().to_string()).env("WORKERS", workers);
    command
}

/// A JVM that has virtual threads.
fn jdk() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let programs = installed.map(|entry| entry.path().join("bin/java")).filter(|program| program.exists());
    [PathBuf::from("java")].into_iter().chain(programs).find(|program| {
        // The first line is `openjdk version "25.0.3" …`, on standard error.
        let output = Command::new(program).arg("-version").output().ok();
        let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
        let version = said.split('"').nth(1).and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        version.is_some_and(|version| version >= 21)
    })
}

fn rust(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("edges/rust/release/fntrace-edges-function"));
    command.env("HOST", address.ip().to_string());
    Ok(command)
}

/// The callee of all: fast, and exact at any concurrency, because it calls nobody.
pub fn callee(address: SocketAddr) -> Command {
    let mut command = Command::new(prepared("edges/go/callee"));
    command.env("HOST", address.ip().to_string());
    command
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/functions").canonicalize().unwrap()
}

fn prepared(path: &str) -> PathBuf {
    let path = source().join(".cache").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask functions` first", path.display());
    path
}
