//! Where the boxes of the call graph stand and how the arrows run: from left to right, callers before callees.
//!
//! `rust-sugiyama` places boxes, but says nothing of how an arrow gets past those in between. So circles are broken and
//! long arrows are cut at every column here, and the cuts are given to it as boxes without height.

use rust_sugiyama::{configure::Config, from_vertices_and_edges};

/// A drawing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// The middle of each box.
    pub boxes: Vec<(f64, f64)>,
    /// The points between the ends of each arrow, from its tail to its head.
    pub arrows: Vec<Vec<(f64, f64)>>,
    /// Whether an arrow runs against the others, from right to left.
    pub back: Vec<bool>,
    /// All of it.
    pub width: f64,
    /// All of it.
    pub height: f64,
}

/// Space between two columns: an arrow's label stands in it.
const COLUMN_GAP: f64 = 170.0;
/// Space between two boxes of a column.
const ROW_GAP: f64 = 26.0;

/// Lays out boxes of one size. Arrows from a box to itself have no points.
pub fn lay_out(count: usize, size: (f64, f64), arrows: &[(usize, usize)]) -> Layout {
    let back = against(count, arrows);
    let forward = |(&(from, to), &back): (&(usize, usize), &bool)| if back { (to, from) } else { (from, to) };
    let straight: Vec<(usize, usize)> = arrows.iter().zip(&back).map(forward).collect();
    let columns = columns(count, &straight);
    // The library sets layers one below the other: width and height change places here and when it is done.
    let mut vertices: Vec<(u32, (f64, f64))> = (0..count).map(|at| (at as u32, (size.1, size.0))).collect();
    let mut edges = Vec::new();
    let mut chains: Vec<Vec<u32>> = Vec::new();
    for &(from, to) in &straight {
        let mut chain = Vec::new();
        let mut last = from as u32;
        if from != to {
            for _ in columns[from] + 1..columns[to] {
                let cut = vertices.len() as u32;
                vertices.push((cut, (2.0, size.0)));
                chain.push(cut);
                edges.push((last, cut));
                last = cut;
            }
            edges.push((last, to as u32));
        }
        chains.push(chain);
    }
    edges.sort_unstable();
    edges.dedup();
    let config = Config { vertex_spacing: ROW_GAP, ..Config::default() };
    let mut places = vec![(0.0, 0.0); vertices.len()];
    // Parts of the graph that do not hang together come one by one, and are set below each other. Columns are evenly
    // apart whatever the library makes of them, so that labels fit.
    let mut top = 0.0;
    for (part, ..) in from_vertices_and_edges(&vertices, &edges, &config) {
        let part: Vec<(usize, (f64, f64))> = part.into_iter().filter(|&(at, _)| at < places.len()).collect();
        let low = part.iter().map(|&(_, (across, _))| across).fold(f64::INFINITY, f64::min);
        let high = part.iter().map(|&(_, (across, _))| across).fold(f64::NEG_INFINITY, f64::max);
        let mut rows: Vec<f64> = part.iter().map(|&(_, (_, along))| along).collect();
        rows.sort_by(f64::total_cmp);
        rows.dedup_by(|a, b| (*a - *b).abs() < 1.0);
        for (at, (across, along)) in part {
            let column = rows.partition_point(|&row| row < along - 1.0) as f64;
            places[at] = (column * (size.0 + COLUMN_GAP) + size.0 / 2.0, top + across - low + size.1 / 2.0);
        }
        if high >= low {
            top += high - low + size.1 + ROW_GAP;
        }
    }
    let routes = chains.iter().zip(&back).map(|(chain, &back)| {
        let mut route: Vec<(f64, f64)> = chain.iter().map(|&cut| places[cut as usize]).collect();
        if back {
            route.reverse();
        }
        route
    });
    let arrows = routes.collect();
    let width = places.iter().map(|&(x, _)| x + size.0 / 2.0).fold(0.0, f64::max);
    places.truncate(count);
    Layout { boxes: places, arrows, back, width, height: (top - ROW_GAP).max(0.0) }
}

/// Which arrows close a circle: those that a walk in depth finds to lead back to where it comes from.
fn against(count: usize, arrows: &[(usize, usize)]) -> Vec<bool> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        Open,
        Done,
    }
    let mut out = vec![Vec::new(); count];
    arrows.iter().enumerate().for_each(|(arrow, &(from, _))| out[from].push(arrow));
    // From those that nobody calls, then from what is left.
    let mut called = vec![false; count];
    arrows.iter().filter(|(from, to)| from != to).for_each(|&(_, to)| called[to] = true);
    let roots = (0..count).filter(|&at| !called[at]).chain((0..count).filter(|&at| called[at]));
    let (mut seen, mut back) = (vec![Seen::No; count], vec![false; arrows.len()]);
    for root in roots {
        if seen[root] != Seen::No {
            continue;
        }
        seen[root] = Seen::Open;
        let mut stack = vec![(root, 0)];
        while let Some((at, next)) = stack.last_mut() {
            let Some(&arrow) = out[*at].get(*next) else {
                seen[*at] = Seen::Done;
                stack.pop();
                continue;
            };
            *next += 1;
            let to = arrows[arrow].1;
            match seen[to] {
                Seen::Open => back[arrow] = true,
                Seen::Done => {}
                Seen::No => {
                    seen[to] = Seen::Open;
                    stack.push((to, 0));
                }
            }
        }
    }
    back
}

/// The column of each box: one right of the rightmost of its callers.
fn columns(count: usize, straight: &[(usize, usize)]) -> Vec<usize> {
    let mut columns = vec![0; count];
    // There are no circles, so this ends after as many rounds as the longest way is long.
    for _ in 0..count {
        let mut moved = false;
        for &(from, to) in straight.iter().filter(|(from, to)| from != to) {
            if columns[to] <= columns[from] {
                columns[to] = columns[from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: (f64, f64) = (150.0, 40.0);

    #[test]
    fn nothing_and_one() {
        assert_eq!(lay_out(0, SIZE, &[]), Layout::default());
        assert_eq!(lay_out(1, SIZE, &[(0, 0)]).boxes, [(75.0, 20.0)]);
    }

    #[test]
    fn callers_stand_left_of_callees() {
        let layout = lay_out(4, SIZE, &[(0, 1), (1, 2), (0, 2), (2, 0), (0, 3)]);
        let x = |at: usize| layout.boxes[at].0;
        assert!(x(0) < x(1) && x(1) < x(2) && x(0) < x(3), "{layout:?}");
        assert_eq!(layout.back, [false, false, false, true, false]);
        assert_eq!(layout.arrows[2].len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_graph_is_laid_out_and_no_two_boxes_overlap((count, arrows) in (1usize..30).prop_flat_map(|count|
            (Just(count), prop::collection::vec((0..count, 0..count), 0..60))))
        {
            let layout = lay_out(count, SIZE, &arrows);
            prop_assert_eq!(layout.boxes.len(), count);
            for (at, &(x, y)) in layout.boxes.iter().enumerate() {
                prop_assert!(x >= 75.0 && y >= 20.0 && x <= layout.width - 75.0 + 0.01 && y <= layout.height - 20.0 + 0.01, "{:?}", layout);
                for &(other_x, other_y) in &layout.boxes[..at] {
                    prop_assert!((x - other_x).abs() >= 149.0 || (y - other_y).abs() >= 39.0, "{:?}", layout);
                }
            }
        }
    }
}
