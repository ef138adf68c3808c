//! A hash table that forgets what was longest unused, so that nobody can grow it without bound.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// At most `limit` entries; when full, the quarter that was longest unused goes. Keys are hashes of what is remembered.
/// The seed is fixed: the same input gives the same forecasts. Whoever crafts colliding names gets bad forecasts for
/// them, no more.
#[derive(Debug)]
pub(super) struct Table<V> {
    entries: HashMap<u64, Entry<V>, FixedState>,
    limit: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry<V> {
    used: u64,
    value: V,
}

/// The limit, then the entries, the longest unused first.
impl<V: Serialize> Serialize for Table<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(_, entry)| entry.used);
        let entries: Vec<_> = entries.into_iter().map(|(key, entry)| (key, &entry.value)).collect();
        (self.limit, entries).serialize(serializer)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Table<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (limit, entries) = <(usize, Vec<(u64, V)>)>::deserialize(deserializer)?;
        let mut table = Self::new(limit);
        for (key, value) in entries {
            table.touch(key, || value);
        }
        Ok(table)
    }
}

impl<V> Table<V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: HashMap::with_hasher(FixedState::with_seed(7)), limit: limit.max(4), clock: 0 }
    }

    pub(super) fn get(&self, key: u64) -> Option<&V> {
        self.entries.get(&key).map(|entry| &entry.value)
    }

    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.entries.get_mut(&key).map(|entry| &mut entry.value)
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<V> {
        self.entries.remove(&key).map(|entry| entry.value)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry, made if need be, and marked as used now.
    pub(super) fn touch(&mut self, key: u64, make: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            let mut ages: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
            let quarter = ages.len() / 4;
            let (_, &mut oldest_kept, _) = ages.select_nth_unstable(quarter);
            self.entries.retain(|_, entry| entry.used > oldest_kept);
        }
        self.clock += 1;
        let used = self.clock;
        let entry = self.entries.entry(key).or_insert_with(|| Entry { used, value: make() });
        entry.used = used;
        &mut entry.value
    }
}

/// Mixes a value into a hash; order matters.
pub(super) fn mix(hash: u64, value: u64) -> u64 {
    let product = u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(value ^ 0xd6e8_feb8_6659_fd93);
    (product as u64 ^ (product >> 64) as u64).wrapping_add(0x2545_f491_4f6c_dd1d)
}

/// The hash of a name.
pub(super) fn name_hash(name: &str) -> u64 {
    use std::hash::BuildHasher;
    FixedState::with_seed(11).hash_one(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_go_first() {
        let mut table = Table::new(8);
        for key in 0..8 {
            table.touch(key, || key);
        }
        table.touch(0, || 99);
        table.touch(8, || 8);
        assert_eq!(table.get(0), Some(&0));
        assert_eq!((table.get(1), table.get(2), table.get(8)), (None, None, Some(&8)));
        for key in 0..1000 {
            table.touch(key, || key);
            assert!(table.len() <= 8);
        }
    }

    #[test]
    fn order_matters_to_mix() {
        assert_ne!(mix(mix(0, 1), 2), mix(mix(0, 2), 1));
        assert_ne!(name_hash("a"), name_hash("b"));
    }
}
