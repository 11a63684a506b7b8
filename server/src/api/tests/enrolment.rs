//! Tokens from their creation to their last use, and enrolment with them.

use std::sync::Arc;

use p2p_common::command::TokenRole;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, NodeId, NodeKind};
use p2p_proto::status::code_of;
use p2p_proto::v1::enroll_client::EnrollClient;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_proto::{convert, v1};
use p2p_runtime::ca::CaKeys;
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{NodeKey, PeerIdentity, Token};
use tonic::{Code, Status};
use uuid::Uuid;

use super::world::{CLUSTER, EPOCH, World, peer, server};
use crate::api::rate_limit::BURST;

pub(super) struct Applicant {
    pub(super) id: NodeId,
    pub(super) key: NodeKey,
}

impl Applicant {
    pub(super) fn new(id: NodeId) -> Self {
        Applicant { id, key: NodeKey::generate().unwrap() }
    }

    fn hello(&self) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: None,
            from: self.id,
            to: None,
            epoch: Epoch(0),
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(1)),
            features: 0,
        }
    }

    pub(super) fn request(&self, token: &Token) -> v1::EnrollRequest {
        v1::EnrollRequest {
            hello: Some(convert::hello_to(&self.hello())),
            token_id: token.id().0,
            token_secret: token.secret().to_vec().into(),
            name: "applicant".to_owned(),
            csr: self.key.certificate_request(self.id).unwrap().into(),
            addresses: Vec::new(),
        }
    }
}

pub(super) async fn enrol(world: &World, request: v1::EnrollRequest) -> Result<v1::EnrollReply, Status> {
    let client = EnrollClient::new(world.public().await).enroll(request).await;
    client.map(tonic::Response::into_inner)
}

pub(super) async fn refusal(world: &World, request: v1::EnrollRequest) -> ErrorCode {
    let refused = enrol(world, request).await.unwrap_err();
    assert!(!refused.message().is_empty());
    code_of(&refused).unwrap_or_else(|| panic!("no code of ours: {refused}"))
}

pub(super) fn create(token: &Token, uses: u32) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest {
        request_id: Uuid::new_v4().to_string(),
        role: convert::token_role_to(token.role()).into(),
        uses,
        ttl_ms: 3_600_000,
        bound_id: String::new(),
        token_id: token.id().0,
        secret_hash: token.secret_hash().to_vec().into(),
        ..v1::CreateTokenRequest::default()
    }
}

