//! What can be looked up, health, reflection and counts.

use std::collections::BTreeSet;
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::UnixMs;
use p2p_common::command::{CommandBody, Outcome, TokenRole};
use p2p_proto::status::code_of;
use p2p_proto::v1::cluster_client::ClusterClient;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::Token;
use p2p_server_core::METHODS;
use prometheus_client::registry::Registry;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::world::{CLUSTER, EPOCH, World, record, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_the_cluster() {
    let world = World::start().await;
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    let master = cluster.get_master(v1::GetMasterRequest {}).await.unwrap().into_inner().master.unwrap();
    let master = convert::master_from(master).unwrap();
    assert_eq!((master.id, master.cluster_id, master.epoch), (world.me, CLUSTER, EPOCH));
    assert!(master.term > 1 && !master.provisional);

    for stale in [false, true] {
        let reply = cluster.list_members(v1::ListMembersRequest { stale }).await.unwrap().into_inner();
        assert_eq!((reply.version, reply.stale), (2, stale));
        let shown = reply.members.iter().map(|status| {
            let member = convert::member_from(status.member.clone().unwrap()).unwrap();
            (member.name, status.role(), status.connected)
        });
        let me = ("s1".to_owned(), v1::MemberRole::Voter, true);
        let other = ("s2".to_owned(), v1::MemberRole::Joining, false);
        assert_eq!(shown.collect::<Vec<_>>(), [me, other]);
        let [mine, others] = reply.members.try_into().unwrap();
        assert!(mine.uptime_ms.is_some_and(|ms| ms < 3_600_000) && mine.behind == Some(0));
        assert_eq!(others.uptime_ms, None, "it does not run");
        assert_eq!(reply.master.map(|shown| shown.term), Some(master.term));
    }
    let status = cluster.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.id, status.leader_id), (world.me.to_string(), world.me.to_string()));
    assert_eq!((status.raft_role.as_str(), status.term), ("leader", master.term));
    assert_eq!((status.name.as_str(), status.sessions), ("s1", 0));
    assert!(status.applied_index > 0 && status.commit_index >= status.applied_index);
    assert!(cluster.list_peers(v1::ListPeersRequest {}).await.unwrap().into_inner().peers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_gets_the_master_and_is_told_when_the_server_stops() {
    let world = World::start().await;
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    let mut titles = cluster.watch_master(v1::WatchMasterRequest {}).await.unwrap().into_inner();
    let first = titles.message().await.unwrap().unwrap().master.unwrap();
    assert_eq!(first.id, world.me.to_string());
    world.context.stop.cancel();
    let end = titles.message().await.unwrap_err();
    assert_eq!(code_of(&end), Some(ErrorCode::Draining));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_the_master_and_asks_for_nothing() {
    let world = World::start().await;
    let mut health = HealthClient::new(world.public().await);
    let request = || HealthCheckRequest { service: String::new() };
    let mut watching = health.watch(request()).await.unwrap().into_inner();
    let mut until_shown = async |status: ServingStatus| {
        while watching.message().await.unwrap().unwrap().status() != status {}
    };
    until_shown(ServingStatus::Serving).await;
    assert_eq!(health.check(request()).await.unwrap().into_inner().status(), ServingStatus::Serving);
    world.context.stop.cancel();
    until_shown(ServingStatus::NotServing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_names_what_is_served() {
    let world = World::start().await;
    let mut reflection = ServerReflectionClient::new(world.client(Some(&world.reader)).await);
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("p2p.v1.Cluster".to_owned()),
    ];
    let requests =
        asked.map(|request| ServerReflectionRequest { host: String::new(), message_request: Some(request) });
    let answers = reflection.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list of services")
    };
    let listed = listed.service.into_iter().map(|service| service.name).collect::<Vec<_>>();
    let served: BTreeSet<_> = METHODS.iter().map(|(path, _)| path.split('/').nth(1).unwrap()).collect();
    let served: Vec<_> = served.into_iter().collect();
    assert_eq!(listed, served);
    let described = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(described, Some(MessageResponse::FileDescriptorResponse(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted() {
    let world = World::start().await;
    let mut registry = Registry::default();
    world.context.metrics.register(&mut registry, world.context.proposer.watch_view());
    let shown = |line: &str| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().any(|shown| shown == line)
    };
    let mut cluster = ClusterClient::new(world.client(None).await);
    cluster.get_status(v1::GetStatusRequest {}).await.unwrap_err();
    let mut cluster = ClusterClient::new(world.client(Some(&world.reader)).await);
    cluster.get_status(v1::GetStatusRequest {}).await.unwrap();
    let status = r#"calls_total{method="/p2p.v1.Cluster/GetStatus","#;
    assert!(shown(&format!(r#"{status}code="UNAUTHENTICATED"}} 1"#)));
    assert!(shown(&format!(r#"{status}code="OK"}} 1"#)));
    for line in ["members 2", "members_version 2", "is_master 1", "identities 4", "tokens 4", "sessions 0"] {
        assert!(shown(line), "{line}");
    }
    let (enrol, join, token) = world.member_of(3);
    world.propose(CommandBody::CreateToken(record(&token, UnixMs(u64::MAX)))).await;
    assert_eq!(world.propose(enrol).await, Outcome::Done);
    assert_eq!(world.propose(join).await, Outcome::MemberAdded { raft_id: 3 });
    until("the third member in the metrics", || shown("members 3")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_token_that_opened_it() {
    let world = World::start().await;
    let soon = Token::mint(TokenRole::Reader, CLUSTER, world.ca.fingerprint()).unwrap();
    let expires_at = unix_now().plus(Duration::from_millis(1_500));
    world.propose(CommandBody::CreateToken(record(&soon, expires_at))).await;
    let watch = async |token: &Token| {
        let mut client = ClusterClient::new(world.client(Some(token)).await);
        let mut stream = client.watch_master(v1::WatchMasterRequest {}).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        stream
    };
    let (mut revoked, mut expired) = (watch(&world.reader).await, watch(&soon).await);
    let mut stays = watch(&world.local).await;
    let began = std::time::Instant::now();
    world.propose(CommandBody::RevokeToken(world.reader.id())).await;
    for (stream, code) in [(&mut revoked, ErrorCode::TokenUnknown), (&mut expired, ErrorCode::TokenExpired)] {
        let end = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.expect("it ends");
        assert_eq!(code_of(&end.unwrap_err()), Some(code));
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(tokio::time::timeout(Duration::from_millis(500), stays.message()).await.is_err());
}
