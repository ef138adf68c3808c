//! read: `tp_btf/tcp_rcv_space_adjust(sk)`.
//!
//! net/ipv4/tcp_input.c: called by tcp_recvmsg in the thread that reads, whichever system call it used, once bytes have
//! been copied to it. "This thread now works for the invocation whose request it read."

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    connection::{self, role},
    kernel,
    maps::FLOOR,
};

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn fn_read(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    let socket = context.arg::<*mut u8>(0);
    // SAFETY: the tracepoint's argument is a full socket.
    let Some(mut connection) = (unsafe { connection::get(socket.cast()) }) else { return 0 };
    if connection.role != role::SERVER || connection.open() == 0 {
        return 0;
    }
    let ordinal = connection.responses;
    let span = connection.span(ordinal).load();
    if span == 0 {
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
    0
}
