//! How often each callee came next in a context, with slow forgetting.

use serde::{Deserialize, Serialize};

/// A callee, by the hash of its name.
pub(super) type Fun = u64;

/// The outcome "no more calls in this path".
pub(super) const END: Fun = 0;
/// The outcome "something that is not among the candidates".
pub(super) const NOVEL: Fun = 1;

/// Callees that a context keeps.
const WIDTH: usize = 8;
/// What is left of a count after each observation in its context: a memory of some 700 observations.
const KEEP: f32 = 0.9985;

/// The counts of one context.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    total: f32,
    entries: [(Fun, f32); WIDTH],
    used: u8,
}

impl Counts {
    /// Counts `next`. A callee for which there is no room takes the place of the rarest.
    pub(super) fn learn(&mut self, next: Fun) {
        self.total = self.total * KEEP + 1.0;
        let mut place = None;
        let mut rarest = (f32::INFINITY, 0);
        for (index, (fun, count)) in self.entries.iter_mut().enumerate().take(usize::from(self.used)) {
            *count *= KEEP;
            if *fun == next {
                place = Some(index);
            }
            if *count < rarest.0 {
                rarest = (*count, index);
            }
        }
        let index = place.unwrap_or_else(|| {
            if usize::from(self.used) < WIDTH {
                self.used += 1;
                usize::from(self.used) - 1
            } else {
                rarest.1
            }
        });
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = if place.is_some() { (next, entry.1 + 1.0) } else { (next, 1.0) };
        }
    }

    /// Observations remembered.
    pub(super) fn total(&self) -> f32 {
        self.total
    }

    /// The callees seen here, with their counts.
    pub(super) fn seen(&self) -> &[(Fun, f32)] {
        self.entries.get(..usize::from(self.used)).unwrap_or_default()
    }

    /// The count of one callee.
    pub(super) fn of(&self, fun: Fun) -> f32 {
        self.seen().iter().find(|entry| entry.0 == fun).map_or(0.0, |entry| entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_bounded_and_forget() {
        let mut counts = Counts::default();
        for round in 0..10_000 {
            counts.learn(2 + round % 20);
        }
        assert!(counts.seen().len() <= WIDTH);
        assert!(counts.total() < 700.0);
        for _ in 0..3000 {
            counts.learn(99);
        }
        assert!(counts.of(99) / counts.total() > 0.95);
    }
}
