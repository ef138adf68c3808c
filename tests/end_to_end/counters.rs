//! Every way in which the kernel half declines to do something has a counter, and here each is seen to move: the clients
//! do what makes it decline.
//!
//! What other tests assert is not repeated: [`is_seen_here`] and [`is_tag_seen_here`] name them, and do not compile for a
//! counter that nobody has thought of.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tracer_ebpf::{counter::Counter, record::Tag};

use crate::{
    agent::Agent,
    faults,
    functions::{Function, Kind},
    go,
    harness::{id, leaf, plan, seq, with},
    lambda, paths,
    sandbox::Slice,
    trust,
};

/// The test that asserts that a counter moves.
const fn elsewhere(_test: fn()) -> bool {
    false
}

/// What no test provokes; the counter's own documentation says why, and why it stays.
const NOWHERE: bool = false;

/// Whether [`whatever_makes_it_decline_is_counted`] sees the counter move; if not, who does.
fn is_seen_here(counter: Counter) -> bool {
    match counter {
        Counter::Records | Counter::Packets | Counter::Sends | Counter::Connections | Counter::Enrolled => true,
        Counter::Opaque | Counter::Desynced | Counter::Pipelined | Counter::TooLong => true,
        Counter::Reads | Counter::Existing => elsewhere(connections_that_were_there_are_counted_and_so_are_reads),
        Counter::Contended => elsewhere(a_packet_that_comes_while_another_cpu_is_at_it_is_counted),
        Counter::ListenersFull => elsewhere(listeners_that_find_no_room_are_counted),
        Counter::RecordsLost => elsewhere(faults::what_a_full_ring_buffer_refuses_is_counted_to_the_last_record),
        Counter::EnrolFailed | Counter::InvocationsFull | Counter::ThreadsFull => {
            elsewhere(faults::full_maps_harm_no_traffic_and_are_counted)
        }
        Counter::GoCalls => elsewhere(go::every_call_of_concurrent_go_invocations_is_told_by_its_goroutine),
        Counter::GoUnknown => elsewhere(go::a_goroutine_that_is_older_than_the_probes_is_counted_as_unknown),
        Counter::SandboxesFull => elsewhere(faults::a_sandbox_that_finds_no_room_is_not_traced_and_counted),
        Counter::RuntimeApi => elsewhere(lambda::what_awslambdaric_is_handed_is_an_invocation),
        Counter::PollsUnread => elsewhere(lambda::an_answer_whose_head_is_not_whole_is_counted),
        Counter::ScratchBusy | Counter::NotNoted | Counter::TagStuck => NOWHERE,
    }
}

/// The same for what became of the tag.
fn is_tag_seen_here(tag: Tag) -> bool {
    match tag {
        Tag::Injected | Tag::Unproven | Tag::Split | Tag::LongHead | Tag::Pipelined | Tag::NoRoom => true,
        Tag::NoRequest => true,
        Tag::Rewritten => elsewhere(paths::a_proxy_passes_the_tag_on_and_its_parent_id_is_rewritten),
        Tag::Kept => elsewhere(trust::a_traceparent_that_the_application_set_is_kept_and_adopted),
        Tag::Off => elsewhere(trust::with_the_tag_off_no_byte_is_changed_and_paths_are_joined_by_the_wire),
        Tag::Destination => elsewhere(trust::a_destination_outside_of_tag_to_gets_no_tag),
        Tag::NotEnrolled => elsewhere(faults::full_maps_harm_no_traffic_and_are_counted),
        Tag::Malformed => elsewhere(trust::a_malformed_traceparent_is_left_alone),
        Tag::Polled => elsewhere(lambda::what_awslambdaric_is_handed_is_an_invocation),
        Tag::Refused => NOWHERE,
    }
}

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

/// Runs one of the helpers in a sandbox. No request of it may fail.
fn client(slice: &Slice, helper: &str, port: u16) {
    let mut client = Command::new(std::env::current_exe().unwrap());
    client.args(["--exact", helper, "--ignored", "--nocapture"]).env(PORT, port.to_string());
    let status = slice.sandbox("client").spawn(client.stdout(Stdio::null())).wait().unwrap();
    assert!(status.success(), "a request failed");
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
    client(&slice, "counters::helper", port);
    let finished = agent.stop();
    let stats = finished.stats();
    for counter in Counter::ALL.iter().filter(|counter| is_seen_here(**counter)).map(|counter| counter.name()) {
        assert!(moved(stats, &format!("/kernel/{counter}")) > 0, "{counter}: {stats}");
    }
    for tag in Tag::ALL.iter().filter(|tag| is_tag_seen_here(**tag)).map(|tag| tag.name()) {
        assert!(moved(stats, &format!("/tags/{tag}")) > 0, "{tag}: {stats}");
        // Both halves count; nothing was lost between them.
        assert_eq!(moved(stats, &format!("/tags/{tag}")), moved(stats, &format!("/kernel_tags/{tag}")), "{stats}");
    }
    assert_eq!(moved(stats, "/kernel/records_lost"), 0, "{stats}");
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) {
    // SAFETY: all zeroes are an empty set; a pointer to a live value and its length.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    assert_eq!(failed, 0, "two CPUs are needed: {}", std::io::Error::last_os_error());
}

const LARGE: usize = 128 << 20;
const LARGE_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 134217728\r\n\r\n";

/// Not a test: a client on a CPU of its own, which reads large responses until the server has had enough.
#[test]
#[ignore = "runs inside of a test's sandbox"]
fn reader() {
    let Ok(port) = std::env::var(PORT) else { return };
    pin(0);
    let mut stream = connect(port.parse().unwrap());
    let mut buffer = vec![0; 1 << 16];
    while stream.write_all(&request(0, b"")).is_ok() {
        let mut left = LARGE_HEAD.len() + LARGE;
        while left > 0 {
            match stream.read(&mut buffer).unwrap() {
                0 if left == LARGE_HEAD.len() + LARGE => return,
                0 => panic!("{left} bytes are missing"),
                len => left -= len,
            }
        }
    }
}

/// The writer's CPU sends what the writer writes, the reader's what its acknowledgements make room for: of the same
/// stream, and at the same time.
#[test]
fn a_packet_that_comes_while_another_cpu_is_at_it_is_counted() {
    let slice = Slice::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let enough = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&enough);
    let server = thread::spawn(move || {
        pin(1);
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, body) = ([0; 4096], vec![b'x'; LARGE]);
        let mut answered = 0;
        while stream.read(&mut buffer).unwrap() > 0 && !until.load(Ordering::Relaxed) {
            stream.write_all(LARGE_HEAD.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
            answered += 1;
        }
        answered
    });
    // As it runs by default: under the repair that `--tag on` needs on some kernels, large responses may stall.
    let agent = Agent::start_with(&slice, &["--tag", "auto", "--stats-every", "200ms"]);
    let contended = |line: &Value| line.pointer("/kernel/contended").and_then(Value::as_u64).filter(|count| *count > 0);
    let answered: u64 = thread::scope(|scope| {
        let reader = scope.spawn(|| client(&slice, "counters::reader", port));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            agent.wait_for("packet that two CPUs had at once", |lines| lines.iter().find_map(contended));
        }));
        enough.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        server.join().unwrap()
    });
    // The bytes went by unparsed, but their number is known: each response still ends where it ends.
    let finished = agent.stop();
    assert_eq!(moved(finished.stats(), "/kernel/desynced"), 0, "{}", finished.stats());
    assert!(moved(finished.stats(), "/paths") >= answered, "{answered}: {}", finished.stats());
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
