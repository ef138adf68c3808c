//! `cargo xtask bench`: what the agent costs, as ratios within one run.
//!
//! Machines differ and small shared ones differ from themselves by the minute, so nothing here is an absolute figure:
//! each mode is measured in every round, the rounds interleave the modes, and what is reported is the median of the
//! ratios to the untraced run of the same round, with their spread.

mod agent;
mod host;
mod load;
mod machine;
mod otel;
mod pair;
mod programs;
mod sandbox;
mod table;
mod traffic;
mod user;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::{command, setup};

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// What to measure
    #[arg(long = "part", value_enum, default_values_t = [Part::Host, Part::User, Part::Programs, Part::Traffic])]
    parts: Vec<Part>,
    /// Between which servers
    #[arg(long = "pair", value_enum, default_values_t = [pair::Kind::Nginx, pair::Kind::Node, pair::Kind::Go, pair::Kind::Python])]
    pairs: Vec<pair::Kind>,
    /// On how many cores
    #[arg(long = "cores", value_parser = clap::value_parser!(u8).range(1..=2), default_values_t = [1, 2])]
    cores: Vec<u8>,
    /// Interleaved rounds; a median wants seven
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of load for each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Another agent than the one that is built here
    #[arg(long)]
    fntrace: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput, latency and processor time of traced servers, mode by mode
    Traffic,
    /// Each program of the kernel half: runs, ns per run, verified instructions
    Programs,
    /// What those pay that are in no sandbox
    Host,
    /// The user half: assembly, memory, start-up, size
    User,
}

/// Measures, and prints the results as Markdown.
///
/// # Errors
///
/// If something is missing or a mode did not do what it is named after: that would be no measurement.
pub fn bench(root: &Path, args: &BenchArgs) -> Result<()> {
    setup::prepare()?;
    machine()?;
    let fntrace = match &args.fntrace {
        Some(other) => other.clone(),
        None => {
            let build = ["build", "--release", "--package", "tracer-user", "--bin", "fntrace"];
            command::run(command::cargo(root).args(build))?;
            root.join("target/release/fntrace")
        }
    };
    println!("{}", machine::describe()?);
    for part in &args.parts {
        match part {
            Part::Host => host::measure(&fntrace, args.rounds)?,
            Part::User => user::measure(root, &fntrace, args.rounds)?,
            Part::Programs => {
                for kind in &args.pairs {
                    programs::measure(root, &fntrace, *kind, args.seconds)?;
                }
            }
            Part::Traffic => {
                for (kind, cores) in
                    args.pairs.iter().flat_map(|kind| args.cores.iter().map(move |cores| (kind, cores)))
                {
                    traffic::measure(root, &fntrace, *kind, *cores, args.rounds, args.seconds)?;
                }
            }
        }
    }
    Ok(())
}

/// Sees that what makes the load is there.
fn machine() -> Result<()> {
    let wanted = [("wrk", "wrk"), ("nginx", "nginx-light"), ("node", "nodejs"), ("go", "golang-go")];
    let missing: Vec<_> =
        wanted.iter().filter(|(program, _)| command::find(program).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        command::install(&missing)?;
    }
    ensure!(command::answers(Command::new("taskset").arg("--version")), "taskset is missing (package util-linux)");
    Ok(())
}
