//! Tunnels to and from other Peers: one TLS connection each, carrying one forward at a time (SPEC F7).
//!
//! [`frames`] speaks the tunnel's language over any byte stream, [`direct`] dials one over TCP and TLS, and
//! [`pool`] keeps those that are between two forwards, so that most forwards wait for no handshake; [`open`] closes those
//! of a key that is revoked. Mostly who dials
//! is the ingress and who accepts is the owner, `forward::owner`. Of two Peers with a mesh link the one that dialled
//! the link dials the tunnels of both directions: those it serves itself it dials when it is asked, and says OFFER.
//!
//! A tunnel is used again only when both directions of its forward have ended in order. After any error it is
//! closed: what its next byte would mean is not known.

mod direct;
mod error;
mod frames;
mod metrics;
mod open;
mod pool;

pub(crate) use direct::{DialBudgets, DirectDialer, DirectTunnel};
pub(crate) use error::TunnelError;
pub(crate) use frames::{LinkCounters, Tunnel};
pub(crate) use metrics::TunnelMetrics;
pub(crate) use open::{OpenTunnels, PeerStream};
pub(crate) use pool::{AcceptedTunnel, Lease, Pool, PoolError, PoolLimits};
