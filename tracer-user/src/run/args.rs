//! The command line of `fntrace run`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tracer_ebpf::http1::HEAD_LIMIT;

use crate::{agent::Cidr, forecast};

/// What `run` takes; `demo` takes the part that is [`Output`].
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Trace the functions in this cgroup and in every one below it.
    ///
    /// A path below the cgroup v2 mount (`/fns`, or absolute), or a pattern: `*` and `?` stand for anything within one
    /// segment, and what matches is traced from its first packet when it appears. May be given several times.
    ///
    /// Without it, the containers in which a known platform of functions shows are found and traced, and nothing else.
    #[arg(long = "cgroup", value_name = "PATH")]
    pub cgroups: Vec<String>,

    /// Find functions only below this cgroup: so that tests keep to what they made.
    #[arg(long, hide = true, value_name = "PATH", default_value = "", conflicts_with = "cgroups")]
    pub discover_below: String,

    /// Give the sandbox at a cgroup (path or pattern) this function name.
    #[arg(long = "name", value_name = "CGROUP=NAME")]
    pub names: Vec<String>,

    #[command(flatten)]
    pub output: Output,

    /// Follow goroutines in Go functions, so that their calls by net/http are told apart however many requests are at
    /// work at once. This puts breakpoints (uprobes) into the tenants' Go programs, which nothing else here does; they are
    /// gone when the agent ends. Each call, each goroutine made and each hand-over between two costs the function about a
    /// microsecond more. It takes Go 1.18 or newer on x86-64, not stripped of its symbols; what cannot be probed is named
    /// on standard error.
    #[arg(long, requires = "cgroups")]
    pub go_uprobes: bool,
    /// Attach programs that return at once: the floor that the bench compares with.
    #[arg(long, hide = true)]
    pub floor: bool,

    /// Another size for a map of the kernel half: for tests of what happens when it is full.
    #[arg(long, hide = true, value_name = "NAME=N", value_parser = map_entries)]
    pub map_entries: Vec<(String, u32)>,
}

/// How to tag, and what to print.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Form of the output [default: tree on a terminal, ndjson otherwise].
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// Whether to write a `traceparent` into the calls between functions. Without it, calls and invocations are joined
    /// by their connection, which works on one host.
    #[arg(long, value_enum, default_value_t = Tagging::Auto)]
    pub tag: Tagging,

    /// Addresses that a tag may be sent to [default: loopback, link-local and private ranges].
    #[arg(long, value_name = "CIDR")]
    pub tag_to: Vec<Cidr>,

    /// Most bytes of a request head with its tag. A longer one is left alone, so that no tag pushes a request over a
    /// server's limit: Tomcat's and Jetty's is 8,192 bytes, that of Node.js 16,384. Nor does any head with more than 98
    /// fields get one.
    #[arg(long, value_name = "BYTES", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(..=HEAD_LIMIT as i64))]
    pub tag_max_head: u32,

    /// How long a path whose root has answered waits for what is still open below it.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = humantime::parse_duration)]
    pub settle: Duration,

    /// How often to print a line of counts [default: 10s as ndjson, only at the end as tree].
    #[arg(long, value_name = "TIME", value_parser = at_least_100ms)]
    pub stats_every: Option<Duration>,

    /// Keep a profile of the paths in this file, rewritten whole every second: JSON, or what the ending of its name says
    /// (.html, .dot, .folded, .txt).
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,

    /// Write all that the kernel half tells to this file, for `fntrace replay`. It holds heads of requests with all their
    /// fields, environments and parts of stacks: it is made for its owner alone to read.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    #[command(flatten)]
    pub forecast: forecast::live::Args,

    /// Least probability with which a call that no rule could place is shown under an invocation; below it the call is a
    /// path of its own. 1: infer nothing, and wait for nothing.
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = probability)]
    pub infer_min: f64,

    /// Also rank calls of which the kernel half knows nothing, or little, by their timing over the whole record. Right for
    /// functions that call at steady delays; on a busy event loop it is often wrong, whatever probability it states.
    #[arg(long)]
    pub infer_by_timing: bool,

    /// Record only this share of the paths, from 0 to 1. It is decided where a path begins, and tags hand it on in the
    /// sampled flag of `traceparent`.
    #[arg(long, value_name = "SHARE", value_parser = probability, conflicts_with = "max_overhead")]
    pub sample: Option<f64>,

    /// Keep the agent's own cost (its programs in the kernel, and its process) below this much of the host's processor
    /// time, by recording fewer paths of the functions that begin most of them. Without it all are recorded.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub max_overhead: Option<f64>,

    /// Print the query string of request targets. It may hold secrets.
    #[arg(long)]
    pub query: bool,

    /// Print what the kernel half logs to standard error.
    #[arg(long, short)]
    pub verbose: bool,
}

/// The forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: a tree with a waterfall for each call path.
    Tree,
    /// For programs: one JSON object a line.
    Ndjson,
    /// For OpenTelemetry's Collector: one ExportTraceServiceRequest a line; counts go to standard error.
    OtlpJson,
}

/// When to tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tagging {
    /// Where a test at the start shows that it changes nothing else for any way of reading from a socket.
    Auto,
    /// Also where it does for some rare ways: `fntrace doctor` names them.
    On,
    /// Never.
    Off,
}

fn map_entries(text: &str) -> Result<(String, u32)> {
    let (name, entries) = text.split_once('=').context("NAME=N")?;
    Ok((name.to_owned(), entries.parse()?))
}

fn probability(text: &str) -> Result<f64> {
    let p: f64 = text.parse()?;
    anyhow::ensure!((0.0..=1.0).contains(&p), "from 0 to 1");
    Ok(p)
}

fn percent(text: &str) -> Result<f64> {
    let percent: f64 = text.parse()?;
    anyhow::ensure!(percent > 0.0 && percent <= 100.0, "more than 0, at most 100");
    Ok(percent)
}

fn at_least_100ms(text: &str) -> Result<Duration> {
    let time = humantime::parse_duration(text)?;
    anyhow::ensure!(time >= Duration::from_millis(100), "at least 100ms");
    Ok(time)
}
