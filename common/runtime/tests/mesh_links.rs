//! Handshakes of mesh links: Peers of one mesh key or one cluster, and nobody else.

mod world;

use std::sync::Arc;

use p2p_common::ErrorCode;
use p2p_runtime::mesh_key::MeshKey;
use p2p_runtime::tls::{AcceptError, ConnectError, Connector, Expect, Face, ServerTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::{CLUSTER, MeshPeer, Node, ca, meet, peer_id, server_id};

#[tokio::test]
async fn peers_with_one_mesh_key_know_each_other() {
    let key = MeshKey::generate().unwrap();
    // As the other one got it: typed.
    let (near, far) = (MeshPeer::new(&key), MeshPeer::new(&key.to_text().parse().unwrap()));
    let connector = Connector::link(Arc::clone(&near.credentials));
    let (client, accepted) = meet(&connector, &ServerTls::peer(Arc::clone(&far.credentials))).await;
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap());
    assert_eq!(client.identity.node_id, far.identity.id());
    assert_eq!(client.identity.key_hash, far.identity.key().key_hash());
    let Face::Link(caller) = accepted.face else { panic!("{:?}", accepted.face) };
    assert_eq!((caller.node_id, caller.cluster_id), (near.identity.id(), key.cluster_id()));
    client.stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    accepted.stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");

    let expect = Expect::Node { id: far.identity.id(), key_hash: Some(far.identity.key().key_hash()) };
    let tunnel = Connector::tunnel(Arc::clone(&near.credentials), expect);
    let (client, accepted) = meet(&tunnel, &ServerTls::peer(Arc::clone(&far.credentials))).await;
    assert!(client.is_ok() && matches!(accepted.unwrap().face, Face::Tunnel(_)));
}

#[tokio::test]
async fn another_mesh_key_is_refused_by_both_sides() {
    let (ours, theirs) = (MeshKey::generate().unwrap(), MeshKey::generate().unwrap());
    let (near, far) = (MeshPeer::new(&ours), MeshPeer::new(&theirs));
    let (client, accepted) =
        meet(&Connector::link(Arc::clone(&near.credentials)), &ServerTls::peer(Arc::clone(&far.credentials)))
            .await;
    assert_eq!(client.unwrap_err().code(), ErrorCode::WrongCluster);
    assert!(matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");

    // A side that looks away is still refused by the other.
    let mut trusting = theirs.enrol(&near.identity).unwrap();
    trusting.certificate = ours.enrol(&near.identity).unwrap().certificate;
    near.credentials.replace(&trusting.certificate, &trusting.trust).unwrap();
    let (_, accepted) =
        meet(&Connector::link(Arc::clone(&near.credentials)), &ServerTls::peer(Arc::clone(&far.credentials)))
            .await;
    assert!(matches!(accepted, Err(AcceptError::Handshake(_))), "{accepted:?}");
}

#[tokio::test]
async fn a_link_is_taken_from_peers_of_the_cluster_alone() {
    let ca = ca(CLUSTER);
    let (server, peer, other) =
        (Node::new(&ca, server_id(1)), Node::new(&ca, peer_id(2)), Node::new(&ca, peer_id(3)));
    let connector = Connector::link(Arc::clone(&peer.credentials));
    let (client, accepted) = meet(&connector, &ServerTls::peer(Arc::clone(&other.credentials))).await;
    assert_eq!(client.unwrap().identity.node_id, peer_id(3));
    assert!(matches!(accepted.unwrap().face, Face::Link(_)));

    let (client, _) = meet(&connector, &ServerTls::peer(Arc::clone(&server.credentials))).await;
    assert!(matches!(client, Err(ConnectError::OtherKind { .. })), "{client:?}");
    let (client, accepted) = meet(&connector, &ServerTls::api(Arc::clone(&server.credentials))).await;
    assert!(client.is_err() && matches!(accepted, Err(AcceptError::Alpn { .. })));
    let mesh = MeshPeer::new(&MeshKey::generate().unwrap());
    let (client, _) = meet(&connector, &ServerTls::peer(Arc::clone(&mesh.credentials))).await;
    assert!(client.is_err());
}
