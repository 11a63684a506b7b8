//! Changes by operators: tokens are created, listed and revoked, identities listed, changed, freed and made, keys
//! revoked, settings changed, Servers removed, the Master chosen, the whole state backed up.
//!
//! The client mints a token's id and secret and sends the secret's hash, so that a repeated request names the same
//! token. When it ends is decided here, by this Server's clock, and replicated with it.

mod ca;
mod identities;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{CommandBody, Outcome, TokenId, TokenRecord, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::setting::SettingName;
use p2p_common::shared::SharedSet;
use p2p_common::{ErrorCode, NodeId, NodeKind, UnixMs};
use p2p_proto::status::{malformed, refuse};
use p2p_proto::v1::operator_server::Operator;
use p2p_proto::{convert, v1};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::cluster::draining;
use super::{ApiContext, revoke, unanswered};
use crate::audit::AuditTarget;
use crate::recovery::backup::{Backup, Provenance};

/// Shorter than this a token would be over before it is used.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Longer than this nobody remembers where a token went: create another.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);
/// A new leader tells everyone with its first message.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// Nodes that may enrol with one token: as many as there may be identities.
const USES_MAX: u32 = p2p_common::cluster_state::IDENTITIES_MAX as u32;

/// The service.
#[derive(Debug)]
pub(super) struct OperatorApi {
    context: Arc<ApiContext>,
    /// One permit: a backup under way.
    backups: Arc<Semaphore>,
}

impl OperatorApi {
    pub(super) fn new(context: Arc<ApiContext>) -> Self {
        OperatorApi { context, backups: Arc::new(Semaphore::new(1)) }
    }
}

fn bad(field: &'static str, reason: impl Into<String>) -> Status {
    malformed(&convert::ConvertError::new(field, reason))
}

/// Grants as an operator gave them; none are everybody's.
fn grants(asked: Option<v1::Grants>) -> Result<Grants, Status> {
    asked.map_or(Ok(Grants::default()), |asked| convert::grants_from(asked).map_err(|e| malformed(&e)))
}

/// The token asked for. Uses mean nothing for roles that do not enrol.
pub(crate) fn record(request: &v1::CreateTokenRequest, created_at: UnixMs) -> Result<TokenRecord, Status> {
    let malformed = |e: convert::ConvertError| malformed(&e);
    let role = convert::token_role_from(request.role).map_err(malformed)?;
    let enrols = match role {
        TokenRole::Server => Some(NodeKind::Server),
        TokenRole::Peer => Some(NodeKind::Peer),
        TokenRole::Operator | TokenRole::Reader => None,
    };
    let ttl = Duration::from_millis(request.ttl_ms);
    if ttl < TTL_MIN || ttl > TTL_MAX {
        return Err(bad("ttl_ms", "a token is good for 1 s to 366 days"));
    }
    if enrols.is_some() && !(1..=USES_MAX).contains(&request.uses) {
        return Err(bad("uses", format!("1 to {USES_MAX} nodes may enrol with one token")));
    }
    let bound_id: Option<NodeId> = match request.bound_id.as_str() {
        "" => None,
        text => Some(convert::parse(text, "bound_id").map_err(malformed)?),
    };
    if bound_id.is_some_and(|id| Some(id.kind()) != enrols) {
        let message = format!("a token of role {} cannot be for this Id", role.as_str());
        return Err(bad("bound_id", message));
    }
    let bound_name = convert::name(&request.bound_name, "bound_name").map_err(malformed)?;
    if enrols.is_none() && !bound_name.is_empty() {
        return Err(bad("bound_name", format!("a token of role {} enrols nobody", role.as_str())));
    }
    if enrols != Some(NodeKind::Peer) && (request.grants.is_some() || request.ephemeral) {
        let message = format!("what a peer may do goes on a token of role peer, not {}", role.as_str());
        return Err(bad("grants", message));
    }
    Ok(TokenRecord {
        id: TokenId(request.token_id),
        role,
        secret_hash: convert::sha256(&request.secret_hash, "secret_hash").map_err(malformed)?,
        created_at,
        expires_at: created_at.plus(ttl),
        uses_left: if enrols.is_some() { request.uses } else { 0 },
        bound_id,
        bound_name: Some(bound_name).filter(|name| !name.is_empty()),
        grants: grants(request.grants.clone())?,
        ephemeral: request.ephemeral,
        used_by: SharedSet::new(),
    })
}

#[tonic::async_trait]
impl Operator for OperatorApi {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let record = record(&request, self.context.cluster_clock().now())?;
        about.set(format_args!("token {} role {}", record.id, record.role.as_str()));
        let (id, secret_hash) = (record.id, record.secret_hash);
        let (_, view) = self.context.propose_and_see(request_id, CommandBody::CreateToken(record)).await?;
        // A repeated request gets what the first one made.
        let token = view.state.tokens.get(&id).filter(|token| token.secret_hash == secret_hash);
        let token = token.ok_or_else(|| {
            refuse(
                ErrorCode::NotFound,
                format!(
                    "this request was made before, and token {id} is no more, or never was: create another"
                ),
            )
        })?;
        let ca = crate::ca::signer(&view.state);
        let ca = ca.ok_or_else(|| refuse(ErrorCode::Internal, "the cluster has no CA"))?;
        Ok(Response::new(v1::CreateTokenReply {
            expires_at_unix_ms: token.expires_at.0,
            cluster_id: view.state.cluster_id.to_string(),
            ca_fingerprint: ca.0.to_vec().into(),
        }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        self.context.read_barrier().await?;
        let view = self.context.proposer.view();
        let tokens = view.state.tokens.values().map(|token| v1::TokenStatus {
            token_id: token.id.0,
            role: convert::token_role_to(token.role).into(),
            expires_at_unix_ms: token.expires_at.0,
            uses_left: token.uses_left,
            bound_id: token.bound_id.map(|id| id.to_string()).unwrap_or_default(),
            used_by: token.used_by.iter().map(|(id, _)| id.to_string()).collect(),
            grants: Some(convert::grants_to(&token.grants)),
            ephemeral: token.ephemeral,
            bound_name: token.bound_name.clone().unwrap_or_default(),
        });
        Ok(Response::new(v1::ListTokensReply { tokens: tokens.collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id = TokenId(request.token_id);
        about.set(format_args!("token {id}"));
        self.context.propose(request_id, CommandBody::RevokeToken(id)).await?;
        Ok(Response::new(v1::RevokeTokenReply {}))
    }

    async fn list_identities(
        &self,
        request: Request<v1::ListIdentitiesRequest>,
    ) -> Result<Response<v1::ListIdentitiesReply>, Status> {
        self.identities(request.into_inner()).await.map(Response::new)
    }

    async fn change_grants(
        &self,
        request: Request<v1::ChangeGrantsRequest>,
    ) -> Result<Response<v1::ChangeGrantsReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id: NodeId = convert::parse(&request.id, "id").map_err(|e| malformed(&e))?;
        about.set(id);
        let asked = request.grants.ok_or_else(|| bad("grants", "what it may do from now on is missing"))?;
        let grants = grants(Some(asked))?;
        if id.kind() != NodeKind::Peer {
            return Err(bad("id", format!("{id} is a server: grants are for peers")));
        }
        self.context.propose(request_id, CommandBody::ChangeGrants { id, grants }).await?;
        Ok(Response::new(v1::ChangeGrantsReply {}))
    }

    async fn reset_identity(
        &self,
        request: Request<v1::ResetIdentityRequest>,
    ) -> Result<Response<v1::ResetIdentityReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id: NodeId = convert::parse(&request.id, "id").map_err(|e| malformed(&e))?;
        about.set(id);
        let now = self.context.cluster_clock().now();
        self.context.propose(request_id, CommandBody::ResetIdentity { id, now }).await?;
        Ok(Response::new(v1::ResetIdentityReply {}))
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        about.set(request.id.chars().take(64).collect::<String>());
        self.issue(request).await.map(Response::new)
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeReply>, Status> {
        let about = AuditTarget::of(&request);
        let revoked = revoke::revoke(&self.context, request.into_inner(), |target| about.set(target));
        Ok(Response::new(revoked.await?))
    }

    async fn list_revocations(
        &self,
        request: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsReply>, Status> {
        Ok(Response::new(revoke::list(&self.context, request.get_ref())))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupPiece, Status>> + Send>>;

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        // Each holds the encoded state while it is on its way.
        let permit = Arc::clone(&self.backups).try_acquire_owned().map_err(|_| {
            refuse(
                ErrorCode::Exhausted,
                "a backup is being taken from this server: wait for it, or ask another",
            )
        })?;
        self.context.read_barrier().await?;
        let view = self.context.proposer.view();
        let provenance = Provenance {
            made_by: self.context.myself.id,
            made_at: self.context.cluster_clock().now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            index: view.applied,
            term: view.status.term,
        };
        let encode = move || Backup { provenance, state: ClusterState::clone(&view.state) }.into_pieces();
        let pieces = tokio::task::spawn_blocking(encode).await;
        let pieces = pieces.map_err(|_| refuse(ErrorCode::Internal, "the state could not be encoded"))?;
        let pieces = stream::iter(pieces).map(move |data| {
            let _held = &permit;
            Ok(v1::BackupPiece { data })
        });
        // The end of a backup is its hash: one that is cut off here is refused by whoever reads it.
        let until_stop = pieces.take_until(self.context.stop.clone().cancelled_owned());
        let stop = self.context.stop.clone();
        let cut_off = stream::once(async move { stop.is_cancelled().then(draining) });
        let end = cut_off.filter_map(async |status| status.map(Err));
        Ok(Response::new(Box::pin(until_stop.chain(end))))
    }

    async fn change_setting(
        &self,
        request: Request<v1::ChangeSettingRequest>,
    ) -> Result<Response<v1::ChangeSettingReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let name: SettingName = convert::parse(&request.name, "name").map_err(|e| malformed(&e))?;
        if let Err(refused) = request.value.as_deref().map_or(Ok(()), |value| name.check(value)) {
            return Err(bad("value", refused.to_string()));
        }
        match &request.value {
            Some(value) => about.set(format_args!("{name} = {value}")),
            None => about.set(format_args!("{name} = default")),
        }
        let body = CommandBody::ChangeSetting { name, value: request.value, expected: request.expected };
        match self.context.propose(request_id, body).await? {
            Outcome::SettingChanged { revision } => Ok(Response::new(v1::ChangeSettingReply { revision })),
            // Its outcome is that of another request: a client that uses an id twice.
            _ => Err(bad("request_id", "it was used for another request before: mint one per request")),
        }
    }

    async fn get_ca_status(
        &self,
        _: Request<v1::GetCaStatusRequest>,
    ) -> Result<Response<v1::GetCaStatusReply>, Status> {
        self.context.read_barrier().await?;
        Ok(Response::new(ca::status(&self.context, &self.context.proposer.view())?))
    }

    async fn rotate_ca(
        &self,
        request: Request<v1::RotateCaRequest>,
    ) -> Result<Response<v1::RotateCaReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        about.set(format_args!(
            "ca {}{}",
            request.step().as_str_name().trim_start_matches("ROTATE_CA_STEP_").to_lowercase(),
            if request.force { " force" } else { "" }
        ));
        Ok(Response::new(ca::rotate(&self.context, request_id, &request).await?))
    }

    async fn transfer_master(
        &self,
        request: Request<v1::TransferMasterRequest>,
    ) -> Result<Response<v1::TransferMasterReply>, Status> {
        let about = AuditTarget::of(&request);
        let to = match request.into_inner().to.as_str() {
            "" => None,
            text => {
                let id: NodeId = convert::parse(text, "to").map_err(|e| malformed(&e))?;
                about.set(id);
                let view = self.context.proposer.view();
                let member = view.state.members.get(&id);
                let unknown = || refuse(ErrorCode::NotFound, format!("{id} is not a server of this cluster"));
                Some(member.ok_or_else(unknown)?.raft_id)
            }
        };
        let leader = self.context.group.transfer(to).await.map_err(|e| unanswered(&e))?;
        let view = self.context.proposer.view();
        let id = view.state.member_by_raft_id(leader).map(|member| member.id);
        // Whoever asks here next finds what was answered.
        let mut titles = self.context.proposer.watch_master();
        let known = titles.wait_for(|title| title.as_ref().map(|title| title.id) == id);
        let _ = tokio::time::timeout(TOLD_WITHIN, known).await;
        Ok(Response::new(v1::TransferMasterReply { id: id.map(|id| id.to_string()).unwrap_or_default() }))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberReply>, Status> {
        let about = AuditTarget::of(&request);
        let request = request.into_inner();
        let request_id = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
        let id: NodeId = convert::parse(&request.id, "id").map_err(|e| malformed(&e))?;
        about.set(id);
        self.context.group.remove(request_id, id).await.map_err(|e| unanswered(&e))?;
        Ok(Response::new(v1::RemoveMemberReply {}))
    }
}
