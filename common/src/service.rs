//! Services by name: [`ServiceName`], what a Peer offers ([`ServiceOffer`]) and who may see it.

use std::fmt;
use std::str::FromStr;

use crate::addr::{BadAddr, HostPort};
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
    /// All Peers of the server cluster.
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

/// A service as its owner offers it to others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// The owner's backend, for people to read; nobody but the owner dials it (SPEC F10).
    pub backend: HostPort,
    /// Who may learn of it.
    pub visibility: Visibility,
}

/// At most this many services per Peer; a report with more is refused.
pub const SERVICES_PER_PEER_MAX: usize = 1_024;

/// A service of this node and where it really runs: `NAME=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalService {
    /// Its name.
    pub name: ServiceName,
    /// Where the owner forwards to.
    pub backend: HostPort,
}

/// Why a text is not `NAME=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadService {
    /// There is no `=`.
    #[error("'{0}' is not a service: expected NAME=HOST:PORT, for example web.example=127.0.0.1:8080")]
    Form(String),
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] BadServiceName),
    /// The backend is not an address.
    #[error(transparent)]
    Backend(#[from] BadAddr),
}

impl FromStr for LocalService {
    type Err = BadService;

    fn from_str(text: &str) -> Result<Self, BadService> {
        let (name, backend) =
            text.split_once('=').ok_or_else(|| BadService::Form(text.chars().take(300).collect()))?;
        Ok(LocalService { name: name.trim().parse()?, backend: backend.trim().parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ignore_case_and_final_dot() {
        let name: ServiceName = "Web.Example.".parse().unwrap();
        assert_eq!(name.as_str(), "web.example");
        for bad in ["", ".", "..", "a b", "a/b", "a:80", ".a", "a..b", &"x".repeat(254)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn services_are_name_and_backend() {
        let svc: LocalService = "web=[::1]:80".parse().unwrap();
        assert_eq!(svc.backend.to_string(), "[::1]:80");
        assert!("web".parse::<LocalService>().is_err());
        assert!("web=80".parse::<LocalService>().is_err());
    }
}
