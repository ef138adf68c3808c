//! Requests and responses, ordinary and strange, and what the agent may do to each.

use crate::{
    random::Random,
    stream::{Site, SiteKind},
};

/// A body that is a row of requests. To tag one of these would break it.
pub const LOOKALIKE: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nGET /x HTTP/1.1\r\nhost: y\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\ntraceparent: 00-11111111111111111111111111111111-2222222222222222-01\r\n\r\n";

/// A trace context that the application passes on, as it came in with the invocation that is live.
pub type Forwarded<'a> = Option<&'a str>;

#[derive(Clone, Debug, Default)]
pub struct Request {
    pub bytes: Vec<u8>,
    pub sites: Vec<Site>,
    /// Where the body begins.
    pub body_at: usize,
    pub answer: Answer,
}

/// What kind of response a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    #[default]
    Any,
    /// HEAD: none with a body.
    NoBody,
    Upgrade,
    Connect,
}

const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "get", "!#$%&'*+-.^_`|~x"];
/// None of these is a `traceparent`.
const HEADERS: [&str; 14] = [
    "accept: */*",
    "x-traceparent: 00-33333333333333333333333333333333-4444444444444444-01",
    "traceparent-x: 00-33333333333333333333333333333333-4444444444444444-01",
    "traceparen: t",
    "tracestate: a=b,c=d",
    "x-note: traceparent: 00-33333333333333333333333333333333-4444444444444444-01",
    "empty:",
    "x-tabs:\t\ta\tb\t",
    "x-high: \u{e9}\u{20ac}",
    "content-type: application/octet-stream",
    "content-lengthy: 7",
    "x-content-length: 9",
    "transfer-encodings: chunked",
    "a:b",
];

/// A context that nobody else has: one that came with a live invocation may be rewritten.
pub fn context(random: &mut Random) -> String {
    format!("00-{:016x}{:016x}-{:016x}-01", random.next() | 1, random.next(), random.next() | 1)
}

/// Lines that are a `traceparent` set by the application, or may be taken for one by somebody.
fn own_traceparent(random: &mut Random, end: &str) -> Vec<u8> {
    let value = context(random);
    let lines = [
        format!("traceparent: {value}{end}"),
        format!("TraceParent: {value}{end}"),
        format!("TRACEPARENT:{value}{end}"),
        format!("traceparent:\t {value} \t{end}"),
        format!("traceparent:{}{value}{}{end}", " ".repeat(130), " ".repeat(9)),
        format!("traceparent: {value}{end}traceparent: {value}{end}"),
        format!("traceparent: {value}{end}x: y{end}tRaceparent: nonsense{end}"),
        format!("traceparent:{end}"),
        format!("traceparent: {}{end}", value.to_uppercase()),
        format!("traceparent: {value}-extra{end}"),
        format!("traceparent : {value}{end}"),
        format!("traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01{end}"),
        format!("x: y{end} traceparent: {value}{end}"),
        format!("traceparent:{end} {value}{end}"),
    ];
    lines[random.below(lines.len())].clone().into_bytes()
}

