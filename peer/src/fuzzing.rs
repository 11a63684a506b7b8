//! What the fuzz targets reach of this crate's insides. In no other build.

use p2p_peer_core::FromServer;
use p2p_proto::convert::ConvertError;
use p2p_proto::v1;

/// A received message of a session; `None` for kinds this version does not know.
///
/// # Errors
/// When a field is malformed or beyond its bound.
pub fn from_server(message: v1::SessionDown) -> Result<Option<FromServer>, ConvertError> {
    crate::session_task::down_from(message)
}
