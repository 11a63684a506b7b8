//! [`Credentials`]: what this node shows and trusts in handshakes, replaceable while it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use p2p_common::{ClusterId, KeyHash, NodeId};
use rustls::client::{Resumption, verify_server_name};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use slog::{Logger, warn};

use super::verify::{Chains, NodeVerifier, Pins, PinsInUse, Side, Unpinned};
use super::{ALPN_LINK, ALPN_NODE, ALPN_PUBLIC, ALPN_TUNNEL, provider};
use crate::clock::ClusterClock;
use crate::identity::{
    BadCertificate, CaFingerprint, CertificateDates, Enrolment, NodeIdentity, PeerIdentity, TrustBundle,
};

/// A node that goes on showing a bad certificate is worth one record in this time.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(86_400);
/// Of so many nodes it is remembered that they were warned of; beyond that they are forgotten and warned of again.
const WARNED_MAX: usize = 4_096;

/// The TLS side of a [`NodeIdentity`]. One per process, shared.
pub struct Credentials {
    node_id: NodeId,
    cluster_id: ClusterId,
    key_hash: KeyHash,
    key: Arc<dyn rustls::sign::SigningKey>,
    configs: ArcSwap<Configs>,
    pins: Arc<PinsInUse>,
    clock: ClusterClock,
    log: OnceLock<Logger>,
    warned: Mutex<BTreeMap<NodeId, Instant>>,
    /// What the configurations are made of, besides the key; held while they are made anew.
    sources: Mutex<Sources>,
}

/// What is shown and trusted.
#[derive(Clone)]
struct Sources {
    certificate: CertificateDer<'static>,
    trust: TrustBundle,
    /// Certificates by which one CA vouches for another; shown on the public face.
    vouching: Vec<CertificateDer<'static>>,
}

/// What is known of a certificate that was shown on a node face, besides whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownCertificate {
    /// When it holds, as it says.
    pub dates: CertificateDates,
    /// It is signed by a CA that is trusted here. One that is not came through by its pinned key alone, and nothing
    /// else it says can be believed.
    pub chained: bool,
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
    certificate: CertificateDer<'static>,
    issuer: Option<CaFingerprint>,
    chains: Arc<Chains>,
}

impl Credentials {
    /// Takes the key, certificate and trust of an enrolled node.
    ///
    /// # Errors
    /// When rustls cannot use them.
    pub fn new(identity: &NodeIdentity, enrolment: &Enrolment) -> Result<Arc<Self>, Error> {
        let key = provider().key_provider.load_private_key(identity.key().private_der())?;
        let (pins, clock) = (Arc::new(PinsInUse::none()), ClusterClock::default());
        let (certificate, trust) = (enrolment.certificate.clone(), enrolment.trust.clone());
        let sources = Sources { certificate, trust, vouching: Vec::new() };
        let configs = Configs::new(&key, &sources, &pins, &clock)?;
        Ok(Arc::new(Credentials {
            node_id: identity.id(),
            cluster_id: enrolment.cluster_id,
            key_hash: identity.key().key_hash(),
            key,
            configs: ArcSwap::from_pointee(configs),
            pins,
            clock,
            log: OnceLock::new(),
            warned: Mutex::default(),
            sources: Mutex::new(sources),
        }))
    }

    /// From the next handshake on, `pins` say which nodes are known by their keys; before the first time, none is.
    pub fn set_pins(&self, pins: impl Pins) {
        self.pins.set(pins);
    }

    /// Where nodes are reported that come by their pinned keys in spite of their certificates. Only the first time
    /// counts; without one nothing is reported.
    pub fn set_log(&self, log: Logger) {
        let _ = self.log.set(log);
    }

    /// What dates are judged by.
    pub fn clock(&self) -> &ClusterClock {
        &self.clock
    }

    /// When our own certificate holds.
    pub fn dates(&self) -> CertificateDates {
        CertificateDates::of(&self.configs().certificate).expect("rustls has taken it")
    }

    /// Whether clients that know this node by `host`, a name or an address, can verify it by its certificate.
    pub fn is_named(&self, host: &str) -> bool {
        let configs = self.configs();
        let certificate = ParsedCertificate::try_from(&configs.certificate).expect("rustls has taken it");
        ServerName::try_from(host).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    }

    /// Shows another certificate (of the same key) and trusts another bundle from the next handshake on;
    /// established connections go on.
    ///
    /// # Errors
    /// When rustls cannot use them; nothing has changed then.
    pub fn replace(&self, certificate: &CertificateDer<'static>, trust: &TrustBundle) -> Result<(), Error> {
        self.change(|sources| {
            (sources.certificate, sources.trust) = (certificate.clone(), trust.clone());
        })
    }

    /// Shows these on the public face, too: by them who knows one CA, as a token does, believes what another has signed.
    ///
    /// # Errors
    /// When rustls cannot use them; nothing has changed then.
    pub fn show_vouching(&self, vouching: Vec<CertificateDer<'static>>) -> Result<(), Error> {
        self.change(|sources| sources.vouching = vouching)
    }

