//! Which change of the raft group is due: how many voters, and who.
//!
//! Asked by the leader after every change and every moment. The answer follows from what the members are now and how
//! long they have been so; nothing else is remembered, and a change that raft refused is asked for again.
//!
//! - Voters are counted over registered members (table C): of 1-2 one votes, of 3-4 three, of 5 and more five;
//!   the others are learners. So the group never rests at two or four voters.
//! - A new member starts as a learner. From one voter to three it goes in one joint change, once both learners
//!   have caught up.
//! - Only an explicit leave makes a group smaller. Whoever leaves loses its vote first, while everyone still speaks with
//!   it; only then it is taken out of table C, then out of the group. A leader that leaves hands over before.
//! - A crash changes no vote. A voter silent for long is replaced by a learner that has caught up, if there is one.
//! - Of two Servers the one that has run longer gets the vote, if both have been fine for a while and the vote has not
//!   moved lately.
//!
//! It does not check what raft checks again (catching up, reachable quorum), and does not carry out anything.
//! Owner: the Server's care for its group. Source: SPEC C4, C8, FACTS 4.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use p2p_common::Now;
use p2p_common::member::{MemberRole, RaftId};

/// What the leader knows of one Server, in table C or in the raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its number inside raft.
    pub raft_id: RaftId,
    /// Its part in the raft group; joining when it has none.
    pub role: MemberRole,
    /// It is in table C; one that is not is no more to be in the group.
    pub registered: bool,
    /// An operator wants it out: it loses its vote.
    pub leaving: bool,
    /// It has nearly everything the leader has. The leader itself has.
    pub caught_up: bool,
    /// It was heard lately. The leader itself was.
    pub reachable: bool,
    /// When its process started, on the leader's clock; none while that is not known.
    pub started: Option<Now>,
}

impl MemberHealth {
    /// It counts for how many voters there are.
    fn stays(&self) -> bool {
        self.registered && !self.leaving
    }

    fn votes(&self) -> bool {
        self.role == MemberRole::Voter
    }

    fn is_fit(&self) -> bool {
        self.caught_up && self.reachable
    }
}

/// A due change of the raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChange {
    /// Take this member in, without a vote.
    AddLearner(RaftId),
    /// Exactly these vote from now on, by one joint change; former voters become learners.
    SetVoters(BTreeSet<RaftId>),
    /// This member leaves, and exactly `voters` vote from now on, by one change.
    Remove {
        /// Who leaves; never the leader.
        id: RaftId,
        /// Who votes afterwards.
        voters: BTreeSet<RaftId>,
    },
    /// Hand the leadership to this voter.
    HandOver(RaftId),
}

/// Why a member cannot be taken out now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemovalRefused {
    /// It is not in table C.
    #[error("raft id {0} is not a member")]
    NotAMember(RaftId),
    /// Nobody would be left.
    #[error("it is the last server of its cluster: stop it instead")]
    Last,
    /// Too few of those left could vote.
    #[error(
        "the quorum would be lost: {needed} of the servers that are left must vote then, and too few of them are running \
         and up to date"
    )]
    QuorumLost {
        /// Voters there must be.
        needed: usize,
        /// Those left that cannot take part now.
        unfit: Vec<RaftId>,
    },
}

