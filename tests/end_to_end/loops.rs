//! A server whose one thread reads for several, and has others do the work.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{agent::Agent, sandbox::Slice, truth};

const UPSTREAM: &str = "FNTRACE_TEST_LOOPS_UPSTREAM";
const LISTENS: &str = "listens on ";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const ROUNDS: usize = 5;

fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

fn exchange(stream: &mut TcpStream, path: &str) {
    stream.write_all(&request(path)).unwrap();
    stream.read_exact(&mut [0; ANSWER.len()]).unwrap();
}

/// Reads one request as an event loop does, and gives its path.
fn take(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count) => head.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// Not a test: what the sandbox runs. Two requests are read, and only then is a thread made for the first, and the second.
#[test]
#[ignore = "runs inside of a test's sandbox"]
fn helper() {
    let Ok(upstream) = std::env::var(UPSTREAM) else { return };
    let upstream = upstream.parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap().port());
    let mut clients = [0; 2].map(|_| listener.accept().unwrap().0);
    for client in &clients {
        client.set_nonblocking(true).unwrap();
    }
    for _ in 0..ROUNDS {
        for path in clients.each_mut().map(take) {
            thread::spawn(move || exchange(&mut connect(upstream), &path)).join().unwrap();
        }
        for client in &mut clients {
            client.write_all(ANSWER).unwrap();
        }
    }
}

#[test]
fn what_a_loop_makes_a_thread_for_is_not_taken_for_certain() {
    let slice = Slice::new();
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = upstream.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in upstream.incoming().flatten() {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(ANSWER);
        }
    });
    let agent = Agent::start(&slice);
    let mut server = Command::new(std::env::current_exe().unwrap());
    server.args(["--exact", "loops::helper", "--ignored", "--nocapture"]).env(UPSTREAM, port.to_string());
    let mut server = slice.sandbox("loop").spawn(server.stdout(Stdio::piped()));
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.find_map(|line| line.strip_prefix(LISTENS)?.parse().ok()).expect("the port");
    // Both stay connected from the first round on: that the order of reading is that of connecting is the server's.
    let mut clients = [connect(port), connect(port)];
    for round in 0..ROUNDS {
        for (client, name) in clients.iter_mut().zip(["first", "second"]) {
            client.write_all(&request(&format!("/{name}-{round}"))).unwrap();
        }
        for client in &mut clients {
            client.read_exact(&mut [0; ANSWER.len()]).unwrap();
        }
    }
    drop(clients);
    assert!(server.wait().unwrap().success());
    let finished = agent.stop();
    let calls = truth::calls(&finished.lines);
    assert_eq!(calls.len(), 2 * ROUNDS, "{calls:#?}");
    for call in calls {
        // The kernel half knows of each only that its thread was made after the second request was read.
        let by = call["parent_by"].as_str().unwrap();
        assert!(by == "none" || by == "inferred", "{call:#}");
    }
}
