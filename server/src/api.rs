//! The API port.

mod peering;
mod raft;

pub use peering::PeeringApi;
pub use raft::RaftApi;
