//! The ways of sending. Each reports what the system calls answered, and a count that does not add up is a failure.

use std::{
    io::{self, ErrorKind, IoSlice, Write as _},
    net::TcpStream,
    os::fd::{AsRawFd as _, RawFd},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use io_uring::{opcode, squeue, types::Fd};

use crate::{
    plan::{Piece, Turn, Way},
    ring, sys,
};

/// How long a send buffer may stay full.
const FULL: Duration = Duration::from_secs(8);

/// What was sent without a copy: the kernel tells later that it is done with the memory.
#[derive(Debug, Default)]
pub struct Borrowed {
    /// How many times MSG_ZEROCOPY was used.
    pub flagged: usize,
    /// One for each of io_uring's.
    pub rings: Vec<ring::Memory>,
}

/// Sends a turn; `before` is called before each piece.
pub fn send(socket: &TcpStream, turn: &Turn, before: impl Fn(usize)) -> Result<Borrowed, String> {
    let fd = socket.as_raw_fd();
    let cork = |on| sys::set(fd, libc::IPPROTO_TCP, libc::TCP_CORK, on).map_err(|error| format!("cork: {error}"));
    if turn.cork {
        cork(1)?;
    }
    let (mut from, mut borrowed) = (0, Borrowed::default());
    for (at, piece) in turn.pieces.iter().enumerate() {
        before(at);
        let bytes = &turn.bytes[from..from + piece.len];
        one(socket, *piece, bytes, &mut borrowed)
            .map_err(|error| format!("piece {at}, {:?} of {}: {error}", piece.way, piece.len))?;
        from += piece.len;
    }
    if turn.cork {
        cork(0)?;
    }
    Ok(borrowed)
}

/// A blocking send takes all of it.
fn whole(taken: usize, bytes: &[u8]) -> io::Result<()> {
    if taken == bytes.len() {
        return Ok(());
    }
    Err(io::Error::other(format!("said to have taken {taken} of {} bytes", bytes.len())))
}

fn one(socket: &TcpStream, piece: Piece, bytes: &[u8], borrowed: &mut Borrowed) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    match piece.way {
        Way::Write => whole((&*socket).write(bytes)?, bytes),
        Way::Writev => whole((&*socket).write_vectored(&slices(bytes))?, bytes),
        Way::Send => whole(sys::send(fd, bytes, 0)?, bytes),
        Way::SendMore => whole(sys::send(fd, bytes, libc::MSG_MORE)?, bytes),
        Way::Sendmsg => whole(sys::sendmsg(fd, &slices(bytes), 0)?, bytes),
        Way::SendmsgMore => whole(sys::sendmsg(fd, &slices(bytes), libc::MSG_MORE)?, bytes),
        Way::Sendmmsg => {
            let (first, second) = bytes.split_at(bytes.len() / 2);
            whole(sys::sendmmsg(fd, [IoSlice::new(first), IoSlice::new(second)])?, bytes)
        }
        Way::Sendfile => {
            let mut file = sys::memfd(bytes)?;
            let mut at = 0;
            while at < bytes.len() {
                match sys::sendfile(fd, &file, at, bytes.len() - at)? {
                    0 => return Err(io::Error::other(format!("sendfile ended at {at}"))),
                    taken => at += taken,
                }
            }
            unchanged(&mut file, bytes)
        }
        Way::Splice | Way::Vmsplice => spliced(fd, bytes, piece.way == Way::Vmsplice),
        Way::Nonblocking => nonblocking(fd, bytes),
        Way::Thread => two_threads(fd, bytes),
        Way::Fork => sys::write_in_child(fd, bytes),
        Way::Zerocopy => {
            let mut at = 0;
            while at < bytes.len() {
                at += sys::send(fd, &bytes[at..], libc::MSG_ZEROCOPY)?;
                borrowed.flagged += 1;
            }
            Ok(())
        }
        Way::Uring => {
            uring(bytes, borrowed, |rest| opcode::Send::new(Fd(fd), rest.as_ptr(), rest.len() as u32).build())
        }
        Way::UringZerocopy => {
            uring(bytes, borrowed, |rest| opcode::SendZc::new(Fd(fd), rest.as_ptr(), rest.len() as u32).build())
        }
    }
}

/// Three slices of different lengths, one of them empty where there is little.
fn slices(bytes: &[u8]) -> [IoSlice<'_>; 3] {
    let (first, rest) = bytes.split_at(bytes.len() / 7);
    let (second, third) = rest.split_at(rest.len() / 3);
    [first, second, third].map(IoSlice::new)
}

/// A file must be as it was after it was sent: the kernel may have put its very pages on the wire.
fn unchanged(file: &mut std::fs::File, bytes: &[u8]) -> io::Result<()> {
    use std::io::{Read as _, Seek as _};
    let mut now = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut now)?;
    if now == bytes { Ok(()) } else { Err(io::Error::other("the file that was sent has changed")) }
}

fn spliced(fd: RawFd, bytes: &[u8], user_pages: bool) -> io::Result<()> {
    let (from, mut to) = io::pipe()?;
    let before = user_pages.then(|| bytes.to_vec());
    let mut at = 0;
    while at < bytes.len() {
        // A pipe has sixteen pages, and what does not begin at one takes one more.
        let some = &bytes[at..bytes.len().min(at + 60_000)];
        let filled = if user_pages { sys::vmsplice(to.as_raw_fd(), some)? } else { to.write(some)? };
        let mut left = filled;
        while left > 0 {
            match sys::splice(from.as_raw_fd(), fd, left)? {
                0 => return Err(io::Error::other("splice took nothing")),
                taken => left -= taken,
            }
        }
        at += filled;
    }
    match before {
        Some(before) if before != bytes => Err(io::Error::other("the memory that was sent has changed")),
        _ => Ok(()),
    }
}

fn nonblocking(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match sys::send(fd, &bytes[at..], libc::MSG_DONTWAIT) {
            Ok(taken) if taken <= bytes.len() - at => at += taken,
            Ok(taken) => return Err(io::Error::other(format!("said to have taken {taken} of {}", bytes.len() - at))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let since = Instant::now();
                if sys::poll(fd, libc::POLLOUT, FULL) & libc::POLLOUT == 0 {
                    return Err(io::Error::other(format!("not writable again in {:?}, at {at}", since.elapsed())));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Two threads take turns at sending from the same bytes, under a lock as real programs do.
fn two_threads(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    let at = Mutex::new(0);
    let step = bytes.len().div_ceil(4);
    let work = || {
        loop {
            let mut at = at.lock().unwrap();
            if *at == bytes.len() {
                return Ok(());
            }
            let some = &bytes[*at..bytes.len().min(*at + step)];
            // Not the last one: the kernel may wait for more.
            let more = if *at + some.len() < bytes.len() { libc::MSG_MORE } else { 0 };
            whole(sys::send(fd, some, more)?, some)?;
            *at += some.len();
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        work().and(other.join().unwrap())
    })
}

fn uring(bytes: &[u8], borrowed: &mut Borrowed, entry: impl Fn(&[u8]) -> squeue::Entry) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        // SAFETY: the bytes are the plan's, which outlives the connection.
        let (taken, memory) = unsafe { ring::run(entry(&bytes[at..]), FULL)? };
        if taken == 0 {
            return Err(io::Error::other("io_uring took nothing"));
        }
        at += taken;
        borrowed.rings.extend(memory);
    }
    Ok(())
}
