//! The `p2p.v1` protocol: generated messages and gRPC services, and the one door between them and the
//! domain types of `p2p-common`.
//!
//! Nothing past [`convert`] sees a generated type where a validated one exists.

pub mod convert;
pub mod status;

/// Generated from `p2p/v1/*.proto`; documented there.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("p2p.v1");

    /// The descriptors of every file, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/p2p.v1.bin"));
}
