//! existing: `iter/tcp`, run once at the start.
//!
//! Walks the sockets of the agent's network namespace, listeners first (net/ipv4/tcp_ipv4.c, tcp_seek_last_pos). A
//! socket's cgroup is looked at before anything else. An established connection of a sandbox is noted, and enrolled if
//! it is a client's; where in its streams the messages begin is not known, so its first request goes untagged.

use aya_ebpf::helpers::{
    bpf_ktime_get_ns,
    generated::{bpf_get_socket_cookie, bpf_map_update_elem, bpf_skc_to_tcp_sock},
};
use core::ffi::c_void;
use tracer_ebpf::{counter::Counter, http1::mode};

use crate::{
    attribution,
    connection::{self, role},
    exchange,
    kernel::{Sock, TcpSock, Typed},
    maps::{LISTENERS, REPAIRED, SOCKETS, TAGGING, count, may_tag},
};

/// `struct bpf_iter__tcp`, net/ipv4/tcp_ipv4.c.
#[repr(C)]
pub struct IterTcp {
    meta: *const c_void,
    socket: *mut c_void,
    uid: u64,
}

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn fn_existing(context: *mut IterTcp) -> i32 {
    // SAFETY: the context that the kernel passes to this kind of iterator; the last call has no socket.
    let socket = unsafe { (*context).socket };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: typed by BTF as a `sock_common`, which minisockets have too; the cast gives null for those.
    let tcp = unsafe { Typed::new(bpf_skc_to_tcp_sock(socket)) };
    let Some(tcp) = tcp.map(TcpSock) else { return 0 };
    look(tcp);
    0
}

#[inline(always)]
fn look(tcp: TcpSock) {
    let sock: Sock = tcp.sock();
    let sandbox = sock.cgroup();
    if attribution::sandbox(sandbox).is_none() || !sock.is_inet() {
        return;
    }
    let listener = (sandbox, u64::from(sock.local_port()));
    match sock.state() {
        LISTEN => {
            if LISTENERS.insert(listener, 1, 0).is_err() {
                count(Counter::ListenersFull);
            }
        }
        ESTABLISHED => note(tcp, sandbox, LISTENERS.get_ptr(listener).is_some()),
        _ => {}
    }
}

#[inline(always)]
fn note(tcp: TcpSock, sandbox: u64, is_server: bool) {
    let socket: *mut c_void = tcp.sock().0.as_ptr().cast_mut().cast();
    // SAFETY: a full socket, as the cast found.
    let Some(mut connection) = (unsafe { connection::make(socket) }) else { return };
    if connection.cookie != 0 {
        return;
    }
    count(Counter::Existing);
    // SAFETY: a full socket.
    connection.cookie = unsafe { bpf_get_socket_cookie(socket) };
    connection.sandbox = sandbox;
    tcp.sock().wire(&mut connection.wire);
    connection.request.unproven = 1;
    connection.response.unproven = 1;
    connection.request.flow.mode = mode::LOST;
    connection.response.flow.mode = mode::LOST;
    let (read, written) = (tcp.receive_next(), tcp.write_next());
    if is_server {
        connection.request.sequence = read;
        connection.response.sequence = written;
        connection.role = role::SERVER;
        if !tcp.has_answered() {
            // SAFETY: the helper has no arguments.
            exchange::becomes_unknown(&mut connection, unsafe { bpf_ktime_get_ns() });
        }
        return;
    }
    connection.request.sequence = written;
    connection.response.sequence = read;
    connection.may_tag = may_tag(&connection.wire.remote) as u8;
    // Somebody may be waiting in a read, and the verdict program would put what comes where that read does not look.
    if TAGGING.load() != 0 && REPAIRED.load() == 0 && connection.may_tag == 1 && tcp.may_enrol() {
        let key = connection.cookie;
        // SAFETY: a sockhash, a key on the stack and a full socket.
        let failed =
            unsafe { bpf_map_update_elem((&raw const SOCKETS).cast_mut().cast(), (&raw const key).cast(), socket, 0) };
        connection.enrolled = (failed == 0) as u8;
        count(if failed == 0 { Counter::Enrolled } else { Counter::EnrolFailed });
    }
    connection.role = role::CLIENT;
}
