//! Identities: what a token makes of them, and what operators do with them.

use std::sync::Arc;

use p2p_common::command::TokenRole;
use p2p_common::grants::Grants;
use p2p_common::{ErrorCode, NodeId, UnixMs};
use p2p_proto::status::code_of;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{CertificateDates, PeerIdentity, grants_of_certificate};
use tonic::Code;
use uuid::Uuid;

use super::enrolment::{Applicant, create, enrol, mint, refusal};
use super::world::{Client, World, peer, server};

fn grants(may_offer: &str, may_reach: &str) -> Grants {
    let patterns = |text: &str| text.parse().unwrap();
    Grants {
        may_offer: patterns(may_offer),
        may_reach: patterns(may_reach),
        may_advertise: patterns("a.b:1"),
    }
}

fn request_id() -> String {
    Uuid::new_v4().to_string()
}

async fn operator(world: &World) -> OperatorClient<Client> {
    OperatorClient::new(world.client(Some(&world.operator)).await)
}

async fn change(world: &World, id: NodeId, grants: &Grants) -> Result<(), tonic::Status> {
    let grants = Some(convert::grants_to(grants));
    let request = v1::ChangeGrantsRequest { request_id: request_id(), id: id.to_string(), grants };
    operator(world).await.change_grants(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_hands_its_grants_to_who_enrols_and_they_are_in_the_certificate() {
    let world = World::start().await;
    let (token, narrow) = (mint(&world, TokenRole::Peer), grants("team-*", "db"));
    let request = v1::CreateTokenRequest {
        grants: Some(convert::grants_to(&narrow)),
        ephemeral: true,
        bound_name: "applicant".to_owned(),
        ..create(&token, 2)
    };
    operator(&world).await.create_token(request).await.unwrap();
    let tokens = operator(&world).await.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
    let listed = tokens.tokens.into_iter().find(|listed| listed.token_id == token.id().0).unwrap();
    assert_eq!(convert::grants_from(listed.grants.unwrap()).unwrap(), narrow);
    assert_eq!((listed.ephemeral, listed.bound_name.as_str()), (true, "applicant"));

    let one = Applicant::new(peer(11));
    let other_name = v1::EnrollRequest { name: "other".to_owned(), ..one.request(&token) };
    assert_eq!(refusal(&world, other_name).await, ErrorCode::TokenBound);
    let reply = enrol(&world, one.request(&token)).await.unwrap();
    assert_eq!(grants_of_certificate(&reply.certificate), narrow);
    let identity = world.state().identities[&one.id].clone();
    assert_eq!((&identity.grants, identity.ephemeral), (&narrow, true));

    // What an operator changed since goes before what the token says, also when it enrols again.
    let wider = grants("*", "*");
    change(&world, one.id, &wider).await.unwrap();
    let reply = enrol(&world, one.request(&token)).await.unwrap();
    assert_eq!(grants_of_certificate(&reply.certificate), wider);
    assert_eq!(world.state().identities[&one.id].grants, wider);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_on_a_token_is_refused() {
    let world = World::start().await;
    let long = grants(&vec!["x".repeat(250); 17].join(","), "*");
    let some = || Some(convert::grants_to(&grants("a", "b")));
    let bad_pattern = v1::Grants { may_offer: vec!["a b".to_owned()], ..v1::Grants::default() };
    let too_many = v1::Grants { may_offer: vec!["a".to_owned(); 33], ..v1::Grants::default() };
    let of = |role| create(&mint(&world, role), 1);
    for request in [
        v1::CreateTokenRequest { grants: some(), ..of(TokenRole::Operator) },
        v1::CreateTokenRequest { grants: some(), ..of(TokenRole::Server) },
        v1::CreateTokenRequest { ephemeral: true, ..of(TokenRole::Server) },
        v1::CreateTokenRequest { bound_name: "x".to_owned(), ..of(TokenRole::Reader) },
        v1::CreateTokenRequest { bound_name: "x\n".to_owned(), ..of(TokenRole::Peer) },
        v1::CreateTokenRequest { grants: Some(convert::grants_to(&long)), ..of(TokenRole::Peer) },
        v1::CreateTokenRequest { grants: Some(bad_pattern), ..of(TokenRole::Peer) },
        v1::CreateTokenRequest { grants: Some(too_many), ..of(TokenRole::Peer) },
    ] {
        let refused = operator(&world).await.create_token(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_are_listed_in_pages_and_by_kind() {
    let world = World::start().await;
    let list = async |request: v1::ListIdentitiesRequest| {
        operator(&world).await.list_identities(request).await.map(tonic::Response::into_inner)
    };
    let any = v1::ListIdentitiesRequest::default;
    let ids = |reply: &v1::ListIdentitiesReply| {
        reply.identities.iter().map(|identity| identity.id.clone()).collect::<Vec<_>>()
    };
    let all = list(any()).await.unwrap();
    assert_eq!((all.identities.len(), all.next.as_str(), all.total), (4, "", 4));
    assert!(all.maximum >= 100_000 && all.identities[0].key_hash.len() == 32);
    let mut paged = Vec::new();
    let mut page = list(v1::ListIdentitiesRequest { limit: 3, ..any() }).await.unwrap();
    loop {
        paged.extend(ids(&page));
        if page.next.is_empty() {
            break;
        }
        page = list(v1::ListIdentitiesRequest { limit: 3, after: page.next, stale: true, ..any() })
            .await
            .unwrap();
    }
    assert_eq!(paged, ids(&all));
    let peers = list(v1::ListIdentitiesRequest { kind: v1::NodeKind::Peer.into(), ..any() }).await.unwrap();
    assert_eq!(ids(&peers), world.peers.each_ref().map(|node| node.id.to_string()));
    let one = list(v1::ListIdentitiesRequest { id: world.me.to_string(), ..any() }).await.unwrap();
    assert_eq!(ids(&one), [world.me.to_string()]);
    let revoked = list(v1::ListIdentitiesRequest { revoked: Some(true), ..any() }).await.unwrap();
    assert!(revoked.identities.is_empty() && revoked.total == 4);
    for bad in [
        v1::ListIdentitiesRequest { after: "x".to_owned(), ..any() },
        v1::ListIdentitiesRequest { id: "x".to_owned(), ..any() },
        v1::ListIdentitiesRequest { kind: 9, ..any() },
    ] {
        assert_eq!(list(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_are_changed_for_peers_that_are_there() {
    let world = World::start().await;
    let narrow = grants("a", "b");
    change(&world, world.peers[0].id, &narrow).await.unwrap();
    assert_eq!(world.state().identities[&world.peers[0].id].grants, narrow);
    let nobody = change(&world, peer(99), &narrow).await.unwrap_err();
    assert_eq!(code_of(&nobody), Some(ErrorCode::NotFound));
    let server = change(&world, world.me, &narrow).await.unwrap_err();
    assert_eq!(server.code(), Code::InvalidArgument);
    let id = world.peers[0].id.to_string();
    let nothing = v1::ChangeGrantsRequest { request_id: request_id(), id, grants: None };
    let refused = operator(&world).await.change_grants(nothing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_lets_another_key_in_and_keeps_the_old_one_out() {
    let world = Arc::new(World::start().await);
    let token = mint(&world, TokenRole::Peer);
    operator(&world).await.create_token(create(&token, 5)).await.unwrap();
    let old = Applicant::new(peer(11));
    let new = Applicant::new(peer(11));
    enrol(&world, old.request(&token)).await.unwrap();
    assert_eq!(refusal(&world, new.request(&token)).await, ErrorCode::IdTaken);
    let reset = |id: NodeId| v1::ResetIdentityRequest { request_id: request_id(), id: id.to_string() };
    operator(&world).await.reset_identity(reset(old.id)).await.unwrap();
    enrol(&world, new.request(&token)).await.unwrap();
    assert_eq!(refusal(&world, old.request(&token)).await, ErrorCode::Revoked);
    let nobody = operator(&world).await.reset_identity(reset(peer(99))).await.unwrap_err();
    assert_eq!(code_of(&nobody), Some(ErrorCode::NotFound));
    let member = operator(&world).await.reset_identity(reset(world.other.id)).await.unwrap_err();
    assert_eq!(code_of(&member), Some(ErrorCode::Conflict), "{member}");
    assert!(member.message().contains("p2p-server remove"), "{member}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_issued_to_a_file_once_per_key() {
    let world = World::start().await;
    let node = Applicant::new(peer(21));
    let request = |node: &Applicant, grants: Option<&Grants>| v1::IssueCertificateRequest {
        request_id: request_id(),
        id: node.id.to_string(),
        name: "p21".to_owned(),
        csr: node.key.certificate_request(node.id).unwrap().into(),
        grants: grants.map(convert::grants_to),
    };
    let narrow = grants("web", "-");
    let issued = operator(&world).await.issue_certificate(request(&node, Some(&narrow))).await.unwrap();
    let issued = issued.into_inner();
    let identity = PeerIdentity::of_certificate(&issued.certificate).unwrap();
    assert_eq!((identity.node_id, identity.key_hash), (node.id, node.key.key_hash()));
    assert_eq!(grants_of_certificate(&issued.certificate), narrow);
    let dates = CertificateDates::of(&issued.certificate).unwrap();
    let year = UnixMs(unix_now().0 + 364 * 86_400_000);
    assert!(dates.not_after > year && issued.expires_unix_ms > year.0);
    assert_eq!(world.state().identities[&node.id].grants, narrow);

    // Again for the same key: another certificate, and nothing else is new.
    let again = operator(&world).await.issue_certificate(request(&node, None)).await.unwrap().into_inner();
    assert_eq!(grants_of_certificate(&again.certificate), narrow);
    let stolen = Applicant::new(node.id);
    let refused = operator(&world).await.issue_certificate(request(&stolen, None)).await.unwrap_err();
    assert_eq!(code_of(&refused), Some(ErrorCode::IdTaken));
    let of_server = Applicant::new(server(21));
    let refused = operator(&world).await.issue_certificate(request(&of_server, None)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let junk = v1::IssueCertificateRequest { csr: vec![1, 2].into(), ..request(&node, None) };
    let refused = operator(&world).await.issue_certificate(junk).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
