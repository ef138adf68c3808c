//! Tables that hold at most so many keys, and still merge exactly.
//!
//! A table that keeps the first keys that come, or the commonest so far, depends on the order in which they come: two
//! halves merged would differ from the whole. Here every key has a rank that depends on nothing but the key (its class,
//! then a hash of it), and the keys of lowest rank are kept. A key that is kept in the end was among the lowest from its
//! first sight on, in the whole and in every part, so nothing of it was ever lost; all others together are `other`.
//! The price: what falls out is a sample, not the rarest. So limits are set where only something hostile or broken
//! reaches them, and classes see to it that names which a tenant can invent never push out those it cannot.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use crate::path::TraceId;

/// What can be put together: associative, commutative, with the default as its zero.
pub trait Merge: Default {
    /// Takes over all that `other` has counted.
    fn merge(&mut self, other: Self);
}

impl Merge for u64 {
    fn merge(&mut self, other: Self) {
        *self = self.saturating_add(other);
    }
}

impl<const N: usize> Merge for [u64; N]
where
    Self: Default,
{
    fn merge(&mut self, other: Self) {
        self.iter_mut().zip(other).for_each(|(a, b)| a.merge(b));
    }
}

impl<T: Merge> Merge for Option<Box<T>> {
    fn merge(&mut self, other: Self) {
        if let Some(other) = other {
            match self {
                Some(own) => own.merge(*other),
                None => *self = Some(other),
            }
        }
    }
}

/// A key of a [`Bounded`] table.
pub trait Key: Ord + Clone {
    /// Keys of a lower class are kept before those of a higher.
    fn class(&self) -> u8 {
        0
    }

    /// The texts that make the key.
    fn parts(&self) -> [&str; 2];
}

/// Mixes eight bytes at a time. The same on every machine and for ever, since profiles of different machines and days are
/// merged: never change it.
pub(super) fn hash(parts: [&str; 2]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15u64;
    let mut mix = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
    };
    for part in parts {
        mix(part.len() as u64);
        for chunk in part.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(u64::from_le_bytes(word));
        }
    }
    mix(0);
    hash
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked<K> {
    class: u8,
    hash: u64,
    key: K,
}

impl<K: Key> Ranked<K> {
    fn new(key: K) -> Self {
        Self { class: key.class(), hash: hash(key.parts()), key }
    }
}

/// A table of at most `N` keys.
///
/// In JSON: `kept`, a list of objects that hold key and value, in an order without meaning; and `other`, one value for
/// all the keys that did not fit, or null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounded<K, V, const N: usize> {
    kept: BTreeMap<Ranked<K>, V>,
    other: Option<Box<V>>,
}

impl<K, V, const N: usize> Default for Bounded<K, V, N> {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), other: None }
    }
}

impl<K: Key, V: Merge, const N: usize> Bounded<K, V, N> {
    /// Where to count what concerns `key`.
    pub fn at(&mut self, key: K) -> &mut V {
        let key = Ranked::new(key);
        if self.kept.len() >= N && !self.kept.contains_key(&key) {
            match self.kept.last_entry() {
                Some(last) if key < *last.key() => {
                    let out = last.remove();
                    self.other.get_or_insert_default().merge(out);
                }
                _ => return self.other.get_or_insert_default(),
            }
        }
        self.kept.entry(key).or_default()
    }

    /// What was counted for `key`, if it was kept.
    pub fn get(&self, key: K) -> Option<&V> {
        self.kept.get(&Ranked::new(key))
    }

    /// Keys that were kept, in order of their rank, which has no meaning.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.kept.iter().map(|(ranked, value)| (&ranked.key, value))
    }

    /// What was counted for all keys that were not kept.
    pub fn other(&self) -> Option<&V> {
        self.other.as_deref()
    }

    /// How many were kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

impl<K: Key, V: Merge, const N: usize> Merge for Bounded<K, V, N> {
    fn merge(&mut self, other: Self) {
        for (ranked, value) in other.kept {
            self.at(ranked.key).merge(value);
        }
        self.other.merge(other.other);
    }
}

impl<K: Serialize, V: Serialize, const N: usize> Serialize for Bounded<K, V, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a, K, V> {
            #[serde(flatten)]
            key: &'a K,
            #[serde(flatten)]
            value: &'a V,
        }
        let kept: Vec<_> = self.kept.iter().map(|(ranked, value)| Entry { key: &ranked.key, value }).collect();
        let mut out = serializer.serialize_struct("Bounded", 2)?;
        out.serialize_field("kept", &kept)?;
        out.serialize_field("other", &self.other)?;
        out.end()
    }
}

