//! Charts as SVG: shares, histograms, timelines.

use maud::{Markup, html};

use super::super::{duration, name, percent, step};
use crate::profile::{
    histogram::Histogram,
    sample::{Sample, SampleSpan},
    stats::{Step, StepKind, StepTime},
};

/// A coordinate, to a tenth of a pixel.
fn at(value: f64) -> String {
    format!("{value:.1}")
}

/// Where parts of a bar begin and how wide they are.
fn cut(parts: impl Iterator<Item = u64>, total: u64, width: f64) -> Vec<(f64, f64)> {
    let mut x = 0.0;
    let place = |part: u64| {
        let wide = part as f64 / total.max(1) as f64 * width;
        x += wide;
        (x - wide, wide)
    };
    parts.map(place).collect()
}

/// A bar cut into shares, each with its class.
pub(super) fn shares(parts: &[(&str, u64)], width: f64) -> Markup {
    let places = cut(parts.iter().map(|&(_, part)| part), parts.iter().map(|(_, part)| part).sum(), width);
    html! {
        svg width=(width) height="10" viewBox=(format!("0 0 {width} 10")) role="img" {
            @for ((class, _), (x, wide)) in parts.iter().zip(places) {
                rect class=(class) x=(at(x)) y="0" width=(at(wide)) height="10" {}
            }
        }
    }
}

/// The steps of a critical path as one bar.
pub(super) fn critical(steps: &[(&Step, &StepTime)], total: u64) -> Markup {
    const WIDTH: f64 = 1180.0;
    let places = cut(steps.iter().map(|(_, time)| time.us), total, WIDTH);
    html! {
        svg width="100%" viewBox=(format!("0 0 {WIDTH} 24")) role="img" {
            @for ((key, time), (x, wide)) in steps.iter().zip(places) {
                @let class = match key.kind { StepKind::Own => "own", StepKind::External => "ext", StepKind::Network => "net" };
                @let text = step(key);
                g {
                    title { (text) " " (percent(time.us, total)) }
                    rect class=(class) x=(at(x)) y="2" width=(at((wide - 2.0).max(0.3))) height="20" rx="2" {}
                    // About 7 pixels a character; a name that does not fit is in the list below the bar.
                    @if text.chars().count() as f64 * 7.0 + 14.0 < wide {
                        text.inside x=(at(x + 7.0)) y="16" { (text) }
                    }
                }
            }
        }
    }
}

/// Columns of a histogram.
const COLUMNS: usize = 48;

/// A distribution of times on a logarithmic axis, with its quantiles.
pub(super) fn histogram(times: &Histogram) -> Markup {
    const WIDTH: f64 = 360.0;
    const HEIGHT: f64 = 90.0;
    let log = |us: u64| (us.max(1) as f64).ln();
    // At least a factor of two, or one bucket would fill it all.
    let (low, high) = (log(times.min()), log(times.max()).max(log(times.min()) + 2f64.ln()));
    let place = |us: u64| (log(us) - low) / (high - low);
    let mut columns = [0u64; COLUMNS];
    for (from, to, count) in times.buckets() {
        let middle = from + (to - from) / 2;
        let column = (place(middle.clamp(times.min(), times.max())) * COLUMNS as f64) as usize;
        columns[column.min(COLUMNS - 1)] += count;
    }
    let most = columns.iter().copied().max().unwrap_or(0).max(1) as f64;
    let wide = WIDTH / COLUMNS as f64;
    html! {
        svg width="100%" viewBox=(format!("0 0 {WIDTH} {}", HEIGHT + 34.0)) role="img" {
            line.axis x1="0" x2=(WIDTH) y1=(HEIGHT + 12.0) y2=(HEIGHT + 12.0) {}
            @for (column, count) in columns.iter().enumerate().filter(|(_, count)| **count > 0) {
                // So that what is there once is seen beside what is there a million times.
                @let high = (*count as f64 / most * HEIGHT).max(1.5);
                rect.bar x=(at(column as f64 * wide + 0.5)) y=(at(HEIGHT + 12.0 - high)) width=(at(wide - 1.0)) height=(at(high)) {
                    title { (super::thousands(*count)) }
                }
            }
            @for (label, q) in [("p50", 0.5), ("p99", 0.99)] {
                @let x = place(times.quantile(q)).clamp(0.0, 1.0) * WIDTH;
                line.axis x1=(at(x)) x2=(at(x)) y1="10" y2=(HEIGHT + 12.0) stroke-dasharray="3 3" {}
                // Where both are near each other, one name is enough.
                @if label == "p50" || x - place(times.quantile(0.5)) * WIDTH > 26.0 {
                    text.small x=(at(x.clamp(12.0, WIDTH - 12.0))) y="8" text-anchor="middle" { (label) }
                }
            }
            text.small x="0" y=(HEIGHT + 26.0) { (duration(times.min())) }
            text.small x=(WIDTH / 2.0) y=(HEIGHT + 26.0) text-anchor="middle" {
                "p50 " (duration(times.quantile(0.5))) " · p99 " (duration(times.quantile(0.99)))
            }
            text.small x=(WIDTH) y=(HEIGHT + 26.0) text-anchor="end" { (duration(times.max())) }
        }
    }
}

