//! The replicated state machine: commands in, outcomes out, the same on every Server.
//!
//! Nothing here reads a clock or draws a random number; whatever needs one was put into the command by its
//! proposer. A command applies once: the outcomes of the last [`REQUESTS_REMEMBERED`] requests are part of the
//! state, refusals too, so that a repeat gives the answer the first one gave. Source: SPEC I2, I3, I6-I8, C3, C7.

mod identities;
mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2p_common::ErrorCode;
use p2p_common::addr::HostPort;
use p2p_common::cluster_state::{ClusterState, REQUESTS_REMEMBERED, TOKENS_MAX};
use p2p_common::command::{Command, CommandBody, Outcome, TokenId, TokenRecord};
use p2p_common::member::{MEMBERS_MAX, Member};
use p2p_common::setting::{Setting, SettingName};
use p2p_common::{KeyHash, NodeId, NodeKind, RequestId, UnixMs};

/// The state and what is derived from it. Readers take [`Fsm::state`], which is never changed in place while
/// anyone else holds it. What a command costs does not grow with the state.
#[derive(Debug, Clone)]
pub struct Fsm {
    state: Arc<ClusterState>,
    /// The number of a request in `state.applied_requests`.
    remembered: BTreeMap<RequestId, u64>,
    /// Tokens by their end.
    expiries: Expiries,
}

type Applying<T> = Result<T, (ErrorCode, String)>;

fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Applying<T> {
    Err((code, message.into()))
}

impl Fsm {
    /// Goes on from `state`: a founder's, a stored or a received one.
    pub fn new(state: ClusterState) -> Self {
        let remembered = state.applied_requests.numbered().map(|(number, (id, _))| (*id, number)).collect();
        let expiries = state.tokens.values().map(|token| (token.expires_at, token.id)).collect();
        Fsm { state: Arc::new(state), remembered, expiries }
    }

    /// The state after the last command.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Applies `command`, or finds what became of it when it was applied before. A refused command changes
    /// nothing but the memory of requests.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        if let Some(outcome) = self.outcome_of(command.request_id) {
            return outcome.clone();
        }
        let state = Arc::make_mut(&mut self.state);
        let outcome = apply_body(state, &mut self.expiries, &command.body)
            .unwrap_or_else(|(code, message)| Outcome::Refused { code, message });
        self.remember(command.request_id, outcome.clone());
        outcome
    }

    /// What became of a request, while it is remembered.
    pub fn outcome_of(&self, request_id: RequestId) -> Option<&Outcome> {
        let number = self.remembered.get(&request_id)?;
        self.state.applied_requests.get(*number).map(|(_, outcome)| outcome)
    }

    fn remember(&mut self, request_id: RequestId, outcome: Outcome) {
        let requests = &mut Arc::make_mut(&mut self.state).applied_requests;
        let number = requests.push_back((request_id, outcome));
        self.remembered.insert(request_id, number);
        while requests.len() > REQUESTS_REMEMBERED {
            if let Some((oldest, _)) = requests.pop_front() {
                self.remembered.remove(&oldest);
            }
        }
    }
}

type Expiries = BTreeSet<(UnixMs, TokenId)>;

fn apply_body(state: &mut ClusterState, expiries: &mut Expiries, body: &CommandBody) -> Applying<Outcome> {
    match body {
        CommandBody::CreateToken(record) => create_token(state, expiries, record),
        CommandBody::RevokeToken(id) => revoke_token(state, expiries, *id),
        CommandBody::Enrol { token_id, secret_hash, id, name, key_hash, now } => {
            let node = identities::Newcomer { id: *id, name, key_hash: *key_hash, now: *now };
            identities::enrol(state, *token_id, secret_hash, &node)
        }
        CommandBody::BindIdentity { id, name, key_hash, grants, now } => {
            let node = identities::Newcomer { id: *id, name, key_hash: *key_hash, now: *now };
            identities::bind(state, &node, grants)
        }
        CommandBody::Revoke { id, key_hash, reason, now } => {
            identities::revoke(state, *id, *key_hash, reason, *now)
        }
        CommandBody::ResetIdentity { id, now } => identities::reset(state, *id, *now),
        CommandBody::ChangeGrants { id, grants } => identities::change_grants(state, *id, grants),
        CommandBody::SeeIdentities { ids, now } => Ok(identities::see(state, ids, *now)),
        CommandBody::ForgetIdentities(ids) => Ok(identities::forget(state, ids)),
        CommandBody::ChangeTrust { bundle, signer, expected } => {
            trust::change(state, bundle, *signer, *expected)
        }
        CommandBody::UpsertMember { id, name, addresses, zone, key_hash, new_log } => {
            let record =
                MemberRecord { id: *id, name, addresses, zone, key_hash: *key_hash, new_log: *new_log };
            upsert_member(state, &record)
        }
        CommandBody::RemoveMember(id) => remove_member(state, *id),
        CommandBody::ChangeSetting { name, value, expected } => {
            change_setting(state, *name, value.as_deref(), *expected)
        }
    }
}

