//! A node of the server cluster: raft, tables, introductions, gRPC.

mod admission;
mod api;
mod audit;
pub mod ca;
pub mod cli;
mod cluster_clock;
pub mod config;
mod ephemeral_task;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod group;
mod http;
mod hub_task;
mod master_task;
mod metrics;
pub mod raft;
pub mod recovery;
mod renewal;
mod revocation;
mod server;
mod standing;
pub mod store;
pub mod transport;

pub use server::run;