/// A path as bars on one time axis. A traced call is a thin bar, with its invocation as a thick one in it.
pub(super) fn timeline(sample: &Sample) -> Markup {
    const WIDTH: f64 = 1180.0;
    const NAMES: f64 = 300.0;
    const TIMES: f64 = 90.0;
    const ROW: f64 = 22.0;
    let end_of = |span: &SampleSpan| span.start_us.saturating_add_unsigned(span.duration_us.unwrap_or(0));
    let from = sample.spans.iter().map(|span| span.start_us).min().unwrap_or(0).min(0);
    let to = sample.spans.iter().map(end_of).max().unwrap_or(1);
    let length = to.saturating_sub(from).max(1) as f64;
    let place = |us: i64| NAMES + us.saturating_sub(from) as f64 / length * (WIDTH - NAMES - TIMES);
    let height = ROW * sample.spans.len() as f64 + 24.0;
    html! {
        svg width="100%" viewBox=(format!("0 0 {WIDTH} {height}")) role="img" {
            @for tick in 0..=4i64 {
                @let us = from.saturating_add((length * tick as f64 / 4.0) as i64);
                @let x = place(us);
                line.axis x1=(at(x)) x2=(at(x)) y1="16" y2=(at(height)) {}
                text.small x=(at(x)) y="11" text-anchor="middle" { (duration(us.max(0) as u64)) }
            }
            @for (row, span) in sample.spans.iter().enumerate() {
                @let y = 22.0 + row as f64 * ROW;
                @let wide = |from: i64, us: u64| at((place(from.saturating_add_unsigned(us)) - place(from)).max(1.5));
                g {
                    title { (name(&span.name)) @if let Some(us) = span.duration_us { " " (duration(us)) } }
                    text x=(f64::from(span.depth.min(12)) * 14.0) y=(at(y + 11.0)) { (name(&span.name)) }
                    @let class = if span.failed { "fail" } else if span.external { "ext" } else if span.inner_us.is_some() { "net" } else { "own" };
                    @match (span.duration_us, span.inner_start_us, span.inner_us) {
                        (Some(us), Some(inner), Some(inner_us)) => {
                            rect class=(class) x=(at(place(span.start_us))) y=(at(y + 5.0)) width=(wide(span.start_us, us)) height="4" {}
                            rect class=(if span.failed { "fail" } else { "own" }) x=(at(place(inner))) y=(at(y)) width=(wide(inner, inner_us)) height="14" rx="2" {}
                        }
                        (us, ..) => {
                            rect class=(class) x=(at(place(span.start_us))) y=(at(y)) width=(wide(span.start_us, us.unwrap_or(0))) height="14" rx="2" {}
                        }
                    }
                    text.small x=(at(place(end_of(span)) + 5.0)) y=(at(y + 11.0)) {
                        @match span.duration_us { Some(us) => (duration(us)), None => "no end seen" }
                        @if span.cold { " cold" }
                    }
                }
            }
        }
        @if sample.left_out > 0 { p.dim { "… and " (sample.left_out) " more spans" } }
    }
}
