//! What is measured: the runtimes, and what each is asked to do.

use std::{
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
    pub const ALL: [Self; 10] = [Seq, Par, Errgroup, Timer, Pool, After, Retry, Stream, Fresh, Proxy];

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
    /// nginx, which passes each request on to the callee.
    Nginx,
}

/// All of them, in the order of the table.
pub const ALL: &[Runtime] = &[
    Runtime {
        name: "go net/http",
        shapes: &[Seq, Par, Errgroup, Timer, Pool, After, Retry, Stream, Fresh],
        start: Start::Program(go),
    },
    Runtime { name: "nginx", shapes: &[Proxy], start: Start::Nginx },
];

/// Those of the bounded form.
pub const BOUNDED: [&str; 2] = ["go net/http", "nginx"];

fn go(address: SocketAddr) -> Result<Command, String> {
    let mut command = Command::new(prepared("edges/go/function"));
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
