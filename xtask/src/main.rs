//! Set up, build, demo, test, bench: all that a fresh machine with Rust's ordinary toolchain needs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod bench;
mod command;
mod edges;
mod functions;
mod fuzz;
mod golang;
mod setup;
mod test;
mod vm;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set up, build, demo, test, bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the kernel half is built with: a compiler with the source of `core`, and bpf-linker
    Setup,
    /// Set up, build, and run `fntrace demo`; what follows `--` goes to it
    Demo {
        /// Arguments for `fntrace demo`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Set up, and run every check and test; needs root, for the tests that load programs into the kernel
    Test {
        /// Leave out what runs longer than a minute: for a quick look between two edits
        #[arg(long)]
        quick: bool,
        /// Only, and instead of all else: boot Debian's kernels (5.10, 6.1, 6.12 and the newest of its backports) in QEMU,
        /// and run the agent on each. Needs Debian or its kin, and the network once; takes some minutes
        #[arg(long, conflicts_with = "quick")]
        vm: bool,
    },
    /// Send random sequences of requests in every way that Linux has, without and with the agent, and compare every byte
    Torture {
        /// For how long, after the seeds that are always the same
        #[arg(long, default_value_t = 60, conflicts_with = "seed")]
        minutes: u64,
        /// Only this one, and print its plan
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Measure what the agent costs, as ratios within one run, and print Markdown; needs root and a quiet machine
    Bench(bench::BenchArgs),
    /// Trace real frameworks under load and hold every edge against the truth; prints a table, as Markdown. Exit status 1
    /// if an edge is wrong under a rule that is exact (header, exclusive, thread)
    Edges(edges::Options),
    /// Set up what takes minutes to build (Knative's queue-proxy, aws-lambda-ric), and run all tests of the platforms' own
    /// shapes: runtime APIs that are polled, watchdogs, sidecars
    Platforms,
    /// Fuzz the parsers under libFuzzer; needs a C++ compiler
    Fuzz {
        /// For how long, shared between the targets
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
    },
    /// Install and build what the functions of the end-to-end tests need
    #[command(hide = true)]
    Functions,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let root = root()?;
    match cli.task {
        Task::Setup => setup::prepare(),
        Task::Demo { arguments } => demo(&root, &arguments),
        Task::Test { vm: true, .. } => vm::test(&root),
        Task::Test { quick, .. } => test::all(&root, quick),
        Task::Torture { minutes, seed } => test::torture(&root, minutes, seed),
        Task::Bench(args) => bench::bench(&root, &args),
        Task::Edges(options) => edges::all(&root, &options),
        Task::Platforms => test::platforms(&root),
        Task::Fuzz { minutes, target } => fuzz::all(&root, minutes, target.as_deref()),
        Task::Functions => functions::prepare(&root),
    }
}

fn demo(root: &Path, arguments: &[String]) -> Result<()> {
    setup::prepare()?;
    command::run(command::cargo(root).args(["build", "--release", "--package", "tracer-user", "--bin", "fntrace"]))?;
    let fntrace = root.join("target/release/fntrace");
    // Takes this process's place, so that Ctrl-C and the exit status are the demo's own.
    let error =
        std::os::unix::process::CommandExt::exec(std::process::Command::new(&fntrace).arg("demo").args(arguments));
    Err(error).with_context(|| format!("run {}", fntrace.display()))
}

/// The top of the work tree.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not inside the workspace")?.to_owned())
}
