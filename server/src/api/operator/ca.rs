//! The CA for operators: how far its change is, what it waits for, and its steps.
//!
//! Beginning makes the next CA here: its key is durable before it is proposed, and used again when the same is asked
//! anew. The step between, and everything nodes do, comes by itself ([`crate::ca`]).

use std::collections::BTreeSet;

use p2p_common::cluster_state::ClusterState;
use p2p_common::{ErrorCode, NodeId, NodeKind, RequestId};
use p2p_proto::status::refuse;
use p2p_proto::v1;
use p2p_runtime::exit::chain;
use p2p_runtime::identity::{CaFingerprint, TrustBundle};
use p2p_server_core::{CaPhase, abort_ca, begin_ca, finish_ca};
use tonic::Status;

use super::bad;
use crate::api::ApiContext;
use crate::api::raft::ca_to;
use crate::ca::CaHere;
use crate::raft::View;

/// Of those that are away so many are named.
const AWAY_NAMED: usize = 16;

/// One Server, as far as it is known here.
struct Seen {
    id: NodeId,
    name: String,
    /// None: not connected.
    cas: Option<Vec<CaHere>>,
}

impl Seen {
    fn of(&self, ca: CaFingerprint) -> Option<&CaHere> {
        self.cas.iter().flatten().find(|here| here.fingerprint == ca)
    }
}

fn seen(context: &ApiContext, view: &View) -> Vec<Seen> {
    let reach = context.reach.borrow().clone();
    let rows = view.state.members.values().map(|member| {
        let cas = if member.raft_id == view.raft_id {
            Some(context.cas.here(&view.state))
        } else {
            // Connected, and probed once.
            let reached = reach.of.get(&member.raft_id).map(|reached| reached.cas.to_vec());
            reached.filter(|cas| !cas.is_empty())
        };
        Seen { id: member.id, name: member.name.clone(), cas }
    });
    rows.collect()
}

/// The Peers that have no session here; a Peer has one with every Server it reaches (SPEC P1).
fn away(context: &ApiContext, state: &ClusterState) -> Vec<NodeId> {
    let online: BTreeSet<NodeId> = context.cas.online().into_iter().collect();
    let peers = state.identities.values().filter(|bound| bound.id.kind() == NodeKind::Peer && !bound.revoked);
    peers.map(|bound| bound.id).filter(|id| !online.contains(id)).collect()
}

/// Who would be cut off by the end of the CA that goes, or is in the way of the next step, for people.
fn waiting_for(phase: CaPhase, trusted: &[CaFingerprint], seen: &[Seen]) -> Vec<String> {
    let [goes, stays] = trusted else { return Vec::new() };
    let mut waiting = Vec::new();
    let reached = || seen.iter().filter(|server| server.cas.is_some());
    match phase {
        CaPhase::Settled => {}
        CaPhase::Handing => {
            let holds =
                |server: &Seen| trusted.iter().all(|ca| server.of(*ca).is_some_and(|here| here.has_key));
            if !reached().any(|server| server.of(*stays).is_some_and(|here| here.has_key)) {
                waiting.push(
                    "no connected server holds the key of the next CA: when the one that made it does not come back, take \
                     the change back and begin it again"
                        .to_owned(),
                );
            }
            for server in seen.iter().filter(|server| !holds(server)) {
                let name = &server.name;
                waiting.push(match &server.cas {
                    Some(_) => format!("{name} has not received the keys of both CAs yet"),
                    None => format!(
                        "{name} is not connected here: every member must hold the next CA's key; one that is gone for good \
                         is taken out by `p2p-server remove {name}`"
                    ),
                });
            }
        }
        CaPhase::Switched => {
            for server in reached() {
                let name = &server.name;
                if !server.of(*stays).is_some_and(|here| here.is_own) {
                    waiting.push(format!("{name} still shows a certificate of the old CA"));
                }
                let sessions = server.of(*goes).map_or(0, |here| here.sessions);
                if sessions > 0 {
                    waiting.push(format!("{name} has sessions with certificates of the old CA: {sessions}"));
                }
            }
        }
    }
    waiting
}

