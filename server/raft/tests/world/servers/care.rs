//! What Servers do for their group, as their tasks do it in earnest: the leader asks the autopilot, a Server that stops
//! hands over, and one that was taken out stops.

use std::collections::BTreeSet;
use std::time::Duration;

use p2p_common::Now;
use p2p_common::command::CommandBody;
use p2p_common::member::{MemberRole, RaftId};
use p2p_server_core::{GroupChange, MemberHealth, before_stop, check_removal};
use p2p_server_raft::{MembershipChange, Role};
use rand::Rng;

use super::{Name, Servers, node_id};

/// How often a leader looks after its group.
const TEND_EVERY_MS: u64 = 250;
/// How long a leader keeps in mind that a member shall lose its vote.
const LEAVING_MS: u64 = 5_000;

impl Servers {
    /// What a leader knows of all members.
    fn health(&self, leader: RaftId, name: Name) -> Vec<MemberHealth> {
        let (core, state) = (self.world.core(leader), self.world.state(leader));
        let (members, progress, reached) = (core.membership(), core.progress(), self.reached(name));
        let registered: BTreeSet<RaftId> = state.members.values().map(|member| member.raft_id).collect();
        let of = |raft_id: RaftId| {
            let me = raft_id == leader;
            let seen = progress.iter().find(|p| p.raft_id == raft_id);
            let role = match () {
                () if members.is_voter(raft_id) => MemberRole::Voter,
                () if members.contains(raft_id) => MemberRole::Learner,
                () => MemberRole::Joining,
            };
            let config = &self.world.config;
            MemberHealth {
                raft_id,
                role,
                registered: registered.contains(&raft_id),
                leaving: self.servers[&name].leaving.get(&raft_id).is_some_and(|t| *t > self.world.now_ms),
                caught_up: me
                    || seen.is_some_and(|p| {
                        p.behind <= config.caught_up_entries && !p.receives_snapshot && p.matched > 0
                    }),
                reachable: me
                    || reached.contains_key(&raft_id)
                        && seen.is_some_and(|p| p.silent_ticks.is_some_and(|t| t <= config.election_ticks)),
                started: if me {
                    Some(Now::from_ms(self.servers[&name].started_ms))
                } else {
                    reached.get(&raft_id).copied()
                },
            }
        };
        registered.union(&members.all()).map(|raft_id| of(*raft_id)).collect()
    }

    /// The care of `name` for its group.
    pub(super) fn tend(&mut self, name: Name) {
        let Some(id) = self.raft_id(name).filter(|id| self.world.is_running(*id)) else { return };
        let now_ms = self.world.now_ms;
        let now = Now::from_ms(now_ms);
        let members = self.world.core(id).membership().clone();
        let leads = self.world.status(id).is_some_and(|status| status.leader_ready);
        let server = self.server(name);
        if !members.is_joint() {
            server.pilot.handle_voters(&members.voters, now);
        }
        if !leads {
            return server.pilot.handle_not_leading();
        }
        if members.is_joint() || now_ms % TEND_EVERY_MS >= self.world.step_ms {
            return;
        }
        let health = self.health(id, name);
        let replace_after: Duration = self.world.state(id).voter_replace_after();
        if let Some(change) = self.server(name).pilot.next_change(id, &health, replace_after, now) {
            self.carry_out(id, change);
        }
    }

    fn carry_out(&mut self, leader: RaftId, change: GroupChange) {
        let change = match change {
            GroupChange::HandOver(to) => {
                self.world.input(leader, |core| core.handle_transfer(to).ok());
                return;
            }
            GroupChange::AddLearner(id) => MembershipChange::AddLearner(id),
            GroupChange::SetVoters(voters) => MembershipChange::SetVoters(voters),
            GroupChange::Remove { id, voters } => MembershipChange::Remove { id, voters },
        };
        self.world.change(leader, &change);
    }

    /// A Server that stops hands over until there is nothing more to do, or no time.
    pub(super) fn hand_over(&mut self, name: Name) {
        let Some(until_ms) = self.servers[&name].stops_at_ms else { return };
        let Some(id) = self.raft_id(name).filter(|id| self.world.is_running(*id)) else { return };
        let leads = self.world.status(id).is_some_and(|status| status.role == Role::Leader);
        let mut done = !leads || self.world.now_ms >= until_ms;
        let waits = self.world.core(id).membership().is_joint() || !self.world.now_ms.is_multiple_of(20);
        if !done && !waits {
            let mut health = self.health(id, name);
            for member in &mut health {
                let stopping = |name: Name| self.servers[&name].stops_at_ms.is_some();
                member.reachable &= !self.name_of(member.raft_id).is_some_and(stopping);
            }
            match before_stop(id, &health) {
                Some(change) => {
                    self.hand_overs += 1;
                    self.carry_out(id, change);
                }
                None => done = !health.iter().any(|m| m.raft_id != id && m.registered && m.reachable),
            }
        }
        if done {
            self.world.crash(id);
        }
    }

    /// Leaves under way, as the leader carries them out; and who is out is told so and stops.
    pub(super) fn take_out(&mut self) {
        let now_ms = self.world.now_ms;
        let Some(leader) = self.world.leader() else { return };
        let Some(care) = self.name_of(leader) else { return };
        for mut leave in std::mem::take(&mut self.leaves) {
            // It may have crashed over the one before.
            if !self.world.is_running(leader) {
                self.leaves.push(leave);
                continue;
            }
            let member = self.world.state(leader).members.get(&node_id(leave.name)).cloned();
            let Some(member) = member.filter(|_| now_ms < leave.until_ms) else { continue };
            if leave.request.is_none() && now_ms.is_multiple_of(20) {
                let health = self.health(leader, care);
                if check_removal(leader, &health, member.raft_id).is_err() {
                    continue;
                }
                if self.world.core(leader).membership().is_voter(member.raft_id) {
                    self.server(care).leaving.insert(member.raft_id, now_ms + LEAVING_MS);
                } else {
                    let body = CommandBody::RemoveMember(member.id);
                    leave.request = Some(self.world.propose_body(leader, body));
                    self.removals += 1;
                }
            }
            self.leaves.push(leave);
        }
        if !self.world.is_running(leader) {
            return;
        }
        let registered: BTreeSet<_> = self.registered();
        let next = self.world.state(leader).next_raft_id;
        let grouped = self.world.core(leader).membership().all();
        for name in self.names() {
            let Some(id) = self.raft_id(name).filter(|id| *id < next && !registered.contains(id)) else {
                continue;
            };
            // Nobody else knows it under this number any more; not all at once. Who is in the group still is heard: the
            // only vote may have been on its way to it.
            if !grouped.contains(&id) && self.world.rng.random_bool(0.002) {
                self.world.destroy(id);
                self.servers.remove(&name);
            }
        }
    }
}
