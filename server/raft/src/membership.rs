//! Who belongs to the raft group, and the changes that are allowed (SPEC C8).
//!
//! A member joins as a learner and is promoted once it has caught up. Changes of more than one voter go through
//! a joint configuration, which raft leaves by itself; one change at a time. Which change is *wanted* is decided
//! elsewhere; here is the mechanism and what it refuses.

use std::collections::BTreeSet;

use p2p_common::member::RaftId;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

use crate::core::MemberProgress;

/// The members by their part. While `outgoing` is not empty the configuration is joint: every decision needs a
/// majority of `voters` and one of `outgoing`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Count for the quorum.
    pub voters: BTreeSet<RaftId>,
    /// Hold the state, do not count.
    pub learners: BTreeSet<RaftId>,
    /// The voters before the joint change.
    pub outgoing: BTreeSet<RaftId>,
    /// Voters that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<RaftId>,
    /// Raft leaves the joint configuration by itself.
    pub auto_leave: bool,
}

impl Membership {
    /// A group of one.
    pub fn sole_voter(id: RaftId) -> Self {
        Membership { voters: BTreeSet::from([id]), ..Membership::default() }
    }

    /// Whether two sets of voters have to agree.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` has any part in it.
    pub fn contains(&self, id: RaftId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id) || self.learners.contains(&id)
    }

    /// Whether `id` has a vote now.
    pub fn is_voter(&self, id: RaftId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Everyone, ascending.
    pub fn all(&self) -> BTreeSet<RaftId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// Whether raft accepts it; it panics on others.
    pub(crate) fn is_consistent(&self) -> bool {
        !self.voters.is_empty()
            && !self.all().contains(&0)
            && self.learners.is_disjoint(&self.voters)
            && self.learners.is_disjoint(&self.outgoing)
            && self.learners_next.is_subset(&self.outgoing)
            && self.learners_next.is_disjoint(&self.voters)
            && (self.is_joint() || !self.auto_leave)
    }

    pub(crate) fn to_raft(&self) -> ConfState {
        let list = |set: &BTreeSet<RaftId>| set.iter().copied().collect::<Vec<_>>();
        let mut state = ConfState::default();
        state.set_voters(list(&self.voters));
        state.set_learners(list(&self.learners));
        state.set_voters_outgoing(list(&self.outgoing));
        state.set_learners_next(list(&self.learners_next));
        state.set_auto_leave(self.auto_leave);
        state
    }

    pub(crate) fn from_raft(state: &ConfState) -> Self {
        let set = |list: &[RaftId]| list.iter().copied().collect::<BTreeSet<_>>();
        Membership {
            voters: set(state.get_voters()),
            learners: set(state.get_learners()),
            outgoing: set(state.get_voters_outgoing()),
            learners_next: set(state.get_learners_next()),
            auto_leave: state.get_auto_leave(),
        }
    }
}

/// A wanted change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipChange {
    /// A new member, without a vote.
    AddLearner(RaftId),
    /// Exactly these vote from now on, all of them members already; former voters become learners.
    SetVoters(BTreeSet<RaftId>),
    /// `id` leaves, and exactly `voters` vote from now on, in one step.
    Remove {
        /// Who leaves; not the leader itself.
        id: RaftId,
        /// Who votes afterwards.
        voters: BTreeSet<RaftId>,
    },
}

/// Why a change is refused. Nothing was proposed; most reasons pass with time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// One change at a time.
    #[error("another change of the members is under way: try again when it is done")]
    UnderWay,
    /// Nothing to do.
    #[error("the members are as wanted already")]
    NoChange,
    /// Not known.
    #[error("raft id {0} is not a member: add it as a learner first")]
    NotAMember(RaftId),
    /// There would be nobody to decide.
    #[error("no voter would be left")]
    NoVoters,
    /// It both leaves and votes.
    #[error("raft id {0} cannot leave and vote at once")]
    LeavesAndVotes(RaftId),
    /// The leader would remove itself.
    #[error("raft id {0} leads: hand the leadership over before removing it")]
    LeaderLeaves(RaftId),
    /// A voter that lacks entries would stop commits until it has them.
    #[error("raft id {id} is {behind} entries behind: wait until it has caught up")]
    NotCaughtUp {
        /// The learner.
        id: RaftId,
        /// How many entries it lacks.
        behind: u64,
    },
    /// A vote would go to somebody who cannot cast it.
    #[error("raft id {0} was not heard lately: is it running?")]
    Unreachable(RaftId),
    /// Too few of the new voters were heard lately.
    #[error("only {reachable} of the {voters} wanted voters are reachable: the quorum would be lost")]
    QuorumUnreachable {
        /// Heard within an election time-out, the leader included.
        reachable: usize,
        /// Wanted voters.
        voters: usize,
    },
}

