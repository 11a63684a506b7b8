//! What is replicated and kept on disk, to bytes and back.

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{
    Command, CommandBody, IDENTITIES_PER_COMMAND_MAX, IdentityRecord, Outcome, Revocation, TokenId,
    TokenRecord, TokenRole,
};
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::setting::Setting;
use p2p_common::{Epoch, ErrorCode, NodeKind, RecoveryId, UnixMs};
use prost::Message;

use super::{
    ConvertError, addresses, bounded, grants_from, grants_to, id_of, key_hash, member_from, member_to, name,
    parse, reason, request_id, required, sha256,
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
        CommandBody::Revoke { id, key_hash, reason, now } => Body::Revoke(v1::StoredRevoke {
            id: id.to_string(),
            key_hash: key_hash.map(|key| key.0.to_vec()).unwrap_or_default().into(),
            reason: reason.clone(),
            now_unix_ms: now.0,
        }),
        CommandBody::ResetIdentity { id, now } => {
            Body::ResetIdentity(v1::StoredReset { id: id.to_string(), now_unix_ms: now.0 })
        }
        CommandBody::ChangeGrants { id, grants } => {
            Body::ChangeGrants(v1::StoredChangeGrants { id: id.to_string(), grants: Some(grants_to(grants)) })
        }
        CommandBody::SeeIdentities { ids, now } => Body::SeeIdentities(v1::StoredSee {
            ids: ids.iter().map(ToString::to_string).collect(),
            now_unix_ms: now.0,
        }),
        CommandBody::ForgetIdentities(ids) => Body::ForgetIdentities(v1::StoredForget {
            identities: ids
                .iter()
                .map(|(id, seen_at)| v1::StoredSeen { id: id.to_string(), seen_at_unix_ms: seen_at.0 })
                .collect(),
        }),
        CommandBody::BindIdentity { id, name, key_hash, grants, now } => Body::BindIdentity(v1::StoredBind {
            id: id.to_string(),
            name: name.clone(),
            key_hash: key_hash.0.to_vec().into(),
            grants: Some(grants_to(grants)),
            now_unix_ms: now.0,
        }),
        CommandBody::ChangeTrust { bundle, signer, expected } => Body::ChangeTrust(v1::StoredChangeTrust {
            bundle: bundle.iter().map(|der| der.clone().into()).collect(),
            signer: u32::try_from(*signer).unwrap_or(u32::MAX),
            expected: *expected,
        }),
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
        Body::Revoke(revoke) => CommandBody::Revoke {
            id: parse(&revoke.id, "id")?,
            key_hash: match revoke.key_hash.is_empty() {
                true => None,
                false => Some(key_hash(&revoke.key_hash)?),
            },
            reason: reason(&revoke.reason)?,
            now: UnixMs(revoke.now_unix_ms),
        },
        Body::ResetIdentity(reset) => {
            CommandBody::ResetIdentity { id: parse(&reset.id, "id")?, now: UnixMs(reset.now_unix_ms) }
        }
        Body::ChangeGrants(change) => CommandBody::ChangeGrants {
            id: parse(&change.id, "id")?,
            grants: grants_from(required(change.grants, "grants")?)?,
        },
        Body::SeeIdentities(see) => {
            bounded(see.ids.len(), IDENTITIES_PER_COMMAND_MAX, "ids")?;
            let ids = see.ids.iter().map(|id| parse(id, "ids")).collect::<Result<_, _>>()?;
            CommandBody::SeeIdentities { ids, now: UnixMs(see.now_unix_ms) }
        }
        Body::ForgetIdentities(forget) => {
            bounded(forget.identities.len(), IDENTITIES_PER_COMMAND_MAX, "identities")?;
            let seen = |seen: &v1::StoredSeen| Ok((parse(&seen.id, "id")?, UnixMs(seen.seen_at_unix_ms)));
            let identities = forget.identities.iter().map(seen).collect::<Result<_, ConvertError>>()?;
            CommandBody::ForgetIdentities(identities)
        }
        Body::BindIdentity(bind) => CommandBody::BindIdentity {
            id: parse(&bind.id, "id")?,
            name: name(&bind.name, "name")?,
            key_hash: key_hash(&bind.key_hash)?,
            grants: grants_from(required(bind.grants, "grants")?)?,
            now: UnixMs(bind.now_unix_ms),
        },
        Body::ChangeTrust(change) => CommandBody::ChangeTrust {
            bundle: change.bundle.iter().map(|der| der.to_vec()).collect(),
            signer: change.signer as usize,
            expected: change.expected,
        },
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
                grants: stored_grants(&identity.grants),
                ephemeral: identity.ephemeral,
                seen_at_unix_ms: identity.seen_at.0,
                revoked: identity.revoked,
                grants_revision: identity.grants_revision,
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
        revocations: state
            .revocations
            .values()
            .map(|revocation| v1::StoredRevocation {
                number: revocation.number,
                id: revocation.id.to_string(),
                key_hash: revocation.key_hash.0.to_vec().into(),
                name: revocation.name.clone(),
                reason: revocation.reason.clone(),
                revoked_at_unix_ms: revocation.revoked_at.0,
            })
            .collect(),
        revocations_version: state.revocations_version,
        signer: u32::try_from(state.signer).unwrap_or(u32::MAX),
        trust_version: state.trust_version,
        grants_version: state.grants_version,
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
    state.revocations_version = stored.revocations_version;
    state.signer = stored.signer as usize;
    if state.signer >= state.trust_bundle.len().max(1) {
        return Err(ConvertError::new("signer", "no CA of the trust bundle signs"));
    }
    state.trust_version = stored.trust_version;
    state.grants_version = stored.grants_version;
    for revoked in stored.revocations {
        let revocation = Revocation {
            number: revoked.number,
            id: parse(&revoked.id, "revocations.id")?,
            key_hash: key_hash(&revoked.key_hash)?,
            name: name(&revoked.name, "revocations.name")?,
            reason: reason(&revoked.reason)?,
            revoked_at: UnixMs(revoked.revoked_at_unix_ms),
        };
        state.revocations.insert(revocation.key_hash, revocation);
    }
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
            grants: identity.grants.map_or(Ok(Grants::default()), grants_from)?,
            ephemeral: identity.ephemeral,
            seen_at: UnixMs(identity.seen_at_unix_ms),
            revoked: identity.revoked,
            grants_revision: identity.grants_revision,
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

/// Most have everybody's grants, which take no room.
fn stored_grants(grants: &Grants) -> Option<v1::Grants> {
    (*grants != Grants::default()).then(|| grants_to(grants))
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
        bound_name: token.bound_name.clone().unwrap_or_default(),
        grants: stored_grants(&token.grants),
        ephemeral: token.ephemeral,
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
        bound_name: match token.bound_name.as_str() {
            "" => None,
            text => Some(name(text, "bound_name")?),
        },
        grants: token.grants.map_or(Ok(Grants::default()), grants_from)?,
        ephemeral: token.ephemeral,
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
mod tests;
