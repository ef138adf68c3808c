//! Carries out a plan on a connection of its own.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{
    plan::{self, Family, Place, Plan, Side},
    receiving::{End, Waiting, receive},
    sending::{self, Borrowed},
    stream::Stream,
    sys,
};

/// Until then everything that was sent must have come, with or without an agent.
const TIME: Duration = Duration::from_secs(8);

/// What came of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What must be the same with and without the agent.
    pub log: Vec<String>,
    /// How long each turn took.
    pub times: Vec<Duration>,
    pub bytes: usize,
    pub tags: usize,
    pub rewrites: usize,
    pub plain: usize,
    pub plain_tagged: usize,
    /// What must not be at all.
    pub failure: Option<String>,
}

/// The listeners, each in its place, and sockets that were made outside of every sandbox.
#[derive(Debug)]
pub struct World {
    listeners: [Mutex<TcpListener>; 3],
    outside: Mutex<Vec<OwnedFd>>,
    /// Connections from outside on which no invocation is live: the sandbox's end, the other end.
    idle: Mutex<Vec<(TcpStream, TcpStream)>>,
}

/// Listens on IPv4 and IPv6 in the sandbox where the caller is.
pub fn listener() -> TcpListener {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap()
}

/// Holds plans back in the middle.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.1).unwrap());
    }

    /// Waits until `count` plans stand at the gate; some may have ended before.
    pub fn filled(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let state = self.changed.wait_timeout_while(state, TIME, |state| state.0 < count).unwrap().0;
        assert_eq!(state.0, count, "plans that have not come to the gate");
    }

    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// A socket for a connection to `to`, of the caller's sandbox.
