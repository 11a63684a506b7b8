//! What is replicated and kept on disk, to bytes and back.

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{Command, CommandBody, IdentityRecord, Outcome, TokenId, TokenRecord, TokenRole};
use p2p_common::member::Member;
use p2p_common::setting::Setting;
use p2p_common::{Epoch, ErrorCode, NodeKind, RecoveryId, UnixMs};
use prost::Message;

use super::{
    ConvertError, addresses, id_of, key_hash, member_from, member_to, name, parse, request_id, required,
    sha256,
};
use crate::v1;

/// A command as it stands in a raft entry.
pub fn encode_command(command: &Command) -> Vec<u8> {
    use v1::stored_command::Body;
    let body = match &command.body {
        CommandBody::CreateToken(token) => Body::CreateToken(token_to(token)),
        CommandBody::RevokeToken(id) => Body::RevokeToken(id.0),
        CommandBody::Enrol { token_id, secret_hash, id, name, key_hash, now } => {
            Body::Enrol(v1::StoredEnrol {
                token_id: token_id.0,
                secret_hash: secret_hash.to_vec().into(),
                id: id.to_string(),
                name: name.clone(),
                key_hash: key_hash.0.to_vec().into(),
                now_unix_ms: now.0,
            })
        }
        CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log } => {
            Body::UpsertMember(v1::StoredUpsertMember {
                id: id.to_string(),
                name: name.clone(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                zone: zone.clone(),
                key_hash: key_hash.0.to_vec().into(),
                new_log: *new_log,
            })
        }
        CommandBody::RemoveMember(id) => Body::RemoveMember(id.to_string()),
        CommandBody::ChangeSetting { name, value, expected } => {
            Body::ChangeSetting(v1::StoredChangeSetting {
                name: name.to_string(),
                value: value.clone(),
                expected: *expected,
            })
        }
    };
    v1::StoredCommand { request_id: command.request_id.to_string(), body: Some(body) }.encode_to_vec()
}

/// A command from a raft entry or from another Server.
///
/// # Errors
/// When the bytes are not one.
pub fn decode_command(bytes: &[u8]) -> Result<Command, ConvertError> {
    use v1::stored_command::Body;
    let command = decode::<v1::StoredCommand>(bytes, "command")?;
    let body = match required(command.body, "body")? {
        Body::CreateToken(token) => CommandBody::CreateToken(token_from(token)?),
        Body::RevokeToken(id) => CommandBody::RevokeToken(TokenId(id)),
        Body::Enrol(enrol) => CommandBody::Enrol {
            token_id: TokenId(enrol.token_id),
            secret_hash: sha256(&enrol.secret_hash, "secret_hash")?,
            id: parse(&enrol.id, "id")?,
            name: name(&enrol.name, "name")?,
            key_hash: key_hash(&enrol.key_hash)?,
            now: UnixMs(enrol.now_unix_ms),
        },
        Body::UpsertMember(member) => CommandBody::UpsertMember {
            id: id_of(NodeKind::Server, &member.id, "id")?,
            name: name(&member.name, "name")?,
            addresses: addresses(&member.addresses, Member::ADDRESSES_MAX)?,
            zone: name(&member.zone, "zone")?,
            key_hash: key_hash(&member.key_hash)?,
            new_log: member.new_log,
        },
        Body::RemoveMember(id) => CommandBody::RemoveMember(id_of(NodeKind::Server, &id, "id")?),
        Body::ChangeSetting(change) => CommandBody::ChangeSetting {
            name: parse(&change.name, "name")?,
            value: change.value,
            expected: change.expected,
        },
    };
    Ok(Command { request_id: request_id(&command.request_id)?, body })
}

/// An outcome as a follower gets it from the leader.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    outcome_to(outcome).encode_to_vec()
}

/// An outcome from the leader.
///
/// # Errors
/// When the bytes are not one.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, ConvertError> {
    outcome_from(decode::<v1::StoredOutcome>(bytes, "outcome")?)
}

