//! The forms of a profile.

mod dot;
mod folded;
mod html;
mod json;
mod layout;
mod table;

use std::{
    cmp::Reverse,
    io::{self, Write},
};

use super::{
    Profile,
    compare::{Change, What},
    findings::{Confidence, Finding, Kind, Saves},
    histogram::Histogram,
    stats::{Callee, Edge, Function, Name, Shape, Step, StepKind, StepTime},
};
pub(crate) use crate::{sink::tree::duration, text::harmless};

/// The forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for the terminal.
    #[default]
    Table,
    /// One JSON object in one line: all counts, and the findings. It can be read back as a profile.
    Json,
    /// The call graph for Graphviz.
    Dot,
    /// Own time by stack for flame graph tools (`flamegraph.pl`, `inferno-flamegraph`, speedscope), in µs.
    Folded,
    /// One page that needs nothing else: call graph, findings, histograms, timelines.
    Html,
}

/// How much, and how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Rows of each table.
    pub top: usize,
    /// Columns of the terminal.
    pub width: usize,
    /// Whether to write colours.
    pub colour: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self { top: 20, width: 120, colour: false }
    }
}

/// What is written.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The counts.
    pub profile: &'a Profile,
    /// What is worth changing.
    pub findings: &'a [Finding],
    /// What changed, if it was compared.
    pub changes: Option<&'a [Change]>,
}

impl Report<'_> {
    /// Writes it.
    pub fn write(&self, format: Format, look: Look, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Table => table::write(self, look, out),
            Format::Json => json::write(self, out),
            Format::Dot => dot::write(self, look, out),
            Format::Folded => folded::write(self, out),
            Format::Html => html::write(self, look, out),
        }
    }
}

/// Longest name that is printed, in characters.
const NAME_MAX: usize = 48;

fn name(text: &str) -> String {
    harmless(text, NAME_MAX).into_owned()
}

fn percent(part: u64, of: u64) -> String {
    match part as f64 / of.max(1) as f64 * 100.0 {
        0.0 => "0 %".to_owned(),
        share if share < 0.1 => "<0.1 %".to_owned(),
        share if share < 10.0 => format!("{share:.1} %"),
        share => format!("{share:.0} %"),
    }
}

/// 0 as nothing, so that what is not 0 stands out.
fn count(number: u64) -> String {
    if number == 0 { "·".to_owned() } else { thousands(number) }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The time that a share of all lies below; a dot if there is none, as everywhere in the tables.
fn quantile(times: &Histogram, share: f64) -> String {
    if times.count() == 0 { "·".to_owned() } else { duration(times.quantile(share)) }
}

fn least(times: &Histogram) -> String {
    if times.count() == 0 { "·".to_owned() } else { duration(times.min()) }
}

fn mean(part: u64, of: u64) -> String {
    format!("{:.1}", part as f64 / of.max(1) as f64)
}

/// Functions, those first that all together took the most time.
fn functions(profile: &Profile) -> Vec<(&Name, &Function)> {
    let mut rows: Vec<_> = profile.functions.iter().filter(|(_, function)| function.invocations > 0).collect();
    rows.sort_by_key(|(name, function)| (Reverse(function.latency.sum()), *name));
    rows
}

/// Edges with their callers, those first in which callers waited the most.
fn edges(profile: &Profile) -> Vec<(&Name, &Function, &Callee, &Edge)> {
    let of = |(name, function)| {
        let function: &Function = function;
        function.edges.iter().map(move |(callee, edge)| (name, function, callee, edge))
    };
    let mut rows: Vec<_> = profile.functions.iter().flat_map(of).collect();
    rows.sort_by_key(|(name, _, callee, edge)| (Reverse(edge.latency.sum()), *name, *callee));
    rows
}

/// Shapes, the commonest first.
fn shapes(profile: &Profile) -> Vec<(&str, &Shape)> {
    let mut rows: Vec<_> = profile.shapes.iter().map(|(form, shape)| (&*form.shape, shape)).collect();
    rows.sort_by_key(|(form, shape)| (Reverse(shape.paths), *form));
    rows
}

/// The steps of a shape's critical path, the longest first, and the sum of all.
fn steps(shape: &Shape) -> (Vec<(&Step, &StepTime)>, u64) {
    let mut rows: Vec<_> = shape.critical.iter().collect();
    rows.sort_by_key(|(step, time)| (Reverse(time.us), *step));
    let other = shape.critical.other().map_or(0, |time| time.us);
    let total = rows.iter().map(|(_, time)| time.us).sum::<u64>() + other;
    (rows, total)
}

fn step(step: &Step) -> String {
    match step.kind {
        StepKind::Own => name(&step.name),
        StepKind::External => format!("→ {}", name(&step.name)),
        StepKind::Network => format!("network to {}", name(&step.name)),
    }
}

/// In which place an edge's first call usually stands in the order of calls, from 1.
fn position(edge: &Edge) -> String {
    let at = (0..edge.positions.len()).max_by_key(|&at| (edge.positions[at], Reverse(at))).unwrap_or(0);
    if at + 1 == edge.positions.len() { format!("{}+", at + 1) } else { (at + 1).to_string() }
}

fn title(finding: &Finding) -> String {
    let kind = match finding.kind {
        Kind::SerialCalls => "Independent calls made one after the other",
        Kind::RepeatedCall => "Same call repeated",
        Kind::NPlusOne => "One call for each element (N+1)",
        Kind::VainRetries => "Retries that never succeed",
        Kind::UnusedResult => "Result cannot have been used",
        Kind::Cycle => "Functions call each other in a circle",
        Kind::ColdStarts => "Callee's cold starts make the p99",
        Kind::HotExternal => "Hot external dependency",
        Kind::ShortTimeout => "Time-out shorter than the callee's p99",
    };
    let callees = finding.callees.iter().map(|callee| name(callee)).collect::<Vec<_>>().join(", ");
    match (&finding.function, callees.as_str()) {
        (Some(function), "") => format!("{kind}: {}", name(function)),
        (Some(function), callees) => format!("{kind}: {} → {callees}", name(function)),
        (None, callees) => format!("{kind}: {callees}"),
    }
}

fn saving(finding: &Finding) -> String {
    let us = duration(finding.saves_us);
    match finding.saves {
        Saves::Latency => format!("saves up to {us} each time, {} times", thousands(finding.times)),
        Saves::P99 => format!("saves up to {us} of the p99"),
        Saves::Work => format!("saves {us} of the callee's work each time, {} times", thousands(finding.times)),
    }
}

fn confidence(finding: &Finding) -> &'static str {
    match finding.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
    }
}

