//! Worlds full of faults, one per seed: operators without sense, crashes between any two outputs, a network that
//! loses, repeats, reorders and splits, slow disks, wrong clocks. `make sim` tries 100,000 of them.

mod world;

use std::collections::BTreeSet;

use p2p_common::member::RaftId;
use p2p_server_raft::{MembershipChange, Role};
use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};

use world::{Faults, Planted, Weather, World, assert_caught, run_seeds};

/// More raft ids than this are not given out in one world.
const IDS_MAX: RaftId = 8;

const FIGURES: [&str; 6] =
    ["commits", "elections", "crashes", "member changes", "snapshots sent", "linearizable reads"];

/// One world: it grows from one node, suffers, recovers.
fn chaos(seed: u64, planted: Planted, trace: bool) -> ([u64; FIGURES.len()], Option<u64>) {
    let weather = Weather { loss: 0.0, repeat: 0.0, delay_max_ms: 10, late: 0.05 };
    let mut world = World::new(seed, weather, Faults::NONE);
    world.planted = planted;
    if trace {
        world.trace();
    }
    // Worlds differ in what goes wrong most.
    world.network.weather.loss = [0.0, 0.02, 0.1, 0.25].choose(&mut world.rng).copied().unwrap();
    world.network.weather.repeat = [0.0, 0.05, 0.2].choose(&mut world.rng).copied().unwrap();
    world.network.weather.delay_max_ms = [1, 10, 60].choose(&mut world.rng).copied().unwrap();
    world.faults = Faults {
        crash: [0.0, 0.0005, 0.003].choose(&mut world.rng).copied().unwrap(),
        slow_write: [0.0, 0.1, 0.5].choose(&mut world.rng).copied().unwrap(),
        hung_write: [0.0, 0.02].choose(&mut world.rng).copied().unwrap(),
        write_state: [0.0, 0.2, 1.0].choose(&mut world.rng).copied().unwrap(),
        clock_skew: world.rng.random_bool(0.3),
    };
    world.config.writes_in_flight_max = [1, 2, 64].choose(&mut world.rng).copied().unwrap();
    world.config.read_rounds_max = [1, 2, 4].choose(&mut world.rng).copied().unwrap();
    let kills = [0.0, 0.002, 0.01].choose(&mut world.rng).copied().unwrap();
    let partitions = [0.0, 0.002, 0.01].choose(&mut world.rng).copied().unwrap();
    let size = world.rng.random_range(2..=5);
    world.bootstrap(1);
    for _ in 0..2_000 {
        world.step();
        clients(&mut world);
        people(&mut world, size);
        troubles(&mut world, kills, partitions);
    }
    world.check_recovery();
    let figures = [
        world.oracle.commits(),
        world.oracle.elections(),
        world.crashes,
        world.oracle.member_changes,
        world.snapshots_sent,
        world.oracle.reads,
    ];
    (figures, world.trace_hash())
}

fn clients(world: &mut World) {
    let ids = world.running_ids();
    let Some(anyone) = ids.choose(&mut world.rng).copied() else { return };
    let target = if world.rng.random_bool(0.8) { world.leader().unwrap_or(anyone) } else { anyone };
    if world.rng.random_bool(0.1) {
        let count = world.rng.random_range(1..=4);
        world.propose(target, count);
    }
    if world.rng.random_bool(0.1) {
        let retries: Vec<_> = world.retries.drain(..).collect();
        world.attempt(target, &retries);
    }
    if world.rng.random_bool(0.1) {
        world.read(anyone);
    }
}

