//! The agent beside a workload, and a library: services, links, forwarding by name.
//!
//! [`Peer`] is the whole; [`config`] says what it can be told; [`cli`] is the command line around it.

mod agent_task;
pub mod cli;
pub mod config;
mod enrol;
#[cfg(test)]
mod fixture;
mod forward;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod health;
mod ingress;
mod local_api;
mod mesh_task;
mod metrics;
mod peer;
mod published;
mod renewal;
mod revoked;
mod servers;
mod session_task;
mod trust;
mod tunnel;

pub use forward::AccessLog;
pub use ingress::{BadBind, BadRange, Bind, SourceRanges};
pub use peer::Peer;
