//! How a Server came into its cluster: the first thing in its store.

use p2p_common::member::{Member, RaftId};
use p2p_common::{Epoch, RecoveryId};
use p2p_proto::{convert, v1};

/// How this Server came into its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its number inside raft; never used again once this store is lost.
    pub raft_id: RaftId,
    /// Which history of the cluster its log belongs to.
    pub epoch: Epoch,
    /// Which forced recovery began that history; none before the first one.
    pub recovery_id: Option<RecoveryId>,
    /// A joiner's first address book, until the log has brought table C; empty for the founder.
    pub members: Vec<Member>,
    /// Whom a forced recovery of this Server left behind: they may live on, in the history before.
    pub former: Vec<Member>,
}

impl Origin {
    /// A member of a history that knows nobody else yet.
    pub fn new(raft_id: RaftId, epoch: Epoch, recovery_id: Option<RecoveryId>) -> Self {
        Origin { raft_id, epoch, recovery_id, members: Vec::new(), former: Vec::new() }
    }
}

/// As it is stored.
pub fn origin_to(origin: &Origin) -> v1::StoredOrigin {
    v1::StoredOrigin {
        raft_id: origin.raft_id,
        members: Some(convert::member_table_to(0, &origin.members)),
        epoch: origin.epoch.0,
        recovery_id: origin.recovery_id.map(|id| id.to_string()).unwrap_or_default(),
        former: Some(convert::member_table_to(0, &origin.former)),
    }
}

/// From what was stored.
pub fn origin_from(origin: v1::StoredOrigin) -> Result<Origin, convert::ConvertError> {
    Ok(Origin {
        raft_id: origin.raft_id,
        epoch: Epoch(origin.epoch),
        recovery_id: convert::recovery_id(&origin.recovery_id)?,
        members: convert::member_table_from(origin.members)?.1,
        former: convert::member_table_from(origin.former)?.1,
    })
}
