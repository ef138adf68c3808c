//! Every way in which the kernel half declines to do something has a counter, and here each is seen to move: the clients
//! do what makes it decline.
//!
//! What other tests assert is not repeated: a full ring buffer and full maps are in `faults`; `off`, `destination`,
//! `kept` and `malformed` in `trust`; `rewritten` in `paths`.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    functions::{Function, Kind},
    harness::{id, leaf, plan, seq, with},
    sandbox::Slice,
};

const PORT: &str = "FNTRACE_TEST_COUNTERS_PORT";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn request(filler: usize, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nX: {}\r\nContent-Length: {length}\r\n\r\n", "f".repeat(filler));
    [head.as_bytes(), body].concat()
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()
}

/// Sends the parts with a pause between them, and waits for the answer to them all.
fn exchange(stream: &mut TcpStream, parts: &[&[u8]]) {
    for part in parts {
        stream.write_all(part).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    stream.read_exact(&mut [0; ANSWER.len()]).unwrap();
}

/// A connection whose first bytes pass the send hook by: they are sent by a call that began before there was one.
fn fast_open(port: u16, first: &[u8]) -> TcpStream {
    // SAFETY: a new descriptor, owned at once; all zeroes are a socket address; pointers to live values with lengths.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
        let mut to: libc::sockaddr_in = std::mem::zeroed();
        to.sin_family = libc::AF_INET as u16;
        to.sin_port = port.to_be();
        to.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
        let (bytes, to) = (first.as_ptr().cast(), (&raw const to).cast());
        let sent = libc::sendto(socket.as_raw_fd(), bytes, first.len(), libc::MSG_FASTOPEN, to, 16);
        assert_eq!(sent, first.len() as isize, "{}", std::io::Error::last_os_error());
        TcpStream::from(socket)
    }
}

/// Not a test: what the sandbox runs.
#[test]
#[ignore = "runs inside of a test's sandbox"]
fn helper() {
    let Ok(port) = std::env::var(PORT) else { return };
    let port = port.parse().unwrap();
    let one = request(0, b"");
    // A TLS handshake.
    exchange(&mut connect(port), &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]);
    // A head in two pieces.
    exchange(&mut connect(port), &[&one[..20], &one[20..]]);
    // More requests at once than are followed.
    exchange(&mut connect(port), &[&one.repeat(12)]);
    // More chunks in a message than are followed.
    let chunks =
        [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", &b"1\r\na\r\n".repeat(9000)[..], b"0\r\n\r\n"];
    exchange(&mut connect(port), &[&chunks.concat()]);
    // A head that a tag would push over the limit.
    exchange(&mut connect(port), &[&request(8150, b"")]);
    // Bytes that the hook does not see; and then a request, of which it cannot be sure that it is one.
    let body = request(0, b"0123456789");
    let mut stream = fast_open(port, &body[..body.len() - 10]);
    exchange(&mut stream, &[b"0123456789"]);
    exchange(&mut stream, &[&one]);
    // A send buffer that takes the request, but hardly more.
    let mut stream = connect(port);
    let small = 4608;
    // SAFETY: a pointer to an integer and its length.
    let failed = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const small).cast(), 4)
    };
    assert_eq!(failed, 0);
    exchange(&mut stream, &[&request(3000, b"")]);
}

/// A server outside of all sandboxes: answers whatever came once nothing more comes.
fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 65_536];
    while stream.set_read_timeout(None).is_ok() && stream.read(&mut buffer).is_ok_and(|len| len > 0) {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        while stream.read(&mut buffer).is_ok_and(|len| len > 0) {}
        if stream.write_all(ANSWER).is_err() {
            return;
        }
    }
}

fn moved(stats: &Value, pointer: &str) -> u64 {
    stats.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {stats}"))
}

