//! The sending end: the table with the revision of each key's last change, and one cursor per receiver.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Delta, PIECE_BYTES, Piece, Position, Push};
use crate::id::Incarnation;

/// A table that counts its changes. See the [module](super).
#[derive(Debug, Clone)]
pub struct Log<K, V> {
    incarnation: Incarnation,
    revision: u64,
    rows: BTreeMap<K, Row<V>>,
    /// The keys of `rows` by the revision of their last change.
    changes: BTreeMap<u64, K>,
    /// When keys that are not in `rows` were removed; at most `tombstones_max`.
    removed_at: BTreeMap<K, u64>,
    /// The keys of `removed_at` by revision.
    tombstones: BTreeMap<u64, K>,
    tombstones_max: usize,
    /// The newest forgotten removal: from here on every removal is remembered.
    floor: u64,
}

#[derive(Debug, Clone)]
struct Row<V> {
    value: V,
    changed_at: u64,
}

/// How far one receiver has been served. Belongs to the [`Log`] that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor<K> {
    phase: Phase<K>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase<K> {
    /// The receiver needs a snapshot; nothing of it has been sent.
    Fresh,
    /// A snapshot is under way: it began at revision `began`, and `after` was its last key looked at.
    Snapshot { began: u64, after: K },
    /// The receiver stands at `sent`; up to `scanned` there is nothing more for it to see.
    Following { sent: u64, scanned: u64 },
}

