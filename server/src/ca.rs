//! The CA as one Server has it: its keys, what the replicated bundle says about them, and its change (SPEC I6).
//!
//! ```text
//! raft's view ─ newer bundle ─► CaTask: key files ─► ca.pem ─► handshakes ─► CaKeys published: enrolment, renewal
//!                                  └─ a key is not here ─► another Server is asked for it
//!                                  └─ leads, every member holds both ─► the next CA signs (p2p_server_core::SwitchCare)
//! probes ◄── what is here: keys held, own certificate, sessions by CA ── [`CaStore::here`]
//! ```
//!
//! Whatever is reached when a process is killed, the same task goes on from there: the bundle is replicated, a key is
//! durable before anybody depends on it, and the position of the bundle in `ca.pem` is kept, so that an older one, which a
//! log that is applied again shows, is never followed.
//!
//! [`CaStore`] is shared by the services; [`CaTask`] alone changes files and handshakes. The own certificate is
//! [`crate::renewal`]'s.

mod task;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2p_common::cluster_state::{ClusterState, TRUSTED_CAS_MAX};
use p2p_common::{NodeId, UnixMs};
use p2p_runtime::ca::{CaError, CaKeyFiles, CaKeys, ClusterCa};
use p2p_runtime::identity::{CaFingerprint, DataDir, TrustPosition};
use p2p_runtime::tls::Credentials;
use p2p_server_core::SessionId;
use tokio::sync::watch;

pub(crate) use task::{CaTask, Follower};

/// What a Server says of one CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaHere {
    /// Which one.
    pub fingerprint: CaFingerprint,
    /// Its key is there.
    pub has_key: bool,
    /// It has signed the certificate that Server shows.
    pub is_own: bool,
    /// Sessions there whose Peers show certificates of it.
    pub sessions: u32,
}

impl CaHere {
    /// A Server knows no more.
    pub const MAX: usize = TRUSTED_CAS_MAX;
}

/// How new the bundle of a state is.
pub(crate) fn position(state: &ClusterState) -> TrustPosition {
    TrustPosition { epoch: state.epoch, version: state.trust_version }
}

/// The CA that signs, as the state says.
pub(crate) fn signer(state: &ClusterState) -> Option<CaFingerprint> {
    state.trust_bundle.get(state.signer).map(|der| CaFingerprint::of(der))
}

/// The CAs of this Server. Cheap to copy.
#[derive(Debug, Clone)]
pub struct CaStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: Arc<DataDir>,
    files: CaKeyFiles,
    credentials: Arc<Credentials>,
    keys: watch::Sender<CaKeys>,
    /// By session: whose it is, and which CA has signed what its Peer shows, as it says.
    shown: Mutex<BTreeMap<SessionId, (NodeId, Option<CaFingerprint>)>>,
}

impl CaStore {
    /// Begins with `cas`, the CAs of `ca.pem` whose keys are here.
    pub fn new(
        dir: Arc<DataDir>,
        files: CaKeyFiles,
        cas: Vec<Arc<ClusterCa>>,
        credentials: Arc<Credentials>,
    ) -> Self {
        // Which of two signs, the replicated state will say.
        let signer = match cas.as_slice() {
            [one] if credentials.trusts() == 1 => Some(one.fingerprint()),
            _ => None,
        };
        let keys = watch::Sender::new(CaKeys::new(cas, signer));
        CaStore { shared: Arc::new(Shared { dir, files, credentials, keys, shown: Mutex::default() }) }
    }

    /// The keys that are here.
    pub fn keys(&self) -> CaKeys {
        self.shared.keys.borrow().clone()
    }

    /// The keys, as they change.
    pub fn watch_keys(&self) -> watch::Receiver<CaKeys> {
        self.shared.keys.subscribe()
    }

    /// Replaces the keys.
    pub(crate) fn publish(&self, keys: CaKeys) {
        self.shared.keys.send_replace(keys);
    }

    /// The CA for a change that begins, its key durable here. Blocks on the disk.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn stage(&self, now: UnixMs) -> Result<ClusterCa, CaError> {
        let Shared { dir, files, credentials, .. } = &*self.shared;
        let held = self.keys();
        files.stage(dir, held.held(), |key| ClusterCa::next(credentials.cluster_id(), key, now))
    }

    /// A Peer says which CA has signed what it shows.
    pub(crate) fn hear(&self, session: SessionId, peer: NodeId, signed_by: &[u8]) {
        let fingerprint = <[u8; 32]>::try_from(signed_by).ok().map(CaFingerprint);
        self.shown().insert(session, (peer, fingerprint));
    }

    /// A session is over.
    pub(crate) fn forget(&self, session: SessionId) {
        self.shown().remove(&session);
    }

    /// Whose sessions there are.
    pub(crate) fn online(&self) -> Vec<NodeId> {
        self.shown().values().map(|(peer, _)| *peer).collect()
    }

    /// What is here of the CAs of `state`. A Peer that does not say what it shows counts for the first one, which is the
    /// one to go in a change.
    pub(crate) fn here(&self, state: &ClusterState) -> Vec<CaHere> {
        let (keys, own) = (self.shared.keys.borrow().clone(), self.shared.credentials.issuer());
        let trusted: Vec<_> = state.trust_bundle.iter().map(|der| CaFingerprint::of(der)).collect();
        let mut sessions = vec![0u32; trusted.len()];
        for (_, shown) in self.shown().values() {
            let place = trusted.iter().position(|ca| Some(*ca) == *shown).unwrap_or(0);
            if let Some(count) = sessions.get_mut(place) {
                *count += 1;
            }
        }
        let here = trusted.into_iter().zip(sessions).map(|(fingerprint, sessions)| CaHere {
            fingerprint,
            has_key: keys.get(fingerprint).is_some(),
            is_own: own == Some(fingerprint),
            sessions,
        });
        here.collect()
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<SessionId, (NodeId, Option<CaFingerprint>)>> {
        // A row cannot be left half changed.
        self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
