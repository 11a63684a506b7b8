//! Bound, revoked, reset, seen and forgotten.

use super::*;
use p2p_common::command::TokenRecord;
use p2p_common::shared::SharedSet;
use p2p_common::{ClusterId, Epoch};
use uuid::Uuid;

const SECRET: [u8; 32] = [7; 32];
const TOKEN: TokenId = TokenId(1);
const OFTEN: u32 = 100;

fn peer(n: u128) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
}

fn key(n: u8) -> KeyHash {
    KeyHash([n; 32])
}

fn narrow() -> Grants {
    Grants { may_offer: "shop.*".parse().unwrap(), ..Grants::default() }
}

/// With a token of narrow grants.
fn state(ephemeral: bool) -> ClusterState {
    let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), vec![vec![1]]);
    let record = TokenRecord {
        id: TOKEN,
        role: TokenRole::Peer,
        secret_hash: SECRET,
        created_at: UnixMs(1),
        expires_at: UnixMs(100),
        uses_left: OFTEN,
        bound_id: None,
        bound_name: None,
        grants: narrow(),
        ephemeral,
        used_by: SharedSet::new(),
    };
    state.tokens.insert(TOKEN, record);
    state
}

fn code(outcome: Applying<Outcome>) -> Result<(), ErrorCode> {
    outcome.map(|_| ()).map_err(|(code, _)| code)
}

fn enrols(state: &mut ClusterState, id: NodeId, key_hash: KeyHash) -> Result<(), ErrorCode> {
    code(enrol(state, TOKEN, &SECRET, &Newcomer { id, name: "p", key_hash, now: UnixMs(50) }))
}

fn revokes(state: &mut ClusterState, id: NodeId, key_hash: Option<KeyHash>) -> Result<(), ErrorCode> {
    code(revoke(state, id, key_hash, "stolen", UnixMs(60)))
}

#[test]
fn an_identity_has_its_tokens_grants_until_they_are_changed() {
    let mut state = state(false);
    assert_eq!(enrols(&mut state, peer(1), key(1)), Ok(()));
    assert_eq!(state.identities[&peer(1)].grants, narrow());
    assert_eq!(code(change_grants(&mut state, peer(1), &Grants::default())), Ok(()));
    assert_eq!(enrols(&mut state, peer(1), key(1)), Ok(()), "a repeat");
    assert_eq!(state.identities[&peer(1)].grants, Grants::default());
    assert_eq!(code(change_grants(&mut state, peer(2), &narrow())), Err(ErrorCode::NotFound));
}

#[test]
fn a_token_for_a_name_enrols_nobody_else() {
    let mut state = state(false);
    state.tokens.get_mut(&TOKEN).unwrap().bound_name = Some("q".to_owned());
    assert_eq!(enrols(&mut state, peer(1), key(1)), Err(ErrorCode::TokenBound));
    state.tokens.get_mut(&TOKEN).unwrap().bound_name = Some("p".to_owned());
    assert_eq!(enrols(&mut state, peer(1), key(1)), Ok(()));
}

#[test]
fn a_revoked_key_and_its_id_come_back_by_no_token() {
    let mut state = state(false);
    assert_eq!(revokes(&mut state, peer(1), None), Err(ErrorCode::NotFound));
    enrols(&mut state, peer(1), key(1)).unwrap();
    assert_eq!(revokes(&mut state, peer(1), None), Ok(()));
    assert_eq!(revokes(&mut state, peer(1), None), Ok(()), "a repeat");
    let uses_left = state.tokens[&TOKEN].uses_left;
    assert_eq!((state.revocations.len(), state.revocations_version), (1, 1));
    assert_eq!(enrols(&mut state, peer(1), key(1)), Err(ErrorCode::Revoked), "as it was, also a repeat");
    assert_eq!(enrols(&mut state, peer(1), key(2)), Err(ErrorCode::Revoked), "the Id with another key");
    assert_eq!(enrols(&mut state, peer(2), key(1)), Err(ErrorCode::Revoked), "the key with another Id");
    let newcomer = Newcomer { id: peer(1), name: "p", key_hash: key(2), now: UnixMs(1) };
    assert_eq!(code(bind(&mut state, &newcomer, &narrow())), Err(ErrorCode::Revoked));
    assert_eq!(state.tokens[&TOKEN].uses_left, uses_left, "a refusal spends nothing");

    assert_eq!(code(reset(&mut state, peer(1), UnixMs(70))), Ok(()));
    assert_eq!(state.revocations_version, 1, "the key was revoked already");
    assert_eq!(enrols(&mut state, peer(1), key(1)), Err(ErrorCode::Revoked));
    assert_eq!(enrols(&mut state, peer(1), key(2)), Ok(()));
    assert_eq!(code(reset(&mut state, peer(9), UnixMs(70))), Err(ErrorCode::NotFound));
}

