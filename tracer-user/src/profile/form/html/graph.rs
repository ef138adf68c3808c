//! The call graph.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::{Look, edges, functions, harmless, layout::lay_out, mean, percent, quantile, thousands};
use crate::profile::{
    Profile,
    stats::{Callee, Edge, Function},
};

const BOX: (f64, f64) = (180.0, 46.0);
/// Longest name in a box, in characters.
const NAME_MAX: usize = 24;
/// Calls beyond these in a graph cannot be told apart by the eye.
const ARROWS_PER_BOX: usize = 4;
const MARGIN: f64 = 14.0;

pub(super) fn graph(profile: &Profile, look: Look) -> Markup {
    let mut boxes: Vec<(Callee, Option<&Function>)> = Vec::new();
    let mut numbers: BTreeMap<Callee, usize> = BTreeMap::new();
    let functions = functions(profile);
    for (name, function) in functions.iter().take(look.top) {
        let key = Callee { name: name.name.clone(), external: false };
        numbers.insert(key.clone(), boxes.len());
        boxes.push((key, Some(function)));
    }
    let mut arrows: Vec<((usize, usize), &Function, &Edge)> = Vec::new();
    let mut hidden = 0;
    for (caller, function, callee, edge) in edges(profile) {
        let from = numbers.get(&Callee { name: caller.name.clone(), external: false }).copied();
        let to = numbers.get(callee).copied();
        let room = boxes.len() < look.top * 2 && arrows.len() < look.top * ARROWS_PER_BOX;
        let (Some(from), true) = (from.filter(|&from| boxes[from].1.is_some()), to.is_some() || room) else {
            hidden += 1;
            continue;
        };
        let to = to.unwrap_or_else(|| {
            numbers.insert(callee.clone(), boxes.len());
            boxes.push((callee.clone(), None));
            boxes.len() - 1
        });
        arrows.push(((from, to), function, edge));
    }
    let ends: Vec<(usize, usize)> = arrows.iter().map(|&(ends, ..)| ends).collect();
    let layout = lay_out(boxes.len(), BOX, &ends);
    let (ports, labelled) = ports(&ends, &layout.boxes);
    let (width, height) = (layout.width + 2.0 * MARGIN, layout.height + 2.0 * MARGIN + 30.0);
    let place = |(x, y): (f64, f64)| (x + MARGIN, y + MARGIN + 16.0);
    html! {
        svg width=(format!("{width:.0}")) viewBox=(format!("0 0 {width:.0} {height:.0}")) style="max-width:100%;margin:auto" role="img" {
            defs {
                marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
                    markerUnits="userSpaceOnUse" orient="auto" { path.head d="M0 0 L8 4 L0 8 z" {} }
            }
            @for (at, (ends, function, edge)) in arrows.iter().enumerate() {
                @let points = route(*ends, ports[at], &layout.boxes, &layout.arrows[at], layout.back[at]);
                @let points: Vec<(f64, f64)> = points.into_iter().map(place).collect();
                @let share = edge.invocations as f64 / function.invocations.max(1) as f64;
                path.arrow.fails[edge.errors * 20 > edge.calls] d=(curve(&points)) stroke-width=(format!("{:.1}", 0.8 + 2.0 * share))
                    marker-end="url(#head)" {
                    title { (describe(function, edge)) }
                }
            }
            @for (at, (_, function, edge)) in arrows.iter().enumerate().filter(|&(at, _)| labelled[at]) {
                @let (x, y, anchor) = label(ends[at], ports[at], &layout.boxes, layout.back[at]);
                @let (x, y) = place((x, y));
                g {
                    title { (describe(function, edge)) }
                    text.small.halo x=(format!("{x:.1}")) y=(format!("{y:.1}")) text-anchor=(anchor) {
                        (percent(edge.invocations, function.invocations))
                        @if edge.calls * 20 > edge.invocations * 21 { " × " (mean(edge.calls, edge.invocations)) }
                        " · " (quantile(&edge.latency, 0.5))
                    }
                }
            }
            @for ((callee, function), centre) in boxes.iter().zip(&layout.boxes) {
                @let (x, y) = place(*centre);
                g {
                    title { (super::super::name(&callee.name)) }
                    rect.box.external[callee.external].fails[function.is_some_and(|function| function.errors > 0)]
                        x=(format!("{:.1}", x - BOX.0 / 2.0)) y=(format!("{:.1}", y - BOX.1 / 2.0)) width=(BOX.0) height=(BOX.1) rx="7" {}
                    text.name x=(format!("{x:.1}")) y=(format!("{:.1}", y - 3.0)) text-anchor="middle" { (harmless(&callee.name, NAME_MAX)) }
                    text.small x=(format!("{x:.1}")) y=(format!("{:.1}", y + 13.0)) text-anchor="middle" {
                        @match function {
                            Some(function) => {
                                (thousands(function.invocations)) " × p50 " (quantile(&function.latency, 0.5))
                            }
                            None => (if callee.external { "external" } else { "not traced" }),
                        }
                    }
                }
            }
        }
        @if hidden > 0 || functions.len() > look.top {
            p.dim { "Not drawn: " (functions.len().saturating_sub(look.top)) " functions, " (hidden) " kinds of call (--top)." }
        }
    }
}

