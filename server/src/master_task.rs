//! Publishes the Master's title: raft's leader at once, a provisional one where no quorum is in reach.
//!
//! ```text
//! View (raft thread) ──┐
//! Reach (transport) ───┼──► MasterTracker ──► watch<Option<MasterTitle>> ──► Proposer, API, health
//! every 100 ms ────────┘
//! ```
//!
//! Owner of the title. Which one it is, `p2p-server-core`'s [`MasterTracker`] decides. Source: SPEC C5, C6.

use std::sync::Arc;

use p2p_common::member::MasterTitle;
use p2p_runtime::clock::{Clock, unix_now};
use p2p_server_core::{MasterSight, MasterTracker, RaftSight};
use p2p_server_raft::Role;
use slog::{Logger, info};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::View;
use crate::transport::Reach;

/// The task. See the module.
#[derive(Debug)]
pub struct MasterTask {
    /// What raft says.
    pub view: watch::Receiver<Arc<View>>,
    /// Which other Servers are there.
    pub reach: watch::Receiver<Arc<Reach>>,
    /// Where the title goes.
    pub title: watch::Sender<Option<MasterTitle>>,
    /// Its start counts as the process's.
    pub clock: Clock,
    /// Ends the task.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl MasterTask {
    /// Keeps the title until the process stops.
    pub async fn run(mut self) {
        let mut tracker = MasterTracker::new();
        loop {
            self.look(&mut tracker);
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                changed = self.reach.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(MasterTracker::LOOK_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn look(&mut self, tracker: &mut MasterTracker) {
        let view = Arc::clone(&self.view.borrow_and_update());
        let reach = Arc::clone(&self.reach.borrow_and_update());
        let reached = reach.of.iter().map(|(id, reached)| (*id, reached.started)).collect();
        let sight = MasterSight {
            me: view.raft_id,
            started: self.clock.started(),
            raft: RaftSight {
                leader: view.status.leader,
                term: view.status.term,
                leads: view.status.role == Role::Leader,
                leader_ready: view.status.leader_ready,
            },
            voters: [&view.membership.voters, &view.membership.outgoing],
            reached: &reached,
            state: &view.state,
        };
        if !tracker.handle_sight(&sight, self.clock.now(), unix_now()) {
            return;
        }
        match tracker.title() {
            Some(title) => info!(self.log, "master changed"; "master" => &title.name, "id" => title.id,
                "term" => title.term, "provisional" => title.provisional),
            None => info!(self.log, "no master now"),
        }
        self.title.send_replace(tracker.title().cloned());
    }
}