#[test]
fn a_key_can_be_revoked_without_its_former_id() {
    let mut state = state(false);
    enrols(&mut state, peer(1), key(1)).unwrap();
    assert_eq!(revokes(&mut state, peer(1), Some(key(9))), Ok(()));
    assert!(state.is_revoked(&key(9)) && !state.identities[&peer(1)].revoked);
    assert_eq!(enrols(&mut state, peer(1), key(1)), Ok(()));
}

#[test]
fn a_reset_revokes_the_lost_key_and_spares_members() {
    let mut state = state(false);
    enrols(&mut state, peer(1), key(1)).unwrap();
    assert_eq!(code(reset(&mut state, peer(1), UnixMs(70))), Ok(()));
    assert!(state.is_revoked(&key(1)) && !state.identities.contains_key(&peer(1)));
    let server = NodeId::new(NodeKind::Server, Uuid::from_u128(1));
    let newcomer = Newcomer { id: server, name: "s", key_hash: key(3), now: UnixMs(1) };
    assert_eq!(code(bind(&mut state, &newcomer, &Grants::default())), Ok(()));
    assert_eq!(code(bind(&mut state, &newcomer, &Grants::default())), Ok(()), "a repeat");
    let member = p2p_common::member::Member {
        id: server,
        name: "s".to_owned(),
        addresses: vec!["127.0.0.1:1".parse().unwrap()],
        zone: String::new(),
        raft_id: 1,
        key_hash: key(3),
    };
    state.members.insert(server, member);
    assert_eq!(code(reset(&mut state, server, UnixMs(70))), Err(ErrorCode::Conflict));
    assert!(!state.is_revoked(&key(3)));
}

#[test]
fn ephemeral_identities_are_forgotten_unless_somebody_saw_them() {
    let mut state = state(true);
    enrols(&mut state, peer(1), key(1)).unwrap();
    enrols(&mut state, peer(2), key(2)).unwrap();
    let stays = Newcomer { id: peer(3), name: "p", key_hash: key(3), now: UnixMs(50) };
    bind(&mut state, &stays, &narrow()).unwrap();
    let seen_at = |state: &ClusterState, n| state.identities[&peer(n)].seen_at;
    let all: Vec<_> = (1..=3).map(|n| (peer(n), seen_at(&state, n))).collect();
    assert_eq!(seen_at(&state, 1), UnixMs(50));
    // By a clock that is behind.
    see(&mut state, &[peer(1), peer(3), peer(9)], UnixMs(10));
    assert_eq!((seen_at(&state, 1), seen_at(&state, 3)), (UnixMs(51), UnixMs(50)));
    forget(&mut state, &all);
    let left: Vec<_> = state.identities.keys().copied().collect();
    assert_eq!(left, [peer(1), peer(3)]);
}

#[test]
fn revocations_are_bounded_and_old_ones_make_room() {
    let mut state = state(false);
    for n in 0..REVOCATIONS_MAX as u64 {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_be_bytes());
        hash[31] = 1;
        let now = UnixMs(n / 2);
        assert_eq!(code(revoke(&mut state, peer(1), Some(KeyHash(hash)), "", now)), Ok(()));
    }
    let needed = Revocation::NEEDED_FOR.as_millis() as u64;
    let full = code(revoke(&mut state, peer(1), Some(key(1)), "", UnixMs(needed - 1)));
    assert_eq!(full, Err(ErrorCode::Exhausted));
    assert_eq!(code(revoke(&mut state, peer(1), Some(key(1)), "", UnixMs(needed))), Ok(()));
    assert_eq!(state.revocations.len(), REVOCATIONS_MAX - 1);
    let long = "x".repeat(Revocation::REASON_MAX_BYTES + 1);
    assert_eq!(code(revoke(&mut state, peer(1), Some(key(5)), &long, UnixMs(1))), Err(ErrorCode::BadRequest));
}
