//! A Peer that has mesh links and Servers: who is known by both, and what the loss of either means.

use std::sync::Arc;

use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::revision::{Piece, Push};
use p2p_common::service::{ServiceName, ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::link::{LinkMessage, ServiceList};
use p2p_common::wire::tunnel::Hop;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, ErrorCode, KeyHash, NodeId};
use p2p_peer_core::{
    Agent, AgentConfig, AgentState, FromServer, LinkOpened, LinkToken, MemberTable, Output, Reach,
    SessionToken, ToServer,
};

use crate::world::{Setup, cluster_id, config, moment, peer, run, services};

/// One agent, its one Server, and the wires to both ends by hand.
pub(crate) struct Solo {
    pub(crate) agent: Agent,
    session: SessionToken,
    pub(crate) now_ms: u64,
    revision: u64,
    pub(crate) outputs: Vec<Output>,
}

fn server() -> NodeId {
    "S00000000-0000-0000-0000-000000000001".parse().unwrap()
}

pub(crate) fn offer(name: &str, visibility: Visibility) -> ServiceOffer {
    ServiceOffer {
        name: name.parse().unwrap(),
        backend: "127.0.0.1:80".parse().unwrap(),
        visibility,
        state: ServiceState::Up,
    }
}

/// Peer `n` as the Server tells of it.
pub(crate) fn entry(n: u8, key: u8, names: &[&str]) -> Arc<PeerEntry> {
    let addr = format!("192.0.2.{n}:7443").parse().unwrap();
    let report = PeerReport {
        seq: 1,
        net: NetInfo { listen: None, candidates: vec![Candidate { kind: CandidateKind::Host, addr }] },
        services: names.iter().map(|name| offer(name, Visibility::Cluster)).collect(),
        ..PeerReport::default()
    };
    Arc::new(PeerEntry {
        id: peer(n),
        incarnation: run(n.into()),
        key_hash: KeyHash([key; 32]),
        grants: Arc::default(),
        grants_revision: 0,
        report,
    })
}

impl Solo {
    pub(crate) fn new() -> Solo {
        let setup = Setup::new(&["mine=127.0.0.1:1"], &[2]);
        let config =
            AgentConfig { servers: vec!["10.0.0.1:7400".parse().unwrap()], ..config(1, &setup, run(1)) };
        let mut solo = Solo {
            agent: Agent::new(config, moment(0)),
            session: SessionToken(0),
            now_ms: 0,
            revision: 0,
            outputs: Vec::new(),
        };
        solo.run_to(0);
        solo.session = solo
            .outputs
            .iter()
            .find_map(|output| match output {
                Output::DialServer(dial) => Some(dial.session),
                _ => None,
            })
            .unwrap();
        solo.agent.handle_session_opened(solo.session, server(), "10.0.0.1:7400".into(), moment(0));
        let hello = Hello {
            versions: VERSIONS,
            cluster_id: Some(cluster_id()),
            from: server(),
            to: Some(peer(1)),
            epoch: Epoch(0),
            recovery_id: None,
            raft_id: 0,
            incarnation: run(77),
            features: 0,
        };
        let member = Member {
            id: server(),
            name: "s1".into(),
            addresses: vec!["10.0.0.1:7400".parse().unwrap()],
            zone: String::new(),
            raft_id: 1,
            key_hash: KeyHash([1; 32]),
        };
        let members = MemberTable { version: 1, members: vec![member] };
        solo.hear(FromServer::Welcome { hello, seen_from: None, members, revocations_follow: false });
        solo
    }

    pub(crate) fn hear(&mut self, message: FromServer) {
        self.agent.handle_session_message(self.session, message, moment(self.now_ms));
        self.drain();
    }

    pub(crate) fn push(&mut self, entries: &[Arc<PeerEntry>]) {
        self.revision += 1;
        let entries = entries.iter().map(|entry| (entry.id, entry.clone())).collect();
        self.hear(FromServer::Push(Push::Snapshot(Piece {
            revision: self.revision,
            first: true,
            done: true,
            entries,
        })));
    }

    pub(crate) fn lose_server(&mut self) {
        self.agent.handle_session_closed(self.session, "reset".into(), moment(self.now_ms));
        self.drain();
    }

