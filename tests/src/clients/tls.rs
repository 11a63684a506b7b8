//! TLS in front of any backend, with a certificate of a CA made for it: what a Peer passes through unread.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Service;

/// Ends TLS for one name and passes what is inside to a backend.
pub struct TlsFront {
    service: Service,
    name: String,
    ca_pem: String,
    roots: RootCertStore,
}

impl TlsFront {
    /// In front of `backend` under `name`, offering the protocols `alpn`.
    ///
    /// # Errors
    /// When `name` is none, or no certificate can be made.
    pub fn start(name: &str, alpn: &[&str], backend: SocketAddr) -> anyhow::Result<Self> {
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, format!("CA of {name}"));
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = CertificateParams::new([name.to_owned()])?.signed_by(&key, &Issuer::new(ca, ca_key))?;

        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let mut config = config.with_single_cert(vec![leaf.der().clone()], key)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let service = Service::each(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // Whoever breaks off sees it on its own side.
                let _ = pass(acceptor, stream, backend).await;
            }
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca_certificate.der().clone())?;
        Ok(TlsFront { service, name: name.into(), ca_pem: ca_certificate.pem(), roots })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.service.addr()
    }

    /// The certificate clients verify it by.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A client's connection to its name at `addr`, verified.
    ///
    /// # Errors
    /// When nobody answers there, or somebody else.
    pub async fn connect(&self, addr: SocketAddr, alpn: &str) -> anyhow::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone());
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(self.name.clone()).context("no name for TLS")?;
        let stream = TcpStream::connect(addr).await?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }
}

impl fmt::Debug for TlsFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFront").field("name", &self.name).finish_non_exhaustive()
    }
}

async fn pass(acceptor: TlsAcceptor, client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    let mut client = acceptor.accept(client).await?;
    let mut backend = TcpStream::connect(backend).await?;
    backend.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, 64 * 1024, 64 * 1024).await?;
    Ok(())
}
