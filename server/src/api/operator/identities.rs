//! Identities as operators see them, and certificates that are carried to their node as a file.
//!
//! A certificate of a file is signed as at enrolment, but on the operator's word instead of a token's: for a node that
//! cannot ask for itself. Only for Peers: a Server must reach another one to join, and so can enrol.

use std::time::Duration;

use p2p_common::cluster_state::{ClusterState, IDENTITIES_MAX};
use p2p_common::command::{CommandBody, IdentityRecord};
use p2p_common::{NodeId, NodeKind};
use p2p_proto::status::malformed;
use p2p_proto::{convert, v1};
use p2p_runtime::ca::CertificateGrant;
use slog::info;
use tonic::Status;

use super::{OperatorApi, grants};
use crate::api::enroll::{not_signed, signing_ca};

/// Identities of one page.
const PAGE_MAX: usize = 500;
/// Bytes of one page, as estimated: below the 4 MiB that clients take.
const PAGE_BYTES: usize = 1 << 20;
/// What an identity takes beside its patterns and its name.
const IDENTITY_BYTES: usize = 160;
/// How long a certificate of a file holds (SPEC I5).
const FILE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// Which identities are asked for.
struct Filter {
    after: Option<NodeId>,
    kind: Option<NodeKind>,
    revoked: Option<bool>,
    id: Option<NodeId>,
    limit: usize,
}

impl Filter {
    fn of(request: &v1::ListIdentitiesRequest) -> Result<Self, convert::ConvertError> {
        let id = |text: &str, field| match text {
            "" => Ok(None),
            text => convert::parse(text, field).map(Some),
        };
        let limit = usize::try_from(request.limit).unwrap_or(PAGE_MAX);
        Ok(Filter {
            after: id(&request.after, "after")?,
            kind: match v1::NodeKind::try_from(request.kind) {
                Ok(v1::NodeKind::Unspecified) => None,
                Ok(v1::NodeKind::Server) => Some(NodeKind::Server),
                Ok(v1::NodeKind::Peer) => Some(NodeKind::Peer),
                Err(_) => {
                    return Err(convert::ConvertError::new("kind", format!("{} is no kind", request.kind)));
                }
            },
            revoked: request.revoked,
            id: id(&request.id, "id")?,
            limit: if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) },
        })
    }

    fn fits(&self, identity: &IdentityRecord) -> bool {
        self.after.is_none_or(|after| identity.id > after)
            && self.kind.is_none_or(|kind| identity.id.kind() == kind)
            && self.revoked.is_none_or(|revoked| identity.revoked == revoked)
            && self.id.is_none_or(|id| identity.id == id)
    }
}

fn page(state: &ClusterState, filter: &Filter) -> v1::ListIdentitiesReply {
    let mut fitting = state.identities.values().filter(|identity| filter.fits(identity)).peekable();
    let (mut identities, mut bytes, mut last) = (Vec::new(), 0, None);
    while let Some(identity) = fitting.peek() {
        bytes += IDENTITY_BYTES + identity.name.len() + identity.grants.bytes();
        if identities.len() >= filter.limit || (bytes > PAGE_BYTES && !identities.is_empty()) {
            break;
        }
        last = Some(identity.id);
        identities.push(status(identity));
        fitting.next();
    }
    let next = fitting.peek().and(last).map(|id| id.to_string()).unwrap_or_default();
    let total = u64::try_from(state.identities.len()).unwrap_or(u64::MAX);
    v1::ListIdentitiesReply { identities, next, total, maximum: IDENTITIES_MAX as u64 }
}

fn status(identity: &IdentityRecord) -> v1::IdentityStatus {
    v1::IdentityStatus {
        id: identity.id.to_string(),
        name: identity.name.clone(),
        key_hash: identity.key_hash.0.to_vec().into(),
        enrolled_at_unix_ms: identity.enrolled_at.0,
        grants: Some(convert::grants_to(&identity.grants)),
        ephemeral: identity.ephemeral,
        seen_at_unix_ms: if identity.ephemeral { identity.seen_at.0 } else { 0 },
        revoked: identity.revoked,
    }
}

impl OperatorApi {
    pub(super) async fn identities(
        &self,
        request: v1::ListIdentitiesRequest,
    ) -> Result<v1::ListIdentitiesReply, Status> {
        let filter = Filter::of(&request).map_err(|e| malformed(&e))?;
        if !request.stale {
            self.context.read_barrier().await?;
        }
        Ok(page(&self.context.proposer.view().state, &filter))
    }

    /// As at enrolment the certificate is made before the Id is bound, so that nothing that can fail comes after.
    pub(super) async fn issue(
        &self,
        request: v1::IssueCertificateRequest,
    ) -> Result<v1::IssueCertificateReply, Status> {
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id = convert::id_of(NodeKind::Peer, &request.id, "id").map_err(|e| malformed(&e))?;
        let name = convert::name(&request.name, "name").map_err(|e| malformed(&e))?;
        let asked = grants(request.grants)?;
        let ca = signing_ca(&self.context)?;
        self.context.read_barrier().await?;
        let view = self.context.proposer.view();
        let bound = view.state.identities.get(&id);
        let grants = bound.map_or(asked, |identity| identity.grants.clone());
        let now = self.context.cluster_clock().now();
        let grant = CertificateGrant {
            lifetime: FILE_LIFETIME,
            grants: grants.clone(),
            ..CertificateGrant::new(id, now)
        };
        let signed = ca.sign(&request.csr, &grant).map_err(|e| not_signed(&e))?;
        let key_hash = signed.key_hash;
        let body = CommandBody::BindIdentity { id, name: name.clone(), key_hash, grants, now };
        self.context.propose(request_id, body).await?;
        info!(self.context.log, "certificate issued to a file"; "id" => id, "name" => name);
        let view = self.context.proposer.view();
        Ok(v1::IssueCertificateReply {
            certificate: signed.certificate.to_vec().into(),
            trust_bundle: view.state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
            cluster_id: view.state.cluster_id.to_string(),
            epoch: view.state.epoch.0,
            expires_unix_ms: signed.not_after.0,
        })
    }
}
