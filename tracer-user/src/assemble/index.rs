//! Spans by what they hold.

use std::{
    hash::{BuildHasher as _, Hash},
    marker::PhantomData,
};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use slab::Slab;

use super::span::Span;

/// What a span is found by. It must not change while the span is in an index.
pub(super) trait Key: Copy + Eq + Hash {
    /// The span's own.
    fn of(span: &Span) -> Self;
}

/// Finds spans by a key that they hold themselves. The table has only their places in the arena, four bytes each, and so
/// stays in the processor's cache; whoever finds a span looks at it anyway.
///
/// Keys can be a tenant's choice, so the hash is seeded; nothing may depend on the table's order.
#[derive(Debug)]
pub(super) struct Index<K> {
    table: HashTable<u32>,
    hasher: RandomState,
    key: PhantomData<K>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self { table: HashTable::new(), hasher: RandomState::default(), key: PhantomData }
    }
}

impl<K: Key> Index<K> {
    /// The span that has the key.
    pub fn get(&self, key: K, spans: &Slab<Span>) -> Option<u32> {
        self.table.find(self.hasher.hash_one(key), |at| K::of(&spans[*at as usize]) == key).copied()
    }

    /// Puts a span in, in place of any that has the same key.
    pub fn put(&mut self, at: u32, spans: &Slab<Span>) {
        let of = |at: &u32| K::of(&spans[*at as usize]);
        let key = of(&at);
        let entry = self.table.entry(
            self.hasher.hash_one(key),
            |other| of(other) == key,
            |other| self.hasher.hash_one(of(other)),
        );
        match entry {
            Entry::Occupied(mut other) => *other.get_mut() = at,
            Entry::Vacant(vacant) => {
                vacant.insert(at);
            }
        }
    }

    /// Takes the span with this key out, if it is this one.
    pub fn remove(&mut self, key: K, at: u32) {
        if let Ok(entry) = self.table.find_entry(self.hasher.hash_one(key), |other| *other == at) {
            entry.remove();
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.table.len()
    }
}
