//! Enrolment and renewal. A node with a join token gets its Id bound to its key, and a certificate that says so.
//!
//! ```text
//! hello ─► CA here? ─► token known here? ─► certificate made from the request, which proves the key
//!     ─► raft binds Id to key and spends a use ─► certificate handed out
//! ```
//!
//! The certificate is made before raft is asked and leaves this Server only after raft agreed: so nothing that can
//! fail comes after a use is spent, and a repeat costs nothing anyway. A token that is not known never reaches the
//! log: anyone may call, and only holders of a token shall make a cluster write. Who may have what is decided by the
//! state machine.
//!
//! Renewal asks nobody: whoever holds the binding of Id and key here, and the CA key, signs. Dates are the cluster
//! clock's; a Server that has not heard another clock yet waits a moment for one, since its own may be wrong.
//! Source: SPEC I2, I3, I5.

use std::sync::Arc;

use p2p_common::addr::HostPort;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{CommandBody, TokenId};
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::wire::{Expected, Hello};
use p2p_common::{ErrorCode, NodeId, NodeKind, RequestId};
use p2p_proto::status::{malformed, refuse};
use p2p_proto::v1::enroll_server::Enroll;
use p2p_proto::{convert, v1};
use p2p_runtime::ca::{CaError, CertificateGrant, ClusterCa};
use p2p_server_core::{Renewal, check_renewal};
use sha2::{Digest, Sha256};
use slog::info;
use subtle::ConstantTimeEq;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::ApiContext;
use super::gate::Caller;

/// The service.
#[derive(Debug)]
pub(super) struct EnrollApi {
    context: Arc<ApiContext>,
}

impl EnrollApi {
    pub(super) fn new(context: Arc<ApiContext>) -> Self {
        EnrollApi { context }
    }

    /// Checks what the node says of itself. A node that has not enrolled knows neither cluster nor epoch for sure, and
    /// has shown no certificate; what it says all the same must be right.
    fn check_hello(&self, hello: Hello, caller: &Caller) -> Result<Hello, Status> {
        let myself = &self.context.myself;
        let cluster_id = myself.credentials.cluster_id();
        let claimed =
            Hello { cluster_id: hello.cluster_id.or(Some(cluster_id)), epoch: myself.epoch, ..hello.clone() };
        let authenticated = caller.node.map_or(hello.from, |node| node.node_id);
        let expected =
            Expected { cluster_id, epoch: myself.epoch, recovery_id: None, me: myself.id, authenticated };
        claimed.check(&expected).map_err(|e| refuse(e.code(), e.to_string()))?;
        Ok(hello)
    }

    /// What a certificate for `id` says, signed now.
    async fn grant(&self, id: NodeId, addresses: &[String]) -> Result<CertificateGrant, Status> {
        let names = if id.kind() == NodeKind::Server { names(addresses)? } else { Vec::new() };
        let now = crate::renewal::signing_time(
            self.context.cluster_clock(),
            &self.context.clock,
            &self.context.proposer,
        )
        .await;
        Ok(CertificateGrant { names, ..crate::renewal::grant(&self.context.proposer.view().state, id, now) })
    }

    /// Whether the cluster has this token with this secret; a token just created may not have arrived here.
    async fn check_token(&self, id: TokenId, secret_hash: &[u8; 32]) -> Result<(), Status> {
        let known = || {
            let view = self.context.proposer.view();
            let token = view.state.tokens.get(&id);
            token.is_some_and(|token| token.secret_hash.ct_eq(secret_hash).into())
        };
        if known() {
            return Ok(());
        }
        self.context.read_barrier().await?;
        if known() {
            return Ok(());
        }
        Err(refuse(ErrorCode::TokenUnknown, "no such token: was it mistyped or revoked?"))
    }
}

/// The CA with its key.
pub(super) fn signing_ca(context: &ApiContext) -> Result<Arc<ClusterCa>, Status> {
    context.cas.keys().signer().cloned().ok_or_else(|| {
        refuse(
            ErrorCode::Unavailable,
            "this server does not hold the CA key yet: ask another one, or here in a moment",
        )
    })
}

