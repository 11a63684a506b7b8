//! Handshakes: who gets in, who does not, and what is said about it.

// Long because: every way a handshake ends is told apart beside the others.

mod world;

use std::sync::Arc;
use std::time::Duration;

use p2p_common::command::TokenRole;
use p2p_common::{ErrorCode, KeyHash, NodeKind};
use p2p_runtime::ca::ClusterCa;
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{BadCertificate, Token, TrustBundle};
use p2p_runtime::tls::{
    ALPN_NODE, ALPN_PUBLIC, ALPN_TUNNEL, AcceptError, CLIENT_HELLO_TIMEOUT, ConnectError, Connector,
    Credentials, Expect, Face, HANDSHAKE_TIMEOUT, Prefixed, ServerTls,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use world::stranger::stranger;
use world::{CLUSTER, Node, OTHER_CLUSTER, TIMEOUT, address, ca, enrolment, meet, peer_id, server_id};

fn exactly(node: &Node) -> Expect {
    Expect::Node { id: node.identity.id(), key_hash: Some(node.identity.key().key_hash()) }
}

#[tokio::test]
async fn nodes_know_each_other_afterwards() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    for expect in
        [exactly(&server), Expect::Node { id: server_id(1), key_hash: None }, Expect::Kind(NodeKind::Server)]
    {
        let connector = Connector::node(Arc::clone(&peer.credentials), expect);
        let (client, accepted) = meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await;
        let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
        assert_eq!(client.identity.node_id, server_id(1));
        assert_eq!(client.identity.key_hash, server.identity.key().key_hash());
        let Face::Node(caller) = accepted.face else { panic!("{:?}", accepted.face) };
        assert_eq!((caller.node_id, caller.cluster_id), (peer_id(2), CLUSTER));
        assert_eq!(caller.key_hash, peer.identity.key().key_hash());

        client.stream.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        accepted.stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
    }
}

#[tokio::test]
async fn a_tunnel_starts_on_bytes_already_read() {
    let ca = ca(CLUSTER);
    let (owner, caller) = (Node::new(&ca, peer_id(1)), Node::new(&ca, peer_id(2)));
    let connector = Connector::tunnel(Arc::clone(&caller.credentials), exactly(&owner));
    let acceptor = ServerTls::peer(Arc::clone(&owner.credentials));
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let to = address();
    let (client, accepted) = tokio::join!(connector.connect(&to, near, TIMEOUT), async {
        let mut first = vec![0; 11];
        far.read_exact(&mut first).await.unwrap();
        acceptor.accept(Prefixed::new(first.into(), far)).await
    });
    assert_eq!(client.unwrap().identity.node_id, peer_id(1));
    assert_eq!(accepted.unwrap().face.identity().unwrap().node_id, peer_id(2));
}

#[tokio::test]
async fn a_tunnel_that_seals_its_own_records_knows_the_other_side() {
    let ca = ca(CLUSTER);
    let (owner, caller) = (Node::new(&ca, peer_id(1)), Node::new(&ca, peer_id(2)));
    let acceptor = ServerTls::peer(Arc::clone(&owner.credentials));
    let to = address();
    let meet = async |connector: &Connector| {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        tokio::join!(connector.connect_tunnel(&to, near, TIMEOUT), async {
            let mut first = vec![0; 11];
            far.read_exact(&mut first).await.unwrap();
            acceptor.accept_tunnel(far, &first).await
        })
    };
    let (client, accepted) = meet(&Connector::tunnel(Arc::clone(&caller.credentials), exactly(&owner))).await;
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
    assert_eq!((client.identity.node_id, accepted.identity.node_id), (peer_id(1), peer_id(2)));
    assert_eq!(accepted.identity.key_hash, caller.identity.key().key_hash());
    client.stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    accepted.stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");

    // The same refusals as of the general stream.
    let (client, _) = meet(&Connector::tunnel(Arc::clone(&caller.credentials), exactly(&caller))).await;
    assert!(matches!(client, Err(ConnectError::OtherNode { .. })), "{client:?}");
    let stranger = Node::new(&self::ca(OTHER_CLUSTER), peer_id(2));
    let (client, accepted) =
        meet(&Connector::tunnel(Arc::clone(&stranger.credentials), exactly(&owner))).await;
    assert!(client.is_err() && matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");
    let (client, accepted) = meet(&Connector::link(Arc::clone(&caller.credentials))).await;
    assert!(client.is_err() && matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");
}

#[tokio::test]
async fn ports_speak_their_own_protocols_only() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let tunnel = Connector::tunnel(Arc::clone(&peer.credentials), exactly(&server));
    let (client, accepted) = meet(&tunnel, &ServerTls::api(Arc::clone(&server.credentials))).await;
    assert!(matches!(accepted, Err(AcceptError::Alpn { .. })));
    assert!(client.unwrap_err().to_string().contains("NoApplicationProtocol"));

    let node = Connector::node(Arc::clone(&server.credentials), exactly(&peer));
    let (client, accepted) = meet(&node, &ServerTls::peer(Arc::clone(&peer.credentials))).await;
    assert!(client.is_err());
    let refused = accepted.unwrap_err().to_string();
    assert!(refused.contains("p2p-node/1"), "{refused}");
}

#[tokio::test]
async fn a_client_without_alpn_or_with_a_strange_one_is_told_so() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    for alpn in [&[][..], &[&b"http/1.1"[..]], &[b"\x00\xff\n"]] {
        let (client, accepted) = stranger(&tls, alpn, &rustls::version::TLS13).await;
        assert!(client.unwrap_err().to_string().contains("NoApplicationProtocol"));
        assert!(matches!(accepted, Err(AcceptError::Alpn { .. })));
    }
}

