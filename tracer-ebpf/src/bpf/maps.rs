//! Every map of the kernel half. All but the arrays and what changes with each request allocate on demand, so that bounds
//! can be generous.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage, SockHash, lpm_trie::Key,
    },
    macros::btf_map,
};
use tracer_ebpf::{
    counter::Counter,
    glob::Pattern,
    record::{FUNCTIONS_MAX, Rule, Tag},
};

use crate::{
    atomic::Atomic,
    attribution::{ContextKey, Futex, Goroutine, Holders, Invocation, Persistent, Sandbox, Thread, Work},
    births::Birth,
    connection::Connection,
    facts::Place,
    pointer::Value,
    process::Process,
    runtime_api::{Polled, PolledKey},
    sampling::Exchange,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Bytes of the ring buffer that carries records to user space. The loader may set another size.
pub const RING_BYTES: usize = 16 << 20;

/// What happens, for user space.
#[btf_map]
pub static RECORDS: RingBuf<u64, RING_BYTES> = RingBuf::new();

/// 1 while the reader of [`RECORDS`] sleeps: see [`crate::scratch::give_back`].
#[btf_map]
pub static ASLEEP: Array<u64, 1> = Array::new();

/// Cgroup id → sandbox. A cgroup that is not here is not ours: neither read nor touched.
#[btf_map]
pub static SANDBOXES: HashMap<u64, Sandbox, 65_536, ON_DEMAND> = HashMap::new();

/// Cgroup id → what is still to be told of the start of a sandbox that appeared while the agent runs.
#[btf_map]
pub static BIRTHS: HashMap<u64, Birth, 65_536, ON_DEMAND> = HashMap::new();

/// Span id → live invocation. What is not here has answered. Allocated ahead (10 MiB): on demand, making
/// an entry took half as long again (perf, nginx to nginx, 6.18).
#[btf_map]
pub static INVOCATIONS: HashMap<u64, Invocation, 65_536> = HashMap::new();

/// (Sandbox, parent id that came in) → the live invocations that it came in with.
#[btf_map]
pub static CONTEXTS: HashMap<ContextKey, Holders, 65_536> = HashMap::new();

/// Thread id → what that thread works for. Only threads of sandboxes; the exit hook takes them out.
#[btf_map]
pub static THREADS: HashMap<u32, Thread, 131_072, ON_DEMAND> = HashMap::new();

/// How many of [`THREADS`] have an id that is this one modulo the size. The hooks of the scheduler run for every thread of
/// the host: a look here costs those that are not ours a few ns, where one into the hash costs them a hundred.
#[btf_map]
pub static THREAD_FILTER: Array<u64, THREAD_FILTER_SIZE> = Array::new();

pub const THREAD_FILTER_SIZE: usize = 65_536;

/// Process id → the invocations that it works for. Only processes of sandboxes; the exit hook takes them out.
#[btf_map]
pub static PROCESSES: HashMap<u32, Process, 131_072, ON_DEMAND> = HashMap::new();

/// Invocations that runtimes have polled for, by what the runtime API knows them by.
#[btf_map]
pub static POLLED: HashMap<PolledKey, Polled, 131_072, ON_DEMAND> = HashMap::new();

/// Process id of a runtime that has asked for its first invocation → the last that it was handed.
#[btf_map]
pub static RUNTIMES: HashMap<u32, Polled, 65_536, ON_DEMAND> = HashMap::new();

/// Goroutine → the invocation whose request it read last, or that the probes in Go programs know it to work for. What is
/// not used makes room.
#[btf_map]
pub static COROUTINES: LruHashMap<Goroutine, Work, 65_536> = LruHashMap::new();

/// Connection of net/http's client → the span of the invocation that calls on it now. Like the next two, one element
/// large unless there are probes in Go programs.
#[btf_map]
pub static CALLING: LruHashMap<Persistent, u64, 65_536> = LruHashMap::new();

/// Thread id → the span for which it makes a goroutine, while it does.
#[btf_map]
pub static STARTING: LruHashMap<u32, u64, 16_384> = LruHashMap::new();

/// Span id → invocation that has answered. What is not used makes room.
#[btf_map]
pub static ANSWERED: LruHashMap<u64, Invocation, 65_536> = LruHashMap::new();

/// Futex → how often it has shown itself to be a lock. What is not used makes room.
#[btf_map]
pub static LOCKS: LruHashMap<Futex, u64, 16_384> = LruHashMap::new();

/// Futex → who was woken from it last, and whether that was often another: see [`crate::facts::is_shared`]. What is not used
/// makes room.
#[btf_map]
pub static WAITERS: LruHashMap<Futex, u64, 16_384> = LruHashMap::new();

/// Process id → where on the stack of its loop the runtime's unit of work shows. User space writes what it has learned.
/// What is not used makes room.
#[btf_map]
pub static UNITS: LruHashMap<u32, Place, 16_384> = LruHashMap::new();

/// Socket → connection. The kernel frees it with the socket.
#[btf_map]
pub static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// Socket cookie → enrolled client socket: what is in here goes through the send hook.
#[btf_map]
pub static SOCKETS: SockHash<u64, 262_144> = SockHash::new();

/// (Cgroup id, port) of listening sockets, filled and read by one pass of the iterator at the start.
#[btf_map]
pub static LISTENERS: HashMap<(u64, u64), u8, 65_536, ON_DEMAND> = HashMap::new();

/// Destinations that a tag may reach (`--tag-to`), IPv4 as IPv4-mapped IPv6.
#[btf_map]
pub static TAG_TO: LpmTrie<[u8; 16], u8, 1024> = LpmTrie::new();

/// Cgroup id → the place of the sandbox's function in [`ROOTS`] and [`SHARES`]. What is not here has place 0.
#[btf_map]
pub static FUNCTIONS: HashMap<u64, u64, 65_536, ON_DEMAND> = HashMap::new();

/// How many paths began in each function's sandboxes, recorded or not.
#[btf_map]
pub static ROOTS: Array<u64, FUNCTIONS_MAX> = Array::new();

/// Which part of them is recorded, of 2³²; set by the loader.
#[btf_map]
pub static SHARES: Array<u64, FUNCTIONS_MAX> = Array::new();

/// Calls that went out without a tag → the flags that it would have had. What is not used makes room.
#[btf_map]
pub static UNTAGGED: LruHashMap<Exchange, u64, 16_384> = LruHashMap::new();

/// Patterns of cgroup paths that become sandboxes when they appear (`--cgroup` with a glob).
#[btf_map]
pub static PATTERNS: Array<Pattern, 16> = Array::new();

/// The tag program, as long as the agent lives: the kernel empties an array of programs when the last descriptor of it is
/// closed (kernel/bpf/arraymap.c, prog_array_map_clear), and what holds the array here is only a reference.
#[btf_map]
pub static TAGGER: ProgramArray<1> = ProgramArray::new();

/// See [`Counter`].
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Calls by [`Tag`].
#[btf_map]
pub static TAGS: PerCpuArray<u64, { Tag::ALL.len() }> = PerCpuArray::new();

/// Calls by [`Rule`].
#[btf_map]
pub static RULES: PerCpuArray<u64, { Rule::ALL.len() }> = PerCpuArray::new();

/// Whether calls are tagged at all; set by the loader.
#[unsafe(no_mangle)]
pub static TAGGING: Global<u32> = Global::new(0);
/// Most bytes of a head with its tag, at most [`HEAD_LIMIT`](tracer_ebpf::http1::HEAD_LIMIT); set by the loader.
#[unsafe(no_mangle)]
pub static TAG_MAX_HEAD: Global<u32> = Global::new(0);
/// 1 where enrolled sockets need the verdict program.
#[unsafe(no_mangle)]
pub static REPAIRED: Global<u32> = Global::new(0);

/// Whether Go programs are probed; set by the loader.
#[unsafe(no_mangle)]
pub static GO_PROBES: Global<u32> = Global::new(0);
/// 1 to make the programs that see traffic return at once: the floor that the bench compares with. Set by the loader, so
/// that the verifier takes out what is behind it.
#[unsafe(no_mangle)]
pub static FLOOR: Global<u32> = Global::new(0);

/// 1 if user space infers whose a call was where that is not certain; set by the loader.
#[unsafe(no_mangle)]
pub static INFERS: Global<u32> = Global::new(0);

/// 1 if not every path is recorded: see [`crate::sampling`].
#[unsafe(no_mangle)]
pub static SAMPLING: Global<u32> = Global::new(0);

/// How many [`PATTERNS`] are in use; set by the loader.
#[unsafe(no_mangle)]
pub static PATTERN_COUNT: Global<u32> = Global::new(0);
/// 1 where what matches a pattern is a candidate only, which user space may make a sandbox.
#[unsafe(no_mangle)]
pub static DISCOVERS: Global<u32> = Global::new(0);

#[inline(always)]
fn bump(slot: Option<*mut u64>) {
    // SAFETY: an element of a per-CPU array, aligned to 8.
    if let Some(value) = slot.and_then(|slot| unsafe { Value::new(slot.cast::<Atomic>()) }) {
        // Atomic although per CPU: a softirq, or another task after preemption, may be in the middle of the same.
        value.add(1);
    }
}

#[inline(always)]
pub fn count(counter: Counter) {
    bump(COUNTERS.get_ptr_mut(counter as u32));
}

#[inline(always)]
pub fn count_call(tag: u32, rule: u32) {
    bump(TAGS.get_ptr_mut(tag));
    bump(RULES.get_ptr_mut(rule));
}

/// Whether a tag may be sent to this address.
#[inline(always)]
pub fn may_tag(address: &[u8; 16]) -> bool {
    TAG_TO.get(&Key::new(128, *address)).is_some()
}
