//! What the core asks its owner to do, in the order in which it must be done.

use bytes::Bytes;
use p2p_common::member::RaftId;

use crate::log::{HardState, LogEntry};
use crate::membership::Membership;
use crate::message::Message;
use crate::proposals::{ProposalFailure, ProposalToken};
use crate::reads::{ReadFailure, ReadToken};
use crate::snapshot::{Compaction, Snapshot};

/// One thing to do. Finish it before polling the next; only the sending of messages may be left to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Hand these to the transport, which never blocks. For every [`Message`] of kind `Snapshot` the owner later
    /// calls `handle_snapshot_report`, whatever became of it.
    Send(Vec<Message>),
    /// Write this and sync it, then call `handle_persisted`. Nothing that depends on it comes out before; others
    /// may, further writes too.
    Persist(Persist),
    /// Replace the state machine by this snapshot, which is on stable storage already. The stored state
    /// machine may follow later: a start with an older one installs the stored snapshot again.
    Install(Snapshot),
    /// Apply these to the state machine, in order. They are committed and on stable storage here.
    Apply(Vec<Committed>),
    /// This proposal has failed; its waiter is told. A proposal that succeeds comes back in
    /// [`Committed::proposal`].
    ProposalFailed {
        /// Which proposal.
        token: ProposalToken,
        /// Why, and what is known of its effect.
        failure: ProposalFailure,
    },
    /// The state machine, as it is now, answers this read linearizably.
    ReadReady {
        /// Which read.
        token: ReadToken,
        /// The commit index the read was confirmed at; applied here.
        index: u64,
    },
    /// This read has failed; nothing was read.
    ReadFailed {
        /// Which read.
        token: ReadToken,
        /// Why.
        failure: ReadFailure,
    },
    /// Role, leader or term changed.
    Status(Status),
    /// Take the state machine as it is now (it stands at `index`), encode it elsewhere and call
    /// `handle_snapshot_built` or `handle_snapshot_failed`. One at a time.
    BuildSnapshot {
        /// What the state machine has applied.
        index: u64,
    },
    /// Store the snapshot durably in place of the former one, then delete the entries it names. Needs no
    /// acknowledgement: until it is done the old snapshot and its entries serve as well. The stored state
    /// machine must be durable up to the snapshot's index, or the snapshot be stored first.
    Compact(Compaction),
}

/// What must be on stable storage before the node speaks on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persist {
    /// To be given back to `handle_persisted`.
    pub number: u64,
    /// Replaces the stored snapshot *and every stored entry*.
    pub snapshot: Option<Snapshot>,
    /// Delete every stored entry with an index at or above the first of these, then store these. Empty: the log
    /// stays.
    pub entries: Vec<LogEntry>,
    /// Replaces the stored one.
    ///
    /// It comes with every write, for its commit index: members count as changed once a change is *applied*, so
    /// a node that restarts with a later change in its log must know that the former was committed. Otherwise it
    /// could elect itself by members long gone.
    pub hard_state: HardState,
}

/// A committed entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its index.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// What it holds.
    pub kind: CommittedKind,
    /// The proposal of this node that waits for it.
    pub proposal: Option<ProposalToken>,
}

/// What a committed entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommittedKind {
    /// A command, as it was proposed.
    Normal(Bytes),
    /// A change of the members has taken effect.
    Membership {
        /// The members from here on; to be stored with the applied index.
        membership: Membership,
        /// The bytes given with the proposal; empty when a joint configuration was left.
        context: Bytes,
    },
    /// A new leader's first entry.
    Empty,
}

/// A node's part in the current term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Follows, or looks for a leader. Learners are always followers.
    Follower,
    /// Asks whether it would be elected, without a new term.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Role, leader and term of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// This node's role.
    pub role: Role,
    /// The leader, as far as this node knows; none when nothing was heard of it for two election time-outs.
    pub leader: Option<RaftId>,
    /// The term.
    pub term: u64,
    /// This node leads and has applied an entry of its own term: its state is current, it may answer as Master.
    pub leader_ready: bool,
}