/// Operators and autopilots, some of them unwise.
fn people(world: &mut World, size: usize) {
    if !world.rng.random_bool(0.02) {
        return;
    }
    let Some(leader) = world.leader() else { return };
    let members = world.core(leader).membership().clone();
    let all = members.all();
    let next_id = world.ids().last().unwrap() + 1;
    match world.rng.random_range(0..10) {
        0..=4 if all.len() < size && next_id <= IDS_MAX => {
            // A joiner that was never added tries again before a new one comes.
            let waiting = world.ids().into_iter().find(|id| !all.contains(id) && world.core_is_new(*id));
            let id = waiting.unwrap_or(next_id);
            if waiting.is_none() {
                world.add_joiner(id);
            }
            world.change(leader, &MembershipChange::AddLearner(id));
        }
        0..=7 => {
            let wanted = if all.len() >= 5 { 5 } else { (all.len() - 1) | 1 };
            let wanted =
                if world.rng.random_bool(0.2) { world.rng.random_range(1..=all.len()) } else { wanted };
            let voters = all.iter().copied().choose_multiple(&mut world.rng, wanted).into_iter().collect();
            world.change(leader, &MembershipChange::SetVoters(voters));
        }
        8 if all.len() > 2 => {
            let id = *all.iter().choose(&mut world.rng).unwrap();
            let rest: BTreeSet<_> = all.iter().copied().filter(|other| *other != id).collect();
            let wanted = (rest.len() - 1) | 1;
            let voters = rest.iter().copied().choose_multiple(&mut world.rng, wanted.min(rest.len()));
            world.change(leader, &MembershipChange::Remove { id, voters: voters.into_iter().collect() });
        }
        _ => {
            let to = *members.voters.iter().choose(&mut world.rng).unwrap();
            world.input(leader, |core| core.handle_transfer(to).ok());
        }
    }
}

fn troubles(world: &mut World, kills: f64, partitions: f64) {
    let ids = world.ids();
    if world.rng.random_bool(kills) {
        let id = *ids.choose(&mut world.rng).unwrap();
        let led = world.status(id).is_some_and(|status| status.role == Role::Leader);
        world.crash(id);
        if led && world.rng.random_bool(0.7) {
            world.leader_gone(id);
        }
    }
    if world.rng.random_bool(0.001) {
        // Mistaken evidence costs an election at most.
        if let Some(leader) = world.leader() {
            world.leader_gone(leader);
        }
    }
    if world.rng.random_bool(0.02) {
        let down: Vec<_> = ids.iter().copied().filter(|id| !world.is_running(*id)).collect();
        if let Some(id) = down.choose(&mut world.rng) {
            world.start(*id);
        }
    }
    if world.rng.random_bool(partitions) {
        let one_way = world.rng.random_bool(0.3);
        let World { network, rng, .. } = world;
        network.partition(rng, &ids, one_way);
    }
    if world.rng.random_bool(0.01) {
        world.network.heal();
    }
    if world.rng.random_bool(0.01) {
        let (a, b) = (*ids.choose(&mut world.rng).unwrap(), *ids.choose(&mut world.rng).unwrap());
        world.input(a, |core| core.handle_unreachable(b));
    }
}

#[test]
fn no_fault_breaks_a_promise() {
    run_seeds("simulation", FIGURES, 300, |seed| chaos(seed, Planted::Nothing, false).0);
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in 0..5 {
        let (_, once) = chaos(seed, Planted::Nothing, true);
        let (_, again) = chaos(seed, Planted::Nothing, true);
        assert!(once.is_some());
        assert_eq!(once, again, "seed {seed}");
    }
}

fn assert_shows(planted: Planted, symptoms: &[&str]) {
    assert_caught(symptoms, |seed| {
        chaos(seed, planted, false);
    });
}

#[test]
fn sends_before_persist_is_caught() {
    let symptoms = [
        "two leaders in term",
        "logs differ",
        "applies another entry",
        "acknowledged entries were lost",
        "contradicts a committed entry",
        "is lost",
        "log ends at",
    ];
    assert_shows(Planted::SendsBeforePersist, &symptoms);
}

#[test]
fn a_forgotten_commit_index_is_caught() {
    let symptoms = ["two leaders in term", "logs differ", "applies another entry", "is lost", "no leader"];
    assert_shows(Planted::ForgetsCommit, &symptoms);
}

#[test]
fn a_snapshot_that_lacks_its_receiver_is_caught() {
    assert_shows(Planted::SnapshotLacksReceiver, &["a member stays behind"]);
}

#[test]
fn an_unreported_failed_snapshot_is_caught() {
    assert_shows(Planted::UnreportedFailedSnapshot, &["a member stays behind"]);
}
