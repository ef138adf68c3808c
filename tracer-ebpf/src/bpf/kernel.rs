//! Reading the kernel's own structures.
//!
//! Offsets come from the running kernel's BTF: user space looks them up by name and sets them before the programs are
//! loaded, the verifier folds them to constants and checks the access against the type of the pointer. The initial value
//! is one that it refuses, so that a forgotten offset is a load error and not a wrong answer.

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use tracer_ebpf::record::Wire;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])*
        #[unsafe(no_mangle)]
        pub static $name: Global<u32> = Global::new(u32::MAX);)*
    };
}

offsets! {
    /// sock.sk_cgrp_data.cgroup
    OFF_SOCK_CGROUP;
    /// sock.sk_err
    OFF_SOCK_ERR;
    /// sock.sk_wmem_queued
    OFF_SOCK_WMEM_QUEUED;
    /// sock.sk_sndbuf
    OFF_SOCK_SNDBUF;
    /// sock.sk_lock.owned
    OFF_SOCK_OWNED;
    /// sock_common.skc_flags
    OFF_SKC_FLAGS;
    /// SOCK_ZEROCOPY of `enum sock_flags`: the number of a bit
    BIT_SOCK_ZEROCOPY;
    /// sock_common.skc_family
    OFF_SKC_FAMILY;
    /// sock_common.skc_state
    OFF_SKC_STATE;
    /// sock_common.skc_num
    OFF_SKC_NUM;
    /// sock_common.skc_dport
    OFF_SKC_DPORT;
    /// sock_common.skc_daddr
    OFF_SKC_DADDR;
    /// sock_common.skc_rcv_saddr
    OFF_SKC_RCV_SADDR;
    /// sock_common.skc_v6_daddr
    OFF_SKC_V6_DADDR;
    /// sock_common.skc_v6_rcv_saddr
    OFF_SKC_V6_RCV_SADDR;
    /// sock_common.skc_net.net
    OFF_SKC_NET;
    /// net.net_cookie
    OFF_NET_COOKIE;
    /// tcp_sock.rcv_nxt
    OFF_TCP_RCV_NXT;
    /// tcp_sock.copied_seq
    OFF_TCP_COPIED_SEQ;
    /// tcp_sock.write_seq
    OFF_TCP_WRITE_SEQ;
    /// tcp_sock.snd_nxt
    OFF_TCP_SND_NXT;
    /// tcp_sock.srtt_us
    OFF_TCP_SRTT_US;
    /// tcp_sock.total_retrans
    OFF_TCP_TOTAL_RETRANS;
    /// tcp_sock.inet_conn.icsk_ack.lrcvtime
    OFF_TCP_LRCVTIME;
    /// tcp_sock.lsndtime
    OFF_TCP_LSNDTIME;
    /// tcp_sock.notsent_lowat
    OFF_TCP_NOTSENT_LOWAT;
    /// net.ipv4.sysctl_tcp_notsent_lowat
    OFF_NET_NOTSENT_LOWAT;
    /// tcp_sock.is_mptcp; `u32::MAX` where the kernel is built without MPTCP
    OFF_TCP_IS_MPTCP;
    /// cgroup.kn
    OFF_CGROUP_KN;
    /// cgroup.root
    OFF_CGROUP_ROOT;
    /// cgroup.self.parent
    OFF_CGROUP_SELF_PARENT;
    /// cgroup_subsys_state.cgroup
    OFF_CSS_CGROUP;
    /// cgroup_root.hierarchy_id
    OFF_ROOT_HIERARCHY_ID;
    /// kernfs_node.id
    OFF_KN_ID;
    /// task_struct.pid
    OFF_TASK_PID;
    /// task_struct.tgid
    OFF_TASK_TGID;
    /// task_struct.group_leader
    OFF_TASK_GROUP_LEADER;
    /// task_struct.start_time
    OFF_TASK_START_TIME;
    /// task_struct.cgroups
    OFF_TASK_CGROUPS;
    /// task_struct.mm
    OFF_TASK_MM;
    /// mm_struct.env_start
    OFF_MM_ENV_START;
    /// mm_struct.env_end
    OFF_MM_ENV_END;
    /// css_set.dfl_cgrp
    OFF_CSS_SET_DFL_CGRP;
    /// task_struct.thread.fsbase
    OFF_TASK_FSBASE;
    /// pt_regs.di, .si, .dx, .r10, .r14, .orig_ax
    OFF_REGS_DI;
    OFF_REGS_SI;
    OFF_REGS_DX;
    OFF_REGS_R10;
    OFF_REGS_R14;
    OFF_REGS_SP;
    OFF_REGS_ORIG_AX;
    /// sock.sk_socket
    OFF_SOCK_SOCKET;
    /// socket.file
    OFF_SOCKET_FILE;
    /// file.f_flags
    OFF_FILE_FLAGS;
}