/// The whole replicated state as a snapshot's data.
pub fn encode_state(state: &ClusterState) -> Vec<u8> {
    v1::StoredState {
        cluster_id: state.cluster_id.to_string(),
        epoch: state.epoch.0,
        trust_bundle: state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
        members: state.members.values().map(member_to).collect(),
        members_version: state.members_version,
        next_raft_id: state.next_raft_id,
        identities: state
            .identities
            .values()
            .map(|identity| v1::StoredIdentity {
                id: identity.id.to_string(),
                name: identity.name.clone(),
                key_hash: identity.key_hash.0.to_vec().into(),
                enrolled_at_unix_ms: identity.enrolled_at.0,
            })
            .collect(),
        tokens: state.tokens.values().map(token_to).collect(),
        applied_requests: state
            .applied_requests
            .iter()
            .map(|(id, outcome)| v1::StoredRequest {
                request_id: id.to_string(),
                outcome: Some(outcome_to(outcome)),
            })
            .collect(),
        recovery_id: state.recovery_id.map(|id| id.to_string()).unwrap_or_default(),
        settings: state
            .settings
            .iter()
            .map(|(name, setting)| v1::StoredSetting {
                name: name.to_string(),
                value: setting.value.clone(),
                revision: setting.revision,
            })
            .collect(),
        settings_revision: state.settings_revision,
    }
    .encode_to_vec()
}

/// The replicated state from a snapshot's data.
///
/// # Errors
/// When the bytes are not one.
pub fn decode_state(bytes: &[u8]) -> Result<ClusterState, ConvertError> {
    let stored = decode::<v1::StoredState>(bytes, "state")?;
    let mut state = ClusterState::new(
        parse(&stored.cluster_id, "cluster_id")?,
        Epoch(stored.epoch),
        stored.trust_bundle.into_iter().map(|der| der.to_vec()).collect(),
    );
    state.members_version = stored.members_version;
    state.next_raft_id = stored.next_raft_id;
    state.recovery_id = recovery_id(&stored.recovery_id)?;
    state.settings_revision = stored.settings_revision;
    for setting in stored.settings {
        let name = parse(&setting.name, "settings.name")?;
        state.settings.insert(name, Setting { value: setting.value, revision: setting.revision });
    }
    for member in stored.members {
        let member = member_from(member)?;
        state.members.insert(member.id, member);
    }
    for identity in stored.identities {
        let identity = IdentityRecord {
            id: parse(&identity.id, "id")?,
            name: name(&identity.name, "name")?,
            key_hash: key_hash(&identity.key_hash)?,
            enrolled_at: UnixMs(identity.enrolled_at_unix_ms),
        };
        state.identities.insert(identity.id, identity);
    }
    for token in stored.tokens {
        let token = token_from(token)?;
        state.tokens.insert(token.id, token);
    }
    for request in stored.applied_requests {
        let outcome = outcome_from(required(request.outcome, "outcome")?)?;
        state.applied_requests.push_back((request_id(&request.request_id)?, outcome));
    }
    Ok(state)
}

/// A stored or received recovery id; empty before the first forced recovery.
///
/// # Errors
/// When it is neither empty nor a UUID.
pub fn recovery_id(text: &str) -> Result<Option<RecoveryId>, ConvertError> {
    if text.is_empty() { Ok(None) } else { parse(text, "recovery_id").map(Some) }
}

/// The wire form of a token's role.
pub fn token_role_to(role: TokenRole) -> v1::TokenRole {
    match role {
        TokenRole::Server => v1::TokenRole::Server,
        TokenRole::Peer => v1::TokenRole::Peer,
        TokenRole::Operator => v1::TokenRole::Operator,
        TokenRole::Reader => v1::TokenRole::Reader,
    }
}

