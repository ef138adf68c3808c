//! Packets of noted connections: finds the payload and its place in the stream, and lets the flow run over it.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_TCP_LISTEN},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_sk_fullsock, bpf_skc_to_tcp_sock},
    },
    programs::SkBuffContext,
};
use tracer_ebpf::{counter::Counter, http1::mode, record::Tag};

use crate::{
    connection::{self, Connection, role},
    early,
    kernel::{TcpSock, Typed},
    maps::{TAGGING, count},
    pointer::Value,
    runtime_api, scratch,
    stream::{self, Packet, direction},
};

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// The payload of a TCP segment.
pub struct Payload {
    /// Where it lies in the packet.
    pub at: u32,
    pub len: u32,
    pub sequence: u32,
    /// Its length with the TCP header.
    pub segment: u32,
}

/// Looks at a packet, if it belongs to a connection that was noted.
#[inline(always)]
pub fn look(context: &SkBuffContext, way: Way) {
    let packet = context.skb.skb;
    // SAFETY: the verifier knows `sk` for a socket or null, and the helper gives a full socket or null.
    let connection = unsafe {
        let socket = (*packet).__bindgen_anon_2.sk;
        if socket.is_null() {
            return;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return;
        }
        if way == Way::In && (*socket).state == BPF_TCP_LISTEN {
            if let Some(payload) = payload(packet) {
                early::keep(packet, &payload);
            }
            return;
        }
        connection::get(socket.cast())
    };
    let Some(mut connection) = connection else { return };
    match (connection.role, way) {
        (role::SERVER, Way::In) => look_at::<true>(packet, &mut connection),
        (role::CLIENT, Way::In) => look_at::<false>(packet, &mut connection),
        (role::SERVER, Way::Out) => look_at::<false>(packet, &mut connection),
        // What the send hook sees is not looked at twice.
        (role::CLIENT, Way::Out) if connection.enrolled == 0 => look_at::<true>(packet, &mut connection),
        _ => {}
    }
}

#[inline(always)]
fn look_at<const REQUEST: bool>(packet: *mut __sk_buff, connection: &mut Value<Connection>) {
    if direction::<REQUEST>(connection).flow.mode == mode::OPAQUE {
        return;
    }
    let Some(payload) = payload(packet) else { return };
    count(Counter::Packets);
    if !direction::<REQUEST>(connection).guard.try_lock() {
        count(Counter::Contended);
        return;
    }
    if let Some((at, len)) = in_order::<REQUEST>(connection, &payload) {
        follow::<REQUEST>(packet, connection, at, len);
    }
    direction::<REQUEST>(connection).guard.unlock();
}

/// Finds the TCP payload; `None` if there is none.
///
/// The headers are read where they are: both lie in the linear part (net/ipv4/tcp_ipv4.c, tcp_v4_rcv: pskb_may_pull;
/// net/ipv4/tcp_output.c, __tcp_transmit_skb: skb_push). If they once did not, the flow would find their bytes missing.
#[inline(always)]
fn payload(packet: *mut __sk_buff) -> Option<Payload> {
    const TCP: u8 = 6;
    const HOP_BY_HOP: u8 = 0;
    const HEADER: usize = 20;
    let at = |at: u32| {
        // SAFETY: fields of the context, which the verifier knows for the packet's bounds.
        let (data, end) = unsafe { ((*packet).data as usize, (*packet).data_end as usize) };
        let header = data + at as usize;
        if header + HEADER > end { None } else { Some(header as *const u8) }
    };
    // SAFETY: the callers ask for bytes of a header that `at` gave.
    let byte = |header: *const u8, i: usize| unsafe { header.add(i).read() };
    let ip = at(0)?;
    let tcp_at = match byte(ip, 0) >> 4 {
        4 if byte(ip, 9) == TCP => u32::from(byte(ip, 0) & 15) * 4,
        6 if byte(ip, 6) == TCP => 40,
        // A jumbogram (BIG TCP) carries one extension header of 8 bytes.
        6 if byte(ip, 6) == HOP_BY_HOP && byte(at(40)?, 0) == TCP => 48,
        _ => return None,
    };
    let tcp = at(tcp_at)?;
    let at = tcp_at + u32::from(byte(tcp, 12) >> 4) * 4;
    // SAFETY: a field of the context.
    let whole = unsafe { (*packet).len };
    if whole <= at {
        return None;
    }
    const SYN: u8 = 2;
    // SAFETY: within the header.
    let sequence = u32::from_be(unsafe { tcp.add(4).cast::<u32>().read_unaligned() });
    // A SYN takes one number; with TCP Fast Open, bytes come with it.
    let sequence = sequence.wrapping_add(u32::from(byte(tcp, 13) & SYN != 0));
    Some(Payload { at, len: whole - at, sequence, segment: whole - tcp_at })
}

