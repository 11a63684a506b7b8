//! Replicated commands: what a Server proposes to raft and every Server applies in the same order.
//!
//! Applying is deterministic: whatever needs a clock or a random source (time, ids, secrets) is put in by
//! the proposer. The rules are in `p2p-server-raft`'s state machine; here are only the shapes.

use std::time::Duration;

use crate::addr::HostPort;
use crate::error::ErrorCode;
use crate::grants::Grants;
use crate::id::{KeyHash, NodeId, RequestId};
use crate::member::RaftId;
use crate::setting::SettingName;
use crate::shared::SharedSet;
use crate::units::UnixMs;

/// Names a token without giving it away: the public half of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(pub u64);

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TokenRole {
    /// Enrolment of Servers.
    Server,
    /// Enrolment of Peers.
    Peer,
    /// The operator face.
    Operator,
    /// The reader face: look-ups only.
    Reader,
}

impl TokenRole {
    /// The role as it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            TokenRole::Server => "server",
            TokenRole::Peer => "peer",
            TokenRole::Operator => "operator",
            TokenRole::Reader => "reader",
        }
    }
}

impl std::str::FromStr for TokenRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "server" => Ok(TokenRole::Server),
            "peer" => Ok(TokenRole::Peer),
            "operator" => Ok(TokenRole::Operator),
            "reader" => Ok(TokenRole::Reader),
            _ => Err(format!("'{text}' is not a role: expected server, peer, operator or reader")),
        }
    }
}

/// A token as it is stored: hashed, bounded in time and use (SPEC I3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its public half.
    pub id: TokenId,
    /// What it opens.
    pub role: TokenRole,
    /// SHA-256 of its secret half.
    pub secret_hash: [u8; 32],
    /// When it was created, by its proposer's clock.
    pub created_at: UnixMs,
    /// After this it opens nothing, and the creation of another token forgets it.
    pub expires_at: UnixMs,
    /// How many enrolments are left; operator and reader tokens are not counted down.
    pub uses_left: u32,
    /// Only this Id may enrol with it.
    pub bound_id: Option<NodeId>,
    /// Only a node that calls itself so may enrol with it.
    pub bound_name: Option<String>,
    /// What those who enrol with it may do.
    pub grants: Grants,
    /// Those who enrol with it are forgotten some time after they were last seen (SPEC I2).
    pub ephemeral: bool,
    /// Who enrolled with it, so that a repeated enrolment costs nothing.
    pub used_by: SharedSet<(NodeId, KeyHash)>,
}

/// An Id and the key it is bound to (SPEC I2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRecord {
    /// The Id.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// The only key that may speak for it.
    pub key_hash: KeyHash,
    /// When it was bound.
    pub enrolled_at: UnixMs,
    /// What it may do.
    pub grants: Grants,
    /// The number of its last change, counted over all identities.
    pub grants_revision: u64,
    /// Forgotten [`EPHEMERAL_FOR`] after it was last seen.
    pub ephemeral: bool,
    /// When a Server last said that it was there, by that Server's clock; for ephemeral ones only.
    pub seen_at: UnixMs,
    /// Its key opens nothing any more, and the Id stays taken until an operator resets it.
    pub revoked: bool,
}

impl IdentityRecord {
    /// Just bound, with the grants of everybody, to stay.
    pub fn new(id: NodeId, name: String, key_hash: KeyHash, enrolled_at: UnixMs) -> Self {
        IdentityRecord {
            id,
            name,
            key_hash,
            enrolled_at,
            grants: Grants::default(),
            grants_revision: 0,
            ephemeral: false,
            seen_at: enrolled_at,
            revoked: false,
        }
    }
}

/// An ephemeral identity that no Server has seen for so long is forgotten (SPEC I2).
pub const EPHEMERAL_FOR: Duration = Duration::from_secs(3_600);
/// At most this many identities in one command.
pub const IDENTITIES_PER_COMMAND_MAX: usize = 1_000;

/// A key that opens nothing any more, wherever it is shown (SPEC I7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Counts revocations; who knows all up to one asks for those after it.
    pub number: u64,
    /// Whose key it was.
    pub id: NodeId,
    /// The key.
    pub key_hash: KeyHash,
    /// What people called it.
    pub name: String,
    /// Why, for people; at most [`Revocation::REASON_MAX_BYTES`].
    pub reason: String,
    /// When, by its proposer's clock.
    pub revoked_at: UnixMs,
}

