//! `fntrace profile`: paths in, a profile out.

use std::{
    io::{self, BufRead, BufWriter, IsTerminal, Write},
    path::{Path as FilePath, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::{
    Profile,
    bounded::Merge,
    compare::compare,
    findings::findings,
    form::{Format, Look, Report},
    late::Late,
};
use crate::{
    input::{self, Broken},
    path::Line,
};

/// Makes a profile of call paths: where the time goes, and what to change.
///
/// Reads what `fntrace run` writes (ndjson), or profiles that were written with `--format json`, which it merges.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Files to read; `-` is standard input, which is also read if there is none.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What a line of the files holds; plain or gzip.
    #[arg(long, value_enum, default_value_t)]
    input: input::Format,
    /// The form of the output.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Compare with this file: what got slower, what appeared, what vanished.
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
    /// Rows of each table, boxes of each graph.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Write to this file instead of standard output; it is replaced whole.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Whether to write colours.
    #[arg(long, value_enum, default_value_t)]
    color: Color,
}

/// When to write colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Does it. Broken lines are reported on `errors` and passed over.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut errors = io::stderr().lock();
    let stdin = PathBuf::from("-");
    let files = if args.files.is_empty() { std::slice::from_ref(&stdin) } else { &args.files };
    let mut profile = Profile::default();
    for file in files {
        read(&mut profile, file, args.input, &mut errors)?;
    }
    let changes = match &args.against {
        Some(file) => {
            let mut old = Profile::default();
            read(&mut old, file, args.input, &mut errors)?;
            Some(compare(&old, &profile))
        }
        None => None,
    };
    let findings = findings(&profile);
    let report = Report { profile: &profile, findings: &findings, changes: changes.as_deref() };
    let terminal = args.output.is_none() && io::stdout().is_terminal();
    let colour = match args.color {
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        Color::Always => true,
        Color::Never => false,
    };
    let look = Look { top: args.top, colour, ..Look::default() };
    if let Some(file) = &args.output {
        super::write_atomically(file, |out| report.write(args.format, look, out))
            .with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    match report.write(args.format, look, &mut out).and_then(|()| out.flush()) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS).context("cannot write the profile"),
    }
}

fn read(profile: &mut Profile, file: &FilePath, format: input::Format, errors: &mut dyn Write) -> anyhow::Result<()> {
    let stdin = file.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
    let reader = input::open(file).with_context(|| format!("cannot open {name}"))?;
    read_lines(profile, reader, format, &name, errors);
    Ok(())
}

/// Longest line: a profile's may be longer than any path's.
const LINE_MAX: usize = 256 << 20;

/// Reads lines of paths and profiles into `profile`, and tells `errors` of those that are neither. So is a stream told of
/// that breaks off: what came before counts.
pub fn read_lines(
    profile: &mut Profile,
    reader: impl BufRead,
    format: input::Format,
    name: &str,
    errors: &mut dyn Write,
) {
    let mut late = Late::default();
    let mut broken = Broken::of(name);
    input::lines(
        reader,
        LINE_MAX,
        |number, text| read_line(profile, &mut late, text, number, format),
        |number, reason| broken.line(errors, number, reason),
    );
    late.finish(profile);
    broken.end(errors);
}

fn read_line(
    profile: &mut Profile,
    late: &mut Late,
    text: &str,
    number: u64,
    format: input::Format,
) -> Result<(), String> {
    match input::line(text, number, format)? {
        // In other formats nothing comes late.
        Some(Line::Path(path)) if format != input::Format::Paths => profile.add(&path),
        Some(line) => late.line(profile, line),
        // `Line` knows no profiles, and those of other programs' lines that look like one are rare enough to be parsed.
        None if text.contains(r#""type":"profile""#) => {
            profile.merge(serde_json::from_str(text).map_err(|error| error.to_string())?);
        }
        None => {}
    }
    Ok(())
}
