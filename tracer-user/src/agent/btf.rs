//! Where the running kernel keeps the fields that the kernel half reads.
//!
//! A walk over BTF (Documentation/bpf/btf.rst) by names: nothing is written down, so nothing is wrong on another
//! kernel. Pure: bytes in, offsets out.

use anyhow::{Context as _, Result, bail, ensure};

/// A field that the kernel half reads: the global that takes its offset, the structure, the path to the field, and the
/// width in bytes with which it is read. Or, with a width of 0, an enumerator: the global takes its value.
pub struct Wanted {
    /// Name of the `Global<u32>` in the object.
    pub global: &'static str,
    structure: &'static str,
    path: &'static [&'static str],
    width: u32,
    /// The kernel may have been built without it: then the offset is [`ABSENT`].
    optional: bool,
}

/// The offset of an optional field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

const fn want(global: &'static str, structure: &'static str, path: &'static [&'static str], width: u32) -> Wanted {
    Wanted { global, structure, path, width, optional: false }
}

const fn enumerator(global: &'static str, of: &'static str, path: &'static [&'static str]) -> Wanted {
    want(global, of, path, 0)
}

const fn optional(global: &'static str, structure: &'static str, path: &'static [&'static str], width: u32) -> Wanted {
    Wanted { global, structure, path, width, optional: true }
}

/// All of them; the names are those of `kernel.rs` in the kernel half.
pub const WANTED: &[Wanted] = &[
    want("OFF_SOCK_CGROUP", "sock", &["sk_cgrp_data", "cgroup"], 8),
    want("OFF_SOCK_ERR", "sock", &["sk_err"], 4),
    want("OFF_SOCK_WMEM_QUEUED", "sock", &["sk_wmem_queued"], 4),
    want("OFF_SOCK_SNDBUF", "sock", &["sk_sndbuf"], 4),
    want("OFF_SOCK_OWNED", "sock", &["sk_lock", "owned"], 4),
    want("OFF_SKC_FLAGS", "sock_common", &["skc_flags"], 8),
    enumerator("BIT_SOCK_ZEROCOPY", "sock_flags", &["SOCK_ZEROCOPY"]),
    want("OFF_SKC_FAMILY", "sock_common", &["skc_family"], 2),
    want("OFF_SKC_STATE", "sock_common", &["skc_state"], 1),
    want("OFF_SKC_NUM", "sock_common", &["skc_num"], 2),
    want("OFF_SKC_DPORT", "sock_common", &["skc_dport"], 2),
    want("OFF_SKC_DADDR", "sock_common", &["skc_daddr"], 4),
    want("OFF_SKC_RCV_SADDR", "sock_common", &["skc_rcv_saddr"], 4),
    want("OFF_SKC_V6_DADDR", "sock_common", &["skc_v6_daddr"], 16),
    want("OFF_SKC_V6_RCV_SADDR", "sock_common", &["skc_v6_rcv_saddr"], 16),
    want("OFF_SKC_NET", "sock_common", &["skc_net", "net"], 8),
    want("OFF_NET_COOKIE", "net", &["net_cookie"], 8),
    want("OFF_TCP_RCV_NXT", "tcp_sock", &["rcv_nxt"], 4),
    want("OFF_TCP_COPIED_SEQ", "tcp_sock", &["copied_seq"], 4),
    want("OFF_TCP_WRITE_SEQ", "tcp_sock", &["write_seq"], 4),
    want("OFF_TCP_SND_NXT", "tcp_sock", &["snd_nxt"], 4),
    want("OFF_TCP_SRTT_US", "tcp_sock", &["srtt_us"], 4),
    want("OFF_TCP_TOTAL_RETRANS", "tcp_sock", &["total_retrans"], 4),
    want("OFF_TCP_LRCVTIME", "tcp_sock", &["inet_conn", "icsk_ack", "lrcvtime"], 4),
    want("OFF_TCP_LSNDTIME", "tcp_sock", &["lsndtime"], 4),
    want("OFF_TCP_NOTSENT_LOWAT", "tcp_sock", &["notsent_lowat"], 4),
    want("OFF_NET_NOTSENT_LOWAT", "net", &["ipv4", "sysctl_tcp_notsent_lowat"], 4),
    optional("OFF_TCP_IS_MPTCP", "tcp_sock", &["is_mptcp"], 1),
    want("OFF_CGROUP_KN", "cgroup", &["kn"], 8),
    want("OFF_CGROUP_ROOT", "cgroup", &["root"], 8),
    want("OFF_CGROUP_SELF_PARENT", "cgroup", &["self", "parent"], 8),
    want("OFF_CSS_CGROUP", "cgroup_subsys_state", &["cgroup"], 8),
    want("OFF_ROOT_HIERARCHY_ID", "cgroup_root", &["hierarchy_id"], 4),
    want("OFF_KN_ID", "kernfs_node", &["id"], 8),
    want("OFF_TASK_PID", "task_struct", &["pid"], 4),
    want("OFF_TASK_TGID", "task_struct", &["tgid"], 4),
    want("OFF_TASK_GROUP_LEADER", "task_struct", &["group_leader"], 8),
    want("OFF_TASK_START_TIME", "task_struct", &["start_time"], 8),
    want("OFF_TASK_CGROUPS", "task_struct", &["cgroups"], 8),
    want("OFF_CSS_SET_DFL_CGRP", "css_set", &["dfl_cgrp"], 8),
    want("OFF_TASK_FSBASE", "task_struct", &["thread", "fsbase"], 8),
    want("OFF_REGS_DI", "pt_regs", &["di"], 8),
    want("OFF_REGS_SI", "pt_regs", &["si"], 8),
    want("OFF_REGS_DX", "pt_regs", &["dx"], 8),
    want("OFF_REGS_R10", "pt_regs", &["r10"], 8),
    want("OFF_REGS_R14", "pt_regs", &["r14"], 8),
    want("OFF_REGS_SP", "pt_regs", &["sp"], 8),
    want("OFF_REGS_ORIG_AX", "pt_regs", &["orig_ax"], 8),
    want("OFF_SOCK_SOCKET", "sock", &["sk_socket"], 8),
    want("OFF_SOCKET_FILE", "socket", &["file"], 8),
    want("OFF_FILE_FLAGS", "file", &["f_flags"], 4),
    want("OFF_TASK_MM", "task_struct", &["mm"], 8),
    want("OFF_MM_ENV_START", "mm_struct", &["env_start"], 8),
    want("OFF_MM_ENV_END", "mm_struct", &["env_end"], 8),
];