/// What changed, from what, to what.
fn change(change: &Change) -> (String, String, String, String) {
    let of = match &change.callee {
        Some(callee) => format!("{} → {}", name(&change.function), name(callee)),
        None => name(&change.function),
    };
    let share = |value: f64| format!("{:.1} %", value * 100.0);
    let (what, old, new) = match change.what {
        What::Latency => ("p50", duration(change.old as u64), duration(change.new as u64)),
        What::Tail => ("p99", duration(change.old as u64), duration(change.new as u64)),
        What::Errors => ("errors", share(change.old), share(change.new)),
        What::Probability => ("called in", share(change.old), share(change.new)),
        What::Appeared => ("appeared", "–".to_owned(), format!("{} ×", thousands(change.new as u64))),
        What::Vanished => ("vanished", format!("{} ×", thousands(change.old as u64)), "–".to_owned()),
    };
    (of, what.to_owned(), old, new)
}

/// What the profile is made of, in a sentence.
fn summary(profile: &Profile) -> String {
    let plural =
        |number: u64, what: &str| format!("{} {what}{}", thousands(number), if number == 1 { "" } else { "s" });
    let mut out = plural(profile.paths, "path");
    for (number, what) in [(profile.incomplete, "incomplete"), (profile.root_calls, "begun by a call of no invocation")]
    {
        if number > 0 {
            out += &format!(", {} {what}", thousands(number));
        }
    }
    if profile.late > 0 {
        out += &format!(", {} that came late and are not counted", plural(profile.late, "part"));
    }
    if let (Some(first), Some(last)) = (profile.first.0, profile.last.0) {
        let time = |us| crate::path::Time(us).to_string();
        let (first, last) = (time(first), time(last));
        out += &format!(", from {} to {}", first.get(..19).unwrap_or(&first), last.get(..19).unwrap_or(&last));
    }
    out
}

/// What did not fit into the tables of the profile, in words.
fn overflow(profile: &Profile) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(other) = profile.functions.other() {
        out.push(format!(
            "{} invocations of functions beyond {}",
            thousands(other.invocations),
            profile.functions.len()
        ));
    }
    if let Some(other) = profile.shapes.other() {
        out.push(format!("{} paths of shapes beyond {}", thousands(other.paths), profile.shapes.len()));
    }
    if let Some(other) = profile.externals.other() {
        out.push(format!("{} calls to services beyond {}", thousands(other.calls), profile.externals.len()));
    }
    let edges =
        profile.functions.iter().filter_map(|(_, function)| function.edges.other()).map(|edge| edge.calls).sum();
    if edges > 0 {
        out.push(format!("{} calls to callees beyond a function's {}", thousands(edges), super::stats::EDGES_MAX));
    }
    out
}
