//! Sockets used in ways that no framework uses them: whatever they do, the other side gets their bytes and, at most, a
//! tag in the head.
//!
//! The programs in the sandboxes are this very test binary, which runs [`helper`] with a scenario's name.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{agent::Agent, sandbox::Slice};

const SCENARIO: &str = "FNTRACE_TEST_SCENARIO";
const PORT: &str = "FNTRACE_TEST_PORT";
const OTHER: &str = "FNTRACE_TEST_OTHER_PORT";

/// Mostly empty lines, which may stand before a request: wherever a parser gets in, it soon finds one.
fn lookalike(len: usize) -> Vec<u8> {
    let unit = [b"\r\n".repeat(60).as_slice(), b"GET /phantom HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
    unit.into_iter().cycle().take(len).collect()
}

fn request(path: &str, filler: usize, body: &[u8]) -> Vec<u8> {
    let filler = "f".repeat(filler);
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-Filler: {filler}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn start(slice: &Slice, scenario: &str, port: u16, other: u16) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hostile::helper", "--ignored", "--nocapture"]);
    command.env(SCENARIO, scenario).env(PORT, port.to_string()).env(OTHER, other.to_string());
    slice.sandbox(scenario).spawn(command.stdout(std::process::Stdio::null()))
}

fn port_of(name: &str) -> u16 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()
}

fn address(port: u16) -> libc::sockaddr_in {
    // SAFETY: all zeroes are a socket address.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
    address
}

fn option(socket: i32, level: i32, name: i32, value: i32) {
    // SAFETY: a pointer to an integer and its length.
    let failed = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), 4) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

fn socket() -> OwnedFd {
    socket_of(0).unwrap()
}

/// A stream socket of a protocol that this kernel may not have.
fn socket_of(protocol: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, protocol) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Sends all of `bytes` on a non-blocking socket, in pieces of `piece`, as an event loop does.
fn send_all(stream: &mut TcpStream, bytes: &[u8], piece: usize) {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..bytes.len().min(sent + piece)]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_micros(200)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_answer(stream: &mut TcpStream) {
    stream.set_nonblocking(false).unwrap();
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, ANSWER);
}

/// Not a test: what the sandboxes run.
#[test]
#[ignore = "runs inside of the tests' sandboxes"]
fn helper() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let port = port_of(PORT);
    match scenario.as_str() {
        "fast-open" => {
            let socket = socket();
            let bytes = fast_open();
            let to = address(port);
            // The head leaves by a call that began before there was a connection.
            // SAFETY: pointers to live values, with their lengths.
            let sent = unsafe {
                let (head, len) = (bytes.as_ptr().cast(), FAST_OPEN_HEAD);
                libc::sendto(socket.as_raw_fd(), head, len, libc::MSG_FASTOPEN, (&raw const to).cast(), 16)
            };
            assert_eq!(sent, FAST_OPEN_HEAD as isize, "{}", std::io::Error::last_os_error());
            let mut stream = TcpStream::from(socket);
            stream.write_all(&bytes[FAST_OPEN_HEAD..]).unwrap();
            read_answer(&mut stream);
        }
        "short-writes" => {
            // Before the connection, from which on the server waits.
            let requests = short_writes();
            let mut stream = connect(port);
            option(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 64 << 10);
            for bytes in requests {
                stream.set_nonblocking(true).unwrap();
                // Little enough that a tag has room, then more than the buffer takes.
                send_all(&mut stream, &bytes[..20_000], usize::MAX / 2);
                send_all(&mut stream, &bytes[20_000..], 150_000);
                read_answer(&mut stream);
            }
        }
        "large" => {
            let requests = large();
            let mut stream = connect(port);
            for bytes in requests {
                stream.write_all(&bytes).unwrap();
                read_answer(&mut stream);
            }
        }
        "mptcp" => {
            let requests = large();
            let socket = socket_of(libc::IPPROTO_MPTCP).unwrap();
            let to = address(port);
            // SAFETY: a pointer to a live value, with its length.
            let failed = unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), 16) };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
            let mut stream = TcpStream::from(socket);
            for bytes in requests {
                stream.write_all(&bytes).unwrap();
                read_answer(&mut stream);
            }
        }
        "lowat" => {
            let mut stream = connect(port);
            option(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 1);
            stream.set_nonblocking(true).unwrap();
            for bytes in lowat() {
                stream.set_nonblocking(true).unwrap();
                send_all(&mut stream, &bytes, usize::MAX / 2);
                read_answer(&mut stream);
            }
        }
        "tunnel" => {
            let mut stream = connect(port);
            for part in tunnel() {
                stream.write_all(&part).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            read_answer(&mut stream);
        }
        "cut" => {
            let mut stream = connect(port);
            stream.set_nodelay(true).unwrap();
            for part in cut() {
                stream.write_all(&part).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            read_answer(&mut stream);
        }
        "deferred" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            option(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 100_000]).unwrap();
                stream.write_all(ANSWER).unwrap();
            }
        }
        "again" => {
            let socket = socket();
            for port in [port_of(OTHER), port_of(OTHER), port] {
                let to = address(port);
                // SAFETY: a pointer to a live value, with its length.
                unsafe { libc::connect(socket.as_raw_fd(), (&raw const to).cast(), 16) };
            }
            let mut stream = TcpStream::from(socket);
            stream.write_all(&request("/again", 0, b"")).unwrap();
            read_answer(&mut stream);
        }
        "given-up" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            let (mut old, _) = listener.accept().unwrap();
            let _ = old.read(&mut [0; 1000]).unwrap();
            drop(old);
            let (mut new, _) = listener.accept().unwrap();
            let _ = new.read(&mut [0; 1000]).unwrap();
            let mut call = connect(port_of(OTHER));
            call.write_all(&request("/call", 0, b"")).unwrap();
            read_answer(&mut call);
            new.write_all(ANSWER).unwrap();
            let _ = new.read(&mut [0; 1000]);
        }
        "stranger" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
            let (mut stranger, _) = listener.accept().unwrap();
            let _ = stranger.read(&mut [0; 1000]).unwrap();
            let invocation = || {
                let (mut client, _) = listener.accept().unwrap();
                let _ = client.read(&mut [0; 1000]).unwrap();
                let mut call = connect(port_of(OTHER));
                call.write_all(&request("/call", 0, b"")).unwrap();
                read_answer(&mut call);
                client.write_all(ANSWER).unwrap();
                let _ = client.read(&mut [0; 1000]);
            };
            invocation();
            assert_eq!(stranger.read(&mut [0; 1000]).unwrap(), 0);
            drop(stranger);
            invocation();
        }
        other => panic!("no scenario {other}"),
    }
}