/// The answer to a look at the CAs.
pub(super) fn status(context: &ApiContext, view: &View) -> Result<v1::GetCaStatusReply, Status> {
    let state = &view.state;
    let unreadable = |e: &(dyn std::error::Error + 'static)| refuse(ErrorCode::Internal, chain(e));
    let trust = TrustBundle::from_der(state.trust_bundle.iter().cloned()).map_err(|e| unreadable(&e))?;
    let (phase, seen) = (CaPhase::of(state), seen(context, view));
    let described = trust.describe();
    let trusted: Vec<_> = described.iter().map(|ca| ca.fingerprint).collect();
    let away = if phase == CaPhase::Settled { Vec::new() } else { away(context, state) };
    let cas = described.iter().enumerate().map(|(place, ca)| v1::CaStatus {
        fingerprint: ca.fingerprint.0.to_vec().into(),
        subject: ca.subject.clone(),
        expires_unix_ms: ca.not_after.0,
        signs: place == state.signer,
        sessions: seen
            .iter()
            .filter_map(|server| Some(server.of(ca.fingerprint)?.sessions))
            .max()
            .unwrap_or(0),
    });
    let servers = seen.iter().map(|server| v1::CaServerStatus {
        id: server.id.to_string(),
        name: server.name.clone(),
        connected: server.cas.is_some(),
        cas: server.cas.iter().flatten().map(ca_to).collect(),
    });
    Ok(v1::GetCaStatusReply {
        phase: match phase {
            CaPhase::Settled => v1::CaPhase::Settled,
            CaPhase::Handing => v1::CaPhase::Handing,
            CaPhase::Switched => v1::CaPhase::Switched,
        }
        .into(),
        trust_version: state.trust_version,
        cas: cas.collect(),
        servers: servers.collect(),
        waiting_for: waiting_for(phase, &trusted, &seen),
        away: u32::try_from(away.len()).unwrap_or(u32::MAX),
        away_ids: away.iter().take(AWAY_NAMED).map(ToString::to_string).collect(),
    })
}

/// Takes a step. Says whether something has changed by it.
pub(super) async fn rotate(
    context: &ApiContext,
    request_id: RequestId,
    request: &v1::RotateCaRequest,
) -> Result<v1::RotateCaReply, Status> {
    context.read_barrier().await?;
    let view = context.proposer.view();
    let (state, phase) = (&view.state, CaPhase::of(&view.state));
    let step = match v1::RotateCaStep::try_from(request.step) {
        Ok(v1::RotateCaStep::Begin) if phase == CaPhase::Settled => {
            let (store, now) = (context.cas.clone(), context.cluster_clock().now());
            let staged = tokio::task::spawn_blocking(move || store.stage(now)).await;
            let staged = staged.map_err(|_| refuse(ErrorCode::Internal, "the next CA could not be made"))?;
            let next = staged.map_err(|e| refuse(ErrorCode::Internal, chain(&e)))?;
            begin_ca(state, next.certificate().to_vec())
        }
        Ok(v1::RotateCaStep::Begin) => None,
        Ok(v1::RotateCaStep::Finish) if phase == CaPhase::Handing => {
            return Err(refuse(
                ErrorCode::Conflict,
                "the next CA does not sign yet: `p2p-server ca status` shows what that waits for",
            ));
        }
        Ok(v1::RotateCaStep::Finish) => {
            let trusted: Vec<_> = state.trust_bundle.iter().map(|der| CaFingerprint::of(der)).collect();
            let waiting = waiting_for(phase, &trusted, &seen(context, &view));
            if !waiting.is_empty() && !request.force {
                return Err(refuse(
                    ErrorCode::Conflict,
                    format!("not finished: {}. Wait for it, or finish with --force", waiting.join("; ")),
                ));
            }
            finish_ca(state)
        }
        Ok(v1::RotateCaStep::Abort) => abort_ca(state),
        Ok(v1::RotateCaStep::Unspecified) | Err(_) => return Err(bad("step", "there is no such step")),
    };
    let changed = step.is_some();
    let view = match step {
        Some(step) => context.propose_and_see(request_id, step).await?.1,
        None => view,
    };
    Ok(v1::RotateCaReply { changed, status: Some(status(context, &view)?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const OLD: CaFingerprint = CaFingerprint([1; 32]);
    const NEW: CaFingerprint = CaFingerprint([2; 32]);

    fn server(name: &str, cas: Option<[(bool, bool, u32); 2]>) -> Seen {
        let here =
            |(fingerprint, (has_key, is_own, sessions))| CaHere { fingerprint, has_key, is_own, sessions };
        Seen {
            id: NodeId::new(NodeKind::Server, Uuid::from_u128(1)),
            name: name.to_owned(),
            cas: cas.map(|cas| [OLD, NEW].into_iter().zip(cas).map(here).collect()),
        }
    }

    #[test]
    fn says_what_the_next_step_waits_for() {
        let wait = |phase, servers: &[Seen]| waiting_for(phase, &[OLD, NEW], servers).join("\n");
        let old = (true, true, 3);
        let ready = || server("s1", Some([old, (true, false, 0)]));
        assert_eq!(wait(CaPhase::Handing, &[ready()]), "");
        let text = wait(
            CaPhase::Handing,
            &[ready(), server("s2", None), server("s3", Some([old, (false, false, 0)]))],
        );
        assert!(text.contains("remove s2") && text.contains("s3 has not received"), "{text}");
        assert!(!text.contains("begin it again"), "{text}");
        let text = wait(CaPhase::Handing, &[server("s3", Some([old, (false, false, 0)]))]);
        assert!(text.contains("begin it again"), "{text}");

        let renewed = server("s1", Some([(true, false, 0), (true, true, 3)]));
        // Who is away comes back by its key, and keeps nobody waiting.
        assert_eq!(wait(CaPhase::Switched, &[renewed, server("s2", None)]), "");
        let text = wait(CaPhase::Switched, &[ready()]);
        assert!(text.contains("s1 still shows") && text.contains("old CA: 3"), "{text}");
        assert_eq!(waiting_for(CaPhase::Settled, &[OLD], &[ready()]), Vec::<String>::new());
    }
}
