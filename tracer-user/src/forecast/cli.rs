//! `fntrace forecast eval`.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use crate::input::Format;

use super::eval::{self, Report, Scores, Settings};

/// Scores forecasts on recorded paths: learns from the first lines of each file, forecasts the rest.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Files to score, each by itself, plain or gzip; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What a line of the files holds.
    #[arg(long, value_enum, default_value_t = Format::Paths)]
    input: Format,
    /// How far ahead to forecast.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = positive)]
    horizon: f32,
    /// How long a sandbox takes to get warm.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = positive)]
    warm_up: f32,
    /// The price of a sandbox kept warm for the horizon in vain, over the price of a cold start.
    #[arg(long, value_name = "RATIO", default_value_t = 0.25, value_parser = positive)]
    cost_ratio: f32,
    /// How long the keep-alive baseline keeps a sandbox after its use.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    keep_alive: f32,
    /// The share of lines to learn from before scoring.
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share)]
    train: f32,
    /// Go on learning while scoring, each path after it was scored.
    #[arg(long)]
    online: bool,
    /// Print one JSON object for each file.
    #[arg(long)]
    json: bool,
}

pub(super) fn positive(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("must be above 0".to_owned()) }
}

fn share(text: &str) -> Result<f32, String> {
    positive(text).and_then(|share| if share < 1.0 { Ok(share) } else { Err("must be below 1".to_owned()) })
}

/// Runs it. Lines that cannot be read are told to standard error.
pub fn run(args: &EvalArgs, out: &mut impl Write) -> anyhow::Result<()> {
    use anyhow::Context;
    let settings = Settings {
        format: args.input,
        horizon: args.horizon,
        warm_up: args.warm_up,
        cost_ratio: args.cost_ratio,
        keep_alive: args.keep_alive,
        train: args.train,
        online: args.online,
    };
    for path in &args.files {
        let broken = |number: u64, reason: &str| {
            let reason: String = reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            // Standard error may be closed; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "fntrace: {}:{number}: {reason}", path.display());
        };
        let report = eval::file(path, &settings, broken).with_context(|| format!("cannot read {}", path.display()))?;
        if args.json {
            serde_json::to_writer(&mut *out, &report)?;
            writeln!(out)?;
        } else {
            table(out, &report)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// The report for people.
fn table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let file: String = report.file.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    writeln!(out, "{file}")?;
    writeln!(
        out,
        "  learned from {} paths, scored {} ({} calls, {} cold starts), {} while scoring; horizon {} s",
        report.train,
        report.test,
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
        ("most frequent", &report.baselines.most_frequent),
        ("keep-alive", &report.baselines.keep_alive),
    ];
    writeln!(
        out,
        "\n  {:14} {:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>8} {:>9} {:>8}",
        "method",
        "next",
        "latest",
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
            shown(format!("{:.4}", scores.latest_accuracy)),
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
        let shown = |bin: &eval::Bin| format!("{:>7} {:>8.3} {:>9.3}", bin.count, bin.confidence, bin.frequency);
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
