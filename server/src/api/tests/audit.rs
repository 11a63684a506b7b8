//! What calls of operators leave in the audit log, and what they do not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p2p_common::command::{CommandBody, TokenRole};
use p2p_common::{ErrorCode, UnixMs};
use p2p_proto::v1;
use p2p_proto::v1::operator_client::OperatorClient;
use p2p_runtime::identity::Token;
use tonic::Code;
use uuid::Uuid;

use super::matrix::{methods_of_operators, probe};
use super::world::{PATIENCE, World, bearer, record, until};
use crate::audit::{AuditRecord, read_all};

fn records(world: &World) -> Vec<AuditRecord> {
    let (records, unreadable) = read_all(world.dir.path()).unwrap();
    assert_eq!(unreadable, 0);
    records
}

/// (caller, method, target, outcome) of all records.
fn shown(world: &World) -> Vec<(String, String, String, String)> {
    let tuple = |r: AuditRecord| (r.caller, r.method, r.target, r.outcome);
    records(world).into_iter().map(tuple).collect()
}

fn request_id() -> String {
    Uuid::new_v4().to_string()
}

fn create(token: &Token) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest {
        request_id: request_id(),
        role: v1::TokenRole::Peer.into(),
        uses: 1,
        ttl_ms: 60_000,
        token_id: token.id().0,
        secret_hash: token.secret_hash().to_vec().into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_operators_do_is_recorded_with_what_it_is_about() {
    let world = World::start().await;
    let fresh = Token::mint(TokenRole::Peer, world.ca.cluster_id(), world.ca.fingerprint()).unwrap();
    let (fresh_id, unknown) = (fresh.id().to_string(), "00000000000000ff".to_owned());
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    let mut local = OperatorClient::new(world.client(Some(&world.local)).await);

    operator.create_token(create(&fresh)).await.unwrap();
    local.list_tokens(v1::ListTokensRequest {}).await.unwrap();
    let setting = v1::ChangeSettingRequest {
        request_id: request_id(),
        name: "description".to_owned(),
        value: Some("a b".to_owned()),
        expected: None,
    };
    operator.change_setting(setting.clone()).await.unwrap();
    let unset = v1::ChangeSettingRequest { request_id: request_id(), value: None, ..setting };
    operator.change_setting(unset).await.unwrap();
    let revoke = v1::RevokeTokenRequest { request_id: request_id(), token_id: 0xff };
    operator.revoke_token(revoke).await.unwrap_err();
    let gone = v1::RemoveMemberRequest { request_id: request_id(), id: "S1".to_owned() };
    operator.remove_member(gone).await.unwrap_err();
    let stranger = v1::TransferMasterRequest { to: super::world::server(77).to_string() };
    operator.transfer_master(stranger.clone()).await.unwrap_err();
    let (one, other) = (world.peers[0].id.to_string(), world.peers[1].id.to_string());
    let grants = v1::ChangeGrantsRequest {
        request_id: request_id(),
        id: one.clone(),
        grants: Some(v1::Grants::default()),
    };
    operator.change_grants(grants).await.unwrap();
    let revoke = v1::RevokeRequest {
        request_id: request_id(),
        target: one.clone(),
        reason: "lost".to_owned(),
        ..Default::default()
    };
    operator.revoke(revoke).await.unwrap();
    let reset = v1::ResetIdentityRequest { request_id: request_id(), id: other.clone() };
    operator.reset_identity(reset).await.unwrap();

    let by_token = format!("token {}", world.operator.id());
    let row = |caller: &str, method: &str, target: &str, outcome: &str| {
        (caller.to_owned(), format!("Operator/{method}"), target.to_owned(), outcome.to_owned())
    };
    let expected = [
        row(&by_token, "CreateToken", &format!("token {fresh_id} role peer"), "ok"),
        row("local", "ListTokens", "", "ok"),
        row(&by_token, "ChangeSetting", "description = a b", "ok"),
        row(&by_token, "ChangeSetting", "description = default", "ok"),
        row(&by_token, "RevokeToken", &format!("token {unknown}"), ErrorCode::TokenUnknown.as_str()),
        row(&by_token, "RemoveMember", "", ErrorCode::BadRequest.as_str()),
        row(&by_token, "TransferMaster", &stranger.to, ErrorCode::NotFound.as_str()),
        row(&by_token, "ChangeGrants", &one, "ok"),
        row(&by_token, "Revoke", &format!("{one} key {}", world.peers[0].key_hash), "ok"),
        row(&by_token, "ResetIdentity", &other, "ok"),
    ];
    assert_eq!(shown(&world), expected);
    for record in records(&world) {
        assert!(record.remote.starts_with("127.0.0.1:"), "{record:?}");
        assert!(record.time.starts_with("20") && record.time.ends_with('Z'), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_calls_are_recorded_with_who_was_refused() {
    let world = World::start().await;
    let public = world.public().await;
    let node = world.node(&world.peers[0]).await.unwrap();
    let token = |token: &Token| format!("token {}", token.id());
    let method = "/p2p.v1.Operator/CreateToken";
    let callers = [
        (&public, None, "nobody".to_owned(), ErrorCode::Unauthenticated),
        (&public, Some("Bearer garbage".to_owned()), "unreadable".to_owned(), ErrorCode::Unauthenticated),
        (&public, Some(bearer(&world.reader)), token(&world.reader), ErrorCode::Forbidden),
        (&public, Some(bearer(&world.expired)), token(&world.expired), ErrorCode::TokenExpired),
        (&public, Some(bearer(&world.join)), token(&world.join), ErrorCode::TokenRole),
        (&node, Some(bearer(&world.operator)), world.peers[0].id.to_string(), ErrorCode::Forbidden),
    ];
    for (channel, authorization, _, _) in &callers {
        probe((*channel).clone(), method, authorization.as_deref()).await;
    }
    until("their records", || records(&world).len() >= callers.len()).await;
    let mut expected: Vec<_> = callers
        .iter()
        .map(|(_, _, caller, code)| {
            let outcome = code.as_str().to_owned();
            (caller.clone(), "Operator/CreateToken".to_owned(), String::new(), outcome)
        })
        .collect();
    // Strangers do not wait for their lines.
    let mut shown = shown(&world);
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected);
    // Others' calls are not recorded, whatever becomes of them.
    probe(public.clone(), "/p2p.v1.Cluster/GetStatus", None).await;
    assert_eq!(records(&world).len(), callers.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_waits_for_is_recorded_all_the_same() {
    let world = World::start().await;
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    // The other member does not run, so that the Master cannot be transferred to it.
    let mut request = tonic::Request::new(v1::TransferMasterRequest { to: world.other.id.to_string() });
    request.set_timeout(std::time::Duration::from_millis(100));
    let refused = operator.transfer_master(request).await.unwrap_err();
    if matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled) {
        until("its record", || !records(&world).is_empty()).await;
    }
    assert_eq!(records(&world)[0].target, world.other.id.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_holds_a_secret() {
    let world = World::start().await;
    let fresh = Token::mint(TokenRole::Peer, world.ca.cluster_id(), world.ca.fingerprint()).unwrap();
    let revoked = Token::mint(TokenRole::Operator, world.ca.cluster_id(), world.ca.fingerprint()).unwrap();
    world.propose(CommandBody::CreateToken(record(&revoked, UnixMs(u64::MAX)))).await;
    let public = world.public().await;
    let tokens =
        [&world.operator, &world.reader, &world.local, &world.expired, &world.join, &revoked, &fresh];
    for method in methods_of_operators() {
        for token in tokens {
            for authorization in
                [bearer(token), token.to_text().to_string(), format!("Basic {}", *token.to_text())]
            {
                let asked = probe(public.clone(), method, Some(&authorization));
                // A backup of nothing is a stream that goes on.
                let _ = tokio::time::timeout(PATIENCE, asked).await;
            }
        }
    }
    let mut operator = OperatorClient::new(world.client(Some(&world.operator)).await);
    operator.create_token(create(&fresh)).await.unwrap();
    let lines = std::fs::read(world.dir.path().join(crate::audit::AUDIT_FILE)).unwrap();
    let text = String::from_utf8(lines).unwrap();
    let recorded = methods_of_operators().filter(|path| text.contains(path.trim_start_matches("/p2p.v1.")));
    assert_eq!(recorded.count(), methods_of_operators().count(), "each method has a line");
    for token in tokens {
        let whole = token.to_text();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for secret in [
            &whole[..],
            &whole[whole.len() - 40..],
            &hex(token.secret()),
            &STANDARD.encode(token.secret()),
            &hex(&token.secret_hash()),
            &STANDARD.encode(token.secret_hash()),
        ] {
            assert!(!text.contains(secret), "a secret of {token:?} is in the audit log");
        }
    }
}
