//! Loads the kernel half, attaches it to the sandboxes and nothing else, and reads what it counts.
//!
//! Everything is held by descriptors of this process and nothing is pinned: when it ends, however it ends, the kernel
//! detaches all of it.

mod btf;
mod go;
mod records;
mod sampling;
#[cfg(test)]
mod stack;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, ProgramArray, RingBuf, SockHash, lpm_trie::Key},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Iter, SkMsg, SkSkb, SockOps,
        cgroup_skb::CgroupSkbLinkId, sock_ops::SockOpsLinkId,
    },
};
pub use records::Records;
pub use sampling::{RunTime, Sampling};
use tracer_ebpf::{counter::Counter, glob, record::Tag};

use crate::{cgroup, go::Id};

/// What the kernel half logs.
pub type Log = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Where the running kernel's types are.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A range of addresses, as `--tag-to` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().with_context(|| format!("{address} is no IP address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix.parse().with_context(|| format!("{prefix} is no prefix length"))?,
        };
        ensure!(prefix <= longest, "a prefix of {address} has at most {longest} bits");
        Ok(Self { address, prefix })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}/{}", self.address, self.prefix)
    }
}

impl Cidr {
    /// Address and prefix length as the kernel half compares them: IPv4 as IPv4-mapped IPv6.
    fn key(self) -> Key<[u8; 16]> {
        match self.address {
            IpAddr::V4(address) => Key::new(96 + u32::from(self.prefix), address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => Key::new(u32::from(self.prefix), address.octets()),
        }
    }
}

/// Where tags go unless `--tag-to` says otherwise: loopback, link-local and private ranges (RFC 1122, 3927, 1918, 4291,
/// 4193). Third parties never see our header unasked.
pub const TAG_TO: [&str; 8] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fe80::/10",
    "fc00::/7",
];

/// What to attach, and to what.
#[derive(Debug)]
pub struct Plan {
    /// Directories of the cgroups that the programs are attached to.
    pub roots: Vec<PathBuf>,
    /// Patterns of paths that become sandboxes when they appear.
    pub patterns: Vec<String>,
    /// They become candidates only: [`Agent::choose`] makes sandboxes of some.
    pub discovers: bool,
    /// Where tags may go; `None` to tag nothing.
    pub tag_to: Option<Vec<Cidr>>,
    /// Most bytes of a request head with its tag.
    pub tag_max_head: u32,
    /// Whether enrolled sockets need the verdict program (the self-test says).
    pub verdict: bool,
    /// Whether Go programs are probed.
    pub go_uprobes: bool,
    /// Whether user space infers what is not certain, and is to be told what it takes.
    pub infers: bool,
    /// Whether the programs that see traffic return at once: for the bench.
    pub floor: bool,
    /// Whether less than all paths may be recorded.
    pub sampling: bool,
    /// Other sizes for maps, by name.
    pub map_entries: Vec<(String, u32)>,
}

/// The programs on one cgroup.
#[derive(Debug)]
pub struct Attached {
    ingress: CgroupSkbLinkId,
    egress: CgroupSkbLinkId,
    sock_ops: SockOpsLinkId,
}

/// The running kernel half.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Agent {
    /// `None` once detached.
    bpf: Option<Ebpf>,
    counters: PerCpuArray<MapData, u64>,
    tags: PerCpuArray<MapData, u64>,
    /// Held for as long as calls are to be tagged: see the kernel half's `TAGGER`.
    tagger: ProgramArray<MapData>,
    /// The Go programs that are probed.
    probed: BTreeMap<Id, Vec<go::Link>>,
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fntrace-bpf"));