#[test]
fn whatever_makes_it_decline_is_counted() {
    let slice = Slice::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| serve(stream)))));
    let agent = Agent::start(&slice);
    let mut client = Command::new(std::env::current_exe().unwrap());
    client.args(["--exact", "counters::helper", "--ignored", "--nocapture"]).env(PORT, port.to_string());
    let status = slice.sandbox("client").spawn(client.stdout(Stdio::null())).wait().unwrap();
    assert!(status.success(), "a request failed");
    let finished = agent.stop();
    let stats = finished.stats();
    let counters =
        ["records", "packets", "sends", "connections", "enrolled", "opaque", "desynced", "pipelined", "too_long"];
    for counter in counters {
        assert!(moved(stats, &format!("/kernel/{counter}")) > 0, "{counter}: {stats}");
    }
    for tag in ["injected", "unproven", "split", "long_head", "pipelined", "no_room", "no_request"] {
        assert!(moved(stats, &format!("/tags/{tag}")) > 0, "{tag}: {stats}");
        // Both halves count; nothing was lost between them.
        assert_eq!(moved(stats, &format!("/tags/{tag}")), moved(stats, &format!("/kernel_tags/{tag}")), "{stats}");
    }
    assert_eq!(moved(stats, "/kernel/records_lost"), 0, "{stats}");
}

#[test]
fn connections_that_were_there_are_counted_and_so_are_reads() {
    let slice = Slice::new();
    let go = Function::start(&slice, Kind::Go);
    let mut client = go.client();
    client.run(&id("before"), &leaf());
    let agent = Agent::start(&slice);
    client.run(&id("since"), &leaf());
    client.run(&id("since"), &leaf());
    let finished = agent.stop();
    assert_eq!(moved(finished.stats(), "/kernel/existing"), 1, "{}", finished.stats());
    assert!(moved(finished.stats(), "/kernel/reads") > 0, "{}", finished.stats());
}

#[test]
fn listeners_that_find_no_room_are_counted() {
    let slice = Slice::new();
    let _functions = [Kind::Go, Kind::Go].map(|kind| Function::start(&slice, kind));
    let finished = Agent::start_with(&slice, &["--map-entries", "LISTENERS=1"]).stop();
    assert_eq!(moved(finished.stats(), "/kernel/listeners_full"), 1, "{}", finished.stats());
}

/// Calls with heads around the limits of real servers: what passes untraced passes traced. The caller sends a head of
/// any length in one message.
fn passes_as_before(
    callee: Kind,
    arguments: &[&str],
    headers: impl Fn(usize) -> Value,
    range: [usize; 2],
    tagged: bool,
) {
    let slice = Slice::new();
    let [caller, callee] = [Kind::Python, callee].map(|kind| Function::start(&slice, kind));
    let mut client = caller.client();
    let mut passes = |size: usize| {
        let answer = client
            .run(&id("head"), &plan([with(seq(&callee, leaf()), json!({"headers": headers(size), "fresh": true}))]));
        (answer["children"][0]["function"].is_string(), answer["children"][0]["traceparent"].is_string())
    };
    // The largest that the server takes when nobody traces.
    let [mut good, mut bad] = range;
    assert!(passes(good).0 && !passes(bad).0, "the limit is not between {range:?}");
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        if passes(middle).0 { good = middle } else { bad = middle }
    }
    let agent = Agent::start_with(&slice, arguments);
    for less in [0, 1, 30, 69, 70, 71, 100] {
        assert!(passes(good.saturating_sub(less)).0, "a head {less} below the limit of {good} fails when traced");
    }
    assert_eq!(passes(range[0]), (true, tagged));
    let finished = agent.stop();
    assert!(moved(finished.stats(), "/tags/long_head") > 0, "{}", finished.stats());
}

fn filler(size: usize) -> Value {
    json!({"x-filler": "f".repeat(size)})
}

#[test]
fn a_head_just_under_the_limit_of_node_js_passes() {
    passes_as_before(Kind::Node, &[], filler, [7000, 17_000], true);
    // And where the operator knows the servers.
    passes_as_before(Kind::Node, &["--tag-max-head", "16384"], filler, [12_000, 17_000], true);
}

#[test]
fn a_head_with_as_many_fields_as_gunicorn_takes_passes() {
    let fields = |count: usize| (0..count).map(|n| (format!("x-{n}"), json!("y"))).collect::<Value>();
    passes_as_before(Kind::Python, &[], fields, [50, 110], true);
}
