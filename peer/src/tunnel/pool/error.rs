//! Why there is no tunnel.

use p2p_common::{ErrorCode, KeyHash, NodeId};

use crate::tunnel::direct::DialFailures;

/// Why no tunnel could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    /// Not in table E.
    #[error("{0} is not known here: it is connected to no Server this Peer is connected to")]
    Unknown(NodeId),
    /// It does not answer.
    #[error("{id} cannot be reached: {failures}")]
    Unreachable {
        /// Who.
        id: NodeId,
        /// What was tried.
        failures: DialFailures,
    },
    /// It opened the mesh link, is not dialled, and the link is gone.
    #[error("{0} closed the link over which it could be asked for a tunnel")]
    Unlinked(NodeId),
    /// The deadline passed while waiting for a free tunnel.
    #[error("all {max} tunnels to {id} are in use")]
    Exhausted {
        /// To whom.
        id: NodeId,
        /// The bound.
        max: usize,
    },
    /// The deadline passed while dialling.
    #[error("{0} did not answer in time")]
    TimedOut(NodeId),
}

impl PoolError {
    /// The stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            PoolError::Exhausted { .. } => ErrorCode::Exhausted,
            PoolError::TimedOut(_) => ErrorCode::BackendTimeout,
            PoolError::Unknown(_) | PoolError::Unreachable { .. } | PoolError::Unlinked(_) => {
                ErrorCode::OwnerOffline
            }
        }
    }
}

/// Why a tunnel of a remote is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAccepted {
    /// Its key opens nothing any more.
    #[error("{0} is revoked")]
    Revoked(NodeId),
    /// Not in table E.
    #[error("{0} is not known here: no Server this peer is connected to says that it is online")]
    Unknown(NodeId),
    /// Its key is another than table E says.
    #[error("{id} shows key {found}, but is bound to {expected}")]
    OtherKey {
        /// Who.
        id: NodeId,
        /// The key the Id is bound to.
        expected: KeyHash,
        /// The key it showed.
        found: KeyHash,
    },
    /// Too many tunnels.
    #[error("{0} has as many tunnels to here as it may have")]
    TooMany(NodeId),
}

impl NotAccepted {
    /// The stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            NotAccepted::Revoked(_) => ErrorCode::Revoked,
            NotAccepted::Unknown(_) => ErrorCode::Unauthenticated,
            NotAccepted::OtherKey { .. } => ErrorCode::IdTaken,
            NotAccepted::TooMany(_) => ErrorCode::Exhausted,
        }
    }
}
