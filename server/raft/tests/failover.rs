//! How long a cluster is without a leader after the leader fell silent, without evidence (a stop, a partition, a
//! power cut) or with it (a killed process). Time is simulated, so the figures are the same on every machine.

mod world;

use p2p_common::member::RaftId;
use p2p_server_raft::{MembershipChange, TICK_MS};
use rand::Rng;

use world::{Faults, Weather, World};

struct Gaps {
    /// From the last sign of the old leader's life to a new one that is ready, ascending.
    gaps_ms: Vec<u64>,
    /// Elections that took more than one term.
    split: usize,
}

impl Gaps {
    fn at(&self, percent: usize) -> u64 {
        self.gaps_ms[(self.gaps_ms.len() - 1) * percent / 100]
    }
}

/// One silent leader a world, in `worlds` calm worlds of `size` voters. With `evidence`, everyone else learns within so
/// many ms that it is gone.
fn measure(size: RaftId, worlds: u64, evidence: Option<u64>) -> Gaps {
    let mut gaps = Gaps { gaps_ms: Vec::new(), split: 0 };
    for seed in 0..worlds {
        let mut world = World::new(seed, Weather::CALM, Faults::NONE);
        world.bootstrap(1);
        for id in 2..=size {
            world.add_joiner(id);
            world.change(1, &MembershipChange::AddLearner(id));
            world.run_ms(500);
        }
        world.change(1, &MembershipChange::SetVoters((1..=size).collect()));
        world.run_ms(500);
        // Any of them leads.
        let leader = world.rng.random_range(1..=size);
        if leader != 1 {
            world.input(1, |core| core.handle_transfer(leader).ok());
        }
        let wait_ms = world.rng.random_range(500..1_000);
        world.run_ms(wait_ms);
        assert_eq!(world.leader(), Some(leader));
        let (term, since) = (world.status(leader).unwrap().term, world.now_ms);
        world.crash(leader);
        if let Some(late_max_ms) = evidence {
            // What it had sent has arrived by then.
            world.run_ms(5);
            world.evidence_late_max_ms = late_max_ms;
            world.leader_gone(leader);
        }
        assert!(world.run_until(20_000, |world| world.leader().is_some()), "seed {seed}: no leader");
        gaps.gaps_ms.push(world.now_ms - since);
        let new = world.leader().unwrap();
        gaps.split += usize::from(world.status(new).unwrap().term > term + 1);
    }
    gaps.gaps_ms.sort_unstable();
    gaps
}

#[test]
fn a_silent_leader_is_replaced_soon_after_the_least_time_out() {
    let timeout_ms = 10 * TICK_MS;
    for size in [3, 5] {
        let gaps = measure(size, 200, None);
        let [least, tenth, median, ninetieth, most] = [0, 10, 50, 90, 100].map(|percent| gaps.at(percent));
        println!(
            "{size} voters, ms without a leader: least {least}, 10 % {tenth}, median {median}, 90 % {ninetieth}, \
             most {most}; {} of {} needed a second term",
            gaps.split,
            gaps.gaps_ms.len()
        );
        assert!(median <= timeout_ms * 110 / 100, "median {median} ms");
        assert!(ninetieth <= timeout_ms * 130 / 100, "90 % {ninetieth} ms");
        assert_eq!(gaps.split, 0, "votes are not split in calm weather");
    }
}

#[test]
fn a_leader_known_to_be_gone_is_replaced_long_before_a_time_out() {
    // Late by less than the delay between two ranks, and by so much that two often stand at one moment.
    for (late_max_ms, median_ms, most_ms) in [(0, 50, 80), (60, 100, 10 * TICK_MS)] {
        for size in [3, 5] {
            let gaps = measure(size, 200, Some(late_max_ms));
            let [least, median, ninetieth, most] = [0, 50, 90, 100].map(|percent| gaps.at(percent));
            println!(
                "{size} voters, evidence up to {late_max_ms} ms late, ms without a leader: least {least}, median \
                 {median}, 90 % {ninetieth}, most {most}; {} of {} needed a second term",
                gaps.split,
                gaps.gaps_ms.len()
            );
            assert!(median <= median_ms, "median {median} ms");
            assert!(most <= most_ms, "most {most} ms");
        }
    }
}
