//! Tables of due changes, and random histories of a little world that carries them out.

use super::*;
use proptest::prelude::*;

const REPLACE_AFTER: Duration = Duration::from_secs(60);

fn voter(raft_id: RaftId) -> MemberHealth {
    let role = MemberRole::Voter;
    let started = Some(Now::ZERO);
    MemberHealth {
        raft_id,
        role,
        registered: true,
        leaving: false,
        caught_up: true,
        reachable: true,
        started,
    }
}

/// Asked once, at the start.
fn next_change(leader: RaftId, members: &[MemberHealth]) -> Option<GroupChange> {
    Autopilot::new().next_change(leader, members, REPLACE_AFTER, Now::ZERO)
}

fn learner(raft_id: RaftId) -> MemberHealth {
    MemberHealth { role: MemberRole::Learner, ..voter(raft_id) }
}

fn joining(raft_id: RaftId) -> MemberHealth {
    MemberHealth {
        role: MemberRole::Joining,
        caught_up: false,
        reachable: false,
        started: None,
        ..voter(raft_id)
    }
}

fn behind(member: MemberHealth) -> MemberHealth {
    MemberHealth { caught_up: false, ..member }
}

fn dead(member: MemberHealth) -> MemberHealth {
    MemberHealth { reachable: false, caught_up: false, started: None, ..member }
}