/// A server outside of all sandboxes: for each of `requests` reads its length (and what a tag adds), slowly if asked
/// to, and answers. Gives the bytes.
fn serve(listener: TcpListener, requests: &[Vec<u8>], slow: bool) -> Vec<Vec<u8>> {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let mut got = Vec::new();
    for request in requests {
        let mut bytes = vec![0; request.len() + 70];
        let mut len = 0;
        while len < bytes.len() && bytes[..len] != request[..] {
            match stream.read(&mut bytes[len..]) {
                Ok(0) | Err(_) => break,
                Ok(more) => {
                    len += more;
                    if slow {
                        thread::sleep(Duration::from_micros(300));
                    }
                }
            }
        }
        bytes.truncate(len);
        got.push(bytes);
        stream.write_all(ANSWER).unwrap();
    }
    got
}

/// Where the head of the first request holds a tag.
fn tag_of(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |head| head + 2);
    bytes[..head].windows(15).position(|window| window == b"\r\ntraceparent: ").map(|at| at + 2)
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Runs a client scenario and compares what arrives; says how many requests had a tag, and gives the agent.
fn arrives(scenario: &str, listener: (TcpListener, u16), requests: &[Vec<u8>], slow: bool) -> (usize, Agent) {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let (listener, port) = listener;
    let mut client = start(&slice, scenario, port, 0);
    let got = serve(listener, requests, slow);
    let mut tags = 0;
    for (number, (got, sent)) in got.into_iter().zip(requests).enumerate() {
        let mut plain = got.clone();
        if let Some(at) = tag_of(&got) {
            plain.drain(at..at + 70);
            tags += 1;
        }
        let differs = plain.iter().zip(sent).position(|(a, b)| a != b).unwrap_or(plain.len().min(sent.len()));
        let around = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[differs.min(bytes.len())..bytes.len().min(differs + 80)]).into_owned()
        };
        assert!(
            plain == *sent,
            "{scenario}: request {number} of {} bytes arrives as {} and differs at {differs}: {:?}, not {:?}",
            sent.len(),
            plain.len(),
            around(&plain),
            around(sent)
        );
    }
    assert!(client.wait().unwrap().success(), "{scenario}: the client got what it should");
    drop(slice);
    (tags, agent)
}

