//! The ways of receiving, and what is asked of the socket meanwhile: FIONREAD, poll, epoll.

use std::{
    io::{self, ErrorKind, IoSliceMut, Read as _},
    net::TcpStream,
    os::fd::{AsRawFd as _, RawFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use io_uring::{opcode, types::Fd};

use crate::{
    plan::Receive,
    ring,
    stream::{Stream, TAG},
    sys::{self, Epoll},
};

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    pub socket: TcpStream,
    pub level: Epoll,
    pub edge: Epoll,
    pub is_server: bool,
}

impl End {
    pub fn new(socket: TcpStream, is_server: bool) -> io::Result<Self> {
        let fd = socket.as_raw_fd();
        Ok(Self { level: Epoll::new(fd, false)?, edge: Epoll::new(fd, true)?, socket, is_server })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What a receiver waits on.
#[derive(Debug)]
pub struct Waiting<'a> {
    pub sent: &'a AtomicBool,
    /// Until then everything must be there.
    pub time: Duration,
}

/// Receives until the stream misses nothing; notes in `log` what must be the same with and without the agent.
pub fn receive(
    end: &End,
    how: Receive,
    stream: &mut Stream,
    waiting: &Waiting<'_>,
    log: &mut Vec<String>,
) -> Result<(), String> {
    let late = |stream: &Stream| format!("{} bytes have not come in {:?}", stream.missing(), waiting.time);
    if how == Receive::Fionread {
        return by_fionread(end, stream, waiting, log);
    }
    let mut buffer = vec![0; 80_000];
    let mut pipe = (how == Receive::Splice).then(|| io::pipe().unwrap());
    let deadline = Instant::now() + waiting.time;
    let mut size = 1;
    while stream.missing() > 0 || stream.in_tag() {
        if Instant::now() > deadline {
            return Err(late(stream));
        }
        size = match how {
            Receive::Small => 1 + (size * 7) % 97,
            Receive::Slow => 3000,
            // The server cannot know how much comes with a tag.
            Receive::WaitAll if !end.is_server => stream.missing().min(buffer.len()),
            _ => buffer.len(),
        };
        let some = &mut buffer[..size];
        let result = match how {
            Receive::Readv => {
                let (mut first, mut second) = ([0; 100], [0; 5000]);
                let slices = &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
                (&end.socket).read_vectored(slices).inspect(|&len| {
                    some[..5100].copy_from_slice(&[&first[..], &second[..]].concat());
                    debug_assert!(len <= 5100);
                })
            }
            Receive::Peek => {
                let peeked = sys::recv(end.fd(), some, libc::MSG_PEEK);
                match peeked {
                    Ok(len) => {
                        let seen = some[..len].to_vec();
                        let read = sys::recv(end.fd(), &mut some[..len], 0);
                        if read.as_ref().is_ok_and(|read| *read > 0 && some[..*read] != seen[..*read]) {
                            return Err("what was peeked at is not what was read".to_owned());
                        }
                        read
                    }
                    Err(error) => Err(error),
                }
            }
            Receive::WaitAll if !end.is_server => sys::recv(end.fd(), some, libc::MSG_WAITALL),
            Receive::Level => {
                if end.level.wait(waiting.time) & libc::EPOLLIN == 0 {
                    return Err(format!("epoll (level) did not wake: {}", late(stream)));
                }
                let len = size.min(5000);
                sys::recv(end.fd(), &mut some[..len], libc::MSG_DONTWAIT).inspect_err(|error| {
                    if error.kind() == ErrorKind::WouldBlock {
                        log.push("epoll (level) woke for nothing".to_owned());
                    }
                })
            }
            Receive::Edge => {
                if end.edge.wait(waiting.time) == 0 {
                    return Err(format!("epoll (edge) did not wake: {}", late(stream)));
                }
                drain(end, some, stream)
            }
            Receive::Poll => {
                if sys::poll(end.fd(), libc::POLLIN, waiting.time) & libc::POLLIN == 0 {
                    return Err(format!("poll did not wake: {}", late(stream)));
                }
                sys::recv(end.fd(), some, 0)
            }
            Receive::Splice => {
                let (from, to) = pipe.as_mut().unwrap();
                match sys::splice(end.fd(), to.as_raw_fd(), 60_000) {
                    Ok(0) => Ok(0),
                    Ok(len) => from.read_exact(&mut some[..len]).map(|()| len),
                    Err(error) => Err(error),
                }
            }
            Receive::Uring => {
                let entry = opcode::Recv::new(Fd(end.fd()), some.as_mut_ptr(), some.len() as u32).build();
                // SAFETY: the buffer outlives the call, and what takes longer is cancelled.
                unsafe { ring::run(entry, waiting.time) }.map(|(len, _)| len)
            }
            Receive::Slow => {
                thread::sleep(Duration::from_micros(300));
                sys::recv(end.fd(), some, 0)
            }
            _ => sys::recv(end.fd(), some, 0),
        };
        match result {
            Ok(0) => return Err(format!("the connection ended with {} bytes missing", stream.missing())),
            Ok(len) => stream.take(&buffer[..len])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && how == Receive::Level => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(late(stream)),
            Err(error) => return Err(format!("receive: {error}, {} bytes missing", stream.missing())),
        }
    }
    nothing_left(end, stream, log);
    Ok(())
}

/// Reads until there is nothing, as an edge-triggered reader must, and checks it. `Interrupted` stands for "go on".
fn drain(end: &End, some: &mut [u8], stream: &mut Stream) -> io::Result<usize> {
    loop {
        match sys::recv(end.fd(), some, libc::MSG_DONTWAIT) {
            Ok(0) => return Ok(0),
            Ok(len) => stream.take(&some[..len]).map_err(io::Error::other)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::Interrupted.into()),
            Err(error) => return Err(error),
        }
    }
}

/// Everything has been read: an event loop must not be woken again, and FIONREAD is 0.
fn nothing_left(end: &End, stream: &Stream, log: &mut Vec<String>) {
    if stream.missing() > 0 {
        return;
    }
    let left = sys::fionread(end.fd());
    let events = end.level.wait(Duration::ZERO);
    log.push(format!("left {left}, events {events:#x}"));
}

/// Waits until everything is sent, then until FIONREAD says that it has come, and reads just that.
fn by_fionread(end: &End, stream: &mut Stream, waiting: &Waiting<'_>, log: &mut Vec<String>) -> Result<(), String> {
    let start = Instant::now();
    while !waiting.sent.load(Ordering::Acquire) {
        if start.elapsed() > waiting.time {
            return Err("the sender does not end".to_owned());
        }
        thread::sleep(Duration::from_micros(50));
    }
    let sent = Instant::now();
    let need = stream.missing();
    let mut before = 0;
    let there = loop {
        let there = sys::fionread(end.fd());
        let tagged = end.is_server && there > need && (there - need).is_multiple_of(TAG);
        if (there == need || tagged) && there == before {
            break there;
        }
        if sent.elapsed() > Duration::from_millis(500) {
            break there;
        }
        before = there;
        thread::sleep(Duration::from_micros(300));
    };
    let tags = stream.tags;
    let mut buffer = vec![0; there];
    let mut at = 0;
    while at < there {
        // In two reads, with FIONREAD in between.
        let to = if at == 0 { there.div_ceil(2) } else { there };
        let len = sys::recv(end.fd(), &mut buffer[at..to], libc::MSG_DONTWAIT)
            .map_err(|error| format!("FIONREAD said {there}, but at {at}: {error}"))?;
        at += len;
        let left = sys::fionread(end.fd());
        if left != there - at {
            log.push(format!("FIONREAD {left} where {} of {there} are left", there - at));
        }
    }
    stream.take(&buffer)?;
    let without_tags = there as i64 - (TAG * (stream.tags - tags)) as i64;
    log.push(format!("FIONREAD {without_tags} of {need}"));
    if stream.missing() > 0 {
        // A FIONREAD that is wrong is in the log; go on without it.
        receive(end, Receive::Plain, stream, waiting, log)?;
    } else {
        nothing_left(end, stream, log);
    }
    Ok(())
}
