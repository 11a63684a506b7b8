//! What must hold in every world, checked while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::Outcome;
use p2p_common::member::RaftId;
use p2p_server_raft::{Committed, CommittedKind, EntryKind, LogEntry};

/// A client's request and which try of it; the data of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub request: u64,
    pub number: u64,
}

impl Attempt {
    pub fn encode(self) -> Vec<u8> {
        [self.request, self.number].map(u64::to_be_bytes).concat()
    }

    pub fn decode(data: &[u8]) -> Self {
        let word = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
        Attempt { request: word(0), number: word(8) }
    }
}

/// Everything seen so far by anyone.
#[derive(Debug, Default)]
pub struct Oracle {
    leader_of_term: BTreeMap<u64, RaftId>,
    /// (index, term) -> the entry and the term of the one before it, where known.
    entries: BTreeMap<(u64, u64), (LogEntry, Option<u64>)>,
    committed: BTreeMap<u64, (u64, CommittedKind)>,
    outcomes: BTreeMap<u64, Outcome>,
    states: BTreeMap<u64, Arc<ClusterState>>,
    /// Attempts that were said to have no effect.
    without_effect: BTreeSet<Attempt>,
    with_effect: BTreeSet<Attempt>,
    acknowledged: BTreeMap<u64, u64>,
    acknowledged_max: u64,
    pub reads: u64,
    pub member_changes: u64,
}

impl Oracle {
    /// Whole states are compared at every so many indexes, and wherever a snapshot is taken or installed.
    pub const STATE_EVERY: u64 = 16;

    pub fn on_leader(&mut self, term: u64, id: RaftId) {
        let known = *self.leader_of_term.entry(term).or_insert(id);
        assert_eq!(known, id, "two leaders in term {term}");
    }

    /// Log matching: the same (index, term) means the same entry and the same log before it. It concerns what was
    /// stored or sent; what a node only thought of before a crash does not count.
    pub fn on_entries(&mut self, mut before: Option<(u64, u64)>, entries: &[LogEntry]) {
        for entry in entries {
            let before_term = before.filter(|(index, _)| index + 1 == entry.index).map(|(_, term)| term);
            let key = (entry.index, entry.term);
            let known = self.entries.entry(key).or_insert_with(|| (entry.clone(), before_term));
            assert_eq!(known.0, *entry, "logs differ at {key:?}");
            match (known.1, before_term) {
                (Some(a), Some(b)) => assert_eq!(a, b, "logs differ before {key:?}"),
                (None, Some(_)) => known.1 = before_term,
                _ => {}
            }
            before = Some(key);
        }
    }

    pub fn on_committed(&mut self, id: RaftId, committed: &Committed) {
        let entry = (committed.term, committed.kind.clone());
        let known = self.committed.entry(committed.index).or_insert_with(|| entry.clone());
        assert_eq!(*known, entry, "node {id} applies another entry at {}", committed.index);
        if let CommittedKind::Normal(data) = &committed.kind {
            let attempt = Attempt::decode(data);
            self.with_effect.insert(attempt);
            assert!(!self.without_effect.contains(&attempt), "{attempt:?} was said to have no effect");
        }
        if let Some((entry, _)) = self.entries.get(&(committed.index, committed.term)) {
            let is_change = matches!(committed.kind, CommittedKind::Membership { .. });
            assert_eq!(entry.kind == EntryKind::Membership, is_change);
        }
    }

    pub fn on_outcome(&mut self, id: RaftId, index: u64, outcome: &Outcome) {
        let known = self.outcomes.entry(index).or_insert_with(|| outcome.clone());
        assert_eq!(known, outcome, "node {id} has another outcome at {index}");
    }

    pub fn on_state(&mut self, id: RaftId, index: u64, state: &Arc<ClusterState>) {
        let known = self.states.entry(index).or_insert_with(|| state.clone());
        assert_eq!(known, state, "node {id} has another state at {index}");
    }

    pub fn on_acknowledged(&mut self, attempt: Attempt, index: u64, outcome: &Outcome) {
        assert_eq!(*outcome, Outcome::Done, "{attempt:?} was applied twice");
        self.acknowledged.entry(attempt.request).or_insert(index);
        self.acknowledged_max = self.acknowledged_max.max(index);
    }

    pub fn on_no_effect(&mut self, attempt: Attempt) {
        assert!(!self.with_effect.contains(&attempt), "{attempt:?} has an effect");
        self.without_effect.insert(attempt);
    }

    /// A read that begins now must see everything up to here.
    pub fn read_begins(&self) -> u64 {
        self.acknowledged_max
    }

    pub fn commits(&self) -> u64 {
        self.committed.len() as u64
    }

    pub fn acknowledged(&self) -> impl Iterator<Item = u64> {
        self.acknowledged.keys().copied()
    }

    pub fn acknowledged_max(&self) -> u64 {
        self.acknowledged_max
    }

    pub fn elections(&self) -> u64 {
        self.leader_of_term.len() as u64
    }
}
