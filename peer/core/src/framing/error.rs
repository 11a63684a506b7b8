//! [`FramingError`]: every reason not to forward a message.

use crate::reply::Status;

/// Why a message is not forwarded, or not to its end.
///
/// In a request it is the client's fault and [`FramingError::status`] answers it; in a response it is the
/// service's and the answer is 502. Either way the connection it came on is not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The head has no end within the bound.
    #[error("the head is longer than {max_bytes} bytes")]
    HeadTooLarge {
        /// The bound.
        max_bytes: usize,
    },
    /// The head has more fields than the bound.
    #[error("the head has more than {max} fields")]
    TooManyHeaders {
        /// The bound.
        max: usize,
    },
    /// A line does not end in CR LF, or CR stands alone (RFC 9112 section 2.2).
    #[error("a carriage return or line feed stands alone: lines end in both")]
    BareLineEnd,
    /// The head is not HTTP/1.
    #[error("the head is malformed: {0}")]
    Malformed(&'static str),
    /// Another version than 1.0 and 1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// The request target has none of the four forms (RFC 9112 section 3.2), or one that its method may not
    /// have.
    #[error("the request target is malformed: {0}")]
    Target(&'static str),
    /// No Host, or an empty one.
    #[error("there is no Host: it is what says which service is meant")]
    NoHost,
    /// Several Host fields.
    #[error("there are several Host fields")]
    SeveralHosts,
    /// Host is not a host with an optional port.
    #[error("Host is malformed: {0}")]
    Host(&'static str),
    /// Host and the request target name different hosts.
    #[error("Host and the request target name different hosts")]
    HostMismatch,
    /// Not a number that fits.
    #[error("Content-Length is not a number of bytes")]
    ContentLength,
    /// Several lengths: in a request even equal ones.
    #[error("Content-Length is given several times")]
    SeveralContentLengths,
    /// Both ways to say where the body ends.
    #[error("Content-Length and Transfer-Encoding are both given")]
    LengthAndCoding,
    /// A list that is none, or `chunked` is not the last coding or comes twice.
    #[error("Transfer-Encoding does not end in one 'chunked'")]
    TransferEncoding,
    /// A request with a coding besides `chunked`.
    #[error("a transfer coding besides 'chunked' is not supported")]
    UnknownTransferEncoding,
    /// HTTP/1.0 knows no transfer codings.
    #[error("Transfer-Encoding in HTTP/1.0")]
    TransferEncodingIn10,
    /// CONNECT has no body.
    #[error("a CONNECT request with a body")]
    ConnectBody,
    /// The chunked coding is broken.
    #[error("the chunked body is malformed: {0}")]
    Chunk(&'static str),
    /// A chunk's extension is too long.
    #[error("a chunk extension is longer than {max_bytes} bytes")]
    ChunkExtensionTooLong {
        /// The bound.
        max_bytes: usize,
    },
    /// The trailer section is too long.
    #[error("the trailer section is longer than {max_bytes} bytes")]
    TrailersTooLarge {
        /// The bound.
        max_bytes: usize,
    },
    /// The connection ended inside the message.
    #[error("the connection was closed before the message ended")]
    Truncated,
    /// A 101 that no Upgrade asked for.
    #[error("the service switched protocols without having been asked to")]
    UnaskedUpgrade,
    /// Too many 1xx responses.
    #[error("more than {max} interim responses")]
    TooManyInterim {
        /// The bound.
        max: u32,
    },
}

impl FramingError {
    /// How a request that shows this is answered.
    pub const fn status(self) -> Status {
        match self {
            FramingError::HeadTooLarge { .. }
            | FramingError::TooManyHeaders { .. }
            | FramingError::TrailersTooLarge { .. } => Status::HeadTooLarge,
            FramingError::Version => Status::VersionNotSupported,
            FramingError::UnknownTransferEncoding => Status::NotImplemented,
            _ => Status::BadRequest,
        }
    }
}
