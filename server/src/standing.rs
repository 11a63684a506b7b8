//! [`Standing`]: whether a node is welcome, by the replicated state and by emergencies that are not in it yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::command::Revocation;
use p2p_common::{KeyHash, NodeId, RequestId};
use p2p_server_core::{IdentityRefused, check_identity};
use tokio::sync::watch;

use crate::raft::View;

/// A revocation ahead of its replication (SPEC I7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emergency {
    /// Under which it is replicated, whoever proposes it.
    pub request_id: RequestId,
    /// As it will be replicated; its number is 0.
    pub revocation: Revocation,
}

/// Emergencies by key.
pub type Emergencies = BTreeMap<KeyHash, Emergency>;

/// Whether nodes are welcome, now. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Standing {
    view: watch::Receiver<Arc<View>>,
    emergencies: watch::Receiver<Arc<Emergencies>>,
}

impl Standing {
    /// By what these publish.
    pub fn new(view: watch::Receiver<Arc<View>>, emergencies: watch::Receiver<Arc<Emergencies>>) -> Self {
        Standing { view, emergencies }
    }

    /// Whether `key_hash` opens nothing any more.
    pub fn is_revoked(&self, key_hash: &KeyHash) -> bool {
        // An emergency is forgotten after the state has it: asked in this order nobody slips through.
        self.emergencies.borrow().contains_key(key_hash) || self.view.borrow().state.is_revoked(key_hash)
    }

    /// Whether `id` may come with this key: as a Server of table C, or as an identity.
    pub fn is_bound(&self, id: NodeId, key_hash: KeyHash) -> bool {
        !self.emergencies.borrow().contains_key(&key_hash) && self.view.borrow().is_bound(id, key_hash)
    }

    /// Why `id` may not come with this key.
    ///
    /// # Errors
    /// When it may not.
    pub fn check(&self, id: NodeId, key_hash: KeyHash) -> Result<(), IdentityRefused> {
        if self.emergencies.borrow().contains_key(&key_hash) {
            return Err(IdentityRefused::Revoked { id });
        }
        check_identity(&self.view.borrow().state, id, key_hash).map(|_| ())
    }

    /// The emergencies, the newest only.
    pub fn watch_emergencies(&self) -> watch::Receiver<Arc<Emergencies>> {
        self.emergencies.clone()
    }

    /// The replicated state and the rest of raft's view, the newest only.
    pub fn watch_view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}
