//! What operators ask about revocations: a key is taken its power, in order or in an emergency; all of them listed
//! (SPEC I7).

use std::collections::BTreeSet;
use std::sync::Arc;

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{CommandBody, Revocation};
use p2p_common::{ErrorCode, KeyHash, NodeId, RequestId};
use p2p_proto::status::{malformed, refuse};
use p2p_proto::{convert, v1};
use p2p_server_core::check_revocable;
use slog::warn;
use tonic::Status;

use super::ApiContext;
use crate::raft::View;
use crate::standing::Emergency;

/// The most revocations in one answer: below the 4 MiB a client takes.
const PAGE_MAX: u32 = 1_000;

/// Whose key is to be revoked.
struct Target {
    id: NodeId,
    name: String,
    key_hash: KeyHash,
}

impl Target {
    /// The identity that `text`, an Id or a name, means.
    ///
    /// # Errors
    /// When it is none, or several.
    fn find(state: &ClusterState, text: &str, key_hash: Option<KeyHash>) -> Result<Target, Status> {
        let known = match text.parse::<NodeId>() {
            Ok(id) => {
                let known = state.identities.get(&id).map(|known| (id, known.name.clone(), known.key_hash));
                // Another key of an Id that was reset, perhaps.
                known.or_else(|| Some((id, String::new(), key_hash?)))
            }
            Err(_) => {
                let mut named = state.identities.values().filter(|known| known.name == text);
                let first = named.next().map(|known| (known.id, known.name.clone(), known.key_hash));
                if named.next().is_some() {
                    let message = format!("several identities are called {text}: give the Id of one");
                    return Err(refuse(ErrorCode::Conflict, message));
                }
                first
            }
        };
        let (id, name, bound) = known.ok_or_else(|| {
            refuse(ErrorCode::NotFound, format!("{text} is not enrolled, as far as this server knows"))
        })?;
        Ok(Target { id, name, key_hash: key_hash.unwrap_or(bound) })
    }

    /// Refuses a Server that the cluster cannot do without.
    fn check_spared(&self, view: &View, context: &ApiContext) -> Result<(), Status> {
        let member = view.state.members.get(&self.id).filter(|member| member.key_hash == self.key_hash);
        let Some(member) = member else { return Ok(()) };
        let reach = Arc::clone(&context.reach.borrow());
        let reachable: BTreeSet<_> = reach.of.keys().copied().chain([view.raft_id]).collect();
        check_revocable(&view.membership.voters, &reachable, member.raft_id)
            .map_err(|why| refuse(ErrorCode::QuorumLost, format!("{} is not revoked: {why}", self.id)))
    }
}

/// See [`v1::operator_server::Operator::revoke`].
///
/// # Errors
/// When it is refused, or not known to be done.
pub(super) async fn revoke(
    context: &ApiContext,
    request: v1::RevokeRequest,
    about: impl FnOnce(String),
) -> Result<v1::RevokeReply, Status> {
    let request_id: RequestId = convert::request_id(&request.request_id).map_err(|e| malformed(&e))?;
    let reason = convert::reason(&request.reason).map_err(|e| malformed(&e))?;
    let key_hash = match request.key_hash.as_ref() {
        [] => None,
        bytes => Some(convert::key_hash(bytes).map_err(|e| malformed(&e))?),
    };
    if !request.emergency {
        context.read_barrier().await?;
    }
    let view = context.proposer.view();
    let target = Target::find(&view.state, &request.target, key_hash)?;
    about(format!(
        "{} key {}{}",
        target.id,
        target.key_hash,
        if request.emergency { " in an emergency" } else { "" }
    ));
    if !request.force && !view.state.is_revoked(&target.key_hash) {
        target.check_spared(&view, context)?;
    }
    let member = view.state.members.get(&target.id).is_some_and(|member| member.key_hash == target.key_hash);
    let Target { id, name, key_hash } = target;
    let reply = v1::RevokeReply {
        id: id.to_string(),
        name: name.clone(),
        key_hash: key_hash.0.to_vec().into(),
        member,
        replicated: true,
        servers_told: 0,
    };
    let now = context.cluster_clock().now();
    if !request.emergency {
        let body = CommandBody::Revoke { id, key_hash: Some(key_hash), reason, now };
        context.propose(request_id, body).await?;
        return Ok(reply);
    }
    warn!(context.log, "emergency revocation"; "id" => id, "reason" => &reason);
    let revocation = Revocation { number: 0, id, key_hash, name, reason, revoked_at: now };
    let told = context.revoker.revoke_now(Emergency { request_id, revocation }).await;
    let servers_told = told.map_err(|e| refuse(ErrorCode::Exhausted, e.to_string()))?;
    let replicated = context.proposer.view().state.is_revoked(&key_hash);
    Ok(v1::RevokeReply { replicated, servers_told, ..reply })
}

/// See [`v1::operator_server::Operator::list_revocations`]: as this Server knows them, since they are asked for when
/// there is no quorum, too.
pub(super) fn list(context: &ApiContext, request: &v1::ListRevocationsRequest) -> v1::ListRevocationsReply {
    let limit = match request.limit {
        limit @ 1..=PAGE_MAX => limit as usize,
        _ => PAGE_MAX as usize,
    };
    let emergencies = Arc::clone(&context.revoker.standing.watch_emergencies().borrow());
    let state = &context.proposer.view().state;
    let ahead = emergencies.values().filter(|_| request.after == 0).map(|emergency| &emergency.revocation);
    let mut numbered: Vec<&Revocation> =
        state.revocations.values().filter(|r| r.number > request.after).collect();
    numbered.sort_unstable_by_key(|revocation| revocation.number);
    let more = numbered.len() > limit;
    numbered.truncate(limit);
    let status = |revocation: &Revocation| v1::RevocationStatus {
        number: revocation.number,
        id: revocation.id.to_string(),
        name: revocation.name.clone(),
        key_hash: revocation.key_hash.0.to_vec().into(),
        reason: revocation.reason.clone(),
        revoked_at_unix_ms: revocation.revoked_at.0,
    };
    let ahead = ahead.filter(|emergency| !state.is_revoked(&emergency.key_hash));
    v1::ListRevocationsReply { revocations: ahead.chain(numbered).map(status).collect(), more }
}
