//! A call path as a tree that one understands at sight: who was called, what was asked, what came back, how long it took,
//! and beside it a waterfall of all spans on one time axis.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use super::stats::Stats;
use crate::forecast;
use crate::path::{Call, Faas, Http, Invocation, Line, Node};
use crate::text::harmless;

/// How the tree looks. The caller decides: it knows the terminal, `NO_COLOR` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: u16,
    /// Whether to write colours.
    pub colour: bool,
}

/// The waterfall takes this share of the width, and is left out if that is less than [`BAR_MIN`].
const BAR_SHARE: usize = 4;
const BAR_MIN: usize = 10;
const BAR_MAX: usize = 40;
/// Longest string from the wire that is printed, in characters.
const TEXT_MAX: usize = 60;

const DIM: Style = Style::new().dimmed();
const NAME: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const COLD: Style = AnsiColor::Cyan.on_default();
const NOTE: Style = AnsiColor::Yellow.on_default();
const PLAIN: Style = Style::new();

/// Writes trees.
#[derive(Debug)]
pub struct Tree<W> {
    writer: W,
    look: Look,
    buffer: Vec<u8>,
}

/// The time axis of a tree, in µs after the start of the line.
#[derive(Clone, Copy)]
struct Axis {
    from: i64,
    to: i64,
    columns: usize,
}

/// A row in the making: styled pieces and how wide they are.
#[derive(Default)]
struct Row {
    pieces: Vec<(Style, String)>,
    width: usize,
}

impl Row {
    fn push(&mut self, style: Style, text: impl Into<String>) {
        let text = text.into();
        self.width += text.width();
        self.pieces.push((style, text));
    }

    /// Puts two spaces between what was and what comes.
    fn field(&mut self, style: Style, text: impl Into<String>) {
        self.push(PLAIN, "  ");
        self.push(style, text);
    }

    /// Cuts the row to `max` columns.
    fn cut(&mut self, max: usize) {
        while self.width > max {
            let Some((style, mut text)) = self.pieces.pop() else { return };
            self.width -= text.width();
            if self.width + 1 > max {
                continue;
            }
            while self.width + text.width() + 1 > max && text.pop().is_some() {}
            self.push(style, text + "…");
            return;
        }
    }
}

impl<W: Write> Tree<W> {
    /// A sink onto `writer`.
    pub fn new(writer: W, look: Look) -> Self {
        Self { writer, look, buffer: Vec::new() }
    }

