//! How a Server comes into its cluster: founds it, joins it, or comes back to it (SPEC C2).
//!
//! ```text
//! empty ──bootstrap──► CA key ─► certificate ─────────────────► store begun ─► raft-id ─► run
//! empty ──join───────► certificate (Enroll) ─► member (Join) ─► store begun ─► raft-id ─► run
//! rejoin ─────────────────────────────────────► member (Join) ─► store begun ─► raft-id ─► run
//! restore ───► (CA key) ─► certificate ───────────────────────► store begun ─► raft-id ─► run
//! ```
//!
//! The last two were prepared by a command of [`crate::recovery`].
//!
//! Each arrow is durable before the next begins and safe to repeat: whatever was reached when the process was
//! killed, the same command goes on from there. What was begun is never begun anew: a Server whose store is gone
//! has forgotten what it acknowledged, and must not come back under its old raft id (SPEC C9).

mod found;
mod join;
mod joining;

use std::sync::Arc;

use p2p_common::addr::HostPort;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::IdentityRecord;
use p2p_common::{Epoch, Incarnation, NodeKind, UnixMs};
use p2p_runtime::ca::{CaKeyFiles, ClusterCa, OwnCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{DataDir, FileMode, NodeIdentity};
use p2p_runtime::tls::Credentials;
use slog::{Logger, info};
use uuid::Uuid;

use crate::config::ServerConfig;
use crate::recovery::{RAFT_ID_FILE, STORE, StagedState, advice};
use crate::store::{Store, StoreError, Stored};

pub(crate) use joining::Joining;

/// The epoch of a new cluster; 0 stands for "none yet" in a hello.
const FIRST_EPOCH: Epoch = Epoch(1);

/// What admission works with.
#[derive(Debug)]
pub struct Applicant<'a> {
    /// The locked data directory.
    pub dir: &'a DataDir,
    /// What the operator wants.
    pub config: &'a ServerConfig,
    /// Where others reach this Server.
    pub addresses: &'a [HostPort],
    /// This run.
    pub incarnation: Incarnation,
    /// Where to report.
    pub log: &'a Logger,
}

/// A Server that belongs to a cluster.
#[derive(Debug)]
pub struct Admitted {
    /// Who it is.
    pub identity: NodeIdentity,
    /// What it shows and trusts.
    pub credentials: Arc<Credentials>,
    /// How its CA keys are kept.
    pub ca_files: CaKeyFiles,
    /// The CAs whose keys are here already.
    pub cas: Vec<Arc<ClusterCa>>,
    /// Its open store.
    pub store: Store,
    /// What the store holds.
    pub stored: Stored,
    /// What it goes by until its log brings the replicated state.
    pub state: ClusterState,
    /// It was founded or has joined just now.
    pub is_new: bool,
}

/// Brings a Server into its cluster, or back to it. Waits for introducers as long as it takes; dropping the
/// future is safe at any time.
///
/// # Errors
/// When nobody said what to do, an introducer refuses for good, or only an operator can go on.
pub async fn admit(applicant: Applicant<'_>) -> Result<Admitted, Exit> {
    let Applicant { dir, config, .. } = applicant;
    let failed = |e: &dyn std::error::Error| Exit::failed(e.to_string());
    let is_empty = NodeIdentity::load(dir.view()).map_err(|e| failed(&e))?.is_none();
    let staged = StagedState::load(dir)?;
    if is_empty && staged.is_none() && !config.bootstrap && config.join.is_empty() {
        return Err(nothing_said(config));
    }
    let ca_files = CaKeyFiles::new(config.ca_secret.clone());
    ca_files.check(dir).map_err(|e| Exit::usage(chain(&e)))?;
    let own_ca = own_ca(&applicant)?;
    let joining = Joining::load(dir.view())?;
    if joining.as_ref().is_some_and(|joining| joining.discarding.is_some()) {
        return Err(interrupted(config));
    }
    let name = config.name.as_deref();
    let mut identity = NodeIdentity::load_or_create(dir, NodeKind::Server, config.id, name)
        .map_err(|e| Exit::failed(chain(&e)))?;
    let begun = dir.view().read(RAFT_ID_FILE).map_err(|e| failed(&e))?.is_some();
    if begun && !dir.view().join(STORE).exists() {
        return Err(store_lost(config));
    }
    let unusable = |e: StoreError| store_unusable(config, &e);
    let mut store = Store::open(&dir.view().join(STORE)).map_err(unusable)?;
    let stored = store.load().map_err(unusable)?;
    let is_new = stored.is_none();
    let stored = match stored {
        Some(_) if identity.enrolment().is_none() => return Err(identity_lost(config)),
        Some(stored) => stored,
        None if begun => return Err(store_lost(config)),
        None => {
            let may_found = joining.is_none();
            let founding = may_found
                && (staged.is_some() || found::wanted(&applicant, &ca_files, &identity)?)
                || join::join(&applicant, &mut identity, &mut store, joining).await?
                    == join::Joined::NobodyThere;
            if founding {
                let cas = found::Cas { files: &ca_files, own: own_ca };
                found::found(&applicant, &cas, &mut identity, &mut store, staged)?;
            }
            let stored = store.load().map_err(unusable)?;
            stored.ok_or_else(|| Exit::failed("the store is empty after it was begun"))?
        }
    };
    if !begun {
        let text = format!("{}\n", stored.origin.raft_id);
        dir.write(RAFT_ID_FILE, text.as_bytes(), FileMode::Private).map_err(|e| failed(&e))?;
    }
    // Before raft says anything: from then on this store is never begun again.
    Joining::forget(dir)?;
    StagedState::forget(dir)?;
    identity.keep_epoch(dir, stored.origin.epoch).map_err(|e| Exit::failed(chain(&e)))?;
    let enrolment = identity.enrolment().ok_or_else(|| identity_lost(config))?;
    let credentials = Credentials::new(&identity, enrolment)
        .map_err(|e| Exit::failed(format!("the certificate cannot be used: {e}")))?;
    let cas = ca_files.load(dir.view(), enrolment.cluster_id).map_err(|e| Exit::failed(chain(&e)))?;
    let state = first_state(&identity, &stored);
    info!(applicant.log, "belongs to a cluster"; "id" => identity.id(), "cluster_id" => %enrolment.cluster_id,
        "raft_id" => stored.origin.raft_id, "new" => is_new);
    Ok(Admitted { ca_files, cas, credentials, store, stored, state, is_new, identity })
}

