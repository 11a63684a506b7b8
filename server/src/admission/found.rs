//! The founding of a cluster: its id, its CA, its first state with one member.

use p2p_common::ClusterId;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::IdentityRecord;
use p2p_common::member::Member;
use p2p_proto::convert;
use p2p_runtime::ca::{CaError, CertificateGrant, ClusterCa};
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::{Enrolment, NodeIdentity};
use p2p_server_raft::founding_write;
use slog::info;
use uuid::Uuid;

use super::{Applicant, FIRST_EPOCH, certificate_names, now};
use crate::store::{Origin, Store};

/// The founder's raft id.
const FIRST: u64 = 1;

/// Whether this Server is to found a cluster without asking anybody: told so, or killed while it did.
pub(super) fn wanted(applicant: &Applicant<'_>, identity: &NodeIdentity) -> Result<bool, Exit> {
    match identity.enrolment() {
        None => Ok(applicant.config.bootstrap && applicant.config.join.is_empty()),
        // A joiner gets the CA key after its join only, so an enrolled Server that has it and no store is a founder.
        Some(enrolment) => {
            let ca = ClusterCa::load(applicant.dir.view(), enrolment.cluster_id);
            Ok(ca.map_err(|e| Exit::failed(chain(&e)))?.is_some())
        }
    }
}

/// Founds the cluster: everything is durable when it returns.
pub(super) fn found(
    applicant: &Applicant<'_>,
    identity: &mut NodeIdentity,
    store: &mut Store,
) -> Result<(), Exit> {
    if identity.enrolment().is_none() {
        let enrolment = certify(applicant, identity).map_err(|e| Exit::failed(chain(&e)))?;
        identity.enrol(applicant.dir, enrolment).map_err(|e| Exit::failed(chain(&e)))?;
    }
    identity.keep_epoch(applicant.dir, FIRST_EPOCH).map_err(|e| Exit::failed(chain(&e)))?;
    let enrolment = identity.enrolment().expect("it was just enrolled");
    let state = first_state(applicant, identity, enrolment);
    let founding = founding_write(FIRST, convert::encode_state(&state).into());
    let origin = Origin { raft_id: FIRST, members: Vec::new() };
    store.begin(&origin, Some(&founding)).map_err(Exit::needs_operator)?;
    info!(applicant.log, "cluster founded"; "cluster_id" => %enrolment.cluster_id);
    Ok(())
}

/// A new cluster id and CA, and this Server's certificate by it. A CA key left by a founder that was killed before it
/// had a certificate is replaced: nobody has seen it.
fn certify(applicant: &Applicant<'_>, identity: &NodeIdentity) -> Result<Enrolment, CaError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let cluster_id = ClusterId::new(uuid::Builder::from_random_bytes(bytes).into_uuid());
    let ca = ClusterCa::create(cluster_id, now())?;
    ca.store_key(applicant.dir)?;
    let request = identity.key().certificate_request(identity.id())?;
    let mut grant = CertificateGrant::new(identity.id(), now());
    grant.names = certificate_names(applicant.addresses);
    let certificate = ca.sign(&request, &grant)?.certificate;
    Ok(Enrolment { cluster_id, certificate, trust: ca.trust() })
}

fn first_state(applicant: &Applicant<'_>, identity: &NodeIdentity, enrolment: &Enrolment) -> ClusterState {
    let trust = enrolment.trust.certificates().iter().map(|certificate| certificate.to_vec()).collect();
    let mut state = ClusterState::new(enrolment.cluster_id, FIRST_EPOCH, trust);
    let (id, key_hash) = (identity.id(), identity.key().key_hash());
    let name = identity.name().to_owned();
    let member = Member {
        id,
        name: name.clone(),
        addresses: applicant.addresses.to_vec(),
        zone: applicant.config.zone.clone(),
        raft_id: FIRST,
        key_hash,
    };
    state.members.insert(id, member);
    state.members_version = 1;
    state.next_raft_id = FIRST + 1;
    state.identities.insert(id, IdentityRecord { id, name, key_hash, enrolled_at: now() });
    state
}

/// A request id nobody else draws.
pub(super) fn random_uuid() -> Result<Uuid, Exit> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Exit::failed(format!("the system gives no random numbers: {e}")))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}
