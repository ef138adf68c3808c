//! The rarer ways of reading from an enrolled socket.
//!
//! With a verdict program what arrives waits on a queue of sk_msg (net/core/skmsg.c), which read(2), recv(2), poll(2) and
//! FIONREAD look at and others do not: splice(2) reads the socket's own queue (net/ipv4/tcp.c, `tcp_splice_read`), and
//! `tcp_bpf_recvmsg` (net/ipv4/tcp_bpf.c) knows neither MSG_WAITALL nor control messages nor SO_RCVLOWAT.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd as _,
    ptr::null_mut,
    thread,
    time::{Duration, Instant},
};

use super::{Enrolment, Fault, PATIENCE, Pair, doing, readable, wait};

/// `TCP_INQ` and `TCP_CM_INQ` (include/uapi/linux/tcp.h): how much is left, told with each read.
const TCP_INQ: libc::c_int = 36;

type Check = fn(&Pair, &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault>;

/// A name for people, and whether it works. The function that is passed puts the client socket into the map.
const WAYS: [(&str, Check); 5] = [
    ("splice(2)", splice),
    ("MSG_WAITALL", wait_all),
    ("SO_RCVLOWAT", low_water),
    ("TCP_INQ", left),
    ("a read that waits while the socket is enrolled", waiting),
];

/// The ways that do not work.
pub fn broken(verdict: bool, deadline: Instant) -> Result<Vec<&'static str>, Fault> {
    let enrolment = Enrolment::new(verdict)?;
    let mut broken = Vec::new();
    for (name, works) in WAYS {
        let pair = Pair::connect(deadline)?;
        if !works(&pair, &|| enrolment.insert(2, &pair.client))? {
            broken.push(name);
        }
        // The key is free again when the socket closes.
    }
    Ok(broken)
}

fn splice(pair: &Pair, enrol: &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault> {
    enrol()?;
    let (_reader, writer) = doing("make a pipe", io::pipe())?;
    send(&pair.server, 100)?;
    readable(&pair.client, PATIENCE)?;
    let (from, to) = (pair.client.as_raw_fd(), writer.as_raw_fd());
    // SAFETY: both descriptors are open; no offsets.
    let moved = unsafe { libc::splice(from, null_mut(), to, null_mut(), 100, libc::SPLICE_F_NONBLOCK) };
    Ok(moved == 100)
}

fn wait_all(pair: &Pair, enrol: &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault> {
    enrol()?;
    blocking(&pair.client)?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send(&pair.server, 50)?;
            thread::sleep(Duration::from_millis(3));
            send(&pair.server, 50)
        });
        let mut buffer = [0_u8; 100];
        let read = recv(&pair.client, &mut buffer, libc::MSG_WAITALL);
        sender.join().unwrap_or(Ok(()))?;
        Ok(read == 100)
    })
}

fn low_water(pair: &Pair, enrol: &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault> {
    enrol()?;
    set(&pair.client, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &100)?;
    send(&pair.server, 50)?;
    let early = wait([pair.client.as_raw_fd()], Duration::from_millis(5))?;
    send(&pair.server, 50)?;
    Ok(!early && wait([pair.client.as_raw_fd()], PATIENCE)?)
}

fn left(pair: &Pair, enrol: &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault> {
    enrol()?;
    set(&pair.client, libc::IPPROTO_TCP, TCP_INQ, &1)?;
    send(&pair.server, 100)?;
    readable(&pair.client, PATIENCE)?;
    let mut bytes = [0_u8; 30];
    // As aligned as a control message has to be.
    let mut control = [0_u64; 8];
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a structure of plain numbers and pointers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<[u64; 8]>() as _;
    // SAFETY: the message points to buffers of the lengths that it gives, which outlive the call; what the macros find in
    // the control buffer is there, since the kernel wrote its length.
    let told = unsafe {
        let read = libc::recvmsg(pair.client.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if read != 30 || header.is_null() || (*header).cmsg_type != TCP_INQ {
            None
        } else {
            Some(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned())
        }
    };
    Ok(told == Some(70))
}

fn waiting(pair: &Pair, enrol: &dyn Fn() -> Result<(), Fault>) -> Result<bool, Fault> {
    blocking(&pair.client)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| recv(&pair.client, &mut [0; 100], 0));
        // Time to fall asleep in; if it does not suffice, the check says too little, and never too much.
        thread::sleep(Duration::from_millis(5));
        enrol()?;
        send(&pair.server, 100)?;
        let until = Instant::now() + 2 * PATIENCE;
        while !reader.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        // One that has not woken up by now does by this.
        doing("shut down", pair.client.shutdown(Shutdown::Read))?;
        Ok(reader.join().is_ok_and(|read| read == 100))
    })
}

fn send(socket: &TcpStream, len: usize) -> Result<(), Fault> {
    let mut socket = socket;
    doing("write", io::Write::write_all(&mut socket, &vec![b'x'; len]))
}

/// What was read; nothing is read where it takes too long.
fn recv(socket: &TcpStream, buffer: &mut [u8], flags: libc::c_int) -> isize {
    // SAFETY: pointer and length are a slice's.
    unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) }
}

/// Makes reads wait; not for ever, but for longer than a busy machine keeps the other thread waiting.
fn blocking(socket: &TcpStream) -> Result<(), Fault> {
    doing("block", socket.set_nonblocking(false))?;
    doing("limit a read", socket.set_read_timeout(Some(10 * PATIENCE)))
}

fn set(socket: &TcpStream, level: libc::c_int, option: libc::c_int, value: &libc::c_int) -> Result<(), Fault> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an int, as long as `len` says, and outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), len) };
    if set == 0 { Ok(()) } else { doing("setsockopt", Err(io::Error::last_os_error())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_a_socket_without_a_verdict_program_reads_in_every_way() {
        let broken = broken(false, Instant::now() + Duration::from_secs(5)).unwrap();
        assert_eq!(broken, Vec::<&str>::new(), "run as root");
    }
}
