//! Where finished paths go: one module for each form of output.

pub mod ndjson;
pub mod otlp;
pub mod stats;
pub mod tree;

use std::io::{self, Write};

use crate::{forecast, path::Line};
use ndjson::Ndjson;
use stats::Stats;
use tree::{Look, Tree};

/// The forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: a tree with a waterfall for each path.
    Tree(Look),
    /// For programs: one JSON object a line.
    Ndjson,
    /// For OpenTelemetry: one export request a line. Nothing else is on standard output then: counts go to standard error.
    OtlpJson,
}

/// Writes lines in the form that was chosen. Errors of the writer come back as they are, so that the caller can tell a
/// reader that went away (`BrokenPipe`). Flushing is the caller's: it knows when there is nothing more to write.
#[derive(Debug)]
pub enum Sink<W> {
    /// See [`Format::Tree`].
    Tree(Tree<W>),
    /// See [`Format::Ndjson`].
    Ndjson(Ndjson<W>),
    /// See [`Format::OtlpJson`].
    OtlpJson(Ndjson<W>),
}

impl<W: Write> Sink<W> {
    /// A sink onto `writer`.
    pub fn new(format: Format, writer: W) -> Self {
        match format {
            Format::Tree(look) => Self::Tree(Tree::new(writer, look)),
            Format::Ndjson => Self::Ndjson(Ndjson::new(writer)),
            Format::OtlpJson => Self::OtlpJson(Ndjson::new(writer)),
        }
    }

    /// Writes a path or a part.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::Tree(sink) => sink.line(line),
            Self::Ndjson(sink) => sink.object(line),
            Self::OtlpJson(sink) => sink.object(&otlp::Request(line)),
        }
    }

    /// Writes a line of counts.
    pub fn stats(&mut self, stats: &Stats<'_>) -> io::Result<()> {
        match self {
            Self::Tree(sink) => sink.stats(stats),
            Self::Ndjson(sink) => sink.object(stats),
            Self::OtlpJson(_) => {
                eprintln!("fntrace: {stats}");
                Ok(())
            }
        }
    }

    /// Writes a forecast, for which OpenTelemetry has no form.
    pub fn forecast(&mut self, line: &forecast::Line) -> io::Result<()> {
        match self {
            Self::Tree(sink) => sink.forecast(line),
            Self::Ndjson(sink) => sink.object(line),
            Self::OtlpJson(_) => Ok(()),
        }
    }

    /// Flushes the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tree(sink) => sink.flush(),
            Self::Ndjson(sink) | Self::OtlpJson(sink) => sink.flush(),
        }
    }
}
