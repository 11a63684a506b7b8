//! Replicated commands: what a Server proposes to raft and every Server applies in the same order.
//!
//! Applying is deterministic: whatever needs a clock or a random source (time, ids, secrets) is put in by
//! the proposer. The rules are in `p2p-server-raft`'s state machine; here are only the shapes.

use crate::addr::HostPort;
use crate::error::ErrorCode;
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
