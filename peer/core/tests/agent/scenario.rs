//! What a Peer lives through.

use p2p_common::addr::CandidateKind;
use p2p_common::link::PathKind;
use p2p_common::service::ServiceName;
use p2p_common::{ErrorCode, KeyHash};
use p2p_peer_core::{
    AgentState, InterfaceAddr, LinePrefix, Mesh, OnServersLost, Opened, Source, Traffic, render,
};

use crate::world::{ME, Setup, World, entry, peer, server};

fn printed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{}\n", line.replace(&peer(ME).to_string(), "me"))).collect()
}

#[test]
fn from_the_first_dial_to_a_linked_peer() {
    let mut world = World::new(Setup::default(), &[1, 2, 3]);
    assert_eq!(world.states, [(0, AgentState::Starting)]);
    assert!(world.tables().resolve("own.example", 0, &[]).is_ok(), "local services need no Server");
    world.reachable = vec![peer(1)];
    for n in [1, 2, 3] {
        world.online(n, entry(1, 1, &["web.example=127.0.0.1:8080"]));
    }
    world.run_to(1_000);

    assert_eq!(world.states, [(0, AgentState::Starting), (0, AgentState::Working)]);
    assert_eq!(world.connected(), [server(1), server(2), server(3)]);
    let known = world.tables().peer(peer(1)).unwrap();
    assert_eq!((known.servers.len(), known.entry.key_hash), (3, KeyHash([1; 32])));
    assert_eq!(world.warmed.len(), 1, "one tunnel, however many Servers told of the Peer");
    let route = world.tables().resolve("web.example", 5, &[]).unwrap();
    assert_eq!((route.source, route.link.as_str()), (Source::Peer(peer(1)), "direct"));

    assert_eq!(
        printed(&world.printed[0]),
        "\
[registry] services peer_id=me svc_map={total=1}
[registry] services peer_id=me   | peer | name | backend |
[registry] services peer_id=me   | ---- | ---- | ------- |
[registry] services peer_id=me   | local | own.example | 127.0.0.1:80 |
[registry] peer_services_map peer_id=me {total_peers=0}
"
    );
    assert_eq!(
        printed(&world.printed[1]),
        "\
[registry] services peer_id=me svc_map={total=2}
[registry] services peer_id=me   | peer | name | backend |
[registry] services peer_id=me   | ---- | ---- | ------- |
[registry] services peer_id=me   | local | own.example | 127.0.0.1:80 |
[registry] services peer_id=me   | 192.0.2.1 | web.example | 127.0.0.1:8080 |
[registry] peer_services_map peer_id=me {total_peers=1}
[registry] peer_services_map peer_id=me   peer=192.0.2.1 {services=1 last_sync=1700000000}
[registry] peer_services_map peer_id=me     | name | backend |
[registry] peer_services_map peer_id=me     | ---- | ------- |
[registry] peer_services_map peer_id=me     | web.example | 127.0.0.1:8080 |
"
    );
    assert_eq!(world.printed.len(), 2, "what three Servers told at once prints once");
    assert_eq!(render(world.tables(), LinePrefix::Log), world.printed[1]);
}

#[test]
fn servers_learn_what_the_peer_knows_of_itself_and_its_links() {
    let mut world = World::new(Setup::default(), &[1, 2]);
    world.online(1, entry(1, 1, &[]));
    world.reachable = vec![peer(1)];
    world.run_to(3_000);
    for n in [1, 2] {
        let report = world.servers[&n].reports.last().unwrap();
        let offered: Vec<String> = report.net.candidates.iter().map(|c| c.addr.to_string()).collect();
        assert_eq!(offered, ["192.168.1.5:6443", "198.51.100.7:6443"], "an own and a seen address");
        assert_eq!(report.net.candidates[1].kind, CandidateKind::Reflexive);
        assert_eq!(report.services[0].name.as_str(), "own.example");
        let links = world.servers[&n].links.last().unwrap();
        let rows: Vec<_> = links.iter().map(|row| (row.id, row.path, row.tunnels)).collect();
        let direct = Some(PathKind::Direct);
        assert_eq!(rows, [(server(1), direct, 1), (server(2), direct, 1), (peer(1), direct, 1)]);
    }
    let seq = world.servers[&1].reports.last().unwrap().seq;
    let at = world.at();
    world.agent.handle_interfaces(vec![InterfaceAddr { ip: "10.1.1.1".parse().unwrap(), up: true }], at);
    world.run_to(3_000);
    for n in [1, 2] {
        let report = world.servers[&n].reports.last().unwrap();
        assert!(report.seq > seq);
        assert_eq!(report.net.candidates[0].addr.to_string(), "10.1.1.1:6443");
    }
    // Bytes alone are no reason to hurry.
    let before = world.servers[&1].links.len();
    world.agent.handle_traffic(peer(1), Traffic { bytes_in: 10, bytes_out: 20, rtt_us: Some(300) });
    world.run_to(20_000);
    assert_eq!(world.servers[&1].links.len(), before);
    world.run_to(40_000);
    let row = world.servers[&1].links.last().unwrap()[2].clone();
    assert_eq!((row.bytes_in, row.bytes_out, row.rtt_us), (10, 20, Some(300)));
}

