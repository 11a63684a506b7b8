//! The receiving end: a copy of the sender's table, kept by what it pushes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Delta, Piece, Position, Push};
use crate::id::Incarnation;

/// A copy of a sender's table. See the [module](super).
///
/// For each session call [`View::begin_session`], tell the sender the position it returns, and
/// [`View::apply`] every push in order.
#[derive(Debug, Clone)]
pub struct View<K, V> {
    entries: BTreeMap<K, V>,
    /// None until the first whole snapshot, and after a push that could not be applied.
    at: Option<Position>,
    pending: Option<Pending<K, V>>,
    entries_max: usize,
}

/// A snapshot of which the last piece has not arrived.
#[derive(Debug, Clone)]
struct Pending<K, V> {
    at: Position,
    entries: BTreeMap<K, V>,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied<K> {
    /// Nothing yet: a piece of a snapshot was put aside.
    Pending,
    /// The snapshot is whole and has replaced everything.
    Replaced,
    /// The entries of these keys have changed, come or gone.
    Changed(Vec<K>),
}

/// Why a push cannot be applied. The entries stay as they are and [`View::position`] is none from here on: end
/// the session, and open another from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Resync {
    /// A delta for another revision, or of another run of the sender, or one that leads nowhere.
    #[error("a delta from revision {previous} to {revision} does not follow the view at {}", at_text(.at))]
    Gap {
        /// Where the view stood.
        at: Option<u64>,
        /// Where the delta begins.
        previous: u64,
        /// Where it ends.
        revision: u64,
    },
    /// A piece that continues no snapshot.
    #[error("a piece of a snapshot at revision {revision} came without its beginning")]
    LoosePiece {
        /// The snapshot's revision.
        revision: u64,
    },
    /// The sender's table is larger than this node takes.
    #[error("the sender's table has more than the {entries_max} entries this node takes")]
    Full {
        /// The bound.
        entries_max: usize,
    },
}

fn at_text(at: &Option<u64>) -> String {
    at.map_or_else(|| "no revision".to_owned(), |revision| format!("revision {revision}"))
}

impl<K: Ord + Clone, V> View<K, V> {
    /// An empty view of at most `entries_max` entries; while a snapshot arrives up to twice as many are held.
    pub fn new(entries_max: usize) -> Self {
        View { entries: BTreeMap::new(), at: None, pending: None, entries_max }
    }

    /// Forgets a half-received snapshot of an earlier session and says where to resume; none asks for a
    /// snapshot.
    pub fn begin_session(&mut self) -> Option<Position> {
        self.pending = None;
        self.at
    }

    /// Where the view stands; none before the first whole snapshot and after an error.
    pub fn position(&self) -> Option<Position> {
        self.at
    }

    /// The copy, as of the last whole snapshot or delta.
    pub fn entries(&self) -> &BTreeMap<K, V> {
        &self.entries
    }

    /// Applies the next push of the sender's run `incarnation`.
    ///
    /// # Errors
    /// [`Resync`] when it does not fit what was received before. Every further push but the beginning of a
    /// snapshot is refused, too.
    pub fn apply(&mut self, incarnation: Incarnation, push: Push<K, V>) -> Result<Applied<K>, Resync> {
        let applied = match push {
            Push::Snapshot(piece) => self.apply_piece(incarnation, piece),
            Push::Delta(delta) => self.apply_delta(incarnation, delta),
        };
        if applied.is_err() {
            self.at = None;
            self.pending = None;
        }
        applied
    }

    fn apply_piece(&mut self, incarnation: Incarnation, piece: Piece<K, V>) -> Result<Applied<K>, Resync> {
        let at = Position { incarnation, revision: piece.revision };
        let mut pending = match self.pending.take() {
            _ if piece.first => Pending { at, entries: BTreeMap::new() },
            Some(pending) if pending.at == at => pending,
            _ => return Err(Resync::LoosePiece { revision: piece.revision }),
        };
        pending.entries.extend(piece.entries);
        if pending.entries.len() > self.entries_max {
            return Err(Resync::Full { entries_max: self.entries_max });
        }
        if !piece.done {
            self.pending = Some(pending);
            return Ok(Applied::Pending);
        }
        self.entries = pending.entries;
        self.at = Some(at);
        Ok(Applied::Replaced)
    }

    fn apply_delta(&mut self, incarnation: Incarnation, delta: Delta<K, V>) -> Result<Applied<K>, Resync> {
        let follows = Some(Position { incarnation, revision: delta.previous }) == self.at
            && self.pending.is_none()
            && delta.revision > delta.previous;
        if !follows {
            let at = self.at.map(|at| at.revision);
            return Err(Resync::Gap { at, previous: delta.previous, revision: delta.revision });
        }
        let keys = delta.changed.iter().map(|(key, _)| key.clone()).chain(delta.removed.iter().cloned());
        let touched: Vec<K> = keys.collect();
        let changed: BTreeSet<&K> = delta.changed.iter().map(|(key, _)| key).collect();
        let added = changed.iter().filter(|key| !self.entries.contains_key(**key)).count();
        let removed: BTreeSet<&K> = delta.removed.iter().filter(|key| !changed.contains(key)).collect();
        let gone = removed.iter().filter(|key| self.entries.contains_key(**key)).count();
        if self.entries.len() + added - gone > self.entries_max {
            return Err(Resync::Full { entries_max: self.entries_max });
        }
        for key in &delta.removed {
            self.entries.remove(key);
        }
        self.entries.extend(delta.changed);
        self.at = Some(Position { incarnation, revision: delta.revision });
        Ok(Applied::Changed(touched))
    }
}
