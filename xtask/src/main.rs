//! Set up, build, demo, test.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod functions;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set up, build, demo, test")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install and build what the functions of the end-to-end tests need
    #[command(hide = true)]
    Functions,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match cli.task {
        Task::Functions => functions::prepare(&root()?),
    }
}

/// The top of the work tree.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask is not inside the workspace")?.to_owned())
}
