//! Paths in flight, as trees: planted, grown, put under one another, and noted when they seem to be whole.

use super::{
    Assembler,
    span::{DEPTH_MAX, NONE, PartOf, Tree},
};

impl Assembler {
    /// Makes a span the root of a new tree.
    pub(super) fn plant(&mut self, key: u32, part_of: Option<PartOf>, orphan: bool) {
        let span = &mut self.spans[key as usize];
        let seq = self.next_seq;
        self.next_seq += 1;
        let tree = self.trees.insert(Tree {
            seq,
            root: key,
            spans: 1,
            open: u32::from(span.awaited()),
            height: 0,
            held: 0,
            lost: self.totals.lost,
            last_ns: span.at_ns,
            part_of,
            orphan,
        }) as u32;
        span.tree = tree;
        span.above = part_of.map_or(0, |part| part.above);
        self.totals.open += 1;
        if self.by_age.len() > 2 * self.trees.len() + 64 {
            let trees = &self.trees;
            self.by_age.retain(|(tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
        }
        self.by_age.push_back((tree, seq));
    }

    /// Puts a new span under another, or into a part of its own if that one was given out or lies too deep.
    pub(super) fn place(&mut self, key: u32, above: u32) {
        let parent = &self.spans[above as usize];
        if parent.given_out() || parent.depth >= DEPTH_MAX {
            let part = self.part_of(above);
            self.plant(key, Some(part), false);
            return;
        }
        let (tree, depth, id) = (parent.tree, parent.depth + 1, parent.id);
        let span = &mut self.spans[key as usize];
        (span.tree, span.depth, span.above) = (tree, depth, id);
        let (awaited, at_ns) = (u32::from(span.awaited()), span.at_ns);
        let tree = &mut self.trees[tree as usize];
        tree.spans += 1;
        tree.open += awaited;
        tree.height = tree.height.max(depth);
        tree.last_ns = tree.last_ns.max(at_ns);
        self.totals.open += 1;
        self.link(key, above);
    }

    /// Puts a tree, by its root, under a span that came after it.
    pub(super) fn adopt(&mut self, root: u32, above: u32) {
        let (from, parent) = (self.spans[root as usize].tree, &self.spans[above as usize]);
        let Some(tree) = self.trees.get(from as usize) else { return };
        if tree.root != root || from == parent.tree {
            return;
        }
        if parent.given_out() || parent.depth + tree.height >= DEPTH_MAX {
            let part = self.part_of(above);
            self.spans[root as usize].above = part.above;
            let tree = &mut self.trees[from as usize];
            (tree.part_of, tree.orphan) = (Some(part), false);
            return;
        }
        let (into, depth, id) = (parent.tree, parent.depth + 1, parent.id);
        let moved = self.trees.remove(from as usize);
        let tree = &mut self.trees[into as usize];
        tree.spans += moved.spans;
        tree.open += moved.open;
        tree.held += moved.held;
        tree.height = tree.height.max(depth + moved.height);
        tree.last_ns = tree.last_ns.max(moved.last_ns);
        tree.lost = tree.lost.min(moved.lost);
        self.spans[root as usize].above = id;
        let mut below = vec![root];
        while let Some(key) = below.pop() {
            let span = &mut self.spans[key as usize];
            span.tree = into;
            span.depth += depth;
            let mut child = span.first_child;
            while child != NONE {
                below.push(child);
                child = self.spans[child as usize].next;
            }
        }
        self.link(root, above);
        self.check_ready(into);
    }

    /// Puts a span among its parent's children, in order.
    fn link(&mut self, key: u32, above: u32) {
        let order = self.spans[key as usize].order();
        let (mut before, mut after) = (self.spans[above as usize].last_child, NONE);
        if before != NONE && self.spans[before as usize].order() > order {
            (before, after) = (NONE, self.spans[above as usize].first_child);
            while after != NONE && self.spans[after as usize].order() < order {
                (before, after) = (after, self.spans[after as usize].next);
            }
        }
        self.spans[key as usize].next = after;
        match before {
            NONE => self.spans[above as usize].first_child = key,
            before => self.spans[before as usize].next = key,
        }
        if after == NONE {
            self.spans[above as usize].last_child = key;
        }
    }

    pub(super) fn check_ready(&mut self, tree: u32) {
        let entry = &self.trees[tree as usize];
        if entry.open == 0 && entry.held == 0 && self.spans[entry.root as usize].ended {
            let entry = (tree, entry.seq);
            if self.ready.len() > 2 * self.trees.len() + 64 {
                let trees = &self.trees;
                self.ready.retain(|(tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
                self.ready.dedup();
            }
            self.ready.push(entry);
        }
    }

    pub(super) fn settle(&mut self, tree: u32, seq: u64) {
        if self.settling.len() > 2 * self.trees.len() + 64 {
            let trees = &self.trees;
            self.settling.retain(|(_, tree, seq)| trees.get(*tree as usize).is_some_and(|tree| tree.seq == *seq));
        }
        self.settling.push_back((self.now_ns.saturating_add(self.config.settle_ns), tree, seq));
    }
}
