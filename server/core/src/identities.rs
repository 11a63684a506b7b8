//! Whether a node is who its certificate says: its key against the one its Id is bound to.
//!
//! A certificate alone opens nothing. After every handshake, resumed or not, the shell takes Id and key from
//! the certificate and asks here. The bindings themselves are replicated. Source: SPEC I2, I6, I7.

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::IdentityRecord;
use p2p_common::{ErrorCode, KeyHash, NodeId};

/// Why a node is not who it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefused {
    /// The Id is bound to no key here.
    #[error(
        "{id} is not enrolled as far as this server knows: try again in a moment if it has just been, else \
         enrol it with a join token"
    )]
    Unknown {
        /// The claimed Id.
        id: NodeId,
    },
    /// The key opens nothing any more.
    #[error("{id} is revoked: `p2p-server identity reset {id}` frees the Id for another key")]
    Revoked {
        /// The claimed Id.
        id: NodeId,
    },
    /// The Id belongs to another key.
    #[error(
        "{id} is bound to key {bound}, not to {shown}: start the node with the data directory that holds its key, or under another Id"
    )]
    OtherKey {
        /// The claimed Id.
        id: NodeId,
        /// The key the Id is bound to.
        bound: KeyHash,
        /// The key in the certificate.
        shown: KeyHash,
    },
}

impl IdentityRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            IdentityRefused::Unknown { .. } => ErrorCode::Unauthenticated,
            IdentityRefused::Revoked { .. } => ErrorCode::Revoked,
            IdentityRefused::OtherKey { .. } => ErrorCode::IdTaken,
        }
    }
}

/// The identity of `id`, when `shown` is its key.
///
/// # Errors
/// When the key or the Id is revoked, the Id is not enrolled, or is bound to another key.
pub fn check_identity(
    state: &ClusterState,
    id: NodeId,
    shown: KeyHash,
) -> Result<&IdentityRecord, IdentityRefused> {
    if state.is_revoked(&shown) {
        return Err(IdentityRefused::Revoked { id });
    }
    match state.identities.get(&id) {
        None => Err(IdentityRefused::Unknown { id }),
        Some(record) if record.key_hash != shown => {
            Err(IdentityRefused::OtherKey { id, bound: record.key_hash, shown })
        }
        Some(record) if record.revoked => Err(IdentityRefused::Revoked { id }),
        Some(record) => Ok(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::Revocation;
    use p2p_common::{ClusterId, Epoch, NodeKind, UnixMs};
    use uuid::Uuid;

    #[test]
    fn the_key_decides() {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        let key_hash = KeyHash([1; 32]);
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(9)), Epoch(0), Vec::new());
        let refused = check_identity(&state, id, key_hash).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unauthenticated);
        let record = IdentityRecord::new(id, "p".to_owned(), key_hash, UnixMs(0));
        state.identities.insert(id, record);
        assert_eq!(check_identity(&state, id, key_hash).map(|record| record.id), Ok(id));
        let refused = check_identity(&state, id, KeyHash([2; 32])).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::IdTaken);
        assert!(refused.to_string().contains(&id.to_string()), "{refused}");
        // Whosever it was, and also while the Id is bound to another key.
        let name = String::new();
        let revocation = Revocation {
            number: 1,
            id,
            key_hash: KeyHash([2; 32]),
            name,
            reason: String::new(),
            revoked_at: UnixMs(1),
        };
        state.revocations.insert(revocation.key_hash, revocation);
        let refused = check_identity(&state, id, KeyHash([2; 32])).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Revoked);
        assert!(check_identity(&state, id, key_hash).is_ok());
        state.identities.get_mut(&id).unwrap().revoked = true;
        assert_eq!(check_identity(&state, id, key_hash).unwrap_err(), IdentityRefused::Revoked { id });
    }
}
