//! Callers of every kind at a port, and what the port lets them hear: plain bytes, and TLS with any protocol and any
//! certificate. They verify nothing, and send what they are told once the handshake is over on their side.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use p2p_common::{NodeId, UnixMs};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::identity::{NodeKey, TrustBundle};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs::default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// How long a port may take to answer or to close. It may wait for news of who calls, and a loaded machine is slow.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Nobody answers a knock with more.
const ANSWER_BYTES: usize = 256 * 1024;

/// A certificate and its key.
#[derive(Debug)]
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Shown {
    /// What the node of this data directory shows.
    ///
    /// # Errors
    /// When it has not enrolled.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let read = |file: &str| std::fs::read(data.join(file)).with_context(|| format!("reading {file}"));
        let chain = CertificateDer::pem_slice_iter(&read("cert.pem")?).collect::<Result<_, _>>()?;
        Ok(Shown { chain, key: PrivateKeyDer::from_pem_slice(&read("key.pem")?)? })
    }

    /// A certificate that somebody made for himself.
    ///
    /// # Errors
    /// When none can be made.
    pub fn self_made() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Shown { chain: vec![certificate.der().clone()], key })
    }

    /// A certificate of `ca` for `id`, signed at `now` for `lifetime`, with `key` or one made for it.
    ///
    /// # Errors
    /// When none can be made.
    pub fn signed(
        ca: &ClusterCa,
        id: NodeId,
        key: Option<&Path>,
        (now, lifetime): (UnixMs, Duration),
    ) -> anyhow::Result<Self> {
        let key = match key {
            Some(path) => NodeKey::from_pem(&std::fs::read_to_string(path)?)?,
            None => NodeKey::generate()?,
        };
        let grant = CertificateGrant { lifetime, ..CertificateGrant::new(id, now) };
        let signed = ca.sign(&key.certificate_request(id)?, &grant)?;
        let key = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes())?;
        Ok(Shown { chain: vec![signed.certificate], key })
    }
}

/// The CA of the cluster whose Server has this data directory.
///
/// # Errors
/// When it holds no CA key.
pub fn ca_of(data: &Path, cluster_id: p2p_common::ClusterId) -> anyhow::Result<ClusterCa> {
    let trust = TrustBundle::from_pem(&std::fs::read(data.join("ca.pem"))?)?;
    Ok(ClusterCa::from_parts(cluster_id, &std::fs::read_to_string(data.join("ca-key.pem"))?, &trust)?)
}

/// What a port does with a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Nobody listens there.
    NotOpen,
    /// It closed the connection, with these bytes at most: a TLS alert perhaps.
    Closed(Vec<u8>),
    /// It said this and waits for more, or said this and closed.
    Said(Vec<u8>),
}

/// Says `bytes` in the clear, from `source` if it matters, and hears what comes within the time that a port takes.
/// Hears up to `enough` bytes.
///
/// # Errors
/// When no socket can be had.
pub fn knock(addr: SocketAddr, source: Option<IpAddr>, bytes: &[u8], enough: usize) -> anyhow::Result<Heard> {
    let Some(mut stream) = dial(addr, source)? else { return Ok(Heard::NotOpen) };
    // One that closes early makes this fail.
    let _ = stream.write_all(bytes);
    Ok(hear(&mut stream, enough))
}

/// Shakes hands as a client that offers `alpn` and shows `shown`, says `bytes`, and hears up to `enough` bytes of what is
/// said inside. Whoever is not let in hears [`Heard::Closed`].
///
/// # Errors
/// When no socket can be had.
pub fn knock_tls(
    addr: SocketAddr,
    alpn: &[&str],
    shown: Option<&Shown>,
    bytes: &[u8],
    enough: usize,
) -> anyhow::Result<Heard> {
    let Some(mut stream) = dial(addr, None)? else { return Ok(Heard::NotOpen) };
    let provider = Arc::new(default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whoever(provider)));
    let mut config = match shown {
        Some(shown) => config.with_client_auth_cert(shown.chain.clone(), shown.key.clone_key())?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("nobody.invalid")?)?;
    let mut tls = rustls::Stream::new(&mut client, &mut stream);
    if tls.write_all(bytes).is_err() {
        return Ok(Heard::Closed(Vec::new()));
    }
    Ok(match hear(&mut tls, enough) {
        Heard::Said(said) if said.is_empty() => Heard::Closed(said),
        heard => heard,
    })
}

fn dial(addr: SocketAddr, source: Option<IpAddr>) -> anyhow::Result<Option<TcpStream>> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    if socket.connect_timeout(&addr.into(), ANSWER_WITHIN).is_err() {
        return Ok(None);
    }
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(Some(stream))
}

fn hear(stream: &mut impl Read, enough: usize) -> Heard {
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    while heard.len() < enough.min(ANSWER_BYTES) {
        match stream.read(&mut piece) {
            Ok(0) => return Heard::Closed(heard),
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(error) if is_silence(&error) => return Heard::Said(heard),
            Err(_) => return Heard::Closed(heard),
        }
    }
    Heard::Said(heard)
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Takes whatever a server shows.
#[derive(Debug)]
struct Whoever(Arc<CryptoProvider>);

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
