//! What is stored comes back the same, and any bytes are read or refused.

use super::*;
use p2p_common::setting::SettingName;
use p2p_common::{ClusterId, KeyHash, NodeId, RecoveryId, RequestId};
use proptest::prelude::*;
use uuid::Uuid;

fn grants() -> Grants {
    Grants { may_offer: "a,*.b".parse().unwrap(), ..Grants::default() }
}

fn commands() -> Vec<Command> {
    let peer = NodeId::new(NodeKind::Peer, Uuid::from_u128(1));
    let server = NodeId::new(NodeKind::Server, Uuid::from_u128(2));
    let token = TokenRecord {
        id: TokenId(3),
        role: TokenRole::Peer,
        secret_hash: [4; 32],
        created_at: UnixMs(10),
        expires_at: UnixMs(5),
        uses_left: 6,
        bound_id: Some(peer),
        bound_name: Some("p".into()),
        grants: grants(),
        ephemeral: true,
        used_by: [(peer, KeyHash([7; 32]))].into_iter().collect(),
    };
    [
        CommandBody::CreateToken(token),
        CommandBody::RevokeToken(TokenId(u64::MAX)),
        CommandBody::Enrol {
            token_id: TokenId(3),
            secret_hash: [4; 32],
            id: peer,
            name: "p".into(),
            key_hash: KeyHash([8; 32]),
            now: UnixMs(9),
        },
        CommandBody::UpsertMember {
            id: server,
            name: "s".into(),
            addresses: vec!["[::1]:7400".parse().unwrap()],
            zone: "z".into(),
            key_hash: KeyHash([8; 32]),
            new_log: true,
        },
        CommandBody::RemoveMember(server),
        CommandBody::ChangeSetting {
            name: SettingName::Description,
            value: Some(String::new()),
            expected: Some(0),
        },
        CommandBody::ChangeSetting { name: SettingName::VoterReplaceAfter, value: None, expected: None },
        CommandBody::Revoke { id: peer, key_hash: None, reason: "lost".into(), now: UnixMs(9) },
        CommandBody::Revoke {
            id: server,
            key_hash: Some(KeyHash([8; 32])),
            reason: String::new(),
            now: UnixMs(9),
        },
        CommandBody::ResetIdentity { id: peer, now: UnixMs(9) },
        CommandBody::ChangeGrants { id: peer, grants: Grants::default() },
        CommandBody::SeeIdentities { ids: vec![peer, server], now: UnixMs(9) },
        CommandBody::ForgetIdentities(vec![(peer, UnixMs(8))]),
        CommandBody::BindIdentity {
            id: peer,
            name: "p".into(),
            key_hash: KeyHash([8; 32]),
            grants: grants(),
            now: UnixMs(9),
        },
        CommandBody::ChangeTrust { bundle: vec![vec![1], vec![2]], signer: 1, expected: 3 },
    ]
    .into_iter()
    .enumerate()
    .map(|(n, body)| Command { request_id: RequestId::new(Uuid::from_u128(n as u128)), body })
    .collect()
}

#[test]
fn commands_outcomes_and_states_come_back() {
    let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(2), vec![vec![3, 4]]);
    for command in commands() {
        assert_eq!(decode_command(&encode_command(&command)), Ok(command.clone()));
        let refused = Outcome::Refused { code: ErrorCode::IdTaken, message: "taken".into() };
        let changed = Outcome::SettingChanged { revision: 4 };
        for outcome in [Outcome::Done, Outcome::MemberAdded { raft_id: 9 }, changed, refused] {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)), Ok(outcome.clone()));
            state.applied_requests.push_back((command.request_id, outcome));
        }
        match command.body {
            CommandBody::CreateToken(token) => {
                state.tokens.insert(token.id, token);
            }
            CommandBody::Enrol { id, name, key_hash, now, .. } => {
                let bound = IdentityRecord::new(id, name, key_hash, now);
                let record = IdentityRecord { ephemeral: true, revoked: true, grants: grants(), ..bound };
                state.identities.insert(id, record);
            }
            CommandBody::UpsertMember { id, name, addresses, zone, key_hash, .. } => {
                let member = Member { id, name, addresses, zone, raft_id: 1, key_hash };
                state.members.insert(id, member);
            }
            CommandBody::ChangeSetting { name, value, .. } => {
                let setting = Setting { value: value.unwrap_or_default(), revision: 7 };
                state.settings.insert(name, setting);
            }
            CommandBody::Revoke { id, key_hash, reason, now } => {
                let (number, name) = (state.revocations_version + 1, "p".to_owned());
                state.revocations_version = number;
                let key_hash = key_hash.unwrap_or(KeyHash([9; 32]));
                let revocation = Revocation { number, id, key_hash, name, reason, revoked_at: now };
                state.revocations.insert(key_hash, revocation);
            }
            CommandBody::ChangeTrust { bundle, signer, expected } => {
                (state.trust_bundle, state.signer, state.trust_version) = (bundle, signer, expected);
            }
            _ => {}
        }
    }
    state.members_version = 10;
    state.next_raft_id = 11;
    state.settings_revision = 8;
    state.recovery_id = Some(RecoveryId::new(Uuid::from_u128(12)));
    assert_eq!(decode_state(&encode_state(&state)), Ok(state));
}

proptest! {
    #[test]
    fn any_bytes_are_a_command_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_command(&bytes);
        let _ = decode_outcome(&bytes);
        let _ = decode_state(&bytes);
    }
}
