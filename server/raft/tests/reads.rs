//! What linearizable reads of many clients cost: simulated round trips, and rounds they share.

mod world;

use std::collections::BTreeMap;

use p2p_common::member::RaftId;
use p2p_server_raft::MembershipChange;

use world::{Faults, Weather, World};

const READERS: usize = 64;
const RUN_MS: u64 = 2_000;

/// `READERS` clients of `node`, each of which asks again as soon as it has its answer: reads in a second, and
/// messages sent for each.
fn measure(node: RaftId, rounds_max: usize) -> (u64, f64) {
    // A message takes one to three ms.
    let weather = Weather { delay_max_ms: 2, ..Weather::CALM };
    let mut world = World::new(1, weather, Faults::NONE);
    world.step_ms = 1;
    world.config.read_rounds_max = rounds_max;
    world.bootstrap(1);
    for id in [2, 3] {
        world.add_joiner(id);
        world.change(1, &MembershipChange::AddLearner(id));
        world.run_ms(500);
    }
    world.change(1, &MembershipChange::SetVoters([1, 2, 3].into()));
    world.run_ms(1_000);
    assert_eq!(world.leader(), Some(1));
    // They do not begin at one moment.
    let mut begins = BTreeMap::from([(0, READERS / 2), (1, READERS / 4), (2, READERS / 4)]);
    world.finished_reads.clear();
    let (begun_ms, sent) = (world.now_ms, world.messages_sent);
    let mut finished = 0;
    while world.now_ms < begun_ms + RUN_MS {
        for _ in 0..begins.remove(&(world.now_ms - begun_ms)).unwrap_or(0) {
            world.read(node);
        }
        world.step();
        for (_, _, index) in std::mem::take(&mut world.finished_reads) {
            assert!(index.is_some(), "no read fails");
            finished += 1;
            world.read(node);
        }
    }
    let messages = (world.messages_sent - sent) as f64 / finished as f64;
    (finished * 1_000 / RUN_MS, messages)
}

#[test]
fn many_reads_share_few_rounds_and_wait_for_little_more_than_one() {
    for node in [1, 2] {
        let place = if node == 1 { "leader" } else { "follower" };
        let rates: Vec<_> = [1, 2, 4].map(|rounds| (rounds, measure(node, rounds))).into();
        for (rounds, (rate, messages)) in &rates {
            println!(
                "{READERS} readers of the {place}, {rounds} rounds: {rate} reads/s, {messages:.2} messages each"
            );
        }
        let [(_, (one, _)), (_, (two, messages)), _] = rates.as_slice() else {
            panic!("three were measured")
        };
        assert!(two * 10 >= one * 12, "a second round is worth a fifth at the least: {one} and {two}");
        assert!(*messages < 1.0, "{messages} messages for a read");
    }
}
