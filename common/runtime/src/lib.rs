//! What both binaries need from their process: logging, configuration, identity, TLS, gRPC plumbing, health.
//!
//! Each room stands for itself and is reached by its name (`tls::ServerTls`, `shutdown::Shutdown`). Nothing
//! here decides for a cluster: who may do what is the cores' and the binaries' business.

pub mod admin;
pub mod ca;
pub mod clock;
pub mod columns;
pub mod config;
pub mod exit;
pub mod grpc;
pub mod identity;
pub mod interfaces;
pub mod launch;
pub mod logger;
pub mod mesh_key;
pub mod settings;
pub mod shutdown;
pub mod tcp;
pub mod tls;
