//! What a running Server does beside serving: keeps its row of table C true, gets the CA key, says whether it is
//! ready.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::member::{MemberRole, RaftId};
use p2p_common::{NodeId, RequestId};
use p2p_proto::{convert, v1};
use p2p_runtime::admin::Readiness;
use p2p_runtime::ca::ClusterCa;
use p2p_runtime::exit::chain;
use p2p_runtime::identity::{DataDir, TrustBundle};
use slog::{Logger, debug, info, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::raft::{Proposer, View};
use crate::transport::{Alarm, Remotes};

/// Between two tries of anything here.
const REST: Duration = Duration::from_millis(500);
/// For one answer about the CA key.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What this Server's row of table C should say.
pub(super) struct Record {
    pub id: NodeId,
    pub name: String,
    pub addresses: Vec<HostPort>,
    pub zone: String,
}

/// Tells the cluster when this Server came back under another name, address or zone.
pub(super) async fn keep_record(record: Record, proposer: Proposer, stop: CancellationToken, log: Logger) {
    let mut view = proposer.watch_view();
    loop {
        let differs = |view: &Arc<View>| {
            let row = view.me().filter(|row| row.id == record.id && view.applied > 0);
            row.is_some_and(|row| {
                (&row.name, &row.addresses, &row.zone) != (&record.name, &record.addresses, &record.zone)
            })
        };
        let key_hash = tokio::select! {
            view = view.wait_for(differs) => match view.ok().and_then(|view| Some(view.me()?.key_hash)) {
                Some(key_hash) => key_hash,
                None => return,
            },
            () = stop.cancelled() => return,
        };
        let command = Command {
            request_id: RequestId::new(uuid::Uuid::new_v4()),
            body: CommandBody::UpsertMember {
                id: record.id,
                name: record.name.clone(),
                addresses: record.addresses.clone(),
                zone: record.zone.clone(),
                key_hash,
                new_log: false,
            },
        };
        match proposer.propose(command).await {
            Ok((_, Outcome::Refused { code, message })) => {
                warn!(log, "own record refused"; "code" => code.as_str(), "reason" => message);
                return;
            }
            Ok(_) => info!(log, "own record changed"; "name" => &record.name),
            Err(error) => debug!(log, "own record not changed yet"; "reason" => %error),
        }
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Publishes whether this Server does its work.
pub(super) async fn tell_readiness(
    proposer: Proposer,
    mut alarm: watch::Receiver<Alarm>,
    ready: watch::Sender<Readiness>,
    stop: CancellationToken,
) {
    let mut view = proposer.watch_view();
    loop {
        let now = readiness(&view.borrow_and_update(), &alarm.borrow_and_update());
        ready.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = alarm.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

fn readiness(view: &View, alarm: &Alarm) -> Readiness {
    let mut reasons = Vec::new();
    for server in &alarm.split_from {
        reasons.push(format!(
            "{server} lives in another history of this epoch: an operator must discard one of the two"
        ));
    }
    if view.applied == 0 {
        reasons.push("the cluster's state has not arrived yet".to_owned());
    } else if view.me().is_none() || view.role_of(view.raft_id) == MemberRole::Joining {
        reasons.push("this server is not in the raft group yet, or no more".to_owned());
    }
    if view.status.leader.is_none() {
        reasons.push("there is no leader: a quorum of servers must be running and connected".to_owned());
    } else if view.status.leader == Some(view.raft_id) && !view.leads() {
        reasons.push("leading, but not up to date yet".to_owned());
    }
    if reasons.is_empty() { Readiness::Ready } else { Readiness::NotReady(reasons) }
}

/// Gets the CA key from another Server.
pub(super) struct CaKey {
    pub dir: Arc<DataDir>,
    pub proposer: Proposer,
    pub remotes: Remotes,
    pub log: Logger,
}

impl CaKey {
    /// Asks the leader first, then all others, until one gives it and it is stored.
    pub(super) async fn fetch(self, ca: watch::Sender<Option<Arc<ClusterCa>>>, stop: CancellationToken) {
        while ca.borrow().is_none() {
            let fetched = tokio::select! {
                fetched = self.ask_all() => fetched,
                () = stop.cancelled() => return,
            };
            match fetched {
                Ok(fetched) => {
                    info!(self.log, "CA key received");
                    ca.send_replace(Some(Arc::new(fetched)));
                    return;
                }
                Err(reason) => debug!(self.log, "CA key not received yet"; "reason" => reason),
            }
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn ask_all(&self) -> Result<ClusterCa, String> {
        let view = self.proposer.view();
        let mut others: Vec<RaftId> = view.others().into_keys().collect();
        others.sort_by_key(|raft_id| view.status.leader != Some(*raft_id));
        let mut last = "no other server is connected".to_owned();
        for raft_id in others {
            match self.ask(raft_id, &view).await {
                Ok(ca) => return Ok(ca),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }

    async fn ask(&self, raft_id: RaftId, view: &View) -> Result<ClusterCa, String> {
        let (id, channel) = self.remotes.channel(raft_id).ok_or("not connected")?;
        let hello = convert::hello_to(&self.remotes.myself().hello(Some(id)));
        let mut request = tonic::Request::new(v1::FetchCaKeyRequest { hello: Some(hello) });
        request.set_timeout(CALL_TIMEOUT);
        let reply = v1::peering_client::PeeringClient::new(channel).fetch_ca_key(request).await;
        let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
        let key = Zeroizing::new(reply.ca_key_pem.to_vec());
        let key = std::str::from_utf8(&key).map_err(|_| "the key is not text")?;
        let trust = TrustBundle::from_der(view.state.trust_bundle.iter().cloned());
        let trust = trust.map_err(|e| chain(&e))?;
        let ca = ClusterCa::from_parts(view.state.cluster_id, key, &trust).map_err(|e| chain(&e))?;
        ca.store_key(&self.dir).map_err(|e| chain(&e))?;
        Ok(ca)
    }
}
