//! The system calls that the standard library has no function for.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
    ptr::null_mut,
    time::Duration,
};

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub fn send(fd: RawFd, bytes: &[u8], flags: i32) -> io::Result<usize> {
    // SAFETY: pointer and length are a slice's.
    check(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

pub fn recv(fd: RawFd, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: pointer and length are a slice's.
    check(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), flags) })
}

fn message(slices: &[IoSlice<'_>]) -> libc::msghdr {
    // SAFETY: a structure of plain numbers and pointers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    // IoSlice has the layout of iovec; the kernel only reads it.
    message.msg_iov = slices.as_ptr().cast::<libc::iovec>().cast_mut();
    message.msg_iovlen = slices.len() as _;
    message
}

pub fn sendmsg(fd: RawFd, slices: &[IoSlice<'_>], flags: i32) -> io::Result<usize> {
    // SAFETY: the message points to slices that outlive the call.
    check(unsafe { libc::sendmsg(fd, &message(slices), flags) })
}

/// Sends each of two slices as a message of its own; the bytes that were taken.
pub fn sendmmsg(fd: RawFd, slices: [IoSlice<'_>; 2]) -> io::Result<usize> {
    let mut messages =
        slices.each_ref().map(|slice| libc::mmsghdr { msg_hdr: message(std::slice::from_ref(slice)), msg_len: 0 });
    // SAFETY: two messages, which point to slices that outlive the call.
    let count = check(unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), 2, 0) } as isize)?;
    Ok(messages[..count].iter().map(|message| message.msg_len as usize).sum())
}

/// A file in memory that holds `bytes`.
pub fn memfd(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
    let mut file = unsafe {
        let fd = check(libc::memfd_create(c"torture".as_ptr(), libc::MFD_CLOEXEC) as isize)?;
        File::from_raw_fd(fd as RawFd)
    };
    file.write_all(bytes)?;
    Ok(file)
}

pub fn sendfile(fd: RawFd, file: &File, from: usize, len: usize) -> io::Result<usize> {
    let mut offset = from as libc::off_t;
    // SAFETY: two open descriptors and a number of our own.
    check(unsafe { libc::sendfile(fd, file.as_raw_fd(), &mut offset, len) })
}

pub fn splice(from: RawFd, to: RawFd, len: usize) -> io::Result<usize> {
    // SAFETY: two open descriptors, no offsets.
    check(unsafe { libc::splice(from, null_mut(), to, null_mut(), len, 0) })
}

pub fn vmsplice(pipe: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let slice = IoSlice::new(bytes);
    // SAFETY: one slice, which the kernel reads; it lives until the connection is closed.
    check(unsafe { libc::vmsplice(pipe, (&raw const slice).cast(), 1, 0) })
}

pub fn set(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: an int, as these options want.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as u32) };
    check(result as isize).map(drop)
}

/// Makes `close` reset the connection.
pub fn linger_zero(fd: RawFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as u32;
    // SAFETY: the structure that the option wants.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len) };
    check(result as isize).map(drop)
}

pub fn fionread(fd: RawFd) -> usize {
    let mut count: i32 = -1;
    // SAFETY: FIONREAD writes an int.
    check(unsafe { libc::ioctl(fd, libc::FIONREAD, &mut count) } as isize).unwrap();
    count as usize
}

/// Waits for events on one descriptor; those that came, 0 if none did in time.
pub fn poll(fd: RawFd, events: i16, time: Duration) -> i16 {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one structure of our own.
    check(unsafe { libc::poll(&mut one, 1, time.as_millis() as i32) } as isize).unwrap();
    one.revents
}

/// An epoll instance that watches one socket.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new(fd: RawFd, edge: bool) -> io::Result<Self> {
        let edge = if edge { libc::EPOLLET as u32 } else { 0 };
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLRDHUP) as u32 | edge, u64: 0 };
        // SAFETY: the descriptor that comes back is nobody else's; the event is our own.
        unsafe {
            let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC) as isize)? as RawFd);
            check(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) as isize)?;
            Ok(Self(epoll))
        }
    }

    /// The events that came, 0 if none did in time.
    pub fn wait(&self, time: Duration) -> i32 {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), &mut event, 1, time.as_millis() as i32) };
        if check(count as isize).unwrap() == 1 { event.events as i32 } else { 0 }
    }
}

/// SO_EE_ORIGIN_ZEROCOPY, linux/errqueue.h.
const ZEROCOPY: u8 = 5;

/// Takes the completions of MSG_ZEROCOPY sends off the error queue: how many sends they are for.
pub fn zerocopy_completions(fd: RawFd) -> usize {
    let mut done = 0;
    loop {
        let mut control = [0_u64; 16];
        // SAFETY: plain numbers and pointers.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: no data, and a control buffer that outlives the call.
        if unsafe { libc::recvmsg(fd, &mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) } < 0 {
            return done;
        }
        // SAFETY: the kernel has filled in the message; the macros stay within its control buffer.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            if !header.is_null() {
                let error = libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned();
                if error.ee_origin == ZEROCOPY {
                    done += error.ee_data.wrapping_sub(error.ee_info) as usize + 1;
                }
            }
        }
    }
}

/// Writes all of `bytes` from a child process that shares the socket.
pub fn write_in_child(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the child makes async-signal-safe calls only, allocates nothing and never returns.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut at = 0;
            while at < bytes.len() {
                let written = libc::write(fd, bytes.as_ptr().add(at).cast(), bytes.len() - at);
                if written <= 0 {
                    libc::_exit(1);
                }
                at += written as usize;
            }
            libc::_exit(0);
        }
        check(child as isize)?
    };
    let mut status = 0;
    // SAFETY: our own child.
    check(unsafe { libc::waitpid(child as i32, &mut status, 0) } as isize)?;
    if status == 0 { Ok(()) } else { Err(io::Error::other(format!("the child ended with {status}"))) }
}