impl Agent {
    /// Loads the programs and attaches those that have to be there before any sandbox is known: from here on, no sandbox
    /// appears unseen. [`Agent::attach`] does the rest.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; the message says which program and, if the verifier spoke, what it said.
    pub fn load(plan: &Plan) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "this fntrace was built without its kernel half (AYA_BUILD_SKIP=1): build it again without"
        );
        let raw = std::fs::read(BTF).with_context(|| format!("read {BTF}"))?;
        let offsets = btf::resolve(&raw)?;
        let btf = Btf::parse(&raw, aya_obj_endianness()).context("parse the kernel's BTF")?;
        let patterns = plan.patterns.iter().map(|pattern| pattern_of(pattern)).collect::<Result<Vec<_>>>()?;
        let count = patterns.len() as u32;
        let tagging = u32::from(plan.tag_to.is_some());
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        for (wanted, offset) in btf::WANTED.iter().zip(&offsets) {
            loader.override_global(wanted.global, offset, true);
        }
        let (repaired, floor) = (u32::from(plan.verdict), u32::from(plan.floor));
        let sampling = u32::from(plan.sampling);
        loader.override_global("FLOOR", &floor, true).override_global("SAMPLING", &sampling, true);
        loader.override_global("REPAIRED", &repaired, true);
        let infers = u32::from(plan.infers);
        loader.override_global("INFERS", &infers, true);
        let go_probes = u32::from(plan.go_uprobes);
        loader.override_global("GO_PROBES", &go_probes, true);
        if !plan.go_uprobes {
            for name in go::MAPS {
                loader.map_max_entries(name, 1);
            }
        }
        for (name, entries) in &plan.map_entries {
            loader.map_max_entries(name, *entries);
        }
        loader.override_global("TAG_MAX_HEAD", &plan.tag_max_head, true);
        loader.override_global("TAGGING", &tagging, true).override_global("PATTERN_COUNT", &count, true);
        let discovers = u32::from(plan.discovers);
        loader.override_global("DISCOVERS", &discovers, true);
        let mut bpf = loader.load(OBJECT).context("create the maps")?;
        let mut places: Array<_, [u64; 32]> = Array::try_from(map(&mut bpf, "PATTERNS")?)?;
        for (index, pattern) in (0..).zip(patterns) {
            places.set(index, pattern, 0).context("note a pattern")?;
        }
        let mut tag_to: LpmTrie<_, [u8; 16], u8> = LpmTrie::try_from(map(&mut bpf, "TAG_TO")?)?;
        for cidr in plan.tag_to.iter().flatten() {
            tag_to.insert(&cidr.key(), 1, 0).with_context(|| format!("note --tag-to {cidr}"))?;
        }
        let counters = PerCpuArray::try_from(map(&mut bpf, "COUNTERS")?)?;
        let tags = PerCpuArray::try_from(map(&mut bpf, "TAGS")?)?;
        let tagger = ProgramArray::try_from(map(&mut bpf, "TAGGER")?)?;
        let mut agent = Self { bpf: Some(bpf), counters, tags, tagger, probed: BTreeMap::new() };
        for (name, tracepoint) in [
            ("fn_mkdir", "cgroup_mkdir"),
            ("fn_rmdir", "cgroup_rmdir"),
            ("fn_fork", "sched_process_fork"),
            ("fn_exit", "sched_process_exit"),
            ("fn_exec", "sched_process_exec"),
            ("fn_read", "tcp_rcv_space_adjust"),
            ("fn_state", "inet_sock_set_state"),
            ("fn_wake", "sched_waking"),
        ] {
            let program: &mut BtfTracePoint = agent.program(name)?;
            program.load(tracepoint, &btf).with_context(|| format!("load {name}"))?;
            program.attach().with_context(|| format!("attach {name}"))?;
        }
        let existing: &mut Iter = agent.program("fn_existing")?;
        existing.load("tcp", &btf).context("load fn_existing")?;
        for name in ["fn_send", "fn_tag"] {
            let program: &mut SkMsg = agent.program(name)?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let sock_ops: &mut SockOps = agent.program("fn_sock_ops")?;
        sock_ops.load().context("load fn_sock_ops")?;
        for name in ["fn_ingress", "fn_egress"] {
            let program: &mut CgroupSkb = agent.program(name)?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        if plan.go_uprobes {
            agent.load_go()?;
        }
        Ok(agent)
    }

    /// Attaches to the sandboxes and takes in the connections that are there already.
    ///
    /// # Errors
    ///
    /// What the kernel refuses. Whatever was attached before is detached when `self` is dropped.
    pub fn attach(&mut self, plan: &Plan, sandboxes: &[u64]) -> Result<()> {
        for sandbox in sandboxes {
            self.select(*sandbox)?;
        }
        if plan.tag_to.is_some() {
            self.attach_send(plan.verdict)?;
        }
        for root in &plan.roots {
            self.attach_to(root)?;
        }
        self.take_in_existing()
    }

    fn attach_to(&mut self, root: &Path) -> Result<Attached> {
        let cgroup = File::open(root).with_context(|| format!("open {}", root.display()))?;
        let mode = CgroupAttachMode::Single;
        let at = || format!("attach to {}", root.display());
        let ingress: &mut CgroupSkb = self.program("fn_ingress")?;
        let ingress = ingress.attach(&cgroup, CgroupSkbAttachType::Ingress, mode).with_context(at)?;
        let egress: &mut CgroupSkb = self.program("fn_egress")?;
        let egress = egress.attach(&cgroup, CgroupSkbAttachType::Egress, mode).with_context(at)?;
        let sock_ops: &mut SockOps = self.program("fn_sock_ops")?;
        let sock_ops = sock_ops.attach(&cgroup, mode).with_context(at)?;
        Ok(Attached { ingress, egress, sock_ops })
    }

    /// Has the start of a cgroup told that is not chosen yet, as the mkdir hook does for those that appear later.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn watch(&mut self, candidate: u64) -> Result<()> {
        let map = self.bpf()?.map_mut("BIRTHS").context("the object has no map BIRTHS")?;
        let mut births: HashMap<_, u64, [u64; 2]> = HashMap::try_from(map)?;
        births.insert(candidate, [0; 2], 0).context("note a candidate")
    }

    /// Makes a candidate a sandbox, with all that is below it, while the rest goes on.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; nothing is attached to the cgroup then.
    pub fn choose(&mut self, place: &Path) -> Result<Attached> {
        let attached = self.attach_to(place)?;
        // What appears below it from here on is selected with it; then what is there.
        for (id, _) in cgroup::walk(place) {
            self.select(id)?;
        }
        Ok(attached)
    }

    /// Lets go of what [`Agent::choose`] attached. The kernel has detached it if the cgroup is gone.
    pub fn let_go(&mut self, attached: Attached) {
        let Attached { ingress, egress, sock_ops } = attached;
        if let Ok::<&mut CgroupSkb, _>(program) = self.program("fn_ingress") {
            let _ = program.detach(ingress);
        }
        if let Ok::<&mut CgroupSkb, _>(program) = self.program("fn_egress") {
            let _ = program.detach(egress);
        }
        if let Ok::<&mut SockOps, _>(program) = self.program("fn_sock_ops") {
            let _ = program.detach(sock_ops);
        }
    }

    /// Makes a cgroup a sandbox, as the mkdir hook does for those that appear later.
    fn select(&mut self, cgroup: u64) -> Result<()> {
        let map = self.bpf()?.map_mut("SANDBOXES").context("the object has no map SANDBOXES")?;
        let mut sandboxes: HashMap<_, u64, [u64; 11]> = HashMap::try_from(map)?;
        const NO_EXIST: u64 = 1;
        // The mkdir hook may have been faster; what it noted stays.
        let _ = sandboxes.insert(cgroup, [0; 11], NO_EXIST);
        sandboxes.get(&cgroup, 0).map(drop).context("note a sandbox")
    }

    fn attach_send(&mut self, verdict: bool) -> Result<()> {
        let sockets: SockHash<_, u64> =
            SockHash::try_from(self.bpf()?.map("SOCKETS").context("the object has no map SOCKETS")?)?;
        let fd = sockets.fd().try_clone().context("hold the sockhash")?;
        if verdict {
            let program: &mut SkSkb = self.program("fn_verdict")?;
            program.load().context("load fn_verdict")?;
            program.attach(&fd).context("attach fn_verdict")?;
        }
        let tag: &mut SkMsg = self.program("fn_tag")?;
        let tag = tag.fd().context("hold fn_tag")?.try_clone().context("hold fn_tag")?;
        self.tagger.set(0, &tag, 0).context("arm fn_tag")?;
        let send: &mut SkMsg = self.program("fn_send")?;
        send.attach(&fd).context("attach fn_send")?;
        Ok(())
    }

    /// Takes in the connections of sandboxes that are there already, in this network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel does not let the iterator run.
    pub fn take_in_existing(&mut self) -> Result<()> {
        let existing: &mut Iter = self.program("fn_existing")?;
        let link = existing.attach().context("attach fn_existing")?;
        let mut walk = existing.take_link(link)?.into_file().context("open the iterator")?;
        // It writes nothing; reading runs it.
        walk.read_to_end(&mut Vec::new()).map(drop).context("walk the connections")
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
    {
        let program = self.bpf()?.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn bpf(&mut self) -> Result<&mut Ebpf> {
        self.bpf.as_mut().context("the programs are detached")
    }

    /// Stops tagging, and detaches every program. What they have recorded can still be read, and what they counted.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to disarm the tag, which it has no reason to.
    pub fn detach(&mut self) -> Result<()> {
        self.stop_enrolling();
        // The kernel would empty the array by itself when we are gone, but in its own time.
        let disarmed = match self.tagger.clear_index(&0) {
            // Nothing was armed: tagging is off.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.context("disarm fn_tag"),
        };
        // Without the probes it would take what they said last for what is so.
        if !self.probed.is_empty() {
            let egress: &mut CgroupSkb = self.program("fn_egress")?;
            egress.unload().context("detach fn_egress")?;
        }
        self.bpf = None;
        disarmed
    }

    /// Before any other program goes: a socket that is put into the sockhash when its programs are no longer attached to
    /// it has none for as long as it is open, and where enrolled sockets need the repair, FIONREAD answers 0 on it.
    ///
    /// If the process dies instead, the kernel closes its descriptors from the last one down (fs/file.c, close_files,
    /// puts each before the others that task_work_run then works off), so the links go before the maps do.
    fn stop_enrolling(&mut self) {
        if let Ok::<&mut SockOps, _>(sock_ops) = self.program("fn_sock_ops") {
            // Not loaded, or not attached yet: there is nothing to stop.
            let _ = sock_ops.unload();
        }
    }

    /// The ring buffer that the records come through. Once only.
    ///
    /// # Errors
    ///
    /// If it has been taken, or cannot be watched.
    pub fn records(&mut self) -> Result<Records> {
        let asleep = Array::try_from(map(self.bpf()?, "ASLEEP")?)?;
        Records::new(RingBuf::try_from(map(self.bpf()?, "RECORDS")?)?, asleep)
    }

    /// Tells the kernel half where in a process the runtime's units of work show, unless it is gone: then its id may soon be
    /// another's.
    ///
    /// # Errors
    ///
    /// If the object has no such map.
    pub fn note_unit_places(&mut self, pid: u32, places: [u64; 3]) -> Result<()> {
        /// Only what is there (include/uapi/linux/bpf.h): the exit hook has taken out the entry of a process that is gone.
        const BPF_EXIST: u64 = 2;
        let map = self.bpf()?.map_mut("UNITS").context("the object has no map UNITS")?;
        let mut noted: HashMap<_, u32, [u64; 3]> = HashMap::try_from(map)?;
        if let Err(error) = noted.insert(pid, places, BPF_EXIST) {
            log::debug!("where the units of process {pid} show is not noted: {error}");
        }
        Ok(())
    }

    /// What the kernel half logs, for `-v`. `None` if the object does not log.
    pub fn log(&mut self) -> Option<Log> {
        aya_log::EbpfLogger::init(self.bpf.as_mut()?).ok()
    }

    /// The kernel half's counters since the start, under their names.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        Counter::ALL.iter().map(|counter| Ok((counter.name(), sum(&self.counters, *counter as u32)?))).collect()
    }

    /// Records that the ring buffer refused, since the start.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<u64> {
        sum(&self.counters, Counter::RecordsLost as u32)
    }

    /// Calls by tag outcome since the start, as the kernel half counted them.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn tags(&self) -> Result<Vec<(&'static str, u64)>> {
        Tag::ALL.iter().map(|tag| Ok((tag.name(), sum(&self.tags, *tag as u32)?))).collect()
    }
}