    /// Writes a path or a part, and an empty line.
    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        self.buffer.clear();
        let (root, trace_id, start, missing) = match line {
            Line::Path(path) => (&path.root, path.trace_id, path.start, &path.missing),
            Line::Late(late) => (&late.root, late.trace_id, late.start, &late.missing),
        };
        let start = start.to_string();
        // The time of day; the date is the same all day.
        let clock = start.get(11..23).unwrap_or(&start);
        let mut head = Row::default();
        head.push(DIM, format!("{clock}  trace {trace_id}"));
        if let Line::Late(late) = line {
            let under = late.parent_span_id.map_or_else(String::new, |span| format!(", under span {span}"));
            head.field(NOTE, format!("came late{under}"));
        }
        self.row(head, None);
        let (mut from, mut to) = (0, 0);
        extent(root, &mut from, &mut to);
        let columns = (usize::from(self.look.width) / BAR_SHARE).min(BAR_MAX);
        let axis = (columns >= BAR_MIN).then_some(Axis { from, to, columns });
        self.node(root, "", "", false, axis);
        for what in missing {
            let mut row = Row::default();
            row.push(NOTE, format!("missing: {}", harmless(what, TEXT_MAX)));
            self.row(row, None);
        }
        self.buffer.push(b'\n');
        self.writer.write_all(&self.buffer)
    }

    /// Writes the counts.
    pub fn stats(&mut self, stats: &Stats<'_>) -> io::Result<()> {
        self.buffer.clear();
        let mut row = Row::default();
        row.push(DIM, format!("stats: {stats}"));
        // All of it, however wide: here every figure counts.
        self.pieces(&row);
        self.buffer.push(b'\n');
        self.writer.write_all(&self.buffer)
    }

    /// Writes a forecast, in a row.
    pub fn forecast(&mut self, line: &forecast::Line) -> io::Result<()> {
        self.buffer.clear();
        let mut row = Row::default();
        row.push(DIM, "forecast:");
        for call in &line.calls {
            row.field(NAME, harmless(&call.callee, TEXT_MAX));
            row.push(PLAIN, format!(" {:.0} %", call.probability * 100.0));
            if let Some(ms) = call.expected_ms {
                row.push(DIM, format!(" in {}", duration((ms * 1000.0) as u64)));
            }
        }
        self.row(row, None);
        self.buffer.push(b'\n');
        self.writer.write_all(&self.buffer)
    }

    /// Flushes the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Writes a span and all under it. A call and the invocation that it caused share a row.
    fn node(&mut self, node: &Node, branch: &str, indent: &str, parallel: bool, axis: Option<Axis>) {
        let mut row = Row::default();
        row.push(DIM, branch);
        let callee = match node {
            Node::Invocation(invocation) => {
                describe_invocation(&mut row, invocation);
                invocation
            }
            Node::Call(call) => {
                // Only one invocation is ever joined to a call.
                let callee = match call.children.first() {
                    Some(Node::Invocation(callee)) => Some(callee),
                    _ => None,
                };
                describe_call(&mut row, call, callee, parallel);
                let Some(callee) = callee else {
                    return self.row(row, bar(node, axis));
                };
                callee
            }
        };
        self.row(row, bar(node, axis));
        let mut busy_until = i64::MIN;
        for (index, child) in callee.children.iter().enumerate() {
            let last = index + 1 == callee.children.len();
            let next_starts = callee.children.get(index + 1).map_or(i64::MAX, Node::start_us);
            let ends = end_of(child);
            let parallel = child.start_us() < busy_until || next_starts < ends;
            busy_until = busy_until.max(ends);
            let branch = format!("{indent}{}", if last { "└─ " } else { "├─ " });
            let indent = format!("{indent}{}", if last { "   " } else { "│  " });
            self.node(child, &branch, &indent, parallel, axis);
        }
    }

    fn row(&mut self, mut row: Row, bar: Option<(Style, String, usize)>) {
        let width = usize::from(self.look.width);
        let text = bar.as_ref().map_or(width, |(.., columns)| width.saturating_sub(columns + 2));
        row.cut(text.max(1));
        if let Some((style, bar, _)) = bar {
            row.push(PLAIN, " ".repeat(text.saturating_sub(row.width) + 2));
            row.push(style, bar);
        }
        self.pieces(&row);
        self.buffer.push(b'\n');
    }

    fn pieces(&mut self, row: &Row) {
        for (style, text) in &row.pieces {
            let style = if self.look.colour { *style } else { PLAIN };
            // Writing to memory does not fail.
            let _ = write!(self.buffer, "{style}{text}{style:#}");
        }
    }
}

fn describe_invocation(row: &mut Row, invocation: &Invocation) {
    row.push(NAME, harmless(&invocation.function, TEXT_MAX));
    request(row, invocation.http.as_ref());
    platform(row, invocation.faas.as_deref());
    outcome(row, invocation.http.as_ref(), invocation.error.as_deref(), invocation.duration_us);
    cold(row, invocation, None);
    if let Some(parent) = invocation.outside_parent {
        row.field(DIM, format!("from outside span {parent}"));
    }
}