    fn change(&self, change: impl FnOnce(&mut Sources)) -> Result<(), Error> {
        // The guarded value is replaced as a whole.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = sources.clone();
        change(&mut changed);
        let configs = Configs::new(&self.key, &changed, &self.pins, &self.clock)?;
        *sources = changed;
        self.configs.store(Arc::new(configs));
        Ok(())
    }

    /// How many CAs are trusted.
    pub fn trusts(&self) -> usize {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).trust.certificates().len()
    }

    /// The trusted CA that has signed our own certificate; none when that one is trusted no more.
    pub fn issuer(&self) -> Option<CaFingerprint> {
        self.configs().issuer
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

    /// Looks at what `identity` showed as `side` in a handshake that let it through, and reports what is wrong with it.
    pub(super) fn look_at(
        &self,
        side: Side,
        identity: &PeerIdentity,
        certificate: &CertificateDer<'_>,
    ) -> Result<ShownCertificate, BadCertificate> {
        let dates = CertificateDates::of(certificate)?;
        let chained = self.configs().chains.verify_whenever(side, certificate).is_ok();
        let now = self.clock.now();
        let fault = match dates.expired_for(now) {
            _ if !chained => Some("it is not signed by a CA that is trusted here".to_owned()),
            Some(over) => Some(format!("it expired {} s ago", over.as_secs())),
            None if dates.is_not_yet_valid(now) => Some("it is not valid yet: is a clock wrong?".to_owned()),
            None => None,
        };
        if let Some(fault) = fault
            && self.is_news(identity.node_id)
            && let Some(log) = self.log.get()
        {
            warn!(log, "node is known by its key, but its certificate is bad"; "node_id" => identity.node_id,
                "reason" => fault);
        }
        Ok(ShownCertificate { dates, chained })
    }

    /// Whether nobody was warned of this node in the last day.
    fn is_news(&self, id: NodeId) -> bool {
        // A map of times cannot be left half changed.
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.get(&id).is_some_and(|at| at.elapsed() < WARN_AGAIN_AFTER) {
            return false;
        }
        if warned.len() >= WARNED_MAX {
            warned.clear();
        }
        warned.insert(id, Instant::now());
        true
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
        sources: &Sources,
        pins: &Arc<PinsInUse>,
        clock: &ClusterClock,
    ) -> Result<Self, Error> {
        let Sources { certificate, trust, vouching } = sources;
        let certified = |chain: Vec<CertificateDer<'static>>| -> Result<_, Error> {
            let certified = CertifiedKey::new(chain, Arc::clone(key));
            certified.keys_match()?;
            Ok(Arc::new(SingleCertAndKey::from(certified)))
        };
        let leaf = certified(vec![certificate.clone()])?;
        // A node that enrols knows the CA by its fingerprint alone and must be shown it.
        let with_ca =
            certified([std::slice::from_ref(certificate), trust.certificates(), vouching].concat())?;

        let issuer = issuer(certificate, trust)?;
        let chains = Chains::new(trust.roots()?)?;
        let time: Arc<dyn TimeProvider> = Arc::new(clock.clone());
        let verifier = |unpinned| {
            Arc::new(NodeVerifier { chains: Arc::clone(&chains), pins: Arc::clone(pins), unpinned })
        };
        let server = |alpn: &[u8], unpinned| -> Result<_, Error> {
            let mut config = ServerConfig::builder_with_details(provider(), Arc::clone(&time))
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(verifier(unpinned) as _)
                .with_cert_resolver(Arc::clone(&leaf) as _);
            config.alpn_protocols = vec![alpn.to_vec()];
            // Tunnels seal and open their records themselves.
            config.enable_secret_extraction = alpn == ALPN_TUNNEL;
            Ok(Arc::new(without_resumption(config)))
        };
        let client = |alpn: &[u8]| -> Result<_, Error> {
            let config = ClientConfig::builder_with_details(provider(), Arc::clone(&time))
                .with_protocol_versions(&[&TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(verifier(Unpinned::Strict) as _)
                .with_client_cert_resolver(Arc::clone(&leaf) as _);
            let mut config = nameless(config, alpn);
            config.enable_secret_extraction = alpn == ALPN_TUNNEL;
            Ok(Arc::new(config))
        };
        let mut public = ServerConfig::builder_with_details(provider(), Arc::clone(&time))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(with_ca);
        public.alpn_protocols = vec![ALPN_PUBLIC.to_vec()];
        Ok(Configs {
            node_server: server(ALPN_NODE, Unpinned::Whenever)?,
            public_server: Arc::new(without_resumption(public)),
            tunnel_server: server(ALPN_TUNNEL, Unpinned::Strict)?,
            link_server: server(ALPN_LINK, Unpinned::Strict)?,
            node_client: client(ALPN_NODE)?,
            tunnel_client: client(ALPN_TUNNEL)?,
            link_client: client(ALPN_LINK)?,
            certificate: certificate.clone(),
            issuer,
            chains,
        })
    }
}

fn issuer(
    certificate: &CertificateDer<'static>,
    trust: &TrustBundle,
) -> Result<Option<CaFingerprint>, Error> {
    for ca in trust.certificates() {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        if Chains::new(roots)?.verify_whenever(Side::Server, certificate).is_ok() {
            return Ok(Some(CaFingerprint::of(ca)));
        }
    }
    Ok(None)
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
