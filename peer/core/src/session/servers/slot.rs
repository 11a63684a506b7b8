//! One slot: where a Server is dialled and how far that is.

use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::backoff::Backoff;
use p2p_common::{KeyHash, NodeId, Now};

use super::{Session, SessionToken};

/// The wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait: a Server that comes back is found within it.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Introducer(HostPort),
    Member(NodeId),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) addresses: Vec<HostPort>,
    pub(super) key_hash: Option<KeyHash>,
    /// A configured address that led here; dialled after those of table C.
    pub(super) introduced_at: Option<HostPort>,
    pub(super) phase: Phase,
    pub(super) backoff: Backoff,
    pub(super) reason: String,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting { until: Now },
    Dialling { token: SessionToken, until: Now },
    Live { token: SessionToken, session: Session, address: String },
}

impl Key {
    pub(super) fn member(&self) -> Option<NodeId> {
        match self {
            Key::Member(id) => Some(*id),
            Key::Introducer(_) => None,
        }
    }
}

impl Slot {
    pub(super) fn new(addresses: Vec<HostPort>, key_hash: Option<KeyHash>, now: Now) -> Self {
        Slot {
            addresses,
            key_hash,
            introduced_at: None,
            phase: Phase::Waiting { until: now },
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            reason: "not dialled yet".into(),
        }
    }

    pub(super) fn dialled(&self) -> Vec<HostPort> {
        let mut addresses = self.addresses.clone();
        addresses.extend(self.introduced_at.iter().filter(|addr| !self.addresses.contains(addr)).cloned());
        addresses
    }

    pub(super) fn token(&self) -> Option<SessionToken> {
        match &self.phase {
            Phase::Dialling { token, .. } | Phase::Live { token, .. } => Some(*token),
            Phase::Waiting { .. } => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(&self.phase, Phase::Live { session, .. } if session.incarnation().is_some())
    }
}
