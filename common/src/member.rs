//! Table C, the Servers of a cluster: [`Member`], and the Master's [`MasterTitle`].

use crate::addr::HostPort;
use crate::id::{ClusterId, Epoch, KeyHash, NodeId};
use crate::units::UnixMs;

/// A Server's number inside raft. Never used again once its disk is lost.
pub type RaftId = u64;

/// A Server as table C holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its Id; starts with `S`.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Where its API port is reached, best first; 1 to [`Member::ADDRESSES_MAX`].
    pub addresses: Vec<HostPort>,
    /// Its room or region.
    pub zone: String,
    /// Its number inside raft.
    pub raft_id: RaftId,
    /// The key its certificates must carry (SPEC I5).
    pub key_hash: KeyHash,
}

impl Member {
    /// At most this many addresses per Server.
    pub const ADDRESSES_MAX: usize = 16;
    /// At most this many bytes in a name or a zone.
    pub const NAME_MAX_BYTES: usize = 128;
}

/// At most this many Servers in a cluster.
pub const MEMBERS_MAX: usize = 64;

/// A Server's part in the raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberRole {
    /// Counts for the quorum.
    Voter,
    /// Holds the state, does not count.
    Learner,
    /// In table C, not yet in the raft configuration.
    Joining,
}

/// The Master as applications see it (SPEC C6). Ordered by (epoch, term): an answer never goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterTitle {
    /// Whose title it is.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Where its API port is reached.
    pub addresses: Vec<HostPort>,
    /// The fencing token: no two Masters share (epoch, term).
    pub term: u64,
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// Which history of it.
    pub epoch: Epoch,
    /// When the answering Server learned of it.
    pub since: UnixMs,
    /// No quorum stands behind it: no fencing, no commit (SPEC C5).
    pub provisional: bool,
}
