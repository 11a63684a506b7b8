//! The one listening port: tunnels of other Peers and clients of services, told apart by their first bytes
//! (SPEC F5).
//!
//! ```text
//! accept ─► source allowed? ─► first bytes ─┬─ ClientHello, ALPN p2p-tunnel/1 ─► handshake ─► forward::owner
//!              (else tunnels only)          ├─ ClientHello, SNI              ─► [`tls`], passed through
//!                                           ├─ HTTP/1                        ─► [`http`], by Host
//!                                           └─ anything else, or silence     ─► closed
//! ```
//!
//! Every connection is a task of its own and costs nobody else anything. Bounds: connections at a time,
//! handshakes at a time, the time and the number of the first bytes.

mod http;
mod listener;
mod peek;
mod tls;

pub use listener::{BadRange, SourceRanges};
pub(crate) use listener::{Ingress, IngressLimits, IngressMetrics};

#[cfg(test)]
mod tests;
