//! ingress, egress: `cgroup_skb` on the sandboxes' cgroups.
//!
//! Ingress runs in softirq, before TCP takes the segment (net/ipv4/tcp_ipv4.c, tcp_v4_rcv → tcp_filter), so a segment
//! may come out of order or twice. Egress runs in the sender's context where TCP sends at once, in softirq where it was
//! waiting for the window, and again for each retransmission. Since Linux 4.10.

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};

use crate::{
    maps::FLOOR,
    packet::{self, Way},
};

/// Let the packet through. There is no other verdict.
const PASS: i32 = 1;

#[cgroup_skb]
pub fn fn_ingress(context: SkBuffContext) -> i32 {
    if FLOOR.load() == 0 {
        packet::look(&context, Way::In);
    }
    PASS
}

#[cgroup_skb]
pub fn fn_egress(context: SkBuffContext) -> i32 {
    if FLOOR.load() == 0 {
        packet::look(&context, Way::Out);
    }
    PASS
}