#[tokio::test]
async fn node_faces_ask_for_a_certificate_and_tls_1_3() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let api = ServerTls::api(Arc::clone(&server.credentials));
    let tunnel = ServerTls::peer(Arc::clone(&peer.credentials));
    for (tls, alpn) in [(&api, ALPN_NODE), (&tunnel, ALPN_TUNNEL)] {
        let (client, accepted) = stranger(tls, &[alpn], &rustls::version::TLS13).await;
        assert!(matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");
        // In TLS 1.3 the client learns of it with its first read.
        let mut client = client.unwrap();
        drop(accepted);
        assert!(client.read_u8().await.is_err());

        let (client, accepted) = stranger(tls, &[alpn], &rustls::version::TLS12).await;
        assert!(client.is_err());
        assert!(matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");
    }
}

#[tokio::test]
async fn the_public_face_takes_both_versions_and_knows_nobody() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (client, accepted) = stranger(&tls, &[ALPN_PUBLIC], version).await;
        assert_eq!(accepted.unwrap().face, Face::Public);
        let chain = client.unwrap().get_ref().1.peer_certificates().unwrap().len();
        assert_eq!(chain, 2, "the CA is shown to those who know its fingerprint only");
    }
}

#[tokio::test]
async fn another_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (ca(CLUSTER), ca(CLUSTER));
    let (server, peer) = (Node::new(&ours, server_id(1)), Node::new(&theirs, peer_id(2)));
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let (client, accepted) = meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await;
    let refused = client.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unauthenticated);
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    assert!(matches!(accepted, Err(AcceptError::Handshake(_))));

    // The client trusts everybody here: the server alone must refuse it.
    let both = TrustBundle::from_der([ours.certificate().to_vec(), theirs.certificate().to_vec()]).unwrap();
    let trusting = enrolment(&theirs, &peer.identity, unix_now(), both);
    peer.credentials.replace(&trusting.certificate, &trusting.trust).unwrap();
    let (_, accepted) = meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await;
    let refused = accepted.unwrap_err().to_string();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn another_cluster_under_the_same_ca_is_refused_by_both_sides() {
    let ours = ca(CLUSTER);
    let same_key = ClusterCa::from_parts(OTHER_CLUSTER, &ours.key_pem(), &ours.trust()).unwrap();
    let (server, peer) = (Node::new(&ours, server_id(1)), Node::new(&same_key, peer_id(2)));
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let (client, accepted) = meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await;
    let refused = client.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::WrongCluster);
    assert!(matches!(refused, ConnectError::Certificate(BadCertificate::OtherCluster { .. })));
    assert!(matches!(accepted, Err(AcceptError::Certificate(BadCertificate::OtherCluster { .. }))));
}

