//! Each command's rules, and what is shared and remembered.

use super::*;
use p2p_common::cluster_state::IDENTITIES_MAX;
use p2p_common::command::{IdentityRecord, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::shared::SharedSet;
use p2p_common::{ClusterId, Epoch};
use std::time::Duration;
use uuid::Uuid;

const SECRET: [u8; 32] = [7; 32];
const TOKEN: TokenId = TokenId(1);

fn server(n: u128) -> NodeId {
    NodeId::new(NodeKind::Server, Uuid::from_u128(n))
}

fn key(n: u8) -> KeyHash {
    KeyHash([n; 32])
}

fn fresh() -> Fsm {
    Fsm::new(ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]]))
}

fn run(fsm: &mut Fsm, request: u128, body: CommandBody) -> Outcome {
    fsm.apply(&Command { request_id: RequestId::new(Uuid::from_u128(request)), body })
}

fn token(uses_left: u32) -> CommandBody {
    CommandBody::CreateToken(TokenRecord {
        id: TOKEN,
        role: TokenRole::Server,
        secret_hash: SECRET,
        created_at: UnixMs(1),
        expires_at: UnixMs(100),
        uses_left,
        bound_id: None,
        bound_name: None,
        grants: Grants::default(),
        ephemeral: false,
        used_by: SharedSet::new(),
    })
}

fn enrol(id: NodeId, key_hash: KeyHash, now: u64) -> CommandBody {
    CommandBody::Enrol {
        token_id: TOKEN,
        secret_hash: SECRET,
        id,
        name: "s1".to_owned(),
        key_hash,
        now: UnixMs(now),
    }
}

fn member(id: NodeId, key_hash: KeyHash, port: u16) -> CommandBody {
    CommandBody::UpsertMember {
        id,
        name: "s1".to_owned(),
        addresses: vec![format!("127.0.0.1:{port}").parse().unwrap()],
        zone: "z".to_owned(),
        key_hash,
        new_log: false,
    }
}

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

#[test]
fn a_request_applies_once() {
    let mut fsm = fresh();
    assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
    let once = fsm.state().clone();
    assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
    assert_eq!(*fsm.state(), once);
    // The same under another request id is another request.
    assert_eq!(code(&run(&mut fsm, 2, token(1))), Some(ErrorCode::BadRequest));
    assert_eq!(code(&run(&mut fsm, 2, token(1))), Some(ErrorCode::BadRequest));
}

#[test]
fn requests_are_forgotten_oldest_first_also_after_a_restart() {
    let mut fsm = fresh();
    let revoke = || CommandBody::RevokeToken(TokenId(9));
    for request in 0..REQUESTS_REMEMBERED as u128 + 5 {
        run(&mut fsm, request, revoke());
    }
    let id = |n: u128| RequestId::new(Uuid::from_u128(n));
    let mut again = Fsm::new(ClusterState::clone(fsm.state()));
    for request in [REQUESTS_REMEMBERED as u128 + 5, REQUESTS_REMEMBERED as u128 + 6] {
        assert_eq!(run(&mut fsm, request, revoke()), run(&mut again, request, revoke()));
    }
    for fsm in [fsm, again] {
        assert_eq!(fsm.state().applied_requests.len(), REQUESTS_REMEMBERED);
        assert_eq!(fsm.outcome_of(id(6)), None);
        assert!(fsm.outcome_of(id(7)).is_some());
        assert!(fsm.outcome_of(id(REQUESTS_REMEMBERED as u128 + 6)).is_some());
    }
}

#[test]
fn enrolment_spends_one_use_per_node_and_repeats_cost_nothing() {
    let mut fsm = fresh();
    run(&mut fsm, 1, token(2));
    assert_eq!(run(&mut fsm, 2, enrol(server(1), key(1), 50)), Outcome::Done);
    assert_eq!(run(&mut fsm, 3, enrol(server(1), key(1), 500)), Outcome::Done, "a repeat, even when late");
    assert_eq!(fsm.state().tokens[&TOKEN].uses_left, 1);
    assert_eq!(code(&run(&mut fsm, 4, enrol(server(1), key(2), 50))), Some(ErrorCode::IdTaken));
    assert_eq!(fsm.state().tokens[&TOKEN].uses_left, 1, "a refusal spends nothing");
    assert_eq!(run(&mut fsm, 5, enrol(server(2), key(2), 100)), Outcome::Done);
    assert_eq!(code(&run(&mut fsm, 6, enrol(server(3), key(3), 50))), Some(ErrorCode::TokenUsedUp));
    assert_eq!(fsm.state().identities.len(), 2);
    assert_eq!(fsm.state().members_version, 0, "an identity is no member");
}

