//! Ids and entries for the tests of this crate.

use std::sync::Arc;

use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::service::{ServiceOffer, Visibility};
use p2p_common::{Incarnation, KeyHash, NodeId};

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
    Arc::new(PeerEntry { id: peer(n), incarnation: run(n), key_hash: KeyHash([n; 32]), report })
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
    }
}
