//! What a Peer says that it may not: an error and the loss of its own link, nothing else.

use std::sync::Arc;

use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
use p2p_common::push::PeerReport;
use p2p_common::service::{SERVICES_PER_PEER_MAX, ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::link::{LinkMessage, ServiceList, TRANSIT_MAX, TransitService};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, ErrorCode, KeyHash, NodeId};
use p2p_peer_core::{Agent, LinkOpened, LinkToken, Output};
use proptest::prelude::*;

use crate::world::{Setup, cluster_id, config, moment, peer, run};

const ME: u8 = 1;

fn agent(remote_peers: &[u8]) -> Agent {
    let mut agent = Agent::new(config(ME, &Setup::new(&["mine=h:1"], remote_peers), run(1)), moment(0));
    agent.handle_tick(moment(0));
    agent
}

fn drain(agent: &mut Agent) -> Vec<Output> {
    std::iter::from_fn(|| agent.poll_output()).collect()
}

fn opened(n: u8) -> LinkOpened {
    let address = format!("192.0.2.{n}:50000");
    LinkOpened {
        peer: peer(n),
        key_hash: KeyHash([n; 32]),
        incarnation: run(n.into()),
        address,
        grants: Arc::default(),
    }
}

fn accepted(agent: &mut Agent, n: u8) -> LinkToken {
    let link = agent.accept_link(moment(0)).unwrap();
    agent.handle_link_opened(link, opened(n), moment(0));
    link
}

fn dialled(agent: &mut Agent, n: u8) -> LinkToken {
    let link = drain(agent).iter().find_map(|output| match output {
        Output::DialLink { link, .. } => Some(*link),
        _ => None,
    });
    agent.handle_link_opened(link.unwrap(), opened(n), moment(0));
    link.unwrap()
}

fn offer(name: &str) -> ServiceOffer {
    ServiceOffer {
        name: name.parse().unwrap(),
        backend: "10.0.0.1:80".parse().unwrap(),
        visibility: Visibility::Linked,
        state: ServiceState::Up,
    }
}

fn list(seq: u64, services: Vec<ServiceOffer>, transit: Vec<(&str, NodeId)>) -> ServiceList {
    let report = PeerReport { seq, services, ..PeerReport::default() };
    let transit =
        transit.into_iter().map(|(name, source)| TransitService { offer: offer(name), source }).collect();
    ServiceList { report: Arc::new(report), transit }
}

fn bad_lists() -> Vec<ServiceList> {
    let many = |n: usize| (0..n).map(|i| offer(&format!("s{i}"))).collect::<Vec<_>>();
    let server: NodeId = "S00000000-0000-0000-0000-000000000001".parse().unwrap();
    let mut wide = list(9, vec![], vec![]);
    let candidate = Candidate { kind: CandidateKind::Host, addr: "10.0.0.1:1".parse().unwrap() };
    Arc::make_mut(&mut wide.report).net.candidates = vec![candidate; NetInfo::CANDIDATES_MAX + 1];
    let mut long = list(9, vec![], vec![]);
    long.transit =
        many(TRANSIT_MAX + 1).into_iter().map(|offer| TransitService { offer, source: peer(3) }).collect();
    vec![
        list(9, vec![offer("web"), offer("WEB")], vec![]),
        list(9, vec![offer("web")], vec![("web", peer(3))]),
        list(9, vec![], vec![("web", peer(3)), ("web", peer(4))]),
        list(9, many(SERVICES_PER_PEER_MAX + 1), vec![]),
        list(9, vec![], vec![("web", peer(2))]),
        list(9, vec![], vec![("web", peer(ME))]),
        list(9, vec![], vec![("web", server)]),
        wide,
        long,
    ]
}

#[test]
fn a_register_that_may_not_be_is_refused_and_the_former_counts() {
    for bad in bad_lists() {
        let mut agent = agent(&[]);
        let link = accepted(&mut agent, 2);
        agent.handle_link_message(
            link,
            LinkMessage::Register(list(1, vec![offer("good")], vec![])),
            moment(1),
        );
        drain(&mut agent);
        agent.handle_link_message(link, LinkMessage::Register(bad.clone()), moment(2));
        let outputs = drain(&mut agent);
        let refused = |output: &Output| {
            matches!(
                output,
                Output::SendLink { message: LinkMessage::Refused { code: ErrorCode::BadRequest, .. }, .. }
            )
        };
        assert!(outputs.iter().any(refused), "{bad:?} gave {outputs:?}");
        assert!(agent.tables().resolve("good", 0, &[]).is_ok());
        assert_eq!(agent.tables().routes_len(), 2);
    }
}

