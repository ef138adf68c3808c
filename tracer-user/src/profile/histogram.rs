//! Counts of values in fixed buckets: small, exact to merge, close enough for any quantile.
//!
//! The buckets are those of the H2 histogram (as in the crates `histogram` and `hdrhistogram`): values below 64 have a
//! bucket each, above there are 64 to every power of two, so a value read back is at most 0.8 % off. Every histogram has
//! the same buckets, which makes merging a sum: merged parts equal the whole to the bit. The crates keep all buckets
//! (30 KiB at this width); a profile has thousands of histograms of some tens of different values each, so only the
//! buckets that are in use are kept here, in order.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use super::bounded::Merge;

/// Buckets to a power of two, as a power of two.
const POWER: u32 = 6;
const LINEAR: u64 = 1 << POWER;

/// A distribution of whole numbers, mostly times in µs.
///
/// In JSON: `count`, `sum`, `min`, `max`, `p50`, `p90`, `p99`, and `buckets`, pairs of a bucket's least value and how
/// many fell into it. Only `buckets`, `sum`, `min` and `max` are read back; the rest follows from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
    /// The buckets in use, in order, and beside them their counts: so the search stays within few lines of the cache.
    used: Vec<u16>,
    counts: Vec<u64>,
}

fn index(value: u64) -> u16 {
    let shift = (63 - POWER).saturating_sub((value | 1).leading_zeros());
    // At most 64 * 57 + 127.
    (LINEAR * u64::from(shift) + (value >> shift)) as u16
}

/// The least and the greatest value of a bucket.
fn bounds(index: u16) -> (u64, u64) {
    let index = u64::from(index);
    let shift = (index / LINEAR).saturating_sub(1);
    let low = (index - LINEAR * shift) << shift;
    (low, low + ((1 << shift) - 1))
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.sum = self.sum.saturating_add(value);
        self.add_times(index(value), 1);
    }

    fn add_times(&mut self, index: u16, times: u64) {
        match self.used.binary_search(&index) {
            Ok(at) => self.counts[at] = self.counts[at].saturating_add(times),
            Err(at) => {
                self.used.insert(at, index);
                self.counts.insert(at, times);
            }
        }
        self.count = self.count.saturating_add(times);
    }

    /// Buckets in use, and their counts.
    fn pairs(&self) -> impl DoubleEndedIterator<Item = (u16, u64)> {
        self.used.iter().copied().zip(self.counts.iter().copied())
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The least of them, exactly; 0 if there are none.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The greatest of them, exactly; 0 if there are none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Their mean, exactly but for rounding; 0 if there are none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value below or at which a share of `q` (0 to 1) of the values are; at most 0.8 % off; 0 if there are none.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0u64;
        for (index, count) in self.pairs() {
            seen = seen.saturating_add(count);
            if seen >= rank {
                let (low, high) = bounds(index);
                return (low + (high - low) / 2).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// How many values are in the bucket of `value` or above it.
    pub fn from(&self, value: u64) -> u64 {
        let limit = index(value);
        self.pairs().filter(|(index, _)| *index >= limit).map(|(_, count)| count).sum()
    }

    /// Buckets in use in order: the least value, the greatest value, how many.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.pairs().map(|(index, count)| {
            let (low, high) = bounds(index);
            (low, high, count)
        })
    }

    /// What is left if `part`, all of whose values were counted here, is taken out. Least and greatest are then only
    /// as exact as the buckets.
    pub fn without(&self, part: &Self) -> Self {
        let mut rest = Self { sum: self.sum.saturating_sub(part.sum), ..Self::default() };
        for (index, count) in self.pairs() {
            let gone = part.used.binary_search(&index).map_or(0, |at| part.counts[at]);
            if count > gone {
                rest.add_times(index, count - gone);
            }
        }
        if let (Some(&first), Some(&last)) = (rest.used.first(), rest.used.last()) {
            rest.min = bounds(first).0.max(self.min);
            rest.max = bounds(last).1.min(self.max);
        }
        rest
    }
}

impl Merge for Histogram {
    fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other;
            return;
        }
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
        for (index, count) in other.pairs() {
            self.add_times(index, count);
        }
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Histogram", 8)?;
        out.serialize_field("count", &self.count)?;
        out.serialize_field("sum", &self.sum)?;
        out.serialize_field("min", &self.min)?;
        out.serialize_field("max", &self.max)?;
        out.serialize_field("p50", &self.quantile(0.5))?;
        out.serialize_field("p90", &self.quantile(0.9))?;
        out.serialize_field("p99", &self.quantile(0.99))?;
        let buckets: Vec<(u64, u64)> = self.buckets().map(|(low, _, count)| (low, count)).collect();
        out.serialize_field("buckets", &buckets)?;
        out.end()
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Kept {
            sum: u64,
            min: u64,
            max: u64,
            buckets: Vec<(u64, u64)>,
        }
        let kept = Kept::deserialize(deserializer)?;
        let mut out = Self::default();
        for (low, count) in kept.buckets {
            if count > 0 {
                out.add_times(index(low), count);
            }
        }
        if out.count > 0 {
            // Whatever a broken file says, least ≤ greatest, or a quantile could not be clamped between them.
            (out.sum, out.min, out.max) = (kept.sum, kept.min.min(kept.max), kept.max);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.add(value));
        histogram
    }

    #[test]
    fn nothing_is_zero() {
        let none = Histogram::default();
        assert_eq!((none.quantile(0.5), none.mean(), none.max(), none.from(0)), (0, 0, 0, 0));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_and_is_narrow(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let (low, high) = bounds(index(value));
            prop_assert!(low <= value && value <= high);
            prop_assert!((high - low) as f64 <= low as f64 / 64.0);
        }

        #[test]
        fn merged_parts_are_the_whole(a: Vec<u64>, b: Vec<u32>, c: Vec<u8>) {
            let (b, c): (Vec<u64>, Vec<u64>) = (b.into_iter().map(u64::from).collect(), c.into_iter().map(u64::from).collect());
            let whole = of(&[a.clone(), b.clone(), c.clone()].concat());
            let mut left = of(&a);
            left.merge(of(&b));
            left.merge(of(&c));
            let mut right = of(&c);
            right.merge(of(&b));
            let mut outer = of(&a);
            outer.merge(right);
            prop_assert_eq!(&left, &whole);
            prop_assert_eq!(&outer, &whole);
            let json = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), whole);
        }

        #[test]
        fn quantiles_are_close(mut values in prop::collection::vec(0u64..10_000_000, 1..200), q in 0.0f64..=1.0) {
            let histogram = of(&values);
            values.sort_unstable();
            let exact = values[((values.len() as f64 * q).ceil() as usize).clamp(1, values.len()) - 1] as f64;
            prop_assert!((histogram.quantile(q) as f64 - exact).abs() <= exact * 0.008 + 0.5);
        }

        #[test]
        fn what_is_taken_out_is_gone(a in prop::collection::vec(0u64..100_000, 0..50), b in prop::collection::vec(0u64..100_000, 0..50)) {
            let mut both = of(&a);
            both.merge(of(&b));
            let rest = both.without(&of(&b));
            prop_assert!(rest.pairs().eq(of(&a).pairs()));
            prop_assert_eq!(rest.sum, a.iter().sum::<u64>());
        }
    }
}
