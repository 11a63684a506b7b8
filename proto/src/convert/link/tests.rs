//! What is sent comes back the same, whole frames only, and what is malformed is refused.

use std::sync::Arc;

use super::*;
use p2p_common::addr::{Candidate, CandidateKind, HostPort, NetInfo};
use p2p_common::push::PeerReport;
use p2p_common::service::{SERVICES_PER_PEER_MAX, ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::link::LIST_BYTES_MAX;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, NodeId};
use proptest::prelude::*;
use uuid::Uuid;

fn peer(n: u128) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
}

fn offer(name: &str, visibility: Visibility, state: ServiceState) -> ServiceOffer {
    ServiceOffer { name: name.parse().unwrap(), backend: "127.0.0.1:80".parse().unwrap(), visibility, state }
}

fn list() -> ServiceList {
    let addr = "192.0.2.1:6443".parse().unwrap();
    let report = PeerReport {
        seq: 7,
        name: "a".into(),
        zone: "z".into(),
        net: NetInfo {
            listen: Some("0.0.0.0:6443".parse().unwrap()),
            candidates: vec![Candidate { kind: CandidateKind::Advertised, addr }],
        },
        services: vec![
            offer("a.example", Visibility::Linked, ServiceState::Up),
            offer("b.example", Visibility::Ids(vec![peer(2)]), ServiceState::Draining),
        ],
    };
    let transit = TransitService {
        offer: offer("c.example", Visibility::Cluster, ServiceState::Down),
        source: peer(3),
    };
    ServiceList { report: Arc::new(report), transit: vec![transit] }
}

fn samples() -> Vec<LinkMessage> {
    vec![
        LinkMessage::Hello(Hello {
            versions: VERSIONS,
            cluster_id: Some(ClusterId::new(Uuid::from_u128(1))),
            from: peer(1),
            to: None,
            epoch: Epoch(0),
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(4)),
            features: 0,
        }),
        LinkMessage::Register(list()),
        LinkMessage::Registered { count: 3 },
        LinkMessage::Refused { code: ErrorCode::BadRequest, text: "twice".into() },
        LinkMessage::Sync(list()),
        LinkMessage::Heartbeat,
        LinkMessage::OpenTunnels { count: 2 },
    ]
}

fn framed(messages: &[LinkMessage]) -> BytesMut {
    let mut bytes = BytesMut::new();
    for message in messages {
        encode_link(message, &mut bytes).unwrap();
    }
    bytes
}

#[test]
fn every_message_comes_back_and_no_prefix_of_one_does() {
    for message in samples() {
        let bytes = framed(std::slice::from_ref(&message));
        for end in 0..bytes.len() {
            assert_eq!(decode_link(&mut bytes[..end].into()), Ok(None), "{end} of {message:?}");
        }
        let mut buffer = bytes.clone();
        assert_eq!(decode_link(&mut buffer), Ok(Some(message)));
        assert!(buffer.is_empty());
        // The same prefixes as whole frames.
        for end in LENGTH_BYTES..bytes.len() {
            let mut cut = BytesMut::from(&bytes[..end]);
            cut[..LENGTH_BYTES].copy_from_slice(&((end - LENGTH_BYTES) as u32).to_be_bytes());
            let _ = decode_link(&mut cut);
        }
    }
}

#[test]
fn frames_behind_each_other_are_told_apart_wherever_they_are_cut() {
    let bytes = framed(&samples());
    for cut in 0..bytes.len() {
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            buffer.extend_from_slice(piece);
            while let Some(message) = decode_link(&mut buffer).unwrap() {
                found.push(message);
            }
        }
        assert_eq!(found, samples(), "cut at {cut}");
    }
}

#[test]
fn bounds_hold_both_ways() {
    let mut long = BytesMut::from(&(FRAME_MAX_BYTES as u32 + 1).to_be_bytes()[..]);
    assert!(matches!(decode_link(&mut long), Err(LinkFrameError::TooLong { .. })));
    let mut huge = list();
    let Some(service) = huge.transit.pop() else { unreachable!() };
    huge.transit = vec![service; 40_000];
    let mut out = BytesMut::new();
    assert!(encode_link(&LinkMessage::Sync(huge), &mut out).is_err() && out.is_empty());
    let refused = LinkMessage::Refused { code: ErrorCode::Internal, text: "é".repeat(2_000) };
    let Ok(LinkMessage::Refused { text, .. }) = link_message_from(link_message_to(&refused)) else {
        panic!("not a refusal");
    };
    assert_eq!(text.len(), REFUSED_TEXT_MAX_BYTES);
}

