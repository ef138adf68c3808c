//! connect: `sock_ops` on the sandboxes' cgroups.
//!
//! TCP_CONNECT_CB runs in the process that connects, before the SYN leaves (net/ipv4/tcp_output.c, tcp_connect); the
//! ESTABLISHED callbacks run in softirq, before the first byte of either side is seen. STATE_CB tells of failed attempts
//! and of the end.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_FIN_WAIT1,
        BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT, bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_sock_hash_update},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ffi::c_void;
use tracer_ebpf::{
    counter::Counter,
    http1::{Flow, mode},
    record::Reason,
};

use crate::{
    attribution::{self, Parent},
    connection::{self, Connection, role},
    exchange,
    kernel::{self, Task, TcpSock, Typed},
    maps::{SOCKETS, TAGGING, count, may_tag},
    pointer::Value,
    scratch,
};

#[sock_ops]
pub fn fn_sock_ops(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
        BPF_SOCK_OPS_STATE_CB => changes(&context),
        _ => {}
    }
    1
}

/// The socket of the context, if it is a full one.
#[inline(always)]
fn socket(context: &SockOpsContext) -> Option<*mut c_void> {
    // SAFETY: a field of the context; the verifier knows it for a socket or null.
    let socket = unsafe { (*context.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket.cast()) }
}

#[inline(always)]
fn typed(socket: *mut c_void) -> Option<TcpSock> {
    // SAFETY: a socket that the verifier knows; the helper gives a typed pointer or null.
    unsafe { Some(TcpSock(Typed::new(bpf_skc_to_tcp_sock(socket))?)) }
}

/// Notes the connection of `context`'s socket, if it belongs to a sandbox.
#[inline(always)]
fn note(context: &SockOpsContext, role: u8) -> Option<(Value<Connection>, TcpSock)> {
    let socket = socket(context)?;
    let tcp = typed(socket)?;
    let sandbox = tcp.sock().cgroup();
    attribution::sandbox(sandbox)?;
    // SAFETY: the context's socket is a full one.
    let mut connection = unsafe { connection::make(socket) }?;
    count(Counter::Connections);
    // SAFETY: the context is what the helper asks for.
    connection.cookie = unsafe { bpf_get_socket_cookie(context.ops.cast()) };
    connection.sandbox = sandbox;
    connection.role = role;
    tcp.sock().wire(&mut connection.wire);
    connection.request.flow.mode = Flow::NEW.mode;
    connection.response.flow.mode = Flow::NEW.mode;
    let _ = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    Some((connection, tcp))
}

/// A process of a sandbox connects: who it works for explains the first call on the connection.
#[inline(always)]
fn connecting(context: &SockOpsContext) {
    let Some((mut connection, _)) = note(context, role::CLIENT) else { return };
    let (task, cgroup) = kernel::current();
    // SAFETY: the helper has no arguments.
    connection.connect_ns = unsafe { bpf_ktime_get_ns() };
    connection.pid = task.pid;
    let task = if cgroup == connection.sandbox { task } else { Task::UNKNOWN };
    let mut parent = Parent::NOBODY;
    attribution::attribute(&mut parent, connection.sandbox, task, None);
    connection.connect_parent = parent.context.span_id;
    connection.connect_rule = parent.rule as u8;
}

#[inline(always)]
fn connected(context: &SockOpsContext) {
    let Some(socket) = socket(context) else { return };
    // SAFETY: the context's socket is a full one.
    let Some(mut connection) = (unsafe { connection::get(socket) }) else { return };
    let Some(tcp) = typed(socket) else { return };
    // The local address is certain only now.
    tcp.sock().wire(&mut connection.wire);
    connection.request.sequence = tcp.write_next();
    connection.response.sequence = tcp.receive_next();
    connection.may_tag = may_tag(&connection.wire.remote) as u8;
    if TAGGING.load() == 0 || connection.may_tag == 0 {
        return;
    }
    enrol(context.ops, &mut connection);
}

#[inline(always)]
fn enrol(context: *mut bpf_sock_ops, connection: &mut Value<Connection>) {
    let mut key = connection.cookie;
    // SAFETY: the context's socket, a sockhash, and a key on the stack.
    let failed =
        unsafe { bpf_sock_hash_update(context, (&raw const SOCKETS).cast_mut().cast(), (&raw mut key).cast(), 0) };
    connection.enrolled = (failed == 0) as u8;
    count(if failed == 0 { Counter::Enrolled } else { Counter::EnrolFailed });
}

#[inline(always)]
fn accepted(context: &SockOpsContext) {
    let Some((mut connection, tcp)) = note(context, role::SERVER) else { return };
    connection.request.sequence = tcp.receive_next();
    connection.response.sequence = tcp.write_next();
}

#[inline(always)]
fn changes(context: &SockOpsContext) {
    let (old, new) = (context.arg(0), context.arg(1));
    let Some(socket) = socket(context) else { return };
    // SAFETY: the context's socket is a full one.
    let Some(mut connection) = (unsafe { connection::get(socket) }) else { return };
    let closes_body = match new {
        BPF_TCP_CLOSE_WAIT => connection.role == role::CLIENT,
        BPF_TCP_FIN_WAIT1 | BPF_TCP_LAST_ACK => connection.role == role::SERVER,
        BPF_TCP_CLOSE => true,
        _ => return,
    } && connection.response.flow.mode == mode::UNTIL_CLOSE;
    if !closes_body && new != BPF_TCP_CLOSE {
        return;
    }
    let failed = old == BPF_TCP_SYN_SENT;
    if connection.open() == 0 && connection.opaque == 0 && !failed {
        return;
    }
    let Some(mut scratch) = scratch::take() else { return };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    if failed && connection.role == role::CLIENT {
        let errno = match typed(socket) {
            Some(tcp) => tcp.sock().error(),
            None => 0,
        };
        exchange::connect_failed(&mut scratch, &mut connection, errno);
    } else if closes_body {
        exchange::response_ends(&mut scratch, &mut connection, Reason::Complete, 0);
        connection.response.flow.mode = mode::OPAQUE;
    }
    if new == BPF_TCP_CLOSE {
        exchange::opaque_ends(&mut scratch, &mut connection);
        exchange::finish(&mut scratch, &mut connection, Reason::Closed, 0);
    }
    scratch::give_back(&scratch);
}
