//! What every wire between nodes shares: the [`Hello`] that comes first (SPEC T6), and the frames of a
//! tunnel between two Peers ([`tunnel`]), and the messages of a mesh link ([`link`]).

use crate::error::ErrorCode;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId};

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
    /// Another epoch.
    #[error("the sender lives in epoch {theirs}, this node in {ours}")]
    Epoch {
        /// The sender's epoch.
        theirs: Epoch,
        /// Our epoch.
        ours: Epoch,
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
            HelloError::Epoch { .. } => ErrorCode::WrongEpoch,
            HelloError::Recipient { .. } => ErrorCode::WrongRecipient,
            HelloError::Identity { .. } => ErrorCode::Unauthenticated,
        }
    }
}

impl Hello {
    /// Checks a received hello and settles the wire version: the newest both speak.
    ///
    /// # Errors
    /// The first mismatch, in the order version, cluster, identity, recipient, epoch.
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
        if self.epoch != expected.epoch {
            return Err(HelloError::Epoch { theirs: self.epoch, ours: expected.epoch });
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
        let expected = Expected { cluster_id, epoch: Epoch(1), me, authenticated: from };
        let good = Hello {
            versions: VERSIONS,
            cluster_id: Some(cluster_id),
            from,
            to: Some(me),
            epoch: Epoch(1),
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
        ] {
            assert_eq!(bad.check(&expected).unwrap_err().code(), code, "{bad:?}");
        }
    }
}
