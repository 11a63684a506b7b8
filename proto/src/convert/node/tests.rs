//! What is sent comes back the same, and what is malformed is refused.

use super::*;
use p2p_common::{ClusterId, Incarnation, KeyHash, RecoveryId};
use uuid::Uuid;

fn entry() -> PeerEntry {
    let peer = NodeId::new(NodeKind::Peer, Uuid::from_u128(7));
    PeerEntry {
        id: peer,
        incarnation: Incarnation::new(Uuid::from_u128(8)),
        key_hash: KeyHash([3; 32]),
        grants: Arc::new(Grants { may_offer: "a,*.b".parse().unwrap(), ..Grants::default() }),
        grants_revision: 4,
        report: PeerReport {
            seq: 9,
            name: "shop".into(),
            zone: "sh001".into(),
            net: NetInfo {
                listen: Some("[::1]:6443".parse().unwrap()),
                candidates: vec![
                    Candidate { kind: CandidateKind::Host, addr: "[fd00::1]:6443".parse().unwrap() },
                    Candidate { kind: CandidateKind::Advertised, addr: "peer.example:443".parse().unwrap() },
                ],
            },
            services: vec![
                ServiceOffer {
                    name: "web.example".parse().unwrap(),
                    backend: "127.0.0.1:80".parse().unwrap(),
                    visibility: Visibility::Ids(vec![peer]),
                    state: ServiceState::Draining,
                },
                ServiceOffer {
                    name: "db".parse().unwrap(),
                    backend: "db.lan:5432".parse().unwrap(),
                    visibility: Visibility::Cluster,
                    state: ServiceState::Down,
                },
                ServiceOffer {
                    name: "near".parse().unwrap(),
                    backend: "10.0.0.1:1".parse().unwrap(),
                    visibility: Visibility::Linked,
                    state: ServiceState::Up,
                },
            ],
        },
    }
}

#[test]
fn entries_and_reports_come_back() {
    let entry = entry();
    assert_eq!(entry_from(entry_to(&entry)), Ok(entry.clone()));
    assert_eq!(report_from(Some(report_to(&entry.report))), Ok(entry.report));
    assert!(report_from(None).is_err());
}

#[test]
fn pushes_come_back() {
    let entries = vec![(entry().id, Arc::new(entry()))];
    let piece = Piece { revision: 7, first: true, done: false, entries: entries.clone() };
    let gone = NodeId::new(NodeKind::Peer, Uuid::from_u128(9));
    let delta = Delta { previous: 7, revision: 9, changed: entries, removed: vec![gone] };
    for push in [Push::Snapshot(piece), Push::Delta(delta)] {
        assert_eq!(push_from(push_to(&push)), Ok(push));
    }
    let good = v1::PeerPush { removed: vec![gone.to_string()], ..v1::PeerPush::default() };
    assert!(push_from(good.clone()).is_ok());
    assert!(push_from(v1::PeerPush { snapshot: true, ..good.clone() }).is_err());
    let server = NodeId::new(NodeKind::Server, Uuid::from_u128(9));
    assert!(push_from(v1::PeerPush { removed: vec![server.to_string()], ..good }).is_err());
}

#[test]
fn bounds_and_kinds_are_checked() {
    let good = entry_to(&entry());
    let bad = [
        v1::PeerEntry { id: "S6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(), ..good.clone() },
        v1::PeerEntry { key_hash: vec![1; 31].into(), ..good.clone() },
        v1::PeerEntry { name: "x".repeat(129), ..good.clone() },
        v1::PeerEntry { name: "a\nb".into(), ..good.clone() },
        v1::PeerEntry { services: vec![good.services[0].clone(); SERVICES_PER_PEER_MAX + 1], ..good.clone() },
        v1::PeerEntry {
            net: Some(v1::NetInfo {
                candidates: vec![
                    good.net.as_ref().unwrap().candidates[0].clone();
                    NetInfo::CANDIDATES_MAX + 1
                ],
                ..Default::default()
            }),
            ..good.clone()
        },
    ];
    for entry in bad {
        assert!(entry_from(entry.clone()).is_err(), "taken: {entry:?}");
    }
}

#[test]
fn hello_member_master_and_link_come_back() {
    let server = NodeId::new(NodeKind::Server, Uuid::from_u128(1));
    let hello = Hello {
        versions: (1, 2),
        cluster_id: Some(ClusterId::new(Uuid::from_u128(2))),
        from: server,
        to: None,
        epoch: Epoch(3),
        recovery_id: Some(RecoveryId::new(Uuid::from_u128(6))),
        raft_id: 7,
        incarnation: Incarnation::new(Uuid::from_u128(4)),
        features: 5,
    };
    let unrecovered = Hello { recovery_id: None, ..hello.clone() };
    assert_eq!(hello_from(Some(hello_to(&unrecovered))), Ok(unrecovered));
    assert_eq!(hello_from(Some(hello_to(&hello))), Ok(hello));
    let member = Member {
        id: server,
        name: "s1".into(),
        addresses: vec!["127.0.0.1:7401".parse().unwrap()],
        zone: String::new(),
        raft_id: 1,
        key_hash: KeyHash([1; 32]),
    };
    assert_eq!(member_table_from(Some(member_table_to(6, [&member]))), Ok((6, vec![member.clone()])));
    let master = MasterTitle {
        id: server,
        name: "s1".into(),
        addresses: member.addresses.clone(),
        term: 7,
        cluster_id: ClusterId::new(Uuid::from_u128(2)),
        epoch: Epoch(3),
        since: UnixMs(8),
        provisional: true,
    };
    assert_eq!(master_from(master_to(&master)), Ok(master));
    for path in [None, Some(PathKind::Direct), Some(PathKind::Punched), Some(PathKind::Relayed)] {
        let link = LinkRow {
            id: server,
            path,
            address: "127.0.0.1:1".into(),
            rtt_us: Some(9),
            bytes_in: 10,
            bytes_out: 11,
            since: UnixMs(12),
            tunnels: 13,
            reason: "same host".into(),
        };
        assert_eq!(link_from(link_to(&link)), Ok(link));
    }
}
