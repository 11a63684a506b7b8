//! Clusters of one to five Servers that grow, shrink, crash, part and come back, by the rules that run in earnest
//! (SPEC C4, C5, C8, C10): one world per seed. `make sim` tries many.

mod world;

use rand::Rng;
use rand::seq::IndexedRandom;

use world::{Faults, Name, Planted, Servers, Weather, World, assert_caught, run_seeds};

/// As many Servers as there may ever be in one world.
const NAMES: std::ops::RangeInclusive<Name> = 1..=6;

const FIGURES: [&str; 9] = [
    "commits",
    "elections",
    "crashes",
    "member changes",
    "clean stops' steps",
    "removals",
    "new logs",
    "looks at a provisional title",
    "simulated seconds",
];

fn life(seed: u64, planted: Planted) -> [u64; FIGURES.len()] {
    let weather = Weather { loss: 0.0, repeat: 0.0, delay_max_ms: 10, late: 0.02 };
    let mut world = World::new(seed, weather, Faults::NONE);
    world.step_ms = 10;
    world.planted = planted;
    world.network.weather.loss = [0.0, 0.01, 0.05].choose(&mut world.rng).copied().unwrap();
    world.network.weather.delay_max_ms = [1, 10, 40].choose(&mut world.rng).copied().unwrap();
    world.faults = Faults {
        crash: [0.0, 0.0002].choose(&mut world.rng).copied().unwrap(),
        slow_write: [0.0, 0.1].choose(&mut world.rng).copied().unwrap(),
        hung_write: [0.0, 0.02].choose(&mut world.rng).copied().unwrap(),
        write_state: 0.3,
        clock_skew: world.rng.random_bool(0.2),
    };
    // Most of what is to be seen happens within a minute; the vote of two needs more than half of one to move.
    let seconds = if world.rng.random_bool(0.2) { 120 } else { 30 };
    let size = world.rng.random_range(1..=5);
    let fate = [0.0005, 0.002, 0.005].choose(&mut world.rng).copied().unwrap();
    let mut servers = Servers::found(world, NAMES, 5);
    while servers.world.now_ms < seconds * 1_000 {
        servers.step();
        clients(&mut servers);
        people(&mut servers, size);
        troubles(&mut servers, fate);
    }
    servers.check_recovery();
    let Servers { world, .. } = &servers;
    [
        world.oracle.commits(),
        world.oracle.elections(),
        world.crashes,
        world.oracle.member_changes,
        servers.hand_overs,
        servers.removals,
        servers.new_logs,
        servers.provisional_titles,
        world.now_ms / 1_000,
    ]
}

fn clients(servers: &mut Servers) {
    let world = &mut servers.world;
    let Some(leader) = world.leader() else { return };
    if world.rng.random_bool(0.05) {
        world.propose(leader, 1);
    }
    if world.rng.random_bool(0.1) {
        let retries: Vec<_> = world.retries.drain(..).collect();
        world.attempt(leader, &retries);
    }
}

/// Operators: towards `size` Servers, now and then one more or fewer.
fn people(servers: &mut Servers, size: usize) {
    if !servers.world.rng.random_bool(0.005) {
        return;
    }
    let registered = servers.registered().len();
    let wanted = (size + servers.world.rng.random_range(0..=2usize)).saturating_sub(1).clamp(1, 5);
    let name = servers.world.rng.random_range(NAMES);
    if registered < wanted {
        servers.join(name);
    } else if registered > wanted && servers.world.rng.random_bool(0.3) {
        servers.leave(name);
    }
}

fn troubles(servers: &mut Servers, fate: f64) {
    let names = servers.names();
    let name = *names.choose(&mut servers.world.rng).unwrap();
    if servers.world.rng.random_bool(fate) {
        match servers.world.rng.random_range(0..10) {
            0..4 => servers.crash(name),
            4..7 => servers.stop(name),
            7 => servers.lose_disk(name),
            _ => {
                let ids = servers.world.ids();
                let one_way = servers.world.rng.random_bool(0.2);
                let World { network, rng, .. } = &mut servers.world;
                network.partition(rng, &ids, one_way);
            }
        }
    }
    if servers.world.rng.random_bool(0.002) {
        servers.start(name);
        servers.join(name);
    }
    if servers.world.rng.random_bool(0.002) {
        servers.world.network.heal();
    }
}

#[test]
fn small_clusters_keep_their_promises() {
    run_seeds("clusters", FIGURES, 30, |seed| life(seed, Planted::Nothing));
}

#[test]
fn a_stand_in_shown_as_a_real_master_is_caught() {
    assert_caught(&["two Masters", "goes back"], |seed| {
        life(seed, Planted::StandInUnflagged);
    });
}
