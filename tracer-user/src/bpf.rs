//! The few bpf(2) commands that probing the host needs and aya does not offer: programs of a few hand-written
//! instructions, a sockhash to put sockets of our own into, and the list of links with the cgroups they are attached to.
//!
//! The layouts are those of `union bpf_attr` in include/uapi/linux/bpf.h: user space ABI, so they only ever grow at the
//! end, and the kernel takes a shorter attribute as if zeros followed.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_type, bpf_prog_type};

/// Attributes of one command: `repr(C)`, no padding, plain integers, and pointers as `u64`.
///
/// # Safety
///
/// Every pointer among the fields is valid for what the command does with it, for as long as the value lives.
unsafe trait Attr {}

/// Calls bpf(2).
fn bpf<A: Attr>(command: bpf_cmd, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is as long as we say and outlives the call; `Attr` vouches for what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with a descriptor that bpf(2) has just made, and which nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A kind of map, with the smallest shape that the kernel accepts for it.
pub(crate) struct MapShape {
    pub(crate) kind: bpf_map_type,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}
// SAFETY: no pointers; 60 bytes, all of them fields.
unsafe impl Attr for MapCreate {}

/// Makes a map. `btf` is a BTF object with the type ids of key and value, which local storage asks for.
pub(crate) fn map_create(shape: &MapShape, btf: Option<(BorrowedFd<'_>, u32, u32)>) -> io::Result<OwnedFd> {
    let (btf_fd, key_type, value_type) = btf.map_or((0, 0, 0), |(fd, key, value)| (fd.as_raw_fd() as u32, key, value));
    let mut attr = MapCreate {
        kind: shape.kind as u32,
        key: shape.key,
        value: shape.value,
        entries: shape.entries,
        flags: shape.flags,
        name: *b"fntrace_probe\0\0\0",
        btf_fd,
        btf_key_type_id: key_type,
        btf_value_type_id: value_type,
        ..MapCreate::default()
    };
    bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(owned)
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: only built below, with pointers to locals as long as the map's key and value (both checked by the callers,
// which made the map).
unsafe impl Attr for MapElement {}

/// Puts a socket into a sockhash whose keys and values are four bytes long.
pub(crate) fn sockhash_insert(map: BorrowedFd<'_>, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd() as u32;
    let (key, value) = (&raw const key, &raw const value);
    let mut attr =
        MapElement { map_fd: map.as_raw_fd() as u32, pad: 0, key: key as u64, value: value as u64, flags: 0 };
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Takes a socket out of it again.
pub(crate) fn sockhash_remove(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let key = &raw const key;
    let mut attr = MapElement { map_fd: map.as_raw_fd() as u32, pad: 0, key: key as u64, value: 0, flags: 0 };
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Reads the element 0 of an array whose values are eight bytes long.
pub(crate) fn array_first(map: BorrowedFd<'_>) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    let (key, place) = (&raw const key, &raw mut value);
    let mut attr =
        MapElement { map_fd: map.as_raw_fd() as u32, pad: 0, key: key as u64, value: place as u64, flags: 0 };
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// One instruction, as in `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination register in the low half, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// `return value`.
pub(crate) const fn answer(value: i32) -> [Instruction; 2] {
    // BPF_ALU64 | BPF_MOV | BPF_K; BPF_JMP | BPF_EXIT
    [instruction(0xb7, 0, 0, 0, value), instruction(0x95, 0, 0, 0, 0)]
}

/// Adds one to the first element of an array map of eight-byte values, then `return value`. Also names `kept`, so that
/// whoever holds the program holds that map.
pub(crate) fn count_and_answer(counter: BorrowedFd<'_>, kept: BorrowedFd<'_>, value: i32) -> [Instruction; 8] {
    let [set, exit] = answer(value);
    [
        // BPF_LD | BPF_DW | BPF_IMM with the source BPF_PSEUDO_MAP_FD: the address of the map. Two slots.
        instruction(0x18, 1, 1, 0, kept.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        // The same with BPF_PSEUDO_MAP_VALUE: the address of the first value.
        instruction(0x18, 1, 2, 0, counter.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xb7, 2, 0, 0, 1),
        // BPF_STX | BPF_ATOMIC | BPF_DW, BPF_ADD
        instruction(0xdb, 1, 2, 0, 0),
        set,
        exit,
    ]
}

/// Calls a helper that reads kernel memory, `helper(stack, 8, 0)`, then `return 0`.
pub(crate) const fn read_by(helper: i32) -> [Instruction; 7] {
    let [set, exit] = answer(0);
    [
        // BPF_ALU64 | BPF_MOV | BPF_X, then BPF_ADD | BPF_K: eight bytes of stack.
        instruction(0xbf, 1, 10, 0, 0),
        instruction(0x07, 1, 0, 0, -8),
        instruction(0xb7, 2, 0, 0, 8),
        instruction(0xb7, 3, 0, 0, 0),
        // BPF_JMP | BPF_CALL
        instruction(0x85, 0, 0, 0, helper),
        set,
        exit,
    ]
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}
// SAFETY: only built in `program_load`, with pointers to arguments and locals that outlive the call and lengths that are
// theirs; 112 bytes, all of them fields.
unsafe impl Attr for ProgramLoad {}

/// Loads a program; on refusal the error carries the verifier's last words. `attach_btf_id` is for tracing programs.
pub(crate) fn program_load(
    kind: bpf_prog_type,
    attach_type: bpf_attach_type,
    attach_btf_id: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    program_load_named(*b"fntrace_probe\0\0\0", kind, attach_type, attach_btf_id, instructions)
}

fn program_load_named(
    name: [u8; 16],
    kind: bpf_prog_type,
    attach_type: bpf_attach_type,
    attach_btf_id: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"GPL";
    let mut log = vec![0u8; 4096];
    let mut attr = ProgramLoad {
        kind: kind as u32,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        name,
        attach_type: attach_type as u32,
        attach_btf_id,
        ..ProgramLoad::default()
    };
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(owned).map_err(|error| {
        let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        // The line before the statistics says what was wrong.
        match text.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed ")) {
            Some(words) => io::Error::new(error.kind(), format!("{error}: {words}")),
            None => error,
        }
    })
}

#[repr(C)]
struct ProgramAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}
// SAFETY: no pointers.
unsafe impl Attr for ProgramAttach {}

/// Attaches a program to a sockhash. It stays until the map is gone.
pub(crate) fn sockhash_attach(
    map: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<()> {
    let (target, program) = (map.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let mut attr = ProgramAttach { target, program, attach_type: attach_type as u32, flags: 0 };
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}
// SAFETY: only built below, with a pointer to the argument and its length.
unsafe impl Attr for BtfLoad {}

/// Gives the kernel a BTF object.
pub(crate) fn btf_load(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoad { btf: btf.as_ptr() as u64, size: btf.len() as u32, ..BtfLoad::default() };
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}
// SAFETY: no pointers.
unsafe impl Attr for ById {}

fn by_id(command: bpf_cmd, id: u32) -> io::Result<Option<OwnedFd>> {
    match bpf(command, &mut ById { id, ..ById::default() }) {
        Ok(fd) => Ok(Some(owned(fd))),
        // It went away since it was listed; or it is a link that is still being made (kernel/bpf/syscall.c,
        // bpf_link_by_id), which the list of ids already has.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAGAIN)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Info {
    fd: u32,
    size: u32,
    place: u64,
}
// SAFETY: only built below, with a pointer to a local of the given size that takes any bytes.
unsafe impl Attr for Info {}

/// What the kernel says of an object, as 64-bit words. Its layout depends on the object's kind.
fn info<const WORDS: usize>(object: &OwnedFd) -> io::Result<[u64; WORDS]> {
    let mut words = [0u64; WORDS];
    let place = (&raw mut words) as u64;
    let mut attr = Info { fd: object.as_raw_fd() as u32, size: size_of_val(&words) as u32, place };
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(words)
}

/// A program attached to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupLink {
    pub(crate) link: u32,
    pub(crate) cgroup: u64,
    pub(crate) program_name: [u8; 16],
}

/// Lists the programs that are attached to cgroups by links. Asks for CAP_SYS_ADMIN.
pub(crate) fn cgroup_links() -> io::Result<Vec<CgroupLink>> {
    /// BPF_LINK_TYPE_CGROUP.
    const CGROUP: u32 = 3;
    let mut found = Vec::new();
    let mut last = 0;
    loop {
        let mut attr = ById { id: last, ..ById::default() };
        match bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) {
            Ok(_) => last = attr.next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error),
        }
        let Some(link) = by_id(bpf_cmd::BPF_LINK_GET_FD_BY_ID, last)? else { continue };
        // struct bpf_link_info: type and id; prog_id and padding; for a cgroup its id, then the attach type.
        let [kind_and_id, program, cgroup, _attach_type] = info::<4>(&link)?;
        let (kind, program) = (low(kind_and_id), low(program));
        // A link whose cgroup is gone stays until its owner closes it, with the cgroup id 0.
        if kind != CGROUP || cgroup == 0 {
            continue;
        }
        let Some(program) = by_id(bpf_cmd::BPF_PROG_GET_FD_BY_ID, program)? else { continue };
        // struct bpf_prog_info: 64 bytes, then the name.
        let [.., first, second] = info::<10>(&program)?;
        let mut program_name = [0; 16];
        program_name[..8].copy_from_slice(&first.to_ne_bytes());
        program_name[8..].copy_from_slice(&second.to_ne_bytes());
        found.push(CgroupLink { link: last, cgroup, program_name });
    }
}

/// The first `u32` of two that lie in one word.
fn low(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

const _: () = assert!(size_of::<MapCreate>() == 60);
const _: () = assert!(size_of::<MapElement>() == 32);
const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(size_of::<ProgramLoad>() == 112);

#[cfg(test)]
pub(crate) mod testing {
    //! What looks like an agent to others.

    use super::*;

    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    // SAFETY: no pointers.
    unsafe impl Attr for LinkCreate {}

    /// Attaches a program of this name, which lets everything in, to a cgroup, until the descriptor is closed.
    pub(crate) fn attach_ingress(name: [u8; 16], cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let attach = bpf_attach_type::BPF_CGROUP_INET_INGRESS;
        let program = program_load_named(name, bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, attach, 0, &answer(1))?;
        let (program, target) = (program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32);
        // The link holds the program.
        let mut attr = LinkCreate { program, target, attach_type: attach as u32, flags: 0 };
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
    }
}
