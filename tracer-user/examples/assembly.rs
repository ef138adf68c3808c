//! What assembly costs, on records that are made up: paths per second on one core, and memory against what is in flight.
//! `cargo xtask bench` runs it and takes over what it prints.

#![expect(clippy::unwrap_used, reason = "a measurement that fails is none")]

use std::{sync::Arc, time::Instant};

use fntrace::{
    assemble::{Assembler, Config, SandboxInfo},
    sink::{Format, Sink},
};
use tracer_ebpf::{
    record::{End, Header, Kind, Rule, START_INBOUND, Start, Tag, Wire, as_bytes},
    traceparent::Context,
};

/// A root and its calls, each with the invocation that it causes.
const CALLS: u64 = 5;
const PATHS: u64 = 20_000;
/// So many are in flight at any moment.
const ABREAST: u64 = 16;
/// Records between two looks at what is complete.
const BATCH: usize = 256;
const ROUNDS: usize = 7;
const HEAD: &[u8] =
    b"GET /stock/42 HTTP/1.1\r\nHost: inventory.shop.internal\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
    Accept-Encoding: gzip\r\nContent-Type: application/json\r\n\r\n";

/// One end of an exchange.
#[derive(Clone, Copy)]
struct Side {
    span: u64,
    parent: u64,
    call: bool,
    trace: u64,
    conn: u64,
}

impl Side {
    /// Both ends of an exchange have the same: a call's span is odd, its invocation's the one after.
    fn sequence(self) -> u32 {
        self.span.div_ceil(2) as u32
    }
}

fn wire(side: Side) -> Wire {
    let mut address = [0; 16];
    address[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
    let ports = (10_000 + (side.conn % 50_000) as u16, 80 + (side.conn % 7) as u16);
    let (local_port, remote_port) = if side.call { ports } else { (ports.1, ports.0) };
    Wire { local: address, remote: address, netns: 1, local_port, remote_port, pad: 0 }
}

fn start(side: Side, at_ns: u64) -> Vec<u8> {
    let kind = if side.call { Kind::CallStart } else { Kind::InvocationStart };
    let header = Header { at_ns, sandbox: 1 + side.conn % 7, kind: kind as u16, tail_len: HEAD.len() as u16, pid: 9 };
    let start = Start {
        conn: side.conn << 1 | u64::from(side.call),
        context: Context { trace_id: [side.trace, 1], span_id: side.span, flags: 1, pad: [0; 7] },
        parent: side.parent,
        wire: wire(side),
        sequence: side.sequence(),
        flags: if !side.call && side.parent != 0 { START_INBOUND } else { 0 },
        rule: if side.call { Rule::Exclusive } else { Rule::None } as u8,
        tag: Tag::Injected as u8,
        live: 1,
        trust: 0,
        pad: [0; 3],
        tid: 0,
        unit: [0; 2],
    };
    [as_bytes(&header), as_bytes(&start), HEAD].concat()
}

fn end(side: Side, at_ns: u64) -> Vec<u8> {
    let kind = if side.call { Kind::CallEnd } else { Kind::InvocationEnd };
    let header = Header { at_ns, sandbox: 1 + side.conn % 7, kind: kind as u16, tail_len: 0, pid: 9 };
    let end = End {
        conn: side.conn << 1 | u64::from(side.call),
        span: side.span,
        first_byte_ns: at_ns,
        sequence: side.sequence(),
        status: 200,
        reason: 0,
        retransmits: 0,
        errno: 0,
        rtt_us: 20,
    };
    [as_bytes(&header), as_bytes(&end)].concat()
}

/// The records of one path. Caller and callee of one exchange must be in the sandboxes that their spans say, so each
/// connection has one.
fn path(number: u64) -> Vec<Vec<u8>> {
    let (base, at) = (number * 64 + 1, number * 1_000_000 + 1);
    let conn = |exchange: u64| (number % ABREAST * 8 + exchange) * 7;
    let root = Side { span: base, parent: 0, call: false, trace: base, conn: conn(0) };
    let mut records = vec![start(root, at)];
    for exchange in 1..=CALLS {
        let call = Side { span: base + exchange * 2, parent: base, call: true, trace: base, conn: conn(exchange) };
        let invocation = Side { span: call.span + 1, parent: call.span, call: false, ..call };
        records.push(start(call, at + exchange * 100));
        records.push(start(invocation, at + exchange * 100 + 10));
        records.push(end(invocation, at + exchange * 100 + 50));
        records.push(end(call, at + exchange * 100 + 60));
    }
    records.push(end(root, at + 900));
    records
}

/// Records one after another, as they lie in the ring buffer.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Stream {
    fn push(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        // The ring buffer's own: a header of eight bytes, and lengths that are a multiple of that.
        self.ends.push(self.bytes.len());
        self.bytes.resize(self.bytes.len().next_multiple_of(8) + 8, 0);
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let record = &self.bytes[start..*end];
            start = end.next_multiple_of(8) + 8;
            record
        })
    }
}