/// A pointer whose type the verifier knows from BTF (a tracepoint's argument, or what a typed helper gave).
#[derive(Clone, Copy)]
pub struct Typed(*const u8);

impl Typed {
    /// # Safety
    ///
    /// `pointer` must be one that the verifier tracks by BTF type; it checks every access then, and faults read 0.
    #[inline(always)]
    pub unsafe fn new<T>(pointer: *const T) -> Option<Self> {
        if pointer.is_null() { None } else { Some(Self(pointer.cast())) }
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn get<T>(self, offset: &Global<u32>) -> T {
        // SAFETY: the verifier has checked offset and width against the pointer's type, or not loaded the program.
        unsafe { self.0.add(offset.load() as usize).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn get_at<T>(self, offset: &Global<u32>, more: usize) -> T {
        // SAFETY: as above.
        unsafe { self.0.add(offset.load() as usize + more).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn follow(self, offset: &Global<u32>) -> Self {
        Self(self.get::<*const u8>(offset))
    }
}

/// A `struct sock` (or `tcp_sock`, which begins with one).
#[derive(Clone, Copy)]
pub struct Sock(pub Typed);

impl Sock {
    /// The id of the cgroup that the socket was made in.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        cgroup_id(self.0.follow(&OFF_SOCK_CGROUP))
    }

    /// The pending error, positive; 0 for none.
    #[inline(always)]
    pub fn error(self) -> u32 {
        self.0.get(&OFF_SOCK_ERR)
    }

    /// Bytes that the send buffer may still take; negative when it is over-full.
    #[inline(always)]
    pub fn send_room(self) -> i64 {
        i64::from(self.0.get::<i32>(&OFF_SOCK_SNDBUF)) - i64::from(self.0.get::<i32>(&OFF_SOCK_WMEM_QUEUED))
    }

    /// Whether SO_ZEROCOPY is set.
    #[inline(always)]
    pub fn sends_zero_copy(self) -> bool {
        self.0.get::<u64>(&OFF_SKC_FLAGS) >> (BIT_SOCK_ZEROCOPY.load() & 63) & 1 != 0
    }

    /// Whether whoever reads from it waits until there is something (no O_NONBLOCK).
    #[inline(always)]
    pub fn is_blocking(self) -> bool {
        const O_NONBLOCK: u32 = 0o4000;
        let file = self.0.follow(&OFF_SOCK_SOCKET).follow(&OFF_SOCKET_FILE);
        file.get::<u32>(&OFF_FILE_FLAGS) & O_NONBLOCK == 0
    }

    /// Whether a process holds the socket. If a packet leaves meanwhile, it is that process that runs: softirq leaves a
    /// socket alone that is held (net/ipv4/tcp_output.c, tcp_tsq_handler; tcp_timer.c, tcp_write_timer).
    #[inline(always)]
    pub fn is_owned(self) -> bool {
        self.0.get::<i32>(&OFF_SOCK_OWNED) != 0
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        self.0.get(&OFF_SKC_STATE)
    }

    #[inline(always)]
    pub fn local_port(self) -> u16 {
        self.0.get(&OFF_SKC_NUM)
    }

    #[inline(always)]
    pub fn is_inet(self) -> bool {
        let family = self.0.get::<u16>(&OFF_SKC_FAMILY);
        family == AF_INET || family == AF_INET6
    }

    /// Both ends, as `Wire` writes them.
    #[inline(always)]
    pub fn wire(self, wire: &mut Wire) {
        if self.0.get::<u16>(&OFF_SKC_FAMILY) == AF_INET {
            mapped(&mut wire.local, self.0.get(&OFF_SKC_RCV_SADDR));
            mapped(&mut wire.remote, self.0.get(&OFF_SKC_DADDR));
        } else {
            store(&mut wire.local, self.0.get_at(&OFF_SKC_V6_RCV_SADDR, 0), self.0.get_at(&OFF_SKC_V6_RCV_SADDR, 8));
            store(&mut wire.remote, self.0.get_at(&OFF_SKC_V6_DADDR, 0), self.0.get_at(&OFF_SKC_V6_DADDR, 8));
        }
        wire.local_port = self.local_port();
        wire.remote_port = u16::from_be(self.0.get(&OFF_SKC_DPORT));
        wire.netns = self.0.follow(&OFF_SKC_NET).get(&OFF_NET_COOKIE);
    }
}

/// A `struct tcp_sock`.
#[derive(Clone, Copy)]
pub struct TcpSock(pub Typed);

impl TcpSock {
    #[inline(always)]
    pub fn sock(self) -> Sock {
        Sock(self.0)
    }

    /// The sequence number of the next byte to come in.
    #[inline(always)]
    pub fn receive_next(self) -> u32 {
        self.0.get(&OFF_TCP_RCV_NXT)
    }

    /// Whether all that has come in was read; a FIN, which has a number of its own, may be left.
    #[inline(always)]
    pub fn is_read(self) -> bool {
        self.receive_next().wrapping_sub(self.0.get(&OFF_TCP_COPIED_SEQ)) <= 1
    }

    /// The sequence number of the next byte that the process will write.
    #[inline(always)]
    pub fn write_next(self) -> u32 {
        self.0.get(&OFF_TCP_WRITE_SEQ)
    }

    /// The smoothed round-trip time in µs, which the kernel keeps eightfold; 0 before the first measurement.
    #[inline(always)]
    pub fn rtt_us(self) -> u32 {
        self.0.get::<u32>(&OFF_TCP_SRTT_US) >> 3
    }

    /// Segments sent again since the connection was made.
    #[inline(always)]
    pub fn retransmits(self) -> u32 {
        self.0.get(&OFF_TCP_TOTAL_RETRANS)
    }

    /// Whether the last to send was this side, for certain: data came in before, by more than the clock's tick
    /// (`tcp_jiffies32`, include/net/tcp.h).
    #[inline(always)]
    pub fn has_answered(self) -> bool {
        (self.0.get::<u32>(&OFF_TCP_LSNDTIME).wrapping_sub(self.0.get::<u32>(&OFF_TCP_LRCVTIME)) as i32) > 0
    }

    /// Bytes that may still be written before TCP_NOTSENT_LOWAT stops the writer.
    #[inline(always)]
    pub fn unsent_room(self) -> i64 {
        let own = self.0.get::<u32>(&OFF_TCP_NOTSENT_LOWAT);
        let most = if own == 0 { self.0.follow(&OFF_SKC_NET).get::<u32>(&OFF_NET_NOTSENT_LOWAT) } else { own };
        i64::from(most) - i64::from(self.write_next().wrapping_sub(self.0.get::<u32>(&OFF_TCP_SND_NXT)))
    }

    /// Whether the socket bears being in a sockhash. A subflow of MPTCP brings its bytes past the send hook
    /// (net/mptcp/protocol.c, mptcp_sendmsg_frag). One with SO_ZEROCOPY would report each piece of a message as a message
    /// sent (net/ipv4/tcp_bpf.c, tcp_bpf_push passes MSG_ZEROCOPY on with each).
    #[inline(always)]
    pub fn may_enrol(self) -> bool {
        !self.is_mptcp() && !self.sock().sends_zero_copy()
    }

    #[inline(always)]
    fn is_mptcp(self) -> bool {
        OFF_TCP_IS_MPTCP.load() != u32::MAX && self.0.get::<u8>(&OFF_TCP_IS_MPTCP) != 0
    }
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[inline(always)]
fn mapped(to: &mut [u8; 16], address: u32) {
    store(to, 0, (u64::from(address) << 32) | 0xffff_0000);
}

#[inline(always)]
fn store(to: &mut [u8; 16], first: u64, second: u64) {
    // SAFETY: 16 bytes, and the structures that hold addresses here are aligned to 8.
    unsafe {
        let words = to.as_mut_ptr().cast::<u64>();
        words.write(first);
        words.add(1).write(second);
    }
}

/// The id under which user space and helpers know a `struct cgroup`.
#[inline(always)]
pub fn cgroup_id(cgroup: Typed) -> u64 {
    cgroup.follow(&OFF_CGROUP_KN).get(&OFF_KN_ID)
}

/// Whether a `struct cgroup` belongs to the v2 hierarchy, whose id is 0 (kernel/cgroup/cgroup.c, cgroup_init).
#[inline(always)]
pub fn is_cgroup2(cgroup: Typed) -> bool {
    cgroup.follow(&OFF_CGROUP_ROOT).get::<i32>(&OFF_ROOT_HIERARCHY_ID) == 0
}

/// The id of a cgroup's parent; 0 for a root.
#[inline(always)]
pub fn parent_cgroup_id(cgroup: Typed) -> u64 {
    let css = cgroup.follow(&OFF_CGROUP_SELF_PARENT);
    if css.0.is_null() {
        return 0;
    }
    cgroup_id(css.follow(&OFF_CSS_CGROUP))
}

/// Thread and process id of a `struct task_struct`, in the initial namespace.
#[derive(Clone, Copy)]
pub struct Task {
    pub tid: u32,
    pub pid: u32,
}

impl Task {
    /// Nobody in particular. Not an `Option`: its empty half would be an undefined register, which the verifier refuses
    /// to see copied.
    pub const UNKNOWN: Self = Self { tid: 0, pid: 0 };

    #[inline(always)]
    pub fn is_known(self) -> bool {
        self.tid != 0
    }

    #[inline(always)]
    pub fn of(task: Typed) -> Self {
        Self { tid: task.get(&OFF_TASK_PID), pid: task.get(&OFF_TASK_TGID) }
    }
}

/// When the process that runs began, CLOCK_MONOTONIC in ns.
#[inline(always)]
pub fn process_began_ns() -> u64 {
    current_task().follow(&OFF_TASK_GROUP_LEADER).get(&OFF_TASK_START_TIME)
}

/// The task that runs.
#[inline(always)]
pub fn current_task() -> Typed {
    // SAFETY: the helper has no arguments and always gives a task, which the verifier types.
    Typed(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
}

/// Where a thread of x86-64 has its own memory: what it has set as the base of FS.
#[inline(always)]
pub fn thread_pointer(task: Typed) -> u64 {
    task.get(&OFF_TASK_FSBASE)
}

/// What a task had in its registers when it last entered the kernel: at a system call, number and arguments.
#[derive(Clone, Copy)]
pub struct Registers(Typed);

/// What a sleeping task waits for, by the system call that it is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Another thread: futex(2).
    Futex,
    /// Whatever of many things comes first: epoll_wait(2) and its kin.
    Loop,
    /// Something particular.
    Other,
}

/// Numbers of system calls on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
mod syscall {
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const POLL: u64 = 7;
    pub const READV: u64 = 19;
    pub const SELECT: u64 = 23;
    pub const RECVFROM: u64 = 45;
    pub const RECVMSG: u64 = 47;
    pub const FUTEX: u64 = 202;
    pub const EPOLL_WAIT: u64 = 232;
    pub const PSELECT6: u64 = 270;
    pub const PPOLL: u64 = 271;
    pub const EPOLL_PWAIT: u64 = 281;
    pub const EPOLL_PWAIT2: u64 = 441;
}

/// See [`Registers`]. What a task was interrupted with does not look like a system call: its number is negative then.
#[inline(always)]
pub fn registers(task: Typed) -> Option<Registers> {
    // SAFETY: the verifier knows the task by its type; the helper gives a typed pointer (Linux 5.15).
    let registers = unsafe { bpf_task_pt_regs(task.0.cast_mut().cast()) };
    // SAFETY: as above.
    unsafe { Typed::new(registers as *const u8) }.map(Registers)
}

impl Registers {
    #[inline(always)]
    fn call(self) -> u64 {
        self.0.get(&OFF_REGS_ORIG_AX)
    }

    /// The first argument of the system call.
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.0.get(&OFF_REGS_DI)
    }

    #[inline(always)]
    pub fn sp(self) -> u64 {
        self.0.get(&OFF_REGS_SP)
    }

    #[inline(always)]
    pub fn r14(self) -> u64 {
        self.0.get(&OFF_REGS_R14)
    }

    /// Whether the call is one that reads from one descriptor and waits for it, if that is in blocking mode.
    #[inline(always)]
    pub fn reads_patiently(self) -> bool {
        const MSG_DONTWAIT: u64 = 0x40;
        match self.call() {
            syscall::READ | syscall::READV => true,
            syscall::RECVFROM => self.0.get::<u64>(&OFF_REGS_R10) & MSG_DONTWAIT == 0,
            syscall::RECVMSG => self.third() & MSG_DONTWAIT == 0,
            _ => false,
        }
    }

    /// Whether the call reads a single byte. Go's net/http does so in a goroutine of its own, to notice that a client goes
    /// away or sends on (net/http/server.go, connReader.backgroundRead); it does nothing else, and ends.
    #[inline(always)]
    pub fn reads_a_byte(self) -> bool {
        self.call() == syscall::READ && self.third() == 1
    }

    /// Whether the call may be made to wake another thread: futex(2), or write(2) to an eventfd or a pipe.
    #[inline(always)]
    pub fn may_wake(self) -> bool {
        matches!(self.call(), syscall::FUTEX | syscall::WRITE)
    }

    #[inline(always)]
    pub fn waits_for(self) -> Waits {
        match self.call() {
            syscall::FUTEX => Waits::Futex,
            syscall::EPOLL_WAIT
            | syscall::EPOLL_PWAIT
            | syscall::EPOLL_PWAIT2
            | syscall::SELECT
            | syscall::PSELECT6 => Waits::Loop,
            // One or two descriptors are a wait for something particular.
            syscall::POLL | syscall::PPOLL if self.second() > 2 => Waits::Loop,
            _ => Waits::Other,
        }
    }

    /// Whether it waits for another thread without a limit of time. For a lock that a thread wants in the middle of its work
    /// some runtimes set one (Python's for the interpreter: Python/ceval_gil.c, take_gil).
    #[inline(always)]
    pub fn waits_for_good(self) -> bool {
        self.call() == syscall::FUTEX && self.0.get::<u64>(&OFF_REGS_R10) == 0
    }

    #[inline(always)]
    fn second(self) -> u64 {
        self.0.get(&OFF_REGS_SI)
    }

    #[inline(always)]
    fn third(self) -> u64 {
        self.0.get(&OFF_REGS_DX)
    }
}

/// The task that runs, and the id of its cgroup v2.
#[inline(always)]
pub fn current() -> (Task, u64) {
    let task = current_task();
    (Task::of(task), cgroup_id(task.follow(&OFF_TASK_CGROUPS).follow(&OFF_CSS_SET_DFL_CGRP)))
}

/// Where the environment of the process that runs begins and ends, in its own memory; 0 and 0 for a kernel thread.
#[inline(always)]
pub fn environment() -> (u64, u64) {
    // SAFETY: as above.
    let task = Typed(unsafe { bpf_get_current_task_btf() }.cast_const().cast());
    let memory = task.follow(&OFF_TASK_MM);
    (memory.get(&OFF_MM_ENV_START), memory.get(&OFF_MM_ENV_END))
}
