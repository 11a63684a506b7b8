//! What a running Server does beside serving: keeps its row of table C true, says whether it is ready.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::command::{Command, CommandBody, Outcome};
use p2p_common::member::MemberRole;
use p2p_common::{NodeId, RequestId};
use p2p_runtime::admin::Readiness;
use slog::{Logger, debug, info, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::{Proposer, View};
use crate::transport::Alarm;

/// Between two tries of anything here.
const REST: Duration = Duration::from_millis(500);

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
