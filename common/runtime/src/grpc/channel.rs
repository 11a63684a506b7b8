//! Channels to nodes.

use std::future::Ready;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use p2p_common::addr::HostPort;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::identity::PeerIdentity;
use crate::tls::{ClientTlsStream, ConnectError, Connector};

/// How a channel behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelParams {
    /// For resolving, TCP and TLS together.
    pub dial_timeout: Duration,
    /// An HTTP/2 ping goes out this often, also without calls, so that a dead path is noticed.
    pub keepalive_interval: Duration,
    /// The connection is dropped when a ping is not answered for this long.
    pub keepalive_timeout: Duration,
    /// HTTP/2 window of each stream in bytes: bounds what one slow reader holds.
    pub stream_window_bytes: u32,
    /// HTTP/2 window of the connection in bytes.
    pub connection_window_bytes: u32,
}

impl Default for ChannelParams {
    /// For sessions and calls: dial 5 s (two SYN retransmissions); a ping each 10 s and 20 s for its answer,
    /// so that silence ends a connection after 30 s (SPEC P5); 1 MiB and 2 MiB windows, enough for
    /// 100 Mbit/s at 80 ms.
    fn default() -> Self {
        ChannelParams {
            dial_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 2 << 20,
        }
    }
}

/// A channel over one connection to a checked node.
#[derive(Debug, Clone)]
pub struct Connection {
    /// For the generated clients.
    pub channel: Channel,
    /// Who answered.
    pub identity: PeerIdentity,
    /// Our address on this connection.
    pub local: SocketAddr,
    /// Theirs.
    pub remote: SocketAddr,
}

/// Dials a node, checks who it is, and starts HTTP/2.
///
/// # Errors
/// When it does not answer, or is not the one meant.
pub async fn connect(
    connector: &Connector,
    to: &HostPort,
    params: &ChannelParams,
) -> Result<Connection, ConnectError> {
    let dialed = connector.dial(to, params.dial_timeout).await?;
    let tcp = dialed.stream.get_ref().0;
    let addresses = tcp.local_addr().and_then(|local| Ok((local, tcp.peer_addr()?)));
    let (local, remote) = addresses.map_err(ConnectError::Handshake)?;

    let authority = Uri::try_from(format!("https://{to}"))
        .map_err(|_| ConnectError::HostName { host: to.to_string() })?;
    let endpoint = Endpoint::from(authority)
        .http2_keep_alive_interval(params.keepalive_interval)
        .keep_alive_timeout(params.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(params.stream_window_bytes)
        .initial_connection_window_size(params.connection_window_bytes);
    let once = Once { stream: Some(dialed.stream) };
    let channel = endpoint.connect_with_connector(once).await.map_err(ConnectError::Http2)?;
    Ok(Connection { channel, identity: dialed.identity, local, remote })
}

/// Gives tonic the connection that was made, once.
struct Once {
    stream: Option<ClientTlsStream<TcpStream>>,
}

/// The one connection of a channel is gone.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed; this channel opens no other")]
struct Closed;

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<ClientTlsStream<TcpStream>>;
    type Error = Closed;
    type Future = Ready<Result<Self::Response, Closed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.stream.take().map(TokioIo::new).ok_or(Closed))
    }
}