/// Resolves [`WANTED`] in `btf`, in the same order, in bytes.
///
/// # Errors
///
/// Malformed BTF, or a field that this kernel does not have; the message names it.
pub fn resolve(btf: &[u8]) -> Result<Vec<u32>> {
    let types = Types::parse(btf).context("the kernel's BTF is malformed")?;
    let find = |wanted: &Wanted| if wanted.width == 0 { types.enumerator(wanted) } else { types.offset(wanted) };
    let offset = |wanted: &Wanted| match find(wanted) {
        Err(_) if wanted.optional => Ok(ABSENT),
        found => found.with_context(|| {
            format!("this kernel has no {}.{} that the agent understands", wanted.structure, wanted.path.join("."))
        }),
    };
    WANTED.iter().map(offset).collect()
}

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// One `struct btf_type`.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Bitfields: member offsets carry a width in their upper byte.
    kind_flag: bool,
    size_or_type: u32,
    rest: &'a [u8],
}

struct Types<'a> {
    /// By type id; 0 is void and stands here as an empty type.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = at.checked_add(4).and_then(|end| bytes.get(at..end)).context("cut short")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Result<Self> {
        ensure!(btf.get(..2) == Some(&0xeb9fu16.to_ne_bytes()[..]), "no BTF magic");
        let header_len = word(btf, 4)? as usize;
        let section = |offset: u32, len: u32| {
            let from = header_len.checked_add(offset as usize)?;
            btf.get(from..from.checked_add(len as usize)?)
        };
        let mut rest = section(word(btf, 8)?, word(btf, 12)?).context("types cut short")?;
        let strings = section(word(btf, 16)?, word(btf, 20)?).context("strings cut short")?;
        let mut types = vec![Type { name: 0, kind: 0, kind_flag: false, size_or_type: 0, rest: &[] }];
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let (kind, count) = ((info >> 24) & 31, (info & 0xffff) as usize);
            let len = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                kind::ENUM | kind::FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let (name, size_or_type) = (word(rest, 0)?, word(rest, 8)?);
            let more = rest.get(12..12 + len).context("a type is cut short")?;
            types.push(Type { name, kind, kind_flag: info >> 31 == 1, size_or_type, rest: more });
            rest = &rest[12 + len..];
        }
        Ok(Self { types, strings })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        self.strings
            .get(name as usize..)
            .is_some_and(|at| at.get(wanted.len()) == Some(&0) && at.starts_with(wanted.as_bytes()))
    }

    fn get(&self, id: u32) -> Result<Type<'a>> {
        self.types.get(id as usize).copied().context("a type id is out of range")
    }

    /// The type behind typedefs and qualifiers.
    fn plain(&self, mut id: u32) -> Result<Type<'a>> {
        for _ in 0..32 {
            let found = self.get(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.size_or_type;
                }
                _ => return Ok(found),
            }
        }
        bail!("qualifiers without end")
    }

    fn size(&self, of: Type<'a>) -> Result<u32> {
        match of.kind {
            kind::PTR => Ok(8),
            kind::ARRAY => {
                let element = self.size(self.plain(word(of.rest, 0)?)?)?;
                element.checked_mul(word(of.rest, 8)?).context("an array without bounds")
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => Ok(of.size_or_type),
            _ => bail!("a field of a kind that has no size"),
        }
    }

    fn offset(&self, wanted: &Wanted) -> Result<u32> {
        let structure =
            self.types.iter().find(|found| found.kind == kind::STRUCT && self.is_named(found.name, wanted.structure));
        let mut structure = *structure.context("no such structure")?;
        let mut bits = 0;
        for name in wanted.path {
            let (offset, field) = self.member(structure, name, 0)?.with_context(|| format!("no field {name}"))?;
            bits += offset;
            structure = field;
        }
        ensure!(bits % 8 == 0, "a bitfield");
        let size = self.size(structure)?;
        ensure!(size == wanted.width, "it is {size} bytes wide, not {}", wanted.width);
        Ok(bits / 8)
    }

    fn enumerator(&self, wanted: &Wanted) -> Result<u32> {
        let is_it = |found: &&Type<'_>| found.kind == kind::ENUM && self.is_named(found.name, wanted.structure);
        let of = self.types.iter().find(is_it).context("no such enum")?;
        for one in of.rest.chunks_exact(8) {
            if wanted.path.iter().any(|name| word(one, 0).is_ok_and(|found| self.is_named(found, name))) {
                return word(one, 4);
            }
        }
        bail!("no such enumerator")
    }

    /// Bit offset and type of a member, also of one in an anonymous struct or union.
    fn member(&self, of: Type<'a>, name: &str, depth: u32) -> Result<Option<(u32, Type<'a>)>> {
        ensure!(depth < 16, "anonymous members without end");
        if of.kind != kind::STRUCT && of.kind != kind::UNION {
            return Ok(None);
        }
        for member in of.rest.chunks_exact(12) {
            let (member_name, id, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let (offset, is_bitfield) =
                if of.kind_flag { (offset & 0x00ff_ffff, offset >> 24 != 0) } else { (offset, false) };
            if self.is_named(member_name, name) {
                ensure!(!is_bitfield, "a bitfield");
                return Ok(Some((offset, self.plain(id)?)));
            }
            if self.is_named(member_name, "")
                && let Some((more, found)) = self.member(self.plain(id)?, name, depth + 1)?
            {
                return Ok(Some((offset + more, found)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tiny BTF with a structure `s { int a; union { long b; }; int c:3; }` and an `enum s { a, b = 7 }`.
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0long\0s\0a\0b\0c\0";
        let mut types = Vec::new();
        let mut put = |words: &[u32]| words.iter().for_each(|word| types.extend_from_slice(&word.to_ne_bytes()));
        put(&[1, kind::INT << 24, 4, 32]);
        put(&[5, kind::INT << 24, 8, 64]);
        put(&[0, kind::UNION << 24 | 1, 8, 14, 2, 0]);
        put(&[10, kind::STRUCT << 24 | 3 | 1 << 31, 24, 12, 1, 0, 0, 3, 64, 16, 1, 3 << 24 | 128]);
        put(&[10, kind::ENUM << 24 | 2, 4, 12, 0, 14, 7]);
        let mut out = 0xeb9fu16.to_ne_bytes().to_vec();
        out.extend_from_slice(&[1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend(types);
        out.extend_from_slice(strings);
        out
    }

    #[test]
    fn finds_members_of_anonymous_unions_and_refuses_bitfields() {
        let blob = blob();
        let types = Types::parse(&blob).unwrap();
        assert_eq!(types.offset(&want("", "s", &["a"], 4)).unwrap(), 0);
        assert_eq!(types.offset(&want("", "s", &["b"], 8)).unwrap(), 8);
        assert!(types.offset(&want("", "s", &["b"], 4)).is_err(), "wrong width");
        assert!(types.offset(&want("", "s", &["c"], 4)).is_err(), "bitfield");
        assert!(types.offset(&want("", "s", &["d"], 4)).is_err());
        assert!(types.offset(&want("", "t", &["a"], 4)).is_err());
        assert_eq!(types.enumerator(&enumerator("", "s", &["b"])).unwrap(), 7);
        assert!(types.enumerator(&enumerator("", "s", &["c"])).is_err());
    }

    #[test]
    fn a_cut_blob_is_an_error() {
        let blob = blob();
        for len in 0..blob.len() - 18 {
            assert!(resolve(&blob[..len]).is_err());
        }
    }

    #[test]
    fn this_kernel_has_all_of_them() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").expect("this host's kernel has BTF");
        let offsets = resolve(&btf).unwrap();
        assert_eq!(offsets.len(), WANTED.len());
    }

    proptest! {
        #[test]
        fn never_panics(at in any::<prop::sample::Index>(), byte: u8) {
            let mut blob = blob();
            let at = at.index(blob.len());
            blob[at] = byte;
            let _ = resolve(&blob);
        }
    }
}
