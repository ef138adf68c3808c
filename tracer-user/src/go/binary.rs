//! What a Go program's file says of itself: which version made it, and where the functions are that are probed.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use object::{
    Architecture, LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache,
    read::elf::{ElfFile64, ElfSection64},
};

/// Longest file that is looked into. A tenant wrote it, and its tables are read into memory.
const FILE_MAX: u64 = 256 << 20;
/// Longest function in which returns are looked for, in bytes; `runtime.newproc1` has about 1,300.
const FUNCTION_MAX: u64 = 64 << 10;

const CALL: &str = "net/http.(*persistConn).roundTrip";
const WRITE: &str = "net/http.persistConnWriter.Write";
const START: &str = "runtime.newproc1";

/// Where to put breakpoints, as offsets in the file; the kernel half's `hooks/go.rs` says what each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// Where net/http's client is asked to make a call.
    pub call: u64,
    /// Where it writes.
    pub write: u64,
    /// Where a goroutine begins to be made.
    pub start: u64,
    /// Where it is made.
    pub started: Vec<u64>,
}

/// A Go program that makes calls by net/http.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Of Go, as `go1.26.1`.
    pub version: String,
    pub points: Points,
}

type Elf<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<File>>;
type Section<'a, 'file> = ElfSection64<'a, 'file, LittleEndian, &'a ReadCache<File>>;

/// Looks into a program's file. `None` if there is nothing to probe in it: it was not made by Go, or makes no calls by
/// net/http.
///
/// # Errors
///
/// Why a Go program cannot be probed, in words for the operator.
pub fn look(file: File) -> Result<Option<Program>> {
    if file.metadata().map_or(u64::MAX, |file| file.len()) > FILE_MAX {
        return Ok(None);
    }
    let cache = ReadCache::new(file);
    let Ok(elf) = Elf::parse(&cache) else { return Ok(None) };
    let Some(info) = elf.section_by_name(".go.buildinfo") else { return Ok(None) };
    ensure!(elf.architecture() == Architecture::X86_64, "it is not for x86-64");
    let version = version(info.data().context("its build information cannot be read")?)?;
    let mut found = [None; 3];
    let mut any = false;
    for symbol in elf.symbols() {
        any = true;
        let Ok(name) = symbol.name_bytes() else { continue };
        for (name_of, place) in [CALL, WRITE, START].iter().zip(&mut found) {
            if name == name_of.as_bytes() {
                *place = Some((symbol.address(), symbol.size()));
            }
        }
    }
    ensure!(any, "it is stripped of its symbols ({version}): build it without -ldflags=-s");
    let [Some(call), Some(write), start] = found else { return Ok(None) };
    let start = start.with_context(|| format!("it has no {START} ({version})"))?;
    let text = |(address, _): (u64, u64)| {
        let section = elf.sections().find(|section| address.wrapping_sub(section.address()) < section.size());
        section.context("a function lies outside of it")
    };
    let points = Points {
        call: offset(&text(call)?, call.0)?,
        write: offset(&text(write)?, write.0)?,
        start: offset(&text(start)?, start.0)?,
        started: returns(&text(start)?, start)?,
    };
    Ok(Some(Program { version, points }))
}

/// The version of Go that a program says it was made by (debug/buildinfo, buildinfo.go of Go 1.26): 32 bytes of head, in
/// which the flags are the 16th byte, then the version after its length.
fn version(info: &[u8]) -> Result<String> {
    /// Set since Go 1.18; before, there were pointers to strings.
    const INLINE: u8 = 2;
    const HEAD: usize = 32;
    ensure!(info.starts_with(b"\xff Go buildinf:"), "its build information cannot be read");
    ensure!(info.get(15).is_some_and(|flags| flags & INLINE != 0), "it was made by Go before 1.18");
    // A version is shorter than the 128 bytes from which the length would take two.
    let version = info.get(HEAD).and_then(|len| info.get(HEAD + 1..HEAD + 1 + usize::from(*len)));
    let version = version.and_then(|version| std::str::from_utf8(version).ok());
    let version = version
        .filter(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
    Ok(version.context("its build information cannot be read")?.to_owned())
}

/// The place in the file of an address in a section.
fn offset(section: &Section<'_, '_>, address: u64) -> Result<u64> {
    let (at, len) = section.file_range().context("a function has no bytes")?;
    let into = address.wrapping_sub(section.address());
    ensure!(into < len, "a function lies outside of its section");
    Ok(at + into)
}

/// The places in the file of a function's RET instructions.
fn returns(section: &Section<'_, '_>, (address, size): (u64, u64)) -> Result<Vec<u64>> {
    ensure!((1..=FUNCTION_MAX).contains(&size), "{START} has an odd size: {size} bytes");
    let code = section.data_range(address, size).ok().flatten().with_context(|| format!("{START} cannot be read"))?;
    let mut places = Vec::new();
    for instruction in Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::INVALID => bail!("{START} cannot be disassembled"),
            Mnemonic::Ret => places.push(offset(section, instruction.ip())?),
            _ => {}
        }
    }
    ensure!(!places.is_empty(), "{START} does not return");
    Ok(places)
}

/// Opens the program that a process runs.
pub fn of_process(process: &Path) -> std::io::Result<File> {
    File::open(process.join("exe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut info = b"\xff Go buildinf:\x08".to_vec();
        info.push(flags);
        info.resize(32, 0);
        info.extend(rest);
        info
    }

    #[test]
    fn the_version_is_read_and_what_is_older_refused() {
        assert_eq!(version(&info(2, b"\x08go1.26.1\x00")).unwrap(), "go1.26.1");
        for (info, why) in [
            (info(0, b"\x08go1.17.1"), "before 1.18"),
            (info(2, b"\x08go1"), "cannot be read"),
            (info(2, b"\x03go\x1b"), "cannot be read"),
            (info(2, b"\x00"), "cannot be read"),
            (vec![0; 64], "cannot be read"),
        ] {
            let said = version(&info).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn what_go_did_not_make_is_passed_over() {
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(look(own).unwrap(), None);
    }
}