impl<'de, K, V, const N: usize> Deserialize<'de> for Bounded<K, V, N>
where
    K: Key + Deserialize<'de>,
    V: Merge + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Entry<K, V> {
            #[serde(flatten)]
            key: K,
            #[serde(flatten)]
            value: V,
        }
        #[derive(Deserialize)]
        struct Table<K, V> {
            kept: Vec<Entry<K, V>>,
            other: Option<Box<V>>,
        }
        let table = Table::<K, V>::deserialize(deserializer)?;
        let mut out = Self { kept: BTreeMap::new(), other: table.other };
        // Through `at`, so that a file with more keys than fit here is cut the same way.
        table.kept.into_iter().for_each(|entry| out.at(entry.key).merge(entry.value));
        Ok(out)
    }
}

/// A trace in which something was seen, and how much time it cost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Evidence {
    /// The time, in µs.
    pub us: u64,
    /// The trace.
    pub trace_id: TraceId,
}

/// How often a pattern was seen, what it cost, and where it cost the most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// In how many invocations.
    pub times: u64,
    /// The time it took in all, in µs.
    pub us: u64,
    /// The three traces in which it took the most.
    pub evidence: Vec<Evidence>,
}

/// How many traces are kept as evidence.
pub const EVIDENCE_MAX: usize = 3;

impl Tally {
    /// Counts an invocation in which the pattern took `us` µs.
    pub fn add(&mut self, us: u64, trace_id: TraceId) {
        self.times = self.times.saturating_add(1);
        self.us = self.us.saturating_add(us);
        self.note(Evidence { us, trace_id });
    }

    fn note(&mut self, new: Evidence) {
        if let Some(same) = self.evidence.iter_mut().find(|old| old.trace_id == new.trace_id) {
            same.us = same.us.max(new.us);
        } else {
            self.evidence.push(new);
        }
        self.evidence.sort_unstable_by(|a, b| b.cmp(a));
        self.evidence.truncate(EVIDENCE_MAX);
    }

    /// What it took each time, on average, in µs.
    pub fn mean_us(&self) -> u64 {
        self.us.checked_div(self.times).unwrap_or(0)
    }
}

impl Merge for Tally {
    fn merge(&mut self, other: Self) {
        self.times.merge(other.times);
        self.us.merge(other.us);
        other.evidence.into_iter().for_each(|evidence| self.note(evidence));
    }
}

/// Merges structs field by field; a field that is left out does not compile.
macro_rules! merge_fields {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl $crate::profile::bounded::Merge for $type {
            fn merge(&mut self, other: Self) {
                let Self { $($field),* } = other;
                $($crate::profile::bounded::Merge::merge(&mut self.$field, $field);)*
            }
        }
    };
}
pub(super) use merge_fields;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct Name {
        name: String,
    }

    impl Key for Name {
        fn class(&self) -> u8 {
            u8::from(self.name.starts_with("guest"))
        }
        fn parts(&self) -> [&str; 2] {
            [&self.name, ""]
        }
    }

    type Table = Bounded<Name, Tally, 5>;

    fn of(names: &[u8]) -> Table {
        let mut table = Table::default();
        for &name in names {
            let trace_id = TraceId([0, u64::from(name / 3)]);
            table.at(Name { name: name.to_string() }).add(u64::from(name), trace_id);
        }
        table
    }

    proptest! {
        #[test]
        fn merged_parts_are_the_whole_however_many_keys(a in prop::collection::vec(0u8..20, 0..40), b in prop::collection::vec(0u8..20, 0..40), c in prop::collection::vec(0u8..20, 0..40)) {
            let whole = of(&[a.clone(), b.clone(), c.clone()].concat());
            let mut left = of(&a);
            left.merge(of(&b));
            left.merge(of(&c));
            let mut right = of(&c);
            right.merge(of(&b));
            right.merge(of(&a));
            prop_assert_eq!(&left, &whole);
            prop_assert_eq!(&right, &whole);
            let counted: u64 = whole.iter().map(|(_, tally)| tally.times).sum();
            prop_assert_eq!(counted + whole.other().map_or(0, |tally| tally.times), (a.len() + b.len() + c.len()) as u64);
            let json = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<Table>(&json).unwrap(), whole);
        }
    }

    #[test]
    fn the_hash_is_for_ever() {
        assert_eq!(hash(["checkout", ""]), 0xf756fec8f840c798);
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
    }

    #[test]
    fn a_lower_class_is_never_pushed_out_by_a_higher() {
        let mut table = Table::default();
        table.at(Name { name: "house".into() }).add(1, TraceId::default());
        for guest in 0..1000 {
            table.at(Name { name: format!("guest {guest}") }).add(1, TraceId::default());
        }
        assert_eq!(table.get(Name { name: "house".into() }).map(|tally| tally.times), Some(1));
        assert_eq!((table.len(), table.other().map(|tally| tally.times)), (5, Some(996)));
    }
}
