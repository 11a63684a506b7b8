//! Who may call what, asked of every method as every kind of caller, by empty messages over the port.
//!
//! [`ROWS`] is what was agreed: a method the protocol has and the table has not fails the test, and so does the
//! reverse. The columns are the callers of each test.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use http::Request;
use p2p_common::command::{CommandBody, Outcome, TokenRole};
use p2p_common::{ClusterId, ErrorCode, UnixMs};
use p2p_proto::status::CODE_KEY;
use p2p_proto::v1;
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::Token;
use p2p_runtime::tls::ConnectError;
use p2p_server_core::METHODS;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::Channel;
use uuid::Uuid;

use super::world::{CLUSTER, Node, World, bearer, ca, peer, record};
use crate::api::rate_limit::BURST;

const DAY_MS: u64 = 86_400_000;

/// Whom a method serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    /// Whoever comes, also without anything.
    Anyone,
    /// Nodes, and those that are not nodes yet.
    Enrolling,
    /// Nodes.
    Nodes,
    /// Whoever has proved anything.
    Known,
    Peers,
    Servers,
    Operators,
}

/// Every method of the port. A new one needs its line here, and in `authorise.rs`.
const ROWS: &[(&str, Serves)] = &[
    ("/p2p.v1.Enroll/Enroll", Serves::Enrolling),
    ("/p2p.v1.Enroll/Renew", Serves::Nodes),
    ("/p2p.v1.Session/Attach", Serves::Peers),
    ("/p2p.v1.Cluster/GetMaster", Serves::Known),
    ("/p2p.v1.Cluster/WatchMaster", Serves::Known),
    ("/p2p.v1.Cluster/ListMembers", Serves::Known),
    ("/p2p.v1.Cluster/ListSettings", Serves::Known),
    ("/p2p.v1.Cluster/GetStatus", Serves::Known),
    ("/p2p.v1.Cluster/ListPeers", Serves::Known),
    ("/p2p.v1.Cluster/ListServices", Serves::Known),
    ("/p2p.v1.Operator/CreateToken", Serves::Operators),
    ("/p2p.v1.Operator/ListTokens", Serves::Operators),
    ("/p2p.v1.Operator/RevokeToken", Serves::Operators),
    ("/p2p.v1.Operator/ListIdentities", Serves::Operators),
    ("/p2p.v1.Operator/ChangeGrants", Serves::Operators),
    ("/p2p.v1.Operator/ResetIdentity", Serves::Operators),
    ("/p2p.v1.Operator/IssueCertificate", Serves::Operators),
    ("/p2p.v1.Operator/TransferMaster", Serves::Operators),
    ("/p2p.v1.Operator/RemoveMember", Serves::Operators),
    ("/p2p.v1.Operator/ChangeSetting", Serves::Operators),
    ("/p2p.v1.Operator/Revoke", Serves::Operators),
    ("/p2p.v1.Operator/ListRevocations", Serves::Operators),
    ("/p2p.v1.Operator/GetCaStatus", Serves::Operators),
    ("/p2p.v1.Operator/RotateCa", Serves::Operators),
    ("/p2p.v1.Operator/Backup", Serves::Operators),
    ("/p2p.v1.Peering/Join", Serves::Servers),
    ("/p2p.v1.Peering/FetchCaKey", Serves::Servers),
    ("/p2p.v1.Peering/Propose", Serves::Servers),
    ("/p2p.v1.Peering/Transfer", Serves::Servers),
    ("/p2p.v1.Peering/Remove", Serves::Servers),
    ("/p2p.v1.Peering/Progress", Serves::Servers),
    ("/p2p.v1.Peering/Emergency", Serves::Servers),
    ("/p2p.v1.Raft/Stream", Serves::Servers),
    ("/p2p.v1.Raft/Send", Serves::Servers),
    ("/p2p.v1.Raft/SendSnapshot", Serves::Servers),
    ("/p2p.v1.Raft/Probe", Serves::Servers),
    ("/grpc.health.v1.Health/Check", Serves::Anyone),
    ("/grpc.health.v1.Health/Watch", Serves::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Serves::Known),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Serves::Known),
];

/// Who calls, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Nobody,
    Peer,
    Server,
    Reader,
    Operator,
}