pub fn socket(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

impl World {
    pub fn new(listeners: [TcpListener; 3], outside: Vec<OwnedFd>) -> Self {
        Self { listeners: listeners.map(Mutex::new), outside: Mutex::new(outside), idle: Mutex::default() }
    }

    /// From now on invocations come on connections that are new.
    pub fn fresh(&self) {
        self.idle.lock().unwrap().clear();
    }

    fn connect(&self, plan: &Plan) -> io::Result<(TcpStream, TcpStream)> {
        let listener = self.listeners[plan.place as usize].lock().unwrap();
        let port = listener.local_addr()?.port();
        let to = match plan.family {
            Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
            Family::Mapped => SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)),
        };
        let client = socket(to)?;
        if plan.zero_copy {
            // Before the connection is made: a socket that has it then is left alone.
            sys::set(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
        }
        rustix::net::connect(&client, &to)?;
        Ok((client.into(), listener.accept()?.0))
    }

    /// Begins an invocation of the sandbox that comes with `context`.
    fn invocation(&self, context: &str) -> io::Result<(TcpStream, TcpStream)> {
        let idle = self.idle.lock().unwrap().pop();
        let (inside, outside) = idle.map_or_else(|| self.connect_from_outside(), Ok)?;
        let head = format!("GET /invocation HTTP/1.1\r\nhost: x\r\ntraceparent: {context}\r\n\r\n");
        sys::send(outside.as_raw_fd(), head.as_bytes(), 0)?;
        let mut buffer = [0; 1000];
        let len = sys::recv(inside.as_raw_fd(), &mut buffer, 0)?;
        if buffer[..len] == *head.as_bytes() { Ok((inside, outside)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn connect_from_outside(&self) -> io::Result<(TcpStream, TcpStream)> {
        let listener = self.listeners[Place::Own as usize].lock().unwrap();
        let port = listener.local_addr()?.port();
        let outside = self.outside.lock().unwrap().pop().ok_or(io::ErrorKind::NotFound)?;
        rustix::net::connect(&outside, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        Ok((listener.accept()?.0, TcpStream::from(outside)))
    }

    fn answer(&self, (inside, outside): (TcpStream, TcpStream)) {
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        let mut buffer = [0; 100];
        let sent = sys::send(inside.as_raw_fd(), answer, libc::MSG_NOSIGNAL);
        if sent.is_ok() && sys::recv(outside.as_raw_fd(), &mut buffer, 0).is_ok_and(|len| buffer[..len] == *answer) {
            self.idle.lock().unwrap().push((inside, outside));
        }
    }
}

pub fn run(plan: &Plan, world: &World, gate: Option<&Gate>) -> Outcome {
    let mut outcome = Outcome::default();
    // More sockets cannot be made outside later; without one the plan's context is one that nobody knows.
    let invocation = plan.forwarded.as_ref().and_then(|context| world.invocation(context).ok());
    let result = connected(plan, world, gate, &mut outcome);
    if let Some(invocation) = invocation {
        world.answer(invocation);
    }
    outcome.failure = result.err();
    outcome
}

fn connected(plan: &Plan, world: &World, gate: Option<&Gate>, outcome: &mut Outcome) -> Result<(), String> {
    let say = |error: io::Error| format!("set up: {error}");
    let (client, server) = world.connect(plan).map_err(say)?;
    sys::set(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1).map_err(say)?;
    for socket in [&client, &server] {
        socket.set_nodelay(plan.nodelay).map_err(say)?;
        let time = if gate.is_some() { 2 * TIME } else { TIME };
        socket.set_read_timeout(Some(time)).map_err(say)?;
        socket.set_write_timeout(Some(time)).map_err(say)?;
        if plan.tiny_buffers {
            sys::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 4096).map_err(say)?;
            sys::set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 8192).map_err(say)?;
        }
    }
    let (client, server) = (End::new(client, false).map_err(say)?, End::new(server, true).map_err(say)?);
    let (mut up, mut down) = (Stream::default(), Stream::default());
    let mut result = Ok(());
    for (at, turn) in plan.turns.iter().enumerate() {
        let is_up = turn.from == Side::Client;
        let (from, to, stream) = if is_up { (&client, &server, &mut up) } else { (&server, &client, &mut down) };
        stream.extend(&turn.bytes, &turn.sites);
        let start = Instant::now();
        let (sent, received) = one_turn(plan, gate, (at, turn), (from, to), (stream, &mut outcome.log));
        outcome.times.push(start.elapsed());
        outcome.bytes += turn.bytes.len();
        result = match (sent, received) {
            (Ok(borrowed), Ok(())) => {
                outcome.log.extend(given_back(from, borrowed));
                Ok(())
            }
            (Err(sent), Err(received)) => Err(format!("{sent}; {received}")),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        if let Err(error) = &mut result {
            *error = format!("turn {at}: {error}");
            break;
        }
    }
    if result.is_ok() {
        result = finish(plan, client, server, (&mut up, &mut down), &mut outcome.log);
    }
    outcome.tags = up.tags;
    outcome.rewrites = up.rewrites;
    outcome.plain = up.plain;
    outcome.plain_tagged = up.plain_tagged;
    result
}

type Ends<'a> = (&'a End, &'a End);

fn one_turn(
    plan: &Plan,
    gate: Option<&Gate>,
    (at, turn): (usize, &plan::Turn),
    (from, to): Ends<'_>,
    (stream, log): (&mut Stream, &mut Vec<String>),
) -> (Result<Borrowed, String>, Result<(), String>) {
    let sent = AtomicBool::new(false);
    let waiting = Waiting { sent: &sent, time: if gate.is_some() { 2 * TIME } else { TIME } };
    let pause = plan.pause();
    // Where one side has failed, the other must not wait for it.
    let hang_up = || [from, to].into_iter().for_each(|end| drop(end.socket.shutdown(Shutdown::Both)));
    let send = || {
        let result = sending::send(&from.socket, turn, |piece| {
            if let Some(gate) = gate.filter(|_| pause == (at, piece)) {
                gate.wait();
            }
        });
        sent.store(true, Ordering::Release);
        result.inspect_err(|_| hang_up())
    };
    let receive = |stream, log| receive(to, turn.receive, stream, &waiting, log).inspect_err(|_| hang_up());
    // The client's end is always worked by the thread that works for the invocation.
    thread::scope(|scope| {
        if turn.from == Side::Client {
            let receiver = scope.spawn(|| receive(stream, log));
            let sent = send();
            (sent, receiver.join().unwrap())
        } else {
            let sender = scope.spawn(send);
            let received = receive(stream, log);
            (sender.join().unwrap(), received)
        }
    })
}

/// How many zero-copy sends are reported to be done: as many as there were, and not one more.
///
/// Not part of the turn's time: the memory is held until the other side acknowledges what it has, which it may put off.
fn given_back(end: &End, borrowed: Borrowed) -> Vec<String> {
    let mut log = Vec::new();
    if borrowed.flagged > 0 {
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut done = 0;
        while done < borrowed.flagged && Instant::now() < deadline {
            done += sys::zerocopy_completions(end.fd());
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_millis(1));
        done += sys::zerocopy_completions(end.fd());
        log.push(format!("{done} of {} zero-copy sends are done", borrowed.flagged));
    }
    if !borrowed.rings.is_empty() {
        let sends = borrowed.rings.len();
        let done = borrowed.rings.into_iter().filter_map(|memory| memory.becomes_free().then_some(())).count();
        log.push(format!("{done} of {sends} zero-copy sends of io_uring are done"));
    }
    log
}

/// What the other side of a connection that ends sees.
fn sees_end(end: &End) -> String {
    let events = end.level.wait(TIME);
    match sys::recv(end.fd(), &mut [0; 1000], 0) {
        Ok(0) => format!("events {events:#x}, end"),
        Ok(len) => format!("events {events:#x}, {len} bytes"),
        Err(error) => format!("events {events:#x}, {:?}", error.kind()),
    }
}

fn finish(
    plan: &Plan,
    client: End,
    server: End,
    (up, down): (&mut Stream, &mut Stream),
    log: &mut Vec<String>,
) -> Result<(), String> {
    let say = |error: io::Error| format!("end: {error}");
    let sent = AtomicBool::new(true);
    let waiting = Waiting { sent: &sent, time: TIME };
    let last = b"last words";
    let saw = match plan.end {
        plan::End::ClientCloses => {
            drop(client);
            sees_end(&server)
        }
        plan::End::ServerCloses => {
            drop(server);
            sees_end(&client)
        }
        plan::End::ClientHalfCloses => {
            client.socket.shutdown(Shutdown::Write).map_err(say)?;
            let saw = sees_end(&server);
            down.extend(last, &[]);
            sys::send(server.fd(), last, 0).map_err(say)?;
            receive(&client, plan::Receive::Edge, down, &waiting, log)?;
            drop(server);
            format!("{saw}; {}", sees_end(&client))
        }
        plan::End::ServerHalfCloses => {
            server.socket.shutdown(Shutdown::Write).map_err(say)?;
            let saw = sees_end(&client);
            up.extend(last, &[]);
            sys::send(client.fd(), last, 0).map_err(say)?;
            receive(&server, plan::Receive::Plain, up, &waiting, log)?;
            drop(client);
            format!("{saw}; {}", sees_end(&server))
        }
        plan::End::ClientResets => {
            sys::linger_zero(client.fd()).map_err(say)?;
            drop(client);
            sees_end(&server)
        }
        plan::End::ServerResets => {
            sys::linger_zero(server.fd()).map_err(say)?;
            drop(server);
            let saw = sees_end(&client);
            let after = sys::send(client.fd(), last, libc::MSG_NOSIGNAL).map_err(|error| error.kind());
            format!("{saw}; {after:?}")
        }
        plan::End::ClientClosesUnread => {
            sys::send(server.fd(), last, 0).map_err(say)?;
            client.level.wait(TIME);
            drop(client);
            sees_end(&server)
        }
    };
    log.push(format!("{:?}: {saw}", plan.end));
    Ok(())
}
