//! Ids and entries for the tests of this crate.

use std::collections::BTreeSet;
use std::sync::Arc;

use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
use p2p_common::{Incarnation, KeyHash, NodeId, UnixMs};

use crate::connect::DialRule;
use crate::routes::{KnownPeer, Reach, RouteLink};

pub(crate) fn peer(n: u8) -> NodeId {
    format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

pub(crate) fn server(n: u8) -> NodeId {
    format!("S00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

pub(crate) fn run(n: u8) -> Incarnation {
    format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

/// Peer `n` in its run `n`, without services and addresses.
pub(crate) fn entry(n: u8, seq: u64) -> Arc<PeerEntry> {
    let report = PeerReport { seq, name: format!("p{n}"), ..PeerReport::default() };
    Arc::new(PeerEntry {
        id: peer(n),
        incarnation: run(n),
        key_hash: KeyHash([n; 32]),
        grants: Arc::default(),
        grants_revision: 0,
        report,
    })
}

/// Peer `n` at `address` in `zone` with `services` as NAME=BACKEND.
pub(crate) fn offering(n: u8, seq: u64, address: &str, zone: &str, services: &[&str]) -> Arc<PeerEntry> {
    let mut entry = PeerEntry::clone(&entry(n, seq));
    entry.report.zone = zone.into();
    entry.report.net = NetInfo {
        listen: None,
        candidates: vec![Candidate { kind: CandidateKind::Host, addr: address.parse().unwrap() }],
    };
    entry.report.services = services.iter().map(|text| offer(text)).collect();
    Arc::new(entry)
}

fn offer(text: &str) -> ServiceOffer {
    let (name, backend) = text.split_once('=').unwrap();
    ServiceOffer {
        name: name.parse().unwrap(),
        backend: backend.parse().unwrap(),
        visibility: Visibility::Cluster,
        state: ServiceState::Up,
    }
}

/// A Peer as Servers tell of it.
pub(crate) fn known_peer(entry: Arc<PeerEntry>, synced_at: UnixMs) -> KnownPeer {
    let reach = Reach::Dial(DialRule::default().plan(&entry.report.net.candidates));
    KnownPeer {
        servers: BTreeSet::new(),
        synced_at,
        address: reach.address(&entry.report.net),
        reach,
        linked: false,
        connected: true,
        transit: Arc::default(),
        link: RouteLink::Idle,
        grants: Arc::default(),
        entry,
    }
}