/// One request. `strange` allows what not every server would take.
pub fn request(random: &mut Random, number: usize, forwarded: Forwarded<'_>) -> Request {
    let end = if random.percent(6) { "\n" } else { "\r\n" };
    let mut method = if random.percent(50) { "GET" } else { random.pick(&METHODS) };
    let mut answer = Answer::Any;
    if random.percent(8) {
        (method, answer) = ("HEAD", Answer::NoBody);
    }
    let query = "q".repeat(if random.percent(5) { random.size().min(9000) } else { random.below(40) });
    let target = match random.below(8) {
        0 => format!("http://example.test:80/a/{number}?{query}"),
        1 if method == "OPTIONS" => "*".to_owned(),
        _ => format!("/r/{number}?{query}"),
    };
    let version = if random.percent(5) { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut bytes = Vec::new();
    let first = format!("{method} {target} {version}{end}");
    bytes.extend_from_slice(first.as_bytes());
    header(&mut bytes, "host: example.test", end);
    some_headers(random, &mut bytes, end);
    let mut sites = Vec::new();
    let own = random.percent(15);
    if let (Some(context), true) = (forwarded, random.percent(60)) {
        let name = random.pick(&["traceparent", "Traceparent", "TRACEPARENT"]);
        bytes.extend_from_slice(format!("{name}: ").as_bytes());
        sites.push(Site { at: bytes.len() + 36, kind: SiteKind::Rewrite });
        header(&mut bytes, context, end);
    } else if own {
        bytes.extend_from_slice(&own_traceparent(random, end));
    }
    some_headers(random, &mut bytes, end);
    if random.percent(4) {
        // Around the limit of what is looked through, and beyond.
        let len = [15_800, 16_200, 16_384, 17_000, 40_000, 100_000][random.below(6)];
        let each = [64, 900, 8000, len][random.below(4)];
        for _ in 0..(len / each) {
            header(&mut bytes, &format!("x-long: {}", "l".repeat(each - 10)), end);
        }
    }
    let (head, body) = body(random, end);
    bytes.extend_from_slice(&head);
    if sites.is_empty() && !own {
        // What the agent passes over by its rules is not plain.
        let plain = bytes.len() < 15_000;
        sites.push(Site { at: bytes.len(), kind: SiteKind::Insert { plain } });
    }
    bytes.extend_from_slice(end.as_bytes());
    let body_at = bytes.len();
    bytes.extend_from_slice(&body);
    if random.percent(3) {
        // RFC 9112, section 2.2: a client may send an empty line behind a body.
        bytes.extend_from_slice(b"\r\n");
    }
    Request { bytes, sites, body_at, answer }
}

fn header(to: &mut Vec<u8>, line: &str, end: &str) {
    to.extend_from_slice(line.as_bytes());
    to.extend_from_slice(end.as_bytes());
}

fn some_headers(random: &mut Random, to: &mut Vec<u8>, end: &str) {
    for _ in 0..random.below(5) {
        header(to, random.pick(&HEADERS), end);
    }
}

/// The header lines that frame a body, and the body in its coding.
fn body(random: &mut Random, end: &str) -> (Vec<u8>, Vec<u8>) {
    if random.percent(50) {
        let head = if random.percent(20) { format!("Content-Length:0{end}") } else { String::new() };
        return (head.into_bytes(), Vec::new());
    }
    let len = random.size();
    let content = content(random, len);
    if random.percent(55) {
        let name = random.pick(&["content-length: ", "Content-Length:", "CONTENT-LENGTH: \t "]);
        return (format!("{name}{}{end}", content.len()).into_bytes(), content);
    }
    let name = random.pick(&["transfer-encoding: chunked", "Transfer-Encoding:chunked", "TRANSFER-ENCODING: Chunked"]);
    (format!("{name}{end}").into_bytes(), chunked(random, &content))
}

pub fn content(random: &mut Random, len: usize) -> Vec<u8> {
    match random.below(3) {
        0 => random.bytes(len),
        1 => LOOKALIKE.iter().copied().cycle().take(len).collect(),
        _ => b"0123456789abcdef\n".iter().copied().cycle().take(len).collect(),
    }
}

fn chunked(random: &mut Random, content: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    let mut rest = content;
    let most = if random.percent(10) { 4 } else { 1 + content.len() };
    while !rest.is_empty() {
        let len = random.between(1, most.min(rest.len()));
        // Not more chunks than a run of the program follows, or the test would only see a lost flow.
        let len = if coded.len() > 40_000 { rest.len() } else { len };
        let size = match random.below(3) {
            0 => format!("{len:x}"),
            1 => format!("{len:X}"),
            _ => format!("000{len:x}"),
        };
        let extension = random.pick(&["", "", ";a=b", ";name=\"quoted; text\"", " ; x", ";traceparent=1"]);
        coded.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
        coded.extend_from_slice(&rest[..len]);
        coded.extend_from_slice(b"\r\n");
        rest = &rest[len..];
    }
    coded.extend_from_slice(random.pick(&["0\r\n", "0;last\r\n", "000\r\n"]).as_bytes());
    if random.percent(40) {
        let trailer = random.pick(&[
            "x-sum: 1\r\n",
            "traceparent: 00-55555555555555555555555555555555-6666666666666666-01\r\n",
            "a: b\r\nc: d\r\n",
            "content-length: 99\r\n",
        ]);
        coded.extend_from_slice(trailer.as_bytes());
    }
    coded.extend_from_slice(b"\r\n");
    coded
}

/// A response that keeps the connection open.
pub fn response(random: &mut Random, answer: Answer) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..(if random.percent(10) { random.between(1, 3) } else { 0 }) {
        bytes.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    }
    match answer {
        Answer::Upgrade => {
            bytes.extend_from_slice(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: torture\r\nconnection: upgrade\r\n\r\n",
            );
            return bytes;
        }
        Answer::Connect => {
            bytes.extend_from_slice(b"HTTP/1.1 200 Connection established\r\n\r\n");
            return bytes;
        }
        Answer::Any | Answer::NoBody => {}
    }
    if answer == Answer::Any && random.percent(10) {
        let status = random.pick(&["204 No Content", "304 Not Modified"]);
        let length = if status.starts_with('3') { "content-length: 77\r\n" } else { "" };
        bytes.extend_from_slice(format!("HTTP/1.1 {status}\r\n{length}x: y\r\n\r\n").as_bytes());
        return bytes;
    }
    let status = random.pick(&["200 OK", "404 Not Found", "500 ", "200"]);
    bytes.extend_from_slice(format!("HTTP/1.1 {status}\r\nserver: torture\r\n").as_bytes());
    some_headers(random, &mut bytes, "\r\n");
    let len = random.size();
    let content = content(random, len);
    let (head, coded) = if random.percent(60) {
        (format!("content-length: {len}\r\n\r\n"), content)
    } else {
        ("transfer-encoding: chunked\r\n\r\n".to_owned(), chunked(random, &content))
    };
    bytes.extend_from_slice(head.as_bytes());
    if answer != Answer::NoBody {
        bytes.extend_from_slice(&coded);
    }
    bytes
}

/// The first bytes of connections that are not HTTP/1, or of ones that nobody can frame. Nothing on them may change.
pub fn stranger(random: &mut Random) -> Vec<u8> {
    let beginnings: [&[u8]; 18] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
        b"get key\r\n\r\n",
        b"GET /0.9\r\n\r\n",
        b"OPTIONS rtsp://x/y RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.x\r\nhost: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"GET\x00/ HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n\x01\r\n\r\n",
        b"EHLO x\r\n\r\nMAIL FROM:<a>\r\n\r\n",
        b" GET / HTTP/1.1\r\n\r\n",
        b"\n",
        b"",
    ];
    let mut bytes = beginnings[random.below(beginnings.len())].to_vec();
    if bytes.len() < 2 {
        bytes.extend_from_slice(b"\x80");
    }
    let len = random.size();
    let more = content(random, len);
    bytes.extend_from_slice(&more);
    bytes
}
