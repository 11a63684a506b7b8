//! How a cluster grows, shrinks and changes its voters, in calm worlds.

mod world;

use std::collections::BTreeSet;

use p2p_common::command::TokenId;
use p2p_common::member::RaftId;
use p2p_server_raft::{ChangeRefused, MembershipChange, ProposalFailure, Role};

use world::{Faults, Weather, World};

fn ids(ids: &[RaftId]) -> BTreeSet<RaftId> {
    ids.iter().copied().collect()
}

fn calm() -> World {
    let mut world = World::new(7, Weather::CALM, Faults::NONE);
    world.bootstrap(1);
    world
}

/// Node 1 leads `size` members; `voters` of them vote.
fn cluster(size: RaftId, voters: &[RaftId]) -> World {
    let mut world = calm();
    for id in 2..=size {
        world.add_joiner(id);
        world.change(1, &MembershipChange::AddLearner(id));
        world.run_ms(1_000);
    }
    if voters != [1] {
        world.change(1, &MembershipChange::SetVoters(ids(voters)));
        world.run_ms(1_000);
    }
    assert_eq!(world.change_failures, []);
    assert_eq!(world.leader(), Some(1));
    assert_eq!(world.core(1).membership().voters, ids(voters));
    world
}

fn refused(world: &mut World, change: &MembershipChange) -> ChangeRefused {
    world.change(1, change);
    match world.change_failures.pop() {
        Some(ProposalFailure::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_founder_leads_before_the_first_tick() {
    let mut world = calm();
    assert_eq!(world.now_ms, 0);
    assert!(world.status(1).unwrap().leader_ready);
    world.propose(1, 1);
    assert_eq!(world.oracle.acknowledged().count(), 1);
}

#[test]
fn a_sole_voter_leads_at_once_after_a_restart() {
    let mut world = calm();
    world.propose(1, 3);
    world.crash(1);
    world.start(1);
    assert!(world.status(1).unwrap().leader_ready);
    assert_eq!(world.state(1).tokens.len(), 3);
}

#[test]
fn a_joiner_learns_everything_and_has_no_vote() {
    let mut world = calm();
    world.propose(1, 10);
    world.add_joiner(2);
    world.change(1, &MembershipChange::AddLearner(2));
    world.run_ms(500);
    assert_eq!(world.core(2).applied(), world.core(1).applied());
    assert_eq!(world.state(2), world.state(1));
    assert_eq!(world.core(2).membership().learners, ids(&[2]));
    // The founder alone is the quorum.
    world.crash(2);
    world.propose(1, 1);
    assert_eq!(world.oracle.acknowledged().count(), 11);
}

#[test]
fn two_learners_become_voters_in_one_joint_change() {
    let mut world = cluster(3, &[1]);
    world.change(1, &MembershipChange::SetVoters(ids(&[1, 2, 3])));
    let mut seen = BTreeSet::new();
    world.run_until(1_000, |world| {
        let members = world.core(1).membership();
        seen.insert((members.outgoing.len(), members.voters.len()));
        false
    });
    assert!(seen.is_subset(&BTreeSet::from([(0, 1), (1, 3), (0, 3)])), "rested elsewhere: {seen:?}");
    assert_eq!(world.core(3).membership().voters, ids(&[1, 2, 3]));
    world.crash(1);
    assert!(world.run_until(3_000, |world| world.leader().is_some()), "two of three elect");
}

#[test]
fn a_voter_is_removed_and_the_vote_stays_with_one() {
    let mut world = cluster(3, &[1, 2, 3]);
    world.change(1, &MembershipChange::Remove { id: 3, voters: ids(&[1]) });
    world.run_ms(1_000);
    let members = world.core(1).membership().clone();
    assert_eq!((members.voters, members.learners), (ids(&[1]), ids(&[2])));
    assert!(!members.outgoing.contains(&3));
    world.crash(2);
    world.propose(1, 1);
    world.run_ms(100);
    assert_eq!(world.oracle.acknowledged().count(), 1);
}

#[test]
fn a_demoted_leader_hands_over_at_once() {
    let mut world = cluster(2, &[1]);
    let begun = world.now_ms;
    world.change(1, &MembershipChange::SetVoters(ids(&[2])));
    assert!(world.run_until(2_000, |world| world.leader() == Some(2)));
    assert!(world.now_ms - begun < 200, "took {} ms", world.now_ms - begun);
    assert_eq!(world.core(2).membership().learners, ids(&[1]));
    world.run_ms(500);
    assert_eq!(world.status(1).unwrap().role, Role::Follower);
}

/// The clean stop of the sole voter of two (SPEC C4): the vote moves while clients write, nothing that was
/// acknowledged is lost, and writers wait for less than an election time-out.
#[test]
fn the_vote_moves_under_writes_and_nothing_is_lost() {
    let mut pauses_ms = Vec::new();
    for seed in 0..50 {
        let mut world = World::new(seed, Weather::CALM, Faults::NONE);
        world.network.weather.delay_max_ms = 5;
        world.faults.slow_write = 0.3;
        // As many as in earnest: the learner is always a few writes behind.
        world.config.caught_up_entries = 256;
        world.bootstrap(1);
        world.add_joiner(2);
        world.change(1, &MembershipChange::AddLearner(2));
        world.run_ms(1_000);
        let (mut longest_ms, mut last_ms, mut moved) = (0, world.now_ms, None);
        let begun = world.now_ms;
        let mut acknowledged = 0;
        while world.now_ms < begun + 2_000 {
            if world.now_ms >= begun + 500 && moved.is_none() {
                world.change_failures.clear();
                world.change(1, &MembershipChange::SetVoters(ids(&[2])));
                moved = world.change_failures.is_empty().then_some(world.now_ms);
            }
            if let Some(leader) = world.leader() {
                let retries: Vec<_> = world.retries.drain(..).collect();
                world.attempt(leader, &retries);
                world.propose(leader, 1);
            }
            world.step();
            let count = world.oracle.acknowledged().count();
            if count > acknowledged {
                longest_ms = longest_ms.max(world.now_ms - last_ms);
                (last_ms, acknowledged) = (world.now_ms, count);
            }
        }
        assert_eq!(world.leader(), Some(2), "seed {seed}: {}", world.describe());
        assert!(longest_ms < 1_000, "seed {seed}: writers waited {longest_ms} ms");
        pauses_ms.push(longest_ms);
        // The former voter stops, as it wanted to.
        world.crash(1);
        world.propose(2, 1);
        world.run_ms(500);
        for request in world.oracle.acknowledged() {
            assert!(world.state(2).tokens.contains_key(&TokenId(request)), "seed {seed}: {request} is lost");
        }
    }
    pauses_ms.sort_unstable();
    println!("longest pause of writers, ms: median {}, most {}", pauses_ms[25], pauses_ms[49]);
}

#[test]
fn a_learner_forgets_a_silent_leader_until_it_speaks() {
    let mut world = cluster(2, &[1]);
    let known = |world: &World| world.status(2).unwrap().leader;
    assert_eq!(known(&world), Some(1));
    world.network.partition_between(&[1], &[2]);
    let begun = world.now_ms;
    assert!(world.run_until(2_000, |world| known(world).is_none()));
    let silence_ms = world.now_ms - begun;
    assert!((900..1_150).contains(&silence_ms), "after {silence_ms} ms");
    world.run_ms(5_000);
    assert_eq!(known(&world), None);
    world.network.heal();
    assert!(world.run_until(150, |world| known(world) == Some(1)), "its next word suffices");
    assert_eq!(world.status(2).unwrap().term, world.status(1).unwrap().term);
}

#[test]
fn a_removed_member_forgets_the_leader() {
    let mut world = cluster(3, &[1, 2, 3]);
    world.change(1, &MembershipChange::Remove { id: 3, voters: ids(&[1]) });
    world.run_ms(3_000);
    assert_eq!(world.status(3).unwrap().leader, None);
    assert_eq!(world.status(2).unwrap().leader, Some(1));
}

#[test]
fn a_voter_is_replaced_while_it_is_down() {
    let mut world = cluster(4, &[1, 2, 3]);
    world.crash(3);
    world.run_ms(1_000);
    world.change(1, &MembershipChange::SetVoters(ids(&[1, 2, 4])));
    world.run_ms(1_000);
    let members = world.core(1).membership().clone();
    assert_eq!((members.voters, members.learners), (ids(&[1, 2, 4]), ids(&[3])));
    world.start(3);
    world.run_ms(2_000);
    assert_eq!(*world.core(3).membership(), *world.core(1).membership());
}

#[test]
fn unsafe_changes_are_refused_with_the_reason() {
    let mut world = cluster(3, &[1, 2, 3]);
    let set = |voters: &[RaftId]| MembershipChange::SetVoters(ids(voters));
    assert_eq!(refused(&mut world, &set(&[1, 2, 3])), ChangeRefused::NoChange);
    assert_eq!(refused(&mut world, &MembershipChange::AddLearner(2)), ChangeRefused::NoChange);
    assert_eq!(refused(&mut world, &set(&[])), ChangeRefused::NoVoters);
    assert_eq!(refused(&mut world, &set(&[1, 9])), ChangeRefused::NotAMember(9));
    let remove = |id, voters: &[RaftId]| MembershipChange::Remove { id, voters: ids(voters) };
    assert_eq!(refused(&mut world, &remove(9, &[1])), ChangeRefused::NotAMember(9));
    assert_eq!(refused(&mut world, &remove(2, &[1, 2])), ChangeRefused::LeavesAndVotes(2));
    assert_eq!(refused(&mut world, &remove(1, &[2, 3])), ChangeRefused::LeaderLeaves(1));
    // Nobody has heard of 4, so it cannot have caught up.
    world.change(1, &MembershipChange::AddLearner(4));
    world.run_ms(500);
    assert_eq!(refused(&mut world, &set(&[1, 2, 4])), ChangeRefused::Unreachable(4));
    world.crash(3);
    world.run_ms(1_000);
    assert_eq!(
        refused(&mut world, &set(&[1, 3])),
        ChangeRefused::QuorumUnreachable { reachable: 1, voters: 2 }
    );
}

#[test]
fn a_learner_that_lacks_entries_gets_no_vote() {
    let mut world = cluster(2, &[1]);
    world.propose(1, 20);
    let refusal = refused(&mut world, &MembershipChange::SetVoters(ids(&[1, 2])));
    assert!(matches!(refusal, ChangeRefused::NotCaughtUp { id: 2, behind: 20.. }), "{refusal:?}");
    world.run_ms(100);
    world.change(1, &MembershipChange::SetVoters(ids(&[1, 2])));
    world.run_ms(500);
    assert_eq!(world.core(2).membership().voters, ids(&[1, 2]));
}

#[test]
fn one_change_at_a_time() {
    let mut world = cluster(2, &[1]);
    world.crash(2);
    world.change(1, &MembershipChange::AddLearner(3));
    assert_eq!(world.change_failures, [], "a sole voter commits alone");
    world.start(2);
    world.run_ms(1_000);
    // Entering needs the new voter's word in this one, so the second change comes too early.
    world.change(1, &MembershipChange::SetVoters(ids(&[2])));
    assert_eq!(refused(&mut world, &MembershipChange::AddLearner(4)), ChangeRefused::UnderWay);
}

#[test]
fn a_joiner_far_behind_gets_a_snapshot_that_names_it() {
    let mut world = calm();
    for _ in 0..20 {
        world.propose(1, 10);
        world.run_ms(150);
    }
    world.add_joiner(2);
    world.change(1, &MembershipChange::AddLearner(2));
    world.run_ms(1_000);
    assert!(world.snapshots_sent > 0);
    assert_eq!(world.state(2), world.state(1));
    assert_eq!(world.core(2).membership(), world.core(1).membership());
}

#[test]
fn evidence_elects_long_before_the_time_out() {
    let mut world = cluster(3, &[1, 2, 3]);
    let gap_ms = |world: &mut World, evidence: bool| {
        let leader = world.leader().unwrap();
        world.crash(leader);
        let begun = world.now_ms;
        if evidence {
            // What it sent before it died has arrived by then.
            world.run_ms(10);
            world.leader_gone(leader);
        }
        assert!(world.run_until(5_000, |world| world.leader().is_some()));
        let gap = world.now_ms - begun;
        world.start(leader);
        world.run_ms(1_000);
        gap
    };
    for _ in 0..5 {
        let gap = gap_ms(&mut world, true);
        assert!(gap <= 150, "took {gap} ms");
        let gap = gap_ms(&mut world, false);
        assert!(gap >= 400, "took {gap} ms");
    }
}

#[test]
fn mistaken_evidence_is_forgotten_when_the_leader_speaks() {
    let mut world = cluster(3, &[1, 2, 3]);
    let term = world.status(1).unwrap().term;
    assert_eq!(world.input(2, |core| core.handle_leader_gone(1)), Some(Some(0)));
    assert_eq!(world.input(2, |core| core.handle_leader_gone(3)), Some(None), "3 does not lead");
    world.run_ms(100);
    world.input(2, |core| core.handle_campaign());
    world.run_ms(500);
    assert_eq!(world.status(1).unwrap().term, term);
    assert_eq!(world.leader(), Some(1));
}
