//! The log since the last compaction, in memory, as raft reads it.
//!
//! Stable storage follows what [`Output`](crate::Output) tells and is read once, at the start; here is what raft
//! believes to be stored, including the write that is under way.

use std::cell::Cell;

use bytes::Bytes;
use p2p_common::member::RaftId;
use raft::eraftpb::{self, EntryType};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::membership::Membership;
use crate::snapshot::Snapshot;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A command, or nothing (a new leader's first entry).
    Normal,
    /// A change of the members.
    Membership,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// What it holds.
    pub kind: EntryKind,
    /// The command, or the encoded change of the members.
    pub data: Bytes,
    /// Given with a change of the members, else empty.
    pub context: Bytes,
}

impl LogEntry {
    pub(crate) fn to_raft(&self) -> eraftpb::Entry {
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(match self.kind {
            EntryKind::Normal => EntryType::EntryNormal,
            EntryKind::Membership => EntryType::EntryConfChangeV2,
        });
        entry.index = self.index;
        entry.term = self.term;
        entry.data = self.data.clone();
        entry.context = self.context.clone();
        entry
    }

    pub(crate) fn from_raft(entry: &eraftpb::Entry) -> Self {
        LogEntry {
            index: entry.index,
            term: entry.term,
            // The one-node form of a change (EntryConfChange) is never proposed here.
            kind: match entry.get_entry_type() {
                EntryType::EntryNormal => EntryKind::Normal,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryKind::Membership,
            },
            data: entry.data.clone(),
            context: entry.context.clone(),
        }
    }
}

/// Term, vote and commit index as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The highest term seen.
    pub term: u64,
    /// Whom this node voted for in it; 0 for nobody.
    pub vote: RaftId,
    /// A lower bound of the commit index; not every advance is stored.
    pub commit: u64,
}

impl HardState {
    pub(crate) fn from_raft(state: &eraftpb::HardState) -> Self {
        HardState { term: state.term, vote: state.vote, commit: state.commit }
    }

    fn to_raft(self) -> eraftpb::HardState {
        eraftpb::HardState { term: self.term, vote: self.vote, commit: self.commit, ..Default::default() }
    }
}

/// How far the stored state machine has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The last applied index.
    pub index: u64,
    /// The members as of that index.
    pub membership: Membership,
}

/// What stable storage holds at a start. The default is a joiner's: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// The last stored one.
    pub hard_state: HardState,
    /// The last stored one; the founder's first is [`founding_write`](crate::founding_write)'s.
    pub snapshot: Option<Snapshot>,
    /// All stored entries, ascending without gaps. They may begin below the snapshot's index.
    pub entries: Vec<LogEntry>,
    /// What the stored state machine has applied; `None` when it is empty or older than the snapshot, which is
    /// then the first thing installed.
    pub applied: Option<Applied>,
}

/// Why what was loaded cannot be a log this core has written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadLog {
    #[error("entries without the snapshot they follow")]
    NoSnapshot,
    #[error("a gap before or inside the entries, at index {0}")]
    Gap(u64),
    #[error("the state machine has applied {applied}, the log ends at {last}")]
    AppliedAhead { applied: u64, last: u64 },
    #[error("the members contradict each other")]
    Members,
}

/// The entries after a known position, the snapshot at or after it, and the hard state.
pub(crate) struct MemoryLog {
    hard_state: eraftpb::HardState,
    /// What raft starts from; later the core keeps the members.
    start_membership: Membership,
    snapshot: Option<Snapshot>,
    /// Index and term of the entry before `entries[0]`.
    before: (u64, u64),
    entries: Vec<eraftpb::Entry>,
    /// A follower waits for a snapshot newer than ours. Set inside raft's read-only look-ups.
    wanted: Cell<Option<RaftId>>,
}