#[test]
fn enrolment_is_refused_with_the_reason() {
    let mut fsm = fresh();
    run(&mut fsm, 1, token(5));
    assert_eq!(code(&run(&mut fsm, 2, enrol(server(1), key(1), 101))), Some(ErrorCode::TokenExpired));
    let peer = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
    assert_eq!(code(&run(&mut fsm, 3, enrol(peer, key(1), 1))), Some(ErrorCode::TokenRole));
    let mut wrong = enrol(server(1), key(1), 1);
    if let CommandBody::Enrol { secret_hash, .. } = &mut wrong {
        *secret_hash = [0; 32];
    }
    assert_eq!(code(&run(&mut fsm, 4, wrong)), Some(ErrorCode::TokenUnknown));
    assert_eq!(run(&mut fsm, 5, CommandBody::RevokeToken(TOKEN)), Outcome::Done);
    assert_eq!(code(&run(&mut fsm, 6, enrol(server(1), key(1), 1))), Some(ErrorCode::TokenUnknown));
    assert!(fsm.state().identities.is_empty());
}

#[test]
fn expired_tokens_make_room_for_new_ones() {
    let mut fsm = fresh();
    assert_eq!(run(&mut fsm, 1, token(1)), Outcome::Done);
    let CommandBody::CreateToken(first) = token(1) else { panic!("token() creates") };
    for (request, created_at, left) in [(2, 99, 2), (3, 100, 2)] {
        let record = TokenRecord {
            id: TokenId(request as u64),
            created_at: UnixMs(created_at),
            expires_at: UnixMs(200),
            ..first.clone()
        };
        assert_eq!(run(&mut fsm, request, CommandBody::CreateToken(record)), Outcome::Done);
        assert_eq!(fsm.state().tokens.len(), left, "at {created_at}");
    }
    assert!(!fsm.state().tokens.contains_key(&TOKEN));
}

#[test]
fn a_bound_token_enrols_nobody_else() {
    let mut fsm = fresh();
    let mut body = token(5);
    if let CommandBody::CreateToken(record) = &mut body {
        record.bound_id = Some(server(1));
    }
    run(&mut fsm, 1, body);
    assert_eq!(code(&run(&mut fsm, 2, enrol(server(2), key(2), 1))), Some(ErrorCode::TokenBound));
    assert_eq!(run(&mut fsm, 3, enrol(server(1), key(1), 1)), Outcome::Done);
}

#[test]
fn only_real_changes_raise_the_version_and_raft_ids_never_come_back() {
    let mut fsm = fresh();
    run(&mut fsm, 1, token(5));
    run(&mut fsm, 2, enrol(server(1), key(1), 1));
    assert_eq!(code(&run(&mut fsm, 3, member(server(2), key(2), 1))), Some(ErrorCode::Forbidden));
    assert_eq!(code(&run(&mut fsm, 4, member(server(1), key(9), 1))), Some(ErrorCode::IdTaken));
    assert_eq!(run(&mut fsm, 5, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 1 });
    assert_eq!(run(&mut fsm, 6, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 1 });
    assert_eq!(fsm.state().members_version, 1);
    assert_eq!(run(&mut fsm, 7, member(server(1), key(1), 2)), Outcome::MemberAdded { raft_id: 1 });
    assert_eq!(fsm.state().members_version, 2);
    assert_eq!(run(&mut fsm, 8, CommandBody::RemoveMember(server(1))), Outcome::Done);
    assert_eq!(code(&run(&mut fsm, 9, CommandBody::RemoveMember(server(1)))), Some(ErrorCode::NotFound));
    assert_eq!(fsm.state().members_version, 3);
    assert_eq!(run(&mut fsm, 10, member(server(1), key(1), 1)), Outcome::MemberAdded { raft_id: 2 });
    assert_eq!(fsm.state().member_by_raft_id(2).map(|m| m.id), Some(server(1)));
}

#[test]
fn a_member_without_its_log_gets_a_raft_id_nobody_had() {
    let mut fsm = fresh();
    run(&mut fsm, 1, token(5));
    for n in [1, 2] {
        run(&mut fsm, 10 + n, enrol(server(n), key(n as u8), 1));
        let joined = run(&mut fsm, 20 + n, member(server(n), key(n as u8), 1));
        assert_eq!(joined, Outcome::MemberAdded { raft_id: n as u64 });
    }
    let without_log = |id, key_hash, port| match member(id, key_hash, port) {
        CommandBody::UpsertMember { id, name, addresses, zone, key_hash, .. } => {
            CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log: true }
        }
        other => other,
    };
    let back = without_log(server(1), key(1), 1);
    assert_eq!(run(&mut fsm, 30, back.clone()), Outcome::MemberAdded { raft_id: 3 });
    assert_eq!(run(&mut fsm, 30, back.clone()), Outcome::MemberAdded { raft_id: 3 }, "a repeat");
    assert_eq!(fsm.state().members.len(), 2);
    assert_eq!(fsm.state().member_by_raft_id(1), None);
    assert_eq!(fsm.state().members_version, 3);
    assert_eq!(run(&mut fsm, 31, back), Outcome::MemberAdded { raft_id: 4 }, "lost once more");
    run(&mut fsm, 32, enrol(server(3), key(3), 1));
    let first = run(&mut fsm, 33, without_log(server(3), key(3), 1));
    assert_eq!(first, Outcome::MemberAdded { raft_id: 5 });
    assert_eq!(run(&mut fsm, 34, member(server(1), key(1), 2)), Outcome::MemberAdded { raft_id: 4 });
}

