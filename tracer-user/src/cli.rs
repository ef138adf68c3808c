//! The command line.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::{
    cgroup::Mount,
    demo::{self, DemoArgs, Tracing},
    doctor, forecast, profile, replay,
    run::{self, Output, Refusal, RunArgs, Tagging},
};

/// Traces the calls between functions on a FaaS worker host, in the kernel, with no change to any code.
#[derive(Debug, Parser)]
#[command(name = "fntrace", version, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Examples:
  fntrace demo                              sample functions, traced: start here
  fntrace doctor                            what this host supports, and the remedies
  fntrace run --cgroup /fns                 trace every function below a cgroup
  fntrace run --cgroup '/kubepods.slice/*/*' --format ndjson | jq .
  fntrace run --cgroup /fns --record FILE   keep all that was seen; `fntrace replay FILE` prints it again

Exit status: 0 done, 1 failed while running, 2 usage, 3 this host cannot run it.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Attach to sandboxes, tag the calls between them and stream call paths
    Run(RunArgs),
    /// Start a small shop of functions in sandboxes of their own, and trace it
    Demo {
        #[command(flatten)]
        demo: DemoArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Say what this host supports, what the agent will do here, and the remedy for what is missing
    Doctor {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Make profiles of functions from call paths: where the time goes, and what to change
    Profile(profile::cli::Args),
    /// Forecast the calls to come
    Forecast {
        #[command(subcommand)]
        what: Forecast,
    },
    /// Print the paths of a recorded run once more, or score the inference of who made which call
    Replay(replay::Args),
    /// A function of the demo's shop
    #[command(hide = true)]
    DemoFunction {
        /// Which
        name: String,
    },
}

/// What `fntrace forecast` does.
#[derive(Debug, Subcommand)]
enum Forecast {
    /// Learn from the first part of recorded paths, forecast the rest, and score that beside baselines
    Eval(forecast::cli::EvalArgs),
}

/// Runs the command line that this process was given.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the kernel half logs; it is read only with --verbose.
    env_logger::Builder::new().filter_module("fntrace_bpf", log::LevelFilter::Debug).init();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fntrace: {error:#}");
            error.downcast_ref::<Refusal>().map_or(ExitCode::FAILURE, Refusal::exit_code)
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => single_threaded()?.block_on(run::run(&args)).map(|()| ExitCode::SUCCESS),
        Command::Demo { demo, output } => {
            single_threaded()?.block_on(run_demo(&demo, output)).map(|()| ExitCode::SUCCESS)
        }
        Command::Doctor { json } => Ok(doctor::run(json)?),
        Command::Profile(args) => profile::cli::run(&args),
        Command::Forecast { what: Forecast::Eval(args) } => {
            quiet(forecast::cli::run(&args, &mut std::io::stdout().lock()))
        }
        Command::Replay(args) => quiet(replay::run(&args)),
        Command::DemoFunction { name } => {
            single_threaded()?.block_on(demo::serve_function(&name)).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// A reader that has seen enough is no failure.
fn quiet(result: Result<()>) -> Result<ExitCode> {
    match result {
        Err(error) if run::is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// One thread: the agent must not take more of the host than it needs.
fn single_threaded() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

async fn run_demo(args: &DemoArgs, mut output: Output) -> Result<()> {
    if output.tag == Tagging::Auto {
        // How the shop's functions read is known: no way that a repaired socket breaks.
        output.tag = Tagging::On;
    }
    if let Some(refusal) = doctor::checks().refusal() {
        return Err(Refusal::Host(refusal).into());
    }
    if args.containers {
        demo::runc_answers().map_err(|error| Refusal::Host(format!("{error:#}")))?;
    }
    let mount = Mount::find().map_err(|error| Refusal::Host(format!("{error:#}")))?;
    demo::demo(args, &mount.point, async |tracing: Tracing| {
        let Tracing { slice, ready, stop } = tracing;
        let cgroup = slice.to_str().context("the cgroup's path is not UTF-8")?.to_owned();
        let args = RunArgs {
            cgroups: vec![cgroup],
            discover_below: String::new(),
            names: Vec::new(),
            output,
            go_uprobes: false,
            floor: false,
            map_entries: Vec::new(),
        };
        let ready = || {
            let _ = ready.send(());
        };
        run::trace(&args, ready, async {
            let _ = stop.await;
        })
        .await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
