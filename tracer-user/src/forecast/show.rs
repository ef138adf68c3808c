//! Scores for people.

use std::io::{self, Write};

use super::eval::{Bin, Report, Scores};
use crate::text::harmless;

/// Longest name of a file that is shown, in characters.
const NAME_MAX: usize = 200;

/// All of one file.
pub(super) fn report(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(out, "{}", harmless(&report.file, NAME_MAX))?;
    writeln!(
        out,
        "  learned from {} paths, scored {}{} ({} calls, {} cold starts), {} while scoring; horizon {} s",
        report.train,
        report.test,
        if report.shuffle.is_some() { " of the lines shuffled" } else { "" },
        report.calls,
        report.cold_starts,
        if report.online { "learning on" } else { "frozen" },
        report.horizon,
    )?;
    if report.test == 0 {
        return writeln!(out, "  nothing to score\n");
    }
    let methods = [
        ("fntrace", &report.scores),
        ("edge counts", &report.baselines.edge_counts),
        ("set counts", &report.baselines.set_counts),
        ("most frequent", &report.baselines.most_frequent),
        ("keep-alive", &report.baselines.keep_alive),
    ];
    writeln!(
        out,
        "\n  {:14} {:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8}",
        "method",
        "next",
        "at call",
        "precision",
        "recall",
        "log loss",
        "ECE",
        "time err",
        "lead",
        "avoided",
        "wasted",
        "cost"
    )?;
    for (name, scores) in methods {
        let keeps = name == "keep-alive";
        let shown = |text: String| if keeps { "–".to_owned() } else { text };
        writeln!(
            out,
            "  {name:14} {:>8} {:>8} {:>9.3} {:>9.3} {:>9} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8.1}",
            shown(format!("{:.4}", scores.next_accuracy)),
            shown(format!("{:.4}", scores.at_call_accuracy)),
            scores.set_precision,
            scores.set_recall,
            shown(format!("{:.3}", scores.log_loss)),
            shown(format!("{:.3}", scores.ece)),
            shown(millis(scores.time_mae_ms)),
            shown(millis(scores.lead_ms)),
            scores.cold_starts_avoided,
            format!("{:.1} s", scores.wasted_seconds),
            scores.decision.cost,
        )?;
    }
    writeln!(out, "  time between calls varies by {} (median absolute deviation)", millis(report.time_mad_ms))?;
    thresholds(out, &report.scores)?;
    writeln!(out, "\n  reliability     next callee                    within the horizon")?;
    for (bin, (next, set)) in report.scores.reliability.iter().zip(&report.scores.set_reliability).enumerate() {
        let shown = |bin: &Bin| format!("{:>7} {:>8.3} {:>9.3}", bin.count, bin.confidence, bin.frequency);
        writeln!(
            out,
            "  {:.1}–{:.1} {:>30} {:>30}",
            bin as f32 / 10.0,
            (bin + 1) as f32 / 10.0,
            shown(next),
            shown(set)
        )?;
    }
    writeln!(out)
}

fn thresholds(out: &mut impl Write, scores: &Scores) -> io::Result<()> {
    writeln!(
        out,
        "\n  {:>9} {:>8} {:>9} {:>9} {:>9} {:>8} {:>10} {:>10} {:>8}",
        "threshold", "warmed", "precision", "recall", "lead", "avoided", "wasted", "idle", "cost"
    )?;
    for (row, mark) in scores.thresholds.iter().map(|row| (row, ' ')).chain([(&scores.decision, '*')]) {
        writeln!(
            out,
            " {mark}{:>9.2} {:>8} {:>9.3} {:>9.3} {:>9} {:>8} {:>10} {:>10} {:>8.1}",
            row.threshold,
            row.warmed,
            row.precision,
            row.recall,
            millis(row.lead_ms),
            row.cold_starts_avoided,
            format!("{:.1} s", row.wasted_seconds),
            format!("{:.1} s", row.idle_seconds),
            row.cost,
        )?;
    }
    writeln!(out, "  * what the cost ratio decides")
}

fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// A line for each file: what the README shows.
pub(super) fn summary(out: &mut impl Write, reports: &[Report]) -> io::Result<()> {
    let stem = |report: &Report| {
        let name = report.file.rsplit('/').next().unwrap_or(&report.file);
        harmless(name.split('.').next().unwrap_or(name), 28).into_owned()
    };
    writeln!(
        out,
        "{:28} {:>6}  {:>6} {:>7} {:>6} {:>6} {:>8}  {:>9} {:>6}  {:>8} {:>6}  {:>16}",
        "which callee is next",
        "calls",
        "next",
        "at call",
        "edges",
        "sets",
        "frequent",
        "precision",
        "recall",
        "log loss",
        "ECE",
        "time err / MAD"
    )?;
    for report in reports {
        let (scores, baselines) = (&report.scores, &report.baselines);
        writeln!(
            out,
            "{:28} {:>6}  {:>6.3} {:>7.3} {:>6.3} {:>6.3} {:>8.3}  {:>9.3} {:>6.3}  {:>8.3} {:>6.3}  {:>16}",
            stem(report),
            report.calls,
            scores.next_accuracy,
            scores.at_call_accuracy,
            baselines.edge_counts.next_accuracy,
            baselines.set_counts.next_accuracy,
            baselines.most_frequent.next_accuracy,
            scores.set_precision,
            scores.set_recall,
            scores.log_loss,
            scores.ece,
            format!("{} / {}", millis(scores.time_mae_ms), millis(report.time_mad_ms)),
        )?;
    }
    writeln!(
        out,
        "\n{:28} {:>6}  {:>9} {:>7} {:>8}  {:>8} {:>8} {:>8} {:>10} {:>8}",
        "what warming would bring",
        "cold",
        "lead",
        "avoided",
        "wasted",
        "cost",
        "edges",
        "frequent",
        "keep-alive",
        "nothing"
    )?;
    for report in reports {
        let (scores, baselines) = (&report.scores, &report.baselines);
        writeln!(
            out,
            "{:28} {:>6}  {:>9} {:>7} {:>8}  {:>8.0} {:>8.0} {:>8.0} {:>10.0} {:>8}",
            stem(report),
            report.cold_starts,
            millis(scores.lead_ms),
            scores.cold_starts_avoided,
            format!("{:.0} s", scores.wasted_seconds),
            scores.decision.cost,
            baselines.edge_counts.decision.cost,
            baselines.most_frequent.decision.cost,
            baselines.keep_alive.decision.cost,
            report.cold_starts,
        )?;
    }
    writeln!(
        out,
        "cost: cold starts that are left, and what was kept warm in vain at the price that the cost ratio gives it"
    )
}
