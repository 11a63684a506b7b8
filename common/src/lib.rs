//! Domain types, the snapshot and delta algebra and wire frames that every node shares.
//!
//! Everything that crosses the wire or is replicated has its validated form here; `p2p-proto` converts
//! between these types and protobuf. Nothing here does IO, reads a clock or draws a random number.

pub mod addr;
pub mod backoff;
pub mod cluster_state;
pub mod command;
mod error;
pub mod grants;
mod id;
pub mod link;
pub mod member;
pub mod push;
pub mod revision;
pub mod service;
pub mod setting;
pub mod shared;
mod units;
pub mod wire;

pub use error::ErrorCode;
pub use id::{BadId, ClusterId, Epoch, Incarnation, KeyHash, NodeId, NodeKind, RecoveryId, RequestId};
pub use units::{Now, UnixMs};