/// Where, and how long, that part of the payload is which comes next in the stream.
#[inline(always)]
fn in_order<const REQUEST: bool>(connection: &mut Value<Connection>, payload: &Payload) -> Option<(u32, u32)> {
    let direction = direction::<REQUEST>(connection);
    let expected = direction.sequence;
    let ahead = payload.sequence.wrapping_sub(expected) as i32;
    direction.sequence = payload.sequence.wrapping_add(payload.len);
    if ahead == 0 {
        return Some((payload.at, payload.len));
    }
    if ahead < 0 {
        // Sent again, in whole or in part.
        let known = ahead.unsigned_abs();
        if known >= payload.len {
            direction.sequence = expected;
            return None;
        }
        return Some((payload.at + known, payload.len - known));
    }
    // Something is missing. In a body that does not matter, as long as the body goes on.
    let missing = u64::from(ahead.unsigned_abs());
    let flow = &mut direction.flow;
    if (flow.mode == mode::BODY && missing < flow.remaining) || flow.mode == mode::UNTIL_CLOSE {
        let _ = flow.pass_body(missing);
        return Some((payload.at, payload.len));
    }
    if flow.mode != mode::LOST {
        count(Counter::Desynced);
        flow.mode = mode::LOST;
    }
    None
}

#[inline(always)]
fn follow<const REQUEST: bool>(packet: *mut __sk_buff, connection: &mut Value<Connection>, at: u32, len: u32) {
    // The middle of a body: nothing to look at.
    let flow = &mut direction::<REQUEST>(connection).flow;
    if flow.mode == mode::UNTIL_CLOSE || (flow.mode == mode::BODY && u64::from(len) < flow.remaining) {
        let _ = flow.pass_body(u64::from(len));
        return;
    }
    let Some(mut scratch) = scratch::take() else {
        flow.mode = mode::LOST;
        return;
    };
    // SAFETY: the helper has no arguments.
    scratch.now = unsafe { bpf_ktime_get_ns() };
    scratch.may_pause = 0;
    scratch.sends = 0;
    if let Some(socket) = tcp(packet) {
        scratch.sends = u32::from(socket.sock().is_owned());
        scratch.measure(socket);
    }
    scratch.tag_else = if TAGGING.load() == 0 {
        Tag::Off as u32
    } else if connection.may_tag == 0 {
        Tag::Destination as u32
    } else {
        Tag::NotEnrolled as u32
    };
    let sequence = direction::<REQUEST>(connection).sequence.wrapping_sub(len);
    stream::run::<Packet, REQUEST>(Packet(packet), &mut scratch, connection, at, len, sequence);
    if !REQUEST {
        runtime_api::settle_answer(&mut scratch, connection);
    }
    runtime_api::settle(&mut scratch, connection);
    scratch::give_back(&scratch);
}

/// The packet's socket, as the kernel's own structure.
#[inline(always)]
fn tcp(packet: *mut __sk_buff) -> Option<TcpSock> {
    // SAFETY: the verifier knows `sk` for a socket or null; the helper gives a typed pointer or null.
    unsafe {
        let socket = (*packet).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        Typed::new(bpf_skc_to_tcp_sock(socket.cast())).map(TcpSock)
    }
}