#[tokio::test]
async fn the_wrong_node_is_refused_by_id_key_and_kind() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let try_as = async |expect| {
        let connector = Connector::node(Arc::clone(&peer.credentials), expect);
        meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await.0.unwrap_err()
    };
    let refused = try_as(Expect::Node { id: server_id(9), key_hash: None }).await;
    assert_eq!(refused.code(), ErrorCode::WrongRecipient);
    assert!(refused.to_string().contains(&server_id(1).to_string()), "{refused}");

    let refused = try_as(Expect::Node { id: server_id(1), key_hash: Some(KeyHash([0; 32])) }).await;
    assert!(matches!(refused, ConnectError::OtherKey { id, .. } if id == server_id(1)));

    let refused = try_as(Expect::Kind(NodeKind::Peer)).await;
    assert!(matches!(refused, ConnectError::OtherKind { expected: NodeKind::Peer, .. }));
}

#[tokio::test]
async fn nothing_is_resumed() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    for _ in 0..3 {
        let (client, accepted) = meet(&connector, &tls).await;
        let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
        accepted.stream.write_all(b"x").await.unwrap();
        client.stream.read_u8().await.unwrap(); // Tickets would come with the first read.
        assert_eq!(client.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn trust_changes_while_connections_go_on() {
    let (old, new) = (ca(CLUSTER), ca(CLUSTER));
    let (server, peer) = (Node::new(&old, server_id(1)), Node::new(&old, peer_id(2)));
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let (client, accepted) = meet(&connector, &tls).await;
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());

    let both = TrustBundle::from_der([old.certificate().to_vec(), new.certificate().to_vec()]).unwrap();
    let renew = |node: &Node, ca: &_, trust: &TrustBundle| {
        let renewed = enrolment(ca, &node.identity, unix_now(), trust.clone());
        node.credentials.replace(&renewed.certificate, &renewed.trust).unwrap();
    };
    renew(&server, &old, &both);
    renew(&peer, &old, &both);
    renew(&server, &new, &both);
    let (first, second) = meet(&connector, &tls).await;
    first.unwrap();
    second.unwrap();
    renew(&peer, &new, &new.trust());
    renew(&server, &new, &new.trust());
    let (first, second) = meet(&connector, &tls).await;
    first.unwrap();
    second.unwrap();

    client.stream.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    accepted.stream.read_exact(&mut got).await.unwrap();

    // A certificate of another key is no renewal.
    let other = Node::new(&new, server_id(3));
    let foreign = enrolment(&new, &other.identity, unix_now(), both);
    assert!(server.credentials.replace(&foreign.certificate, &foreign.trust).is_err());
    let (first, second) = meet(&connector, &tls).await;
    first.unwrap();
    second.unwrap();
}

#[tokio::test]
async fn a_token_recognises_its_cluster_and_no_other() {
    let ours = ca(CLUSTER);
    let server = Node::new(&ours, server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let token = |cluster, ca: &ClusterCa| Token::mint(TokenRole::Peer, cluster, ca.fingerprint()).unwrap();

    let (client, accepted) = meet(&Connector::enrol(&token(CLUSTER, &ours)).unwrap(), &tls).await;
    assert_eq!(client.unwrap().identity.node_id, server_id(1));
    assert_eq!(accepted.unwrap().face, Face::Public);

    let other_ca = ca(CLUSTER);
    let (client, _) = meet(&Connector::enrol(&token(CLUSTER, &other_ca)).unwrap(), &tls).await;
    assert!(matches!(client, Err(ConnectError::OtherCa)), "{client:?}");

    let (client, _) = meet(&Connector::enrol(&token(OTHER_CLUSTER, &ours)).unwrap(), &tls).await;
    assert_eq!(client.unwrap_err().code(), ErrorCode::WrongCluster);
}

#[tokio::test]
async fn a_token_made_before_a_change_of_the_ca_is_good_while_the_old_one_vouches() {
    let (old, new) = (ca(CLUSTER), ca(CLUSTER));
    let both = TrustBundle::from_der([old.certificate().to_vec(), new.certificate().to_vec()]).unwrap();
    let server = Node::new(&old, server_id(1));
    assert_eq!(server.credentials.issuer(), Some(old.fingerprint()));
    let renewed = enrolment(&new, &server.identity, unix_now(), both);
    server.credentials.replace(&renewed.certificate, &renewed.trust).unwrap();
    assert_eq!(server.credentials.issuer(), Some(new.fingerprint()));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let enrol = async |ca: &ClusterCa| {
        let token = Token::mint(TokenRole::Peer, CLUSTER, ca.fingerprint()).unwrap();
        meet(&Connector::enrol(&token).unwrap(), &tls).await.0
    };
    assert!(enrol(&old).await.is_err(), "the old CA has not signed what is shown");
    let vouching = old.vouch_for(&new, unix_now()).unwrap().unwrap();
    server.credentials.show_vouching(vec![vouching.clone()]).unwrap();
    enrol(&old).await.unwrap();
    enrol(&new).await.unwrap();
    // So do clients that have the old ca.pem.
    meet(&Connector::public(&old.trust()).unwrap(), &tls).await.0.unwrap();
    // Nodes are signed by a trusted CA itself.
    let peer = Node::new(&old, peer_id(2));
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    assert!(meet(&connector, &tls).await.0.is_err());

    let renewed = enrolment(&new, &server.identity, unix_now(), new.trust());
    server.credentials.replace(&renewed.certificate, &renewed.trust).unwrap();
    server.credentials.show_vouching(Vec::new()).unwrap();
    let refused = enrol(&old).await.unwrap_err();
    assert!(matches!(refused, ConnectError::OtherCa) && refused.to_string().contains("has changed its CA"));
    enrol(&new).await.unwrap();
    // Somebody else's word is worth nothing.
    let other = ca(CLUSTER);
    server.credentials.show_vouching(vec![other.vouch_for(&new, unix_now()).unwrap().unwrap()]).unwrap();
    assert!(enrol(&old).await.is_err());
}

#[tokio::test]
async fn showing_the_right_ca_beside_a_foreign_certificate_convinces_nobody() {
    let (real, fake) = (ca(CLUSTER), ca(CLUSTER));
    let impostor = Node::new(&fake, server_id(1));
    let shown = enrolment(&fake, &impostor.identity, unix_now(), real.trust());
    impostor.credentials.replace(&shown.certificate, &shown.trust).unwrap();
    let token = Token::mint(TokenRole::Server, CLUSTER, real.fingerprint()).unwrap();
    let tls = ServerTls::api(Arc::clone(&impostor.credentials));
    let (client, _) = meet(&Connector::enrol(&token).unwrap(), &tls).await;
    assert!(matches!(client, Err(ConnectError::Handshake(_))), "{client:?}");

    // A Peer of the real cluster is no Server either.
    let peer = Node::new(&real, peer_id(2));
    let tls = ServerTls::api(Arc::clone(&peer.credentials));
    let (client, _) = meet(&Connector::enrol(&token).unwrap(), &tls).await;
    assert!(matches!(client, Err(ConnectError::OtherKind { .. })), "{client:?}");
}

#[tokio::test]
async fn the_public_connector_verifies_host_names() {
    let ours = ca(CLUSTER);
    let server = Node::new(&ours, server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let connector = Connector::public(&ours.trust()).unwrap();
    let try_at = async |to: &str| {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let to = to.parse().unwrap();
        tokio::join!(connector.connect(&to, near, TIMEOUT), tls.accept(far)).0
    };
    for to in ["127.0.0.1:1", "[::1]:1", "localhost:1"] {
        assert_eq!(try_at(to).await.unwrap().identity.node_id, server_id(1), "{to}");
    }
    for to in ["192.0.2.1:1", "elsewhere.example:1"] {
        assert!(matches!(try_at(to).await, Err(ConnectError::Handshake(_))), "{to}");
    }
    let other = Connector::public(&ca(CLUSTER).trust()).unwrap();
    assert!(meet(&other, &tls).await.0.is_err());

    // A Peer's certificate verifies under no host name.
    let peer = Node::new(&ours, peer_id(2));
    let tls = ServerTls::api(Arc::clone(&peer.credentials));
    assert!(meet(&connector, &tls).await.0.is_err());
}

#[tokio::test]
async fn a_server_that_names_no_protocol_is_not_ours() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let enrolment = server.identity.enrolment().unwrap();
    let key = PrivateKeyDer::from_pem_slice(server.identity.key().to_pem().as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![enrolment.certificate.clone()], key)
        .unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let to = address();
    let (client, _) = tokio::join!(
        connector.connect(&to, near, TIMEOUT),
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(far)
    );
    assert!(matches!(client, Err(ConnectError::Alpn { .. })), "{client:?}");
}

#[tokio::test]
async fn what_is_not_tls_is_an_error_and_no_more() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let oversized = [22, 3, 1, 0xff, 0xff].into_iter().chain([1; 70_000]).collect();
    let inputs: [Vec<u8>; 7] = [
        vec![],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 4096],
        [22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff].to_vec(),
        oversized,
    ];
    for input in inputs {
        let (mut near, far) = tokio::io::duplex(1024);
        let client = async {
            let _ = near.write_all(&input).await;
            let _ = near.shutdown().await;
            let _ = near.read_to_end(&mut Vec::new()).await;
        };
        let (_, accepted) = tokio::join!(client, tls.accept(far));
        assert!(matches!(accepted, Err(AcceptError::NotTls(_))), "{accepted:?}");
    }
}

