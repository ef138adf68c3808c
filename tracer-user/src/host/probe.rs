//! Asks the kernel for each thing that the agent needs, in its smallest form.

use std::os::fd::AsFd as _;

use aya_obj::{
    btf::{Btf, BtfKind},
    generated::{
        bpf_attach_type::{self, *},
        bpf_map_type::*,
        bpf_prog_type::{self, *},
    },
};

use super::Probe;
use crate::bpf::{self, MapShape};

/// The tracepoints that the kernel half uses (DESIGN.md, section 3). Each must be in this kernel, by this name.
const TRACEPOINTS: [(&str, &str); 6] = [
    ("tp_btf/tcp_rcv_space_adjust", "btf_trace_tcp_rcv_space_adjust"),
    ("tp_btf/sched_process_fork", "btf_trace_sched_process_fork"),
    ("tp_btf/sched_process_exit", "btf_trace_sched_process_exit"),
    ("tp_btf/sched_process_exec", "btf_trace_sched_process_exec"),
    ("tp_btf/cgroup_mkdir", "btf_trace_cgroup_mkdir"),
    ("tp_btf/cgroup_rmdir", "btf_trace_cgroup_rmdir"),
];

/// The ids of the types that tracing programs attach to.
#[derive(Debug)]
pub(super) struct Types(Btf);

impl Types {
    pub(super) fn read() -> Result<Self, String> {
        Btf::from_sys_fs().map(Self).map_err(|error| words(&error))
    }

    fn id(&self, name: &str, kind: BtfKind) -> Result<u32, String> {
        self.0.id_by_type_name_kind(name, kind).map_err(|_| "this kernel does not have it".to_owned())
    }
}

/// An error and what caused it.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

fn load(kind: bpf_prog_type, attach: bpf_attach_type, btf_id: u32, answer: i32) -> Result<(), String> {
    bpf::program_load(kind, attach, btf_id, &bpf::answer(answer)).map(drop).map_err(|error| error.to_string())
}

/// Loads a program of each type that the kernel half uses.
pub(super) fn programs(types: &Result<Types, String>) -> Vec<Probe> {
    let simple = [
        ("sock_ops", BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS),
        ("cgroup_skb/ingress", BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS),
        ("cgroup_skb/egress", BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS),
        ("sk_msg", BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT),
        ("sk_skb", BPF_PROG_TYPE_SK_SKB, BPF_SK_SKB_VERDICT),
    ];
    let mut probes: Vec<_> =
        simple.into_iter().map(|(name, kind, attach)| Probe { name, result: load(kind, attach, 0, 1) }).collect();
    let traced = |typename, kind, attach| {
        let types = types.as_ref().map_err(Clone::clone)?;
        load(BPF_PROG_TYPE_TRACING, attach, types.id(typename, kind)?, 0)
    };
    for (name, typename) in TRACEPOINTS {
        probes.push(Probe { name, result: traced(typename, BtfKind::Typedef, BPF_TRACE_RAW_TP) });
    }
    probes.push(Probe { name: "iter/tcp", result: traced("bpf_iter_tcp", BtfKind::Func, BPF_TRACE_ITER) });
    probes
}

/// Whether a tracing program may call `bpf_probe_read_kernel` (`bpf_tracing_func_proto`, kernel/trace/bpf_trace.c,
/// asks lockdown for LOCKDOWN_BPF_READ_KERNEL).
pub(super) fn read_kernel(types: &Result<Types, String>) -> Result<(), String> {
    /// BPF_FUNC_probe_read_kernel.
    const HELPER: i32 = 113;
    let types = types.as_ref().map_err(Clone::clone)?;
    let id = types.id(TRACEPOINTS[0].1, BtfKind::Typedef)?;
    bpf::program_load(BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP, id, &bpf::read_by(HELPER))
        .map(drop)
        .map_err(|error| error.to_string())
}

/// A BTF object with one type, number 1: `u32`. Local storage wants to know the types of key and value.
fn tiny_btf() -> Vec<u8> {
    let words: [u32; 9] = [
        0x0001_eb9f, // magic, version 1, no flags
        24,          // length of this header
        0,
        16, // offset and length of the types
        16,
        5,       // offset and length of the names
        1,       // the type: name at 1,
        1 << 24, // BTF_KIND_INT,
        4,       // four bytes,
    ];
    let mut blob: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    blob.extend(32u32.to_ne_bytes()); // 32 bits
    blob.extend(b"\0u32\0");
    blob
}

/// Makes a map of each type that the kernel half uses.
pub(super) fn maps() -> Vec<Probe> {
    /// BPF_F_NO_PREALLOC, which local storage and tries ask for.
    const LAZY: u32 = 1;
    let btf = bpf::btf_load(&tiny_btf());
    let shape = |kind, key, value, entries, flags| MapShape { kind, key, value, entries, flags };
    let make = |shape: MapShape, with_types: bool| {
        let types = match &btf {
            Ok(fd) if with_types => Some((fd.as_fd(), 1, 1)),
            Err(error) if with_types => return Err(format!("load BTF: {error}")),
            _ => None,
        };
        bpf::map_create(&shape, types).map(drop).map_err(|error| error.to_string())
    };
    [
        // A ring's size is a power of two and whole pages, which are 64 KiB at most.
        ("RINGBUF", shape(BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16, 0), false),
        ("SK_STORAGE", shape(BPF_MAP_TYPE_SK_STORAGE, 4, 4, 0, LAZY), true),
        ("SOCKHASH", shape(BPF_MAP_TYPE_SOCKHASH, 4, 4, 1, 0), false),
        ("LPM_TRIE", shape(BPF_MAP_TYPE_LPM_TRIE, 8, 4, 1, LAZY), false),
        ("HASH", shape(BPF_MAP_TYPE_HASH, 4, 4, 1, LAZY), false),
        ("PROG_ARRAY", shape(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1, 0), false),
    ]
    .into_iter()
    .map(|(name, shape, typed)| Probe { name, result: make(shape, typed) })
    .collect()
}
