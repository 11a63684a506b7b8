//! The walk of three Peers: B and C are told where A is; and what happens when one of them is silent.

use p2p_common::ErrorCode;
use p2p_common::service::{ServiceName, ServiceState, Visibility};
use p2p_common::wire::link::LinkMessage;
use p2p_common::wire::tunnel::Hop;
use p2p_peer_core::{AgentState, ForwardTo, Reach, Source};

use crate::world::{Setup, World, peer, services};

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;
const A_WEB: &str = "test-cluster-a.example.com";
const B_WEB: &str = "test-cluster-b.example.com";
const C_WEB: &str = "test-cluster-c.example.com";

fn three(transit: bool) -> World {
    let mut world = World::new();
    let service = |name: &str| &*Box::leak(format!("{name}=127.0.0.1:80").into_boxed_str());
    world.start(A, Setup { transit, ..Setup::new(&[service(A_WEB)], &[]) });
    world.start(B, Setup::new(&[service(B_WEB)], &[A]));
    world.start(C, Setup::new(&[service(C_WEB)], &[A]));
    world.run_to(1_000);
    world
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn route(name: &str, source: &str) -> String {
    format!("{name}@{source}")
}

#[test]
fn linked_peers_see_each_others_own_services() {
    let mut world = three(false);
    assert_eq!(world.routes(A), [route(A_WEB, "local"), route(B_WEB, "2"), route(C_WEB, "3")]);
    assert_eq!(world.routes(B), [route(A_WEB, "1"), route(B_WEB, "local")]);
    assert_eq!(world.routes(C), [route(A_WEB, "1"), route(C_WEB, "local")]);
    for n in [A, B, C] {
        assert_eq!(world.agent(n).state(), AgentState::Working, "no Server is needed");
    }
    let lists = world.tables(A).peer_services();
    assert_eq!(lists[&peer(C)].services[&name(C_WEB)].source, peer(C));
    assert_eq!(lists[&peer(C)].address.as_ref().unwrap().to_string(), "192.0.2.3:6443");

    // B reaches A where it was told to; C is asked to dial A, over the link that C dialled.
    let reach = |n: u8, to: u8| world.tables(n).peer(peer(to)).unwrap().reach.clone();
    assert_eq!(reach(B, A), Reach::Configured(vec!["192.0.2.1:6443".parse().unwrap()]));
    assert_eq!(reach(A, C), Reach::Ask);
    let at = world.at();
    world.agent(A).handle_tunnels_wanted(peer(C), 2, at);
    world.run_for(10);
    assert_eq!(world.nodes[&C].offered, [(peer(A), 2)]);
    world.agent(B).handle_tunnels_wanted(peer(A), 2, at);
    world.run_for(10);
    assert!(world.nodes[&A].offered.is_empty(), "whoever dialled the link dials the tunnels");

    let tables = world.tables(A);
    assert!(matches!(tables.may_forward(peer(B), &name(A_WEB), Hop::First), Ok(ForwardTo::Backend(_))));
    assert_eq!(
        tables.may_forward(peer(B), &name(C_WEB), Hop::First).unwrap_err().code,
        ErrorCode::ServiceUnknown
    );
    assert_eq!(tables.may_forward(peer(9), &name(A_WEB), Hop::First).unwrap_err().code, ErrorCode::Forbidden);
    assert_eq!(
        world.tables(B).resolve(C_WEB, 0, &[]).unwrap_err().code(),
        ErrorCode::ServiceUnknown,
        "B and C do not see each other"
    );
}

#[test]
fn transit_shows_what_linked_peers_own() {
    let world = three(true);
    assert_eq!(world.routes(B), [route(A_WEB, "1"), route(B_WEB, "local"), route(C_WEB, "1")]);
    let picked = world.tables(B).resolve(C_WEB, 0, &[]).unwrap();
    assert_eq!((picked.source, picked.transit), (Source::Peer(peer(A)), true));
    let list = &world.tables(B).peer_services()[&peer(A)];
    assert_eq!(list.services[&name(C_WEB)].source, peer(C), "who owns it");
    let carry = world.tables(A).may_forward(peer(B), &name(C_WEB), Hop::First);
    assert_eq!(carry, Ok(ForwardTo::Carry { owners: vec![peer(C)] }));
    let back = world.tables(A).may_forward(peer(C), &name(C_WEB), Hop::First);
    assert_eq!(back.unwrap_err().code, ErrorCode::ServiceUnknown, "never back to where it came from");
    // One hop: what B got by transit it shows nobody, and carries on to nobody.
    let by_transit = |message: &LinkMessage| match message {
        LinkMessage::Register(list) | LinkMessage::Sync(list) => !list.transit.is_empty(),
        _ => false,
    };
    assert!(world.sent.iter().filter(|(_, from, ..)| *from != A).all(|(.., message)| !by_transit(message)));
}

#[test]
fn transit_is_one_hop_and_no_loop_even_if_all_carry_on() {
    let mut world = World::new();
    let everyone =
        |services: &[&'static str], others: &[u8]| Setup { transit: true, ..Setup::new(services, others) };
    world.start(1, everyone(&["one=h:1"], &[]));
    world.start(2, everyone(&["two=h:2"], &[1]));
    world.start(3, everyone(&["three=h:3"], &[2]));
    world.start(4, everyone(&["four=h:4"], &[3]));
    world.run_to(2_000);
    assert_eq!(world.routes(1), ["one@local", "three@2", "two@2"], "four is two hops away");
    assert_eq!(world.routes(2), ["four@3", "one@1", "three@3", "two@local"]);
    // In a ring all see all, their neighbours directly.
    world.set_services(4, services(&["four=h:4", "one=h:1"]));
    world.kill(1);
    world.start(1, everyone(&["one=h:1"], &[4]));
    world.run_to(40_000);
    assert_eq!(world.routes(1), ["four@4", "one@local", "one@4", "three@2", "three@4", "two@2"]);
    assert_eq!(world.tables(3).resolve("one", 0, &[]).unwrap().source, Source::Peer(peer(4)));
}

#[test]
fn a_silent_peer_leaves_both_tables_and_comes_back() {
    let mut world = three(true);
    world.run_to(10_000);
    world.stop(C);
    let last_heard = 9_000 + 1_000;
    world.run_to(last_heard + 28_000);
    assert!(world.routes(A).contains(&route(C_WEB, "3")), "30 s have not passed");
    world.run_to(last_heard + 31_000);
    assert_eq!(world.routes(A), [route(A_WEB, "local"), route(B_WEB, "2")]);
    assert!(!world.tables(A).peer_services().contains_key(&peer(C)));
    assert_eq!(world.routes(B), [route(A_WEB, "1"), route(B_WEB, "local")], "those who saw it are told");
    assert_eq!(world.connections(A, C), 0);
    world.resume(C);
    world.run_for(6_000);
    assert_eq!(world.routes(A), [route(A_WEB, "local"), route(B_WEB, "2"), route(C_WEB, "3")]);
    assert_eq!(world.routes(B), [route(A_WEB, "1"), route(B_WEB, "local"), route(C_WEB, "1")]);
    assert_eq!(world.routes(C), [route(A_WEB, "1"), route(B_WEB, "1"), route(C_WEB, "local")]);
}

#[test]
fn a_closed_link_counts_at_once_and_its_services_for_30_s() {
    let mut world = three(true);
    world.run_to(10_000);
    world.kill(C);
    world.run_for(200);
    assert_eq!(world.routes(A), [route(A_WEB, "local"), route(B_WEB, "2"), format!("{C_WEB}@3 away")]);
    assert_eq!(world.tables(A).resolve(C_WEB, 0, &[]).unwrap_err().code(), ErrorCode::OwnerOffline);
    let carried = world.tables(A).may_forward(peer(B), &name(C_WEB), Hop::First);
    assert_eq!(carried.unwrap_err().code, ErrorCode::OwnerOffline);
    assert_eq!(world.tables(B).resolve(C_WEB, 0, &[]).unwrap_err().code(), ErrorCode::ServiceDown);
    world.run_for(31_000);
    assert_eq!(world.routes(A).len(), 2);
    assert_eq!(world.routes(B).len(), 2);
    world.restart(C);
    world.run_for(1_000);
    assert_eq!(world.routes(A).len(), 3);
    assert_eq!(world.routes(B).len(), 3);
}

#[test]
fn heartbeats_fill_silence_only_and_lists_come_every_30_s() {
    let mut world = three(false);
    world.run_to(120_900);
    let from_b: Vec<(u64, &LinkMessage)> = world
        .sent
        .iter()
        .filter(|(_, from, to, _)| (*from, *to) == (B, A))
        .map(|(at, _, _, message)| (*at, message))
        .collect();
    let registers = from_b.iter().filter(|(_, message)| matches!(message, LinkMessage::Register(_)));
    assert_eq!(registers.map(|(at, _)| at / 1_000).collect::<Vec<_>>(), [0, 30, 60, 90, 120]);
    let gaps: Vec<u64> = from_b.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.iter().all(|gap| *gap <= 3_000), "{gaps:?}");
    assert!(from_b.len() <= 41 + 5, "{} messages", from_b.len());
    let answers = world.sent.iter().filter(|(_, from, to, message)| {
        (*from, *to) == (A, B)
            && matches!(message, LinkMessage::Registered { count: 1 } | LinkMessage::Sync(_))
    });
    assert_eq!(answers.count(), 10);
}

#[test]
fn changes_of_services_are_told_at_once() {
    let mut world = three(true);
    world.run_to(5_000);
    let sent = world.sent.len();
    let mut own = services(&["test-cluster-c.example.com=127.0.0.1:80", "new=127.0.0.1:81"]);
    own.add("mine=h:1 visibility=private".parse().unwrap(), &Visibility::Linked).unwrap();
    own.add(format!("for-b=h:1 visibility=ids:{}", peer(B)).parse().unwrap(), &Visibility::Linked).unwrap();
    own.add(format!("for-a=h:1 visibility=ids:{}", peer(A)).parse().unwrap(), &Visibility::Linked).unwrap();
    world.set_services(C, own.clone());
    world.run_for(300);
    assert!(world.routes(A).contains(&"new@3".into()) && world.routes(A).contains(&"for-a@3".into()));
    assert!(!world.routes(A).iter().any(|row| row.starts_with("mine") || row.starts_with("for-b")));
    assert!(world.routes(B).contains(&"new@1".into()));
    assert!(
        !world.routes(B).iter().any(|row| row.starts_with("for-")),
        "named readers are not carried on to"
    );
    let lists = world.sent[sent..]
        .iter()
        .filter(|(.., message)| matches!(message, LinkMessage::Register(_) | LinkMessage::Sync(_)));
    assert_eq!(lists.count(), 3, "C to A, A's answer to C, A to B");

    assert!(own.set_state(C_WEB, ServiceState::Draining));
    own.remove("new");
    world.set_services(C, own);
    world.run_for(300);
    assert_eq!(world.tables(A).resolve(C_WEB, 0, &[]).unwrap_err().code(), ErrorCode::ServiceDown);
    assert_eq!(world.tables(B).resolve(C_WEB, 0, &[]).unwrap_err().code(), ErrorCode::ServiceDown);
    let refused = world.tables(C).may_forward(peer(A), &name(C_WEB), Hop::First).unwrap_err();
    assert_eq!(refused.code, ErrorCode::ServiceDown);
    assert_eq!(world.tables(A).resolve("new", 0, &[]).unwrap_err().code(), ErrorCode::ServiceUnknown);
    assert!(world.tables(C).resolve(C_WEB, 0, &[]).is_err());
}

#[test]
fn lists_are_numbered_over_the_whole_run() {
    let mut world = three(true);
    for n in 0..4 {
        let text = format!("s{n}=127.0.0.1:80");
        world.set_services(A, services(&[&text]));
        world.run_for(300);
        if n == 1 {
            // B is forgotten, and what it is shown when it returns is still newer than all before.
            world.stop(B);
            world.run_for(40_000);
            world.resume(B);
            world.run_for(6_000);
        }
    }
    let mut shown = Vec::new();
    for (_, from, to, message) in &world.sent {
        if let LinkMessage::Sync(list) = message
            && (*from, *to) == (A, B)
        {
            shown.push((list.report.seq, list.clone()));
        }
    }
    assert!(shown.is_sorted_by_key(|(seq, _)| *seq), "{shown:?}");
    for pair in shown.windows(2) {
        assert_eq!(pair[0].0 == pair[1].0, pair[0].1 == pair[1].1, "one number, one list: {pair:?}");
    }
    assert!(shown.last().unwrap().0 > 5);
}

#[test]
fn a_down_service_falls_to_others_who_have_it() {
    let mut world = World::new();
    world.start(A, Setup { transit: true, ..Setup::new(&["web=127.0.0.1:80"], &[]) });
    world.start(B, Setup::new(&["web=127.0.0.1:80"], &[A]));
    world.start(C, Setup::new(&[], &[A]));
    world.run_to(1_000);
    assert_eq!(world.tables(A).resolve("web", 0, &[]).unwrap().source, Source::Local);
    let mut own = services(&["web=127.0.0.1:80"]);
    own.set_state("web", ServiceState::Down);
    world.set_services(A, own);
    world.run_for(500);
    assert_eq!(world.tables(A).resolve("web", 0, &[]).unwrap().source, Source::Peer(peer(B)));
    let carried = world.tables(A).may_forward(peer(C), &name("web"), Hop::First);
    assert_eq!(carried, Ok(ForwardTo::Carry { owners: vec![peer(B)] }));
    assert_eq!(
        world.tables(A).may_forward(peer(B), &name("web"), Hop::First).unwrap_err().code,
        ErrorCode::ServiceDown,
        "its own it would get back"
    );
}
