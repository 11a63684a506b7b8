//! [`TunnelError`]: why a tunnel, or the forward on it, came to its end.

use std::io;

use p2p_common::ErrorCode;
use p2p_common::wire::HelloError;
use p2p_common::wire::tunnel::{FrameError, ProxyId};

/// Why a tunnel, or the forward on it, came to its end. All but [`TunnelError::Refused`] end the tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// The connection below broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other side closed the connection inside a forward.
    #[error("the other side closed the connection in the middle of a forward")]
    Closed,
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that may not come here.
    #[error("the other side broke the protocol: {0}")]
    Unexpected(&'static str),
    /// The hellos do not fit.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The other side refuses our hello.
    #[error("the other side refuses this tunnel ({code}): {text}")]
    Turned {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        text: String,
    },
    /// Hellos take one round trip.
    #[error("no hello came in time")]
    HelloTimedOut,
    /// An answer to another forward.
    #[error("the answer is to forward {found}, not to {expected}")]
    OtherForward {
        /// What was asked.
        expected: ProxyId,
        /// What was answered.
        found: ProxyId,
    },
    /// The owner will not carry the forward; the tunnel can be used again.
    #[error("{text}")]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        text: String,
    },
}

impl TunnelError {
    /// The stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            TunnelError::Io(_) | TunnelError::Closed | TunnelError::HelloTimedOut => ErrorCode::OwnerOffline,
            TunnelError::Frame(_) | TunnelError::Unexpected(_) | TunnelError::OtherForward { .. } => {
                ErrorCode::Internal
            }
            TunnelError::Hello(error) => error.code(),
            TunnelError::Turned { code, .. } | TunnelError::Refused { code, .. } => *code,
        }
    }
}