fn describe(function: &Function, edge: &Edge) -> String {
    format!(
        "in {} of invocations, {} calls each, p50 {}, p99 {}, {} errors",
        percent(edge.invocations, function.invocations),
        mean(edge.calls, edge.invocations),
        quantile(&edge.latency, 0.5),
        quantile(&edge.latency, 0.99),
        edge.errors,
    )
}

/// How long the last stretch of an arrow is.
const LEVEL: f64 = 104.0;
/// Labels at one box that still can be read.
const LABELS_PER_BOX: usize = 3;

/// How far from the middle of its head's box each arrow ends, so that they do not all end in one point, and whether there
/// is room for its label. Arrows come in order of weight.
fn ports(ends: &[(usize, usize)], boxes: &[(f64, f64)]) -> (Vec<f64>, Vec<bool>) {
    let (mut ports, mut labelled) = (vec![0.0; ends.len()], vec![false; ends.len()]);
    for at in 0..boxes.len() {
        let mut arriving: Vec<usize> =
            (0..ends.len()).filter(|&arrow| ends[arrow].1 == at && ends[arrow].0 != at).collect();
        arriving.iter().take(LABELS_PER_BOX).for_each(|&arrow| labelled[arrow] = true);
        arriving.sort_by(|&a, &b| boxes[ends[a].0].1.total_cmp(&boxes[ends[b].0].1));
        let step = (BOX.1 - 10.0) / (arriving.len().max(2) - 1) as f64;
        let step = step.min(14.0);
        for (row, &arrow) in arriving.iter().enumerate() {
            ports[arrow] = (row as f64 - (arriving.len() - 1) as f64 / 2.0) * step;
        }
    }
    (0..ends.len()).filter(|&arrow| ends[arrow].0 == ends[arrow].1).for_each(|arrow| labelled[arrow] = true);
    (ports, labelled)
}

/// The points of an arrow, from the edge of one box to the edge of the other.
fn route(ends: (usize, usize), port: f64, boxes: &[(f64, f64)], between: &[(f64, f64)], back: bool) -> Vec<(f64, f64)> {
    let (from, to) = (boxes[ends.0], boxes[ends.1]);
    let half = BOX.0 / 2.0;
    if ends.0 == ends.1 {
        let (x, top) = (from.0, from.1 - BOX.1 / 2.0);
        return vec![(x + 30.0, top), (x + 30.0, top - 14.0), (x - 30.0, top - 14.0), (x - 30.0, top)];
    }
    let mut points = vec![if back { (from.0 - half, from.1 + 8.0) } else { (from.0 + half, from.1) }];
    for &(x, y) in between {
        let (first, second) = if back { (half, -half) } else { (-half, half) };
        points.extend([(x + first, y), (x + second, y)]);
    }
    // The last stretch is level: the label stands on it.
    let side = if back { 1.0 } else { -1.0 };
    points.extend([LEVEL, 0.0].map(|away| (to.0 + side * (half + away), to.1 + port)));
    points
}

/// Points joined by curves that leave and arrive level.
fn curve(points: &[(f64, f64)]) -> String {
    let mut out = String::new();
    for (at, &(x, y)) in points.iter().enumerate() {
        match at.checked_sub(1).map(|last| points[last]) {
            None => out += &format!("M{x:.1} {y:.1}"),
            // A loop above its box is drawn with straight lines.
            Some((last_x, last_y)) if (last_x - x).abs() < 0.1 || (last_y - y).abs() < 0.1 => {
                out += &format!(" L{x:.1} {y:.1}")
            }
            Some((last_x, last_y)) => {
                let middle = (last_x + x) / 2.0;
                out += &format!(" C{middle:.1} {last_y:.1} {middle:.1} {y:.1} {x:.1} {y:.1}");
            }
        }
    }
    out
}

/// Where the label stands, and its anchor: on the last stretch of the arrow, which is level.
fn label(ends: (usize, usize), port: f64, boxes: &[(f64, f64)], back: bool) -> (f64, f64, &'static str) {
    let to = boxes[ends.1];
    if ends.0 == ends.1 {
        return (to.0, to.1 - BOX.1 / 2.0 - 17.0, "middle");
    }
    if back {
        (to.0 + BOX.0 / 2.0 + 10.0, to.1 + port - 4.0, "start")
    } else {
        (to.0 - BOX.0 / 2.0 - 10.0, to.1 + port - 4.0, "end")
    }
}
