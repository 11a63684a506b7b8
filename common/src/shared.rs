//! Ordered collections that share their structure: a copy costs one reference count, and a change of a copy
//! copies only the nodes on the way to it.
//!
//! The replicated state is published after every change while readers still hold the former one, so it is copied
//! all the time; with these a write among 100,000 rows copies as many nodes as the tree is deep. What nobody else holds
//! is changed in place. The tree is that of `rpds`; here it has the faces of `std`'s maps, sets and queues.
//!
//! Not for many small maps, and not for what is never copied: `std`'s are faster there.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;

use rpds::RedBlackTreeMapSync;

/// An ordered map that is cheap to copy.
pub struct SharedMap<K: Ord, V> {
    rows: RedBlackTreeMapSync<K, V>,
}

impl<K: Ord, V> SharedMap<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        SharedMap { rows: RedBlackTreeMapSync::new_sync() }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every row, ascending by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.rows.iter()
    }

    /// Every key, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.rows.keys()
    }

    /// Every value, ascending by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values()
    }

    /// The row with the least key.
    pub fn first(&self) -> Option<(&K, &V)> {
        self.rows.first()
    }

    /// Whether both are one and the same copy: nothing was changed in either since.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        self.rows.ptr_eq(&other.rows)
    }

    /// The value of `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key)
    }

    /// Whether there is a row of `key`.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.rows.contains_key(key)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of `key`, to be changed in this copy alone.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // Looking for what is not there would copy all the same.
        if self.contains_key(key) { self.rows.get_mut(key) } else { None }
    }

    /// Puts a row in; returns the former value.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let former = self.rows.get(&key).cloned();
        self.rows.insert_mut(key, value);
        former
    }

    /// Takes a row out; returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let removed = self.rows.get(key).cloned()?;
        self.rows.remove_mut(key);
        Some(removed)
    }

    /// Keeps only the rows `keep` is true for. Looks at each.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let gone: Vec<K> =
            self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.rows.remove_mut(&key);
        }
    }

    /// Takes the row with the least key out.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        let key = self.first()?.0.clone();
        let value = self.remove(&key)?;
        Some((key, value))
    }
}

/// The rows of a [`SharedMap`], ascending by key.
pub type Iter<'a, K, V> = <&'a RedBlackTreeMapSync<K, V> as IntoIterator>::IntoIter;

impl<K: Ord, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap { rows: self.rows.clone() }
    }
}

impl<K: Ord, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap::new()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.ptr_eq(other) || (self.len() == other.len() && self.iter().eq(other.iter()))
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    /// # Panics
    /// When there is no row of `key`.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("there is a row of the key")
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        SharedMap { rows: rows.into_iter().collect() }
    }
}

/// An ordered set that is cheap to copy.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSet<K: Ord>(SharedMap<K, ()>);

impl<K: Ord + Clone> SharedSet<K> {
    /// An empty one.
    pub fn new() -> Self {
        SharedSet(SharedMap::new())
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `item` is one.
    pub fn contains(&self, item: &K) -> bool {
        self.0.contains_key(item)
    }

    /// Puts an item in; whether it was missing.
    pub fn insert(&mut self, item: K) -> bool {
        self.0.insert(item, ()).is_none()
    }

    /// Every item, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

impl<K: Ord + Clone> Default for SharedSet<K> {
    fn default() -> Self {
        SharedSet::new()
    }
}

impl<K: Ord + fmt::Debug> fmt::Debug for SharedSet<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Ord + Clone> FromIterator<K> for SharedSet<K> {
    fn from_iter<I: IntoIterator<Item = K>>(items: I) -> Self {
        SharedSet(items.into_iter().map(|item| (item, ())).collect())
    }
}

/// A queue that is cheap to copy. Two are equal when they hold the same, whatever went through them before.
#[derive(Clone)]
pub struct SharedQueue<T> {
    /// By number, counted from the first item ever.
    items: SharedMap<u64, T>,
    next: u64,
}

impl<T: Clone> SharedQueue<T> {
    /// An empty one.
    pub fn new() -> Self {
        SharedQueue { items: SharedMap::new(), next: 0 }
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts an item behind the last; returns its number, by which [`SharedQueue::get`] finds it.
    pub fn push_back(&mut self, item: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.items.insert(number, item);
        number
    }

    /// Takes the first item out.
    pub fn pop_front(&mut self) -> Option<T> {
        self.items.pop_first().map(|(_, item)| item)
    }

    /// The item that got this number, while it is there.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.items.get(&number)
    }

    /// Every item, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.values()
    }

    /// Every item with its number.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &T)> {
        self.items.iter().map(|(number, item)| (*number, item))
    }
}

impl<T: Clone> Default for SharedQueue<T> {
    fn default() -> Self {
        SharedQueue::new()
    }
}

impl<T: PartialEq + Clone> PartialEq for SharedQueue<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<T: Eq + Clone> Eq for SharedQueue<T> {}

impl<T: fmt::Debug> fmt::Debug for SharedQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.items.values()).finish()
    }
}

#[cfg(test)]
mod tests;
