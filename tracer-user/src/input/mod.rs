//! Recorded paths as they come from files and standard input: what `profile` and `forecast` read.
//!
//! One line is one path, in one of three formats, plain or gzip (told apart by the first two bytes, not by the name).
//! A stream is untrusted: a line that cannot be read is handed to the caller's report with its number and passed over,
//! a line that does not end is cut off at [`MAX_LINE`], and nothing is kept from one line to the next.

mod call_trees;
mod faas_chains;
pub mod paths;
mod tree;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;

use crate::{path::Line, text::harmless};

/// The longest line of a path that is read, in bytes. A longer one is reported and passed over.
pub const MAX_LINE: usize = 16 << 20;

/// What a line holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `fntrace run --format ndjson`.
    #[default]
    Paths,
    /// `{"spans":[{id, parent, service, op, kind, start_us, duration_us}]}`.
    CallTrees,
    /// `{"calls":[{t, fn, wait, init}]}`, t, wait and init in ms.
    FaasChains,
}

/// A call path as a sequence: its calls, in order of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Sorted by [`Call::at_us`]; the first is the root.
    pub calls: Vec<Call>,
}

/// A call to a function or to an external service, or the root invocation as the call that caused it.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// When the call was made, in µs since 1970.
    pub at_us: i64,
    /// The function or service that was called.
    pub callee: Arc<str>,
    /// The call in whose invocation this one was made: an index into [`Trace::calls`], smaller than the call's own.
    /// `None` for the root, and where the format does not tell.
    pub caller: Option<u32>,
    /// No invocation is known to have come of it.
    pub external: bool,
    /// When the callee's sandbox began to work on it, in µs since 1970.
    pub started_us: Option<i64>,
    /// When the callee had answered, in µs since 1970.
    pub served_us: Option<i64>,
    /// When the answer was there, in µs since 1970.
    pub ended_us: Option<i64>,
    /// Whether the sandbox had to be made for it.
    pub cold: Option<bool>,
}

impl Trace {
    /// Puts the calls in order of time. Callers that turn out not to lie before their call are forgotten.
    fn sorted(mut calls: Vec<Call>) -> Self {
        if !calls.is_sorted_by_key(|call| call.at_us) {
            let mut order: Vec<u32> = (0..calls.len() as u32).collect();
            order.sort_by_key(|&index| calls[index as usize].at_us);
            let mut place = vec![0_u32; calls.len()];
            for (now, &before) in order.iter().enumerate() {
                place[before as usize] = now as u32;
            }
            for call in &mut calls {
                call.caller = call.caller.and_then(|caller| place.get(caller as usize).copied());
            }
            calls.sort_by_key(|call| call.at_us);
        }
        for (index, call) in calls.iter_mut().enumerate() {
            call.caller = call.caller.filter(|&caller| (caller as usize) < index);
        }
        Self { calls }
    }
}

/// Opens a file, or standard input for `-`.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let plain: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    decompress(BufReader::with_capacity(1 << 16, plain))
}

/// Undoes gzip if the stream begins with its magic.
fn decompress(mut plain: BufReader<Box<dyn Read>>) -> io::Result<Box<dyn BufRead>> {
    let head = plain.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(plain))))
    } else {
        Ok(Box::new(plain))
    }
}

/// Hands each line to `line` with its number, counting from 1; empty lines are passed over. A line that `line` refuses,
/// that is longer than `longest` bytes or not UTF-8 goes to `broken` with the reason. So does an error of the reader (a truncated gzip
/// stream), which ends the reading: what came before it counts.
pub fn lines(
    mut reader: impl BufRead,
    longest: usize,
    mut line: impl FnMut(u64, &str) -> Result<(), String>,
    mut broken: impl FnMut(u64, &str),
) {
    let mut buffer = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        buffer.clear();
        let read = match (&mut reader).take(longest as u64 + 1).read_until(b'\n', &mut buffer) {
            Ok(read) => read,
            Err(error) => return broken(number, &format!("reading ends here: {error}")),
        };
        if read == 0 {
            return;
        }
        if read > longest && buffer.last() != Some(&b'\n') {
            broken(number, &format!("the line is longer than {} MiB", longest >> 20));
            if let Err(error) = reader.skip_until(b'\n') {
                return broken(number, &format!("reading ends here: {error}"));
            }
            continue;
        }
        let Ok(text) = std::str::from_utf8(&buffer) else {
            broken(number, "the line is not UTF-8");
            continue;
        };
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        if let Err(error) = line(number, text) {
            broken(number, &error);
        }
    }
}

/// Tells of the lines of a stream that were passed over, the first of them each for itself.
#[derive(Debug)]
pub struct Broken<'a> {
    stream: &'a str,
    lines: u64,
}

impl<'a> Broken<'a> {
    /// Broken lines that are told each for itself.
    const TOLD: u64 = 20;

    /// Of none yet. `stream` is what the stream is called.
    pub fn of(stream: &'a str) -> Self {
        Self { stream, lines: 0 }
    }

    /// Takes one in.
    pub fn line(&mut self, errors: &mut dyn Write, number: u64, reason: &str) {
        self.lines += 1;
        if self.lines <= Self::TOLD {
            // Who reads on although nobody reads the errors is right to.
            let _ = writeln!(errors, "{}: line {number} passed over: {}", self.stream, harmless(reason, 200));
        }
    }

    /// Says how many they were, if that was not told yet.
    pub fn end(&self, errors: &mut dyn Write) {
        if self.lines > Self::TOLD {
            let _ = writeln!(errors, "{}: {} lines passed over", self.stream, self.lines);
        }
    }
}

/// Hands each path of a stream to `each`, as a sequence of calls. See [`lines`].
pub fn traces(reader: impl BufRead, format: Format, mut each: impl FnMut(u64, Trace), broken: impl FnMut(u64, &str)) {
    lines(
        reader,
        MAX_LINE,
        |number, text| {
            let trace = match format {
                Format::Paths => paths::trace(text)?,
                Format::CallTrees => Some(call_trees::trace(text)?),
                Format::FaasChains => Some(faas_chains::trace(text)?),
            };
            if let Some(trace) = trace.filter(|trace| !trace.calls.is_empty()) {
                each(number, trace);
            }
            Ok(())
        },
        broken,
    );
}

/// Reads a line as a path. `None` for one that holds none. Formats without ids get trace ids from the line's number.
pub fn line(text: &str, number: u64, format: Format) -> Result<Option<Line>, String> {
    let trace = match format {
        Format::Paths => return paths::line(text),
        Format::CallTrees => call_trees::trace(text)?,
        Format::FaasChains => faas_chains::trace(text)?,
    };
    Ok(tree::path(&trace, number).map(Line::Path))
}

#[cfg(test)]
mod tests;