fn leaving(member: MemberHealth) -> MemberHealth {
    MemberHealth { leaving: true, ..member }
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

#[test]
fn who_leaves_loses_its_vote_first() {
    use GroupChange::{HandOver, SetVoters};
    let cases: [(&[MemberHealth], Option<GroupChange>); 8] = [
        (&[voter(1), voter(2), leaving(voter(3))], Some(SetVoters(set(&[1])))),
        (&[voter(1), voter(2), leaving(learner(3))], Some(SetVoters(set(&[1])))),
        (&[voter(1), learner(2), leaving(learner(3))], None),
        (&[leaving(voter(1)), voter(2), voter(3)], Some(HandOver(2))),
        (&[leaving(voter(1)), learner(2)], Some(SetVoters(set(&[2])))),
        (&[leaving(learner(1)), voter(2)], Some(HandOver(2))),
        (&[voter(1), leaving(voter(2)), voter(3), learner(4)], Some(SetVoters(set(&[1, 3, 4])))),
        (&[leaving(voter(1)), behind(learner(2))], None),
    ];
    for (members, expected) in cases {
        assert_eq!(next_change(1, members), expected, "{members:?}");
    }
}

#[test]
fn a_removal_that_would_lose_the_quorum_is_refused() {
    let lost = |needed, unfit: &[RaftId]| Err(RemovalRefused::QuorumLost { needed, unfit: unfit.to_vec() });
    let three = [voter(1), voter(2), dead(voter(3))];
    assert_eq!(check_removal(1, &three, 3), Ok(()), "the dead one may go");
    assert_eq!(check_removal(1, &three, 2), Ok(()), "one votes then, and is there");
    assert_eq!(check_removal(1, &three, 1), Ok(()));
    assert_eq!(check_removal(1, &three, 9), Err(RemovalRefused::NotAMember(9)));
    assert_eq!(check_removal(1, &[voter(1)], 1), Err(RemovalRefused::Last));
    assert_eq!(check_removal(1, &[voter(1), dead(learner(2))], 1), lost(1, &[2]));
    assert_eq!(check_removal(1, &[voter(1), behind(learner(2))], 1), lost(1, &[2]));
    assert_eq!(check_removal(1, &[voter(1), dead(learner(2))], 2), Ok(()));
    let four = [voter(1), voter(2), voter(3), dead(learner(4))];
    assert_eq!(check_removal(1, &four, 2), lost(3, &[4]));
    assert_eq!(check_removal(1, &four, 4), Ok(()), "the dead learner first");
}

#[test]
fn before_a_stop_leadership_and_vote_go_to_somebody_who_lives() {
    assert_eq!(before_stop(1, &[voter(1)]), None);
    assert_eq!(before_stop(1, &[voter(1), dead(learner(2))]), None);
    assert_eq!(before_stop(1, &[voter(1), learner(2)]), Some(GroupChange::SetVoters(set(&[2]))));
    assert_eq!(before_stop(1, &[learner(1), voter(2)]), Some(GroupChange::HandOver(2)));
    assert_eq!(before_stop(1, &[voter(1), dead(voter(2)), voter(3)]), Some(GroupChange::HandOver(3)));
    assert_eq!(before_stop(1, &[voter(1), dead(voter(2)), dead(voter(3)), learner(4)]), None);
}

#[test]
fn of_two_the_longer_running_gets_the_vote() {
    let at = |started_ms, member| MemberHealth { started: Some(Now::from_ms(started_ms)), ..member };
    let members = [at(5_000, voter(1)), at(1_000, learner(2))];
    let placed = Some(GroupChange::SetVoters(set(&[2])));
    let mut pilot = Autopilot::new();
    let ask = |pilot: &mut Autopilot, leader, members: &[MemberHealth], s: u64| {
        pilot.next_change(leader, members, REPLACE_AFTER, Now::from_ms(s * 1_000))
    };
    pilot.handle_voters(&set(&[1]), Now::ZERO);
    assert_eq!(ask(&mut pilot, 1, &members, 10), None);
    assert_eq!(ask(&mut pilot, 1, &members, 39), None);
    assert_eq!(ask(&mut pilot, 1, &members, 40), placed, "steady for 30 s");
    assert_eq!(ask(&mut pilot, 1, &[members[0], behind(members[1])], 41), None);
    assert_eq!(ask(&mut pilot, 1, &members, 70), None, "30 s without a break");
    assert_eq!(ask(&mut pilot, 1, &members, 100), placed);
    assert_eq!(ask(&mut pilot, 1, &[at(1_900, members[0]), members[1]], 101), None, "as good as the same");
    pilot.handle_voters(&set(&[2]), Now::from_ms(102_000));
    // It restarts, and would give the vote back.
    let swapped = [at(90_000, voter(2)), at(5_000, learner(1))];
    assert_eq!(ask(&mut pilot, 2, &swapped, 150), None);
    assert_eq!(ask(&mut pilot, 2, &swapped, 701), None, "at most once in 10 minutes");
    assert_eq!(ask(&mut pilot, 2, &swapped, 702), Some(GroupChange::SetVoters(set(&[1]))));
    assert_eq!(ask(&mut pilot, 2, &[swapped[0], leaving(swapped[1])], 703), None);
    assert_eq!(
        ask(&mut pilot, 2, &[swapped[0], swapped[1], joining(3)], 704),
        Some(GroupChange::AddLearner(3))
    );
}

#[test]
fn a_voter_silent_for_long_is_replaced() {
    let members = [voter(1), voter(2), dead(voter(3)), learner(4)];
    let ask = |pilot: &mut Autopilot, members: &[MemberHealth], s: u64| {
        pilot.next_change(1, members, REPLACE_AFTER, Now::from_ms(s * 1_000))
    };
    let mut pilot = Autopilot::new();
    assert_eq!(ask(&mut pilot, &members, 1), None);
    assert_eq!(ask(&mut pilot, &members, 60), None);
    assert_eq!(ask(&mut pilot, &[voter(1), voter(2), dead(voter(3))], 61), None, "by whom?");
    assert_eq!(ask(&mut pilot, &[members[0], members[1], members[2], behind(learner(4))], 61), None);
    let replaced = Some(GroupChange::SetVoters(set(&[1, 2, 4])));
    assert_eq!(ask(&mut pilot, &members, 61), replaced);
    let back = [voter(1), voter(2), voter(3), learner(4)];
    assert_eq!(ask(&mut pilot, &back, 62), None);
    assert_eq!(ask(&mut pilot, &members, 63), None, "its time begins anew");
    pilot.handle_not_leading();
    assert_eq!(ask(&mut pilot, &members, 130), None, "a new leader waits as long");
    assert_eq!(ask(&mut pilot, &members, 190), replaced);
    let two = [voter(1), dead(voter(2)), dead(voter(3)), voter(4), voter(5), learner(6), learner(7)];
    let mut pilot = Autopilot::new();
    assert_eq!(ask(&mut pilot, &two, 1), None);
    assert_eq!(ask(&mut pilot, &two[..6], 61), Some(GroupChange::SetVoters(set(&[1, 2, 4, 5, 6]))));
    assert_eq!(ask(&mut pilot, &two, 61), Some(GroupChange::SetVoters(set(&[1, 4, 5, 6, 7]))));
}

/// A little world that carries changes out as raft would, one process with its own memory per member.
struct World {
    leader: RaftId,
    members: Vec<MemberHealth>,
    pilots: BTreeMap<RaftId, Autopilot>,
    next_id: RaftId,
    now: Now,
    changes: usize,
    /// Who voted alone before the last change.
    sole: Option<RaftId>,
    /// When the vote of two was last placed, unless its placer has started since.
    placed: Option<Now>,
}

#[derive(Debug, Clone)]
enum Event {
    Join,
    Leave(usize),
    Crash(usize),
    Return(usize),
    CatchUp,
    Wait(u64),
    Ask,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Join),
        1 => any::<usize>().prop_map(Event::Leave),
        2 => any::<usize>().prop_map(Event::Crash),
        2 => any::<usize>().prop_map(Event::Return),
        2 => Just(Event::CatchUp),
        3 => (0u64..100).prop_map(Event::Wait),
        6 => Just(Event::Ask),
    ]
}

