//! `fntrace replay --input call-trees FILE… --score`: how right inference alone is, on traces whose truth is known.

use std::{io::Write, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::{Config, calltrees, score};

/// What the files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// A trace with true parents a line, gzip or plain.
    CallTrees,
}

/// Replay recorded traces through inference.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the files hold
    #[arg(long, value_enum)]
    pub input: Input,
    /// The files, gzip or plain
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Hide which invocation made which call, infer it from timing and order alone, and compare
    #[arg(long, required = true)]
    pub score: bool,
    /// Divide the gaps between the starts of traces by N, so that requests overlap as they do under load
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    pub compress: f64,
    /// Decide as soon as so many spans are waiting
    #[arg(long, value_name = "SPANS", default_value_t = 1 << 18)]
    pub window: usize,
    /// One JSON object per file
    #[arg(long)]
    pub json: bool,
}

/// What stands under the figures, so that nobody compares them with other figures unawares.
const NOTE: &str = "\
Whole traces are right if every edge within every service is, none told beforehand. Published figures for these files
count fewer: calls to another service, of services that are called from one place only; \"of published edges\" is that.
TraceWeaver (hotel-25 99.8, hotel-75 99.0, media-25 97.0) is handed the call graph; here it is learned from the file.
The node files hardly overlap: they are a sanity check.
";

#[derive(Debug, Serialize)]
struct Line<'a> {
    fntrace: u8,
    #[serde(rename = "type")]
    kind: &'a str,
    file: String,
    compress: f64,
    #[serde(flatten)]
    score: &'a score::Score,
}

/// Scores each file and prints the result.
///
/// # Errors
///
/// If a file cannot be read, or the output not be written.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(args.compress.is_finite() && args.compress > 0.0, "--compress takes a number above 0");
    let options = score::Options { config: Config::default(), window: args.window, ..score::Options::default() };
    for path in &args.files {
        let mut traces = calltrees::read(path)?;
        calltrees::compress(&mut traces, args.compress);
        let score = score::score(&traces, &options);
        let written = if args.json {
            let file = path.display().to_string();
            let line = Line { fntrace: 1, kind: "score", file, compress: args.compress, score: &score };
            serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from).and_then(|()| writeln!(out))
        } else {
            writeln!(out, "{}, compressed {} times", path.display(), args.compress)
                .and_then(|()| writeln!(out, "{score}"))
        };
        written.context("cannot write the score")?;
    }
    if !args.json {
        write!(out, "{NOTE}").context("cannot write the score")?;
    }
    Ok(())
}