#[test]
fn a_list_that_is_cut_by_its_estimate_fits_into_a_frame() {
    let named = |name: String, host: &str, visibility: Visibility| ServiceOffer {
        backend: format!("{host}:65535").parse().unwrap(),
        ..offer(&name, visibility, ServiceState::Draining)
    };
    let (long, host) = ("n".repeat(248), "h".repeat(253));
    for (prefix, host) in [(long.as_str(), host.as_str()), ("", "h")] {
        let ids = Visibility::Ids(vec![peer(2)]);
        let own = (0..SERVICES_PER_PEER_MAX).map(|n| named(format!("{prefix}{n:05}"), host, ids.clone()));
        let services: Vec<ServiceOffer> = own.collect();
        let mut bytes: usize = services.iter().map(ServiceOffer::estimated_bytes).sum();
        let carried = (0..TRANSIT_MAX).map(|n| TransitService {
            offer: named(format!("{prefix}{:05}", 10_000 + n), host, Visibility::Cluster),
            source: peer(3),
        });
        let fits = carried.take_while(|service| {
            bytes += service.estimated_bytes();
            bytes <= LIST_BYTES_MAX
        });
        let addr: HostPort = format!("{}:65535", "h".repeat(253)).parse().unwrap();
        let candidate = Candidate { kind: CandidateKind::Advertised, addr };
        let report = PeerReport {
            seq: u64::MAX,
            name: "n".repeat(128),
            zone: "z".repeat(128),
            net: NetInfo { listen: None, candidates: vec![candidate; NetInfo::CANDIDATES_MAX] },
            services,
        };
        let list = ServiceList { report: Arc::new(report), transit: fits.collect() };
        let message = LinkMessage::Sync(list);
        assert_eq!(decode_link(&mut framed(std::slice::from_ref(&message))), Ok(Some(message)));
    }
}

#[test]
fn what_may_not_be_said_is_refused() {
    let wire = |change: &dyn Fn(&mut v1::ServiceList)| {
        let mut wire = list_to(&list());
        change(&mut wire);
        link_message_from(v1::LinkMessage { message: Some(Wire::Register(wire)) })
    };
    assert!(wire(&|_| {}).is_ok());
    let bad: [&dyn Fn(&mut v1::ServiceList); 8] = [
        &|list| list.report = None,
        &|list| list.transit[0].offer = None,
        &|list| list.transit[0].source = "local".into(),
        &|list| list.transit[0].source = "S6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
        &|list| list.transit = vec![list.transit[0].clone(); TRANSIT_MAX + 1],
        &|list| list.report.as_mut().unwrap().services[0].state = 9,
        &|list| list.report.as_mut().unwrap().services[0].name = "a b".into(),
        &|list| {
            let report = list.report.as_mut().unwrap();
            report.services = vec![report.services[0].clone(); SERVICES_PER_PEER_MAX + 1];
        },
    ];
    for (nth, change) in bad.iter().enumerate() {
        assert!(wire(change).is_err(), "case {nth} was taken");
    }
    let asked = v1::LinkOpenTunnels { count: TUNNELS_ASKED_MAX + 1 };
    assert!(link_message_from(v1::LinkMessage { message: Some(Wire::OpenTunnels(asked)) }).is_err());
    assert!(link_message_from(v1::LinkMessage { message: None }).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut framed = BytesMut::new();
        framed.put_u32(bytes.len() as u32);
        framed.extend_from_slice(&bytes);
        if let Ok(Some(message)) = decode_link(&mut framed) {
            let mut again = BytesMut::new();
            encode_link(&message, &mut again).unwrap();
            prop_assert_eq!(decode_link(&mut again), Ok(Some(message)));
        }
    }
}
