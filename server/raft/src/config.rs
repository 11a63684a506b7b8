//! Settings of the raft core, each with its reason.

use p2p_common::member::RaftId;

/// How often the owner calls `handle_tick`. Ten of these make an election time-out of 0.5 to 1 s.
pub const TICK_MS: u64 = 50;

/// The longest command in bytes. The store keeps no value over 64 KiB; an entry needs some room around it.
pub const COMMAND_BYTES_MAX: usize = 60 * 1024;

/// Settings of a [`RaftCore`](crate::RaftCore). `RaftConfig::new` gives the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// This Server's number inside raft; not 0.
    pub raft_id: RaftId,
    /// Drives election time-outs and read contexts. Must differ from start to start of the same Server (a late
    /// answer to an earlier life's read must not match), and come from a seed in simulations.
    pub seed: u64,
    /// Ticks without a word from the leader before an election. The actual time-out is longer: by rank among the
    /// voters at first, drawn up to twice this when an election failed.
    pub election_ticks: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u64,
    /// Entries in one append message, in bytes. raft-rs sends one entry a message when this is 0.
    pub message_max_bytes: u64,
    /// Append messages on their way to one follower before the leader waits.
    pub inflight_messages_max: usize,
    /// Entries handed out for applying at once, in bytes, so that a long catch-up stays interruptible.
    pub apply_max_bytes: u64,
    /// Writes handed out and not yet stored; beyond, proposals gather for the next one. The owner stores all that
    /// it was handed with one sync: the more may wait, the less it matters how long a sync takes.
    pub writes_in_flight_max: usize,
    /// Bytes proposed and not yet committed; beyond, proposals fail as busy.
    pub uncommitted_max_bytes: u64,
    /// Proposals waiting for their result; beyond, proposals fail as busy.
    pub proposals_max: usize,
    /// Reads waiting for their index; beyond, reads fail as busy.
    pub reads_max: usize,
    /// ReadIndex rounds under way at once; reads that arrive meanwhile share the next one.
    pub read_rounds_max: usize,
    /// A ReadIndex round unanswered for this many ticks is asked again: raft drops it silently when there is no
    /// leader or the leader has not committed in its term.
    pub read_retry_ticks: u64,
    /// A read unanswered for this many ticks fails.
    pub read_timeout_ticks: u64,
    /// Applied entries between two snapshots.
    pub snapshot_every_entries: u64,
    /// Entries kept behind a snapshot, so that a follower a little behind needs no snapshot.
    pub keep_entries: u64,
    /// A joint configuration older than this many ticks is left by an explicit proposal: the automatic one does
    /// not fire when the leader changed in between.
    pub joint_leave_ticks: u64,
    /// A learner at most this many entries behind counts as caught up.
    pub caught_up_entries: u64,
}

impl RaftConfig {
    /// The defaults for `raft_id`; `seed` must be fresh at every start.
    pub fn new(raft_id: RaftId, seed: u64) -> Self {
        RaftConfig {
            raft_id,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 1,
            message_max_bytes: 1024 * 1024,
            inflight_messages_max: 256,
            apply_max_bytes: 4 * 1024 * 1024,
            writes_in_flight_max: 64,
            uncommitted_max_bytes: 64 * 1024 * 1024,
            proposals_max: 4_096,
            reads_max: 4_096,
            read_rounds_max: 2,
            read_retry_ticks: 4,
            read_timeout_ticks: 60,
            snapshot_every_entries: 10_000,
            keep_entries: 1_000,
            joint_leave_ticks: 20,
            caught_up_entries: 256,
        }
    }

    pub(crate) fn to_raft(&self, applied: u64) -> raft::Config {
        raft::Config {
            id: self.raft_id,
            election_tick: self.election_ticks as usize,
            heartbeat_tick: self.heartbeat_ticks as usize,
            applied,
            max_size_per_msg: self.message_max_bytes,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            max_uncommitted_size: self.uncommitted_max_bytes,
            max_committed_size_per_ready: self.apply_max_bytes,
            ..raft::Config::default()
        }
    }
}