const FAST_OPEN_HEAD: usize = 66;

fn fast_open() -> Vec<u8> {
    let body = lookalike(5000);
    let bytes = request("/fast", 0, &body);
    assert_eq!(bytes.len() - body.len(), FAST_OPEN_HEAD);
    bytes
}

#[test]
fn a_body_after_a_head_that_left_with_the_connection_is_a_body() {
    arrives("fast-open", listen(), &[fast_open()], false);
}

fn short_writes() -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for round in 0..12 {
        requests.push(request("/length", 0, &lookalike(700_000 + round * 777)));
        let mut chunked = b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..2 {
            let chunk = lookalike(250_000 + round * 331);
            chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
            chunked.extend(chunk);
            chunked.extend(b"\r\n");
        }
        chunked.extend(b"0\r\n\r\n");
        requests.push(chunked);
    }
    requests
}

#[test]
fn bodies_arrive_when_the_send_buffer_takes_them_in_pieces() {
    let requests = short_writes();
    let (tags, agent) = arrives("short-writes", listen(), &requests, true);
    let stats = agent.stop().stats().clone();
    // One request after each whose framing was lost goes untagged.
    assert!(tags > requests.len() / 3, "boundaries are still known after short writes: {tags} tags, {stats}");
}

fn large() -> Vec<Vec<u8>> {
    (0..40).map(|round| request("/large", 3000 + round * 211, &lookalike(90_000 + round * 1234))).collect()
}

#[test]
fn large_messages_with_long_heads_arrive() {
    let requests = large();
    let (tags, _agent) = arrives("large", listen(), &requests, false);
    assert!(tags > requests.len() / 2, "{tags} tags");
}

/// A listener for MPTCP, if the kernel has it: `/proc/sys/net/mptcp/enabled`.
fn listen_mptcp() -> std::io::Result<(TcpListener, u16)> {
    let socket = socket_of(libc::IPPROTO_MPTCP)?;
    let to = address(0);
    // SAFETY: a pointer to a live value, with its length.
    let failed = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const to).cast(), 16) != 0 || libc::listen(socket.as_raw_fd(), 8) != 0
    };
    assert!(!failed, "{}", std::io::Error::last_os_error());
    let listener = TcpListener::from(socket);
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

#[test]
fn mptcp_is_left_alone_and_seen_all_the_same() {
    let requests = large();
    // With a server that speaks it, and with one that does not: then it is TCP, but for the system calls' way to it.
    let listeners = match listen_mptcp() {
        Ok(speaks_it) => [speaks_it, listen()],
        Err(error) => return eprintln!("NOT RUN: this kernel has no MPTCP: {error}"),
    };
    for listener in listeners {
        let (tags, agent) = arrives("mptcp", listener, &requests, false);
        assert_eq!(tags, 0, "its bytes pass the send hook by");
        let finished = agent.stop();
        let calls = finished.lines.iter().filter(|line| line["type"] == "path").count();
        assert_eq!(calls, requests.len(), "{}", finished.stats());
    }
}

fn lowat() -> Vec<Vec<u8>> {
    (0..10).map(|round| request("/lowat", 9000 + round * 100, b"body")).collect()
}

#[test]
fn a_low_mark_for_unsent_bytes_does_not_double_any() {
    let (listener, port) = listen();
    // A small window, so that most of a head has to wait.
    option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 2048);
    arrives("lowat", (listener, port), &lowat(), true);
}

fn tunnel() -> Vec<Vec<u8>> {
    let inside: &[u8] = b"GET /inside HTTP/1.1\r\nHost: x\r\n\r\n";
    vec![b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), inside.to_vec(), inside.to_vec()]
}

#[test]
fn what_follows_a_connect_is_not_touched() {
    let parts = tunnel();
    arrives("tunnel", listen(), &[parts.concat()], false);
}

/// A head cut within a line of interest, its rest with the beginning of the body, the rest of that: a whole request.
fn cut() -> Vec<Vec<u8>> {
    // Its end is as long as the piece of the line, and looks like a request.
    let body = b"01234567890123456789A /p HTTP/1.1\r\n\r\n";
    let bytes = request("/cut", 0, body);
    let line = bytes.windows(7).position(|window| window == b"Content").unwrap() + 17;
    let inside = bytes.len() - body.len() + 10;
    vec![bytes[..line].to_vec(), bytes[line..inside].to_vec(), bytes[inside..].to_vec()]
}

