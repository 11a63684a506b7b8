//! Tunnels to and from other Peers: one TLS connection each, carrying one forward at a time (SPEC F7).
//!
//! [`frames`] speaks the tunnel's language over any byte stream, [`direct`] dials one over TCP and TLS, and
//! [`pool`] keeps those that are between two forwards, so that most forwards wait for no handshake. Who dials
//! is the ingress, who accepts is the owner; the accepting side is `forward::owner`.
//!
//! A tunnel is used again only when both directions of its forward have ended in order. After any error it is
//! closed: what its next byte would mean is not known.

mod direct;
mod error;
mod frames;
mod pool;

pub(crate) use direct::{DirectDialer, DirectTunnel};
pub(crate) use error::TunnelError;
pub(crate) use frames::{LinkCounters, Tunnel};
pub(crate) use pool::{Lease, Pool, PoolError, PoolLimits};
