//! The first bytes of a connection: read into a buffer, looked at, and left there for whoever serves it.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_peer_core::{BadProxyHeader, ProxyHeader, SniffLimits, Sniffed, Unrecognised, sniff};
use p2p_runtime::tls::{ALPN_TUNNEL, CLIENT_HELLO_TIMEOUT};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::bound::BoundPort;
use crate::forward::splice::CopyBuffer;

/// What says who calls, or whose connection is passed on, is one or two packets.
const FIRST_BYTES_TIMEOUT: Duration = CLIENT_HELLO_TIMEOUT;

/// What a connection is.
#[derive(Debug)]
pub(super) enum Caller {
    /// Another Peer, for forwards.
    Tunnel,
    /// Another Peer, for news.
    Link,
    /// A TLS client, for the service it named.
    Tls(ServiceName),
    /// An HTTP/1 client.
    Http,
    /// An HTTP/2 client that uses no TLS.
    H2c,
    /// A SOCKS5 client.
    Socks,
    /// A client of the service this port is bound to.
    Bound(Arc<BoundPort>),
}

impl Caller {
    /// Whether this is no client.
    pub(super) const fn is_peer(&self) -> bool {
        matches!(self, Caller::Tunnel | Caller::Link)
    }

    /// The kinds, in metrics.
    pub(super) const KINDS: [&'static str; 7] = ["tunnel", "link", "tls", "http", "h2c", "socks", "bound"];

    /// Which of the kinds this is.
    pub(super) const fn kind(&self) -> usize {
        match self {
            Caller::Tunnel => 0,
            Caller::Link => 1,
            Caller::Tls(_) => 2,
            Caller::Http => 3,
            Caller::H2c => 4,
            Caller::Socks => 5,
            Caller::Bound(_) => 6,
        }
    }
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
    /// It passes on connections of others and does not say whose.
    #[error(transparent)]
    ProxyHeader(#[from] BadProxyHeader),
    /// Its address is in none of the ranges.
    #[error("clients from there are not served: clients_allow does not list them")]
    NotAllowed,
    /// All places are taken.
    #[error("all places of clients are taken")]
    Limit,
    /// Its source has too many like it.
    #[error("too many connections from there have not said who they are")]
    Crowded,
    /// Another newcomer took its place.
    #[error("it had its time to say who it is, and another one came")]
    Displaced,
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
            NoCaller::ProxyHeader(_) => "proxy_header",
            NoCaller::NotAllowed => "not_allowed",
            NoCaller::Limit => "limit",
            NoCaller::Crowded => "crowded",
            NoCaller::Displaced => "displaced",
            NoCaller::NoName => "no_name",
        }
    }
}

/// Reads into `buffer` until the PROXY header at its front is whole, and takes it out.
pub(super) async fn proxy_header(
    stream: &mut TcpStream,
    buffer: &mut CopyBuffer,
) -> Result<ProxyHeader, NoCaller> {
    let deadline = Instant::now() + FIRST_BYTES_TIMEOUT;
    loop {
        more(stream, buffer, deadline).await?;
        if let Some(header) = p2p_peer_core::proxy_header(buffer.unread())? {
            buffer.consume(header.bytes);
            return Ok(header);
        }
    }
}

/// Reads into `buffer` until it is clear who calls.
pub(super) async fn caller(stream: &mut TcpStream, buffer: &mut CopyBuffer) -> Result<Caller, NoCaller> {
    // A ClientHello that needs the whole buffer ends in `Unrecognised`, so that there is always room to read.
    let limits = SniffLimits { max_client_hello_bytes: 32 * 1024, ..SniffLimits::default() };
    let deadline = Instant::now() + FIRST_BYTES_TIMEOUT;
    loop {
        match sniff(buffer.unread(), &limits) {
            Sniffed::Incomplete => more(stream, buffer, deadline).await?,
            Sniffed::Http1 => return Ok(Caller::Http),
            Sniffed::H2c => return Ok(Caller::H2c),
            Sniffed::Socks5 => return Ok(Caller::Socks),
            Sniffed::Tls(hello) if hello.alpn().any(|alpn| alpn == ALPN_TUNNEL) => return Ok(Caller::Tunnel),
            Sniffed::Tls(hello) if hello.is_peer_link() => return Ok(Caller::Link),
            Sniffed::Tls(hello) => {
                return hello.server_name().cloned().map(Caller::Tls).ok_or(NoCaller::NoName);
            }
            Sniffed::Unknown(why) => return Err(why.into()),
        }
    }
}

/// Reads some more.
async fn more(stream: &mut TcpStream, buffer: &mut CopyBuffer, deadline: Instant) -> Result<(), NoCaller> {
    let read = tokio::time::timeout_at(deadline, stream.read(buffer.space()));
    match read.await.map_err(|_| NoCaller::Silent)? {
        Ok(0) | Err(_) => Err(NoCaller::Gone),
        Ok(count) => {
            buffer.fill(count);
            Ok(())
        }
    }
}