    /// The link to Peer 2, which was dialled, opens, and it says what it has.
    pub(crate) fn link(&mut self, key: u8, names: &[&str]) -> LinkToken {
        self.link_certified(key, names, Grants::default())
    }

    /// So with a certificate that says what Peer 2 may do.
    pub(crate) fn link_certified(&mut self, key: u8, names: &[&str], grants: Grants) -> LinkToken {
        let link = self.outputs.iter().rev().find_map(|output| match output {
            Output::DialLink { link, .. } => Some(*link),
            _ => None,
        });
        let link = link.unwrap();
        let opened = LinkOpened {
            peer: peer(2),
            key_hash: KeyHash([key; 32]),
            incarnation: run(2),
            address: "192.0.2.2:6443".into(),
            grants: Arc::new(grants),
        };
        self.agent.handle_link_opened(link, opened, moment(self.now_ms));
        let services = names.iter().map(|name| offer(name, Visibility::Linked)).collect();
        let report = Arc::new(PeerReport { seq: 1, services, ..PeerReport::default() });
        self.tell(link, LinkMessage::Sync(ServiceList { report, transit: vec![] }));
        link
    }

    pub(crate) fn tell(&mut self, link: LinkToken, message: LinkMessage) {
        self.agent.handle_link_message(link, message, moment(self.now_ms));
        self.drain();
    }

    pub(crate) fn run_to(&mut self, ms: u64) {
        loop {
            self.drain();
            let due = self.agent.poll_timeout().map(|(due, _)| due.0.as_nanos().div_ceil(1_000_000) as u64);
            let Some(due) = due.filter(|due| *due <= ms) else { break };
            self.now_ms = self.now_ms.max(due);
            self.agent.handle_tick(moment(self.now_ms));
        }
        self.now_ms = ms;
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            self.outputs.push(output);
        }
    }

    pub(crate) fn finds(&self, name: &str) -> Result<NodeId, ErrorCode> {
        match self.agent.tables().resolve(name, 0, &[]) {
            Ok(route) => Ok(route.source.peer().unwrap()),
            Err(error) => Err(error.code()),
        }
    }
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

#[test]
fn what_a_link_says_counts_while_it_lasts_then_what_servers_say() {
    let mut solo = Solo::new();
    solo.push(&[entry(2, 2, &["told"])]);
    assert_eq!(solo.finds("told"), Ok(peer(2)));
    let told = solo.agent.tables().peer(peer(2)).unwrap().reach.clone();
    let link = solo.link(2, &["linked"]);
    assert_eq!((solo.finds("linked"), solo.finds("told")), (Ok(peer(2)), Err(ErrorCode::ServiceUnknown)));
    let known = solo.agent.tables().peer(peer(2)).unwrap();
    assert_eq!(known.reach, Reach::Configured(vec!["192.0.2.2:6443".parse().unwrap()]));
    assert_eq!(known.servers.len(), 1, "it is still known who tells of it");
    // The link is lost, but Servers say that it is online: it is reached as they say.
    solo.agent.handle_link_closed(link, "reset".into(), moment(solo.now_ms));
    solo.drain();
    let known = solo.agent.tables().peer(peer(2)).unwrap();
    assert!(known.linked && known.connected && known.reach == told);
    solo.run_to(29_000);
    solo.hear(FromServer::Heartbeat);
    assert_eq!(solo.finds("linked"), Ok(peer(2)));
    solo.run_to(30_500);
    assert_eq!((solo.finds("linked"), solo.finds("told")), (Err(ErrorCode::ServiceUnknown), Ok(peer(2))));
    assert!(!solo.agent.tables().peer(peer(2)).unwrap().linked);
}