impl MemoryLog {
    /// Takes over what was loaded; also returns the applied index raft starts from.
    pub(crate) fn load(loaded: Loaded) -> Result<(Self, u64), BadLog> {
        let Loaded { hard_state, snapshot, entries, applied } = loaded;
        let snapshot_at = snapshot.as_ref().map_or((0, 0), |s| (s.index, s.term));
        if snapshot.is_none() && (!entries.is_empty() || applied.is_some()) {
            return Err(BadLog::NoSnapshot);
        }
        let mut entries: Vec<_> = entries.iter().map(LogEntry::to_raft).collect();
        for pair in entries.windows(2) {
            if pair[1].index != pair[0].index + 1 {
                return Err(BadLog::Gap(pair[1].index));
            }
        }
        let mut before = snapshot_at;
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            if first.index > snapshot_at.0 + 1 || last.index < snapshot_at.0 {
                return Err(BadLog::Gap(first.index));
            }
            if first.index <= snapshot_at.0 {
                // The first kept entry only tells the term before the next one.
                before = (first.index, first.term);
                entries.remove(0);
            }
        }
        let last = entries.last().map_or(before.0, |e| e.index).max(snapshot_at.0);
        let (applied, membership) = match (applied, &snapshot) {
            (Some(applied), Some(snapshot)) if applied.index >= snapshot.index => {
                (applied.index, applied.membership)
            }
            (_, Some(snapshot)) => (snapshot.index, snapshot.membership.clone()),
            (_, None) => (0, Membership::default()),
        };
        if applied > last {
            return Err(BadLog::AppliedAhead { applied, last });
        }
        if snapshot.is_some() && !membership.is_consistent() {
            return Err(BadLog::Members);
        }
        let mut hard_state = hard_state.to_raft();
        // Commit alone is not worth a sync, so the stored one may lag behind what was applied.
        hard_state.commit = hard_state.commit.max(applied);
        if hard_state.commit > last {
            return Err(BadLog::AppliedAhead { applied: hard_state.commit, last });
        }
        let log = MemoryLog {
            hard_state,
            start_membership: membership,
            snapshot,
            before,
            entries,
            wanted: Cell::new(None),
        };
        Ok((log, applied))
    }

    pub(crate) fn start_membership(&self) -> &Membership {
        &self.start_membership
    }

    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |s| s.index)
    }

    /// Whoever waits for a snapshot newer than ours, once.
    pub(crate) fn take_wanted(&self) -> Option<RaftId> {
        self.wanted.take()
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: eraftpb::HardState) {
        self.hard_state = hard_state;
    }

    /// Everything here is replaced by a snapshot from the leader.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        self.before = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.snapshot = Some(snapshot);
    }

    /// Appends, after cutting off what conflicts.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.checked_sub(self.before.0 + 1);
        let keep = keep.expect("raft never overwrites a compacted entry") as usize;
        assert!(keep <= self.entries.len(), "raft appends without a gap");
        self.entries.truncate(keep);
        self.entries.extend_from_slice(entries);
    }

    /// Replaces the snapshot by a newer one of our own and forgets the entries up to `keep_entries` before it.
    /// Returns the index of the first entry that stays on stable storage.
    pub(crate) fn compact(&mut self, snapshot: Snapshot, keep_entries: u64) -> u64 {
        let through = snapshot.index.saturating_sub(keep_entries).max(self.before.0);
        if through > self.before.0 {
            let gone = (through - self.before.0) as usize;
            self.before = (through, self.entries[gone - 1].term);
            self.entries.drain(..gone);
        }
        self.snapshot = Some(snapshot);
        through
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    fn position(&self, index: u64) -> usize {
        (index - self.before.0 - 1) as usize
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.start_membership.to_raft()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.before.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let mut entries = self.entries[self.position(low)..self.position(high)].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match index {
            _ if index == self.before.0 => Ok(self.before.1),
            _ if index < self.before.0 => Err(StorageError::Compacted.into()),
            _ if index > self.last() => Err(StorageError::Unavailable.into()),
            _ => Ok(self.entries[self.position(index)].term),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: RaftId) -> raft::Result<eraftpb::Snapshot> {
        match &self.snapshot {
            // A receiver throws away a snapshot that does not name it: a joiner needs one taken after it was
            // added.
            Some(s) if s.index >= request_index && s.membership.contains(to) => Ok(s.to_raft()),
            _ => {
                self.wanted.set(Some(to));
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}
