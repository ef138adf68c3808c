//! `fntrace replay --input call-trees FILE… --score`: how right inference alone is, on traces whose truth is known.

use std::{io::Write, path::PathBuf};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::{Config, calltrees, score};

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The gaps between the starts of traces are divided by this.
    pub compress: f64,
    /// It is decided as soon as so many spans are waiting.
    pub window: usize,
    /// One JSON object per file.
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
pub fn score(files: &[PathBuf], options: &Options, out: &mut dyn Write) -> anyhow::Result<()> {
    let Options { compress, window, json } = *options;
    ensure!(compress.is_finite() && compress > 0.0, "--compress takes a number above 0");
    let options = score::Options { config: Config::default(), window, ..score::Options::default() };
    for path in files {
        let mut traces = calltrees::read(path)?;
        calltrees::compress(&mut traces, compress);
        let score = score::score(&traces, &options);
        let written = if json {
            let file = path.display().to_string();
            let line = Line { fntrace: 1, kind: "score", file, compress, score: &score };
            serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from).and_then(|()| writeln!(out))
        } else {
            writeln!(out, "{}, compressed {compress} times", path.display()).and_then(|()| writeln!(out, "{score}"))
        };
        written.context("cannot write the score")?;
    }
    if !json {
        write!(out, "{NOTE}").context("cannot write the score")?;
    }
    Ok(())
}