#[test]
fn one_server_lost_is_no_loss_and_its_word_lapses() {
    let mut world = World::new(Setup::default(), &[1, 2]);
    world.online(1, entry(1, 1, &["only.at.one=h:1"]));
    world.online(2, entry(2, 1, &["only.at.two=h:1"]));
    world.run_to(1_000);
    assert_eq!(world.tables().peers().len(), 2);
    world.kill(1);
    world.run_to(30_900);
    assert!(world.tables().resolve("only.at.one", 0, &[]).is_ok(), "within the grace");
    world.run_to(31_100);
    assert_eq!(world.tables().resolve("only.at.one", 0, &[]).unwrap_err().code(), ErrorCode::ServiceUnknown);
    assert!(world.tables().resolve("only.at.two", 0, &[]).is_ok());
    assert_eq!(world.agent.state(), AgentState::Working);
    assert_eq!(world.dropped, [peer(1)]);
    let reason = world.agent.status().servers[0].reason.clone();
    assert_eq!(reason, "10.0.0.1:7400: connection refused");
    world.heal(1);
    world.run_to(60_000);
    assert_eq!(world.connected(), [server(1), server(2)]);
    assert!(world.tables().resolve("only.at.one", 0, &[]).is_ok());
}

#[test]
fn all_servers_lost_stops_after_the_grace_and_one_back_resumes() {
    let mut world = World::new(Setup::default(), &[1, 2]);
    for n in [1, 2] {
        world.online(n, entry(1, 1, &["web.example=h:1"]));
    }
    world.reachable = vec![peer(1)];
    world.run_to(10_000);
    world.kill(1);
    world.kill(2);
    world.run_to(39_999);
    assert_eq!(world.agent.state(), AgentState::Working);
    assert!(world.tables().resolve("web.example", 0, &[]).is_ok());
    world.run_to(40_000);
    assert_eq!(world.states.last(), Some(&(40_000, AgentState::Stopped)));
    assert_eq!(world.agent.state().as_str(), "stopped: no server");
    assert!(!world.agent.state().is_ready());
    assert_eq!(world.tables().resolve("web.example", 0, &[]).unwrap_err().code(), ErrorCode::Unavailable);
    assert!(world.tables().resolve("own.example", 0, &[]).is_ok(), "local services go on");
    let own: ServiceName = "own.example".parse().unwrap();
    assert!(
        world.tables().may_forward(peer(1), &own, p2p_common::wire::tunnel::Hop::First).is_ok(),
        "callers that are known go on"
    );

    world.run_to(200_000);
    assert_eq!(world.tables().peers().len(), 1, "nothing is forgotten while nobody knows better");
    world.heal(2);
    world.run_to(220_000);
    assert_eq!(world.agent.state(), AgentState::Working);
    assert!(world.tables().resolve("web.example", 0, &[]).is_ok());
    let resumed = world.servers[&2].resumed.last().unwrap().unwrap();
    assert_eq!(resumed.revision, 1, "by revision, not from a snapshot");
    assert_eq!(world.tables().peer(peer(1)).unwrap().servers.len(), 1, "what the other said has lapsed");
    assert_eq!(world.warmed.len(), 1, "the tunnel stayed open all the time");
}

#[test]
fn keep_direct_goes_on_without_servers() {
    let setup = Setup { on_servers_lost: OnServersLost::KeepDirect, ..Setup::default() };
    let mut world = World::new(setup, &[1]);
    world.online(1, entry(1, 1, &["web.example=h:1"]));
    world.run_to(1_000);
    world.kill(1);
    world.run_to(600_000);
    assert_eq!(world.agent.state(), AgentState::Working);
    assert!(world.tables().resolve("web.example", 0, &[]).is_ok());
}

#[test]
fn never_a_server_is_stopped_after_the_grace_and_none_configured_is_working() {
    let mut world = World::new(Setup::default(), &[]);
    world.run_to(29_999);
    assert_eq!(world.agent.state(), AgentState::Starting);
    assert_eq!(world.agent.status().servers[0].reason, "10.0.0.1:7400: connection refused");
    world.run_to(30_000);
    assert_eq!(world.agent.state(), AgentState::Stopped);
    world.set_members(&[1]);
    world.run_to(60_000);
    assert_eq!(world.agent.state(), AgentState::Working);
    let alone = World::new(Setup { introducers: &[], ..Setup::default() }, &[]);
    assert_eq!(alone.agent.state(), AgentState::Working);
    assert_eq!(alone.agent.poll_timeout().map(|(_, why)| why), Some("tables"));
}

