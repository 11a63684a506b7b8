//! A disk that keeps what was synced and forgets a suffix of the rest at a crash.

use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;
use p2p_server_raft::{Applied, Compaction, HardState, Loaded, LogEntry, Membership, Persist, Snapshot};
use rand::Rng;
use rand::rngs::SmallRng;

/// The stored state machine.
#[derive(Debug, Clone)]
pub struct StoredState {
    pub applied: u64,
    pub membership: Membership,
    pub state: Arc<ClusterState>,
}

/// A write, atomic by itself.
#[derive(Debug, Clone)]
pub enum Write {
    Raft(Persist),
    Compact(Compaction),
    State(StoredState),
}

#[derive(Debug, Clone, Default)]
struct Stored {
    hard_state: HardState,
    snapshot: Option<Snapshot>,
    entries: Vec<LogEntry>,
    state: Option<StoredState>,
}

/// What is stored, and writes that are not synced yet.
#[derive(Debug, Default)]
pub struct Disk {
    stored: Stored,
    unsynced: Vec<Write>,
    /// Log writes that have reached the disk since they were last asked for.
    reached: Vec<Persist>,
    /// A planted mistake: commit indexes are not stored.
    forgets_commit: bool,
}

impl Disk {
    pub fn new(forgets_commit: bool) -> Self {
        Disk { forgets_commit, ..Disk::default() }
    }

    pub fn write(&mut self, write: Write) {
        self.unsynced.push(write);
    }

    pub fn sync(&mut self) {
        self.keep(self.unsynced.len());
    }

    /// Syncs the log write `number` and all before it.
    pub fn sync_through(&mut self, number: u64) {
        let is_it = |write: &Write| matches!(write, Write::Raft(persist) if persist.number == number);
        let place = self.unsynced.iter().position(is_it).expect("it was written");
        self.keep(place + 1);
    }

    /// Some of the unsynced writes survive, in order, the rest is gone.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        self.keep(rng.random_range(0..=self.unsynced.len()));
        self.unsynced.clear();
    }

    pub fn load(&self) -> (Loaded, Option<StoredState>) {
        let Stored { hard_state, snapshot, entries, state } = self.stored.clone();
        let applied = state.as_ref().map(|s| Applied { index: s.applied, membership: s.membership.clone() });
        (Loaded { hard_state, snapshot, entries, applied }, state)
    }

    pub fn take_reached(&mut self) -> Vec<Persist> {
        std::mem::take(&mut self.reached)
    }

    fn keep(&mut self, count: usize) {
        for write in self.unsynced.drain(..count) {
            match write {
                Write::Raft(persist) => {
                    self.reached.push(persist.clone());
                    if let Some(snapshot) = persist.snapshot {
                        self.stored.snapshot = Some(snapshot);
                        self.stored.entries.clear();
                    }
                    if let Some(first) = persist.entries.first() {
                        self.stored.entries.retain(|entry| entry.index < first.index);
                    }
                    self.stored.entries.extend(persist.entries);
                    self.stored.hard_state = persist.hard_state;
                    if self.forgets_commit {
                        self.stored.hard_state.commit = 0;
                    }
                }
                Write::Compact(compaction) => {
                    self.stored.entries.retain(|entry| entry.index >= compaction.first_kept);
                    self.stored.snapshot = Some(compaction.snapshot);
                }
                Write::State(state) => self.stored.state = Some(state),
            }
        }
    }
}
