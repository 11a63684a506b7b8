//! Who leads, beyond what raft itself does: the only voter elects itself, a leader that lost its vote or its place hands
//! over, a joint configuration is left. Owner of nothing: it looks at the core and steps raft.

use p2p_common::member::RaftId;
use raft::StateRole;
use slog::{debug, info, warn};

use super::RaftCore;
use crate::output::Role;

impl RaftCore {
    /// A silent leader is protected for one tick less than the time-out: a voter asked by another one that has
    /// counted all ticks may have counted one less itself, as their ticks fall at different moments.
    pub(super) fn end_lease(&mut self) {
        let raft = &mut self.raw.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id != raft::INVALID_ID;
        if follows && raft.election_elapsed + 1 == raft.election_timeout() {
            raft.election_elapsed += 1;
        }
    }

    pub(super) fn campaign(&mut self) {
        // raft-rs asks no one who is told to stand whether it may.
        if !self.raw.raft.promotable() {
            return;
        }
        if let Err(error) = self.raw.campaign() {
            debug!(self.logger, "campaign not begun"; "error" => %error);
        }
        self.observe();
    }

    /// Who knows that the leader's process is gone stands for election at once.
    pub(super) fn stand_on_evidence(&mut self) {
        self.campaign();
        self.election.note_standing(self.tick);
    }

    /// Two that stood at the same moment have split the votes. The leader is as gone as before: waiting out a whole
    /// time-out would help nobody.
    pub(super) fn stand_again(&mut self) {
        if self.election.is_again_due(&self.status, self.tick) {
            let stands = matches!(self.status.role, Role::PreCandidate | Role::Candidate);
            if stands && !self.leads() && self.log_is_stored() {
                self.campaign();
            }
            self.election.note_standing(self.tick);
        }
    }

    /// The only voter needs nobody's vote (SPEC C4: one Server alone is Master at once).
    pub(super) fn campaign_if_alone(&mut self) {
        let me = self.config.raft_id;
        let alone = !self.membership.is_joint() && self.membership.voters.iter().eq([&me]);
        // After a start the members are those of the snapshot until the log is applied again.
        let current = self.applied == self.committed();
        if alone && current && !self.leads() && self.log_is_stored() {
            self.campaign();
        }
    }

    /// raft leaves a joint configuration by itself, but not when the leader changed at the wrong moment.
    pub(super) fn leave_old_joint(&mut self) {
        let old = |since| self.tick - since >= self.config.joint_leave_ticks;
        let due = self.joint_since_tick.is_some_and(old);
        if !due || self.check_may_propose().is_err() || self.raw.raft.has_pending_conf() {
            return;
        }
        warn!(self.logger, "joint configuration left by hand"; "members" => ?self.membership);
        if let Err(error) = self.raw.propose_conf_change(Vec::new(), raft::eraftpb::ConfChangeV2::default()) {
            debug!(self.logger, "leaving the joint configuration not proposed"; "error" => %error);
        }
        // Once per interval, should it get lost again.
        self.joint_since_tick = Some(self.tick);
        self.observe();
    }

    /// A leader that lost its vote goes on leading in raft; it hands over to the best voter.
    pub(super) fn hand_over_if_demoted(&mut self) {
        let demoted = !self.membership.is_joint() && !self.membership.voters.contains(&self.config.raft_id);
        if !demoted || self.check_may_propose().is_err() {
            return;
        }
        let Some(best) = self.best_voter() else { return };
        info!(self.logger, "demoted leader hands over"; "to" => best);
        self.raw.transfer_leader(best);
        self.observe();
    }

    /// A node that is being removed can stand for election, and win, before it is gone. raft-rs panics when it is elected
    /// or leads on after that, so it steps down with the entry that removes it.
    pub(super) fn step_down_if_removed(&mut self) {
        if self.raw.raft.state == StateRole::Follower || self.membership.contains(self.config.raft_id) {
            return;
        }
        info!(self.logger, "removed server steps down"; "led" => self.leads());
        if let Some(best) = self.best_voter() {
            self.raw.raft.send_timeout_now(best);
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.observe();
    }

    /// raft-rs takes a leader beside a single voter for that voter and confirms reads by nobody's leave, while
    /// the voter may have been elected already.
    pub(super) fn leads_without_vote(&self) -> bool {
        self.leads() && !self.membership.is_voter(self.config.raft_id)
    }

    /// Whether raft takes this node for the leader, told or not.
    pub(super) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// A voter alone elects itself without a word to anyone, so its term and its vote may be news to its own
    /// disk. Until they are stored, a crash gives the term away again, to itself or to another: it must neither
    /// send nor be called a leader. raft-rs does not hold its messages back.
    pub(super) fn ballot_is_stored(&self) -> bool {
        self.stored_ballot == (self.raw.raft.term, self.raw.raft.vote)
    }

    pub(super) fn best_voter(&self) -> Option<RaftId> {
        self.progress()
            .into_iter()
            .filter(|member| self.membership.voters.contains(&member.raft_id))
            .max_by_key(|member| (member.matched, std::cmp::Reverse(member.raft_id)))
            .map(|member| member.raft_id)
    }
}