impl Serves {
    /// What is agreed for `role`.
    fn verdict(self, role: Role) -> Verdict {
        let admitted = match self {
            Serves::Anyone => true,
            Serves::Enrolling => matches!(role, Role::Nobody | Role::Peer | Role::Server),
            Serves::Nodes => matches!(role, Role::Peer | Role::Server),
            Serves::Known => role != Role::Nobody,
            Serves::Peers => role == Role::Peer,
            Serves::Servers => role == Role::Server,
            Serves::Operators => role == Role::Operator,
        };
        match (admitted, role) {
            (true, _) => Admitted,
            (false, Role::Nobody) => NOTHING,
            (false, _) => Denied,
        }
    }
}

/// What became of a call at the gate. Behind it an empty message may still make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Admitted,
    Denied,
    Unauthenticated(ErrorCode),
    Limited,
    /// The connection is gone.
    Closed,
}

use Verdict::{Admitted, Denied};
/// The verdict about who has shown nothing where something is needed.
const NOTHING: Verdict = Verdict::Unauthenticated(ErrorCode::Unauthenticated);

/// What only operators may call.
pub(super) fn methods_of_operators() -> impl Iterator<Item = &'static str> {
    ROWS.iter().filter(|(_, serves)| *serves == Serves::Operators).map(|(path, _)| *path)
}

/// Calls `path` with an empty message, whatever becomes of it.
pub(super) async fn probe(channel: Channel, path: &str, authorization: Option<&str>) {
    call(channel, path, authorization).await;
}

async fn call(mut channel: Channel, path: &str, authorization: Option<&str>) -> Verdict {
    if std::future::poll_fn(|cx| channel.poll_ready(cx)).await.is_err() {
        return Verdict::Closed;
    }
    let mut request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    let empty_message = axum::body::Body::from(&[0u8; 5][..]);
    let Ok(response) = channel.call(request.body(Body::new(empty_message)).unwrap()).await else {
        return Verdict::Closed;
    };
    let headers = response.headers();
    let code = |name| headers.get(name).map(|value| value.to_str().unwrap().parse::<u32>().unwrap());
    match code("grpc-status").map(|code| Code::from(code as i32)) {
        Some(Code::Unauthenticated) => {
            Verdict::Unauthenticated(ErrorCode::from_number(code(CODE_KEY).unwrap_or_default()))
        }
        Some(Code::PermissionDenied) => Denied,
        Some(Code::ResourceExhausted) => Verdict::Limited,
        _ => Admitted,
    }
}

/// Asks every method at once; a stranger that asks too much asks again.
async fn verdicts(channel: &Channel, authorization: Option<&str>) -> Vec<(&'static str, Serves, Verdict)> {
    let asked = ROWS.iter().map(|(path, serves)| async {
        let mut verdict = call(channel.clone(), path, authorization).await;
        while verdict == Verdict::Limited {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            verdict = call(channel.clone(), path, authorization).await;
        }
        (*path, *serves, verdict)
    });
    join_all(asked).await
}

