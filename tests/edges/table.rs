//! The table, the reliability of inferred edges, and both as JSON.

use serde_json::{Value, json};

use crate::{bench::Row, score::EXACT};

/// The stated probabilities in ten equal parts.
const BINS: usize = 10;

/// Prints the table's head; as the table, it is Markdown.
pub fn head() {
    println!("| runtime | shape | at once | edges | right | wrong | unknown | by rule (wrong) | |");
    println!("|---|---|---:|---:|---:|---:|---:|---|---|");
}

/// Prints one line of it.
pub fn row(row: &Row) {
    let score = &row.score;
    let rules: Vec<_> = score.rules.iter().map(|(rule, counts)| by_rule(rule, *counts)).collect();
    let mut notes = row.notes.clone();
    if score.missing > 0 {
        notes.insert(0, format!("{} not reported", score.missing));
    }
    println!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        row.runtime,
        row.shape.name(),
        row.concurrency,
        score.edges(),
        percent(score.right(), score.edges()),
        percent(score.wrong(), score.edges()),
        percent(score.unknown, score.edges()),
        rules.join(", "),
        notes.join("; "),
    );
}

/// Prints what could not be measured here, and why.
pub fn not_run(runtime: &str, why: &str) {
    println!("| {runtime} | | | | | | | | NOT RUN: {why} |");
}

fn by_rule(rule: &str, (right, wrong): (usize, usize)) -> String {
    match wrong {
        0 => format!("{rule} {right}"),
        _ if EXACT.contains(&rule) => format!("{rule} {} (**{wrong}**)", right + wrong),
        _ => format!("{rule} {} ({wrong})", right + wrong),
    }
}

/// Rounded towards the middle: 100 % is said only of all, 0 of none.
fn percent(part: usize, whole: usize) -> String {
    if part == 0 {
        return "0".to_owned();
    }
    if part == whole {
        return "100 %".to_owned();
    }
    let percent = 100.0 * part as f64 / whole as f64;
    format!("{:.2} %", percent.clamp(0.01, 99.99))
}

/// Prints how often inferred edges were right, by how sure the agent said it was.
pub fn reliability(rows: &[Row]) {
    let bins = bins(rows);
    if bins.iter().all(|(count, ..)| *count == 0) {
        return;
    }
    println!("\n| stated probability | inferred edges | mean stated | right |\n|---|---:|---:|---:|");
    for (at, (count, stated, right)) in bins.iter().enumerate().filter(|(_, (count, ..))| *count > 0) {
        let [from, to] = [at, at + 1].map(|at| at as f64 / BINS as f64);
        println!(
            "| {from:.1}–{to:.1} | {count} | {:.3} | {:.3} |",
            stated / *count as f64,
            *right as f64 / *count as f64
        );
    }
}

/// Per part: how many, the sum of the stated probabilities, how many were right.
fn bins(rows: &[Row]) -> [(usize, f64, usize); BINS] {
    let mut bins = [(0, 0.0, 0); BINS];
    for (probability, right) in rows.iter().flat_map(|row| &row.score.inferred) {
        let at = (probability * BINS as f64).clamp(0.0, BINS as f64 - 1.0) as usize;
        bins[at].0 += 1;
        bins[at].1 += probability;
        bins[at].2 += usize::from(*right);
    }
    bins
}

/// All of it, for programs.
pub fn json(rows: &[Row], not_run: &[(&str, String)], tag: &str) -> Value {
    let rule = |(rule, (right, wrong)): (&String, &(usize, usize))| {
        (rule.clone(), json!({"right": right, "wrong": wrong, "exact": EXACT.contains(&rule.as_str())}))
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "kernel": kernel.trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "tag": tag,
        "rows": rows.iter().map(|row| json!({
            "runtime": row.runtime,
            "shape": row.shape.name(),
            "concurrency": row.concurrency,
            "requests": row.requests,
            "edges": row.score.edges(),
            "right": row.score.right(),
            "wrong": row.score.wrong(),
            "wrong_but_exact": row.score.wrong_but_exact(),
            "unknown": row.score.unknown,
            "missing": row.score.missing,
            "rules": row.score.rules.iter().map(rule).collect::<serde_json::Map<_, _>>(),
            "notes": row.notes,
        })).collect::<Vec<_>>(),
        "reliability": bins(rows).iter().enumerate().map(|(at, (count, stated, right))| json!({
            "from": at as f64 / BINS as f64,
            "to": (at + 1) as f64 / BINS as f64,
            "edges": count,
            "stated": stated,
            "right": right,
        })).collect::<Vec<_>>(),
        "not_run": not_run.iter().map(|(runtime, why)| json!({"runtime": runtime, "why": why})).collect::<Vec<_>>(),
    })
}