#[test]
fn a_sync_that_may_not_be_ends_the_link() {
    for bad in bad_lists() {
        let mut agent = agent(&[2]);
        let link = dialled(&mut agent, 2);
        agent.handle_link_message(link, LinkMessage::Sync(list(1, vec![offer("good")], vec![])), moment(1));
        drain(&mut agent);
        agent.handle_link_message(link, LinkMessage::Sync(bad), moment(2));
        assert!(drain(&mut agent).iter().any(|output| matches!(output, Output::CloseLink { .. })));
        assert!(agent.tables().route("good", p2p_peer_core::Source::Peer(peer(2))).is_some());
        assert!(!agent.tables().peer(peer(2)).unwrap().connected);
        let status = agent.status().mesh_links;
        assert!(status[0].reason.contains("told what it may not"), "{status:?}");
    }
}

#[test]
fn bytes_without_a_message_are_a_sign_of_life() {
    let mut agent = agent(&[]);
    let link = accepted(&mut agent, 2);
    let is_closed =
        |agent: &mut Agent| drain(agent).iter().any(|output| matches!(output, Output::CloseLink { .. }));
    for second in 1..=60 {
        agent.handle_link_heard(link, moment(second * 1_000));
        agent.handle_tick(moment(second * 1_000));
        assert!(!is_closed(&mut agent), "at {second} s");
    }
    agent.handle_tick(moment(89_999));
    assert!(!is_closed(&mut agent));
    agent.handle_tick(moment(90_000));
    assert!(is_closed(&mut agent));
    agent.handle_link_heard(link, moment(90_001));
}

#[test]
fn messages_out_of_turn_end_the_link() {
    let hello = LinkMessage::Hello(Hello {
        versions: VERSIONS,
        cluster_id: Some(cluster_id()),
        from: peer(2),
        to: None,
        epoch: Epoch(0),
        recovery_id: None,
        raft_id: 0,
        incarnation: run(2),
        features: 0,
    });
    let sync = LinkMessage::Sync(list(1, vec![], vec![]));
    let register = LinkMessage::Register(list(1, vec![], vec![]));
    let refused = LinkMessage::Refused { code: ErrorCode::Internal, text: String::new() };
    let asked = LinkMessage::OpenTunnels { count: 1 };
    let to_acceptor = [hello.clone(), sync, LinkMessage::Registered { count: 0 }, refused, asked];
    for message in to_acceptor {
        let mut agent = agent(&[]);
        let link = accepted(&mut agent, 2);
        drain(&mut agent);
        agent.handle_link_message(link, message.clone(), moment(1));
        let outputs = drain(&mut agent);
        assert!(matches!(outputs[0], Output::CloseLink { .. }), "{message:?} gave {outputs:?}");
    }
    for message in [hello, register] {
        let mut agent = agent(&[2]);
        let link = dialled(&mut agent, 2);
        drain(&mut agent);
        agent.handle_link_message(link, message, moment(1));
        assert!(matches!(drain(&mut agent)[0], Output::CloseLink { .. }));
    }
}

#[test]
fn whoever_answers_must_be_a_peer_with_the_key_it_had() {
    let mut agent = agent(&[]);
    let link = accepted(&mut agent, 2);
    agent.handle_link_message(link, LinkMessage::Register(list(1, vec![offer("web")], vec![])), moment(1));
    drain(&mut agent);
    let mut closed = |opened: LinkOpened, ms: u64| {
        let link = agent.accept_link(moment(ms)).unwrap();
        agent.handle_link_opened(link, opened, moment(ms));
        drain(&mut agent).into_iter().find_map(|output| match output {
            Output::CloseLink { link: closed, reason } => Some((closed == link, reason)),
            _ => None,
        })
    };
    let other_key = LinkOpened { key_hash: KeyHash([77; 32]), ..opened(2) };
    let (it, reason) = closed(other_key.clone(), 10).unwrap();
    assert!(it && reason.contains("it is known here with"), "{reason}");
    let server = "S00000000-0000-0000-0000-000000000001".parse().unwrap();
    assert!(closed(LinkOpened { peer: server, ..opened(2) }, 11).unwrap().0);
    assert!(closed(LinkOpened { incarnation: run(1), ..opened(2) }, 12).unwrap().1.contains("newer run"));
    assert!(closed(LinkOpened { peer: peer(ME), ..opened(2) }, 13).unwrap().1.contains("itself"));
    // Once it is forgotten, nothing speaks against another key.
    agent.handle_link_closed(link, "end".into(), moment(20));
    agent.handle_tick(moment(31_000));
    assert!(agent.tables().peer(peer(2)).is_none());
    let link = agent.accept_link(moment(31_000)).unwrap();
    agent.handle_link_opened(link, other_key, moment(31_000));
    assert!(!drain(&mut agent).iter().any(|output| matches!(output, Output::CloseLink { .. })));
}

