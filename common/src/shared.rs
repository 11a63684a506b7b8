//! Ordered collections that share their structure: a copy costs one reference count, and a change of a copy
//! copies only the nodes on the way to it.
//!
//! The replicated state is published after every change while readers still hold the former one, so it is copied
//! all the time; with these a write among 100,000 rows costs what one among ten does. What nobody else holds is
//! changed in place.
//!
//! [`SharedMap`] is a B+ tree: rows in the leaves, above them nodes of (bound, child). The bound of a child is at
//! most its first key, except for the first child of a node, which also takes every key below its bound. Nodes hold
//! 1 to [`NODE_MAX`] items; one that gets small joins a neighbour when both fit into one.
//!
//! Not for many small maps, and not for what is never copied: `std`'s are faster there.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;
use std::slice;
use std::sync::Arc;

/// Items of a node. A change copies a node of each level, 5 for 100,000 rows.
const NODE_MAX: usize = 16;
/// With fewer a node looks for a neighbour to join.
const NODE_MIN: usize = 4;

/// An ordered map that is cheap to copy.
pub struct SharedMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    Inner(Vec<Child<K, V>>),
}

/// A node with its bound.
type Child<K, V> = (K, Arc<Node<K, V>>);

/// A node that was split off.
type SplitOff<K, V> = Option<Child<K, V>>;

impl<K, V> SharedMap<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        SharedMap { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every row, ascending by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { inner: Vec::new(), leaf: [].iter(), left: self.len };
        iter.descend(&self.root);
        iter
    }

    /// Every key, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Every value, ascending by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The row with the least key.
    pub fn first(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// Whether both are one and the same copy: nothing was changed in either since.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The value of `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(rows) => return position(rows, key).ok().map(|at| &rows[at].1),
                Node::Inner(children) => node = &children.get(child_of(children, key))?.1,
            }
        }
    }

    /// Whether there is a row of `key`.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of `key`, to be changed in this copy alone.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let mut node = Arc::make_mut(&mut self.root);
        loop {
            match node {
                Node::Leaf(rows) => return position(rows, key).ok().map(|at| &mut rows[at].1),
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children.get_mut(at)?.1);
                }
            }
        }
    }

    /// Puts a row in; returns the former value.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let root = Arc::make_mut(&mut self.root);
        let (former, split_off) = root.insert(key, value);
        if let Some(right) = split_off {
            let left = Arc::clone(&self.root);
            let bound = left.first_key().cloned().expect("who was split has items");
            self.root = Arc::new(Node::Inner(vec![(bound, left), right]));
        }
        self.len += usize::from(former.is_none());
        former
    }

    /// Takes a row out; returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return None;
        }
        let removed = Arc::make_mut(&mut self.root).remove(key)?;
        self.len -= 1;
        loop {
            let below = match &*self.root {
                Node::Inner(children) if children.len() == 1 => Arc::clone(&children[0].1),
                Node::Inner(children) if children.is_empty() => Arc::new(Node::Leaf(Vec::new())),
                _ => return Some(removed),
            };
            self.root = below;
        }
    }

    /// Keeps only the rows `keep` is true for. Looks at each.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let gone: Vec<K> =
            self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Takes the row with the least key out.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        let key = self.first()?.0.clone();
        let value = self.remove(&key)?;
        Some((key, value))
    }
}

