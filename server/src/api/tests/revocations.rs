//! Keys are revoked over the port: who had them is thrown out, everybody else hears of it.

use p2p_common::ErrorCode;
use p2p_proto::status::code_of;
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_proto::v1::session_down::Message as Down;
use p2p_proto::v1::session_up::Message as Up;
use tonic::Status;
use uuid::Uuid;

use super::sessions::{Attached, open, report};
use super::world::{Client, World, until};

fn asked(target: impl ToString) -> v1::RevokeRequest {
    v1::RevokeRequest {
        request_id: Uuid::new_v4().to_string(),
        target: target.to_string(),
        reason: "stolen".to_owned(),
        ..v1::RevokeRequest::default()
    }
}

async fn operator(world: &World) -> OperatorClient<Client> {
    OperatorClient::new(world.client(Some(&world.operator)).await)
}

async fn revoke(world: &World, request: v1::RevokeRequest) -> Result<v1::RevokeReply, Status> {
    operator(world).await.revoke(request).await.map(tonic::Response::into_inner)
}

async fn listed(world: &World) -> Vec<v1::RevocationStatus> {
    let request = v1::ListRevocationsRequest::default();
    operator(world).await.list_revocations(request).await.unwrap().into_inner().revocations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_peer_hears_why_loses_its_connections_and_does_not_come_back() {
    let world = World::start().await;
    let [bad, good] = &world.peers;
    let (mut thrown_out, welcome) = Attached::up(&world, bad, &report(1, vec![])).await;
    assert!(welcome.revocations_follow);
    let (mut other, _) = Attached::up(&world, good, &report(1, vec![])).await;
    other.follow(bad.id, |entry| entry.is_some()).await;
    let mut connected = ClusterClient::new(world.node(bad).await.unwrap());
    connected.get_status(v1::GetStatusRequest {}).await.unwrap();

    let reply = revoke(&world, asked(bad.id)).await.unwrap();
    assert_eq!((reply.id, reply.member, reply.replicated), (bad.id.to_string(), false, true));
    assert_eq!(thrown_out.end().await, ErrorCode::Revoked);
    other.follow(bad.id, |entry| entry.is_none()).await;
    assert!(other.revoked.iter().any(|revoked| (revoked.number, revoked.key_hash) == (1, bad.key_hash)));
    // Of the open connection nothing is left: this call needs a new one, and none is made for it.
    until("the connection to be closed", || world.nodes.open() == 1).await;
    let refused = connected.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_ne!(code_of(&refused), Some(ErrorCode::Revoked), "{refused}");
    let mut again = ClusterClient::new(world.node(bad).await.unwrap());
    let refused = again.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::Revoked), "{refused}");

    let revocations = listed(&world).await;
    assert_eq!((revocations.len(), revocations[0].number), (1, 1));
    assert_eq!((&*revocations[0].reason, &revocations[0].id), ("stolen", &bad.id.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_later_hears_of_revocations_before_anything_else() {
    let world = World::start().await;
    let [bad, good] = &world.peers;
    revoke(&world, asked(bad.id)).await.unwrap();
    let (mut session, _) = Attached::up(&world, good, &report(1, vec![])).await;
    match session.next_of_all().await {
        Some(Down::Revocations(piece)) => {
            assert_eq!((piece.keys.len(), piece.up_to, piece.done), (1, 1, true));
        }
        other => panic!("not the revocations: {other:?}"),
    }
    drop(session);
    until("the session to go", || world.context.hub.sessions() == 0).await;
    // Who knows them is told no more than that there is nothing new.
    let knowing = v1::SessionOpen { revocations_known: 1, ..open(good, &report(2, vec![])) };
    let mut session = Attached::first(&world, good, Up::Open(knowing)).await;
    assert!(matches!(session.next_of_all().await, Some(Down::Welcome(_))));
    match session.next_of_all().await {
        Some(Down::Revocations(piece)) => assert!(piece.keys.is_empty() && piece.done),
        other => panic!("not the revocations: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_mean_identities_as_long_as_they_mean_one() {
    let world = World::start().await;
    let refused = revoke(&world, asked("nobody")).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::NotFound));
    // In this world an identity is named as its Id is written.
    let name = world.peers[0].id.to_string();
    assert_eq!(revoke(&world, asked(&name)).await.unwrap().name, name);
    let long = v1::RevokeRequest { reason: "x".repeat(300), ..asked(&name) };
    let refused = revoke(&world, long).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::BadRequest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_which_nothing_is_decided_is_not_revoked() {
    let world = World::start().await;
    let refused = revoke(&world, asked(world.me)).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::QuorumLost), "{refused}");
    assert!(refused.message().contains("--force"), "{refused}");
    assert!(listed(&world).await.is_empty());
    // One without a vote can be spared; it stays a member, which the answer says.
    let mut server = ClusterClient::new(world.node(&world.other).await.unwrap());
    server.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert!(revoke(&world, asked(world.other.id)).await.unwrap().member);
    until("its connection to be closed", || world.nodes.open() == 0).await;
    assert!(world.state().members.contains_key(&world.other.id));
    let mut server = ClusterClient::new(world.node(&world.other).await.unwrap());
    let refused = server.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::Revoked), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_acts_at_once_and_is_replicated_and_forgotten() {
    let world = World::start().await;
    let bad = &world.peers[0];
    let (mut thrown_out, _) = Attached::up(&world, bad, &report(1, vec![])).await;
    let reply = revoke(&world, v1::RevokeRequest { emergency: true, ..asked(bad.id) }).await.unwrap();
    assert_eq!(reply.servers_told, 0, "the other one is not running");
    assert_eq!(thrown_out.end().await, ErrorCode::Revoked);
    until("its replication", || world.state().is_revoked(&bad.key_hash)).await;
    let file = world.dir.path().join("emergency-revocations.json");
    until("the file to go", || !file.exists()).await;
    let revocations = listed(&world).await;
    assert_eq!((revocations.len(), revocations[0].number), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_s_emergency_is_taken_and_nobody_else_s() {
    let world = World::start().await;
    let [bad, peer] = &world.peers;
    let told = v1::EmergencyRequest {
        hello: None,
        revocations: vec![v1::EmergencyRevocation {
            request_id: Uuid::new_v4().to_string(),
            id: bad.id.to_string(),
            name: String::new(),
            key_hash: bad.key_hash.0.to_vec().into(),
            reason: "stolen".to_owned(),
            revoked_at_unix_ms: 1,
        }],
    };
    let hello = |node| Some(super::sessions::hello_of(node));
    for (node, code) in [(peer, Some(ErrorCode::Forbidden)), (&world.other, None)] {
        let mut client = v1::peering_client::PeeringClient::new(world.node(node).await.unwrap());
        let request = v1::EmergencyRequest { hello: hello(node), ..told.clone() };
        let answer = client.emergency(request).await;
        assert_eq!(answer.err().and_then(|refused| code_of(&refused)), code);
        let revoked = world.context.revoker.standing.is_revoked(&bad.key_hash);
        assert_eq!(revoked, code.is_none());
    }
    until("its replication", || world.state().is_revoked(&bad.key_hash)).await;
}