/// A received token role.
///
/// # Errors
/// When it has no meaning.
pub fn token_role_from(role: i32) -> Result<TokenRole, ConvertError> {
    match v1::TokenRole::try_from(role) {
        Ok(v1::TokenRole::Server) => Ok(TokenRole::Server),
        Ok(v1::TokenRole::Peer) => Ok(TokenRole::Peer),
        Ok(v1::TokenRole::Operator) => Ok(TokenRole::Operator),
        Ok(v1::TokenRole::Reader) => Ok(TokenRole::Reader),
        _ => Err(ConvertError::new("role", format!("{role} is not a token role"))),
    }
}

fn decode<M: Message + Default>(bytes: &[u8], field: &'static str) -> Result<M, ConvertError> {
    M::decode(bytes).map_err(|e| ConvertError::new(field, e.to_string()))
}

fn token_to(token: &TokenRecord) -> v1::StoredToken {
    v1::StoredToken {
        id: token.id.0,
        role: token_role_to(token.role).into(),
        secret_hash: token.secret_hash.to_vec().into(),
        created_at_unix_ms: token.created_at.0,
        expires_at_unix_ms: token.expires_at.0,
        uses_left: token.uses_left,
        bound_id: token.bound_id.map(|id| id.to_string()).unwrap_or_default(),
        used_by: token
            .used_by
            .iter()
            .map(|(id, key)| v1::StoredTokenUse { id: id.to_string(), key_hash: key.0.to_vec().into() })
            .collect(),
    }
}

fn token_from(token: v1::StoredToken) -> Result<TokenRecord, ConvertError> {
    Ok(TokenRecord {
        id: TokenId(token.id),
        role: token_role_from(token.role)?,
        secret_hash: sha256(&token.secret_hash, "secret_hash")?,
        created_at: UnixMs(token.created_at_unix_ms),
        expires_at: UnixMs(token.expires_at_unix_ms),
        uses_left: token.uses_left,
        bound_id: match token.bound_id.as_str() {
            "" => None,
            text => Some(parse(text, "bound_id")?),
        },
        used_by: token
            .used_by
            .iter()
            .map(|used| Ok((parse(&used.id, "used_by.id")?, key_hash(&used.key_hash)?)))
            .collect::<Result<_, ConvertError>>()?,
    })
}

fn outcome_to(outcome: &Outcome) -> v1::StoredOutcome {
    use v1::stored_outcome::Outcome as Stored;
    let outcome = match outcome {
        Outcome::Done => Stored::Done(true),
        Outcome::MemberAdded { raft_id } => Stored::MemberAddedRaftId(*raft_id),
        Outcome::SettingChanged { revision } => Stored::SettingChangedRevision(*revision),
        Outcome::Refused { code, message } => {
            Stored::Refused(v1::StoredRefusal { code: code.number(), message: message.clone() })
        }
    };
    v1::StoredOutcome { outcome: Some(outcome) }
}

fn outcome_from(outcome: v1::StoredOutcome) -> Result<Outcome, ConvertError> {
    use v1::stored_outcome::Outcome as Stored;
    Ok(match required(outcome.outcome, "outcome")? {
        Stored::Done(_) => Outcome::Done,
        Stored::MemberAddedRaftId(raft_id) => Outcome::MemberAdded { raft_id },
        Stored::SettingChangedRevision(revision) => Outcome::SettingChanged { revision },
        Stored::Refused(refusal) => {
            Outcome::Refused { code: ErrorCode::from_number(refusal.code), message: refusal.message }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::setting::SettingName;
    use p2p_common::{ClusterId, KeyHash, NodeId, RecoveryId, RequestId};
    use proptest::prelude::*;
    use uuid::Uuid;

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
                    state.identities.insert(id, IdentityRecord { id, name, key_hash, enrolled_at: now });
                }
                CommandBody::UpsertMember { id, name, addresses, zone, key_hash, .. } => {
                    let member = Member { id, name, addresses, zone, raft_id: 1, key_hash };
                    state.members.insert(id, member);
                }
                CommandBody::ChangeSetting { name, value, .. } => {
                    let setting = Setting { value: value.unwrap_or_default(), revision: 7 };
                    state.settings.insert(name, setting);
                }
                CommandBody::RevokeToken(_) | CommandBody::RemoveMember(_) => {}
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
}