#[tokio::test]
async fn every_prefix_of_a_hello_is_an_error() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let connector = Connector::node(Arc::clone(&server.credentials), exactly(&server));
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let to = address();
    let mut hello = vec![0; 4096];
    let n = tokio::select! {
        _ = connector.connect(&to, near, TIMEOUT) => panic!("nobody answers"),
        n = far.read(&mut hello) => n.unwrap(),
    };
    for end in 0..n {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        near.write_all(&hello[..end]).await.unwrap();
        near.shutdown().await.unwrap();
        assert!(matches!(tls.accept(far).await, Err(AcceptError::NotTls(_))), "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_and_slow_clients_are_dropped_after_the_time_limit() {
    let ca = ca(CLUSTER);
    let (server, peer) = (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let start = tokio::time::Instant::now();

    let (_silent, far) = tokio::io::duplex(1024);
    assert!(matches!(tls.accept(far).await, Err(AcceptError::TimedOut)));
    assert_eq!(start.elapsed().as_secs(), CLIENT_HELLO_TIMEOUT.as_secs());

    let (mut slow, far) = tokio::io::duplex(1024);
    let trickle = async {
        for byte in [22, 3, 1, 1, 0, 1, 0, 0, 0xfc].into_iter().chain([3; 200]) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if slow.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    };
    let (_, accepted) = tokio::join!(trickle, tls.accept(far));
    assert!(matches!(accepted, Err(AcceptError::TimedOut)), "{accepted:?}");

    // One that sends its ClientHello and nothing more.
    let connector = Connector::node(Arc::clone(&peer.credentials), exactly(&server));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (hello, deaf) = tokio::io::duplex(64 * 1024);
    let far = tokio::io::join(far, deaf);
    let start = tokio::time::Instant::now();
    let to = address();
    let dial = connector.connect(&to, near, 2 * HANDSHAKE_TIMEOUT);
    let (_, accepted) = tokio::join!(dial, tls.accept(far));
    drop(hello);
    assert!(matches!(accepted, Err(AcceptError::TimedOut)), "{accepted:?}");
    assert_eq!(start.elapsed().as_secs(), HANDSHAKE_TIMEOUT.as_secs());

    let (near, _silent) = tokio::io::duplex(64 * 1024);
    let refused = connector.connect(&address(), near, TIMEOUT).await.unwrap_err();
    assert!(matches!(refused, ConnectError::TimedOut(TIMEOUT)));
    assert_eq!(refused.code(), ErrorCode::Unavailable);
}

#[tokio::test]
async fn an_ordinary_tls_client_verifies_a_server_with_ca_pem() {
    let ours = ca(CLUSTER);
    let server = Node::new(&ours, server_id(1));
    let tls = ServerTls::api(Arc::clone(&server.credentials));
    let mut roots = RootCertStore::empty();
    let pem = server.dir.view().read("ca.pem").unwrap().unwrap();
    for certificate in TrustBundle::from_pem(&pem).unwrap().certificates() {
        roots.add(certificate.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"grpc-exp".to_vec(), b"h2".to_vec()];
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let (client, accepted) =
        tokio::join!(TlsConnector::from(Arc::new(config)).connect(name, near), tls.accept(far));
    assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), Some(ALPN_PUBLIC));
    assert_eq!(accepted.unwrap().face, Face::Public);
}

#[test]
fn credentials_show_no_key() {
    let server = Node::new(&ca(CLUSTER), server_id(1));
    let credentials: &Credentials = &server.credentials;
    let shown = format!("{credentials:?}");
    assert!(shown.contains(&server_id(1).to_string()));
    assert!(shown.len() < 120, "{shown}");
}