#[test]
fn every_method_of_the_protocol_has_one_row_and_no_row_is_left_over() {
    let described = [
        v1::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = BTreeSet::new();
    for described in described {
        for file in FileDescriptorSet::decode(described).unwrap().file {
            // A Peer's own socket serves this one.
            for service in file.service.iter().filter(|service| service.name() != "Agent") {
                let path = format!("/{}.{}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| format!("{path}/{}", method.name())));
            }
        }
    }
    let rows: BTreeSet<String> = ROWS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(rows.len(), ROWS.len(), "a method has two rows");
    let missing: Vec<_> = methods.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&methods).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "without a row: {missing:?}; without a method: {stale:?}"
    );
    for (path, _) in METHODS {
        assert!(rows.contains(*path), "the gate lets {path} through, which is no method");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_for_every_caller() {
    let world = World::start().await;
    let public = world.public().await;
    let (reader, operator, local) = (bearer(&world.reader), bearer(&world.operator), bearer(&world.local));
    let node = world.node(&world.peers[0]).await.unwrap();
    let server = world.node(&world.other).await.unwrap();
    let callers = [
        (Role::Nobody, &public, None),
        (Role::Peer, &node, None),
        // On the node face a token changes nothing.
        (Role::Peer, &node, Some(operator.as_str())),
        (Role::Peer, &node, Some("garbage")),
        (Role::Server, &server, None),
        (Role::Server, &server, Some(reader.as_str())),
        (Role::Reader, &public, Some(reader.as_str())),
        (Role::Operator, &public, Some(operator.as_str())),
        (Role::Operator, &public, Some(local.as_str())),
    ];
    for (role, channel, authorization) in callers {
        for (path, serves, verdict) in verdicts(channel, authorization).await {
            assert_eq!(verdict, serves.verdict(role), "{path} as {role:?}");
        }
        for path in ["/p2p.v1.Cluster/Nothing", "/p2p.v1.Agent/GetStatus", "/"] {
            let verdict = call(channel.clone(), path, authorization).await;
            assert_eq!(verdict, if role == Role::Nobody { NOTHING } else { Denied }, "{path} as {role:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tokens_open_nothing() {
    let world = World::start().await;
    let mint = |role, cluster| Token::mint(role, cluster, world.ca.fingerprint()).unwrap();
    let revoked = mint(TokenRole::Operator, world.ca.cluster_id());
    world.propose(CommandBody::CreateToken(record(&revoked, UnixMs(u64::MAX)))).await;
    let public = world.public().await;
    let status = "/p2p.v1.Cluster/GetStatus";
    assert_eq!(call(public.clone(), status, Some(&bearer(&revoked))).await, Admitted);
    world.propose(CommandBody::RevokeToken(revoked.id())).await;
    let other_cluster = mint(TokenRole::Operator, ClusterId::new(Uuid::from_u128(0xc2)));
    let never_created = mint(TokenRole::Reader, world.ca.cluster_id());
    let basic = bearer(&world.operator).replace("Bearer", "Basic");
    let cut = bearer(&world.operator)[..60].to_owned();
    for (authorization, code) in [
        (bearer(&revoked), ErrorCode::TokenUnknown),
        (bearer(&never_created), ErrorCode::TokenUnknown),
        (bearer(&other_cluster), ErrorCode::WrongCluster),
        (bearer(&world.join), ErrorCode::TokenRole),
        (basic, ErrorCode::Unauthenticated),
        (cut, ErrorCode::Unauthenticated),
        ("Bearer".to_owned(), ErrorCode::Unauthenticated),
        (String::new(), ErrorCode::Unauthenticated),
    ] {
        // Also methods that ask for nothing: whoever shows something wrong should hear so.
        for (path, _, verdict) in verdicts(&public, Some(&authorization)).await {
            assert_eq!(verdict, Verdict::Unauthenticated(code), "{path} with {authorization}");
        }
    }
    assert_eq!(call(public, status, Some(&bearer(&world.operator))).await, Admitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_opens_nothing() {
    let world = World::start().await;
    let public = world.public().await;
    for (path, _, verdict) in verdicts(&public, Some(&bearer(&world.expired))).await {
        assert_eq!(verdict, Verdict::Unauthenticated(ErrorCode::TokenExpired), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_alone_opens_nothing() {
    let world = World::start().await;
    // Signed by the CA, bound to another key.
    let other_key = Node::new(&world.ca, world.peers[0].id);
    let channel = world.node(&other_key).await.unwrap();
    for (path, _, verdict) in verdicts(&channel, None).await {
        assert_eq!(verdict, Verdict::Unauthenticated(ErrorCode::IdTaken), "{path}");
    }
    // Signed by the CA, bound to nothing.
    let unknown = Node::new(&world.ca, peer(99));
    let channel = world.node(&unknown).await.unwrap();
    for (path, _, verdict) in verdicts(&channel, None).await {
        assert_eq!(verdict, NOTHING, "{path}");
    }
    // Of another cluster, or of a CA that says that it is of this one: there is not even a connection to call on.
    let strange = [ca(ClusterId::new(Uuid::from_u128(0xc2))), ca(CLUSTER)];
    for (ca, id) in strange.iter().flat_map(|ca| [(ca, peer(1)), (ca, world.other.id)]) {
        let refused = world.node(&Node::new(ca, id)).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Handshake(_) | ConnectError::Http2(_)), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_a_bad_certificate_may_renew_it_and_nothing_else() {
    let world = World::start().await;
    let (now, peer) = (unix_now(), &world.peers[0]);
    let (past, ahead) = (UnixMs(now.0 - 30 * DAY_MS), UnixMs(now.0 + 2 * DAY_MS));
    let other_ca = ca(CLUSTER);
    // Both come in by the pinned key.
    for (what, ca, signed) in [("expired", &world.ca, past), ("of another CA", &other_ca, now)] {
        peer.show(ca, signed, &world.ca);
        let channel = world.node(peer).await.unwrap();
        for (path, serves, verdict) in verdicts(&channel, None).await {
            let agreed = match serves.verdict(Role::Peer) {
                Admitted if path == "/p2p.v1.Enroll/Renew" => Admitted,
                Admitted => Verdict::Unauthenticated(ErrorCode::CertificateExpired),
                refused => refused,
            };
            assert_eq!(verdict, agreed, "{path} as a Peer with a certificate that is {what}");
        }
    }
    // Dates that lie ahead are another clock's fault, and Servers are known by their keys alone.
    let bad = [(peer, Role::Peer, &world.ca, ahead), (&world.other, Role::Server, &world.ca, ahead)];
    let servers = [(&world.ca, UnixMs(now.0 - 200 * DAY_MS)), (&other_ca, now)];
    let servers = servers.map(|(ca, signed)| (&world.other, Role::Server, ca, signed));
    for (node, role, ca, signed) in bad.into_iter().chain(servers) {
        node.show(ca, signed, &world.ca);
        let channel = world.node(node).await.unwrap();
        for (path, serves, verdict) in verdicts(&channel, None).await {
            assert_eq!(verdict, serves.verdict(role), "{path} as {role:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_keys_open_nothing() {
    let world = World::start().await;
    // Also over connections that were open before.
    let mut channels = Vec::new();
    for node in [&world.peers[0], &world.other] {
        let channel = world.node(node).await.unwrap();
        assert_eq!(call(channel.clone(), "/p2p.v1.Cluster/GetStatus", None).await, Admitted);
        channels.push(channel);
        let (reason, now) = ("lost".to_owned(), unix_now());
        let body = CommandBody::Revoke { id: node.id, key_hash: None, reason, now };
        assert_eq!(world.propose(body).await, Outcome::Done);
        channels.extend(world.node(node).await.ok());
    }
    for channel in &channels {
        for (path, _, verdict) in verdicts(channel, Some(&bearer(&world.operator))).await {
            let revoked = Verdict::Unauthenticated(ErrorCode::Revoked);
            assert!(verdict == revoked || verdict == Verdict::Closed, "{path}: {verdict:?}");
        }
    }
    let node = world.node(&world.peers[1]).await.unwrap();
    assert_eq!(call(node, "/p2p.v1.Cluster/GetStatus", None).await, Admitted, "others are not concerned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_enrols_elsewhere_this_moment_is_waited_for() {
    let world = World::start().await;
    let node = Node::new(&world.ca, peer(50));
    let channel = world.node(&node).await.unwrap();
    let asking = tokio::spawn(async move { call(channel, "/p2p.v1.Cluster/GetStatus", None).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    world
        .propose(CommandBody::Enrol {
            token_id: world.join.id(),
            secret_hash: world.join.secret_hash(),
            id: node.id,
            name: "p".to_owned(),
            key_hash: node.key_hash,
            now: UnixMs(1),
        })
        .await;
    assert_eq!(asking.await.unwrap(), Admitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_shows_nothing_is_limited_and_nobody_else() {
    let world = World::start().await;
    let public = world.public().await;
    let health = "/grpc.health.v1.Health/Check";
    let mut limited = 0;
    for _ in 0..2 * BURST {
        limited += u64::from(call(public.clone(), health, None).await == Verdict::Limited);
    }
    assert!(limited > BURST / 2, "{limited}");
    let wrong =
        bearer(&Token::mint(TokenRole::Reader, world.ca.cluster_id(), world.ca.fingerprint()).unwrap());
    let status = "/p2p.v1.Cluster/GetStatus";
    let tried = join_all((0..20).map(|_| call(public.clone(), status, Some(&wrong)))).await;
    assert!(tried.contains(&Verdict::Limited), "{tried:?}");
    for _ in 0..2 * BURST {
        assert_eq!(call(public.clone(), status, Some(&bearer(&world.reader))).await, Admitted);
    }
}