/// Those of [`ABREAST`] paths at a time by turns.
fn stream() -> Stream {
    let mut all = Stream::default();
    for first in (0..PATHS).step_by(ABREAST as usize) {
        let mut abreast: Vec<_> = (first..first + ABREAST).map(|number| path(number).into_iter()).collect();
        loop {
            let before = all.ends.len();
            abreast.iter_mut().filter_map(Iterator::next).for_each(|record| all.push(&record));
            if all.ends.len() == before {
                break;
            }
        }
    }
    all
}

fn assembler() -> Assembler {
    let mut assembler = Assembler::new(Config::default());
    for sandbox in 1..=7 {
        let name: Arc<str> = format!("function-{sandbox}").into();
        assembler.sandbox(sandbox, SandboxInfo { function: Arc::clone(&name), path: name, resource: None });
    }
    assembler
}

/// Seconds for the whole stream, through to the lines if there is a sink for them.
fn assemble(records: &Stream, mut sink: Option<Sink<std::io::Sink>>) -> f64 {
    let mut assembler = assembler();
    let (begin, mut paths) = (Instant::now(), 0);
    let mut records = records.records().peekable();
    let mut batch = 0;
    while records.peek().is_some() {
        for record in records.by_ref().take(BATCH) {
            assert!(assembler.read(record));
        }
        batch += 1;
        assembler.advance(batch);
        while let Some(line) = assembler.take() {
            paths += 1;
            if let Some(sink) = &mut sink {
                sink.line(&line).unwrap();
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let totals = assembler.totals();
    assert_eq!(
        (paths, totals.incomplete, totals.joins.tag),
        (PATHS, 0, PATHS * CALLS),
        "not the paths that were meant"
    );
    seconds
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn median(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    [numbers[0], numbers[numbers.len() / 2], numbers[numbers.len() - 1]]
}

fn main() {
    memory();
    let records = stream();
    let mut seconds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        seconds[0].push(assemble(&records, None));
        seconds[1].push(assemble(&records, Some(Sink::new(Format::Ndjson, std::io::sink()))));
    }
    println!(
        "Paths of {CALLS} calls, {} records each, on one core; medians of {ROUNDS} rounds (least, most).\n",
        2 + CALLS * 4
    );
    println!("| what | paths per second | µs per record |\n|---|---|---|");
    for (name, seconds) in ["assembly alone", "assembly and ndjson"].into_iter().zip(seconds) {
        let [least, middle, most] = median(seconds);
        let (rate, each) = (|s: f64| PATHS as f64 / s, |s: f64| s * 1e6 / records.ends.len() as f64);
        println!(
            "| {name} | {:.0} ({:.0}–{:.0}) | {:.2} ({:.2}–{:.2}) |",
            rate(middle),
            rate(most),
            rate(least),
            each(middle),
            each(least),
            each(most)
        );
    }
    println!();
}

/// Invocations, each with a call that is open too.
fn memory() {
    let before = resident_mib();
    println!(
        "| invocations in flight, with a call each | the process's memory, MiB | bytes per invocation |\n|---|---|---|"
    );
    for count in [1000, 10_000, 100_000] {
        let mut assembler = assembler();
        for number in 0..count {
            let root = Side { span: number * 4 + 1, parent: 0, call: false, trace: number + 1, conn: number * 7 };
            let call = Side { span: root.span + 1, parent: root.span, call: true, ..root };
            assembler.read(&start(root, number + 1));
            assembler.read(&start(call, number + 2));
        }
        assembler.advance(count + 3);
        assert_eq!(assembler.totals().open, count * 2);
        let now = resident_mib();
        println!("| {count} | {now:.1} | {:.0} |", (now - before) * 1024.0 * 1024.0 / count as f64);
    }
    println!();
}
