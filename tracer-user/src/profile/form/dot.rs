//! The call graph for Graphviz: `fntrace profile --format dot | dot -Tsvg`.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use super::{Look, Report, edges, functions, mean, name, percent, quantile, thousands};
use crate::profile::stats::Callee;

/// A quoted string. What `harmless` makes of names holds no line breaks; Graphviz takes `\` for an escape, so it is
/// doubled.
fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// A node's identity. Functions and services of one name are two nodes.
fn id(text: &str, external: bool) -> String {
    quoted(&format!("{}{}", if external { "external: " } else { "function: " }, super::harmless(text, usize::MAX)))
}

pub(super) fn write(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let functions = functions(report.profile);
    writeln!(out, "digraph calls {{\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];")?;
    writeln!(out, "  edge [fontname=\"sans-serif\", fontsize=10];")?;
    let mut drawn = BTreeSet::new();
    for (key, function) in functions.iter().take(look.top) {
        drawn.insert(Callee { name: key.name.clone(), external: false });
        let latency = &function.latency;
        writeln!(
            out,
            "  {} [label=\"{}\\n{} × p50 {} p99 {}\"{}];",
            id(&key.name, false),
            escaped(&name(&key.name)),
            thousands(function.invocations),
            quantile(latency, 0.5),
            quantile(latency, 0.99),
            if function.errors > 0 { ", color=red" } else { "" },
        )?;
    }
    for (caller, function, callee, edge) in edges(report.profile) {
        if !drawn.contains(&Callee { name: caller.name.clone(), external: false }) {
            continue;
        }
        if !drawn.contains(callee) {
            // Beyond the top, called by it: drawn by name only.
            drawn.insert(callee.clone());
            let style = if callee.external { ", shape=ellipse, style=dashed" } else { "" };
            writeln!(out, "  {} [label={}{style}];", id(&callee.name, callee.external), quoted(&name(&callee.name)))?;
        }
        let mut label = format!(
            "{} × {}, p50 {}",
            percent(edge.invocations, function.invocations),
            mean(edge.calls, edge.invocations),
            quantile(&edge.latency, 0.5),
        );
        if edge.errors > 0 {
            label += &format!(", {} fail", percent(edge.errors, edge.calls));
        }
        let share = edge.invocations as f64 / function.invocations.max(1) as f64;
        writeln!(
            out,
            "  {} -> {} [label={}, penwidth={:.1}{}];",
            id(&caller.name, false),
            id(&callee.name, callee.external),
            quoted(&label),
            0.5 + share * 2.0,
            if edge.errors > 0 { ", color=red" } else { "" },
        )?;
    }
    if functions.len() > look.top {
        let label = format!("{} more functions", functions.len() - look.top);
        writeln!(out, "  more [label={}, shape=plaintext];", quoted(&label))?;
    }
    writeln!(out, "}}")
}
