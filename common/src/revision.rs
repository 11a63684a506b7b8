//! Snapshots and deltas of a table by revision, for both ends: [`Log`] sends, [`View`] receives.
//!
//! A [`Log`] is a table that counts its changes: every change raises its revision by one and is remembered as
//! the *last* change of its key. A receiver at revision r therefore needs one entry per key changed since r,
//! whatever happened in between: deltas are coalesced by nature, and a slow reader costs a [`Cursor`] and no
//! queue. Removals are remembered as tombstones, a bounded number of them; a receiver older than the oldest
//! forgotten one (the floor), of another run of the sender, or from the future starts from a snapshot.
//!
//! # Pieces
//!
//! Snapshots and deltas leave in pieces of about [`PIECE_BYTES`], because whoever encodes a message keeps the
//! memory of its largest. Neither holds the table still nor copies it:
//!
//! - A snapshot walks the *living* table in the order of its keys and says the revision at which it began. What
//!   changes behind the walk comes in the deltas that follow from that revision; what changes before it is
//!   in the snapshot already and comes once more. Entries are whole, so coming twice does no harm.
//! - A delta takes changes in the order of their revisions as far as the piece allows, and says how far it got.
//!
//! So a receiver's table equals the sender's whenever it has caught up (`revision` equals the sender's), and on
//! the way each key only ever moves forward. A key whose last change lies ahead may still show an older value:
//! that is what "has not caught up" means.
//!
//! # Filters
//!
//! A receiver may be shown a filtered table: the filter maps an entry to what this receiver may see of it, and
//! depends on receiver and entry alone. It must show a key always or never to one receiver, since a change that
//! is filtered away is passed over, not announced as a removal. Revisions stay those of the whole table.
//!
//! It does not encode, send or decide when to send. Source: SPEC P3.

mod log;
#[cfg(test)]
mod tests;
mod view;

pub use log::{Cursor, Log};
pub use view::{Applied, Resync, View};

use crate::id::Incarnation;

/// About how many bytes of entries go into one push; one entry goes whole however large it is.
///
/// 4 KiB keeps a session at 33 KiB of a server's memory instead of 107.
pub const PIECE_BYTES: usize = 4 * 1024;

/// Where a receiver stands. Revisions count within one run of the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The sender's run.
    pub incarnation: Incarnation,
    /// Its revision up to which everything has arrived.
    pub revision: u64,
}

/// One message from a [`Log`] to a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push<K, V> {
    /// A part of a snapshot.
    Snapshot(Piece<K, V>),
    /// Changes since a revision.
    Delta(Delta<K, V>),
}

impl<K, V> Push<K, V> {
    /// Where the receiver stands after it; for a snapshot, after its last piece.
    pub fn revision(&self) -> u64 {
        match self {
            Push::Snapshot(piece) => piece.revision,
            Push::Delta(delta) => delta.revision,
        }
    }
}

/// A part of a snapshot. All parts together replace the receiver's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<K, V> {
    /// The sender's revision when the snapshot began; the same in every piece.
    pub revision: u64,
    /// The first piece: whatever was received of an earlier snapshot is void.
    pub first: bool,
    /// The last piece.
    pub done: bool,
    /// Some of the entries, in the order of their keys.
    pub entries: Vec<(K, V)>,
}

/// The changes between two revisions, each key at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Applies to a receiver at this revision only.
    pub previous: u64,
    /// Where the receiver stands afterwards; greater than `previous`.
    pub revision: u64,
    /// Added or changed, whole.
    pub changed: Vec<(K, V)>,
    /// No longer there.
    pub removed: Vec<K>,
}
