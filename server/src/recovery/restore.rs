//! `restore`: a cluster is founded from a backup, on an empty data directory.
//!
//! ```text
//! backup ─checked─► state of the new cluster ─► restored.backup ─► run founds with it ─► (removed)
//! ```
//!
//! Tokens, identities, settings and what was remembered of requests are kept; the members are not: the founder is the
//! only one, and no address of the backup is ever dialled. The epoch rises and a recovery id is drawn, so that what is
//! left of the old cluster, or another restore of the same file, is refused.
//!
//! The cluster gets a new id and a new CA, so that it can live beside the old one. Its nodes enrol again: certificates
//! and tokens name a cluster. With the old id, and the CA key, which no backup holds, they go on as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;
use p2p_common::shared::SharedMap;
use p2p_common::{ClusterId, Epoch, RecoveryId};
use p2p_runtime::ca::{CaKeyFiles, ClusterCa};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, FileMode, TrustBundle};
use zeroize::Zeroizing;

use super::backup::{Backup, Provenance};
use crate::admission::random_uuid;

/// The state a founder is to begin with: a backup file, as it was changed by the restore.
const STAGED_FILE: &str = "restored.backup";
/// The trust bundle; what the CA key is checked against.
const TRUST_FILE: &str = "ca.pem";
/// What a restore that was interrupted, or one that was not run yet, may have left.
const OF_A_RESTORE: &[&str] = &[
    "lock",
    STAGED_FILE,
    ".restored.backup.new",
    "ca-key.pem",
    ".ca-key.pem.new",
    TRUST_FILE,
    ".ca.pem.new",
];

/// How the old cluster's identity is kept.
#[derive(Debug, Clone)]
pub struct KeepCluster {
    /// The CA's private key (`ca-key.pem` of a Server of that cluster).
    pub ca_key: PathBuf,
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    /// Where the state comes from.
    pub provenance: Provenance,
    /// The state as the cluster will begin.
    pub state: ClusterState,
    /// How many Servers the backup had.
    pub members_before: usize,
}

/// Prepares the empty directory `data`: the next `run` on it founds a cluster from the backup `from`.
///
/// # Errors
/// When the directory is in use or not empty, the backup is not whole, or the CA key is not that of the cluster.
/// Nothing is there that a run would use then.
pub fn restore(data: &Path, from: &Path, keep: Option<&KeepCluster>) -> Result<Restored, Exit> {
    let refused = |e: &dyn std::fmt::Display| Exit::failed(format!("{}: {e}", from.display()));
    let Backup { provenance, mut state } = Backup::read(from).map_err(|e| refused(&e))?;
    let dir = DataDir::open(data).map_err(|e| Exit::failed(chain(&e)))?;
    check_empty(&dir)?;
    let members_before = state.members.len();
    state.epoch = Epoch(state.epoch.0 + 1);
    state.recovery_id = Some(RecoveryId::new(random_uuid()?));
    if !state.members.is_empty() {
        state.members = SharedMap::new();
        state.members_version += 1;
    }
    match keep {
        Some(keep) => keep_ca(&dir, &state, keep)?,
        None => {
            state.cluster_id = ClusterId::new(random_uuid()?);
            // The founder makes the CA.
            state.trust_bundle.clear();
            state.signer = 0;
        }
    }
    StagedState(state.clone()).store(&dir, provenance.clone())?;
    Ok(Restored { provenance, state, members_before })
}

fn check_empty(dir: &DataDir) -> Result<(), Exit> {
    let failed = |e: std::io::Error| Exit::failed(format!("cannot list {}: {e}", dir.path().display()));
    for item in fs::read_dir(dir.path()).map_err(failed)? {
        let name = item.map_err(failed)?.file_name();
        if !OF_A_RESTORE.iter().any(|known| name == *known) {
            return Err(Exit::usage(format!(
                "{} is not empty: it has {}. A cluster is restored into an empty directory",
                dir.path().display(),
                name.display()
            )));
        }
    }
    Ok(())
}

/// Puts the CA beside the state, if the key is its.
fn keep_ca(dir: &DataDir, state: &ClusterState, keep: &KeepCluster) -> Result<(), Exit> {
    let path = keep.ca_key.display();
    let key = fs::read(&keep.ca_key).map(Zeroizing::new);
    let key = key.map_err(|e| Exit::usage(format!("cannot read the CA key {path}: {e}")))?;
    let key = std::str::from_utf8(&key).map_err(|_| Exit::usage(format!("{path} is no key in PEM")))?;
    let trust = TrustBundle::from_der(state.trust_bundle.iter().cloned());
    let trust = trust.map_err(|e| Exit::failed(format!("the CA in the backup: {}", chain(&e))))?;
    let ca = ClusterCa::from_parts(state.cluster_id, key, &trust)
        .map_err(|e| Exit::usage(format!("{path} is not the CA key of this cluster: {}", chain(&e))))?;
    dir.write(TRUST_FILE, trust.to_pem().as_bytes(), FileMode::Public)
        .map_err(|e| Exit::failed(chain(&e)))?;
    // The first `run` encrypts it, when it is given a secret.
    CaKeyFiles::default().keep(dir, &[Arc::new(ca)]).map_err(|e| Exit::failed(chain(&e)))
}

/// The state that waits for its founder. Without a trust bundle the founder makes a CA.
#[derive(Debug)]
pub(crate) struct StagedState(pub(crate) ClusterState);

impl StagedState {
    /// What a data directory holds; `None` when nothing was restored there, or it has been run.
    pub(crate) fn load(dir: &DataDir) -> Result<Option<Self>, Exit> {
        let path = dir.view().join(STAGED_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let backup = Backup::read(&path);
        let damaged = |e| {
            Exit::needs_operator(format!("{}: {e}. Restore again into an empty directory", path.display()))
        };
        Ok(Some(StagedState(backup.map_err(damaged)?.state)))
    }

    fn store(self, dir: &DataDir, provenance: Provenance) -> Result<(), Exit> {
        let file: Vec<u8> = Backup { provenance, state: self.0 }.into_pieces().flatten().collect();
        dir.write(STAGED_FILE, &file, FileMode::Private).map_err(|e| Exit::failed(chain(&e)))
    }

    /// Forgets it, durably: the cluster is founded.
    pub(crate) fn forget(dir: &DataDir) -> Result<(), Exit> {
        dir.remove(STAGED_FILE).map_err(|e| Exit::failed(chain(&e)))
    }
}
