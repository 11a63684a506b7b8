//! What every wire between nodes shares: the [`Hello`] that comes first (SPEC T6), and the frames of a
//! tunnel between two Peers ([`tunnel`]), and the messages of a mesh link ([`link`]).

use std::cmp::Ordering;

use crate::error::ErrorCode;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId, NodeKind, RecoveryId};
use crate::member::RaftId;

pub mod link;
pub mod tunnel;

/// The oldest and the newest wire version this build speaks.
pub const VERSIONS: (u32, u32) = (1, 1);

/// The first message on every wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest and newest wire version the sender speaks.
    pub versions: (u32, u32),
    /// The sender's cluster; none before enrolment.
    pub cluster_id: Option<ClusterId>,
    /// Who sends.
    pub from: NodeId,
    /// For whom; none when the sender dialled an address without knowing who is there.
    pub to: Option<NodeId>,
    /// The sender's epoch; 0 before enrolment.
    pub epoch: Epoch,
    /// Which forced recovery began that epoch; none before the first one. Only Servers say and check it.
    pub recovery_id: Option<RecoveryId>,
    /// The sender's number inside raft; 0 for whoever has none (yet).
    pub raft_id: RaftId,
    /// The sender's run.
    pub incarnation: Incarnation,
    /// Feature bits; none is defined yet, unknown ones are ignored.
    pub features: u64,
}

/// What the receiver of a [`Hello`] knows of itself and of the certificate behind the connection.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The receiver's cluster.
    pub cluster_id: ClusterId,
    /// The receiver's epoch.
    pub epoch: Epoch,
    /// Which forced recovery began it.
    pub recovery_id: Option<RecoveryId>,
    /// The receiver.
    pub me: NodeId,
    /// The Id in the sender's certificate.
    pub authenticated: NodeId,
}

/// Why a [`Hello`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// No common version.
    #[error(
        "wire versions do not meet: the sender speaks {theirs:?}, this node {ours:?}; upgrade the older one"
    )]
    Version {
        /// The sender's range.
        theirs: (u32, u32),
        /// Our range.
        ours: (u32, u32),
    },
    /// Another cluster.
    #[error("the sender belongs to cluster {theirs}, this node to {ours}")]
    Cluster {
        /// The sender's cluster.
        theirs: String,
        /// Our cluster.
        ours: ClusterId,
    },
    /// The sender's history was ended by a forced recovery.
    #[error(
        "the sender lives in epoch {theirs}, which a forced recovery has ended: this node lives in {ours}"
    )]
    EpochOver {
        /// The sender's epoch.
        theirs: Epoch,
        /// Our epoch.
        ours: Epoch,
    },
    /// This node's history was.
    #[error(
        "the sender lives in epoch {theirs}; a forced recovery has ended epoch {ours}, in which this node lives"
    )]
    EpochAhead {
        /// The sender's epoch.
        theirs: Epoch,
        /// Our epoch.
        ours: Epoch,
    },
    /// Two recoveries have begun the same epoch.
    #[error(
        "epoch {epoch} was begun by two forced recoveries, {theirs} at the sender and {ours} here: both sides go on \
         without each other until an operator discards one"
    )]
    SplitHistory {
        /// The epoch of both.
        epoch: Epoch,
        /// The sender's recovery.
        theirs: String,
        /// Our recovery.
        ours: String,
    },
    /// The sender has left table C; raft ids are never given out again.
    #[error("{from} is no member of the cluster any more: raft id {raft_id} was removed")]
    Removed {
        /// The sender.
        from: NodeId,
        /// What it was inside raft.
        raft_id: RaftId,
    },
    /// The receiver's table C does not have the sender, not yet perhaps.
    #[error("{from} with raft id {raft_id} is not in this server's member table, not yet or no more")]
    NotMember {
        /// The sender.
        from: NodeId,
        /// What it says it is inside raft.
        raft_id: RaftId,
    },
    /// For somebody else.
    #[error("the message is for {to}, this node is {me}")]
    Recipient {
        /// For whom it is.
        to: NodeId,
        /// Who got it.
        me: NodeId,
    },
    /// The sender claims an Id its certificate does not carry.
    #[error("the sender says it is {from}, its certificate says {authenticated}")]
    Identity {
        /// The claim.
        from: NodeId,
        /// The certificate.
        authenticated: NodeId,
    },
}

impl HelloError {
    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            HelloError::Version { .. } => ErrorCode::VersionMismatch,
            HelloError::Cluster { .. } => ErrorCode::WrongCluster,
            HelloError::EpochOver { .. } | HelloError::EpochAhead { .. } => ErrorCode::WrongEpoch,
            HelloError::SplitHistory { .. } => ErrorCode::SplitHistory,
            HelloError::Removed { .. } => ErrorCode::RemovedMember,
            HelloError::NotMember { .. } => ErrorCode::Forbidden,
            HelloError::Recipient { .. } => ErrorCode::WrongRecipient,
            HelloError::Identity { .. } => ErrorCode::Unauthenticated,
        }
    }
}

