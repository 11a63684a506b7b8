//! The founding of a cluster: its id, its CA, its first state with one member; from nothing, or from a restored
//! backup.

use std::sync::Arc;

use p2p_common::ClusterId;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::IdentityRecord;
use p2p_common::member::Member;
use p2p_proto::convert;
use p2p_runtime::ca::{CaError, CaKeyFiles, CertificateGrant, ClusterCa, OwnCa};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{Enrolment, NodeIdentity};
use p2p_server_raft::founding_write;
use slog::info;

use super::{Applicant, FIRST_EPOCH, certificate_names, now, random_uuid};
use crate::recovery::StagedState;
use crate::store::{Origin, Store};

/// Where the CA of a new cluster comes from and goes to.
pub(super) struct Cas<'a> {
    /// Where its key is kept.
    pub files: &'a CaKeyFiles,
    /// One that the operator brings; none makes a new one.
    pub own: Option<OwnCa>,
}

/// Whether this Server is to found a cluster without asking anybody: told so, or killed while it did.
pub(super) fn wanted(
    applicant: &Applicant<'_>,
    files: &CaKeyFiles,
    identity: &NodeIdentity,
) -> Result<bool, Exit> {
    match identity.enrolment() {
        None => Ok(applicant.config.bootstrap && applicant.config.join.is_empty()),
        // A joiner gets the CA key after its join only, so an enrolled Server that has it and no store is a founder.
        Some(enrolment) => {
            let cas = files.load(applicant.dir.view(), enrolment.cluster_id);
            Ok(!cas.map_err(|e| Exit::failed(chain(&e)))?.is_empty())
        }
    }
}

/// Founds the cluster: everything is durable when it returns.
pub(super) fn found(
    applicant: &Applicant<'_>,
    cas: &Cas<'_>,
    identity: &mut NodeIdentity,
    store: &mut Store,
    staged: Option<StagedState>,
) -> Result<(), Exit> {
    let restored = staged.map(|StagedState(state)| state);
    if identity.enrolment().is_none() {
        let cluster_id = match &restored {
            Some(state) => state.cluster_id,
            None => ClusterId::new(random_uuid()?),
        };
        // A restored state without a CA gets a new one; the key of one that is kept was put here by the restore.
        let kept = restored.as_ref().is_some_and(|state| !state.trust_bundle.is_empty());
        let enrolment =
            certify(applicant, cas, identity, cluster_id, kept).map_err(|e| Exit::failed(chain(&e)))?;
        identity.enrol(applicant.dir, enrolment).map_err(|e| Exit::failed(chain(&e)))?;
    }
    let enrolment = identity.enrolment().expect("it was just enrolled");
    let state = first_state(applicant, identity, enrolment, restored)?;
    identity.keep_epoch(applicant.dir, state.epoch).map_err(|e| Exit::failed(chain(&e)))?;
    let enrolment = identity.enrolment().expect("it was just enrolled");
    let raft_id = state.members[&identity.id()].raft_id;
    let founding = founding_write(raft_id, convert::encode_state(&state).into());
    let origin = Origin::new(raft_id, state.epoch, state.recovery_id);
    store.begin(&origin, Some(&founding)).map_err(Exit::needs_operator)?;
    info!(applicant.log, "cluster founded"; "cluster_id" => %enrolment.cluster_id, "epoch" => state.epoch.0);
    Ok(())
}

/// The CA, `kept`, brought or new, and this Server's certificate by it. A CA key left by a founder that was killed before it
/// had a certificate is replaced: nobody has seen it.
fn certify(
    applicant: &Applicant<'_>,
    cas: &Cas<'_>,
    identity: &NodeIdentity,
    cluster_id: ClusterId,
    kept: bool,
) -> Result<Enrolment, CaError> {
    let kept = if kept { cas.files.load(applicant.dir.view(), cluster_id)?.pop() } else { None };
    let ca = match (kept, &cas.own) {
        (Some(ca), _) => ca,
        (None, Some(own)) => Arc::new(own.ca(cluster_id)?),
        (None, None) => Arc::new(ClusterCa::create(cluster_id, now())?),
    };
    cas.files.keep(applicant.dir, std::slice::from_ref(&ca))?;
    let request = identity.key().certificate_request(identity.id())?;
    let mut grant = CertificateGrant::new(identity.id(), now());
    grant.names = certificate_names(applicant.addresses);
    let certificate = ca.sign(&request, &grant)?.certificate;
    Ok(Enrolment { cluster_id, certificate, trust: ca.trust() })
}

fn first_state(
    applicant: &Applicant<'_>,
    identity: &NodeIdentity,
    enrolment: &Enrolment,
    restored: Option<ClusterState>,
) -> Result<ClusterState, Exit> {
    let trust = enrolment.trust.certificates().iter().map(|certificate| certificate.to_vec()).collect();
    let mut state =
        restored.unwrap_or_else(|| ClusterState::new(enrolment.cluster_id, FIRST_EPOCH, Vec::new()));
    if state.trust_bundle != trust {
        // Of a change of the CA that the backup was taken in, the CA is left whose key was brought.
        (state.trust_bundle, state.signer) = (trust, 0);
        state.trust_version += 1;
    }
    let (id, key_hash) = (identity.id(), identity.key().key_hash());
    if state.identities.get(&id).is_some_and(|bound| bound.key_hash != key_hash) {
        return Err(Exit::usage(format!(
            "the restored cluster has bound {id} to another key: start without --id, in a directory restored anew"
        )));
    }
    let name = identity.name().to_owned();
    let member = Member {
        id,
        name: name.clone(),
        addresses: applicant.addresses.to_vec(),
        zone: applicant.config.zone.clone(),
        raft_id: state.next_raft_id,
        key_hash,
    };
    state.members.insert(id, member);
    state.members_version += 1;
    state.next_raft_id += 1;
    state.identities.insert(id, IdentityRecord::new(id, name, key_hash, now()));
    Ok(state)
}
