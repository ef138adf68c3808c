//! What a Go program's file says of itself: which version made it, and where the functions are that are probed.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{
    Architecture, LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache, read::elf::ElfFile64,
};

/// Longest file that is looked into. A tenant wrote it, and its tables are read into memory.
const FILE_MAX: u64 = 256 << 20;
/// Longest function that is disassembled, in bytes; `runtime.newproc1` has about 1,300.
const FUNCTION_MAX: u64 = 64 << 10;

const CALL: &str = "net/http.(*persistConn).roundTrip";
const WRITE: &str = "net/http.persistConnWriter.Write";
const SERVE: &str = "net/http.(*persistConn).readLoop";
const START: &str = "runtime.newproc1";
const SEND: &str = "runtime.send";
const RECEIVE: &str = "runtime.recv";
/// What `runtime.newproc1` calls with the goroutine that it makes as the first argument, before anybody else can see it.
const STATUS: &str = "runtime.casgstatus";
const NAMES: [&str; 7] = [CALL, WRITE, SERVE, START, SEND, RECEIVE, STATUS];

/// Where to put breakpoints, as offsets in the file; the kernel half's `hooks/go.rs` says what each is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    /// Where net/http's client is asked to make a call.
    pub call: u64,
    /// Where it writes.
    pub write: u64,
    /// Where it begins to read the answers on a connection.
    pub serve: u64,
    /// Where a goroutine begins to be made.
    pub start: u64,
    /// Where it is made, in RAX.
    pub started: Vec<u64>,
    /// Where a goroutine gives a value to one that waits.
    pub send: u64,
    /// Where it takes one from one that waits.
    pub receive: u64,
}

/// A Go program that makes calls by net/http.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Of Go, as `go1.26.1`.
    pub version: String,
    pub points: Points,
}

type Elf<'a> = ElfFile64<'a, LittleEndian, &'a ReadCache<File>>;

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
    let mut found = [None; NAMES.len()];
    let mut any = false;
    for symbol in elf.symbols() {
        any = true;
        let Ok(name) = symbol.name_bytes() else { continue };
        if let Some(place) = NAMES.iter().position(|known| known.as_bytes() == name).and_then(|at| found.get_mut(at)) {
            *place = Some((symbol.address(), symbol.size()));
        }
    }
    ensure!(any, "it is stripped of its symbols ({version}): build it without -ldflags=-s");
    let [Some(call), Some(write), Some(serve), start, send, receive, status] = found else { return Ok(None) };
    let there =
        |function: Option<(u64, u64)>, name: &str| function.with_context(|| format!("it has no {name} ({version})"));
    let code = |function| Code::of(&elf, function);
    let start = code(there(start, START)?)?;
    let points = Points {
        call: code(call)?.entry(),
        write: code(write)?.entry(),
        serve: code(serve)?.entry(),
        start: start.entry(),
        started: start.calls_of(there(status, STATUS)?.0)?,
        send: code(there(send, SEND)?)?.entry(),
        receive: code(there(receive, RECEIVE)?)?.entry(),
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

/// The code of a function.
struct Code<'a> {
    bytes: &'a [u8],
    address: u64,
    /// Its place in the file.
    place: u64,
}

impl<'a> Code<'a> {
    fn of(elf: &Elf<'a>, (address, size): (u64, u64)) -> Result<Self> {
        ensure!((1..=FUNCTION_MAX).contains(&size), "a function in it has an odd size: {size} bytes");
        let section = elf.sections().find(|section| address.wrapping_sub(section.address()) < section.size());
        let section = section.context("a function lies outside of it")?;
        let bytes = section.data_range(address, size).ok().flatten().context("a function cannot be read")?;
        let (at, _) = section.file_range().context("a function has no bytes")?;
        Ok(Self { bytes, address, place: at + (address - section.address()) })
    }

    fn instructions(&self) -> impl Iterator<Item = (u64, Instruction)> {
        let decoder = Decoder::with_ip(64, self.bytes, self.address, DecoderOptions::NONE);
        decoder.into_iter().map(|instruction| (self.place + (instruction.ip() - self.address), instruction))
    }

    /// Where to stop at the function's beginning, with the arguments still in their registers.
    ///
    /// Not at its first instruction, which compares the stack pointer: the kernel has to step over it, and that costs
    /// several times what the breakpoint does. A conditional jump or a push it does itself (arch/x86/kernel/uprobes.c,
    /// branch_setup_xol_ops and push_setup_xol_ops); one of the two comes next.
    fn entry(&self) -> u64 {
        for (place, instruction) in self.instructions() {
            let at = (place - self.place) as usize;
            match self.bytes.get(at..).unwrap_or_default() {
                [0x55 | 0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..] => return place,
                // What Go compares with, where a function's frame is large.
                _ if instruction.mnemonic() == Mnemonic::Cmp || instruction.op0_register() == Register::R12 => {}
                _ => break,
            }
        }
        self.place
    }

    /// Where the function calls the one at `target`. The kernel does calls itself, too.
    fn calls_of(&self, target: u64) -> Result<Vec<u64>> {
        let mut places = Vec::new();
        for (place, instruction) in self.instructions() {
            match instruction.mnemonic() {
                Mnemonic::INVALID => bail!("{START} cannot be disassembled"),
                Mnemonic::Call
                    if instruction.op0_kind() == OpKind::NearBranch64 && instruction.near_branch_target() == target =>
                {
                    places.push(place);
                }
                _ => {}
            }
        }
        ensure!(!places.is_empty(), "{START} does not call {STATUS}");
        Ok(places)
    }
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
    fn breakpoints_are_where_the_kernel_need_not_step() {
        let entry = |bytes: &[u8]| Code { bytes, address: 0x401_000, place: 0x1000 }.entry() - 0x1000;
        // cmp 0x10(%r14),%rsp; jbe; push %rbp
        assert_eq!(entry(&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x2f, 0x55]), 4);
        // lea -0x40(%rsp),%r12; cmp 0x10(%r14),%r12; jbe near
        let large = [0x4c, 0x8d, 0x64, 0x24, 0xc0, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86, 0x22, 0x0e, 0x00, 0x00];
        assert_eq!(entry(&large), 9);
        // push %rbp, of a function without a check of the stack
        assert_eq!(entry(&[0x55, 0x48, 0x89, 0xe5]), 0);
        // mov %rbx,%rax; push %rbp: the argument is gone by then
        assert_eq!(entry(&[0x48, 0x89, 0xd8, 0x55]), 0);
    }

    #[test]
    fn calls_are_found_by_their_target() {
        // nop; call 0x40; call 0x100c; ret
        let bytes = [0x90, 0xe8, 0x3a, 0xf0, 0xff, 0xff, 0xe8, 0x01, 0x00, 0x00, 0x00, 0xc3];
        let code = Code { bytes: &bytes, address: 0x1000, place: 0x20 };
        assert_eq!(code.calls_of(0x100c).unwrap(), [0x26]);
        assert!(code.calls_of(0x2000).is_err());
        assert!(Code { bytes: &[0x06], ..code }.calls_of(0x100c).is_err(), "no instruction");
    }

    #[test]
    fn what_go_did_not_make_is_passed_over() {
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(look(own).unwrap(), None);
    }
}