impl Hello {
    /// Checks a received hello and settles the wire version: the newest both speak.
    ///
    /// # Errors
    /// The first mismatch, in the order version, cluster, identity, recipient, epoch, recovery.
    pub fn check(&self, expected: &Expected) -> Result<u32, HelloError> {
        let version = self.versions.1.min(VERSIONS.1);
        if version < self.versions.0.max(VERSIONS.0) {
            return Err(HelloError::Version { theirs: self.versions, ours: VERSIONS });
        }
        if self.cluster_id != Some(expected.cluster_id) {
            let theirs = self.cluster_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            return Err(HelloError::Cluster { theirs, ours: expected.cluster_id });
        }
        if self.from != expected.authenticated {
            return Err(HelloError::Identity { from: self.from, authenticated: expected.authenticated });
        }
        if let Some(to) = self.to.filter(|to| *to != expected.me) {
            return Err(HelloError::Recipient { to, me: expected.me });
        }
        let (theirs, ours) = (self.epoch, expected.epoch);
        match theirs.cmp(&ours) {
            Ordering::Less => return Err(HelloError::EpochOver { theirs, ours }),
            Ordering::Greater => return Err(HelloError::EpochAhead { theirs, ours }),
            Ordering::Equal => {}
        }
        // Whoever has no raft id has no part in a history: Peers follow the Servers' epochs, joiners take it over.
        let has_part = self.raft_id != 0 && expected.me.kind() == NodeKind::Server;
        if has_part && self.recovery_id != expected.recovery_id {
            let text = |id: Option<RecoveryId>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let (theirs, ours) = (text(self.recovery_id), text(expected.recovery_id));
            return Err(HelloError::SplitHistory { epoch: expected.epoch, theirs, ours });
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeKind;
    use uuid::Uuid;

    fn id(kind: NodeKind, n: u128) -> NodeId {
        NodeId::new(kind, Uuid::from_u128(n))
    }

    #[test]
    fn every_mismatch_has_its_own_code() {
        let cluster_id = ClusterId::new(Uuid::from_u128(1));
        let me = id(NodeKind::Server, 2);
        let from = id(NodeKind::Peer, 3);
        let expected = Expected { cluster_id, epoch: Epoch(1), recovery_id: None, me, authenticated: from };
        let good = Hello {
            versions: VERSIONS,
            cluster_id: Some(cluster_id),
            from,
            to: Some(me),
            epoch: Epoch(1),
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(4)),
            features: 0,
        };
        assert_eq!(good.check(&expected), Ok(VERSIONS.1));
        assert_eq!(Hello { to: None, ..good.clone() }.check(&expected), Ok(VERSIONS.1));
        let newer = Hello { versions: (1, 9), features: u64::MAX, ..good.clone() };
        assert_eq!(newer.check(&expected), Ok(VERSIONS.1));
        for (bad, code) in [
            (Hello { versions: (2, 3), ..good.clone() }, ErrorCode::VersionMismatch),
            (Hello { versions: (3, 2), ..good.clone() }, ErrorCode::VersionMismatch),
            (Hello { cluster_id: None, ..good.clone() }, ErrorCode::WrongCluster),
            (Hello { from: me, ..good.clone() }, ErrorCode::Unauthenticated),
            (Hello { to: Some(from), ..good.clone() }, ErrorCode::WrongRecipient),
            (Hello { epoch: Epoch(2), ..good.clone() }, ErrorCode::WrongEpoch),
            (Hello { epoch: Epoch(0), ..good.clone() }, ErrorCode::WrongEpoch),
        ] {
            assert_eq!(bad.check(&expected).unwrap_err().code(), code, "{bad:?}");
        }
    }

    #[test]
    fn servers_of_two_histories_are_told_apart() {
        let cluster_id = ClusterId::new(Uuid::from_u128(1));
        let (me, from) = (id(NodeKind::Server, 2), id(NodeKind::Server, 3));
        let recovery = |n| Some(RecoveryId::new(Uuid::from_u128(n)));
        let hello = |epoch, recovery_id| Hello {
            versions: VERSIONS,
            cluster_id: Some(cluster_id),
            from,
            to: Some(me),
            epoch: Epoch(epoch),
            recovery_id,
            raft_id: 3,
            incarnation: Incarnation::new(Uuid::from_u128(4)),
            features: 0,
        };
        let expected = |epoch, recovery_id| Expected {
            cluster_id,
            epoch: Epoch(epoch),
            recovery_id,
            me,
            authenticated: from,
        };
        let check = |theirs: (u64, Option<RecoveryId>), ours: (u64, Option<RecoveryId>)| {
            hello(theirs.0, theirs.1).check(&expected(ours.0, ours.1)).map_err(|e| match e {
                HelloError::EpochOver { .. } => "over",
                HelloError::EpochAhead { .. } => "ahead",
                HelloError::SplitHistory { .. } => "split",
                _ => "other",
            })
        };
        for (theirs, ours, becomes) in [
            ((1, None), (1, None), Ok(VERSIONS.1)),
            ((2, recovery(7)), (2, recovery(7)), Ok(VERSIONS.1)),
            ((2, recovery(7)), (2, recovery(8)), Err("split")),
            ((2, None), (2, recovery(8)), Err("split")),
            ((1, None), (2, recovery(8)), Err("over")),
            ((3, recovery(9)), (2, recovery(8)), Err("ahead")),
        ] {
            assert_eq!(check(theirs, ours), becomes, "{theirs:?} to {ours:?}");
        }
    }
}
