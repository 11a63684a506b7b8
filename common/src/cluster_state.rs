//! The replicated state of a cluster, as every Server holds it after applying the same commands.
//!
//! Table C, identities, revocations, tokens (hashed), the trust bundle and settings; nothing else (SPEC C3). Only
//! `p2p-server-raft`'s state machine changes it; everyone else reads a published snapshot.

use std::time::Duration;

use crate::command::{IdentityRecord, Outcome, Revocation, TokenId, TokenRecord};
use crate::id::{ClusterId, Epoch, KeyHash, NodeId, RecoveryId, RequestId};
use crate::member::{Member, RaftId};
use crate::setting::{Setting, SettingName, parse_duration};
use crate::shared::{SharedMap, SharedQueue};

/// At most this many identities; more enrolments are refused (SPEC I2).
pub const IDENTITIES_MAX: usize = 100_000;
/// At most this many tokens; more are refused until some expire or are revoked. Expired ones are forgotten
/// when another is created.
pub const TOKENS_MAX: usize = 10_000;
/// At most this many revocations. Beyond it those that no certificate outlives ([`Revocation::NEEDED_FOR`]) make room;
/// when there are none, more are refused.
pub const REVOCATIONS_MAX: usize = 10_000;
/// At most this many CAs are trusted: the one that signs, and another while the CA is being changed.
pub const TRUSTED_CAS_MAX: usize = 2;
/// The longest CA certificate in bytes.
pub const CA_CERTIFICATE_MAX_BYTES: usize = 4_096;
/// How many applied request ids are remembered with their outcome; a repeat older than that applies again.
pub const REQUESTS_REMEMBERED: usize = 10_000;

/// The replicated state. Every map is ordered, so that equal states print and encode equally, and shares what did
/// not change with its copies: one is made for every change that is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// Which history of it.
    pub epoch: Epoch,
    /// Which forced recovery began this history; none before the first (SPEC C11).
    pub recovery_id: Option<RecoveryId>,
    /// CA certificates in DER that nodes trust: one, or two while the CA is being changed (SPEC I6).
    pub trust_bundle: Vec<Vec<u8>>,
    /// The place in the trust bundle of the CA that signs.
    pub signer: usize,
    /// Raised by every change of the trust bundle or its signer.
    pub trust_version: u64,
    /// Table C by Id.
    pub members: SharedMap<NodeId, Member>,
    /// Raised by every change of table C and by nothing else (SPEC C3).
    pub members_version: u64,
    /// The raft id the next new Server gets.
    pub next_raft_id: RaftId,
    /// Identities by Id.
    pub identities: SharedMap<NodeId, IdentityRecord>,
    /// Keys that open nothing any more.
    pub revocations: SharedMap<KeyHash, Revocation>,
    /// The number of the last revocation.
    pub revocations_version: u64,
    /// How many changes of grants there were.
    pub grants_version: u64,
    /// Tokens by their public half.
    pub tokens: SharedMap<TokenId, TokenRecord>,
    /// The settings somebody changed; the others have their defaults.
    pub settings: SharedMap<SettingName, Setting>,
    /// How many changes of settings there were.
    pub settings_revision: u64,
    /// The last applied requests and what became of them, oldest first.
    pub applied_requests: SharedQueue<(RequestId, Outcome)>,
}

impl ClusterState {
    /// A cluster without members, identities and tokens.
    pub fn new(cluster_id: ClusterId, epoch: Epoch, trust_bundle: Vec<Vec<u8>>) -> Self {
        ClusterState {
            cluster_id,
            epoch,
            recovery_id: None,
            trust_bundle,
            signer: 0,
            trust_version: 0,
            members: SharedMap::new(),
            members_version: 0,
            next_raft_id: 1,
            identities: SharedMap::new(),
            revocations: SharedMap::new(),
            revocations_version: 0,
            grants_version: 0,
            tokens: SharedMap::new(),
            settings: SharedMap::new(),
            settings_revision: 0,
            applied_requests: SharedQueue::new(),
        }
    }

    /// The Server that has `raft_id`.
    pub fn member_by_raft_id(&self, raft_id: RaftId) -> Option<&Member> {
        self.members.values().find(|m| m.raft_id == raft_id)
    }

    /// What a setting holds, changed or not.
    pub fn setting(&self, name: SettingName) -> &str {
        self.settings.get(&name).map_or(name.default_value(), |setting| &setting.value)
    }

    /// Whether `key_hash` was revoked, whosever it was.
    pub fn is_revoked(&self, key_hash: &KeyHash) -> bool {
        self.revocations.contains_key(key_hash)
    }

    /// For how long a certificate of a Peer holds (SPEC I5).
    pub fn peer_certificate_lifetime(&self) -> Duration {
        self.duration(SettingName::PeerCertificateLifetime)
    }

    /// For how long a certificate of a Server holds (SPEC I5).
    pub fn server_certificate_lifetime(&self) -> Duration {
        self.duration(SettingName::ServerCertificateLifetime)
    }

    /// For how long an expired certificate may still be renewed with its key (SPEC I5).
    pub fn certificate_renewal_grace(&self) -> Duration {
        self.duration(SettingName::CertificateRenewalGrace)
    }

    /// For how long a voter may be unreachable before a learner takes its place (SPEC C4).
    pub fn voter_replace_after(&self) -> Duration {
        self.duration(SettingName::VoterReplaceAfter)
    }

    /// A setting that is a duration. A snapshot of a newer version may hold what this one cannot read: then its
    /// default.
    fn duration(&self, name: SettingName) -> Duration {
        let set = parse_duration(self.setting(name)).or_else(|| parse_duration(name.default_value()));
        set.expect("defaults are sound, which a test says")
    }
}
