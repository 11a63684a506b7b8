//! What Servers and linked Peers say to a Peer, in any order: no panic, and it comes to rest after each word.
#![no_main]

mod steps;

use std::collections::BTreeSet;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use p2p_common::link::PathKind;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, NodeKind, Now, UnixMs};
use p2p_peer_core::{
    Agent, AgentConfig, DialFailure, FromServer, Heartbeat, Identity, InterfaceAddr, LinkOpened,
    LinkSettings, LinkToken, MemberTable, Mesh, Moment, NetSources, OnServersLost, Opened, Output,
    OwnServices, PrintTables, SessionToken, ToServer,
};
use p2p_proto::{convert, v1};
use prost::Message;
use steps::{Numbers, steps};
use uuid::Uuid;

fn node(kind: NodeKind, n: u64) -> NodeId {
    NodeId::new(kind, Uuid::from_u128(u128::from(n)))
}

fn run(n: u64) -> Incarnation {
    Incarnation::new(Uuid::from_u128(u128::from(n)))
}

fn at(ms: u64) -> Moment {
    Moment { now: Now(Duration::from_millis(ms)), unix: UnixMs(1_700_000_000_000 + ms) }
}

fn config(choice: u8) -> AgentConfig {
    let identity = Identity {
        id: node(NodeKind::Peer, 9),
        incarnation: run(9),
        cluster_id: ClusterId::new(Uuid::from_u128(1)),
        epoch: Epoch(1),
    };
    let own = ["own.example=127.0.0.1:80".parse().expect("a service")];
    let visibility = "cluster".parse().expect("a visibility");
    AgentConfig {
        identity,
        name: "me".into(),
        zone: String::new(),
        servers: ["192.0.2.1:7400", "192.0.2.2:7400"].map(|text| text.parse().expect("an address")).into(),
        services: OwnServices::new(own.into_iter(), &visibility).expect("one service"),
        net: NetSources {
            interfaces: vec![InterfaceAddr { ip: "192.168.1.5".parse().expect("an address"), up: true }],
            listen: Some("0.0.0.0:6443".parse().expect("an address")),
            ..NetSources::default()
        },
        mesh: [Mesh::Auto, Mesh::Full][usize::from(choice & 1)],
        remote_peers: vec!["192.0.2.9:6443".parse().expect("an address")],
        transit: choice & 2 != 0,
        link: LinkSettings::default(),
        on_servers_lost: OnServersLost::Stop,
        heartbeat: Heartbeat::default(),
        print_tables: PrintTables::Full,
        seed: 7,
    }
}

struct World {
    agent: Agent,
    now_ms: u64,
    /// Open ones.
    sessions: BTreeSet<SessionToken>,
    /// Open or being opened.
    links: BTreeSet<LinkToken>,
}

impl World {
    fn at(&self) -> Moment {
        at(self.now_ms)
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(output) = self.agent.poll_output() else { return };
            self.act(output);
        }
        panic!("the agent never has enough");
    }

    fn act(&mut self, output: Output) {
        let at = self.at();
        match output {
            Output::DialServer(dial) => {
                let server = dial.server.unwrap_or(node(NodeKind::Server, 1));
                self.sessions.insert(dial.session);
                self.agent.handle_session_opened(dial.session, server, "192.0.2.1:7400".into(), at);
            }
            Output::Send { session, message: ToServer::Open { hello, .. } } => {
                let hello = Hello {
                    versions: VERSIONS,
                    from: hello.to.expect("it knows who answered"),
                    to: Some(hello.from),
                    incarnation: run(5),
                    ..hello
                };
                let members = MemberTable { version: 0, members: Vec::new() };
                let welcome = FromServer::Welcome { hello, seen_from: None, members, revocations_follow: false };
                self.agent.handle_session_message(session, welcome, at);
            }
            Output::CloseSession { session, .. } => drop(self.sessions.remove(&session)),
            Output::DialLink { link, .. } => drop(self.links.insert(link)),
            Output::CloseLink { link, .. } => drop(self.links.remove(&link)),
            Output::WarmPeer { peer, .. } => {
                let failure = DialFailure { address: "192.0.2.7:1".into(), error: "refused".into() };
                self.agent.handle_tunnel_failed(peer, vec![failure], at);
            }
            _ => {}
        }
    }

    fn link(&self, nth: u8) -> Option<LinkToken> {
        self.links.iter().nth(usize::from(nth) % 4).copied()
    }

    fn step(&mut self, choice: u8, bytes: &[u8]) {
        let at = self.at();
        let nth = choice / 8;
        match choice % 8 {
            0..3 => {
                let Some(session) = self.sessions.iter().nth(usize::from(nth) % 4).copied() else { return };
                let Ok(message) = v1::SessionDown::decode(bytes) else { return };
                if let Ok(Some(message)) = p2p_peer::fuzzing::from_server(message) {
                    self.agent.handle_session_message(session, message, at);
                }
            }
            3 | 4 => {
                let Some(link) = self.link(nth) else { return };
                let Ok(message) = v1::LinkMessage::decode(bytes) else { return };
                if let Ok(message) = convert::link_message_from(message) {
                    self.agent.handle_link_message(link, message, at);
                }
            }
            5 => {
                let mut numbers = Numbers(bytes);
                let peer = node(NodeKind::Peer, numbers.below(12));
                let key_hash = KeyHash([numbers.below(3) as u8; 32]);
                let opened = LinkOpened {
                    peer,
                    key_hash,
                    incarnation: run(numbers.below(4)),
                    address: "192.0.2.9:6443".into(),
                    grants: Default::default(),
                };
                if nth & 1 == 0 {
                    self.links.extend(self.agent.accept_link(at));
                }
                if let Some(link) = self.link(nth) {
                    self.agent.handle_link_opened(link, opened, at);
                }
            }
            6 => self.pass(Numbers(bytes).below(256) * 150),
            _ => match nth % 4 {
                0 => {
                    let Some(session) = self.sessions.pop_first() else { return };
                    self.agent.handle_session_closed(session, "reset".into(), at);
                }
                1 => {
                    let Some(link) = self.links.pop_first() else { return };
                    self.agent.handle_link_closed(link, "reset".into(), at);
                }
                2 => {
                    let peer = node(NodeKind::Peer, Numbers(bytes).below(12));
                    self.agent.handle_tunnels_wanted(peer, 3, at);
                }
                _ => {
                    let peer = node(NodeKind::Peer, Numbers(bytes).below(12));
                    let address = "192.0.2.7:1".into();
                    let opened = Opened { path: PathKind::Direct, address, dialled: true, carries: true };
                    self.agent.handle_tunnel_opened(peer, opened, at);
                    self.agent.handle_tunnel_closed(peer, true, "gone", at);
                }
            },
        }
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        for _ in 0..1_000 {
            let due = self.agent.poll_timeout().map(|(due, _)| due.0.as_nanos().div_ceil(1_000_000) as u64);
            let Some(due) = due.filter(|due| *due <= until) else { break };
            self.now_ms = self.now_ms.max(due);
            self.agent.handle_tick(self.at());
            self.settle();
        }
        self.now_ms = until;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let agent = Agent::new(config(*choice), at(0));
    let mut world = World { agent, now_ms: 0, sessions: BTreeSet::new(), links: BTreeSet::new() };
    world.settle();
    world.pass(0);
    for (choice, bytes) in steps(data).take(200) {
        world.step(choice, bytes);
        world.settle();
    }
    // What look-ups show of it.
    let shown = format!("{:?}{:?}", world.agent.tables(), world.agent.status());
    assert!(!shown.is_empty() && world.agent.links().count() <= 4_096);
});