#[test]
fn a_silent_server_is_lost_after_30_s() {
    let mut world = World::new(Setup::default(), &[1, 2]);
    world.run_to(10_000);
    assert!(world.servers[&1].heartbeats >= 2, "{}", world.servers[&1].heartbeats);
    world.servers.get_mut(&1).unwrap().silent = true;
    world.run_to(45_000);
    assert_eq!(world.connected(), [server(2)]);
    world.heal(1);
    world.run_to(80_000);
    assert_eq!(world.connected(), [server(1), server(2)]);
}

#[test]
fn a_restarted_server_replaces_what_it_said() {
    let mut world = World::new(Setup::default(), &[1]);
    world.online(1, entry(1, 1, &["old=h:1"]));
    world.run_to(1_000);
    world.kill(1);
    world.restart(1);
    world.online(1, entry(2, 1, &["new=h:1"]));
    world.run_to(5_000);
    let peers: Vec<_> = world.tables().peers().keys().copied().collect();
    assert_eq!(peers, [peer(2)]);
}

#[test]
fn servers_come_and_go_with_table_c() {
    let mut world = World::new(Setup::default(), &[1]);
    world.online(1, entry(1, 1, &[]));
    world.run_to(1_000);
    world.set_members(&[1, 2, 3]);
    world.online(3, entry(3, 1, &["three=h:1"]));
    world.run_to(2_000);
    assert_eq!(world.connected(), [server(1), server(2), server(3)]);
    world.set_members(&[2, 3]);
    world.run_to(3_000);
    assert_eq!(world.connected(), [server(2), server(3)]);
    assert_eq!(world.tables().peers().keys().copied().collect::<Vec<_>>(), [peer(3)]);
    assert_eq!(world.agent.status().servers.len(), 2);
    assert!(world.agent.link(server(1)).is_none());
}

#[test]
fn an_unreachable_peer_says_why_and_is_tried_again() {
    let mut world = World::new(Setup { mesh: Mesh::Lazy, ..Setup::default() }, &[1]);
    world.online(1, entry(1, 1, &["web=h:1"]));
    world.run_to(10_000);
    assert_eq!(world.warmed, [], "lazy: nothing ahead of need");
    let at = world.at();
    let failure = p2p_peer_core::DialFailure { address: "192.0.2.1:6443".into(), error: "timed out".into() };
    world.agent.handle_tunnel_failed(peer(1), vec![failure], at);
    world.settle();
    let link = world.agent.link(peer(1)).unwrap();
    assert_eq!(link.row().reason, "192.0.2.1:6443: timed out");
    assert_eq!(link.tried().next().unwrap().outcome, "timed out");
    assert_eq!(world.agent.name_of(peer(1)), Some("p1"));
    world.reachable = vec![peer(1)];
    world.run_to(12_000);
    assert_eq!(world.warmed.len(), 1, "a failed link is tried in the background");
    assert_eq!(world.tables().peer(peer(1)).unwrap().link.as_str(), "direct");
    let at = world.at();
    world.agent.handle_tunnel_closed(peer(1), true, "idle", at);
    world.run_to(100_000);
    assert_eq!(world.warmed.len(), 1, "lazy again");
}

#[test]
fn another_key_drops_the_tunnels_and_an_accepted_tunnel_is_a_link_too() {
    let mut world = World::new(Setup { mesh: Mesh::Lazy, ..Setup::default() }, &[1]);
    world.online(1, entry(1, 1, &[]));
    world.run_to(1_000);
    let at = world.at();
    let accepted =
        Opened { path: PathKind::Direct, address: "192.0.2.1:50000".into(), dialled: false, carries: false };
    world.agent.handle_tunnel_opened(peer(1), accepted, at);
    world.settle();
    assert_eq!(world.agent.link(peer(1)).unwrap().row().reason, "direct: accepted 192.0.2.1:50000");
    let mut other = p2p_common::push::PeerEntry::clone(&entry(1, 2, &[]));
    other.key_hash = KeyHash([0xaa; 32]);
    world.online(1, other.into());
    assert_eq!(world.dropped, [peer(1)]);
    assert_eq!(world.tables().peer(peer(1)).unwrap().entry.key_hash, KeyHash([0xaa; 32]));
}

#[test]
fn many_peers_are_not_all_linked() {
    let mut world = World::new(Setup::default(), &[1]);
    world.reachable = (0..60).map(peer).collect();
    for n in 0..60 {
        world.online(1, entry(n, 1, &[]));
    }
    world.run_to(60_000);
    assert!(world.warmed.len() <= Mesh::AUTO_MAX, "{}", world.warmed.len());
    for n in 20..60 {
        world.offline(1, peer(n));
    }
    world.run_to(120_000);
    let linked = (0..20).filter(|n| world.tables().peer(peer(*n)).unwrap().link.as_str() == "direct");
    assert_eq!(linked.count(), 20);
}
