//! Dialling again, own addresses, several links to one Peer, and what is full.

use std::time::Duration;

use p2p_common::KeyHash;
use p2p_common::wire::link::{LIST_BYTES_MAX, LinkMessage, TRANSIT_MAX};
use p2p_peer_core::{ACCEPTED_MAX, ACCEPTED_PER_PEER_MAX, Agent, LinkOpened, LinkSettings, Output, Reach};

use crate::world::{Setup, World, config, moment, peer, run, services};

fn starts(world: &World, n: u8) -> Vec<u64> {
    world.nodes[&n].dials.iter().map(|(at, _)| at / 1_000).collect()
}

#[test]
fn an_address_is_tried_soon_and_then_for_ever_at_the_interval() {
    let mut world = World::new();
    world.start(2, Setup::new(&["b=h:1"], &[1]));
    world.run_to(600_000);
    let dials: Vec<u64> = world.nodes[&2].dials.iter().map(|(at, _)| *at).collect();
    assert_eq!(dials[..7], [0, 250, 750, 1_750, 3_750, 7_750, 12_750]);
    assert!(dials[5..].windows(2).all(|pair| pair[1] - pair[0] == 5_000), "{dials:?}");
    assert_eq!(dials.len(), 124, "to the end");
    let status = world.agent(2).status().mesh_links;
    assert_eq!((status[0].connected, status[0].reason.as_str()), (false, "connection refused"));
    assert_eq!(status[0].configured.as_ref().unwrap().to_string(), "192.0.2.1:6443");
    world.start(1, Setup::new(&["a=h:1"], &[]));
    world.run_for(5_000);
    assert_eq!(world.routes(2), ["a@1", "b@local"]);
    let status = world.agent(2).status().mesh_links;
    assert_eq!((status[0].peer, status[0].connected), (Some(peer(1)), true));
    assert_eq!(status[0].reason, "connected; 1 services are known of this Peer there");
    let status = world.agent(1).status().mesh_links;
    assert_eq!(
        (status[0].configured.clone(), status[0].peer, status[0].connected),
        (None, Some(peer(2)), true)
    );
    // A link that lasted is opened anew at once.
    let dials = world.nodes[&2].dials.len();
    world.run_for(60_000);
    world.reset(1, 2);
    world.run_for(50);
    assert_eq!(world.nodes[&2].dials.len(), dials + 1);
    assert!(world.tables(2).peer(peer(1)).unwrap().connected);
}

#[test]
fn attempts_can_be_limited() {
    let mut world = World::new();
    let link =
        LinkSettings { redials_max: Some(3), redial: Duration::from_secs(1), ..LinkSettings::default() };
    world.start(2, Setup { link, ..Setup::new(&[], &[1]) });
    world.run_to(60_000);
    assert_eq!(starts(&world, 2), [0, 1, 2, 3]);
    let reason = world.agent(2).status().mesh_links[0].reason.clone();
    assert_eq!(reason, "given up after 4 attempts: connection refused");
}

#[test]
fn a_dial_that_hangs_fails_in_the_end() {
    let mut world = World::new();
    world.start(1, Setup::new(&["a=h:1"], &[]));
    world.stop(1);
    world.start(2, Setup::new(&[], &[1]));
    world.run_to(20_000);
    world.resume(1);
    world.run_to(29_000);
    assert_eq!(starts(&world, 2), [0]);
    world.run_to(40_000);
    assert_eq!(starts(&world, 2), [0, 30]);
    assert_eq!(world.routes(2), ["a@1"]);
}

#[test]
fn an_own_address_is_left_out_and_one_address_twice_is_one() {
    let mut world = World::new();
    world.start(1, Setup::new(&["a=h:1"], &[1, 2, 2]));
    world.start(2, Setup::new(&["b=h:1"], &[1, 2]));
    world.run_to(60_000);
    assert_eq!(world.routes(1), ["a@local", "b@2"]);
    assert_eq!(world.nodes[&1].closed.len(), 2, "both ends of the one attempt: {:?}", world.nodes[&1].closed);
    let own: Vec<_> =
        world.nodes[&1].dials.iter().filter(|(_, to)| to.to_string() == "192.0.2.1:6443").collect();
    assert_eq!(own.len(), 1);
    let status = world.agent(1).status().mesh_links;
    assert_eq!(status[0].reason, "left out: this Peer itself answers there");
    assert_eq!(status.len(), 3, "two configured addresses and the link that 2 opened");
}