pub(super) fn mint(world: &World, role: TokenRole) -> Token {
    Token::mint(role, CLUSTER, world.ca.fingerprint()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lives_from_its_creation_to_its_end() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.local)).await);
    let token = mint(&world, TokenRole::Peer);
    let request = create(&token, 2);
    let before = unix_now();
    let created = operator.create_token(request.clone()).await.unwrap().into_inner();
    let bounds = before.0 + 3_600_000..=unix_now().0 + 3_600_000;
    assert!(bounds.contains(&created.expires_at_unix_ms));
    assert_eq!(created.cluster_id, CLUSTER.to_string());
    assert_eq!(created.ca_fingerprint, world.ca.fingerprint().0.as_slice());
    // A repeat makes nothing new and says the same.
    let again = operator.create_token(v1::CreateTokenRequest { ttl_ms: 9_000, ..request.clone() }).await;
    assert_eq!(again.unwrap().into_inner(), created);

    let (one, two, three) = (Applicant::new(peer(11)), Applicant::new(peer(12)), Applicant::new(peer(13)));
    let reply = enrol(&world, one.request(&token)).await.unwrap();
    let identity = PeerIdentity::of_certificate(&reply.certificate).unwrap();
    assert_eq!((identity.node_id, identity.cluster_id), (one.id, CLUSTER));
    assert_eq!(identity.key_hash, one.key.key_hash());
    assert_eq!((reply.cluster_id, reply.epoch), (CLUSTER.to_string(), EPOCH.0));
    assert_eq!(reply.trust_bundle, vec![world.ca.certificate().to_vec()]);
    let (version, members) = convert::member_table_from(reply.members).unwrap();
    assert_eq!((version, members.len()), (2, 2));
    enrol(&world, one.request(&token)).await.expect("a lost reply costs nothing");
    enrol(&world, two.request(&token)).await.unwrap();
    assert_eq!(refusal(&world, three.request(&token)).await, ErrorCode::TokenUsedUp);

    let tokens = operator.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let listed = tokens.into_iter().find(|listed| listed.token_id == token.id().0).unwrap();
    assert_eq!((listed.uses_left, listed.used_by), (0, vec![one.id.to_string(), two.id.to_string()]));

    let revoke = || v1::RevokeTokenRequest { request_id: Uuid::new_v4().to_string(), token_id: token.id().0 };
    operator.revoke_token(revoke()).await.unwrap();
    assert_eq!(refusal(&world, three.request(&token)).await, ErrorCode::TokenUnknown);
    let gone = operator.revoke_token(revoke()).await.unwrap_err();
    assert_eq!(code_of(&gone), Some(ErrorCode::TokenUnknown));
    let late = operator.create_token(request).await.unwrap_err();
    assert_eq!(code_of(&late), Some(ErrorCode::NotFound), "what the repeat speaks of is gone: {late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_make_no_sense_are_not_created() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let token = mint(&world, TokenRole::Peer);
    let good = create(&token, 1);
    let bad = [
        v1::CreateTokenRequest { request_id: "one".to_owned(), ..good.clone() },
        v1::CreateTokenRequest { role: 0, ..good.clone() },
        v1::CreateTokenRequest { role: 9, ..good.clone() },
        v1::CreateTokenRequest { ttl_ms: 999, ..good.clone() },
        v1::CreateTokenRequest { ttl_ms: u64::MAX, ..good.clone() },
        v1::CreateTokenRequest { uses: 0, ..good.clone() },
        v1::CreateTokenRequest { uses: 100_001, ..good.clone() },
        v1::CreateTokenRequest { bound_id: "me".to_owned(), ..good.clone() },
        v1::CreateTokenRequest { bound_id: server(1).to_string(), ..good.clone() },
        v1::CreateTokenRequest { secret_hash: vec![1; 31].into(), ..good.clone() },
    ];
    for request in bad {
        let refused = operator.create_token(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
    }
    assert!(!world.state().tokens.contains_key(&token.id()));
    operator.create_token(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolment_is_refused_with_the_reason_and_costs_nothing() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let one = Applicant::new(peer(11));
    let good = one.request(&world.join);
    let hello = |change: fn(&mut Hello)| {
        let mut hello = one.hello();
        change(&mut hello);
        v1::EnrollRequest { hello: Some(convert::hello_to(&hello)), ..good.clone() }
    };
    let damaged = {
        let mut csr = good.csr.to_vec();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        csr
    };
    let bound = mint(&world, TokenRole::Peer);
    let request = v1::CreateTokenRequest { bound_id: peer(77).to_string(), ..create(&bound, 1) };
    operator.create_token(request).await.unwrap();
    let stolen = Applicant { id: world.peers[0].id, key: NodeKey::generate().unwrap() };
    let wrong_role = Applicant::new(server(11));
    let cases = [
        (v1::EnrollRequest { hello: None, ..good.clone() }, ErrorCode::BadRequest),
        (hello(|hello| hello.versions = (2, 9)), ErrorCode::VersionMismatch),
        (hello(|hello| hello.cluster_id = Some(ClusterId::new(Uuid::nil()))), ErrorCode::WrongCluster),
        (hello(|hello| hello.to = Some(server(9))), ErrorCode::WrongRecipient),
        (v1::EnrollRequest { csr: damaged.into(), ..good.clone() }, ErrorCode::BadRequest),
        (v1::EnrollRequest { csr: vec![1, 2, 3].into(), ..good.clone() }, ErrorCode::BadRequest),
        (v1::EnrollRequest { name: "a\nb".to_owned(), ..good.clone() }, ErrorCode::BadRequest),
        (wrong_role.request(&world.join), ErrorCode::TokenRole),
        (one.request(&bound), ErrorCode::TokenBound),
        (stolen.request(&world.join), ErrorCode::IdTaken),
    ];
    for (request, code) in cases {
        assert_eq!(refusal(&world, request).await, code);
    }

    // Who holds no token makes the cluster write nothing.
    let written = world.context.proposer.view().applied;
    let wrong_secret = v1::EnrollRequest { token_secret: vec![1; 32].into(), ..good.clone() };
    assert_eq!(refusal(&world, wrong_secret).await, ErrorCode::TokenUnknown);
    assert_eq!(refusal(&world, one.request(&mint(&world, TokenRole::Peer))).await, ErrorCode::TokenUnknown);
    assert_eq!(world.context.proposer.view().applied, written);

    // A Server without the CA key says so.
    let keys = world.cas.keys();
    world.cas.publish(CaKeys::default());
    let refused = enrol(&world, good.clone()).await.unwrap_err();
    assert_eq!((refused.code(), code_of(&refused)), (Code::Unavailable, Some(ErrorCode::Unavailable)));
    world.cas.publish(keys);

    assert_eq!(world.state().tokens[&world.join.id()].uses_left, 1);
    enrol(&world, good).await.expect("the one use is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gets_its_names_and_a_peer_none() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let token = mint(&world, TokenRole::Server);
    operator.create_token(create(&token, 3)).await.unwrap();
    let one = Applicant::new(server(11));
    let with = |addresses: &[&str]| v1::EnrollRequest {
        addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        ..one.request(&token)
    };
    for bad in [&["0.0.0.0:7400"][..], &["[::]:7400"], &["nowhere"], &["a:1"; 17]] {
        assert_eq!(refusal(&world, with(bad)).await, ErrorCode::BadRequest, "{bad:?}");
    }
    assert_eq!(world.state().tokens[&token.id()].uses_left, 3);
    let reply = enrol(&world, with(&["s11.example.com:7400", "192.0.2.11:7400"])).await.unwrap();
    let contains = |text: &[u8]| reply.certificate.windows(text.len()).any(|window| window == text);
    assert!(contains(b"s11.example.com") && contains(&[192, 0, 2, 11]));

    let two = Applicant::new(peer(12));
    let addresses = vec!["elsewhere.example.com:1".to_owned()];
    let reply = enrol(&world, v1::EnrollRequest { addresses, ..two.request(&world.join) }).await.unwrap();
    assert!(!reply.certificate.windows(9).any(|window| window == b"elsewhere"));
    assert_eq!(PeerIdentity::of_certificate(&reply.certificate).unwrap().kind(), NodeKind::Peer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_enrols_again_as_itself_only() {
    let world = World::start().await;
    let channel = world.node(&world.peers[0]).await.unwrap();
    let someone_else = Applicant::new(peer(11)).request(&world.join);
    let refused = EnrollClient::new(channel).enroll(someone_else).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_enrol_at_once_and_each_use_is_spent_once() {
    let world = Arc::new(World::start().await);
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let token = mint(&world, TokenRole::Peer);
    operator.create_token(create(&token, 20)).await.unwrap();
    let applying = (0..30).map(|n| {
        let (world, request) = (Arc::clone(&world), Applicant::new(peer(100 + n)).request(&token));
        tokio::spawn(async move { enrol(&world, request).await.map_err(|refused| code_of(&refused)) })
    });
    let results = futures_util::future::join_all(applying).await;
    let enrolled = results.iter().filter(|result| result.as_ref().unwrap().is_ok()).count();
    let used_up = |result: &&Result<Result<_, Option<ErrorCode>>, _>| {
        matches!(result, Ok(Err(Some(ErrorCode::TokenUsedUp))))
    };
    assert_eq!((enrolled, results.iter().filter(used_up).count()), (20, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_enrolments_are_not_limited_and_bad_ones_are() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let (token, unknown) = (mint(&world, TokenRole::Peer), mint(&world, TokenRole::Peer));
    operator.create_token(create(&token, 1_000)).await.unwrap();
    let mut client = EnrollClient::new(world.public().await);
    for n in 0..BURST as u128 + 50 {
        client.enroll(Applicant::new(peer(1_000 + n)).request(&token)).await.unwrap();
    }
    let bad = Applicant::new(peer(1)).request(&unknown);
    let mut refused = Vec::new();
    for _ in 0..2 * BURST {
        refused.push(code_of(&client.enroll(bad.clone()).await.unwrap_err()).unwrap());
    }
    assert_eq!(refused[0], ErrorCode::TokenUnknown);
    assert_eq!(refused.last(), Some(&ErrorCode::Exhausted));
}
