//! read: `tp_btf/tcp_rcv_space_adjust(sk)`.
//!
//! net/ipv4/tcp_input.c: called by tcp_recvmsg in the thread that reads, whichever system call it used, once bytes have
//! been copied to it. "This thread now works for the invocation whose request it read", or whose call was answered.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    attribution,
    connection::{self, role},
    kernel::{self, Sock, Task, Typed},
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
    let current = kernel::current_task();
    let task = Task::of(current);
    let Some(registers) = kernel::registers(current) else { return 0 };
    let g = attribution::goroutine(current, registers);
    if connection.role == role::CLIENT {
        attribution::reads_response(task, g, connection.caller, connection.sandbox);
        return 0;
    }
    if connection.role != role::SERVER || connection.open() == 0 {
        return 0;
    }
    let ordinal = connection.responses;
    let span = connection.span(ordinal).load();
    if span == 0 {
        return 0;
    }
    connection.pid = task.pid;
    // SAFETY: typed by BTF.
    let blocking = unsafe { Typed::new(socket) }.is_some_and(|socket| Sock(socket).is_blocking());
    attribution::reads_request(task, g, span, connection.sandbox, blocking && registers.reads_patiently());
    0
}
