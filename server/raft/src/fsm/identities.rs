//! Who is bound to which key, and which keys open nothing any more (SPEC I2, I3, I7, I8).
//!
//! ```text
//! unknown ──enrol, bind──► bound ──revoke──► revoked ──reset──► unknown (the key stays revoked)
//!                            └─────reset, forget (ephemeral)───► unknown
//! ```
//!
//! An Id that is revoked stays taken: nobody comes back under it, with whatever token, until an operator resets it. A
//! key that is revoked enrols no more, under whatever Id.

use p2p_common::cluster_state::{ClusterState, IDENTITIES_MAX, REVOCATIONS_MAX};
use p2p_common::command::{IdentityRecord, Outcome, Revocation, TokenId, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::{ErrorCode, KeyHash, NodeId, NodeKind, UnixMs};

use super::{Applying, check_text, refuse};

/// A node that is to be bound to its key.
pub(super) struct Newcomer<'a> {
    pub(super) id: NodeId,
    pub(super) name: &'a str,
    pub(super) key_hash: KeyHash,
    pub(super) now: UnixMs,
}

impl Newcomer<'_> {
    fn record(&self) -> IdentityRecord {
        IdentityRecord::new(self.id, self.name.to_owned(), self.key_hash, self.now)
    }
}

/// Whether `node` is bound to its key already.
///
/// # Errors
/// When its key or Id is revoked, or the Id is bound to another key.
fn bound(state: &ClusterState, node: &Newcomer<'_>) -> Applying<bool> {
    if state.is_revoked(&node.key_hash) {
        return refuse(ErrorCode::Revoked, format!("the key {} is revoked", node.key_hash));
    }
    match state.identities.get(&node.id) {
        None => Ok(false),
        Some(identity) if identity.revoked => {
            let id = node.id;
            let message =
                format!("{id} is revoked: `p2p-server identity reset {id}` frees it for another key");
            refuse(ErrorCode::Revoked, message)
        }
        Some(identity) if identity.key_hash != node.key_hash => {
            let message = format!(
                "{} is bound to another key: start the node with the data directory that holds its key, or under another Id",
                node.id
            );
            refuse(ErrorCode::IdTaken, message)
        }
        Some(_) => Ok(true),
    }
}

fn check_room(state: &ClusterState) -> Applying<()> {
    if state.identities.len() >= IDENTITIES_MAX {
        let message = format!(
            "there are {IDENTITIES_MAX} identities already: `p2p-server identity list` shows them, `identity reset` \
             frees those not needed, and tokens with --ephemeral keep short-lived ones from staying"
        );
        return refuse(ErrorCode::Exhausted, message);
    }
    Ok(())
}

/// Spends a use of a token, once per node, and binds the node.
pub(super) fn enrol(
    state: &mut ClusterState,
    token_id: TokenId,
    secret_hash: &[u8; 32],
    node: &Newcomer<'_>,
) -> Applying<Outcome> {
    check_text("name", node.name)?;
    // An unknown token and a wrong secret answer alike: the difference would help guessing.
    let token = state.tokens.get(&token_id).filter(|token| token.secret_hash == *secret_hash);
    let Some(token) = token else {
        return refuse(ErrorCode::TokenUnknown, "no such token: was it mistyped or revoked?");
    };
    let wanted = match node.id.kind() {
        NodeKind::Server => TokenRole::Server,
        NodeKind::Peer => TokenRole::Peer,
    };
    if token.role != wanted {
        let message = format!("the token is for role {}, not {}", token.role.as_str(), wanted.as_str());
        return refuse(ErrorCode::TokenRole, message);
    }
    if token.bound_id.is_some_and(|bound| bound != node.id) {
        return refuse(ErrorCode::TokenBound, format!("the token is for another Id than {}", node.id));
    }
    if let Some(name) = token.bound_name.as_ref().filter(|name| *name != node.name) {
        return refuse(ErrorCode::TokenBound, format!("the token is for a node named {name}"));
    }
    let use_of = (node.id, node.key_hash);
    let used_before = token.used_by.contains(&use_of);
    let bound_here = bound(state, node);
    if used_before && bound_here == Ok(true) {
        // The reply got lost: no use is spent, and time does not count.
        return Ok(Outcome::Done);
    }
    if node.now > token.expires_at {
        return refuse(ErrorCode::TokenExpired, "the token has expired: create another");
    }
    let bound_here = bound_here?;
    if !used_before && token.uses_left == 0 {
        return refuse(ErrorCode::TokenUsedUp, "the token has no uses left: create another");
    }
    let record = IdentityRecord {
        grants: token.grants.clone(),
        grants_revision: state.grants_version,
        ephemeral: token.ephemeral,
        ..node.record()
    };
    if !bound_here {
        check_room(state)?;
    }
    if !used_before && let Some(token) = state.tokens.get_mut(&token_id) {
        token.uses_left -= 1;
        token.used_by.insert(use_of);
    }
    if !bound_here {
        state.identities.insert(node.id, record);
    }
    Ok(Outcome::Done)
}

