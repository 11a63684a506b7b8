//! Whether a node is who its certificate says: its key against the one its Id is bound to.
//!
//! A certificate alone opens nothing. After every handshake, resumed or not, the shell takes Id and key from
//! the certificate and asks here. The bindings themselves are replicated. Source: SPEC I2, I6, I7.

use std::time::Duration;

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

/// A certificate that is to be followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// Whose it is.
    pub id: NodeId,
    /// Its key, the possession of which was proved with it.
    pub key_hash: KeyHash,
    /// How long it has been over; none while it is not.
    pub expired_for: Option<Duration>,
    /// The key of the certificate that is asked for.
    pub asked: KeyHash,
}

/// Why a certificate is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenewalRefused {
    /// The node is not who it says.
    #[error(transparent)]
    Identity(#[from] IdentityRefused),
    /// It asks for a certificate of another key.
    #[error("the request is for key {asked}, the certificate has {shown}: a renewal keeps the key")]
    OtherKey {
        /// The key in the request.
        asked: KeyHash,
        /// The key in the certificate.
        shown: KeyHash,
    },
    /// Its certificate has been over for too long.
    #[error(
        "the certificate of {id} expired {} s ago, more than the {} s within which it is renewed: enrol it again with a \
         join token", over.as_secs(), grace.as_secs()
    )]
    TooOld {
        /// Whose it is.
        id: NodeId,
        /// For how long it has been over.
        over: Duration,
        /// For how long it may have been.
        grace: Duration,
    },
}

impl RenewalRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            RenewalRefused::Identity(refused) => refused.code(),
            RenewalRefused::OtherKey { .. } => ErrorCode::BadRequest,
            RenewalRefused::TooOld { .. } => ErrorCode::CertificateExpired,
        }
    }
}

/// The identity that gets another certificate: who is bound and not revoked, keeps its key, and shows a certificate that is
/// not over for longer than `grace`. Which CA has signed that one is not asked: a node that was away while the CA was
/// changed is known by its key, like any other. No quorum is needed, and none is asked (SPEC I5).
///
/// # Errors
/// When it gets none.
pub fn check_renewal<'a>(
    state: &'a ClusterState,
    renewal: &Renewal,
    grace: Duration,
) -> Result<&'a IdentityRecord, RenewalRefused> {
    let &Renewal { id, key_hash, expired_for, asked } = renewal;
    let record = check_identity(state, id, key_hash)?;
    if asked != key_hash {
        return Err(RenewalRefused::OtherKey { asked, shown: key_hash });
    }
    match expired_for {
        Some(over) if over > grace => Err(RenewalRefused::TooOld { id, over, grace }),
        _ => Ok(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::Revocation;
    use p2p_common::{ClusterId, Epoch, NodeKind, UnixMs};
    use uuid::Uuid;

    fn record(id: NodeId, key_hash: KeyHash) -> IdentityRecord {
        IdentityRecord::new(id, "p".to_owned(), key_hash, UnixMs(0))
    }

    #[test]
    fn the_key_decides() {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        let key_hash = KeyHash([1; 32]);
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(9)), Epoch(0), Vec::new());
        let refused = check_identity(&state, id, key_hash).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unauthenticated);
        state.identities.insert(id, record(id, key_hash));
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

    #[test]
    fn who_is_bound_gets_another_certificate_of_the_same_key_within_the_grace() {
        const GRACE: Duration = Duration::from_secs(100);
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
        let key_hash = KeyHash([1; 32]);
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(9)), Epoch(0), Vec::new());
        let good = Renewal { id, key_hash, expired_for: None, asked: key_hash };
        let unknown = check_renewal(&state, &good, GRACE).unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::Unauthenticated);
        state.identities.insert(id, record(id, key_hash));
        let over = |secs| Some(Duration::from_secs(secs));
        let other = KeyHash([2; 32]);
        for (renewal, code) in [
            (good, None),
            (Renewal { expired_for: over(100), ..good }, None),
            (Renewal { expired_for: over(101), ..good }, Some(ErrorCode::CertificateExpired)),
            (Renewal { asked: other, ..good }, Some(ErrorCode::BadRequest)),
            (Renewal { key_hash: other, asked: other, ..good }, Some(ErrorCode::IdTaken)),
        ] {
            let refused = check_renewal(&state, &renewal, GRACE).err();
            assert_eq!(refused.map(|refused| refused.code()), code, "{renewal:?}");
        }
    }
}