#[test]
fn a_body_behind_a_head_in_pieces_is_no_request() {
    let (tags, agent) = arrives("cut", listen(), &[cut().concat()], false);
    assert_eq!(tags, 0);
    let finished = agent.stop();
    assert!(paths(&finished.lines, "/p").is_empty(), "{:#?}", finished.lines);
    let calls = finished.lines.iter().filter(|line| line["type"] == "path").count();
    assert_eq!(calls, 1, "{:#?}", finished.lines);
}

fn wait_up(port: u16) -> TcpStream {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            return stream;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the server does not come up");
}

fn paths<'a>(lines: &'a [Value], path: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == "path" && line["root"]["http"]["path"] == path).collect()
}

#[test]
fn a_request_that_completes_the_handshake_is_an_invocation() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let (_, port) = listen();
    let mut server = start(&slice, "deferred", port, 0);
    drop(wait_up(port));
    const COUNT: usize = 10;
    for filler in 0..COUNT {
        let mut stream = wait_up(port);
        // The server's kernel has left the handshake open: it ends with this.
        stream.write_all(&request("/deferred", filler * 400, b"x")).unwrap();
        read_answer(&mut stream);
    }
    let found = agent.wait_for("invocation on each connection", |lines| {
        let found = paths(lines, "/deferred");
        (found.len() >= COUNT).then(|| found.iter().map(|line| line["complete"] == true).collect::<Vec<_>>())
    });
    assert_eq!(found, [true; COUNT]);
    let _ = server.kill();
    let _ = server.wait();
}

#[test]
fn a_socket_that_connects_again_starts_anew() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let (closed, refused) = listen();
    drop(closed);
    let (listener, port) = listen();
    let mut client = start(&slice, "again", port, refused);
    let bytes = request("/again", 0, b"");
    let got = serve(listener, &[bytes], false);
    assert!(tag_of(&got[0]).is_some());
    assert!(client.wait().unwrap().success());
    let complete = agent.wait_for("path for each attempt", |lines| {
        let found: Vec<_> = lines.iter().filter(|line| line["type"] == "path").collect();
        (found.len() >= 3).then(|| found.iter().map(|line| line["complete"] == true).collect::<Vec<_>>())
    });
    assert_eq!(complete, [true; 3]);
}

#[test]
fn an_old_connection_that_is_given_up_does_not_stay_live() {
    let slice = Slice::new();
    let (_, port) = listen();
    let (other, other_port) = listen();
    let mut server = start(&slice, "given-up", port, other_port);
    let mut old = wait_up(port);
    thread::sleep(Duration::from_millis(100));
    let agent = Agent::start(&slice);
    old.write_all(&request("/given-up", 0, b"")).unwrap();
    assert_eq!(old.read(&mut [0; 100]).unwrap_or(0), 0, "closed without an answer");
    drop(old);
    let (said, heard) = mpsc::channel();
    thread::spawn(move || said.send(serve(other, &[request("/call", 0, b"")], false)));
    let mut new = wait_up(port);
    new.write_all(&request("/new", 0, b"")).unwrap();
    read_answer(&mut new);
    drop(new);
    assert!(tag_of(&heard.recv().unwrap()[0]).is_some());
    assert!(server.wait().unwrap().success());
    let by = agent.wait_for("path of the new request", |lines| {
        paths(lines, "/new").first().map(|line| line["root"]["children"][0]["parent_by"].clone())
    });
    assert_eq!(by, "exclusive");
}

#[test]
fn beside_a_connection_of_another_protocol_nobody_is_alone() {
    let slice = Slice::new();
    let agent = Agent::start(&slice);
    let (_, port) = listen();
    let (other, other_port) = listen();
    let mut server = start(&slice, "stranger", port, other_port);
    let mut stranger = wait_up(port);
    // No method begins like this. What it asks for is not known, nor when that has been done.
    stranger.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").unwrap();
    thread::spawn(move || {
        for stream in other.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1000]).unwrap();
            stream.write_all(ANSWER).unwrap();
        }
    });
    let request_of = |path| {
        let mut client = wait_up(port);
        client.write_all(&request(path, 0, b"")).unwrap();
        read_answer(&mut client);
        agent.wait_for("path of the request", |lines| {
            paths(lines, path).first().map(|line| line["root"]["children"][0]["parent_by"].clone())
        })
    };
    assert_eq!(request_of("/beside"), "thread");
    stranger.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stranger.read(&mut [0; 1]).unwrap(), 0, "the server has closed it too");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(request_of("/after"), "exclusive");
    assert!(server.wait().unwrap().success());
}
