//! gRPC over our TLS: [`connect`] makes a channel to a node that was checked, [`Acceptor`] turns a listener into
//! the incoming stream a tonic server takes.
//!
//! A channel is one connection. When it breaks, its calls fail and whoever owns it connects again: a channel
//! that redials by itself would hide what happened, and to whom it now speaks.
//!
//! Services find a [`CallerInfo`] in the extensions of every request.

mod channel;
mod incoming;
mod nodes;
mod stream;

pub use channel::{ChannelParams, Connection, connect};
pub use incoming::{Acceptor, ListenLimits, ListenMetrics};
pub use nodes::NodeConnections;
pub use stream::{CallerInfo, GrpcStream};
