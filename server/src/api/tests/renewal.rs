//! Certificates that are over, and their renewal.

use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ErrorCode, Incarnation, UnixMs};
use p2p_proto::status::code_of;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::enroll_client::EnrollClient;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{CertificateDates, PeerIdentity};
use tonic::Status;
use uuid::Uuid;

use super::world::{CLUSTER, EPOCH, Node, World, ca, peer};

const DAY_MS: u64 = 86_400_000;

async fn renew(
    world: &World,
    node: &Node,
    csr: Vec<u8>,
    addresses: &[&str],
) -> Result<v1::RenewReply, Status> {
    let hello = Hello {
        versions: VERSIONS,
        cluster_id: Some(CLUSTER),
        from: node.id,
        to: Some(world.me),
        epoch: EPOCH,
        recovery_id: None,
        raft_id: 0,
        incarnation: Incarnation::new(Uuid::from_u128(1)),
        features: 0,
    };
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    let request = v1::RenewRequest { hello: Some(convert::hello_to(&hello)), csr: csr.into(), addresses };
    let channel = world.node(node).await.unwrap();
    EnrollClient::new(channel).renew(request).await.map(tonic::Response::into_inner)
}

async fn look_up(world: &World, node: &Node) -> Result<(), ErrorCode> {
    let channel = world.node(node).await.unwrap();
    let answer = ClusterClient::new(channel).get_status(v1::GetStatusRequest {}).await;
    answer.map(|_| ()).map_err(|refused| code_of(&refused).unwrap())
}

fn days_ago(days: u64) -> UnixMs {
    UnixMs(unix_now().0 - days * DAY_MS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_certificate_is_over_gets_another_and_nothing_else() {
    let world = World::start().await;
    let node = &world.peers[0];
    assert_eq!(look_up(&world, node).await, Ok(()));
    node.show(&world.ca, days_ago(30), &world.ca);
    assert_eq!(look_up(&world, node).await, Err(ErrorCode::CertificateExpired));
    let renewed = renew(&world, node, node.request(), &[]).await.unwrap();
    let identity = PeerIdentity::of_certificate(&renewed.certificate).unwrap();
    assert_eq!((identity.node_id, identity.key_hash), (node.id, node.key_hash));
    assert_eq!(renewed.trust_bundle, vec![world.ca.certificate().to_vec()]);
    let certificate = renewed.certificate.to_vec().into();
    node.credentials.replace(&certificate, &world.ca.trust()).unwrap();
    assert_eq!(look_up(&world, node).await, Ok(()));
    // One that is not valid yet was signed by another clock: no fault of its.
    node.show(&world.ca, UnixMs(unix_now().0 + 2 * DAY_MS), &world.ca);
    assert_eq!(look_up(&world, node).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_keeps_the_key_and_has_an_end() {
    let world = World::start().await;
    let [node, other] = &world.peers;
    let code = async |node, csr| code_of(&renew(&world, node, csr, &[]).await.unwrap_err());
    assert_eq!(code(node, other.request()).await, Some(ErrorCode::BadRequest));
    assert_eq!(code(node, b"junk".to_vec()).await, Some(ErrorCode::BadRequest));
    node.show(&world.ca, days_ago(7 + 91), &world.ca);
    assert_eq!(code(node, node.request()).await, Some(ErrorCode::CertificateExpired));
    // Away while the CA was changed: it is known by its key, and gets a certificate of the CA that signs now.
    node.show(&ca(CLUSTER), unix_now(), &world.ca);
    assert_eq!(look_up(&world, node).await, Err(ErrorCode::CertificateExpired));
    let renewed = renew(&world, node, node.request(), &[]).await.unwrap();
    node.credentials.replace(&renewed.certificate.to_vec().into(), &world.ca.trust()).unwrap();
    assert_eq!(node.credentials.issuer(), Some(world.ca.fingerprint()));
    assert_eq!(look_up(&world, node).await, Ok(()));
    // Nobody knows this one, whatever the CA says.
    let stranger = Node::signed(&world.ca, peer(9), days_ago(30));
    assert_eq!(code(&stranger, stranger.request()).await, Some(ErrorCode::Unauthenticated));
    assert!(
        world.node(&Node::new(&ca(CLUSTER), peer(1))).await.is_err() || {
            // TLS 1.3 tells a client that it is refused only with the first answer.
            look_up_fails(&world, &Node::new(&ca(CLUSTER), peer(1))).await
        }
    );
}

async fn look_up_fails(world: &World, node: &Node) -> bool {
    let Ok(channel) = world.node(node).await else { return true };
    ClusterClient::new(channel).get_status(v1::GetStatusRequest {}).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_known_by_its_key_whatever_its_certificate_says() {
    let world = World::start().await;
    let node = &world.other;
    for (ca, signed) in [
        (&world.ca, days_ago(400)),
        (&ca(CLUSTER), unix_now()),
        (&world.ca, UnixMs(unix_now().0 + 9 * DAY_MS)),
    ] {
        node.show(ca, signed, &world.ca);
        assert_eq!(look_up(&world, node).await, Ok(()));
    }
    node.show(&world.ca, days_ago(100), &world.ca);
    let addresses = ["s2.example.com:7400", "192.0.2.7:7400"];
    let renewed = renew(&world, node, node.request(), &addresses).await.unwrap();
    let text = String::from_utf8_lossy(&renewed.certificate).into_owned();
    assert!(text.contains("s2.example.com"));
    let dates = CertificateDates::of(&renewed.certificate).unwrap();
    let days = (dates.not_after.0 - unix_now().0 + DAY_MS / 2) / DAY_MS;
    assert_eq!(days, 90);
}