/// The CA the operator brings for a cluster that is not founded yet.
fn own_ca(applicant: &Applicant<'_>) -> Result<Option<OwnCa>, Exit> {
    let Some((certificate, key)) = &applicant.config.own_ca else { return Ok(None) };
    let identity = NodeIdentity::load(applicant.dir.view()).map_err(|e| Exit::failed(chain(&e)))?;
    // The files may be gone when the cluster has been founded: it has its own copy of the key.
    if identity.is_some_and(|identity| identity.enrolment().is_some()) {
        return Ok(None);
    }
    if !applicant.config.bootstrap {
        return Err(Exit::usage(
            "--ca-cert and --ca-key are for the Server that begins a cluster: add --bootstrap, or leave them out",
        ));
    }
    let own = OwnCa::read(certificate, key, applicant.config.ca_secret.as_ref(), now());
    own.map(Some)
        .map_err(|e| Exit::usage(format!("the CA of --ca-cert and --ca-key cannot be used: {}", chain(&e))))
}

/// What a Server goes by before its log brings the state: which history it belongs to, and for a joiner the Servers
/// its introducer named, so that it knows who may speak to it.
fn first_state(identity: &NodeIdentity, stored: &Stored) -> ClusterState {
    let enrolment = identity.enrolment().expect("whoever comes here is enrolled");
    let trust = enrolment.trust.certificates().iter().map(|certificate| certificate.to_vec()).collect();
    let mut state = ClusterState::new(enrolment.cluster_id, stored.origin.epoch, trust);
    state.recovery_id = stored.origin.recovery_id;
    for member in &stored.origin.members {
        let (name, enrolled_at) = (member.name.clone(), UnixMs(0));
        let record = IdentityRecord::new(member.id, name, member.key_hash, enrolled_at);
        state.identities.insert(member.id, record);
        state.members.insert(member.id, member.clone());
    }
    state
}

fn nothing_said(config: &ServerConfig) -> Exit {
    let data = config.data.display();
    Exit::usage(format!(
        "the data directory {data} is empty, and neither --bootstrap nor --join says what to do.\n\
         Begin a new cluster:\n  p2p-server run --data {data} --bootstrap\n\
         Or join one, with a token that `p2p-server token create --role server` prints on one of its servers:\n  \
         p2p-server run --data {data} --join HOST:PORT --token TOKEN"
    ))
}

fn interrupted(config: &ServerConfig) -> Exit {
    let data = config.data.display();
    Exit::needs_operator(format!(
        "`p2p-server rejoin` was interrupted in {data}: type `p2p-server rejoin --discard-state --data {data}` again"
    ))
}

fn store_unusable(config: &ServerConfig, error: &StoreError) -> Exit {
    Exit::needs_operator(match error {
        StoreError::Write(_) => error.to_string(),
        _ => format!("{error}. {}", advice(&config.data)),
    })
}

fn store_lost(config: &ServerConfig) -> Exit {
    Exit::needs_operator(format!(
        "{} belongs to a server that has run, but its store is gone, and with it what it acknowledged. {}",
        config.data.display(),
        advice(&config.data)
    ))
}

fn identity_lost(config: &ServerConfig) -> Exit {
    let data = config.data.display();
    Exit::needs_operator(format!(
        "{data} has a store but no certificate: files are missing. Bring node.json, key.pem, cert.pem and ca.pem \
         back, or move {data} aside and start with an empty directory, --join and a new token"
    ))
}

/// The names a certificate of this Server gets.
fn certificate_names(addresses: &[HostPort]) -> Vec<String> {
    addresses.iter().map(|address| address.host().to_owned()).collect()
}

/// The wall time for what is signed and stored now.
fn now() -> UnixMs {
    unix_now()
}

/// A request id, cluster id or recovery id nobody else draws.
pub(crate) fn random_uuid() -> Result<Uuid, Exit> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Exit::failed(format!("the system gives no random numbers: {e}")))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

#[cfg(test)]
mod tests;