fn describe_call(row: &mut Row, call: &Call, callee: Option<&Invocation>, parallel: bool) {
    if callee.is_some() || call.to != call.peer {
        row.push(NAME, harmless(&call.to, TEXT_MAX));
    } else {
        // Not traced: an external service.
        let host = call.host.as_deref().filter(|host| **host != *call.peer);
        row.push(PLAIN, "→ ");
        row.push(NAME, harmless(host.unwrap_or(&call.peer), TEXT_MAX));
        if host.is_some() {
            row.push(DIM, format!(" ({})", harmless(&call.peer, TEXT_MAX)));
        }
    }
    request(row, call.http.as_ref());
    if call.protocol.is_some() {
        row.field(DIM, "connection, not HTTP/1");
    }
    platform(row, callee.and_then(|callee| callee.faas.as_deref()));
    // What was polled for has no status of its own.
    let error = call.error.as_deref().or(callee.filter(|_| call.http.is_none()).and_then(|it| it.error.as_deref()));
    outcome(row, call.http.as_ref(), error, call.duration_us);
    if let Some(callee) = callee {
        cold(row, callee, call.duration_us);
    }
    if parallel {
        row.field(DIM, "parallel");
    }
    if call.after_response {
        row.field(NOTE, "after the response");
    }
    match &*call.parent_by {
        "header" | "exclusive" | "thread" => {}
        "none" => row.field(DIM, "no invocation"),
        "inferred" => row.field(NOTE, format!("parent guessed, {:.0} %", 100.0 * call.probability.unwrap_or(0.0))),
        rule => row.field(DIM, format!("parent by {}", harmless(rule, TEXT_MAX))),
    }
}

/// How long a cold start took, and how much of the time that its caller waited, where that is known.
fn cold(row: &mut Row, invocation: &Invocation, call_us: Option<u64>) {
    if !invocation.cold {
        return;
    }
    row.field(COLD, "cold");
    let Some(start) = &invocation.cold_start else { return };
    if let Some(took) = start.ready_us.map(|ready| ready.saturating_sub(start.born_us)) {
        row.push(COLD, format!(" {}", duration(took.max(0) as u64)));
    }
    match (start.waited_us, call_us) {
        (Some(0), _) => row.push(DIM, ", before the call"),
        (Some(waited), Some(call)) => {
            let part = 100.0 * waited as f64 / call.max(1) as f64;
            row.push(COLD, format!(", {:.0} % of the wait", part.min(100.0)));
        }
        _ => {}
    }
}

/// What the platform calls it, and what went wrong in the platform's word.
fn platform(row: &mut Row, faas: Option<&Faas>) {
    let Some(faas) = faas else { return };
    if let Some(id) = &faas.invocation_id {
        row.field(PLAIN, format!("invocation {}", harmless(id, TEXT_MAX)));
    }
    if let Some(error) = &faas.error_type {
        row.field(BAD, harmless(error, TEXT_MAX));
    }
}

fn request(row: &mut Row, http: Option<&Http>) {
    if let Some(http) = http {
        row.field(PLAIN, format!("{} {}", harmless(&http.method, TEXT_MAX), harmless(&http.path, TEXT_MAX)));
        if let Some(query) = &http.query {
            row.push(DIM, format!("?{}", harmless(query, TEXT_MAX)));
        }
    }
}

fn outcome(row: &mut Row, http: Option<&Http>, error: Option<&str>, duration_us: Option<u64>) {
    if let Some(status) = http.and_then(|http| http.status) {
        row.field(
            if status >= 500 {
                BAD
            } else if status >= 400 {
                NOTE
            } else {
                PLAIN
            },
            status.to_string(),
        );
    }
    if let Some(error) = error {
        row.field(BAD, harmless(error, TEXT_MAX));
    }
    match duration_us {
        Some(us) => row.field(PLAIN, duration(us)),
        None => row.field(NOTE, "no end seen"),
    }
}

/// Three digits, in the unit that fits.
pub(crate) fn duration(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => format!("{:.0} s", us as f64 / 1e6),
    }
}

fn end_of(node: &Node) -> i64 {
    // What did not end goes on as far as anyone knows.
    node.duration_us().map_or(i64::MAX, |us| node.start_us().saturating_add_unsigned(us))
}

