//! Tables for the terminal.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use super::{
    Look, Report, change, confidence, count, duration, edges, functions, harmless, least, mean, name, overflow,
    percent, position, quantile, saving, shapes, step, steps, summary, thousands, title,
};
use crate::profile::{compare::Change, stats::Function};

const HEAD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const PLAIN: Style = Style::new();

/// Rows whose columns line up: the first to the left, the others to the right.
struct Rows {
    look: Look,
    rows: Vec<Vec<(Style, String)>>,
}

impl Rows {
    fn new(look: Look, head: &[&str]) -> Self {
        Self { look, rows: vec![head.iter().map(|&text| (DIM, text.to_owned())).collect()] }
    }

    fn plain(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|text| (PLAIN, text)).collect());
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|(_, text)| text.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            for (column, (style, text)) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - text.width());
                let text = styled(self.look, *style, text);
                match column {
                    0 => write!(out, "  {text}{space}")?,
                    _ => write!(out, "  {space}{text}")?,
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

fn styled(look: Look, style: Style, text: &str) -> String {
    if look.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

fn section(look: Look, out: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(out, "\n{}", styled(look, HEAD, text))
}

fn more(look: Look, out: &mut dyn Write, all: usize) -> io::Result<()> {
    match all.checked_sub(look.top) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "  {}", styled(look, DIM, &format!("… and {more} more (--top {all})"))),
    }
}

pub(super) fn write(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let profile = report.profile;
    writeln!(out, "{}", summary(profile))?;
    for what in overflow(profile) {
        writeln!(out, "{}", styled(look, DIM, &format!("not told apart: {what}")))?;
    }
    if profile.paths > 0 {
        write_functions(report, look, out)?;
        write_edges(report, look, out)?;
        write_shapes(report, look, out)?;
    }
    write_findings(report, look, out)?;
    report.changes.map_or(Ok(()), |changes| write_changes(changes, look, out))
}

fn write_functions(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    section(look, out, "Functions")?;
    let functions = functions(report.profile);
    let mut rows = Rows::new(
        look,
        &[
            "",
            "invocations",
            "p50",
            "p90",
            "p99",
            "max",
            "own",
            "waiting",
            "queueing",
            "calls",
            "errors",
            "cold",
            "cold costs",
        ],
    );
    for (key, function) in functions.iter().take(look.top) {
        let latency = &function.latency;
        rows.plain([
            name(&key.name),
            thousands(function.invocations),
            quantile(latency, 0.5),
            quantile(latency, 0.9),
            quantile(latency, 0.99),
            quantile(latency, 1.0),
            percent(function.own.sum(), latency.sum()),
            percent(function.waiting.sum(), latency.sum()),
            quantile(&function.queueing, 0.5),
            mean(function.calls, function.invocations),
            count(function.errors),
            count(function.cold),
            cold_cost(function),
        ]);
        if function.errors > 0
            && let Some(row) = rows.rows.last_mut()
        {
            row[10].0 = BAD;
        }
    }
    rows.write(out)?;
    more(look, out, functions.len())
}

/// What a cold start adds to the median.
pub(super) fn cold_cost(function: &Function) -> String {
    let warm = function.latency.without(&function.cold_latency);
    if function.cold_latency.count() == 0 || warm.count() == 0 {
        return "·".to_owned();
    }
    duration(function.cold_latency.quantile(0.5).saturating_sub(warm.quantile(0.5)))
}

fn write_edges(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let edges = edges(report.profile);
    if edges.is_empty() {
        return Ok(());
    }
    section(look, out, "Calls")?;
    let mut rows = Rows::new(
        look,
        &[
            "",
            "called in",
            "each",
            "place",
            "parallel",
            "begins at",
            "p50",
            "p99",
            "in callee",
            "network",
            "least rtt",
            "resent",
            "errors",
            "retries",
            "after answer",
        ],
    );
    for (caller, function, callee, edge) in edges.iter().take(look.top) {
        let arrow = if callee.external { "⇢" } else { "→" };
        rows.plain([
            format!("{} {arrow} {}", name(&caller.name), name(&callee.name)),
            percent(edge.invocations, function.invocations),
            mean(edge.calls, edge.invocations),
            position(edge),
            percent(edge.parallel, edge.calls),
            quantile(&edge.delay, 0.5),
            quantile(&edge.latency, 0.5),
            quantile(&edge.latency, 0.99),
            quantile(&edge.callee_latency, 0.5),
            quantile(&edge.network, 0.5),
            least(&edge.rtt),
            count(edge.retransmits),
            count(edge.errors),
            count(edge.retries),
            count(edge.after_response),
        ]);
        if edge.errors > 0
            && let Some(row) = rows.rows.last_mut()
        {
            row[12].0 = BAD;
        }
    }
    rows.write(out)?;
    more(look, out, edges.len())
}

fn write_shapes(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    section(look, out, "Paths")?;
    let shapes = shapes(report.profile);
    for (form, shape) in shapes.iter().take(look.top) {
        writeln!(
            out,
            "  {:>6}  p50 {}  p99 {}  {}",
            percent(shape.paths, report.profile.paths),
            quantile(&shape.latency, 0.5),
            quantile(&shape.latency, 0.99),
            harmless(form, look.width.saturating_sub(32).max(40)),
        )?;
        let (steps, total) = steps(shape);
        let text = steps.iter().take(6).map(|(key, time)| format!("{} {}", step(key), percent(time.us, total)));
        let text = format!("critical: {}", text.collect::<Vec<_>>().join(", "));
        if total > 0 {
            writeln!(out, "          {}", styled(look, DIM, &text))?;
        }
    }
    more(look, out, shapes.len())
}

fn write_findings(report: &Report<'_>, look: Look, out: &mut dyn Write) -> io::Result<()> {
    section(look, out, "Findings")?;
    if report.findings.is_empty() {
        writeln!(out, "  none")?;
    }
    for finding in report.findings.iter().take(look.top) {
        writeln!(out, "  {}", styled(look, HEAD, &title(finding)))?;
        writeln!(out, "    {}, {}: {}", confidence(finding), saving(finding), harmless(&finding.seen, 300))?;
        writeln!(out, "    {}", finding.advice)?;
        let traces: Vec<String> = finding.evidence.iter().map(|evidence| evidence.trace_id.to_string()).collect();
        writeln!(out, "    {}", styled(look, DIM, &format!("traces {}", traces.join(" "))))?;
    }
    more(look, out, report.findings.len())
}

fn write_changes(changes: &[Change], look: Look, out: &mut dyn Write) -> io::Result<()> {
    section(look, out, "Changes")?;
    if changes.is_empty() {
        return writeln!(out, "  none that is more than chance");
    }
    let mut rows = Rows::new(look, &["", "", "was", "is", "chance"]);
    for row in changes.iter().take(look.top) {
        let (of, what, old, new) = change(row);
        let style = match row.worse() {
            Some(true) => BAD,
            Some(false) => GOOD,
            None => PLAIN,
        };
        let chance = if row.q < 1e-4 { "<0.01 %".to_owned() } else { format!("{:.2} %", row.q * 100.0) };
        rows.rows.push(vec![(PLAIN, of), (PLAIN, what), (PLAIN, old), (style, new), (DIM, chance)]);
    }
    rows.write(out)?;
    more(look, out, changes.len())
}
