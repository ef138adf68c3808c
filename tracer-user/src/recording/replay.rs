//! Reads a recording.

use std::io::{self, BufRead, Read as _};

use anyhow::{Context as _, Result, bail, ensure};
use tracer_ebpf::record::LAYOUT;

use super::{Preamble, Sandbox, VERSION, kind, own_byte_order};
use crate::{
    assemble::{Assembler, Totals},
    path::Line,
};

/// Longest first line, and longest entry: no record is longer than a few KB.
const LONGEST: u64 = 1 << 20;

/// What a recording came to.
#[derive(Debug)]
pub struct Replayed {
    /// What the assembler counted.
    pub totals: Totals,
    /// The file ends in the middle of the run: what was open then is given out as it was.
    pub is_cut: bool,
}

/// Gives an assembler what is on file, and `each` what comes out.
///
/// # Errors
///
/// If the file cannot be read, is no recording or one of another version, or if `each` fails.
pub fn replay(mut file: impl BufRead, mut each: impl FnMut(&Line) -> io::Result<()>) -> Result<Replayed> {
    let mut assembler = Assembler::new(preamble(&mut file)?.config);
    let mut entry = Vec::new();
    let mut is_cut = true;
    let mut number = 0u64;
    while let Some(kind) = next(&mut file, &mut entry).context("read the recording")? {
        number += 1;
        if take(&mut assembler, kind, &entry).is_none() {
            bail!("entry {number} of the recording is not understood");
        }
        is_cut = kind != kind::FINISH;
        if kind == kind::ADVANCE || !is_cut {
            // Whoever recorded it has told the kernel half; here there is none.
            drop(assembler.unit_places());
            give_out(&mut assembler, &mut each)?;
        }
        if !is_cut {
            break;
        }
    }
    if is_cut {
        assembler.finish();
        give_out(&mut assembler, &mut each)?;
    }
    Ok(Replayed { totals: assembler.totals().clone(), is_cut })
}

fn preamble(file: &mut impl BufRead) -> Result<Preamble> {
    let mut line = Vec::new();
    file.take(LONGEST).read_until(b'\n', &mut line).context("read the recording")?;
    #[derive(serde::Deserialize)]
    struct Any {
        fntrace_recording: u32,
        layout: u32,
        byte_order: String,
    }
    let Ok(any) = serde_json::from_slice::<Any>(&line) else {
        bail!("this is no recording: `fntrace run --record FILE` makes one")
    };
    ensure!(
        (any.fntrace_recording, any.layout) == (VERSION, LAYOUT),
        "the recording is of another version of fntrace (form {}, records {}; this one reads {VERSION}, {LAYOUT}): replay \
         it with the one that made it",
        any.fntrace_recording,
        any.layout,
    );
    ensure!(any.byte_order == own_byte_order(), "the recording was made on a machine of another byte order");
    serde_json::from_slice(&line).context("read the recording's first line")
}

/// The next entry; `None` at the end, be it in the midst of one.
fn next(file: &mut impl BufRead, entry: &mut Vec<u8>) -> io::Result<Option<u8>> {
    let mut head = [0; 5];
    entry.clear();
    if !is_whole(file.read_exact(&mut head))? {
        return Ok(None);
    }
    let [kind, length @ ..] = head;
    let length = u64::from(u32::from_ne_bytes(length));
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an entry of {length} bytes")));
    }
    file.take(length).read_to_end(entry)?;
    Ok((entry.len() as u64 == length).then_some(kind))
}

fn is_whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn take(assembler: &mut Assembler, kind: u8, entry: &[u8]) -> Option<()> {
    let number = || entry.try_into().ok().map(u64::from_ne_bytes);
    match kind {
        kind::RECORD => drop(assembler.read(entry)),
        kind::SANDBOX => {
            let (id, json) = entry.split_first_chunk()?;
            let sandbox: Sandbox = serde_json::from_slice(json).ok()?;
            assembler.sandbox(u64::from_ne_bytes(*id), sandbox.into());
        }
        kind::CLOCK => assembler.clock(number()?.cast_signed()),
        kind::LOST => assembler.lost(number()?),
        kind::ADVANCE => assembler.advance(number()?),
        kind::FINISH => assembler.finish(),
        _ => return None,
    }
    Some(())
}

fn give_out(assembler: &mut Assembler, each: &mut impl FnMut(&Line) -> io::Result<()>) -> Result<()> {
    while let Some(line) = assembler.take() {
        each(&line)?;
    }
    Ok(())
}
