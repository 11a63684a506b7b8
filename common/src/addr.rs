//! Where nodes can be reached: [`HostPort`] as people write it, [`Candidate`] and [`NetInfo`] (the seed's
//! table D) as nodes report it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A host (DNS name or IP) and a port. A DNS name is resolved anew at each dial (SPEC C1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is not a host and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not an address: expected HOST:PORT, IPv4:PORT or [IPv6]:PORT ({reason})")]
pub struct BadAddr {
    /// The refused text, cut to 300 characters.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl HostPort {
    /// The longest DNS name (RFC 1035).
    const HOST_MAX_BYTES: usize = 253;

    /// Names `host` (a DNS name or an IP without brackets) and `port`.
    ///
    /// # Errors
    /// When the host is empty, too long, or has characters no host name has.
    pub fn new(host: &str, port: u16) -> Result<Self, BadAddr> {
        let bad = |reason| BadAddr { text: host.chars().take(300).collect(), reason };
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        if host.parse::<IpAddr>().is_err() {
            if host.len() > Self::HOST_MAX_BYTES {
                return Err(bad("the host is longer than 253 bytes"));
            }
            if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
                return Err(bad("a host has letters, digits, '.', '-' and '_' only"));
            }
        }
        Ok(HostPort { host: host.to_ascii_lowercase(), port })
    }

    /// The DNS name or IP, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address when the host is an IP.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        HostPort { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = BadAddr;

    fn from_str(text: &str) -> Result<Self, BadAddr> {
        let bad = |reason| BadAddr { text: text.chars().take(300).collect(), reason };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
        let port = port.parse::<u16>().map_err(|_| bad("the port is not a number up to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => {
                let inner = inner.strip_suffix(']').ok_or_else(|| bad("']' is missing"))?;
                inner.parse::<Ipv6Addr>().map_err(|_| bad("brackets hold an IPv6 address only"))?;
                inner
            }
            None if host.contains(':') => return Err(bad("an IPv6 address goes in brackets")),
            None => host,
        };
        HostPort::new(host, port).map_err(|e| bad(e.reason))
    }
}

/// How a candidate address came to be known (RFC 8445 terms where they exist).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// On one of the node's own interfaces.
    Host,
    /// Seen by a Server as the source of the node's session.
    Reflexive,
    /// Opened on a router by UPnP, NAT-PMP or PCP.
    Mapped,
    /// Told by an operator (`advertise`).
    Advertised,
}

impl CandidateKind {
    /// The kind in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            CandidateKind::Host => "host",
            CandidateKind::Reflexive => "reflexive",
            CandidateKind::Mapped => "mapped",
            CandidateKind::Advertised => "advertised",
        }
    }
}

/// One address a node may be reached at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    /// How it came to be known.
    pub kind: CandidateKind,
    /// Where to dial.
    pub addr: HostPort,
}

/// What a node knows of its own network (the seed's table D).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NetInfo {
    /// Listening address as bound; unspecified IPs stand for every interface.
    pub listen: Option<SocketAddr>,
    /// Addresses others may dial, best first; at most [`NetInfo::CANDIDATES_MAX`].
    pub candidates: Vec<Candidate>,
}

impl NetInfo {
    /// At most this many candidates per node (SPEC P2); more are refused.
    pub const CANDIDATES_MAX: usize = 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_every_spelling() {
        for (text, host, port) in [
            ("127.0.0.1:80", "127.0.0.1", 80),
            ("[::1]:6443", "::1", 6443),
            ("Example.COM:443", "example.com", 443),
            ("a_b-c.d:1", "a_b-c.d", 1),
        ] {
            let addr: HostPort = text.parse().unwrap();
            assert_eq!((addr.host(), addr.port()), (host, port));
            assert_eq!(addr.to_string().parse::<HostPort>().unwrap(), addr);
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in
            ["", ":80", "host", "host:", "host:65536", "::1:80", "[::1:80", "[host]:80", "a b:1", "a/b:1"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "\\PC{0,60}") {
            if let Ok(addr) = text.parse::<HostPort>() {
                prop_assert_eq!(addr.to_string().parse::<HostPort>().unwrap(), addr);
            }
        }
    }
}