/// How many of `registered` Servers vote.
pub const fn target_voters(registered: usize) -> usize {
    match registered {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// Whether the group, without `id`, would have as many voters as it must have, and most of them there. `members` as
/// for [`Autopilot::next_change`].
///
/// # Errors
/// When not.
pub fn check_removal(leader: RaftId, members: &[MemberHealth], id: RaftId) -> Result<(), RemovalRefused> {
    let mut without = members.to_vec();
    let member = without.iter_mut().find(|member| member.raft_id == id && member.registered);
    let member = member.ok_or(RemovalRefused::NotAMember(id))?;
    member.leaving = true;
    let votes = member.votes();
    if !without.iter().any(MemberHealth::stays) {
        return Err(RemovalRefused::Last);
    }
    let long_silent = BTreeSet::new();
    let group = Group { leader, members: &without, long_silent: &long_silent };
    if !votes || group.wanted_voters().is_some() {
        return Ok(());
    }
    let unfit = without.iter().filter(|member| member.stays() && !member.is_fit());
    Err(RemovalRefused::QuorumLost {
        needed: group.target(),
        unfit: unfit.map(|member| member.raft_id).collect(),
    })
}

/// What a leader that is about to stop does first, so that nobody has to notice that it is gone: hands over to a voter,
/// or, voting alone, moves the vote to a learner. Asked again until it says nothing, or no time is left.
pub fn before_stop(leader: RaftId, members: &[MemberHealth]) -> Option<GroupChange> {
    let long_silent = BTreeSet::new();
    let group = Group { leader, members, long_silent: &long_silent };
    if let Some(successor) = group.successor() {
        return Some(GroupChange::HandOver(successor));
    }
    let alone = group.voters() == BTreeSet::from([leader]);
    let fit = |member: &&MemberHealth| {
        member.raft_id != leader && member.stays() && member.role == MemberRole::Learner && member.is_fit()
    };
    let heir = members.iter().filter(fit).map(|member| member.raft_id).min()?;
    alone.then(|| GroupChange::SetVoters(BTreeSet::from([heir])))
}

/// The care for one group, as one process sees it: how long its members have been as they are.
#[derive(Debug, Clone, Default)]
pub struct Autopilot {
    /// Connected and caught up since, without a break.
    steady_since: BTreeMap<RaftId, Now>,
    /// Not heard since.
    silent_since: BTreeMap<RaftId, Now>,
    /// Who voted alone last.
    sole_voter: Option<RaftId>,
    /// When the only vote last moved to another Server.
    vote_moved: Option<Now>,
}

impl Autopilot {
    /// Of two Servers, the one to get the vote has been connected and caught up for this long.
    pub const STEADY: Duration = Duration::from_secs(30);
    /// Between two moves of the vote of two Servers.
    pub const MOVE_EVERY: Duration = Duration::from_secs(600);
    /// Of two Servers the one that started this much earlier has run longer; less is no reason to move a vote.
    pub const LONGER: Duration = Duration::from_secs(1);

    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whoever leads, these vote at `now`; not to be called for a joint configuration.
    pub fn handle_voters(&mut self, voters: &BTreeSet<RaftId>, now: Now) {
        let sole = voters.first().copied().filter(|_| voters.len() == 1);
        if sole.is_some() && self.sole_voter.is_some() && sole != self.sole_voter {
            self.vote_moved = Some(now);
        }
        self.sole_voter = sole;
    }

    /// This process does not lead: what it knew of the others is old.
    pub fn handle_not_leading(&mut self) {
        self.steady_since.clear();
        self.silent_since.clear();
    }

    /// The next change that is due at `now`, or none. `leader` is the Server that asks; `members` are all Servers of
    /// table C and of the raft group, each once, outside of a joint configuration. A voter silent for
    /// `voter_replace_after` is replaced.
    pub fn next_change(
        &mut self,
        leader: RaftId,
        members: &[MemberHealth],
        voter_replace_after: Duration,
        now: Now,
    ) -> Option<GroupChange> {
        let ids = |wanted: fn(&MemberHealth) -> bool| {
            members.iter().filter(move |member| wanted(member)).map(|member| member.raft_id)
        };
        keep_since(&mut self.steady_since, ids(|m| m.caught_up && m.started.is_some()), now);
        keep_since(&mut self.silent_since, ids(|m| !m.reachable), now);
        let silent = self.silent_since.iter();
        let long_silent = silent.filter(|(_, since)| now.since(**since) >= voter_replace_after);
        let long_silent = long_silent.map(|(id, _)| *id).collect();
        let group = Group { leader, members, long_silent: &long_silent };
        if group.leader_lost_its_vote() {
            return group.hand_over_to_any();
        }
        let due = group.hand_over().or_else(|| group.remove()).or_else(|| group.add());
        due.or_else(|| group.revote()).or_else(|| self.place_vote(&group, now))
    }

    /// Of two, the longer-running one votes.
    fn place_vote(&self, group: &Group<'_>, now: Now) -> Option<GroupChange> {
        let [a, b] = group.members else { return None };
        let (me, other) = if a.raft_id == group.leader { (a, b) } else { (b, a) };
        let settled = me.raft_id == group.leader && me.votes() && other.role == MemberRole::Learner;
        let longer = me.started? > other.started? + Self::LONGER;
        let steady = self.steady_since.get(&other.raft_id);
        let steady = steady.is_some_and(|since| now.since(*since) >= Self::STEADY);
        let lately = self.vote_moved.is_some_and(|at| now.since(at) < Self::MOVE_EVERY);
        let due = settled && me.stays() && other.stays() && longer && steady && other.is_fit() && !lately;
        due.then(|| GroupChange::SetVoters(BTreeSet::from([other.raft_id])))
    }
}

/// Notes `now` for those of `ids` that are new, and forgets those that are not among them.
fn keep_since(since: &mut BTreeMap<RaftId, Now>, ids: impl Iterator<Item = RaftId>, now: Now) {
    *since = ids.map(|id| (id, since.get(&id).copied().unwrap_or(now))).collect();
}

struct Group<'a> {
    leader: RaftId,
    members: &'a [MemberHealth],
    /// Silent for so long that another one shall vote in its place.
    long_silent: &'a BTreeSet<RaftId>,
}

impl Group<'_> {
    /// It leads on until its successor does, and decides nothing more.
    fn leader_lost_its_vote(&self) -> bool {
        self.members.iter().any(|member| member.raft_id == self.leader && !member.votes())
    }

    /// A leader that leaves, or has no vote any more, cannot lead.
    fn hand_over(&self) -> Option<GroupChange> {
        let me = self.members.iter().find(|member| member.raft_id == self.leader)?;
        if me.stays() && me.votes() {
            return None;
        }
        self.successor().map(GroupChange::HandOver)
    }

    /// Who decides nothing more hands over also to a voter that leaves: that one gives its vote away when it leads.
    fn hand_over_to_any(&self) -> Option<GroupChange> {
        let leaves = |member: &&MemberHealth| member.votes() && member.is_fit() && !member.stays();
        let leaving = self.members.iter().filter(leaves).map(|member| member.raft_id).min();
        self.successor().or(leaving).map(GroupChange::HandOver)
    }

    /// The voter that could lead at once.
    fn successor(&self) -> Option<RaftId> {
        let fit = |member: &&MemberHealth| {
            member.raft_id != self.leader && member.stays() && member.votes() && member.is_fit()
        };
        self.members.iter().filter(fit).map(|member| member.raft_id).min()
    }

    fn remove(&self) -> Option<GroupChange> {
        let leaves = |member: &&MemberHealth| !member.registered && member.role != MemberRole::Joining;
        let mut leaving: Vec<&MemberHealth> = self.members.iter().filter(leaves).collect();
        // Learners first: nobody has to vote in their place.
        leaving.sort_by_key(|member| (member.votes(), member.raft_id));
        leaving.iter().find_map(|member| {
            let id = member.raft_id;
            match member.role {
                _ if id == self.leader => self.wanted_voters().map(GroupChange::SetVoters),
                MemberRole::Voter => self.wanted_voters().map(|voters| GroupChange::Remove { id, voters }),
                _ => Some(GroupChange::Remove { id, voters: self.voters() }),
            }
        })
    }

    fn add(&self) -> Option<GroupChange> {
        let joins = |member: &&MemberHealth| member.stays() && member.role == MemberRole::Joining;
        self.members.iter().filter(joins).map(|member| member.raft_id).min().map(GroupChange::AddLearner)
    }

    /// As many voters as there should be, none of them leaving or, as far as others can vote, silent for long.
    fn revote(&self) -> Option<GroupChange> {
        let wanted = self.wanted_voters()?;
        (wanted != self.voters()).then_some(GroupChange::SetVoters(wanted))
    }

    fn target(&self) -> usize {
        target_voters(self.members.iter().filter(|member| member.stays()).count())
    }

    fn voters(&self) -> BTreeSet<RaftId> {
        self.members.iter().filter(|member| member.votes()).map(|member| member.raft_id).collect()
    }

    /// As many voters as there should be, or none while there are not enough that could vote: the leader,
    /// then who votes already, then learners that have caught up and are there, then voters silent for long.
    fn wanted_voters(&self) -> Option<BTreeSet<RaftId>> {
        let target = self.target();
        let could_vote = |member: &&MemberHealth| match member.role {
            MemberRole::Voter => member.stays(),
            MemberRole::Learner => member.stays() && member.is_fit(),
            MemberRole::Joining => false,
        };
        let mut fit: Vec<&MemberHealth> = self.members.iter().filter(could_vote).collect();
        fit.sort_by_key(|member| {
            let silent = self.long_silent.contains(&member.raft_id);
            let leads = member.raft_id == self.leader;
            (!leads, silent, !member.votes(), !member.reachable, member.raft_id)
        });
        fit.truncate(target);
        let reachable = fit.iter().filter(|member| member.reachable).count();
        let quorum_lives = reachable > target / 2;
        (fit.len() == target && quorum_lives).then(|| fit.iter().map(|member| member.raft_id).collect())
    }
}

#[cfg(test)]
mod tests;
