//! The first part of a clean stop: leadership, and the only vote of two, go to somebody who lives, so that nobody has
//! to notice that this Server is gone (SPEC C10, C4).
//!
//! ```text
//! told to stop ─► others are told ─► a voter takes over ─────────────────────────────► API, tasks, raft
//!                                └─► voting alone: the learner gets the vote, then leads ─┘
//! ```
//!
//! Writes go on meanwhile; those caught by the change of leaders are proposed again by whoever took them in. What is
//! not done in time is left: the others elect, or wait for this Server to come back.

use std::time::Duration;

use p2p_server_core::{GroupChange, MemberHealth, before_stop};
use slog::{Logger, debug, info};
use tokio::time::{Instant, timeout_at};

use crate::group::Group;
use crate::raft::{Proposer, View};
use crate::transport::Remotes;

/// For all of this. A learner that is a little behind has it after one round trip.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Two Servers told to stop at once shall both know of it before a vote moves to one that goes as well.
const HEAR_OTHERS: Duration = Duration::from_millis(50);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a Server that stops hands over.
pub(super) struct HandOver {
    pub group: Group,
    pub proposer: Proposer,
    pub remotes: Remotes,
    pub log: Logger,
}

impl HandOver {
    /// Returns when there is nothing left to hand over, nobody to take it, or no time.
    pub(super) async fn run(self) {
        self.remotes.tell_stopping();
        let until = Instant::now() + HAND_OVER_TIMEOUT;
        if self.proposer.view().leads() && self.proposer.view().membership.voters.len() == 1 {
            tokio::time::sleep(HEAR_OTHERS).await;
        }
        if timeout_at(until, self.hand_over()).await.is_err() {
            info!(self.log, "stopping without having handed over");
        }
    }

    async fn hand_over(&self) {
        let mut views = self.proposer.watch_view();
        let mut led = false;
        loop {
            let view = views.borrow_and_update().clone();
            if !view.leads() {
                return if led { self.see_successor_commit().await } else { self.wait_for_leader().await };
            }
            led = true;
            // Raft leaves the joint configuration by itself.
            if !view.membership.is_joint() && !self.step(&view).await {
                return;
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Says whether there is more to do.
    async fn step(&self, view: &View) -> bool {
        let Ok(mut members) = self.group.health(view).await else { return false };
        let reach = std::sync::Arc::clone(&self.remotes.reach().borrow());
        for member in &mut members {
            member.reachable &= !reach.of.get(&member.raft_id).is_some_and(|reached| reached.stopping);
        }
        let Some(change) = before_stop(view.raft_id, &members) else {
            let takes_part = |member: &MemberHealth| member.raft_id != view.raft_id && member.registered;
            // One that is there and a little behind will not be for long.
            return members.iter().any(|member| takes_part(member) && member.reachable);
        };
        match &change {
            GroupChange::HandOver(to) => info!(self.log, "leadership is handed over"; "to" => to),
            change => info!(self.log, "the vote is handed over"; "change" => ?change),
        }
        if let Err(error) = self.group.carry_out(change).await {
            debug!(self.log, "not handed over yet"; "reason" => %error);
        }
        true
    }

    /// The successor may not know yet that the change of voters is over, and until it does it cannot commit without this
    /// Server. A read that it confirms says that it has committed in its own term.
    async fn see_successor_commit(&self) {
        while let Err(error) = self.proposer.read_barrier().await {
            debug!(self.log, "the successor is not ready yet"; "reason" => %error);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whoever asks this Server meanwhile is still told who leads.
    async fn wait_for_leader(&self) {
        let mut views = self.proposer.watch_view();
        let known = views.wait_for(|view| view.status.leader.is_some_and(|leader| leader != view.raft_id));
        // A follower of nobody has nothing to wait for, but the time it gets is bounded anyway.
        let _ = tokio::time::timeout(LOOK_EVERY * 5, known).await;
    }
}
