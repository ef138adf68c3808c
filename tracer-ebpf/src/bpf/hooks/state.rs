//! state: `tp_btf/inet_sock_set_state(sk, oldstate, newstate)`.
//!
//! net/ipv4/af_inet.c, inet_sk_state_store; called by tcp_set_state, under the socket's lock. Tells of failed attempts to
//! connect, of the end, and of sockets that listen, which says when a new sandbox is ready. Not `sock_ops`' STATE_CB,
//! which a connection that is older than the agent cannot be made to call (before Linux 6.12). System-wide: what has no
//! storage is passed over.

use aya_ebpf::{
    bindings::{
        BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_FIN_WAIT1, BPF_TCP_LAST_ACK, BPF_TCP_LISTEN, BPF_TCP_SYN_SENT,
    },
    helpers::{bpf_ktime_get_ns, generated::bpf_skc_to_tcp_sock},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use tracer_ebpf::{http1::mode, record::Reason};

use crate::{
    births,
    connection::{self, Connection, role},
    exchange,
    kernel::{Sock, TcpSock, Typed},
    maps::FLOOR,
    pointer::Value,
    runtime_api, scratch,
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn fn_state(context: BtfTracePointContext) -> i32 {
    if FLOOR.load() != 0 {
        return 0;
    }
    let socket = context.arg::<*mut u8>(0);
    let (old, new) = (context.arg::<u32>(1), context.arg::<u32>(2));
    if new == BPF_TCP_LISTEN {
        // SAFETY: typed by BTF.
        if let Some(socket) = unsafe { Typed::new(socket) } {
            births::listens(Sock(socket).cgroup(), Sock(socket).local_port());
        }
        return 0;
    }
    // SAFETY: the tracepoint's argument, a full socket.
    let Some(connection) = (unsafe { connection::get(socket.cast()) }) else { return 0 };
    // SAFETY: typed by BTF.
    let error = unsafe { Typed::new(socket) }.map_or(0, |socket| Sock(socket).error());
    changes(connection, socket, old, new, error);
    0
}

#[inline(always)]
fn changes(mut connection: Value<Connection>, socket: *mut u8, old: u32, new: u32, errno: u32) {
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
    if new == BPF_TCP_CLOSE {
        connection.closed.add(1);
        exchange::becomes_known(&mut connection);
    }
    if connection.open() == 0 && connection.opaque == 0 && !failed {
        return;
    }
    let Some(mut scratch) = scratch::take() else { return };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a socket that is typed by BTF; the helper gives a typed pointer or null.
    if let Some(tcp) = unsafe { Typed::new(bpf_skc_to_tcp_sock(socket.cast())) } {
        scratch.measure(TcpSock(tcp));
    }
    if failed && connection.role == role::CLIENT {
        exchange::connect_failed(&mut scratch, &mut connection, errno);
    } else if closes_body {
        exchange::response_ends(&mut scratch, &mut connection, Reason::Complete, 0);
        connection.response.flow.mode = mode::OPAQUE;
    }
    if new == BPF_TCP_CLOSE {
        exchange::opaque_ends(&mut scratch, &mut connection);
        exchange::finish(&mut scratch, &mut connection, Reason::Closed, 0);
    }
    runtime_api::settle(&mut scratch, &mut connection);
    scratch::give_back(&scratch);
}
