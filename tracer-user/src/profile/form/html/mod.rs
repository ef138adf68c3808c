//! One page that needs nothing else: no script, no font, no file beside it. Whatever a name holds, it is text: `maud`
//! escapes it, and the page forbids itself to load or run anything.

mod charts;
mod graph;

use std::io::{self, Write};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Look, Report, change, confidence, count, duration, edges, functions, least, mean, name, overflow, percent,
    position, quantile, saving, shapes, step, steps, summary, table::cold_cost, thousands, title,
};
use crate::profile::findings::Confidence;

/// Longest shape that is shown, in characters.
const SHAPE_MAX: usize = 400;

pub(super) fn write(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let profile = report.profile;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "fntrace profile" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { "fntrace profile" }
                p.dim { (summary(profile)) }
                @for what in overflow(profile) { p.dim { "Not told apart: " (what) } }
                nav {
                    a href="#findings" { "Findings" }
                    @if report.changes.is_some() { a href="#changes" { "Changes" } }
                    a href="#graph" { "Call graph" }
                    a href="#functions" { "Functions" }
                    a href="#calls" { "Calls" }
                    a href="#paths" { "Paths" }
                }
                (findings(report, look))
                (changes(report, look))
                h2 id="graph" { "Call graph" }
                div.card { (graph::graph(profile, look)) }
                (functions_section(report, look))
                (calls(report, look))
                (paths(report, look))
                footer {
                    "Times are as the agent's host saw them; histograms are exact to 0.8 %. own: no call was open. waiting: at \
                     least one was. queueing: from the caller's sending to the arrival in the sandbox. least rtt: of the \
                     connections, smoothed, as the caller's kernel has it. It counts acknowledgements that wait for the answer, so only \
                     the least is the network's. resent: segments."
                }
            }
        }
    };
    out.write_all(page.into_string().as_bytes())?;
    out.write_all(b"\n")
}

fn more(all: usize, look: Look) -> Markup {
    html! { @if all > look.top { p.dim { "… and " (thousands((all - look.top) as u64)) " more (--top " (all) ")" } } }
}

fn findings(report: &Report<'_>, look: Look) -> Markup {
    html! {
        h2 id="findings" { "Findings" }
        @if report.findings.is_empty() { div.card.dim { "Nothing to change was found." } }
        @for finding in report.findings.iter().take(look.top) {
            div.card.finding.certain[finding.confidence == Confidence::Certain] {
                h3 { (title(finding)) span.tag { (confidence(finding)) } }
                p { b { (saving(finding)) } ". Seen: " (super::harmless(&finding.seen, 300)) "." }
                p { (finding.advice) }
                p.dim {
                    "Traces "
                    @for evidence in &finding.evidence { code { (evidence.trace_id) } " (" (duration(evidence.us)) ") " }
                }
            }
        }
        (more(report.findings.len(), look))
    }
}

fn changes(report: &Report<'_>, look: Look) -> Markup {
    let Some(changes) = report.changes else { return html! {} };
    html! {
        h2 id="changes" { "Changes" }
        @if changes.is_empty() { div.card.dim { "None that is more than chance." } } @else {
            div.card { table {
                tr { th {} th { "what" } th { "was" } th { "is" } th { "chance" } }
                @for row in changes.iter().take(look.top) {
                    @let (of, what, old, new) = change(row);
                    tr {
                        td { (of) } td { (what) } td { (old) }
                        td.bad[row.worse() == Some(true)].good[row.worse() == Some(false)] { (new) }
                        td.dim { @if row.q < 1e-4 { "<0.01 %" } @else { (format!("{:.2} %", row.q * 100.0)) } }
                    }
                }
            } }
            (more(changes.len(), look))
        }
    }
}

