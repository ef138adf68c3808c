//! Which paths are recorded (`--sample`, `--max-overhead`).
//!
//! It is decided where a path begins, by the share that user space has set for the function, and holds for all of the
//! path: the sampled flag of its context says so, in each tag too. Where no tag tells the other end, [`UNTAGGED`] does, on
//! this host. What is not recorded is followed all the same, for what it calls has to be known for its.
//!
//! Without either option none of this is in the programs: the verifier takes out what is behind [`SAMPLING`].

use aya_ebpf::helpers::bpf_get_prandom_u32;
use tracer_ebpf::{
    counter::Counter,
    record::Wire,
    traceparent::{Context, SAMPLED},
};

use crate::{
    atomic::Atomic,
    maps::{FUNCTIONS, ROOTS, SAMPLING, SHARES, UNTAGGED, count},
    pointer::Value,
};

/// A request as both ends see it, also from two network namespaces.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Exchange {
    client: [u8; 16],
    server: [u8; 16],
    client_port: u16,
    server_port: u16,
    sequence: u32,
}

impl Exchange {
    #[inline(always)]
    fn set(&mut self, client: &[u8; 16], server: &[u8; 16], ports: [u16; 2], sequence: u32) {
        self.client = *client;
        self.server = *server;
        [self.client_port, self.server_port] = ports;
        self.sequence = sequence;
    }

    #[inline(always)]
    fn of_client(&mut self, wire: &Wire, sequence: u32) {
        self.set(&wire.local, &wire.remote, [wire.local_port, wire.remote_port], sequence);
    }

    #[inline(always)]
    fn of_server(&mut self, wire: &Wire, sequence: u32) {
        self.set(&wire.remote, &wire.local, [wire.remote_port, wire.local_port], sequence);
    }
}

/// The flags of a path that begins in this sandbox.
#[inline(always)]
pub fn flags_of_root(sandbox: u64) -> u8 {
    if SAMPLING.load() == 0 { SAMPLED } else { draw(sandbox) as u8 }
}

/// A function of its own, as are the two below, for the stack's sake: what they need of it is free again when they return.
#[inline(never)]
extern "C" fn draw(sandbox: u64) -> u32 {
    // SAFETY: a value of a map, aligned to 8.
    let place = FUNCTIONS.get_ptr(sandbox).map_or(0, |place| unsafe { place.read_volatile() }) as u32;
    // SAFETY: an element of an array, aligned to 8.
    if let Some(roots) = ROOTS.get_ptr_mut(place).and_then(|roots| unsafe { Value::new(roots.cast::<Atomic>()) }) {
        roots.add(1);
    }
    // SAFETY: as above.
    let share = SHARES.get_ptr(place).map_or(u64::MAX, |share| unsafe { share.read_volatile() });
    // SAFETY: the helper has no arguments.
    if u64::from(unsafe { bpf_get_prandom_u32() }) < share { u32::from(SAMPLED) } else { 0 }
}

/// Whether what has this context is recorded; counts it if not.
#[inline(always)]
pub fn is_recorded(context: &Context) -> bool {
    let recorded = SAMPLING.load() == 0 || context.flags & SAMPLED != 0;
    if !recorded {
        count(Counter::Unsampled);
    }
    recorded
}

/// Notes what the tag would say of a call that goes out without one. `room` is for the key.
#[inline(always)]
pub fn tell(room: &mut Exchange, wire: &Wire, sequence: u32, flags: u8) {
    if SAMPLING.load() != 0 {
        note(room, wire, sequence, u32::from(flags & SAMPLED));
    }
}

#[inline(never)]
extern "C" fn note(room: *mut Exchange, wire: *const Wire, sequence: u32, flags: u32) -> u32 {
    // SAFETY: parts of map values, which both callers have.
    let (Some(room), Some(wire)) = (unsafe { (room.as_mut(), wire.as_ref()) }) else { return 0 };
    room.of_client(wire, sequence);
    let _ = UNTAGGED.insert(&*room, u64::from(flags), 0);
    0
}

/// The flags that a request without a tag begins with: what the other end noted, or those of a root.
#[inline(always)]
pub fn flags_of_request(room: &mut Exchange, wire: &Wire, sequence: u32, sandbox: u64) -> u8 {
    if SAMPLING.load() == 0 { SAMPLED } else { ask(room, wire, sequence, sandbox) as u8 }
}

#[inline(never)]
extern "C" fn ask(room: *mut Exchange, wire: *const Wire, sequence: u32, sandbox: u64) -> u32 {
    // SAFETY: as for `note`.
    let (Some(room), Some(wire)) = (unsafe { (room.as_mut(), wire.as_ref()) }) else { return 0 };
    room.of_server(wire, sequence);
    let Some(noted) = UNTAGGED.get_ptr(&*room) else { return draw(sandbox) };
    // SAFETY: a value of a map, aligned to 8.
    let flags = unsafe { noted.read_volatile() };
    let _ = UNTAGGED.remove(&*room);
    flags as u32
}
