//! What Peers say to a Server, in any order: no panic, and what is passed on to each is a table it can follow.
#![no_main]

mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use p2p_common::cluster_state::ClusterState;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::revision::View;
use p2p_common::{Incarnation, KeyHash, NodeId, NodeKind, Now, UnixMs};
use p2p_proto::v1::session_up::Message as UpMessage;
use p2p_proto::{convert, v1};
use p2p_server_core::{Arrival, Down, Hub, HubConfig, Output, SessionId};
use prost::Message;
use steps::{Numbers, steps};
use uuid::Uuid;

const PEERS: u64 = 4;

fn peer(n: u64) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(u128::from(n)))
}

fn run(n: u64) -> Incarnation {
    Incarnation::new(Uuid::from_u128(u128::from(n)))
}

/// A cluster in which every Peer but the last is enrolled.
fn state() -> Arc<ClusterState> {
    let identity = |n| v1::StoredIdentity {
        id: peer(n).to_string(),
        name: format!("p{n}"),
        key_hash: vec![n as u8; 32].into(),
        enrolled_at_unix_ms: 1,
        ..Default::default()
    };
    let stored = v1::StoredState {
        cluster_id: Uuid::from_u128(1).to_string(),
        epoch: 1,
        identities: (0..PEERS - 1).map(identity).collect(),
        ..Default::default()
    };
    Arc::new(convert::decode_state(&stored.encode_to_vec()).expect("a state as we store it"))
}

struct World {
    hub: Hub,
    now: Now,
    sessions: BTreeMap<SessionId, View<NodeId, Arc<PeerEntry>>>,
}

impl World {
    fn settle(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Ready(session) => self.carry(session),
                Output::Disconnect { session, .. } => drop(self.sessions.remove(&session)),
            }
        }
    }

    fn carry(&mut self, session: SessionId) {
        while let Some(down) = self.hub.poll_down(session, self.now) {
            if let Down::Push(push) = down {
                let wire = convert::push_from(convert::push_to(&push));
                assert_eq!(wire.as_ref(), Ok(&push), "what is passed on can be read");
                let view = self.sessions.get_mut(&session).expect("it gets something, so it is there");
                view.apply(run(1), push).expect("pushes follow each other");
            }
        }
    }

    fn open(&mut self, n: u64, incarnation: u64, report: PeerReport) {
        let arrival = Arrival {
            id: peer(n),
            incarnation: run(incarnation),
            key_hash: KeyHash([n as u8; 32]),
            seen_from: "198.51.100.7:1000".parse().expect("an address"),
            report,
            since: UnixMs(1),
        };
        if let Ok(opened) = self.hub.handle_open(arrival, None, self.now) {
            let mut view = View::new(1_000);
            view.begin_session();
            self.sessions.insert(opened.session, view);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let now = Now(Duration::from_secs(1_000));
    let mut world = World { hub: Hub::new(&HubConfig::new(run(1)), state()), now, sessions: BTreeMap::new() };
    for (choice, bytes) in steps(data) {
        let mut numbers = Numbers(bytes);
        match choice % 8 {
            // A Peer comes: its number, its run, its report.
            0 | 1 => {
                let (n, incarnation) = (numbers.below(PEERS), numbers.below(3));
                let report =
                    v1::PeerReport::decode(numbers.0).map(|report| convert::report_from(Some(report)));
                if let Ok(Ok(report)) = report {
                    world.open(n, incarnation, report);
                }
            }
            // Time passes.
            2 => {
                world.now = world.now + Duration::from_millis(100 * numbers.below(256));
                world.hub.handle_tick(world.now);
            }
            // One goes.
            3 => {
                let nth = numbers.below(PEERS) as usize;
                if let Some(session) = world.sessions.keys().nth(nth).copied() {
                    world.sessions.remove(&session);
                    world.hub.handle_closed(session);
                }
            }
            // One says something.
            _ => {
                let nth = usize::from(choice / 8) % PEERS as usize;
                let Some(session) = world.sessions.keys().nth(nth).copied() else { continue };
                let Ok(v1::SessionUp { message: Some(message), .. }) = v1::SessionUp::decode(bytes) else {
                    continue;
                };
                match message {
                    UpMessage::Report(report) => {
                        let Ok(report) = convert::report_from(Some(report)) else { continue };
                        world.hub.handle_report(session, report, world.now);
                    }
                    UpMessage::Links(report) => {
                        let Ok(links) = convert::links_from(report.links) else { continue };
                        world.hub.handle_links(session, links, world.now);
                    }
                    UpMessage::Heartbeat(_) => world.hub.handle_heartbeat(session, world.now),
                    UpMessage::Open(_) => {}
                }
            }
        }
        world.settle();
    }
    assert_eq!(world.hub.sessions(), world.sessions.len());
});
