//! Forwards: one client connection carried to one service, named by a proxy_id (SPEC F7).
//!
//! [`Forwarder`] opens the way to a service for the ingress ([`open`], [`ask`]) and carries connections that need no
//! framing ([`carry`]), [`owner`] answers the FORWARDs of other Peers and dials only backends this Peer
//! registered itself, [`splice`] copies the bytes. How a connection ends is in [`ending`].
//!
//! Each forward, here or for others, takes a slot of [`Forwards`]; when none is free it is refused at once. What
//! it carried and how it ended is told by [`account`].

mod account;
mod ask;
mod backend;
pub(crate) mod carry;
pub(crate) mod ending;
mod metrics;
mod names;
pub(crate) mod open;
pub(crate) mod owner;
mod recent;
mod silent;
pub(crate) mod splice;

pub use account::AccessLog;
pub(crate) use account::{End, Forward, Forwards};
pub(crate) use carry::RawCall;
pub(crate) use metrics::ForwardMetrics;
pub(crate) use names::new_proxy_id;
pub(crate) use open::{Forwarder, Opened};
pub(crate) use recent::Recents;
pub(crate) use silent::SilentOwners;

/// How a client asked for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1, by Host.
    Http,
    /// HTTP/2 without TLS, by the first :authority.
    H2c,
    /// TLS, by SNI.
    Tls,
    /// HTTP CONNECT.
    Connect,
    /// SOCKS5.
    Socks,
    /// A port bound to the service.
    Bound,
}

impl Protocol {
    const ALL: [Protocol; 6] =
        [Protocol::Http, Protocol::H2c, Protocol::Tls, Protocol::Connect, Protocol::Socks, Protocol::Bound];

    /// The name in metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::H2c => "h2c",
            Protocol::Tls => "tls",
            Protocol::Connect => "connect",
            Protocol::Socks => "socks",
            Protocol::Bound => "bound",
        }
    }
}
