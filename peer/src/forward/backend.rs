//! Connecting to a backend of this Peer.

use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::addr::HostPort;
use p2p_runtime::tcp::{self, DialError};
use tokio::net::TcpStream;

use super::splice::Plain;

/// Backends are near; one that does not answer in this time is down or behind a firewall.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a backend, resolving its name anew.
///
/// # Errors
/// When it does not take the connection.
pub(super) async fn connect(backend: &HostPort) -> Result<Plain<TcpStream>, DialError> {
    Ok(Plain::new(tcp::connect(backend, CONNECT_TIMEOUT).await?))
}

/// The stable code of a failed connection.
pub(super) fn code(error: &DialError) -> ErrorCode {
    match error {
        DialError::TimedOut { .. } => ErrorCode::BackendTimeout,
        DialError::Resolve { .. } | DialError::Failed { .. } => ErrorCode::BackendRefused,
    }
}