impl Drop for Agent {
    /// From here on nothing is tagged. If the process dies instead, the kernel does the same, but from a work queue and
    /// so a little later (kernel/bpf/arraymap.c, prog_array_map_clear).
    fn drop(&mut self) {
        self.stop_enrolling();
        let _ = self.tagger.clear_index(&0);
    }
}

fn sum(array: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64> {
    Ok(array.get(&index, 0).context("read a counter")?.iter().sum())
}

fn map(bpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    bpf.take_map(name).with_context(|| format!("the object has no map {name}"))
}

/// A pattern as it lies in the kernel's map: length, padding, bytes.
fn pattern_of(pattern: &str) -> Result<[u64; 32]> {
    let Some(found) = glob::Pattern::new(pattern.as_bytes()) else {
        bail!("--cgroup {pattern} is longer than {} bytes: choose a directory above it", glob::PATTERN_MAX)
    };
    let mut bytes = [0u8; 256];
    bytes[..4].copy_from_slice(&found.len.to_ne_bytes());
    bytes[8..].copy_from_slice(&found.bytes);
    let mut words = [0; 32];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(chunk.try_into()?);
    }
    Ok(words)
}

fn aya_obj_endianness() -> aya::Endianness {
    aya::Endianness::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_refused() {
        for good in TAG_TO {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        assert_eq!("192.0.2.1".parse::<Cidr>().unwrap().to_string(), "192.0.2.1/32");
        for bad in ["", "10.0.0.0/33", "::/129", "ten", "10.0.0.0/x"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ipv4_range_covers_its_mapped_addresses() {
        let key = "10.0.0.0/8".parse::<Cidr>().unwrap().key();
        assert_eq!(key.prefix_len(), 104);
        assert_eq!(key.data()[10..13], [0xff, 0xff, 10]);
    }
}
