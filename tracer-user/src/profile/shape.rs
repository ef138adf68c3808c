//! The shape of a path, as text; see [`Form`](super::stats::Form).
//!
//! Writing it takes time, and most paths look like one before. So a fingerprint is taken of all that the text is made of,
//! and the texts written last are kept.

use std::{
    cell::RefCell,
    fmt::Write,
    hash::{BuildHasher as _, Hash as _, Hasher},
    sync::Arc,
};

use foldhash::quality::RandomState;

use super::{
    bounded::hash,
    walk::{View, callee_of},
};

/// Longest shape, in bytes; a longer one is cut and told apart by a hash.
const SHAPE_MAX: usize = 1000;
/// Shapes that are kept, each in the place that its fingerprint says.
const KEPT: usize = 256;

struct Cache {
    /// Drawn anew by every process, so that nobody can craft paths of equal fingerprints.
    random: [RandomState; 2],
    shapes: Vec<Option<([u64; 2], Arc<str>)>>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(Cache { random: Default::default(), shapes: vec![None; KEPT] });
}

/// The shape of what is under a call or an invocation.
pub(super) fn of(view: &View<'_>) -> Arc<str> {
    CACHE.with_borrow_mut(|cache| {
        let print = [0, 1].map(|half: usize| {
            let mut hasher = cache.random[half].build_hasher();
            fingerprint(&mut hasher, view);
            hasher.finish()
        });
        match &mut cache.shapes[print[0] as usize % KEPT] {
            Some((before, shape)) if *before == print => Arc::clone(shape),
            slot => Arc::clone(&slot.insert((print, text(view))).1),
        }
    })
}

fn text(view: &View<'_>) -> Arc<str> {
    let mut shape = String::new();
    write_shape(&mut shape, view);
    if shape.len() > SHAPE_MAX {
        let cut = shape.floor_char_boundary(SHAPE_MAX);
        let hash = hash([&shape, ""]);
        shape.truncate(cut);
        let _ = write!(shape, "… #{hash:016x}");
    }
    shape.into()
}

/// Hands the calls under a view to `each` in order of start, and whether they begin while one before is open.
fn calls<'a>(view: &View<'a>, mut each: impl FnMut(&View<'a>, bool)) {
    let children = view.callee.map_or(&[][..], |callee| &callee.children);
    let mut busy_until = i64::MIN;
    let mut next = |view: &View<'a>| {
        each(view, view.start < busy_until);
        busy_until = busy_until.max(view.end.unwrap_or(view.start));
    };
    if children.is_sorted_by_key(crate::path::Node::start_us) {
        children.iter().for_each(|child| next(&callee_of(child)));
    } else {
        let mut views: Vec<View<'a>> = children.iter().map(callee_of).collect();
        views.sort_by_key(|view| view.start);
        views.iter().for_each(next);
    }
}

fn fingerprint(hasher: &mut impl Hasher, view: &View<'_>) {
    view.name().hash(hasher);
    calls(view, |call, beside| {
        hasher.write_u8(1 + u8::from(beside));
        fingerprint(hasher, call);
    });
    hasher.write_u8(0);
}

/// Writes the shape of what is under a node.
fn write_shape(out: &mut String, view: &View<'_>) {
    out.push_str(&view.name());
    if view.callee.is_none_or(|callee| callee.children.is_empty()) {
        return;
    }
    out.push('(');
    let mut groups: Vec<Vec<String>> = Vec::new();
    calls(view, |call, beside| {
        let mut text = String::new();
        write_shape(&mut text, call);
        match groups.last_mut() {
            Some(group) if beside => group.push(text),
            _ => groups.push(vec![text]),
        }
    });
    let groups: Vec<String> = groups
        .iter_mut()
        .map(|group| {
            group.sort_unstable();
            runs(group, " | ")
        })
        .collect();
    out.push_str(&runs(&groups, "; "));
    out.push(')');
}

/// Joins texts; equal neighbours become one with their number, which is exact to 4 and then a power of two, or else a
/// loop over data would give a shape for every length.
fn runs(texts: &[String], between: &str) -> String {
    let mut out = String::new();
    for run in texts.chunk_by(|a, b| a == b) {
        if !out.is_empty() {
            out.push_str(between);
        }
        let bracket = run.len() > 1 && run[0].contains(" | ");
        out.push_str(if bracket { "[" } else { "" });
        out.push_str(&run[0]);
        out.push_str(if bracket { "]" } else { "" });
        let _ = match run.len() {
            1 => Ok(()),
            count @ 2..=4 => write!(out, " ×{count}"),
            count => write!(out, " ×{}+", 1usize << (usize::BITS - 1 - count.leading_zeros())),
        };
    }
    out
}