/// The names a Server's certificate carries: the hosts it is reached at.
pub(crate) fn names(addresses: &[String]) -> Result<Vec<String>, Status> {
    if addresses.len() > Member::ADDRESSES_MAX {
        let message = format!("addresses: {} are more than {}", addresses.len(), Member::ADDRESSES_MAX);
        return Err(refuse(ErrorCode::BadRequest, message));
    }
    let mut names = Vec::new();
    for text in addresses {
        let address: HostPort = convert::parse(text, "addresses").map_err(|e| malformed(&e))?;
        if address.socket_addr().is_some_and(|addr| addr.ip().is_unspecified()) {
            return Err(refuse(ErrorCode::BadRequest, format!("addresses: nobody can dial {address}")));
        }
        names.push(address.host().to_owned());
    }
    Ok(names)
}

/// What a node may do that enrols with this token: its Id is bound already, or the token says it.
fn grants_of_newcomer(state: &ClusterState, id: NodeId, token: TokenId) -> Grants {
    let bound = state.identities.get(&id).map(|identity| &identity.grants);
    bound.or(state.tokens.get(&token).map(|token| &token.grants)).cloned().unwrap_or_default()
}

pub(super) fn not_signed(error: &CaError) -> Status {
    let code = match error {
        CaError::Request(_)
        | CaError::RequestKey
        | CaError::BadName { .. }
        | CaError::TooManyNames { .. }
        | CaError::NamesOfPeer => ErrorCode::BadRequest,
        _ => ErrorCode::Internal,
    };
    refuse(code, error.to_string())
}

#[tonic::async_trait]
impl Enroll for EnrollApi {
    async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let hello = convert::hello_from(request.hello).map_err(|e| malformed(&e))?;
        let hello = self.check_hello(hello, &caller)?;
        let name = convert::name(&request.name, "name").map_err(|e| malformed(&e))?;
        let ca = signing_ca(&self.context)?;
        let token_id = TokenId(request.token_id);
        let secret_hash: [u8; 32] = Sha256::digest(&request.token_secret).into();
        self.check_token(token_id, &secret_hash).await?;
        let grant = self.grant(hello.from, &request.addresses).await?;
        let grants = grants_of_newcomer(&self.context.proposer.view().state, hello.from, token_id);
        let grant = CertificateGrant { grants, ..grant };
        let signed = ca.sign(&request.csr, &grant).map_err(|e| not_signed(&e))?;

        let body = CommandBody::Enrol {
            token_id,
            secret_hash,
            id: hello.from,
            name: name.clone(),
            key_hash: signed.key_hash,
            now: grant.now,
        };
        self.context.propose(RequestId::new(Uuid::new_v4()), body).await?;
        info!(self.context.log, "node enrolled"; "id" => hello.from, "name" => name,
            "token_id" => %token_id, "remote" => %caller.remote);
        let view = self.context.proposer.view();
        let (version, members) = (view.state.members_version, view.state.members.values());
        Ok(Response::new(v1::EnrollReply {
            certificate: signed.certificate.to_vec().into(),
            trust_bundle: view.state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
            cluster_id: view.state.cluster_id.to_string(),
            epoch: view.state.epoch.0,
            members: Some(convert::member_table_to(version, members)),
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        let caller = Caller::of(&request)?;
        let node = caller.node()?;
        let request = request.into_inner();
        let hello = convert::hello_from(request.hello).map_err(|e| malformed(&e))?;
        self.check_hello(hello, &caller)?;
        let ca = signing_ca(&self.context)?;
        let grant = self.grant(node.node_id, &request.addresses).await?;
        let signed = ca.sign(&request.csr, &grant).map_err(|e| not_signed(&e))?;
        let shown = caller.certificate;
        let renewal = Renewal {
            id: node.node_id,
            key_hash: node.key_hash,
            expired_for: shown.and_then(|shown| shown.dates.expired_for(grant.now)),
            asked: signed.key_hash,
        };
        let view = self.context.proposer.view();
        check_renewal(&view.state, &renewal, view.state.certificate_renewal_grace())
            .map_err(|refused| refuse(refused.code(), refused.to_string()))?;
        info!(self.context.log, "certificate renewed"; "id" => node.node_id, "remote" => %caller.remote,
            "expired_for_s" => renewal.expired_for.map(|over| over.as_secs()));
        Ok(Response::new(v1::RenewReply {
            certificate: signed.certificate.to_vec().into(),
            trust_bundle: view.state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
            epoch: view.state.epoch.0,
            trust_version: view.state.trust_version,
        }))
    }
}
