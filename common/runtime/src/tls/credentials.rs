//! [`Credentials`]: what this node shows and trusts in handshakes, replaceable while it runs.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use p2p_common::{ClusterId, KeyHash, NodeId};
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::verify::ChainVerifier;
use super::{ALPN_LINK, ALPN_NODE, ALPN_PUBLIC, ALPN_TUNNEL, provider};
use crate::identity::{Enrolment, NodeIdentity, TrustBundle};

/// The TLS side of a [`NodeIdentity`]. One per process, shared.
pub struct Credentials {
    node_id: NodeId,
    cluster_id: ClusterId,
    key_hash: KeyHash,
    key: Arc<dyn rustls::sign::SigningKey>,
    configs: ArcSwap<Configs>,
}

/// The rustls configurations of one certificate and trust bundle.
pub(super) struct Configs {
    pub(super) node_server: Arc<ServerConfig>,
    pub(super) public_server: Arc<ServerConfig>,
    pub(super) tunnel_server: Arc<ServerConfig>,
    pub(super) link_server: Arc<ServerConfig>,
    pub(super) node_client: Arc<ClientConfig>,
    pub(super) tunnel_client: Arc<ClientConfig>,
    pub(super) link_client: Arc<ClientConfig>,
}

impl Credentials {
    /// Takes the key, certificate and trust of an enrolled node.
    ///
    /// # Errors
    /// When rustls cannot use them.
    pub fn new(identity: &NodeIdentity, enrolment: &Enrolment) -> Result<Arc<Self>, Error> {
        let key = provider().key_provider.load_private_key(identity.key().private_der())?;
        let configs = Configs::new(&key, &enrolment.certificate, &enrolment.trust)?;
        Ok(Arc::new(Credentials {
            node_id: identity.id(),
            cluster_id: enrolment.cluster_id,
            key_hash: identity.key().key_hash(),
            key,
            configs: ArcSwap::from_pointee(configs),
        }))
    }

    /// Shows another certificate (of the same key) and trusts another bundle from the next handshake on;
    /// established connections go on.
    ///
    /// # Errors
    /// When rustls cannot use them; nothing has changed then.
    pub fn replace(&self, certificate: &CertificateDer<'static>, trust: &TrustBundle) -> Result<(), Error> {
        self.configs.store(Arc::new(Configs::new(&self.key, certificate, trust)?));
        Ok(())
    }

    /// Whose they are.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Of which cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The pin of our own key.
    pub fn key_hash(&self) -> KeyHash {
        self.key_hash
    }

    pub(super) fn configs(&self) -> Arc<Configs> {
        self.configs.load_full()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} of {})", self.node_id, self.cluster_id)
    }
}

impl Configs {
    fn new(
        key: &Arc<dyn rustls::sign::SigningKey>,
        certificate: &CertificateDer<'static>,
        trust: &TrustBundle,
    ) -> Result<Self, Error> {
        let certified = |chain: Vec<CertificateDer<'static>>| -> Result<_, Error> {
            let certified = CertifiedKey::new(chain, Arc::clone(key));
            certified.keys_match()?;
            Ok(Arc::new(SingleCertAndKey::from(certified)))
        };
        let leaf = certified(vec![certificate.clone()])?;
        // A node that enrols knows the CA by its fingerprint alone and must be shown it.
        let with_ca = certified([std::slice::from_ref(certificate), trust.certificates()].concat())?;

        let roots = trust.roots()?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        let server = |alpn: &[u8]| -> Result<_, Error> {
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(Arc::clone(&clients) as _)
                .with_cert_resolver(Arc::clone(&leaf) as _);
            config.alpn_protocols = vec![alpn.to_vec()];
            // Tunnels seal and open their records themselves.
            config.enable_secret_extraction = alpn == ALPN_TUNNEL;
            Ok(Arc::new(without_resumption(config)))
        };
        let client = |alpn: &[u8]| -> Result<_, Error> {
            let config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(ChainVerifier::trusting(roots.clone()))
                .with_client_cert_resolver(Arc::clone(&leaf) as _);
            let mut config = nameless(config, alpn);
            config.enable_secret_extraction = alpn == ALPN_TUNNEL;
            Ok(Arc::new(config))
        };
        let mut public = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(with_ca);
        public.alpn_protocols = vec![ALPN_PUBLIC.to_vec()];
        Ok(Configs {
            node_server: server(ALPN_NODE)?,
            public_server: Arc::new(without_resumption(public)),
            tunnel_server: server(ALPN_TUNNEL)?,
            link_server: server(ALPN_LINK)?,
            node_client: client(ALPN_NODE)?,
            tunnel_client: client(ALPN_TUNNEL)?,
            link_client: client(ALPN_LINK)?,
        })
    }
}

/// A resumed session is not verified again; connections here are long-lived or used again, so that full
/// handshakes cost little.
fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

/// A client that verifies by Id: it names no host, not even in the ClientHello, and resumes nothing.
pub(super) fn nameless(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}
