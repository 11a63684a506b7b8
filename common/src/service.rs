//! Services by name: [`ServiceName`], what a Peer offers ([`ServiceOffer`]) and who may see it; and how people
//! write a service down ([`LocalService`]).

mod local;

pub use local::{BadService, HealthCheck, LocalService};

use std::fmt;
use std::str::FromStr;

use crate::addr::HostPort;
use crate::id::NodeId;

/// A service's name: what a client puts into Host or SNI, lower-case, without port or final dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(String);

/// Why a text is not a service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a service name: 1 to 253 letters, digits, '.', '-' and '_', like a host name")]
pub struct BadServiceName {
    /// The refused text, cut to 300 characters.
    pub text: String,
}

impl ServiceName {
    /// The longest name in bytes (as a DNS name, RFC 1035).
    pub const MAX_BYTES: usize = 253;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = BadServiceName;

    fn from_str(text: &str) -> Result<Self, BadServiceName> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let fits = !name.is_empty()
            && name.len() <= Self::MAX_BYTES
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !name.starts_with('.')
            && !name.ends_with('.')
            && !name.contains("..");
        if !fits {
            return Err(BadServiceName { text: text.chars().take(300).collect() });
        }
        Ok(ServiceName(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Who may learn of a service (SPEC F3). It hides; it does not forbid (SPEC I8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Peers joined by a mesh link; Servers do not learn of it.
    Linked,
    /// All Peers of the server cluster, and those joined by a mesh link.
    Cluster,
    /// Nobody but the owner.
    Private,
    /// The named Peers; at most [`Visibility::IDS_MAX`].
    Ids(Vec<NodeId>),
}

impl Visibility {
    /// At most this many Ids in a list.
    pub const IDS_MAX: usize = 256;
}

/// Whether a service can be used now, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum ServiceState {
    /// It can.
    #[default]
    Up,
    /// Its backend fails its check, or its owner is not reached by whoever passes the offer on.
    Down,
    /// It takes no new forwards; those that are open go on.
    Draining,
}

impl ServiceState {
    /// The name in tables and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            ServiceState::Up => "up",
            ServiceState::Down => "down",
            ServiceState::Draining => "draining",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A service as its owner offers it to others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// The owner's backend, for people to read; nobody but the owner dials it (SPEC F10).
    pub backend: HostPort,
    /// Who may learn of it.
    pub visibility: Visibility,
    /// Whether it can be used now.
    pub state: ServiceState,
}

impl ServiceOffer {
    /// About how many bytes it takes on a wire or in memory.
    pub fn estimated_bytes(&self) -> usize {
        let ids = match &self.visibility {
            Visibility::Ids(ids) => ids.len() * NodeId::TEXT_BYTES,
            Visibility::Linked | Visibility::Cluster | Visibility::Private => 0,
        };
        OFFER_BYTES + self.name.as_str().len() + self.backend.host().len() + ids
    }
}

/// What an offer takes besides its texts: tags, lengths, port, visibility, state.
const OFFER_BYTES: usize = 24;

/// At most this many services per Peer; a report with more is refused.
pub const SERVICES_PER_PEER_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ignore_case_and_final_dot() {
        let name: ServiceName = "Web.Example.".parse().unwrap();
        assert_eq!(name.as_str(), "web.example");
        for bad in ["", ".", "..", "a b", "a/b", "a:80", ".a", "a..b", "a..", &"x".repeat(254)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }
}
