//! [`ServerTls`]: reads the ClientHello, chooses the face, finishes the handshake and says who came.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::credentials::{Credentials, ShownCertificate};
use super::tunnel::{self, TunnelStream};
use super::verify::Side;
use super::{ALPN_LINK, ALPN_NODE, ALPN_PUBLIC, ALPN_TUNNEL, CLIENT_HELLO_TIMEOUT, Face, HANDSHAKE_TIMEOUT};
use crate::identity::{BadCertificate, PeerIdentity};

/// Why a connection was not accepted. The other side's doing, and the end of that connection alone.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It was too slow.
    #[error("the client did not send its ClientHello within {} s or finish the TLS handshake within {} s",
        CLIENT_HELLO_TIMEOUT.as_secs(), HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// No ClientHello came.
    #[error("the client does not speak TLS, or hung up: {0}")]
    NotTls(#[source] io::Error),
    /// It asked for no face of this port.
    #[error("the client named no protocol this port speaks by ALPN (it named {offered})")]
    Alpn {
        /// What it offered, printable and cut to 200 characters.
        offered: String,
    },
    /// The handshake failed: mostly a certificate that is missing, expired or of another CA.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The certificate is fine but not one of a node of this cluster.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
}

impl AcceptError {
    /// The reason in one word, for metrics and log keys.
    pub const fn reason(&self) -> &'static str {
        match self {
            AcceptError::TimedOut => "timed_out",
            AcceptError::NotTls(_) => "not_tls",
            AcceptError::Alpn { .. } => "alpn",
            AcceptError::Handshake(_) => "handshake",
            AcceptError::Certificate(_) => "certificate",
        }
    }
}

/// A connection whose other side is known, as far as its face asks for it.
#[derive(Debug)]
pub struct Accepted<S> {
    /// What it was opened for, and by whom.
    pub face: Face,
    /// What was shown on a node face; none on the others.
    pub certificate: Option<ShownCertificate>,
    /// The decrypted stream.
    pub stream: TlsStream<S>,
}

/// A tunnel whose other side is known.
#[derive(Debug)]
pub struct AcceptedTunnel<S> {
    /// Who dialled.
    pub identity: PeerIdentity,
    /// The decrypted stream.
    pub stream: TunnelStream<S>,
}

/// Accepts TLS on one port. Cheap to copy.
#[derive(Debug, Clone)]
pub struct ServerTls {
    credentials: Arc<Credentials>,
    port: Port,
}

#[derive(Debug, Clone, Copy)]
enum Port {
    Api,
    Peer,
}

impl ServerTls {
    /// The API port of a Server: node faces and public faces.
    pub fn api(credentials: Arc<Credentials>) -> Self {
        ServerTls { credentials, port: Port::Api }
    }

    /// The port of a Peer: tunnels and mesh links.
    pub fn peer(credentials: Arc<Credentials>) -> Self {
        ServerTls { credentials, port: Port::Peer }
    }

    /// Accepts one connection; ends within [`HANDSHAKE_TIMEOUT`], and within [`CLIENT_HELLO_TIMEOUT`] without a
    /// ClientHello. Not cancel safe: the stream is lost.
    ///
    /// # Errors
    /// When the client is slow, speaks something else, or may not come in.
    pub async fn accept<S>(&self, io: S) -> Result<Accepted<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = self.handshake(io);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(handshake)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(AcceptError::TimedOut),
        }
    }

    /// Accepts a tunnel, of whose ClientHello at least `first` was read already, on the port of a Peer; ends
    /// within [`HANDSHAKE_TIMEOUT`]. Not cancel safe: the stream is lost.
    ///
    /// # Errors
    /// When the client is slow, asks for something else than a tunnel, or may not come in.
    pub async fn accept_tunnel<S>(&self, io: S, first: &[u8]) -> Result<AcceptedTunnel<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.credentials.configs().tunnel_server);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(tunnel::accept(io, config, first)));
        let shaken = handshake.await.map_err(|_| AcceptError::TimedOut)?.map_err(AcceptError::Handshake)?;
        // rustls refuses a client that offers others alone, but not one that offers none.
        if shaken.alpn.is_none() {
            return Err(AcceptError::Alpn { offered: printable(&[]) });
        }
        Ok(AcceptedTunnel { identity: self.identify(&shaken.chain)?, stream: shaken.stream })
    }

    async fn handshake<S>(&self, io: S) -> Result<Accepted<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io);
        let hello = tokio::time::timeout(CLIENT_HELLO_TIMEOUT, acceptor).await;
        let mut start = hello.map_err(|_| AcceptError::TimedOut)?.map_err(AcceptError::NotTls)?;
        let offered: Vec<Vec<u8>> =
            start.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let Some((alpn, config)) = self.choose(&offered) else {
            refuse_alpn(&mut start.io).await;
            return Err(AcceptError::Alpn { offered: printable(&offered) });
        };
        let stream = start.into_stream(config).await.map_err(AcceptError::Handshake)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let face = match alpn {
            ALPN_PUBLIC => Face::Public,
            ALPN_NODE => Face::Node(self.identify(chain)?),
            ALPN_LINK => Face::Link(self.identify(chain)?),
            _ => Face::Tunnel(self.identify(chain)?),
        };
        let certificate = match &face {
            Face::Node(identity) => {
                let certificate = chain.first().ok_or(BadCertificate::Unreadable)?;
                Some(self.credentials.look_at(Side::Client, identity, certificate)?)
            }
            _ => None,
        };
        Ok(Accepted { face, certificate, stream })
    }

    /// The face for what the client offers; a client that offers several is a node.
    fn choose(&self, offered: &[Vec<u8>]) -> Option<(&'static [u8], Arc<ServerConfig>)> {
        let configs = self.credentials.configs();
        let offers = |alpn: &[u8]| offered.iter().any(|offer| offer == alpn);
        match self.port {
            Port::Api if offers(ALPN_NODE) => Some((ALPN_NODE, Arc::clone(&configs.node_server))),
            Port::Api if offers(ALPN_PUBLIC) => Some((ALPN_PUBLIC, Arc::clone(&configs.public_server))),
            Port::Peer if offers(ALPN_TUNNEL) => Some((ALPN_TUNNEL, Arc::clone(&configs.tunnel_server))),
            Port::Peer if offers(ALPN_LINK) => Some((ALPN_LINK, Arc::clone(&configs.link_server))),
            _ => None,
        }
    }

    fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, BadCertificate> {
        let identity = PeerIdentity::of_certificate(chain.first().ok_or(BadCertificate::Unreadable)?)?;
        let expected = self.credentials.cluster_id();
        if identity.cluster_id != expected {
            return Err(BadCertificate::OtherCluster { found: identity.cluster_id, expected });
        }
        Ok(identity)
    }
}

/// Says no in TLS: a fatal alert `no_application_protocol` (RFC 7301, 3.2), in the clear as all is so far.
async fn refuse_alpn<S: AsyncWrite + Unpin>(io: &mut S) {
    const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 120];
    // A courtesy: the connection ends either way.
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        io.write_all(&ALERT).await?;
        io.shutdown().await
    })
    .await;
}

fn printable(offered: &[Vec<u8>]) -> String {
    if offered.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = offered.iter().map(|name| name.escape_ascii().to_string()).collect();
    names.join(", ").chars().take(200).collect()
}