fn create_token(
    state: &mut ClusterState,
    expiries: &mut Expiries,
    record: &TokenRecord,
) -> Applying<Outcome> {
    if state.tokens.contains_key(&record.id) {
        return refuse(ErrorCode::BadRequest, format!("token {} exists already: create another", record.id));
    }
    // Tokens that open nothing any more make room.
    while let Some((_, id)) = expiries.first().copied().filter(|(end, _)| *end <= record.created_at) {
        expiries.pop_first();
        state.tokens.remove(&id);
    }
    if state.tokens.len() >= TOKENS_MAX {
        return refuse(
            ErrorCode::Exhausted,
            format!("there are {TOKENS_MAX} tokens: revoke those not needed"),
        );
    }
    state.tokens.insert(record.id, record.clone());
    expiries.insert((record.expires_at, record.id));
    Ok(Outcome::Done)
}

fn revoke_token(state: &mut ClusterState, expiries: &mut Expiries, id: TokenId) -> Applying<Outcome> {
    match state.tokens.remove(&id) {
        Some(token) => {
            expiries.remove(&(token.expires_at, id));
            Ok(Outcome::Done)
        }
        None => refuse(ErrorCode::TokenUnknown, format!("there is no token {id}")),
    }
}

/// A Server's record as it was proposed; the raft id is given here.
struct MemberRecord<'a> {
    id: NodeId,
    name: &'a str,
    addresses: &'a [HostPort],
    zone: &'a str,
    key_hash: KeyHash,
    new_log: bool,
}

fn upsert_member(state: &mut ClusterState, record: &MemberRecord<'_>) -> Applying<Outcome> {
    if record.id.kind() != NodeKind::Server {
        return refuse(ErrorCode::BadRequest, format!("{} is not the Id of a server", record.id));
    }
    check_text("name", record.name)?;
    check_text("zone", record.zone)?;
    if record.addresses.is_empty() || record.addresses.len() > Member::ADDRESSES_MAX {
        let message = format!("a server has 1 to {} addresses", Member::ADDRESSES_MAX);
        return refuse(ErrorCode::BadRequest, message);
    }
    match state.identities.get(&record.id) {
        None => return refuse(ErrorCode::Forbidden, format!("{} is not enrolled", record.id)),
        Some(identity) if identity.key_hash != record.key_hash => {
            return refuse(ErrorCode::IdTaken, format!("{} is bound to another key", record.id));
        }
        Some(identity) if identity.revoked => {
            return refuse(ErrorCode::Revoked, format!("{} is revoked", record.id));
        }
        Some(_) => {}
    }
    let former = state.members.get(&record.id);
    if former.is_none() && state.members.len() >= MEMBERS_MAX {
        return refuse(ErrorCode::Exhausted, format!("there are {MEMBERS_MAX} servers already"));
    }
    let member = Member {
        id: record.id,
        name: record.name.to_owned(),
        addresses: record.addresses.to_vec(),
        zone: record.zone.to_owned(),
        // A raft id speaks for what its log has acknowledged: without the log it is used up.
        raft_id: former.filter(|_| !record.new_log).map_or(state.next_raft_id, |member| member.raft_id),
        key_hash: record.key_hash,
    };
    let raft_id = member.raft_id;
    if former != Some(&member) {
        state.next_raft_id = state.next_raft_id.max(raft_id + 1);
        state.members.insert(record.id, member);
        state.members_version += 1;
    }
    Ok(Outcome::MemberAdded { raft_id })
}

fn remove_member(state: &mut ClusterState, id: NodeId) -> Applying<Outcome> {
    if state.members.remove(&id).is_none() {
        return refuse(ErrorCode::NotFound, format!("{id} is not a server of this cluster"));
    }
    state.members_version += 1;
    Ok(Outcome::Done)
}

fn change_setting(
    state: &mut ClusterState,
    name: SettingName,
    value: Option<&str>,
    expected: Option<u64>,
) -> Applying<Outcome> {
    if let Err(bad) = value.map_or(Ok(()), |value| name.check(value)) {
        return refuse(ErrorCode::BadRequest, bad.to_string());
    }
    let current = state.settings.get(&name).map_or(0, |setting| setting.revision);
    if expected.is_some_and(|expected| expected != current) {
        let message = format!("{name} has been changed: its revision is {current} now; read it again");
        return refuse(ErrorCode::Conflict, message);
    }
    state.settings_revision += 1;
    let revision = state.settings_revision;
    match value {
        Some(value) => state.settings.insert(name, Setting { value: value.to_owned(), revision }),
        None => state.settings.remove(&name),
    };
    Ok(Outcome::SettingChanged { revision })
}

fn check_text(what: &str, text: &str) -> Applying<()> {
    if text.len() > Member::NAME_MAX_BYTES {
        return refuse(
            ErrorCode::BadRequest,
            format!("the {what} is longer than {} bytes", Member::NAME_MAX_BYTES),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
