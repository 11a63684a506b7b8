//! Has ephemeral identities seen and forgotten; the rules are `p2p-server-core`'s [`EphemeralCare`] (SPEC I2).
//!
//! A command that fails is not repeated: the next look finds what is still to be done.

use std::collections::BTreeSet;

use p2p_common::NodeId;
use p2p_common::RequestId;
use p2p_common::command::{Command, CommandBody};
use p2p_runtime::clock::{Clock, ClusterClock};
use p2p_server_core::{EPHEMERAL_LOOK, EphemeralCare, EphemeralCommand};
use slog::{Logger, debug, info};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::hub_task::HubHandle;
use crate::raft::Proposer;

/// What it works with.
pub(crate) struct EphemeralTask {
    pub hub: HubHandle,
    pub proposer: Proposer,
    /// The process's: measures how long nobody was seen.
    pub clock: Clock,
    /// For the times people read.
    pub cluster_clock: ClusterClock,
    pub stop: CancellationToken,
    pub log: Logger,
}

impl EphemeralTask {
    /// Runs until the Server stops.
    pub(crate) async fn run(self) {
        let mut care = EphemeralCare::new(self.clock.now());
        let mut looks = interval(EPHEMERAL_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let Ok(online) = self.hub.online().await else { return };
            for command in self.look(&mut care, &online) {
                tokio::select! {
                    () = self.propose(command) => {}
                    () = self.stop.cancelled() => return,
                }
            }
        }
    }

    fn look(&self, care: &mut EphemeralCare, online: &BTreeSet<NodeId>) -> Vec<EphemeralCommand> {
        let view = self.proposer.view();
        care.look(&view.state, online, view.leads(), self.clock.now())
    }

    async fn propose(&self, command: EphemeralCommand) {
        let body = match command {
            EphemeralCommand::See(ids) => CommandBody::SeeIdentities { ids, now: self.cluster_clock.now() },
            EphemeralCommand::Forget(ids) => {
                info!(self.log, "forgetting ephemeral identities"; "count" => ids.len());
                CommandBody::ForgetIdentities(ids)
            }
        };
        let request_id = RequestId::new(uuid::Uuid::new_v4());
        if let Err(error) = self.proposer.propose(Command { request_id, body }).await {
            debug!(self.log, "ephemeral identities not updated yet"; "reason" => %error);
        }
    }
}
