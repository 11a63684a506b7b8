//! The first bytes of a connection: read into a buffer, looked at, and left there for whoever serves it.

use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_peer_core::{SniffLimits, Sniffed, Unrecognised, sniff};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::forward::splice::CopyBuffer;

/// Clients of protocols in which the server speaks first stay silent; nobody else needs this long.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is.
#[derive(Debug)]
pub(super) enum Caller {
    /// Another Peer.
    Tunnel,
    /// A TLS client, for the service it named.
    Tls(ServiceName),
    /// An HTTP/1 client.
    Http,
}

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCaller {
    /// It left before it said what it wants.
    #[error("the client left before it said what it wants")]
    Gone,
    /// It says too little for too long.
    #[error("the client did not say within {} s what it wants", FIRST_BYTES_TIMEOUT.as_secs())]
    Silent,
    /// It speaks nothing we serve.
    #[error(transparent)]
    Unrecognised(#[from] Unrecognised),
    /// HTTP/2 is not routed.
    #[error("HTTP/2 without TLS is not served: it names the service inside compressed headers")]
    H2c,
    /// TLS without a name.
    #[error("the TLS client names no service (SNI)")]
    NoName,
}

impl NoCaller {
    /// The reason in one word, for metrics.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            NoCaller::Gone => "gone",
            NoCaller::Silent => "silent",
            NoCaller::Unrecognised(_) => "unrecognised",
            NoCaller::H2c => "h2c",
            NoCaller::NoName => "no_name",
        }
    }
}

/// Reads into `buffer` until it is clear who calls.
pub(super) async fn caller(stream: &mut TcpStream, buffer: &mut CopyBuffer) -> Result<Caller, NoCaller> {
    // A ClientHello that needs the whole buffer ends in `Unrecognised`, so that there is always room to read.
    let limits = SniffLimits { max_client_hello_bytes: 32 * 1024, ..SniffLimits::default() };
    let deadline = Instant::now() + FIRST_BYTES_TIMEOUT;
    loop {
        let read = tokio::time::timeout_at(deadline, stream.read(buffer.space()));
        match read.await.map_err(|_| NoCaller::Silent)? {
            Ok(0) | Err(_) => return Err(NoCaller::Gone),
            Ok(count) => buffer.fill(count),
        }
        return match sniff(buffer.unread(), &limits) {
            Sniffed::Incomplete => continue,
            Sniffed::Http1 => Ok(Caller::Http),
            Sniffed::H2c => Err(NoCaller::H2c),
            Sniffed::Tls(hello) if hello.is_peer_link() => Ok(Caller::Tunnel),
            Sniffed::Tls(hello) => hello.server_name().cloned().map(Caller::Tls).ok_or(NoCaller::NoName),
            Sniffed::Socks5 => Err(Unrecognised::Protocol.into()),
            Sniffed::Unknown(why) => Err(why.into()),
        };
    }
}