#[test]
fn peers_that_dial_each_other_have_two_links_and_one_is_enough() {
    let mut world = World::new();
    world.start(1, Setup::new(&["a=h:1"], &[2]));
    world.start(2, Setup::new(&["b=h:1"], &[1]));
    world.run_to(10_000);
    assert_eq!(world.connections(1, 2), 2);
    for (n, other) in [(1, 2), (2, 1)] {
        let known = world.tables(n).peer(peer(other)).unwrap();
        let dialled = format!("192.0.2.{other}:6443").parse().unwrap();
        assert_eq!(known.reach, Reach::Configured(vec![dialled]));
    }
    let at = world.at();
    world.agent(1).handle_tunnels_wanted(peer(2), 1, at);
    world.run_for(10);
    assert_eq!(world.nodes[&2].offered.len(), 1, "over the link that 2 dialled");
    let before = world.sent.len();
    world.set_services(1, services(&["new=h:1"]));
    world.run_for(500);
    assert_eq!(world.routes(2), ["b@local", "new@1"]);
    let told = world.sent[before..].iter().filter(|(_, from, ..)| *from == 1);
    assert_eq!(told.filter(|(.., message)| !matches!(message, LinkMessage::Registered { .. })).count(), 2);
}

#[test]
fn too_many_links_are_not_taken_and_one_peer_gets_four() {
    let mut agent = Agent::new(config(1, &Setup::new(&["mine=h:1"], &[]), run(1)), moment(0));
    let opened = |n: u16, incarnation: u16| LinkOpened {
        peer: format!("C00000000-0000-0000-0000-00000000{n:04x}").parse().unwrap(),
        key_hash: KeyHash([9; 32]),
        incarnation: run(incarnation),
        address: "192.0.2.9:50000".into(),
        grants: Default::default(),
    };
    let closed = |agent: &mut Agent| -> Vec<u64> {
        let outputs = std::iter::from_fn(|| agent.poll_output());
        let closed = outputs.filter_map(|output| match output {
            Output::CloseLink { link, .. } => Some(link.0),
            _ => None,
        });
        closed.collect()
    };
    let first: Vec<u64> = (0..ACCEPTED_PER_PEER_MAX as u64)
        .map(|n| {
            let link = agent.accept_link(moment(n)).unwrap();
            agent.handle_link_opened(link, opened(2, 5), moment(n));
            link.0
        })
        .collect();
    assert_eq!(closed(&mut agent), []);
    agent.handle_link_message(p2p_peer_core::LinkToken(first[0]), LinkMessage::Heartbeat, moment(100));
    let fifth = agent.accept_link(moment(101)).unwrap();
    agent.handle_link_opened(fifth, opened(2, 5), moment(101));
    assert_eq!(closed(&mut agent), [first[1]], "the one that was silent the longest");
    let newer = agent.accept_link(moment(102)).unwrap();
    agent.handle_link_opened(newer, opened(2, 6), moment(102));
    assert_eq!(closed(&mut agent).len(), ACCEPTED_PER_PEER_MAX, "a new run replaces the former");

    for n in 1..ACCEPTED_MAX as u16 {
        let link = agent.accept_link(moment(200)).expect("there is room");
        if n % 2 == 0 {
            agent.handle_link_opened(link, opened(100 + n, 1), moment(200));
        }
    }
    assert!(agent.accept_link(moment(201)).is_none());
    agent.handle_link_closed(newer, "end".into(), moment(202));
    assert!(agent.accept_link(moment(203)).is_some());
    assert!(agent.accept_link(moment(203)).is_none());
    // Those that never said who they are make room by themselves.
    agent.handle_tick(moment(30_300));
    assert!(agent.accept_link(moment(30_300)).is_some());
}

#[test]
fn what_is_carried_on_is_cut_to_what_fits() {
    let mut world = World::new();
    world.start(1, Setup { transit: true, ..Setup::new(&[], &[]) });
    world.start(2, Setup::new(&[], &[1]));
    for n in 3..=9u8 {
        world.start(n, Setup::new(&[], &[1]));
        let long = "x".repeat(200);
        let texts: Vec<String> = (0..1_000).map(|i| format!("{long}-{n}-{i:04}={long}.example:1")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        world.set_services(n, services(&texts));
    }
    world.run_to(2_000);
    let list = &world.tables(2).peer_services()[&peer(1)];
    assert!(list.services.len() <= TRANSIT_MAX && list.services.len() > 1_000, "{}", list.services.len());
    let bytes: usize = list.services.keys().map(|name| name.as_str().len() * 2).sum();
    assert!(bytes < LIST_BYTES_MAX);
    assert_eq!(world.tables(1).routes_len(), 7_000);
}
