//! The leader's care for the raft group: table C says who is a member, the group follows, one change at a time.
//!
//! Which change is due is `p2p-server-core`'s autopilot; whether it is safe now, the raft core's. What is refused is
//! asked for again. Runs on every Server, acts on the leader only.

use std::collections::BTreeSet;
use std::time::Duration;

use p2p_common::member::{MemberRole, RaftId};
use p2p_runtime::clock::Clock;
use p2p_server_core::{Autopilot, GroupChange, MemberHealth};
use p2p_server_raft::{MemberProgress, MembershipChange, RaftConfig};
use slog::{Logger, debug, info};
use tokio_util::sync::CancellationToken;

use crate::raft::{ProposeError, Proposer, View};

/// How often the group is looked at while nothing happens: a learner catches up without an event here.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Keeps the group as table C and the number of voters ask, until `stop`.
pub async fn tend(
    proposer: Proposer,
    limits: RaftConfig,
    clock: Clock,
    stop: CancellationToken,
    log: Logger,
) {
    let mut view = proposer.watch_view();
    let mut pilot = Autopilot::new();
    let mut said = String::new();
    loop {
        let now = view.borrow_and_update().clone();
        if !now.membership.is_joint() {
            pilot.handle_voters(&now.membership.voters, clock.now());
        }
        if !now.leads() {
            pilot.handle_not_leading();
        } else if !now.membership.is_joint() {
            let done = step(&proposer, &mut pilot, &now, &limits, clock, &log).await;
            let words = done.map_or_else(|e| e.to_string(), |()| String::new());
            if !words.is_empty() && words != said {
                debug!(log, "member change not made yet"; "reason" => &words);
            }
            said = words;
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn step(
    proposer: &Proposer,
    pilot: &mut Autopilot,
    view: &View,
    limits: &RaftConfig,
    clock: Clock,
    log: &Logger,
) -> Result<(), ProposeError> {
    let members = health(view, &proposer.progress().await?, limits);
    let replace_after = view.state.voter_replace_after();
    let change = match pilot.next_change(view.raft_id, &members, replace_after, clock.now()) {
        None => return Ok(()),
        Some(GroupChange::HandOver(to)) => {
            info!(log, "handing the leadership over"; "to" => to);
            return proposer.transfer(to).await;
        }
        Some(GroupChange::AddLearner(id)) => MembershipChange::AddLearner(id),
        Some(GroupChange::SetVoters(voters)) => MembershipChange::SetVoters(voters),
        Some(GroupChange::Remove { id, voters }) => MembershipChange::Remove { id, voters },
    };
    proposer.change_members(change).await
}

fn health(view: &View, progress: &[MemberProgress], limits: &RaftConfig) -> Vec<MemberHealth> {
    let registered: BTreeSet<RaftId> = view.state.members.values().map(|member| member.raft_id).collect();
    let known = registered.union(&view.membership.all()).copied().collect::<Vec<_>>();
    let of = |raft_id: RaftId| {
        let me = raft_id == view.raft_id;
        let seen = progress.iter().find(|p| p.raft_id == raft_id);
        let heard = |p: &MemberProgress| p.silent_ticks.is_some_and(|ticks| ticks <= limits.election_ticks);
        let caught_up = |p: &MemberProgress| {
            p.behind <= limits.caught_up_entries && !p.receives_snapshot && p.matched > 0
        };
        let role: MemberRole = view.role_of(raft_id);
        MemberHealth {
            raft_id,
            role,
            leaving: false,
            started: None,
            registered: registered.contains(&raft_id),
            caught_up: me || seen.is_some_and(caught_up),
            reachable: me || seen.is_some_and(heard),
        }
    };
    known.into_iter().map(of).collect()
}