impl<K> Cursor<K> {
    /// Where the receiver stands once it has everything sent so far; none while it has no whole table.
    pub fn sent(&self) -> Option<u64> {
        match self.phase {
            Phase::Following { sent, .. } => Some(sent),
            Phase::Fresh | Phase::Snapshot { .. } => None,
        }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Log<K, V> {
    /// An empty table at revision 0 of the sender's run `incarnation`, which remembers the last
    /// `tombstones_max` removals.
    pub fn new(incarnation: Incarnation, tombstones_max: usize) -> Self {
        Log {
            incarnation,
            revision: 0,
            rows: BTreeMap::new(),
            changes: BTreeMap::new(),
            removed_at: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            tombstones_max,
            floor: 0,
        }
    }

    /// How many changes there were in this run.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The entry of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|row| &row.value)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many removals are remembered.
    pub fn tombstones_len(&self) -> usize {
        self.tombstones.len()
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// Puts `value` at `key`. Says whether that changed anything; an equal value is no change.
    pub fn set(&mut self, key: K, value: V) -> bool {
        if self.get(&key) == Some(&value) {
            return false;
        }
        self.revision += 1;
        if let Some(removed_at) = self.removed_at.remove(&key) {
            self.tombstones.remove(&removed_at);
        }
        self.changes.insert(self.revision, key.clone());
        let former = self.rows.insert(key, Row { value, changed_at: self.revision });
        if let Some(former) = former {
            self.changes.remove(&former.changed_at);
        }
        true
    }

    /// Takes `key` out. Says whether it was there.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(former) = self.rows.remove(key) else {
            return false;
        };
        self.revision += 1;
        self.changes.remove(&former.changed_at);
        self.removed_at.insert(key.clone(), self.revision);
        self.tombstones.insert(self.revision, key.clone());
        while self.tombstones.len() > self.tombstones_max {
            if let Some((revision, key)) = self.tombstones.pop_first() {
                self.removed_at.remove(&key);
                self.floor = revision;
            }
        }
        true
    }

    /// Starts to serve a receiver that says where it stands; none when it has nothing. A receiver that cannot
    /// be served by deltas gets a snapshot.
    pub fn cursor(&self, resume: Option<Position>) -> Cursor<K> {
        let served = |at: &Position| {
            at.incarnation == self.incarnation && (self.floor..=self.revision).contains(&at.revision)
        };
        let phase = match resume.filter(served) {
            Some(at) => Phase::Following { sent: at.revision, scanned: at.revision },
            None => Phase::Fresh,
        };
        Cursor { phase }
    }

    /// Whether [`Log::next_push`] has something to look at. It may still find nothing this receiver may see.
    pub fn has_more(&self, cursor: &Cursor<K>) -> bool {
        match cursor.phase {
            Phase::Following { scanned, .. } => scanned < self.revision,
            Phase::Fresh | Phase::Snapshot { .. } => true,
        }
    }

    /// The next push for a receiver, or none when it has everything it may see. `visible` is the filter (see the
    /// [module](super)), `size` the estimated size of an entry in bytes.
    pub fn next_push(
        &self,
        cursor: &mut Cursor<K>,
        visible: impl Fn(&K, &V) -> Option<V>,
        size: impl Fn(&V) -> usize,
    ) -> Option<Push<K, V>> {
        let (began, after) = match &cursor.phase {
            Phase::Following { sent, scanned } if *scanned >= self.floor => {
                let (sent, scanned) = (*sent, *scanned);
                return self.next_delta(cursor, (sent, scanned), visible, size).map(Push::Delta);
            }
            // A reader so slow that removals it needs were forgotten starts anew.
            Phase::Following { .. } | Phase::Fresh => (self.revision, None),
            Phase::Snapshot { began, after } => (*began, Some(after.clone())),
        };
        let first = after.is_none();
        let mut piece = Piece { revision: began, first, done: true, entries: Vec::new() };
        let mut bytes = 0;
        let mut last = after;
        let from = last.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        for (key, row) in self.rows.range((from, Bound::Unbounded)) {
            if bytes >= PIECE_BYTES {
                piece.done = false;
                break;
            }
            last = Some(key.clone());
            if let Some(value) = visible(key, &row.value) {
                bytes += size(&value);
                piece.entries.push((key.clone(), value));
            }
        }
        cursor.phase = match last {
            Some(after) if !piece.done => Phase::Snapshot { began, after },
            _ => Phase::Following { sent: began, scanned: began },
        };
        Some(Push::Snapshot(piece))
    }

    fn next_delta(
        &self,
        cursor: &mut Cursor<K>,
        (sent, scanned): (u64, u64),
        visible: impl Fn(&K, &V) -> Option<V>,
        size: impl Fn(&V) -> usize,
    ) -> Option<Delta<K, V>> {
        let behind = (Bound::Excluded(scanned), Bound::Unbounded);
        let mut changes = self.changes.range(behind).peekable();
        let mut removals = self.tombstones.range(behind).peekable();
        let mut delta = Delta { previous: sent, revision: scanned, changed: Vec::new(), removed: Vec::new() };
        let mut bytes = 0;
        while bytes < PIECE_BYTES {
            let change = changes.peek().map(|(revision, _)| **revision);
            let removal = removals.peek().map(|(revision, _)| **revision);
            if removal.is_some_and(|removal| change.is_none_or(|change| removal < change)) {
                let (revision, key) = removals.next().expect("it was peeked at");
                delta.revision = *revision;
                bytes += TOMBSTONE_BYTES;
                delta.removed.push(key.clone());
            } else if let Some((revision, key)) = changes.next() {
                delta.revision = *revision;
                let row = self.rows.get(key).expect("changes holds keys of rows only");
                if let Some(value) = visible(key, &row.value) {
                    bytes += size(&value);
                    delta.changed.push((key.clone(), value));
                }
            } else {
                delta.revision = self.revision;
                break;
            }
        }
        if delta.changed.is_empty() && delta.removed.is_empty() {
            cursor.phase = Phase::Following { sent, scanned: delta.revision };
            return None;
        }
        cursor.phase = Phase::Following { sent: delta.revision, scanned: delta.revision };
        Some(delta)
    }
}

/// About what the key of a removed entry takes in a push.
const TOMBSTONE_BYTES: usize = 48;