/// Where `key` stands among rows, or would.
fn position<K: Borrow<Q>, V, Q: Ord + ?Sized>(rows: &[(K, V)], key: &Q) -> Result<usize, usize> {
    rows.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

/// Which child has `key`, if any has.
fn child_of<K: Borrow<Q>, V, Q: Ord + ?Sized>(children: &[(K, V)], key: &Q) -> usize {
    children.partition_point(|(bound, _)| bound.borrow() <= key).saturating_sub(1)
}

impl<K, V> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(rows) => rows.len(),
            Node::Inner(children) => children.len(),
        }
    }

    fn first_key(&self) -> Option<&K> {
        match self {
            Node::Leaf(rows) => rows.first().map(|(key, _)| key),
            Node::Inner(children) => children.first().map(|(bound, _)| bound),
        }
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn insert(&mut self, key: K, value: V) -> (Option<V>, SplitOff<K, V>) {
        match self {
            Node::Leaf(rows) => match position(rows, &key) {
                Ok(at) => (Some(std::mem::replace(&mut rows[at].1, value)), None),
                Err(at) => {
                    rows.insert(at, (key, value));
                    (None, split(rows).map(|(bound, rows)| (bound, Arc::new(Node::Leaf(rows)))))
                }
            },
            Node::Inner(children) => {
                let at = child_of(children, &key);
                let (former, split_off) = Arc::make_mut(&mut children[at].1).insert(key, value);
                if let Some(right) = split_off {
                    children.insert(at + 1, right);
                }
                (former, split(children).map(|(bound, items)| (bound, Arc::new(Node::Inner(items)))))
            }
        }
    }

    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Node::Leaf(rows) => position(rows, key).ok().map(|at| rows.remove(at).1),
            Node::Inner(children) => {
                let at = child_of(children, key);
                let child = Arc::make_mut(&mut children.get_mut(at)?.1);
                let removed = child.remove(key)?;
                match child.len() {
                    0 => {
                        children.remove(at);
                    }
                    len if len < NODE_MIN => join_neighbours(children, at),
                    _ => {}
                }
                Some(removed)
            }
        }
    }
}

/// The upper half of more items than a node may hold, with its bound.
fn split<K: Clone, T>(items: &mut Vec<(K, T)>) -> Option<(K, Vec<(K, T)>)> {
    if items.len() <= NODE_MAX {
        return None;
    }
    // Ascending keys, the usual case, leave full nodes behind them.
    let right = items.split_off(items.len() * 3 / 4);
    Some((right.first()?.0.clone(), right))
}

/// Makes one node of child `at` and one of its neighbours when both fit.
fn join_neighbours<K: Clone, V: Clone>(children: &mut Vec<Child<K, V>>, at: usize) {
    let fits = |left: usize| {
        let pair = children.get(left..left + 2)?;
        (pair[0].1.len() + pair[1].1.len() <= NODE_MAX).then_some(left)
    };
    let Some(left) = at.checked_sub(1).and_then(fits).or_else(|| fits(at)) else { return };
    let (bound, right) = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].1), Arc::unwrap_or_clone(right)) {
        (Node::Leaf(rows), Node::Leaf(more)) => rows.extend(more),
        (Node::Inner(items), Node::Inner(mut more)) => {
            // Its first child took what lies below its own bound too.
            if let Some(first) = more.first_mut() {
                first.0 = bound;
            }
            items.extend(more);
        }
        _ => unreachable!("neighbours are on one level"),
    }
}

/// The rows of a [`SharedMap`], ascending by key.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    inner: Vec<slice::Iter<'a, Child<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
    left: usize,
}

impl<'a, K, V> Iter<'a, K, V> {
    fn descend(&mut self, mut node: &'a Node<K, V>) {
        loop {
            match node {
                Node::Leaf(rows) => {
                    self.leaf = rows.iter();
                    return;
                }
                Node::Inner(children) => {
                    let mut children = children.iter();
                    let Some((_, first)) = children.next() else { return };
                    self.inner.push(children);
                    node = first;
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                self.left -= 1;
                return Some((key, value));
            }
            let (_, child) = match self.inner.last_mut()?.next() {
                Some(child) => child,
                None => {
                    self.inner.pop();
                    continue;
                }
            };
            self.descend(child);
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

impl<K: Clone, V: Clone> Clone for Node<K, V> {
    fn clone(&self) -> Self {
        // With room for what is about to be put in.
        fn copy<T: Clone>(items: &[T]) -> Vec<T> {
            let mut copy = Vec::with_capacity(NODE_MAX + 1);
            copy.extend_from_slice(items);
            copy
        }
        match self {
            Node::Leaf(rows) => Node::Leaf(copy(rows)),
            Node::Inner(children) => Node::Inner(copy(children)),
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Node<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Leaf(rows) => f.debug_list().entries(rows).finish(),
            Node::Inner(children) => f.debug_list().entries(children).finish(),
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.ptr_eq(other) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V>
where
    K: Borrow<Q>,
{
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the map has the key it is asked for")
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let mut map = SharedMap::new();
        for (key, value) in rows {
            map.insert(key, value);
        }
        map
    }
}

/// An ordered set that is cheap to copy.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSet<K>(SharedMap<K, ()>);

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

impl<K: fmt::Debug> fmt::Debug for SharedSet<K> {
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
