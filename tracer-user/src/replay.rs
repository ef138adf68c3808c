//! `fntrace replay FILE…`: what was recorded, once more.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    infer, input, recording,
    run::{self, Refusal},
    sink::{Sink, stats::Stats},
};

/// What the files hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// What `fntrace run --record FILE` wrote: the paths come out as they did.
    #[default]
    Recording,
    /// A trace with true parents a line. Takes --score.
    CallTrees,
}

/// Replay recorded runs, or score inference on recorded traces.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the files hold
    #[arg(long, value_enum, default_value_t = Input::Recording)]
    pub input: Input,
    /// The files, gzip or plain
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Form of the output, of recordings [default: tree on a terminal, ndjson otherwise]
    #[arg(long, value_enum)]
    pub format: Option<run::Format>,
    /// Of call trees: hide which invocation made which call, infer it from timing and order alone, and compare
    #[arg(long)]
    pub score: bool,
    /// Divide the gaps between the starts of traces by N, so that requests overlap as they do under load
    #[arg(long, value_name = "N", default_value_t = 1.0, requires = "score")]
    pub compress: f64,
    /// Decide as soon as so many spans are waiting
    #[arg(long, value_name = "SPANS", default_value_t = 1 << 18, requires = "score")]
    pub window: usize,
    /// One JSON object per file
    #[arg(long, requires = "score")]
    pub json: bool,
}

/// Replays each file.
///
/// # Errors
///
/// If a file cannot be read, ends in the midst of a run (what it holds is printed all the same), or the output not be
/// written; if what is asked for does not go together.
pub fn run(args: &Args) -> Result<()> {
    if args.score != (args.input == Input::CallTrees) {
        let remedy = "--input call-trees and --score go together; a recording of `fntrace run --record` takes neither";
        return Err(Refusal::Usage(remedy.to_owned()).into());
    }
    if args.score {
        let options = infer::cli::Options { compress: args.compress, window: args.window, json: args.json };
        return infer::cli::score(&args.files, &options, &mut std::io::stdout().lock());
    }
    let mut sink = Sink::new(run::form(args.format), std::io::stdout().lock());
    for file in &args.files {
        recorded(file, &mut sink).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn recorded<W: Write>(file: &Path, sink: &mut Sink<W>) -> Result<()> {
    let replayed = recording::replay(input::open(file)?, |line| sink.line(line))?;
    // What the kernel half counted is not in the recording.
    let stats = Stats { totals: &replayed.totals, kernel: &[], kernel_tags: &[], governor: None };
    sink.stats(&stats)?;
    sink.flush()?;
    ensure!(!replayed.is_cut, "the recording ends in the midst of the run: the agent was killed, or the disk was full");
    Ok(())
}