fn extent(node: &Node, from: &mut i64, to: &mut i64) {
    *from = (*from).min(node.start_us());
    *to = (*to).max(node.start_us().saturating_add_unsigned(node.duration_us().unwrap_or(0)));
    node.children().iter().for_each(|child| extent(child, from, to));
}

fn failed(node: &Node) -> bool {
    let (http, error) = match node {
        Node::Invocation(invocation) => (&invocation.http, &invocation.error),
        Node::Call(call) => (&call.http, &call.error),
    };
    error.is_some() || http.as_ref().and_then(|http| http.status).is_some_and(|status| status >= 500)
}

/// The span's bar in the waterfall.
fn bar(node: &Node, axis: Option<Axis>) -> Option<(Style, String, usize)> {
    let Axis { from, to, columns } = axis?;
    let length = to.saturating_sub(from).max(1) as f64;
    let column = |at: i64| ((at.saturating_sub(from) as f64 / length * columns as f64) as usize).min(columns);
    let begin = column(node.start_us()).min(columns - 1);
    let end = column(end_of(node)).max(begin + 1);
    let bar = "·".repeat(begin) + &"━".repeat(end - begin) + &"·".repeat(columns - end);
    Some((if failed(node) { BAD } else { DIM }, bar, columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Line;

    /// The example of the contract, grown by one of everything.
    const PATH: &str = r#"{"fntrace":1,"type":"path","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736",
        "start":"2026-11-23T09:00:00.123456Z","duration_us":48210,"complete":false,"missing":["the end of call 5"],
        "root":{"kind":"invocation","span_id":"00f067aa0ba902b7","function":"checkout","sandbox":"/fns/checkout-1","pid":4,
        "start_us":0,"duration_us":48210,"cold":true,"http":{"method":"POST","path":"/checkout","status":200},"children":[
        {"kind":"call","span_id":"b7ad6b7169203331","to":"inventory","peer":"127.0.0.1:8081","start_us":950,
        "duration_us":20100,"http":{"method":"GET","path":"/stock/42","status":200},"tag":"injected",
        "parent_by":"exclusive","after_response":false,"children":[{"kind":"invocation","span_id":"0000000000000002",
        "function":"inventory","sandbox":"/fns/inventory-1","pid":5,"start_us":1000,"duration_us":20000,"cold":false,
        "joined_by":"tag","children":[{"kind":"call","span_id":"0000000000000003","to":"10.0.0.9:5432","peer":"10.0.0.9:5432",
        "start_us":1500,"duration_us":900,"protocol":"opaque","tag":"no_request","parent_by":"loop"}]}]},
        {"kind":"call","span_id":"0000000000000004","to":"10.1.2.3:80","peer":"10.1.2.3:80","host":"pay.example",
        "start_us":1200,"duration_us":30000,"http":{"method":"POST","path":"/pay\u001b[2J\u202e","status":503},
        "tag":"destination","parent_by":"inferred"},
        {"kind":"call","span_id":"0000000000000005","to":"127.0.0.1:9","peer":"127.0.0.1:9","start_us":40000,
        "duration_us":80,"tag":"no_request","parent_by":"thread","error":"connection refused"},
        {"kind":"call","span_id":"0000000000000006","to":"audit","peer":"127.0.0.1:8082","start_us":48000,"ended":false,
        "http":{"method":"PUT","path":"/log"},"tag":"kept","parent_by":"thread","after_response":true}]}}"#;

    fn render(look: Look) -> String {
        let mut sink = Tree::new(Vec::new(), look);
        sink.line(&Line::parse(PATH).unwrap().unwrap()).unwrap();
        String::from_utf8(sink.writer).unwrap()
    }

    #[test]
    fn a_newcomer_understands_it() {
        let text = render(Look { width: 110, colour: false });
        let expect = "\
09:00:00.123  trace 4bf92f3577b34da6a3ce929d0e0e4736
checkout  POST /checkout  200  48.2 ms  cold                                       ━━━━━━━━━━━━━━━━━━━━━━━━━━━
├─ inventory  GET /stock/42  200  20.1 ms  parallel                                ━━━━━━━━━━━················
│  └─ → 10.0.0.9:5432  connection, not HTTP/1  900 µs  parent by loop              ━··························
├─ → pay.example (10.1.2.3:80)  POST /pay\\u{1b}[2J\\u{202e}  503  30.0 ms  parall…  ━━━━━━━━━━━━━━━━━··········
├─ → 127.0.0.1:9  connection refused  80 µs                                        ······················━····
└─ audit  PUT /log  no end seen  after the response                                ··························━
missing: the end of call 5

";
        assert_eq!(text, expect, "\n{text}");
    }

    #[test]
    fn a_cold_start_says_how_long_it_took_and_who_waited() {
        let row = |start: &str, caller: bool| {
            let text = format!(
                r#"{{"kind":"invocation","span_id":"0000000000000002","function":"mail","sandbox":"/s","pid":5,"start_us":150000,
                "duration_us":20000,"cold":true{start},"joined_by":"tag","children":[]}}"#
            );
            let call = format!(
                r#"{{"kind":"invocation","span_id":"0000000000000003","function":"shop","sandbox":"/t","pid":6,"start_us":0,
                "duration_us":200000,"cold":false,"children":[{{"kind":"call","span_id":"0000000000000004","to":"mail",
                "peer":"127.0.0.1:1","start_us":0,"duration_us":160000,"tag":"injected","parent_by":"thread",
                "children":[{text}]}}]}}"#
            );
            let line = format!(
                r#"{{"fntrace":1,"type":"path","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","start":"2026-11-23T09:00:00Z",
                "duration_us":200000,"complete":true,"root":{}}}"#,
                if caller { &call } else { &text }
            );
            let mut sink = Tree::new(Vec::new(), Look { width: 79, colour: false });
            sink.line(&Line::parse(&line).unwrap().unwrap()).unwrap();
            let text = String::from_utf8(sink.writer).unwrap();
            let row = text.lines().find_map(|line| line.split_once("mail  ")?.1.split('·').next()?.split('━').next());
            row.unwrap_or_else(|| panic!("{text}")).trim_end().to_owned()
        };
        let start =
            |waited: &str| format!(r#","cold_start":{{"born_us":8000,"started_us":30000,"ready_us":128000{waited}}}"#);
        assert_eq!(row("", true), "160 ms  cold");
        assert_eq!(row(&start(""), false), "20.0 ms  cold 120 ms");
        assert_eq!(row(&start(r#","waited_us":120000"#), true), "160 ms  cold 120 ms, 75 % of the wait");
        assert_eq!(row(&start(r#","waited_us":0"#), true), "160 ms  cold 120 ms, before the call");
        assert_eq!(row(r#","cold_start":{"born_us":8000}"#, true), "160 ms  cold");
    }

    #[test]
    fn no_row_is_wider_than_the_terminal() {
        for width in [1, 20, 39, 40, 60, 80, 200] {
            let text = render(Look { width, colour: false });
            let widest = text.lines().map(UnicodeWidthStr::width).max();
            assert!(widest <= Some(usize::from(width)), "{width}\n{text}");
        }
    }

    #[test]
    fn colour_is_the_callers_choice_and_nothing_harmful_gets_through() {
        let plain = render(Look { width: 300, colour: false });
        assert!(!plain.chars().any(|char| char != '\n' && crate::text::is_harmful(char)), "{plain}");
        assert!(plain.contains("/pay\\u{1b}[2J\\u{202e}"), "{plain}");
        let colour = render(Look { width: 300, colour: true });
        assert!(colour.contains("\u{1b}[1m\u{1b}[31mconnection refused\u{1b}[0m"), "{colour:?}");
        assert!(!colour.contains("\u{1b}[2J") && !colour.contains('\u{202e}'));
    }
}
