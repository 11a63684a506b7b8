//! Which change of the raft group is due: how many voters, and who.
//!
//! A pure function, asked by the leader after every change and every second: the answer follows from what the
//! members are now, so nothing has to be remembered, and a change that raft refused is asked for again.
//!
//! - Voters are counted over registered members (table C): of 1-2 one votes, of 3-4 three, of 5 and more five;
//!   the others are learners. So the group never rests at two or four voters.
//! - A new member starts as a learner. From one voter to three it goes in one joint change, once both learners
//!   have caught up.
//! - Only an explicit leave makes a group smaller. A crash changes no vote.
//! - A leader that leaves hands its vote over first, then the leadership, and is removed by its successor.
//!
//! It does not check what raft checks again (catching up, reachable quorum), and does not carry out anything.
//! Source: SPEC C4, C8.

use std::collections::BTreeSet;

use p2p_common::member::{MemberRole, RaftId};

/// What the leader knows of one Server, in table C or in the raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its number inside raft.
    pub raft_id: RaftId,
    /// Its part in the raft group; joining when it has none.
    pub role: MemberRole,
    /// It is in table C; one that is not is leaving.
    pub registered: bool,
    /// It has nearly everything the leader has. The leader itself has.
    pub caught_up: bool,
    /// It was heard lately. The leader itself was.
    pub reachable: bool,
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

