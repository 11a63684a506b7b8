//! [`Connector`]: dials a node and makes sure that it is the one meant.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::{ClusterId, ErrorCode, KeyHash, NodeId, NodeKind};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials::{Credentials, nameless};
use super::tunnel::{self, TunnelStream};
use super::verify::{DatelessVerifier, FingerprintVerifier, OtherCa, Side};
use super::{ALPN_PUBLIC, provider};
use crate::identity::{BadCertificate, PeerIdentity, Token, TrustBundle};
use crate::tcp::{self, DialError};

/// Why there is no connection to the node meant.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The other side was too slow.
    #[error("the TLS handshake did not finish within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The handshake failed: mostly a certificate that is expired or of another CA, ours or theirs.
    #[error("the TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// What answers shows a certificate of a CA that is not trusted here.
    #[error(
        "what answers there is of another cluster or mesh: its certificate is not signed by the CA this node trusts"
    )]
    Untrusted,
    /// What answers is not of the cluster a token is for.
    #[error(
        "what answers there is not of the cluster the token is for: its CA is another. If the address is right, the cluster \
         has changed its CA since the token was made, and trusts the old one no more: create a new token"
    )]
    OtherCa,
    /// What answers does not speak our protocol.
    #[error("what answers there does not speak {alpn} (ALPN)")]
    Alpn {
        /// What was asked for.
        alpn: String,
    },
    /// It is no node of our cluster.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    /// Another node answers there.
    #[error("{found} answers there, not {expected}")]
    OtherNode {
        /// Who was meant.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// A node of the other kind answers there.
    #[error("{found} answers there, which is no {expected}")]
    OtherKind {
        /// What was meant.
        expected: NodeKind,
        /// Who answered.
        found: NodeId,
    },
    /// The right Id with another key.
    #[error("{id} answers there with key {found}, but is bound to key {expected}")]
    OtherKey {
        /// Who was meant.
        id: NodeId,
        /// The key the Id is bound to.
        expected: KeyHash,
        /// The key it showed.
        found: KeyHash,
    },
    /// The host cannot be verified by its name.
    #[error("'{host}' is not a name a certificate can be verified by")]
    HostName {
        /// Which name.
        host: String,
    },
    /// The connection was not made into a gRPC channel.
    #[error("HTTP/2 could not be started: {0}")]
    Http2(#[source] tonic::transport::Error),
}

impl ConnectError {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            ConnectError::Dial(_) | ConnectError::TimedOut(_) | ConnectError::Http2(_) => {
                ErrorCode::Unavailable
            }
            ConnectError::Untrusted
            | ConnectError::OtherCa
            | ConnectError::Certificate(BadCertificate::OtherCluster { .. }) => ErrorCode::WrongCluster,
            ConnectError::OtherNode { .. } | ConnectError::OtherKind { .. } => ErrorCode::WrongRecipient,
            ConnectError::OtherKey { .. } => ErrorCode::IdTaken,
            ConnectError::Alpn { .. } => ErrorCode::VersionMismatch,
            ConnectError::HostName { .. } => ErrorCode::BadRequest,
            ConnectError::Handshake(_) | ConnectError::Certificate(_) => ErrorCode::Unauthenticated,
        }
    }

    /// Whether nobody listens there: its process is gone, though its host lives.
    pub fn is_refused(&self) -> bool {
        matches!(self, ConnectError::Dial(e) if e.is_refused())
    }
}

/// Whom a connection is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// This node, and when given with this key.
    Node {
        /// Its Id.
        id: NodeId,
        /// The key its Id is bound to; `None` takes any key the CA signed for the Id.
        key_hash: Option<KeyHash>,
    },
    /// Any node of a kind: an introducer that is known by address alone.
    Kind(NodeKind),
}

/// A connection whose other side was checked.
#[derive(Debug)]
pub struct Dialed<S> {
    /// Who answered.
    pub identity: PeerIdentity,
    /// The encrypted stream.
    pub stream: TlsStream<S>,
}

/// A tunnel whose other side was checked.
#[derive(Debug)]
pub struct DialedTunnel<S> {
    /// Who answered.
    pub identity: PeerIdentity,
    /// The encrypted stream.
    pub stream: TunnelStream<S>,
}

