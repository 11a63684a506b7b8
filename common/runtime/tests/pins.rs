//! Certificates that are no good, and the pinned keys, clocks and faces that make nothing of it.

mod world;

use std::sync::Arc;
use std::time::Duration;

use p2p_common::command::TokenRole;
use p2p_common::{ErrorCode, NodeId, UnixMs};
use p2p_runtime::ca::ClusterCa;
use p2p_runtime::clock::{ClockBase, unix_now};
use p2p_runtime::identity::Token;
use p2p_runtime::tls::{Connector, Expect, ServerTls};
use world::{CLUSTER, Node, TIMEOUT, ca, enrolment, meet, peer_id, server_id};

const DAY_MS: u64 = 86_400_000;

fn exactly(node: &Node) -> Expect {
    Expect::Node { id: node.identity.id(), key_hash: Some(node.identity.key().key_hash()) }
}

/// Certificates that are no good, by name: when they were signed, and whether by another CA than the trusted one.
const BAD_CERTIFICATES: [(&str, i64, bool); 4] = [
    ("expired", -100, false),
    ("not yet valid", 2, false),
    ("of another CA", 0, true),
    ("of another CA and expired", -100, true),
];

/// A node that shows a bad certificate and trusts `ours`.
fn bad_node(ours: &ClusterCa, id: NodeId, (_, days, foreign): (&str, i64, bool)) -> Node {
    let node = Node::new(ours, id);
    let other = ca(CLUSTER);
    let now = UnixMs(unix_now().0.checked_add_signed(days * DAY_MS as i64).unwrap());
    let bad = enrolment(if foreign { &other } else { ours }, &node.identity, now, ours.trust());
    node.credentials.replace(&bad.certificate, &bad.trust).unwrap();
    node
}

/// Lets `node` know `other` by its key.
fn pin(node: &Node, other: &Node) {
    let (id, key) = (other.identity.id(), other.identity.key().key_hash());
    node.credentials.set_pins(move |shown_id, shown_key| (shown_id, shown_key) == (id, key));
}

#[tokio::test]
async fn a_bad_certificate_of_a_server_is_refused_unless_its_key_is_pinned() {
    let ca = ca(CLUSTER);
    for bad in BAD_CERTIFICATES {
        let (server, peer) = (bad_node(&ca, server_id(1), bad), Node::new(&ca, peer_id(2)));
        let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
        let tls = ServerTls::api(Arc::clone(&server.credentials));
        let refused = meet(&connector, &tls).await.0.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unauthenticated, "{}", bad.0);
        // The key of another one opens nothing.
        pin(&peer, &Node::new(&ca, server_id(1)));
        assert!(meet(&connector, &tls).await.0.is_err(), "{}", bad.0);
        pin(&peer, &server);
        let dialed = meet(&connector, &tls).await.0.unwrap();
        assert_eq!(dialed.identity.key_hash, server.identity.key().key_hash(), "{}", bad.0);
    }
}

#[tokio::test]
async fn a_server_lets_bad_dates_through_to_its_gate_and_other_cas_by_pinned_keys_alone() {
    let ca = ca(CLUSTER);
    for bad in BAD_CERTIFICATES {
        let (_, _, foreign) = bad;
        let (server, peer) = (Node::new(&ca, server_id(1)), bad_node(&ca, peer_id(2), bad));
        let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
        let tls = ServerTls::api(Arc::clone(&server.credentials));
        let accepted = meet(&connector, &tls).await.1;
        assert_eq!(accepted.is_err(), foreign, "{}", bad.0);
        pin(&server, &peer);
        let accepted = meet(&connector, &tls).await.1.unwrap();
        let shown = accepted.certificate.unwrap();
        assert_eq!(shown.chained, !foreign, "{}", bad.0);
        assert_eq!(shown.dates, peer.credentials.dates());
    }
}

#[tokio::test]
async fn peers_among_themselves_look_at_chain_and_dates() {
    let ca = ca(CLUSTER);
    for bad in BAD_CERTIFICATES {
        let (near, far) = (Node::new(&ca, peer_id(1)), bad_node(&ca, peer_id(2), bad));
        let dial = |from: &Node, to: &Node| Connector::tunnel(Arc::clone(&from.credentials), exactly(to));
        let tls = ServerTls::peer(Arc::clone(&near.credentials));
        assert!(meet(&dial(&far, &near), &tls).await.1.is_err(), "{} dials", bad.0);
        let tls = ServerTls::peer(Arc::clone(&far.credentials));
        assert!(meet(&dial(&near, &far), &tls).await.0.is_err(), "{} is dialled", bad.0);
    }
}

#[tokio::test]
async fn dates_are_judged_by_the_cluster_clock() {
    let ca = ca(CLUSTER);
    let (near, far) = (Node::new(&ca, peer_id(1)), Node::new(&ca, peer_id(2)));
    let connector = Connector::tunnel(Arc::clone(&far.credentials), exactly(&near));
    let tls = ServerTls::peer(Arc::clone(&near.credentials));
    let later = |days: u64| ClockBase::told(unix_now().plus(Duration::from_secs(days * 86_400)));
    for (days, fits) in [(6, true), (8, false), (0, true)] {
        near.credentials.clock().set(Some(later(days)));
        assert_eq!(
            meet(&connector, &tls).await.1.is_ok(),
            fits,
            "{days} days later at the side that was dialled"
        );
    }
    for (days, fits) in [(6, true), (8, false), (0, true)] {
        far.credentials.clock().set(Some(later(days)));
        assert_eq!(
            meet(&connector, &tls).await.0.is_ok(),
            fits,
            "{days} days later at the side that dialled"
        );
    }
}

#[test]
fn a_server_knows_by_which_names_it_is_verified() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    for (host, named) in [
        ("localhost", true),
        ("127.0.0.1", true),
        ("::1", true),
        ("s1.example", false),
        ("10.0.0.1", false),
        ("a b", false),
    ] {
        assert_eq!(server.credentials.is_named(host), named, "{host}");
    }
}

#[tokio::test]
async fn the_command_line_on_the_host_looks_at_chain_and_name_alone() {
    let ca = ca(CLUSTER);
    for bad in BAD_CERTIFICATES {
        let server = bad_node(&ca, server_id(1), bad);
        let tls = ServerTls::api(Arc::clone(&server.credentials));
        let dialed = meet(&Connector::local(&ca.trust()).unwrap(), &tls).await.0;
        assert_eq!(dialed.is_err(), bad.2, "{}", bad.0);
        assert!(meet(&Connector::public(&ca.trust()).unwrap(), &tls).await.0.is_err(), "{}", bad.0);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let elsewhere = "elsewhere.example:7400".parse().unwrap();
        let connector = Connector::local(&ca.trust()).unwrap();
        let (client, _) = tokio::join!(connector.connect(&elsewhere, near, TIMEOUT), tls.accept(far));
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn a_node_that_enrols_may_have_any_clock() {
    let ca = ca(CLUSTER);
    let token = Token::mint(TokenRole::Peer, CLUSTER, ca.fingerprint()).unwrap();
    for bad in BAD_CERTIFICATES {
        let server = bad_node(&ca, server_id(1), bad);
        let dialed =
            meet(&Connector::enrol(&token).unwrap(), &ServerTls::api(Arc::clone(&server.credentials)))
                .await
                .0;
        assert_eq!(dialed.is_err(), bad.2, "{}", bad.0);
    }
}
