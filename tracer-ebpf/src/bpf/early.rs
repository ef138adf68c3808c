//! Bytes that come before the socket that they are for.
//!
//! A segment with data that completes a handshake (TCP_DEFER_ACCEPT at the server, a delayed acknowledgement or TCP Fast
//! Open at the client) passes the ingress hook with the listener as its socket; then the kernel makes the connection's
//! socket, calls the PASSIVE_ESTABLISHED hook, and queues the data without asking again (net/ipv4/tcp_ipv4.c, tcp_v4_rcv,
//! TCP_NEW_SYN_RECV). All in one run of softirq on one CPU: the ingress hook keeps the bytes, the other hook, which may
//! not read the packet's, takes them up.

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_probe_read_kernel, bpf_skb_load_bytes},
    macros::btf_map,
};

use crate::{bound::clamp, packet::Payload, pointer::Value, stream::Source};

/// Most bytes that are kept: a whole head. Of a body behind it the length is enough.
const KEPT_MAX: usize = 16 * 1024;

/// The last segment with data that a listener of this CPU got.
#[repr(C)]
pub struct Early {
    pub sequence: u32,
    /// Bytes of payload; 0 if there is nothing.
    pub len: u32,
    /// Its length from the TCP header on, by which the other hook knows it.
    pub segment: u32,
    /// How many of the bytes are kept.
    kept: u32,
    bytes: [u8; KEPT_MAX],
}

#[btf_map]
static EARLY: PerCpuArray<Early, 1> = PerCpuArray::new();

#[inline(always)]
fn slot() -> Option<Value<Early>> {
    // SAFETY: an element of a per-CPU array.
    unsafe { Value::new(EARLY.get_ptr_mut(0)?) }
}

/// Keeps the payload of a segment that a listener gets.
#[inline(always)]
pub fn keep(packet: *mut __sk_buff, payload: &Payload) {
    let Some(mut early) = slot() else { return };
    early.len = 0;
    if payload.len == 0 {
        return;
    }
    let len = clamp::<1, { KEPT_MAX as i32 }>(u64::from(payload.len));
    // SAFETY: the buffer is as long as `len` may be; the helper checks the rest.
    let failed = unsafe { bpf_skb_load_bytes(packet.cast(), payload.at, early.bytes.as_mut_ptr().cast(), len as u32) };
    if failed == 0 {
        early.sequence = payload.sequence;
        early.segment = payload.segment;
        early.kept = len as u32;
        early.len = payload.len;
    }
}

/// The payload of the segment that makes a connection: `sequence` is what that expects, `segment` the segment's length.
#[inline(always)]
pub fn take(sequence: u32, segment: u32) -> Option<Value<Early>> {
    let early = slot()?;
    if early.len != 0 && early.sequence == sequence && early.segment == segment { Some(early) } else { None }
}

/// The bytes, for the flow to run over.
pub struct Kept(pub *const Early);

impl Source for Kept {
    const PAUSES: bool = false;

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut u8, len: u64) -> bool {
        // SAFETY: the pointer is that of a map value that `take` gave, checked for null.
        let Some(early) = (unsafe { Value::new(self.0.cast_mut()) }) else { return false };
        let at = u64::from(at);
        if at + len > u64::from(early.kept) || at >= KEPT_MAX as u64 {
            return false;
        }
        // SAFETY: the offset lies in the buffer; the helper checks that the rest may be read.
        unsafe { bpf_probe_read_kernel(to.cast(), len as u32, early.bytes.as_ptr().add(at as usize).cast()) == 0 }
    }
}