#[test]
fn settings_are_set_compared_and_unset() {
    let name = SettingName::Description;
    let change = |value: Option<&str>, expected| CommandBody::ChangeSetting {
        name,
        value: value.map(str::to_owned),
        expected,
    };
    let mut fsm = fresh();
    assert_eq!(fsm.state().setting(name), "");
    let changed = |revision| Outcome::SettingChanged { revision };
    assert_eq!(run(&mut fsm, 1, change(Some("a"), Some(0))), changed(1));
    assert_eq!(run(&mut fsm, 1, change(Some("a"), Some(0))), changed(1), "a repeat");
    assert_eq!(code(&run(&mut fsm, 2, change(Some("b"), Some(0)))), Some(ErrorCode::Conflict));
    assert_eq!(fsm.state().setting(name), "a");
    assert_eq!(run(&mut fsm, 3, change(Some("b"), Some(1))), changed(2));
    assert_eq!(run(&mut fsm, 4, change(Some("c"), None)), changed(3));
    let Outcome::Refused { message, .. } = run(&mut fsm, 5, change(Some("d"), Some(2))) else {
        panic!("an old revision is refused")
    };
    assert!(message.contains("revision is 3 now"), "{message}");
    let kept = Setting { value: "c".to_owned(), revision: 3 };
    assert_eq!(fsm.state().settings.get(&name), Some(&kept));
    assert_eq!(run(&mut fsm, 6, change(None, Some(3))), changed(4));
    assert_eq!((fsm.state().setting(name), fsm.state().settings.len()), ("", 0));
    assert_eq!(run(&mut fsm, 7, change(Some("e"), Some(0))), changed(5));
    assert_eq!(code(&run(&mut fsm, 8, change(Some("a\nb"), None))), Some(ErrorCode::BadRequest));
    assert_eq!(fsm.state().settings_revision, 5);
}

#[test]
fn how_long_a_voter_is_waited_for_is_a_setting() {
    let mut fsm = fresh();
    assert_eq!(fsm.state().voter_replace_after(), Duration::from_secs(60));
    let change = |value: &str| CommandBody::ChangeSetting {
        name: SettingName::VoterReplaceAfter,
        value: Some(value.to_owned()),
        expected: None,
    };
    assert_eq!(code(&run(&mut fsm, 1, change("1s"))), Some(ErrorCode::BadRequest));
    assert_eq!(run(&mut fsm, 2, change("5m")), Outcome::SettingChanged { revision: 1 });
    assert_eq!(fsm.state().voter_replace_after(), Duration::from_secs(300));
}

/// A state as large as it gets, or almost none.
fn of_size(identities: usize, tokens: usize) -> ClusterState {
    let mut state = ClusterState::clone(fresh().state());
    let CommandBody::CreateToken(record) = token(IDENTITIES_MAX as u32) else { panic!("token() creates") };
    for n in 2..tokens as u64 + 1 {
        let record = TokenRecord { id: TokenId(n), expires_at: UnixMs(200 + n), ..record.clone() };
        state.tokens.insert(record.id, record);
    }
    state.tokens.insert(TOKEN, TokenRecord { expires_at: UnixMs(100_000), ..record });
    for n in 0..identities as u128 {
        let (id, key_hash) = (server(1_000_000 + n), key(1));
        let record = IdentityRecord::new(id, format!("s{n}"), key_hash, UnixMs(1));
        state.identities.insert(id, record);
        state.tokens.get_mut(&TOKEN).unwrap().used_by.insert((id, key_hash));
    }
    state
}

#[test]
fn a_write_costs_the_same_however_large_the_state_is() {
    for (identities, tokens) in [(10, 10), (IDENTITIES_MAX - 2_000, TOKENS_MAX - 1)] {
        let mut fsm = Fsm::new(of_size(identities, tokens));
        let CommandBody::CreateToken(record) = token(1) else { panic!("token() creates") };
        let created = TokenRecord { id: TokenId(u64::MAX), expires_at: UnixMs(101_000), ..record };
        let before = Arc::clone(fsm.state());
        assert_eq!(run(&mut fsm, 1, CommandBody::CreateToken(created)), Outcome::Done);
        let after = Arc::clone(fsm.state());
        assert!(after.identities.ptr_eq(&before.identities) && after.members.ptr_eq(&before.members));
        assert_eq!(run(&mut fsm, 2, CommandBody::RevokeToken(TokenId(u64::MAX))), Outcome::Done);

        // Each is published: somebody holds the state before.
        let mut published = Vec::new();
        for n in 10..1_010 {
            assert_eq!(run(&mut fsm, n, enrol(server(n), key(1), 50)), Outcome::Done);
            published.push(Arc::clone(fsm.state()));
        }
        assert_eq!(published[0].identities.len(), identities + 1);
        assert_eq!(published[0].tokens[&TOKEN].used_by.len(), identities + 1);
    }
}

#[test]
fn readers_keep_the_state_they_took() {
    let mut fsm = fresh();
    let before = fsm.state().clone();
    run(&mut fsm, 1, token(1));
    assert!(before.tokens.is_empty());
    assert_eq!(fsm.state().tokens.len(), 1);
}