fn functions_section(report: &Report<'_>, look: Look) -> Markup {
    let functions = functions(report.profile);
    html! {
        h2 id="functions" { "Functions" }
        div.card { table {
            tr {
                th {} th { "invocations" } th { "p50" } th { "p90" } th { "p99" } th { "max" }
                th { "own / waiting" } th { "queueing" } th { "calls" } th { "errors" } th { "cold" } th { "cold costs" }
            }
            @for (key, function) in functions.iter().take(look.top) {
                @let latency = &function.latency;
                tr {
                    td { b { (name(&key.name)) } }
                    td { (thousands(function.invocations)) }
                    @for q in [0.5, 0.9, 0.99] { td { (quantile(latency, q)) } }
                    td { (quantile(latency, 1.0)) }
                    td title=(format!("own {}, waiting {}", percent(function.own.sum(), latency.sum()),
                        percent(function.waiting.sum(), latency.sum()))) {
                        (charts::shares(&[("own", function.own.sum()), ("wait", function.waiting.sum())], 90.0))
                    }
                    td { (quantile(&function.queueing, 0.5)) }
                    td { (mean(function.calls, function.invocations)) }
                    td.bad[function.errors > 0] { (count(function.errors)) }
                    td { (count(function.cold)) }
                    td { (cold_cost(function)) }
                }
            }
        } }
        (more(functions.len(), look))
        div.grid {
            @for (key, function) in functions.iter().take(look.top).filter(|(_, function)| function.latency.count() > 0) {
                div.card {
                    h3 { (name(&key.name)) }
                    (charts::histogram(&function.latency))
                }
            }
        }
    }
}

fn calls(report: &Report<'_>, look: Look) -> Markup {
    let edges = edges(report.profile);
    html! {
        h2 id="calls" { "Calls" }
        div.card { table {
            tr {
                th {} th { "called in" } th { "each" } th { "place" } th { "parallel" } th { "begins at" } th { "p50" } th { "p99" }
                th { "in callee" } th { "network" } th { "least rtt" } th { "resent" } th { "errors" } th { "retries" } th { "after answer" }
            }
            @for (caller, function, callee, edge) in edges.iter().take(look.top) {
                tr {
                    td { (name(&caller.name)) " → " b { (name(&callee.name)) } @if callee.external { span.tag { "external" } } }
                    td { (percent(edge.invocations, function.invocations)) }
                    td { (mean(edge.calls, edge.invocations)) }
                    td { (position(edge)) }
                    td { (percent(edge.parallel, edge.calls)) }
                    td { (quantile(&edge.delay, 0.5)) }
                    td { (quantile(&edge.latency, 0.5)) }
                    td { (quantile(&edge.latency, 0.99)) }
                    td { (quantile(&edge.callee_latency, 0.5)) }
                    td { (quantile(&edge.network, 0.5)) }
                    td { (least(&edge.rtt)) }
                    td.bad[edge.retransmits > 0] { (count(edge.retransmits)) }
                    td.bad[edge.errors > 0] { (count(edge.errors)) }
                    td { (count(edge.retries)) }
                    td { (count(edge.after_response)) }
                }
            }
        } }
        (more(edges.len(), look))
    }
}

fn paths(report: &Report<'_>, look: Look) -> Markup {
    let profile = report.profile;
    let shapes = shapes(profile);
    html! {
        h2 id="paths" { "Paths" }
        p.dim {
            "What the answer waited for:"
            span.key.own {} "own work" span.key.ext {} "external service" span.key.net {} "network"
            span.key.wait {} "waiting" span.key.fail {} "failed"
        }
        @for (at, (form, shape)) in shapes.iter().take(look.top).enumerate() {
            @let (steps, total) = steps(shape);
            div.card {
                p { b { (percent(shape.paths, profile.paths)) } " of paths, p50 " (quantile(&shape.latency, 0.5))
                    ", p99 " (quantile(&shape.latency, 0.99)) }
                p.mono { (super::harmless(form, SHAPE_MAX)) }
                @if total > 0 {
                    (charts::critical(&steps, total))
                    p.dim { @for (at, (key, time)) in steps.iter().take(8).enumerate() {
                        @if at > 0 { ", " } (step(key)) " " (percent(time.us, total))
                    } }
                }
                @if let Some(sample) = shape.sample() {
                    details open[at < 3] { summary { "Sample: trace " code { (sample.trace_id) } } (charts::timeline(sample)) }
                }
            }
        }
        (more(shapes.len(), look))
        @let slowest: Vec<_> = functions(profile).into_iter().filter_map(|(key, function)| Some((key, function.slowest.0.as_deref()?))).collect();
        @for (key, sample) in slowest.iter().take(look.top) {
            div.card { details {
                summary { "Slowest path from " b { (name(&key.name)) } ": " (duration(sample.duration_us)) ", trace " code { (sample.trace_id) } }
                (charts::timeline(sample))
            } }
        }
    }
}
