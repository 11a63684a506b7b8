//! A node of the server cluster: raft, tables, introductions, gRPC.

pub mod cli;
pub mod config;
pub mod raft;
pub mod store;
pub mod transport;