#[test]
fn inputs_about_links_that_are_over_mean_nothing() {
    let mut agent = agent(&[2]);
    let old = dialled(&mut agent, 2);
    agent.handle_link_message(old, LinkMessage::Sync(list(1, vec![offer("web")], vec![])), moment(1));
    agent.handle_link_closed(old, "end".into(), moment(2));
    drain(&mut agent);
    let tables = agent.tables().clone();
    for link in [old, LinkToken(999)] {
        agent.handle_link_message(link, LinkMessage::Sync(list(9, vec![], vec![])), moment(3));
        agent.handle_link_opened(link, opened(3), moment(3));
        agent.handle_link_failed(link, "late".into(), moment(3));
        agent.handle_link_closed(link, "late".into(), moment(3));
    }
    assert_eq!(*agent.tables(), tables);
    assert_eq!(drain(&mut agent), []);
    assert_eq!(agent.status().mesh_links[0].reason, "end");
}

#[test]
fn an_older_list_never_replaces_a_newer_one() {
    let mut agent = agent(&[]);
    let (slow, fast) = (accepted(&mut agent, 2), accepted(&mut agent, 2));
    let register = |seq, name: &str| LinkMessage::Register(list(seq, vec![offer(name)], vec![]));
    agent.handle_link_message(fast, register(5, "new"), moment(1));
    agent.handle_link_message(slow, register(4, "old"), moment(2));
    assert!(agent.tables().resolve("new", 0, &[]).is_ok() && agent.tables().resolve("old", 0, &[]).is_err());
    // Another run numbers anew.
    let link = agent.accept_link(moment(3)).unwrap();
    agent.handle_link_opened(link, LinkOpened { incarnation: run(50), ..opened(2) }, moment(3));
    agent.handle_link_message(link, register(1, "again"), moment(3));
    assert!(
        agent.tables().resolve("again", 0, &[]).is_ok() && agent.tables().resolve("new", 0, &[]).is_err()
    );
    let closed = drain(&mut agent);
    let closed = closed.iter().filter(|output| matches!(output, Output::CloseLink { .. }));
    assert_eq!(closed.count(), 2, "the links of the former run");
}

fn message() -> impl Strategy<Value = LinkMessage> {
    let names = proptest::collection::vec(0u8..6, 0..5);
    let transit = proptest::collection::vec((0u8..6, 0u8..5), 0..4);
    let list = (0u64..6, names, transit).prop_map(|(seq, names, transit)| {
        let mut list = list(seq, names.iter().map(|n| offer(&format!("s{n}"))).collect(), vec![]);
        let transit = transit.iter().map(|(n, of)| (offer(&format!("s{n}")), peer(*of)));
        list.transit = transit.map(|(offer, source)| TransitService { offer, source }).collect();
        list
    });
    prop_oneof![
        list.clone().prop_map(LinkMessage::Register),
        list.prop_map(LinkMessage::Sync),
        any::<u32>().prop_map(|count| LinkMessage::Registered { count }),
        any::<u32>().prop_map(|count| LinkMessage::OpenTunnels { count }),
        Just(LinkMessage::Heartbeat),
        Just(LinkMessage::Refused { code: ErrorCode::Internal, text: "no".into() }),
    ]
}

proptest! {
    #[test]
    fn any_inputs_leave_an_agent_that_works(
        inputs in proptest::collection::vec((0u64..12, 0u8..5, 0u8..5, message(), 0u64..9_000), 0..60)
    ) {
        let mut agent = agent(&[1, 2, 3]);
        let mut now = 0;
        for (link, kind, n, message, wait) in inputs {
            let link = LinkToken(link);
            let at = moment(now);
            match kind {
                0 => drop(agent.accept_link(at)),
                1 => agent.handle_link_opened(link, LinkOpened { incarnation: run(wait as u16 % 3), ..opened(n) }, at),
                2 => agent.handle_link_closed(link, "end".into(), at),
                3 if wait % 3 == 0 => agent.handle_link_failed(link, "no".into(), at),
                _ => agent.handle_link_message(link, message, at),
            }
            now += wait;
            while agent.poll_timeout().is_some_and(|(due, _)| due <= moment(now).now) {
                agent.handle_tick(moment(now));
                drain(&mut agent);
            }
        }
        let tables = agent.tables();
        let rows: usize = tables.peer_services().values().map(|list| list.services.len()).sum();
        prop_assert_eq!(tables.routes_len(), rows + 1);
        prop_assert!(tables.resolve("mine", 0, &[]).is_ok());
    }
}
