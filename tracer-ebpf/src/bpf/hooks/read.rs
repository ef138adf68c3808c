//! read: `tp_btf/tcp_rcv_space_adjust(sk)`.
//!
//! net/ipv4/tcp_input.c: called by tcp_recvmsg in the thread that reads, whichever system call it used, once bytes have
//! been copied to it. "This thread now works for the invocation whose request it read", be it that of a server's
//! connection or the answer to a poll, or whose call was answered.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    connection::{self, role},
    exchange::NO_SPAN,
    kernel::{self, Sock, Task, Typed},
    maps::FLOOR,
    process,
};

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn fn_read(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    let socket = context.arg::<*mut u8>(0);
    // SAFETY: the tracepoint's argument is a full socket.
    let Some(mut connection) = (unsafe { connection::get(socket.cast()) }) else { return 0 };
    let current = kernel::current_task();
    let task = Task::of(current);
    let Some(registers) = kernel::registers(current) else { return 0 };
    let g = attribution::goroutine(current, registers);
    if g != 0 && registers.reads_a_byte() {
        return 0;
    }
    let (serves, ordinal) = (connection.role == role::SERVER, connection.responses);
    if connection.role == role::CLIENT && connection.polled_span == 0 {
        attribution::reads_response(task, connection.caller, connection.sandbox);
        // The packet hook has seen the answer's end before anybody could read it.
        if connection.asks != 0 && connection.open() == 0 {
            attribution::reads_asked(task, connection.asks, connection.asks_tid);
        }
        return 0;
    }
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
    connection.pid = task.pid;
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if serves {
        connection.read_tid = task.tid;
        connection.read_ns = now;
    }
    // SAFETY: typed by BTF.
    let blocking = unsafe { Typed::new(socket) }.is_some_and(|socket| Sock(socket).is_blocking());
    attribution::reads_request(task, g, span, connection.sandbox, blocking && registers.reads_patiently());
    if serves {
        process::reads(&mut connection, ordinal, task.pid, span, now);
    }
    0
}