/// What the leader knows when it plans a change.
pub(crate) struct Situation<'a> {
    pub(crate) me: RaftId,
    pub(crate) membership: &'a Membership,
    /// Followers, as the leader sees them.
    pub(crate) progress: &'a [MemberProgress],
    pub(crate) caught_up_entries: u64,
    pub(crate) election_ticks: u64,
}

impl Situation<'_> {
    /// The conf change that brings about `change`, if it is safe now.
    pub(crate) fn plan(&self, change: &MembershipChange) -> Result<ConfChangeV2, ChangeRefused> {
        if self.membership.is_joint() {
            return Err(ChangeRefused::UnderWay);
        }
        let mut singles = Vec::new();
        match change {
            MembershipChange::AddLearner(id) => {
                if self.membership.contains(*id) {
                    return Err(ChangeRefused::NoChange);
                }
                singles.push((*id, ConfChangeType::AddLearnerNode));
            }
            MembershipChange::SetVoters(voters) => self.revote(voters, None, &mut singles)?,
            MembershipChange::Remove { id, voters } => {
                self.check_leaver(*id, voters)?;
                self.revote(voters, Some(*id), &mut singles)?;
                singles.push((*id, ConfChangeType::RemoveNode));
            }
        }
        if singles.is_empty() {
            return Err(ChangeRefused::NoChange);
        }
        let mut conf_change = ConfChangeV2::default();
        conf_change.set_changes(
            singles
                .into_iter()
                .map(|(id, kind)| {
                    let mut single = ConfChangeSingle { node_id: id, ..Default::default() };
                    single.set_change_type(kind);
                    single
                })
                .collect::<Vec<_>>()
                .into(),
        );
        Ok(conf_change)
    }

    fn check_leaver(&self, id: RaftId, voters: &BTreeSet<RaftId>) -> Result<(), ChangeRefused> {
        if !self.membership.contains(id) {
            return Err(ChangeRefused::NotAMember(id));
        }
        if voters.contains(&id) {
            return Err(ChangeRefused::LeavesAndVotes(id));
        }
        // A leader that is no member any more cannot even count its own log; raft panics on it.
        if id == self.me {
            return Err(ChangeRefused::LeaderLeaves(id));
        }
        Ok(())
    }

    fn revote(
        &self,
        voters: &BTreeSet<RaftId>,
        leaver: Option<RaftId>,
        singles: &mut Vec<(RaftId, ConfChangeType)>,
    ) -> Result<(), ChangeRefused> {
        if voters.is_empty() {
            return Err(ChangeRefused::NoVoters);
        }
        let promoted: Vec<_> = voters.difference(&self.membership.voters).copied().collect();
        let demoted = self.membership.voters.difference(voters).copied().filter(|id| Some(*id) != leaver);
        for id in &promoted {
            if !self.membership.contains(*id) {
                return Err(ChangeRefused::NotAMember(*id));
            }
            if !self.is_reachable(*id) {
                return Err(ChangeRefused::Unreachable(*id));
            }
            self.check_caught_up(*id)?;
        }
        let reachable = voters.iter().filter(|id| self.is_reachable(**id)).count();
        if *voters != self.membership.voters && reachable <= voters.len() / 2 {
            return Err(ChangeRefused::QuorumUnreachable { reachable, voters: voters.len() });
        }
        singles.extend(demoted.map(|id| (id, ConfChangeType::AddLearnerNode)));
        singles.extend(promoted.into_iter().map(|id| (id, ConfChangeType::AddNode)));
        Ok(())
    }

    fn check_caught_up(&self, id: RaftId) -> Result<(), ChangeRefused> {
        let progress = self.progress.iter().find(|p| p.raft_id == id);
        let progress = progress.ok_or(ChangeRefused::NotAMember(id))?;
        if progress.behind > self.caught_up_entries || progress.receives_snapshot {
            return Err(ChangeRefused::NotCaughtUp { id, behind: progress.behind });
        }
        Ok(())
    }

    fn is_reachable(&self, id: RaftId) -> bool {
        let heard = |p: &MemberProgress| p.silent_ticks.is_some_and(|ticks| ticks <= self.election_ticks);
        id == self.me || self.progress.iter().any(|p| p.raft_id == id && heard(p))
    }
}