/// How many of `registered` Servers vote.
pub const fn target_voters(registered: usize) -> usize {
    match registered {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// The next change that is due, or none. `leader` is the Server that asks; `members` are all Servers of table C
/// and of the raft group, each once, outside of a joint configuration.
pub fn next_change(leader: RaftId, members: &[MemberHealth]) -> Option<GroupChange> {
    let group = Group { leader, members };
    group.hand_over().or_else(|| group.remove()).or_else(|| group.add()).or_else(|| group.revote())
}

struct Group<'a> {
    leader: RaftId,
    members: &'a [MemberHealth],
}

impl Group<'_> {
    /// A leader that leaves, or has no vote any more, cannot lead.
    fn hand_over(&self) -> Option<GroupChange> {
        let me = self.members.iter().find(|member| member.raft_id == self.leader)?;
        if me.registered && me.role == MemberRole::Voter {
            return None;
        }
        let fit = |member: &&MemberHealth| {
            member.raft_id != self.leader
                && member.registered
                && member.role == MemberRole::Voter
                && member.caught_up
                && member.reachable
        };
        let successor = self.members.iter().filter(fit).map(|member| member.raft_id).min();
        successor.map(GroupChange::HandOver)
    }

    fn remove(&self) -> Option<GroupChange> {
        let leaves = |member: &&MemberHealth| !member.registered && member.role != MemberRole::Joining;
        let mut leaving: Vec<&MemberHealth> = self.members.iter().filter(leaves).collect();
        // Learners first: nobody has to vote in their place.
        leaving.sort_by_key(|member| (member.role == MemberRole::Voter, member.raft_id));
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
        let joins = |member: &&MemberHealth| member.registered && member.role == MemberRole::Joining;
        self.members.iter().filter(joins).map(|member| member.raft_id).min().map(GroupChange::AddLearner)
    }

    fn revote(&self) -> Option<GroupChange> {
        let target = target_voters(self.members.iter().filter(|member| member.registered).count());
        if self.voters().len() == target {
            return None;
        }
        self.wanted_voters().map(GroupChange::SetVoters)
    }

    fn voters(&self) -> BTreeSet<RaftId> {
        let voters = self.members.iter().filter(|member| member.role == MemberRole::Voter);
        voters.map(|member| member.raft_id).collect()
    }

    /// As many voters as there should be, or none while there are not enough that could vote: the leader,
    /// then who votes already, then learners that have caught up and are there.
    fn wanted_voters(&self) -> Option<BTreeSet<RaftId>> {
        let registered: Vec<&MemberHealth> = self.members.iter().filter(|member| member.registered).collect();
        let target = target_voters(registered.len());
        let mut fit: Vec<&&MemberHealth> = registered
            .iter()
            .filter(|member| match member.role {
                MemberRole::Voter => true,
                MemberRole::Learner => member.caught_up && member.reachable,
                MemberRole::Joining => false,
            })
            .collect();
        fit.sort_by_key(|member| {
            let leads = member.raft_id == self.leader;
            (!leads, member.role != MemberRole::Voter, !member.reachable, member.raft_id)
        });
        fit.truncate(target);
        let reachable = fit.iter().filter(|member| member.reachable).count();
        let quorum_lives = reachable > target / 2;
        (fit.len() == target && quorum_lives).then(|| fit.iter().map(|member| member.raft_id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn voter(raft_id: RaftId) -> MemberHealth {
        let role = MemberRole::Voter;
        MemberHealth { raft_id, role, registered: true, caught_up: true, reachable: true }
    }

    fn learner(raft_id: RaftId) -> MemberHealth {
        MemberHealth { role: MemberRole::Learner, ..voter(raft_id) }
    }

    fn joining(raft_id: RaftId) -> MemberHealth {
        MemberHealth { role: MemberRole::Joining, caught_up: false, reachable: false, ..voter(raft_id) }
    }

    fn behind(member: MemberHealth) -> MemberHealth {
        MemberHealth { caught_up: false, ..member }
    }

    fn dead(member: MemberHealth) -> MemberHealth {
        MemberHealth { reachable: false, caught_up: false, ..member }
    }

    fn left(member: MemberHealth) -> MemberHealth {
        MemberHealth { registered: false, ..member }
    }

    fn set(ids: &[RaftId]) -> BTreeSet<RaftId> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_group_grows_by_learners_and_odd_steps() {
        use GroupChange::{AddLearner, SetVoters};
        let cases: [(&[MemberHealth], Option<GroupChange>); 11] = [
            (&[voter(1)], None),
            (&[voter(1), joining(2)], Some(AddLearner(2))),
            (&[voter(1), learner(2)], None),
            (&[voter(1), learner(2), joining(3)], Some(AddLearner(3))),
            (&[voter(1), learner(2), behind(learner(3))], None),
            (&[voter(1), learner(2), dead(learner(3))], None),
            (&[voter(1), learner(2), learner(3)], Some(SetVoters(set(&[1, 2, 3])))),
            (&[voter(1), behind(learner(2)), learner(3), learner(4)], Some(SetVoters(set(&[1, 3, 4])))),
            (&[voter(1), voter(2), voter(3), learner(4)], None),
            (&[voter(1), voter(2), voter(3), learner(4), behind(learner(5))], None),
            (
                &[voter(1), voter(2), voter(3), learner(4), learner(5), learner(6)],
                Some(SetVoters(set(&[1, 2, 3, 4, 5]))),
            ),
        ];
        for (members, expected) in cases {
            assert_eq!(next_change(1, members), expected, "{members:?}");
        }
    }

    #[test]
    fn a_crash_changes_no_vote() {
        assert_eq!(next_change(1, &[voter(1), voter(2), dead(voter(3))]), None);
        assert_eq!(next_change(1, &[voter(1), dead(learner(2))]), None);
        assert_eq!(next_change(1, &[voter(1), voter(2), dead(voter(3)), learner(4)]), None);
    }

    #[test]
    fn a_leave_is_one_change() {
        let remove = |id, voters: &[RaftId]| Some(GroupChange::Remove { id, voters: set(voters) });
        assert_eq!(next_change(2, &[voter(1), voter(2), left(dead(voter(3)))]), remove(3, &[2]));
        assert_eq!(next_change(1, &[voter(1), left(learner(2))]), remove(2, &[1]));
        assert_eq!(
            next_change(1, &[voter(1), left(voter(2)), voter(3), learner(4)]),
            remove(2, &[1, 3, 4]),
            "a learner votes in its place"
        );
        assert_eq!(
            next_change(1, &[voter(1), left(voter(2)), voter(3), behind(learner(4))]),
            None,
            "not at two, not with one that lacks entries"
        );
        let five = [voter(1), voter(2), dead(voter(3)), voter(4), left(voter(5))];
        assert_eq!(next_change(1, &five), remove(5, &[1, 2, 4]), "the dead one gives up its vote");
        assert_eq!(next_change(1, &[voter(1), left(joining(2))]), None);
    }

    #[test]
    fn a_leader_that_leaves_hands_over() {
        let members = [left(voter(1)), voter(2), voter(3), learner(4)];
        assert_eq!(next_change(1, &members), Some(GroupChange::HandOver(2)));
        let sole = [left(voter(1)), learner(2)];
        assert_eq!(next_change(1, &sole), Some(GroupChange::SetVoters(set(&[2]))));
        let demoted = [left(learner(1)), voter(2)];
        assert_eq!(next_change(1, &demoted), Some(GroupChange::HandOver(2)));
        let after = next_change(2, &demoted);
        assert_eq!(after, Some(GroupChange::Remove { id: 1, voters: set(&[2]) }));
        assert_eq!(next_change(1, &[left(voter(1)), behind(learner(2))]), None, "nobody could go on");
    }

    #[test]
    fn without_a_living_quorum_of_the_new_voters_nothing_is_tried() {
        let members = [voter(1), dead(voter(2)), dead(voter(3)), left(voter(4)), left(voter(5))];
        assert_eq!(next_change(1, &members), None);
    }

    /// A little world that carries changes out as raft would.
    struct World {
        leader: RaftId,
        members: Vec<MemberHealth>,
        next_id: RaftId,
    }

    #[derive(Debug, Clone)]
    enum Event {
        Join,
        Leave(usize),
        Crash(usize),
        Return(usize),
        CatchUp,
        Ask,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => Just(Event::Join),
            1 => any::<usize>().prop_map(Event::Leave),
            1 => any::<usize>().prop_map(Event::Crash),
            1 => any::<usize>().prop_map(Event::Return),
            2 => Just(Event::CatchUp),
            6 => Just(Event::Ask),
        ]
    }

    impl World {
        fn voters(&self) -> usize {
            self.members.iter().filter(|member| member.role == MemberRole::Voter).count()
        }

        fn registered(&self) -> usize {
            self.members.iter().filter(|member| member.registered).count()
        }

        fn ask(&mut self) -> bool {
            let Some(change) = next_change(self.leader, &self.members) else { return false };
            let voters = match change {
                GroupChange::AddLearner(id) => {
                    let member = self.members.iter_mut().find(|member| member.raft_id == id).unwrap();
                    assert_eq!(member.role, MemberRole::Joining);
                    member.role = MemberRole::Learner;
                    return true;
                }
                GroupChange::HandOver(id) => {
                    let member = self.members.iter().find(|member| member.raft_id == id).unwrap();
                    assert!(member.reachable && member.role == MemberRole::Voter);
                    self.leader = id;
                    return true;
                }
                GroupChange::SetVoters(voters) => voters,
                GroupChange::Remove { id, voters } => {
                    assert!(id != self.leader && !voters.contains(&id));
                    let member = self.members.iter().find(|member| member.raft_id == id).unwrap();
                    assert!(!member.registered, "only who left is removed");
                    self.members.retain(|member| member.raft_id != id);
                    voters
                }
            };
            for member in self.members.iter_mut().filter(|member| member.role != MemberRole::Joining) {
                let votes = voters.contains(&member.raft_id);
                assert!(!votes || member.role == MemberRole::Voter || (member.caught_up && member.reachable));
                member.role = if votes { MemberRole::Voter } else { MemberRole::Learner };
            }
            assert!(voters.iter().all(|id| self.members.iter().any(|member| member.raft_id == *id)));
            true
        }

        fn handle(&mut self, event: &Event) {
            let (count, leader) = (self.members.len(), self.leader);
            match event {
                Event::Join if count < 9 => {
                    self.members.push(joining(self.next_id));
                    self.next_id += 1;
                }
                // The last Server never leaves.
                Event::Leave(n) if self.registered() > 1 => self.members[n % count].registered = false,
                Event::Crash(n) if self.members[n % count].raft_id != leader => {
                    let member = &mut self.members[n % count];
                    *member = dead(*member);
                }
                Event::Return(n) => self.members[n % count].reachable = true,
                Event::CatchUp => {
                    let grouped = |member: &&mut MemberHealth| member.role != MemberRole::Joining;
                    for member in self.members.iter_mut().filter(grouped) {
                        member.caught_up = member.reachable;
                    }
                }
                _ => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_history_keeps_odd_voters_and_ends_at_the_target(
            events in prop::collection::vec(event(), 0..120),
        ) {
            let mut world = World { leader: 1, members: vec![voter(1)], next_id: 2 };
            for event in &events {
                let (voters, registered) = (world.voters(), world.registered());
                match event {
                    Event::Ask => {
                        world.ask();
                        prop_assert!(matches!(world.voters(), 1 | 3 | 5), "{:?}", world.members);
                        let shrunk = world.voters() < voters;
                        prop_assert!(!shrunk || world.voters() == target_voters(registered));
                    }
                    event => world.handle(event),
                }
            }
            // All heal: the group settles.
            for _ in 0..60 {
                (0..world.members.len()).for_each(|n| world.handle(&Event::Return(n)));
                world.handle(&Event::CatchUp);
                if !world.ask() {
                    break;
                }
            }
            prop_assert_eq!(next_change(world.leader, &world.members), None);
            prop_assert_eq!(world.voters(), target_voters(world.registered()), "{:?}", world.members);
            let settled = |m: &MemberHealth| m.registered == (m.role != MemberRole::Joining);
            prop_assert!(world.members.iter().all(settled), "{:?}", world.members);
        }
    }
}
