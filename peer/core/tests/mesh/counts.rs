//! What is counted of mesh links, step by step.

use p2p_common::KeyHash;
use p2p_common::wire::link::LinkMessage;
use p2p_peer_core::{LinkEnding, LinkOpened, LinkSide, MeshCounts};

use crate::world::{Setup, World, peer, run};

const A: u8 = 1;
const B: u8 = 2;
const DIALLED: usize = LinkSide::Dialled as usize;
const ACCEPTED: usize = LinkSide::Accepted as usize;

fn counts(world: &mut World, n: u8) -> MeshCounts {
    world.agent(n).mesh_counts()
}

fn pair() -> World {
    let mut world = World::new();
    world.start(A, Setup::new(&["a=h:1"], &[]));
    world.start(B, Setup::new(&["b=h:1"], &[A]));
    world.run_to(1_000);
    world
}

#[test]
fn a_link_is_counted_on_both_sides() {
    let mut world = pair();
    let (a, b) = (counts(&mut world, A), counts(&mut world, B));
    assert_eq!((a.opened, a.open()), ([0, 1], [0, 1]));
    assert_eq!((b.opened, b.open()), ([1, 0], [1, 0]));
    assert_eq!((b.registers_sent, b.registers_accepted, b.registers_refused), (1, 1, 0));
    assert_eq!((a.registers_taken, a.registers_turned_away), (1, 0));
    assert_eq!(a.syncs_sent, b.syncs_received);
    assert!(b.syncs_received >= 1);

    world.run_to(61_000);
    let (a, b) = (counts(&mut world, A), counts(&mut world, B));
    assert_eq!((b.registers_sent, b.registers_accepted, a.registers_taken), (3, 3, 3), "every 30 s");
    assert!(b.heartbeats_sent >= 16 && a.heartbeats_sent >= 16, "{a:?} {b:?}");
    assert_eq!((a.heartbeats_missed, b.heartbeats_missed), (0, 0));

    world.reset(A, B);
    world.run_for(1_000);
    let (a, b) = (counts(&mut world, A), counts(&mut world, B));
    assert_eq!(a.closed[ACCEPTED][LinkEnding::Lost as usize], 1);
    assert_eq!(b.closed[DIALLED][LinkEnding::Lost as usize], 1);
    assert_eq!((a.opened, a.open(), b.opened, b.open()), ([0, 2], [0, 1], [2, 0], [1, 0]));
    assert_eq!((a.offline, b.offline), (0, 0));
}

#[test]
fn silence_is_counted_as_it_lasts() {
    let mut world = pair();
    world.stop(B);
    world.run_for(10_000);
    let missed = counts(&mut world, A).heartbeats_missed;
    assert!((1..=3).contains(&missed), "{missed} after 10 s");
    world.run_for(30_000);
    let a = counts(&mut world, A);
    assert_eq!(a.heartbeats_missed, 9, "30 s by 3, less the first");
    assert_eq!(a.closed[ACCEPTED][LinkEnding::Silent as usize], 1);
    assert_eq!((a.offline, a.open()), (1, [0, 0]));
}

#[test]
fn a_pause_that_ends_in_time_counts_what_it_lacked() {
    let mut world = pair();
    world.stop(B);
    world.run_for(13_000);
    world.resume(B);
    world.run_for(20_000);
    let a = counts(&mut world, A);
    assert!((2..=4).contains(&a.heartbeats_missed), "{a:?}");
    assert_eq!((a.offline, a.open()), (0, [0, 1]));
}

#[test]
fn attempts_that_become_no_link_are_failures() {
    let mut world = World::new();
    world.start(B, Setup::new(&[], &[A]));
    world.run_to(9_000);
    assert_eq!(counts(&mut world, B).failed, [6, 0]);

    world.start(A, Setup::new(&["a=h:1"], &[]));
    world.run_for(5_000);
    assert_eq!(counts(&mut world, B).open(), [1, 0]);
    // Another key under an Id that is linked.
    let at = world.at();
    let agent = world.agent(A);
    let link = agent.accept_link(at).unwrap();
    let opened = LinkOpened {
        peer: peer(B),
        key_hash: KeyHash([9; 32]),
        incarnation: run(99),
        address: "192.0.2.66:1".into(),
        grants: Default::default(),
    };
    agent.handle_link_opened(link, opened, at);
    assert_eq!(agent.mesh_counts().failed, [0, 1]);
    assert_eq!(agent.mesh_counts().open(), [0, 1]);
}

#[test]
fn what_may_not_be_said_ends_a_link() {
    let mut world = World::new();
    world.start(A, Setup::new(&[], &[]));
    let at = world.at();
    let agent = world.agent(A);
    let link = agent.accept_link(at).unwrap();
    let opened = LinkOpened {
        peer: peer(B),
        key_hash: KeyHash([2; 32]),
        incarnation: run(1),
        address: "192.0.2.2:1".into(),
        grants: Default::default(),
    };
    agent.handle_link_opened(link, opened, at);
    agent.handle_link_message(link, LinkMessage::Registered { count: 1 }, at);
    let counts = agent.mesh_counts();
    assert_eq!(counts.closed[ACCEPTED][LinkEnding::Protocol as usize], 1);
    assert_eq!(counts.open(), [0, 0]);
    assert_eq!(counts.registers_accepted, 0);
}