/// Binds a node on an operator's word. A repeat changes nothing.
pub(super) fn bind(state: &mut ClusterState, node: &Newcomer<'_>, grants: &Grants) -> Applying<Outcome> {
    check_text("name", node.name)?;
    if !bound(state, node)? {
        check_room(state)?;
        let (grants, grants_revision) = (grants.clone(), state.grants_version);
        state.identities.insert(node.id, IdentityRecord { grants, grants_revision, ..node.record() });
    }
    Ok(Outcome::Done)
}

/// Takes a key its power, and with it the Id that is bound to it. A repeat changes nothing.
pub(super) fn revoke(
    state: &mut ClusterState,
    id: NodeId,
    key_hash: Option<KeyHash>,
    reason: &str,
    now: UnixMs,
) -> Applying<Outcome> {
    let identity = state.identities.get(&id);
    let Some(key_hash) = key_hash.or(identity.map(|identity| identity.key_hash)) else {
        return refuse(ErrorCode::NotFound, format!("{id} is not enrolled"));
    };
    let name = identity.map_or("", |identity| &identity.name).to_owned();
    add_revocation(state, (id, key_hash), name, reason, now)?;
    if let Some(identity) = state.identities.get_mut(&id).filter(|identity| identity.key_hash == key_hash) {
        identity.revoked = true;
    }
    Ok(Outcome::Done)
}

fn add_revocation(
    state: &mut ClusterState,
    (id, key_hash): (NodeId, KeyHash),
    name: String,
    reason: &str,
    now: UnixMs,
) -> Applying<()> {
    if reason.len() > Revocation::REASON_MAX_BYTES {
        let message = format!("the reason is longer than {} bytes", Revocation::REASON_MAX_BYTES);
        return refuse(ErrorCode::BadRequest, message);
    }
    if state.is_revoked(&key_hash) {
        return Ok(());
    }
    if state.revocations.len() >= REVOCATIONS_MAX {
        state.revocations.retain(|_, old| old.revoked_at.plus(Revocation::NEEDED_FOR) > now);
    }
    if state.revocations.len() >= REVOCATIONS_MAX {
        let message = format!(
            "there are {REVOCATIONS_MAX} revocations already: change the CA with `p2p-server ca rotate`"
        );
        return refuse(ErrorCode::Exhausted, message);
    }
    state.revocations_version += 1;
    let (number, reason) = (state.revocations_version, reason.to_owned());
    state.revocations.insert(key_hash, Revocation { number, id, key_hash, name, reason, revoked_at: now });
    Ok(())
}

/// Frees an Id; whoever has its key can do nothing with it any more.
pub(super) fn reset(state: &mut ClusterState, id: NodeId, now: UnixMs) -> Applying<Outcome> {
    let Some(identity) = state.identities.get(&id) else {
        return refuse(ErrorCode::NotFound, format!("{id} is not enrolled"));
    };
    if state.members.contains_key(&id) {
        let message = format!("{id} is a server of this cluster: take it out with `p2p-server remove` first");
        return refuse(ErrorCode::Conflict, message);
    }
    let (key_hash, name) = (identity.key_hash, identity.name.clone());
    add_revocation(state, (id, key_hash), name, "identity reset", now)?;
    state.identities.remove(&id);
    Ok(Outcome::Done)
}

/// Changes what an identity may do.
pub(super) fn change_grants(state: &mut ClusterState, id: NodeId, grants: &Grants) -> Applying<Outcome> {
    let Some(identity) = state.identities.get_mut(&id) else {
        return refuse(ErrorCode::NotFound, format!("{id} is not enrolled"));
    };
    if identity.grants != *grants {
        identity.grants = grants.clone();
        state.grants_version += 1;
        identity.grants_revision = state.grants_version;
    }
    Ok(Outcome::Done)
}

/// Ephemeral identities were seen.
pub(super) fn see(state: &mut ClusterState, ids: &[NodeId], now: UnixMs) -> Outcome {
    for id in ids {
        if let Some(identity) = state.identities.get_mut(id).filter(|identity| identity.ephemeral) {
            // Any change says that somebody saw it, also by a clock that is behind.
            identity.seen_at = UnixMs(now.0.max(identity.seen_at.0 + 1));
        }
    }
    Outcome::Done
}

/// Forgets ephemeral identities that nobody saw since.
pub(super) fn forget(state: &mut ClusterState, ids: &[(NodeId, UnixMs)]) -> Outcome {
    for (id, seen_at) in ids {
        let gone = |identity: &&IdentityRecord| identity.ephemeral && identity.seen_at == *seen_at;
        if state.identities.get(id).filter(gone).is_some() {
            state.identities.remove(id);
        }
    }
    Outcome::Done
}

#[cfg(test)]
mod tests;
