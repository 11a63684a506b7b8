//! A change of the CA over the port: begun, waiting, taken back.

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_proto::v1::peering_client::PeeringClient;
use p2p_runtime::identity::CaFingerprint;
use uuid::Uuid;

use super::sessions::{Attached, hello_of, report};
use super::world::{World, until};

async fn rotate(world: &World, step: v1::RotateCaStep) -> Result<v1::RotateCaReply, Option<ErrorCode>> {
    let client = world.client(Some(&world.operator)).await;
    let request =
        v1::RotateCaRequest { request_id: Uuid::new_v4().to_string(), step: step.into(), force: false };
    let reply = OperatorClient::new(client).rotate_ca(request).await;
    reply.map(tonic::Response::into_inner).map_err(|refused| code_of(&refused))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_begun_once_told_to_peers_and_taken_back() {
    let world = World::start().await;
    let (mut attached, _) = Attached::up(&world, &world.peers[0], &report(1, vec![])).await;
    assert!(!rotate(&world, v1::RotateCaStep::Abort).await.unwrap().changed);
    assert!(!rotate(&world, v1::RotateCaStep::Finish).await.unwrap().changed);
    assert_eq!(rotate(&world, v1::RotateCaStep::Unspecified).await.unwrap_err(), Some(ErrorCode::BadRequest));

    let begun = rotate(&world, v1::RotateCaStep::Begin).await.unwrap();
    let status = begun.status.unwrap();
    assert!(begun.changed && status.phase() == v1::CaPhase::Handing);
    assert_eq!(status.cas.len(), 2);
    assert_eq!(status.cas[0].fingerprint.as_ref(), world.ca.fingerprint().0.as_slice());
    assert!(status.cas[0].signs && !status.cas[1].signs);
    // The other member does not run: it would not get the key.
    assert!(status.waiting_for.iter().any(|reason| reason.contains("s2")), "{:?}", status.waiting_for);
    assert!(!rotate(&world, v1::RotateCaStep::Begin).await.unwrap().changed, "once");
    assert_eq!(rotate(&world, v1::RotateCaStep::Finish).await.unwrap_err(), Some(ErrorCode::Conflict));

    // One session hears it as news, the next behind its welcome.
    let (mut later, _) = Attached::up(&world, &world.peers[1], &report(1, vec![])).await;
    later.follow(world.peers[0].id, |entry| entry.is_some()).await;
    attached.follow(world.peers[1].id, |entry| entry.is_some()).await;
    assert_eq!(later.trusted.iter().map(|told| told.bundle.len()).collect::<Vec<_>>(), [2]);
    assert_eq!(attached.trusted.iter().map(|told| told.bundle.len()).collect::<Vec<_>>(), [1, 2]);

    let back = rotate(&world, v1::RotateCaStep::Abort).await.unwrap();
    assert!(back.changed && back.status.unwrap().phase() == v1::CaPhase::Settled);
    until("the old bundle", || world.state().trust_bundle == [world.ca.certificate().to_vec()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_members_by_its_fingerprint() {
    let world = World::start().await;
    let fetch = async |node, fingerprint: CaFingerprint| {
        let request = v1::FetchCaKeyRequest {
            hello: Some(hello_of(node)),
            ca_fingerprint: fingerprint.0.to_vec().into(),
        };
        let reply = PeeringClient::new(world.node(node).await.unwrap()).fetch_ca_key(request).await;
        reply.map(|reply| reply.into_inner().ca_key_pem).map_err(|refused| code_of(&refused))
    };
    let ours = world.ca.fingerprint();
    assert_eq!(fetch(&world.other, ours).await.unwrap().as_ref(), world.ca.key_pem().as_bytes());
    assert_eq!(fetch(&world.other, CaFingerprint([7; 32])).await, Err(Some(ErrorCode::Unavailable)));
    assert_eq!(fetch(&world.peers[0], ours).await, Err(Some(ErrorCode::Forbidden)));
}
