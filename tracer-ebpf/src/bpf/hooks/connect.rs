//! connect: `sock_ops` on the sandboxes' cgroups.
//!
//! TCP_CONNECT_CB runs in the process that connects, before the SYN leaves (net/ipv4/tcp_output.c, tcp_connect); the
//! ESTABLISHED callbacks run in softirq, before the first byte of either side is seen.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
        bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_sock_hash_update},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ffi::c_void;
use tracer_ebpf::counter::Counter;

use crate::{
    attribution::{self, Parent},
    connection::{self, Connection, role},
    early::{self, Kept},
    kernel::{self, Task, TcpSock, Typed},
    maps::{SOCKETS, TAGGING, count, may_tag},
    pointer::Value,
    runtime_api, scratch, stream,
};

#[sock_ops]
pub fn fn_sock_ops(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
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
    connection.reset();
    Some((connection, tcp))
}

/// A process of a sandbox connects: who it works for explains the first call on the connection.
#[inline(always)]
fn connecting(context: &SockOpsContext) {
    let Some((mut connection, tcp)) = note(context, role::CLIENT) else { return };
    // The SYN takes one number. What leaves with it or before the connection is in the sockhash (TCP Fast Open, a write
    // that waited for the connection) passes the send hook by: it finds out by this number.
    connection.request.sequence = tcp.write_next().wrapping_add(1);
    let (task, cgroup) = kernel::current();
    // SAFETY: the helper has no arguments.
    connection.connect_ns = unsafe { bpf_ktime_get_ns() };
    connection.pid = task.pid;
    let task = if cgroup == connection.sandbox { task } else { Task::UNKNOWN };
    let mut parent = Parent::NOBODY;
    attribution::attribute(&mut parent, connection.sandbox, task, None);
    connection.connect_parent = parent.context.span_id;
    connection.connect_rule = parent.rule;
    connection.connect_flags = parent.flags;
    connection.connect_trust = parent.trust;
}

#[inline(always)]
fn connected(context: &SockOpsContext) {
    let Some(socket) = socket(context) else { return };
    let Some(tcp) = typed(socket) else { return };
    // SAFETY: the context's socket is a full one.
    let mut connection = match unsafe { connection::get(socket) } {
        Some(connection) => connection,
        // It was connecting when the agent started.
        None => {
            let Some((mut connection, tcp)) = note(context, role::CLIENT) else { return };
            connection.request.sequence = tcp.write_next();
            connection
        }
    };
    // The local address is certain only now.
    tcp.sock().wire(&mut connection.wire);
    connection.response.sequence = tcp.receive_next();
    connection.may_tag = may_tag(&connection.wire.remote) as u8;
    if TAGGING.load() == 0 || connection.may_tag == 0 || !tcp.may_enrol() {
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
    // SAFETY: a field of the context: the segment that completes the handshake, from its TCP header on.
    let segment = unsafe { (*context.ops).skb_len };
    let Some(early) = early::take(connection.request.sequence, segment) else { return };
    let len = early.len;
    let Some(mut scratch) = scratch::take() else { return };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    scratch.may_pause = 0;
    scratch.sends = 0;
    let sequence = connection.request.sequence;
    stream::run::<Kept, true>(Kept(early.as_ptr()), &mut scratch, &mut connection, 0, len, sequence);
    connection.request.sequence = connection.request.sequence.wrapping_add(len);
    runtime_api::settle(&mut scratch, &mut connection);
    scratch::give_back(&scratch);
}