/// Opens TLS connections of one purpose. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Connector {
    expect: Expect,
    purpose: Purpose,
}

#[derive(Debug, Clone)]
enum Purpose {
    Node(Arc<Credentials>),
    Tunnel(Arc<Credentials>),
    Link(Arc<Credentials>),
    Enrol { config: Arc<ClientConfig>, cluster_id: ClusterId },
    Public { config: Arc<ClientConfig> },
}

impl Connector {
    /// To the node face of a Server's API port.
    pub fn node(credentials: Arc<Credentials>, expect: Expect) -> Self {
        Connector { expect, purpose: Purpose::Node(credentials) }
    }

    /// To the tunnel port of a Peer.
    pub fn tunnel(credentials: Arc<Credentials>, expect: Expect) -> Self {
        Connector { expect, purpose: Purpose::Tunnel(credentials) }
    }

    /// To whatever Peer listens at an address somebody wrote down: which one it is, its certificate says.
    pub fn link(credentials: Arc<Credentials>) -> Self {
        Connector { expect: Expect::Kind(NodeKind::Peer), purpose: Purpose::Link(credentials) }
    }

    /// To the public face of any Server of the token's cluster, known by the CA fingerprint in the token. For
    /// nodes that enrol, and for operators and readers without a `ca.pem`.
    ///
    /// # Errors
    /// Never with the cryptography this is built with.
    pub fn enrol(token: &Token) -> Result<Self, rustls::Error> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(FingerprintVerifier::new(token.ca_fingerprint()))
            .with_no_client_auth();
        let config = Arc::new(nameless(config, ALPN_PUBLIC));
        let purpose = Purpose::Enrol { config, cluster_id: token.cluster_id() };
        Ok(Connector { expect: Expect::Kind(NodeKind::Server), purpose })
    }

    /// To the public face of a Server, verified by host name against a `ca.pem` like any TLS client does.
    ///
    /// # Errors
    /// When rustls cannot use the bundle.
    pub fn public(trust: &TrustBundle) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(trust.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_PUBLIC.to_vec()];
        let purpose = Purpose::Public { config: Arc::new(config) };
        Ok(Connector { expect: Expect::Kind(NodeKind::Server), purpose })
    }

    /// As [`Connector::public`], whatever the dates say: for whoever reads the `ca.pem` beside the Server that is meant, and
    /// wants to know what is wrong with its clock.
    ///
    /// # Errors
    /// When rustls cannot use the bundle.
    pub fn local(trust: &TrustBundle) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(DatelessVerifier::new(trust.roots()?)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_PUBLIC.to_vec()];
        let purpose = Purpose::Public { config: Arc::new(config) };
        Ok(Connector { expect: Expect::Kind(NodeKind::Server), purpose })
    }

    /// Dials `to` and shakes hands, all within `timeout`.
    ///
    /// # Errors
    /// When nothing answers in time, or not the node meant.
    pub async fn dial(&self, to: &HostPort, timeout: Duration) -> Result<Dialed<TcpStream>, ConnectError> {
        let start = tokio::time::Instant::now();
        let stream = tcp::connect(to, timeout).await?;
        let left = timeout.saturating_sub(start.elapsed());
        self.connect(to, stream, left).await
    }

    /// Shakes hands over a stream to `to` that exists, within `timeout`. Not cancel safe: the stream is lost.
    ///
    /// # Errors
    /// When it takes too long, or another node than the one meant is at the other end.
    pub async fn connect<S>(
        &self,
        to: &HostPort,
        stream: S,
        timeout: Duration,
    ) -> Result<Dialed<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config();
        let alpn = config.alpn_protocols[0].clone();
        let handshake = TlsConnector::from(config).connect(self.server_name(to)?, stream);
        let stream = self.finish(timeout, handshake).await?;
        let connection = stream.get_ref().1;
        let chain = connection.peer_certificates().unwrap_or_default();
        let identity = self.identify(chain, connection.alpn_protocol(), &alpn)?;
        Ok(Dialed { identity, stream })
    }

    /// Like [`Connector::connect`], for a connector to a tunnel port.
    ///
    /// # Errors
    /// When it takes too long, or another node than the one meant is at the other end.
    pub async fn connect_tunnel<S>(
        &self,
        to: &HostPort,
        stream: S,
        timeout: Duration,
    ) -> Result<DialedTunnel<S>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config();
        let alpn = config.alpn_protocols[0].clone();
        let handshake = tunnel::connect(stream, config, self.server_name(to)?);
        let shaken = self.finish(timeout, handshake).await?;
        let identity = self.identify(&shaken.chain, shaken.alpn.as_deref(), &alpn)?;
        Ok(DialedTunnel { identity, stream: shaken.stream })
    }

    async fn finish<T>(
        &self,
        timeout: Duration,
        handshake: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ConnectError> {
        match tokio::time::timeout(timeout, Box::pin(handshake)).await {
            Ok(outcome) => outcome.map_err(|e| handshake_error(e, matches!(self.purpose, Purpose::Link(_)))),
            Err(_) => Err(ConnectError::TimedOut(timeout)),
        }
    }

    /// Who answered, if it is the one meant.
    fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        agreed: Option<&[u8]>,
        alpn: &[u8],
    ) -> Result<PeerIdentity, ConnectError> {
        if agreed != Some(alpn) {
            return Err(ConnectError::Alpn { alpn: alpn.escape_ascii().to_string() });
        }
        let certificate = chain.first().ok_or(BadCertificate::Unreadable)?;
        let identity = PeerIdentity::of_certificate(certificate)?;
        self.check(&identity)?;
        if let Purpose::Node(credentials) = &self.purpose {
            credentials.look_at(Side::Server, &identity, certificate)?;
        }
        Ok(identity)
    }

    fn config(&self) -> Arc<ClientConfig> {
        match &self.purpose {
            Purpose::Node(credentials) => Arc::clone(&credentials.configs().node_client),
            Purpose::Tunnel(credentials) => Arc::clone(&credentials.configs().tunnel_client),
            Purpose::Link(credentials) => Arc::clone(&credentials.configs().link_client),
            Purpose::Enrol { config, .. } | Purpose::Public { config } => Arc::clone(config),
        }
    }

    fn server_name(&self, to: &HostPort) -> Result<ServerName<'static>, ConnectError> {
        let host = match &self.purpose {
            Purpose::Public { .. } => to.host(),
            // Neither sent nor verified; rustls asks for one (RFC 2606 keeps this one free).
            _ => "node.invalid",
        };
        ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::HostName { host: host.to_owned() })
    }

    fn check(&self, found: &PeerIdentity) -> Result<(), ConnectError> {
        let cluster_id = match &self.purpose {
            Purpose::Node(credentials) | Purpose::Tunnel(credentials) | Purpose::Link(credentials) => {
                Some(credentials.cluster_id())
            }
            Purpose::Enrol { cluster_id, .. } => Some(*cluster_id),
            Purpose::Public { .. } => None, // Its trust bundle is all that a client without a node has.
        };
        if let Some(expected) = cluster_id.filter(|expected| *expected != found.cluster_id) {
            return Err(BadCertificate::OtherCluster { found: found.cluster_id, expected }.into());
        }
        match self.expect {
            Expect::Kind(expected) if found.kind() != expected => {
                Err(ConnectError::OtherKind { expected, found: found.node_id })
            }
            Expect::Node { id, .. } if found.node_id != id => {
                Err(ConnectError::OtherNode { expected: id, found: found.node_id })
            }
            Expect::Node { id, key_hash: Some(expected) } if found.key_hash != expected => {
                Err(ConnectError::OtherKey { id, expected, found: found.key_hash })
            }
            _ => Ok(()),
        }
    }
}

fn handshake_error(error: io::Error, is_link: bool) -> ConnectError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
            if other.0.is::<OtherCa>() =>
        {
            ConnectError::OtherCa
        }
        // The one face where an address alone is known, so that a stranger there is an everyday mistake.
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) if is_link => {
            ConnectError::Untrusted
        }
        _ => ConnectError::Handshake(error),
    }
}