impl World {
    fn new() -> World {
        let mut world = World {
            leader: 1,
            members: vec![voter(1)],
            pilots: BTreeMap::from([(1, Autopilot::new())]),
            next_id: 2,
            now: Now::from_ms(1_000_000),
            changes: 0,
            sole: None,
            placed: None,
        };
        world.voters_changed();
        world
    }

    fn voters(&self) -> usize {
        self.members.iter().filter(|member| member.votes()).count()
    }

    fn staying(&self) -> usize {
        self.members.iter().filter(|member| member.stays()).count()
    }

    fn voters_changed(&mut self) {
        let voters: BTreeSet<_> =
            self.members.iter().filter(|member| member.votes()).map(|member| member.raft_id).collect();
        for pilot in self.pilots.values_mut() {
            pilot.handle_voters(&voters, self.now);
        }
        self.sole = voters.first().copied().filter(|_| voters.len() == 1);
    }

    fn ask(&mut self) -> bool {
        let pilot = self.pilots.entry(self.leader).or_default();
        let due = pilot.next_change(self.leader, &self.members, REPLACE_AFTER, self.now);
        let Some(change) = due else { return false };
        self.changes += 1;
        let voters = match change {
            GroupChange::AddLearner(id) => {
                let member = self.members.iter_mut().find(|member| member.raft_id == id).unwrap();
                assert_eq!(member.role, MemberRole::Joining);
                member.role = MemberRole::Learner;
                return true;
            }
            GroupChange::HandOver(id) => {
                self.elect(id);
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
        self.check_placement(&voters);
        for member in self.members.iter_mut().filter(|member| member.role != MemberRole::Joining) {
            let votes = voters.contains(&member.raft_id);
            assert!(!votes || member.votes() || member.is_fit());
            assert!(!votes || !member.leaving);
            member.role = if votes { MemberRole::Voter } else { MemberRole::Learner };
            // Its removal from table C comes once it has no vote.
            member.registered &= !member.leaving || votes;
        }
        assert!(voters.iter().all(|id| self.members.iter().any(|member| member.raft_id == *id)));
        self.voters_changed();
        true
    }

    /// The vote of two moves for a reason, and seldom.
    fn check_placement(&mut self, voters: &BTreeSet<RaftId>) {
        let leader = self.members.iter().find(|member| member.raft_id == self.leader).unwrap();
        let (Some(sole), 1, true) = (self.sole, voters.len(), leader.stays()) else { return };
        let Some(other) = voters.iter().find(|id| **id != sole) else { return };
        let other = self.members.iter().find(|member| member.raft_id == *other).unwrap();
        assert!(other.started.unwrap() + Autopilot::LONGER < leader.started.unwrap());
        if let Some(placed) = self.placed {
            assert!(self.now.since(placed) >= Autopilot::MOVE_EVERY, "the vote moves too often");
        }
        self.placed = Some(self.now);
    }

    fn elect(&mut self, id: RaftId) {
        let member = self.members.iter().find(|member| member.raft_id == id).unwrap();
        assert!(member.reachable && member.votes());
        self.pilots.entry(self.leader).or_default().handle_not_leading();
        self.leader = id;
    }

    fn handle(&mut self, event: &Event) {
        let count = self.members.len();
        match event {
            Event::Join if count < 9 => {
                self.members.push(joining(self.next_id));
                self.next_id += 1;
            }
            // As the command is checked.
            Event::Leave(n) => {
                let id = self.members[n % count].raft_id;
                let others = self.members.iter().any(|member| member.leaving);
                if !others && check_removal(self.leader, &self.members, id).is_ok() {
                    let member = &mut self.members[n % count];
                    member.leaving = true;
                    member.registered = member.votes();
                    self.members.retain(|member| member.registered || member.role != MemberRole::Joining);
                }
            }
            Event::Crash(n) if self.members[n % count].raft_id == self.leader => self.crash_leader(),
            Event::Crash(n) => {
                let member = &mut self.members[n % count];
                *member = dead(*member);
                self.pilots.remove(&member.raft_id);
            }
            Event::Return(n) => {
                let member = &mut self.members[n % count];
                member.started = member.started.or(Some(self.now));
                member.reachable = true;
                self.pilots.entry(member.raft_id).or_default();
                self.voters_changed();
            }
            Event::CatchUp => {
                let grouped = |member: &&mut MemberHealth| member.role != MemberRole::Joining;
                for member in self.members.iter_mut().filter(grouped) {
                    member.caught_up = member.reachable;
                }
            }
            Event::Wait(s) => self.now = self.now + Duration::from_secs(*s),
            _ => {}
        }
    }

    /// Its process starts again at once; another voter leads meanwhile, if there is a quorum.
    fn crash_leader(&mut self) {
        let leader = self.leader;
        let living = self.members.iter().filter(|member| member.votes() && member.reachable);
        let next = living.map(|member| member.raft_id).find(|id| *id != leader);
        let quorum = self.members.iter().filter(|m| m.votes() && m.reachable && m.raft_id != leader).count();
        if let Some(next) = next.filter(|_| quorum > self.voters() / 2) {
            let member = self.members.iter_mut().find(|member| member.raft_id == next).unwrap();
            member.caught_up = true;
            self.elect(next);
        }
        self.pilots.insert(leader, Autopilot::new());
        let now = self.now;
        let member = self.members.iter_mut().find(|member| member.raft_id == leader).unwrap();
        member.started = Some(now);
        // What this process knew of the last move is gone.
        self.placed = None;
        self.voters_changed();
    }
}

/// The only vote has moved away from the leader, and before it has handed over, whoever got it leaves.
#[test]
fn whoever_got_the_vote_may_leave_before_it_leads() {
    use Event::{Ask, CatchUp, Crash, Join, Leave, Return, Wait};
    let mut world = World::new();
    for event in [Join, Return(1), Wait(2), Crash(0), Ask, CatchUp, Ask, Wait(30), Ask, Leave(1), Join, Join]
    {
        match event {
            Ask => {
                world.ask();
            }
            event => world.handle(&event),
        }
    }
    assert_eq!((world.leader, world.sole), (1, Some(2)));
    for _ in 0..20 {
        (0..world.members.len()).for_each(|n| world.handle(&Return(n)));
        world.handle(&CatchUp);
        world.ask();
    }
    let voters: Vec<_> = world.members.iter().map(|member| (member.raft_id, member.votes())).collect();
    assert_eq!(voters, [(1, true), (3, true), (4, true)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_history_keeps_odd_voters_and_ends_at_the_target(
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new();
        for event in &events {
            let (voters, staying) = (world.voters(), world.staying());
            match event {
                Event::Ask => {
                    world.ask();
                    prop_assert!(matches!(world.voters(), 1 | 3 | 5), "{:?}", world.members);
                    let shrunk = world.voters() < voters;
                    prop_assert!(!shrunk || world.voters() == target_voters(staying));
                }
                event => world.handle(event),
            }
        }
        // All heal: the group settles, and a last placement of the vote waits for its time.
        for _ in 0..60 {
            (0..world.members.len()).for_each(|n| world.handle(&Event::Return(n)));
            world.handle(&Event::CatchUp);
            world.ask();
        }
        for _ in 0..90 {
            world.handle(&Event::Wait(10));
            world.ask();
        }
        prop_assert_eq!(world.voters(), target_voters(world.staying()), "{:?}", world.members);
        let settled = |m: &MemberHealth| m.stays() && m.role != MemberRole::Joining;
        prop_assert!(world.members.iter().all(settled), "{:?}", world.members);
        // From here on nothing moves.
        let changes = world.changes;
        for _ in 0..400 {
            world.handle(&Event::Wait(10));
            world.ask();
        }
        prop_assert_eq!(world.changes, changes);
        if let [one, other] = &world.members[..] {
            let (voter, learner) = if one.votes() { (one, other) } else { (other, one) };
            prop_assert!(voter.started.unwrap() <= learner.started.unwrap() + Autopilot::LONGER);
        }
    }
}
