//! Snapshots of the state machine, and when to take one and forget the log before it.
//!
//! The state machine is taken at the applied index, encoded off the raft thread, then replaces the former
//! snapshot. One snapshot is held in memory, ready to be sent: the replicated state is small (SPEC C3).

use bytes::Bytes;
use p2p_common::member::RaftId;
use raft::eraftpb;

use crate::membership::Membership;

/// The state machine at an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last applied index in it.
    pub index: u64,
    /// The term of the entry at that index.
    pub term: u64,
    /// The members as of that index.
    pub membership: Membership,
    /// The encoded state machine; opaque here.
    pub data: Bytes,
}

impl Snapshot {
    pub(crate) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut snapshot = eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index;
        metadata.term = self.term;
        metadata.set_conf_state(self.membership.to_raft());
        snapshot.data = self.data.clone();
        snapshot
    }

    pub(crate) fn from_raft(snapshot: &eraftpb::Snapshot) -> Self {
        let metadata = snapshot.get_metadata();
        Snapshot {
            index: metadata.index,
            term: metadata.term,
            membership: Membership::from_raft(metadata.get_conf_state()),
            data: snapshot.data.clone(),
        }
    }
}

/// A snapshot and what it makes superfluous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// To be stored.
    pub snapshot: Snapshot,
    /// Entries below this index are deleted. The entry at it stays: its term is needed to match logs.
    pub first_kept: u64,
}

/// Decides when a snapshot is due and remembers the one being built.
#[derive(Debug)]
pub(crate) struct Snapshots {
    every_entries: u64,
    building: Option<Building>,
}

/// The identity of a snapshot whose data is being encoded.
#[derive(Debug)]
pub(crate) struct Building {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) membership: Membership,
}

impl Snapshots {
    pub(crate) fn new(every_entries: u64) -> Self {
        Snapshots { every_entries, building: None }
    }

    /// Whether to begin one: it is due by count, or a follower waits for one newer than the stored.
    pub(crate) fn due(&self, applied: u64, stored: u64, wanted: Option<RaftId>) -> bool {
        let by_count = applied.saturating_sub(stored) >= self.every_entries;
        self.building.is_none() && applied > stored && (by_count || wanted.is_some())
    }

    pub(crate) fn begin(&mut self, building: Building) {
        self.building = Some(building);
    }

    /// Ends the one being built, if it is the one at `index`.
    pub(crate) fn end(&mut self, index: u64) -> Option<Building> {
        self.building.take_if(|building| building.index == index)
    }
}