impl Revocation {
    /// The longest reason.
    pub const REASON_MAX_BYTES: usize = 256;
    /// The longest time for which a certificate of a revoked key can still be shown somewhere: one issued to a file,
    /// and a month.
    pub const NEEDED_FOR: Duration = Duration::from_secs(400 * 86_400);
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandBody {
    /// Stores a new token; an old one with the same id is refused.
    CreateToken(TokenRecord),
    /// Forgets a token.
    RevokeToken(TokenId),
    /// Spends one use of a token and binds an Id to a key.
    Enrol {
        /// Which token.
        token_id: TokenId,
        /// SHA-256 of the secret the node showed.
        secret_hash: [u8; 32],
        /// Who enrols.
        id: NodeId,
        /// What people call it.
        name: String,
        /// Its key.
        key_hash: KeyHash,
        /// The proposer's wall time: decides on expiry.
        now: UnixMs,
    },
    /// Puts a Server into table C, or changes its record; the raft id is given by the state machine.
    UpsertMember {
        /// Its Id, already enrolled with `key_hash`.
        id: NodeId,
        /// What people call it.
        name: String,
        /// Where it is reached.
        addresses: Vec<HostPort>,
        /// Its room or region.
        zone: String,
        /// Its key.
        key_hash: KeyHash,
        /// It comes without the log it had, if it ever was in table C: it gets a raft id that nobody had.
        new_log: bool,
    },
    /// Takes a Server out of table C.
    RemoveMember(NodeId),
    /// Takes a key its power, wherever it is shown.
    Revoke {
        /// Whose.
        id: NodeId,
        /// Which key; `None` is the one the Id is bound to.
        key_hash: Option<KeyHash>,
        /// Why, for people.
        reason: String,
        /// The proposer's wall time.
        now: UnixMs,
    },
    /// Frees an Id from a key that is lost; the key is revoked.
    ResetIdentity {
        /// Which Id.
        id: NodeId,
        /// The proposer's wall time.
        now: UnixMs,
    },
    /// Changes what an identity may do.
    ChangeGrants {
        /// Whose.
        id: NodeId,
        /// From now on.
        grants: Grants,
    },
    /// A Server has seen these ephemeral identities; others and unknown ones are passed over.
    SeeIdentities {
        /// Which; at most [`IDENTITIES_PER_COMMAND_MAX`].
        ids: Vec<NodeId>,
        /// The proposer's wall time.
        now: UnixMs,
    },
    /// Forgets ephemeral identities, each if it was last seen when it says.
    ForgetIdentities(Vec<(NodeId, UnixMs)>),
    /// Binds an Id to a key on an operator's word, without a token.
    BindIdentity {
        /// Who.
        id: NodeId,
        /// What people call it.
        name: String,
        /// Its key.
        key_hash: KeyHash,
        /// What it may do.
        grants: Grants,
        /// The proposer's wall time.
        now: UnixMs,
    },
    /// Changes which CAs are trusted, and which of them signs.
    ChangeTrust {
        /// CA certificates in DER: one or two, of which one is trusted already.
        bundle: Vec<Vec<u8>>,
        /// The place in the bundle of the one that signs.
        signer: usize,
        /// The version the proposer saw: another one by now, and nothing is changed.
        expected: u64,
    },
    /// Changes a setting.
    ChangeSetting {
        /// Which one.
        name: SettingName,
        /// What it holds from now on; `None` is its default.
        value: Option<String>,
        /// The revision the caller saw, 0 for a default: another one by now, and nothing is changed. `None` changes
        /// it whatever it holds.
        expected: Option<u64>,
    },
}

/// A command with the id under which it applies at most once (SPEC C7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Minted by the client that asked.
    pub request_id: RequestId,
    /// What to do.
    pub body: CommandBody,
}

/// What became of a command; the same on every Server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// The Server is in table C under this raft id.
    MemberAdded {
        /// Its number inside raft.
        raft_id: RaftId,
    },
    /// The setting is changed.
    SettingChanged {
        /// The number of this change, counted over all settings.
        revision: u64,
    },
    /// Refused; nothing changed.
    Refused {
        /// Stable code of the reason.
        code: ErrorCode,
        /// What happened, for people.
        message: String,
    },
}
