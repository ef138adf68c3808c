//! What the kernel half counts. Nothing is lost silently: every way in which a program declines to do something has a
//! counter here, and user space prints them in its `stats` lines under [`Counter::name`].

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One number in the per-CPU array `COUNTERS`; the discriminant is the index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// Every counter, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The key under which `stats` lines print it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Records handed to the ring buffer.
    Records = "records",
    /// Records that the full ring buffer refused. User space marks the paths of that time incomplete.
    RecordsLost = "records_lost",
    /// Packets of a selected sandbox's connection that a hook looked at.
    Packets = "packets",
    /// Messages that the send hook saw.
    Sends = "sends",
    /// Times the read hook tied a thread to an invocation.
    Reads = "reads",
    /// Connections noted, by either end.
    Connections = "connections",
    /// Client sockets put in the sockhash.
    Enrolled = "enrolled",
    /// Client sockets that the kernel refused to put in the sockhash.
    EnrolFailed = "enrol_failed",
    /// Connections that were there before the agent and were noted at the start.
    Existing = "existing",
    /// Connections that turned out not to be HTTP/1, or stopped being it (upgrade, CONNECT).
    Opaque = "opaque",
    /// Connections on which bytes were missed, so that framing waits for the next provable boundary.
    Desynced = "desynced",
    /// No scratch slot was free on this CPU: the bytes went by unparsed. No test provokes it: it takes four hooks that
    /// were each interrupted by the next, on one CPU. It stays because there is no proof that this cannot be.
    ScratchBusy = "scratch_busy",
    /// More exchanges open on one connection than are followed.
    Pipelined = "pipelined",
    /// A packet came while another CPU was parsing the same direction of its connection. In a body its bytes are taken
    /// as passed; elsewhere the framing waits for the next provable boundary.
    Contended = "contended",
    /// The map of live invocations, or that of polled ones, was full.
    InvocationsFull = "invocations_full",
    /// The map of threads, or that of processes, was full.
    ThreadsFull = "threads_full",
    /// The map of sandboxes was full: a new sandbox is not traced, or its start is not told.
    SandboxesFull = "sandboxes_full",
    /// The map of listening sockets was full at the start: connections older than the agent may be taken for their other
    /// end.
    ListenersFull = "listeners_full",
    /// The kernel had no memory to note a connection: it is not traced. No test provokes it, for it would take the memory
    /// from the whole host.
    NotNoted = "not_noted",
    /// Requests to a runtime API (Lambda's), which are neither calls nor invocations: a runtime asks for its work by them,
    /// and hands the results back.
    RuntimeApi = "runtime_api",
    /// Answers to polls of a runtime API whose head was not whole in one piece of 1,024 bytes: the invocation is not
    /// traced.
    PollsUnread = "polls_unread",
    /// A message had more requests or chunks than one run of a program follows.
    TooLong = "too_long",
    /// Calls of Go functions of which the probes (`--go-uprobes`) know the invocation.
    GoCalls = "go_calls",
    /// Calls of Go functions that the probes saw, by goroutines of which nobody knows for whom they work: they were there
    /// before the probes, or nobody's request led to them.
    GoUnknown = "go_unknown",
    /// A tag could be neither written nor taken out again; the send was refused (EACCES) rather than let through wrong.
    /// No test provokes it: it takes a kernel that lengthens a message and then will not shorten it. It stays because
    /// what is behind it may never happen unseen.
    TagStuck = "tag_stuck",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_dense_and_names_are_unique() {
        let mut names = std::collections::HashSet::new();
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(names.insert(counter.name()));
        }
    }
}
