//! The ports clients and other Peers come to: the one listening port, where all are told apart by their first
//! bytes, and ports bound to one service each (SPEC F5).
//!
//! ```text
//! listening port ─► PROXY header, where one is believed ─► first bytes
//!    ─┬─ ClientHello, ALPN of Peers ─► [`peer`]
//!     │                                            source allowed, else closed:
//!     ├─ ClientHello, SNI           ─► [`tls`], passed through
//!     ├─ HTTP/1                     ─► [`http`], by Host, each request; CONNECT and absolute form too
//!     ├─ HTTP/2 preface             ─► [`h2c`], by the first :authority
//!     ├─ SOCKS5                     ─► [`socks`], by the name it asks for
//!     └─ anything else, or silence  ─► closed
//! bound port ─► PROXY header, where one is believed ─► source allowed, else closed ─► [`bound`], no byte looked at
//! ```
//!
//! Every connection is a task of its own and costs nobody else anything. Bounds: connections at a time (of all
//! ports together, a part kept for Peers), newcomers at a time with a share for each source, the time and the number
//! of the first bytes, bound ports.

mod bound;
mod h2c;
mod http;
mod listener;
mod metrics;
mod peek;
mod peer;
mod socks;
mod sources;
mod tls;

pub(crate) use bound::{BINDS_MAX, BindError, BoundPort, BoundPorts, bind_addr, listen_all};
pub use bound::{BadBind, Bind};
pub(crate) use listener::{Connections, Ingress, IngressLimits};
pub(crate) use metrics::IngressMetrics;
pub use sources::{BadRange, SourceRanges};

#[cfg(test)]
mod tests;