#[test]
fn the_loss_of_all_servers_does_not_touch_linked_peers() {
    let mut solo = Solo::new();
    solo.push(&[entry(2, 2, &["both"]), entry(3, 3, &["told"])]);
    let link = solo.link(2, &["both"]);
    solo.lose_server();
    for ms in (0..=40_000).step_by(5_000) {
        solo.run_to(ms);
        solo.tell(link, LinkMessage::Heartbeat);
    }
    assert_eq!(solo.agent.state(), AgentState::Stopped);
    assert_eq!((solo.finds("both"), solo.finds("told")), (Ok(peer(2)), Err(ErrorCode::Unavailable)));
    // Now the link is lost as well: nobody says that it is online.
    solo.agent.handle_link_closed(link, "reset".into(), moment(40_000));
    assert_eq!(solo.finds("both"), Err(ErrorCode::OwnerOffline));
    solo.run_to(40_500);
    solo.link(2, &["both"]);
    assert_eq!(solo.finds("both"), Ok(peer(2)));
}

#[test]
fn a_key_that_servers_tell_is_the_key() {
    let mut solo = Solo::new();
    solo.push(&[entry(2, 2, &["told"])]);
    solo.link(9, &["linked"]);
    assert_eq!(solo.finds("linked"), Err(ErrorCode::ServiceUnknown), "it showed another");
    let reason = solo.agent.status().mesh_links[0].reason.clone();
    assert!(reason.contains("it is known here with"), "{reason}");
    solo.run_to(6_000);
    solo.link(2, &["linked"]);
    assert_eq!(solo.finds("linked"), Ok(peer(2)));
    solo.push(&[entry(2, 8, &["told"])]);
    assert_eq!((solo.finds("linked"), solo.finds("told")), (Err(ErrorCode::ServiceUnknown), Ok(peer(2))));
    let dropped = Output::DropIdleTunnels { peer: peer(2) };
    assert!(solo.outputs.contains(&dropped), "tunnels with the former key");
    assert_eq!(solo.agent.tables().peer(peer(2)).unwrap().entry.key_hash, KeyHash([8; 32]));
}

#[test]
fn each_is_shown_what_is_for_it() {
    let mut solo = Solo::new();
    let mut own = services(&["linked=h:1", "all=h:2 visibility=cluster", "none=h:3 visibility=private"]);
    let ids = format!("some=h:4 visibility=ids:{},{}", peer(2), peer(3));
    own.add(ids.parse().unwrap(), &Visibility::Linked).unwrap();
    solo.push(&[entry(2, 2, &[]), entry(3, 3, &[]), entry(4, 4, &[])]);
    solo.link(2, &[]);
    solo.outputs.clear();
    let seq = |solo: &Solo| {
        solo.outputs.iter().rev().find_map(|output| match output {
            Output::Send { message: ToServer::Report(report), .. } => Some(report.clone()),
            _ => None,
        })
    };
    solo.agent.handle_services(own.clone(), moment(solo.now_ms));
    solo.run_to(1_000);
    let report = seq(&solo).expect("Servers are told");
    let names = |offers: &[ServiceOffer]| offers.iter().map(|of| of.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&report.services), ["all", "some"]);
    let shown = solo.outputs.iter().rev().find_map(|output| match output {
        Output::SendLink { message: LinkMessage::Register(list), .. } => Some(list.clone()),
        _ => None,
    });
    let shown = shown.expect("linked Peers are told");
    assert_eq!(names(&shown.report.services), ["all", "linked", "some"]);
    assert_eq!(shown.report.services[2].visibility, Visibility::Ids(vec![peer(2)]), "not who else");
    let tables = solo.agent.tables();
    let may = |n: u8, service: &str| tables.may_forward(peer(n), &name(service), Hop::First).is_ok();
    assert_eq!([may(2, "linked"), may(3, "linked"), may(4, "linked")], [true, false, false]);
    assert_eq!([may(2, "all"), may(3, "all"), may(4, "all")], [true, true, true]);
    assert_eq!([may(2, "some"), may(3, "some"), may(4, "some")], [true, true, false]);
    assert_eq!([may(2, "none"), may(3, "none"), may(4, "none")], [false, false, false]);
    // What Servers do not learn of is no news to them.
    solo.outputs.clear();
    own.set_state("linked", ServiceState::Down);
    solo.agent.handle_services(own.clone(), moment(solo.now_ms));
    solo.drain();
    assert!(seq(&solo).is_none());
    own.set_state("all", ServiceState::Draining);
    solo.agent.handle_services(own, moment(solo.now_ms));
    solo.drain();
    assert_eq!(seq(&solo).unwrap().services[0].state, ServiceState::Draining);
}
