//! read: `tp_btf/tcp_rcv_space_adjust(sk)`.
//!
//! net/ipv4/tcp_input.c: called by tcp_recvmsg in the thread that reads, whichever system call it used, once bytes have
//! been copied to it. "This thread now works for the invocation whose request it read": of a server's connection, or the
//! answer to a poll.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    connection::{self, role},
    exchange::NO_SPAN,
    kernel, process,
};

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn fn_read(context: BtfTracePointContext) -> i32 {
    let socket = context.arg::<*mut u8>(0);
    // SAFETY: the tracepoint's argument is a full socket.
    let Some(mut connection) = (unsafe { connection::get(socket.cast()) }) else { return 0 };
    let ordinal = connection.responses;
    let serves = connection.role == role::SERVER;
    let span = if !serves {
        connection.polled_span
    } else if connection.open() != 0 {
        connection.span(ordinal).load()
    } else {
        0
    };
    if span == 0 || span == NO_SPAN {
        return 0;
    }
    let (task, _) = kernel::current();
    if connection.reader == task.tid && connection.reader_span == span {
        return 0;
    }
    connection.reader = task.tid;
    connection.reader_span = span;
    connection.pid = task.pid;
    attribution::reads(task, span, connection.sandbox);
    if serves {
        // SAFETY: the helper has no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        process::reads(&mut connection, ordinal, task.pid, span, now);
    }
    0
}
