//! The cluster's certificate authority: [`ClusterCa`] signs requests of nodes into certificates.
//!
//! Its key is a file per Server ([`CaKeyFiles`]), never part of the replicated state (SPEC I6). Whether a
//! node may have a certificate is decided elsewhere; here the only checks are that the request is signed by
//! the key it asks a certificate for, and that the grant makes sense.

mod keys;
mod own;
mod secret;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use p2p_common::grants::Grants;
use p2p_common::{ClusterId, KeyHash, NodeId, NodeKind, UnixMs};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, DnsName};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use keys::{CaKeyFiles, CaKeys};
pub use own::{BadOwnCa, OwnCa};
pub use secret::{BadSecret, CaSecret};

use crate::identity::{
    BadTrust, CaFingerprint, DataDirError, GRANTS_OID, KeyError, NodeKey, PeerIdentity, TrustBundle,
    encode_grants, node_uri,
};

/// A CA outlives what it signs many times; a change of it is an operator's decision.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// Certificates of Peers: short, since a revoked Peer may be out of reach of the news (SPEC I5).
pub const PEER_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Certificates of Servers: long enough to survive a cluster that was off for weeks (SPEC I5).
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// From 1970 to the end of 9999, which says that there is no end (RFC 5280, 4.1.2.5).
pub(crate) const MESH_LIFETIME: Duration = Duration::from_secs(253_402_300_799);
/// A certificate for another CA starts this far back: longer than any certificate that one has signed has been good for.
const VOUCHED_BACK_MS: u64 = 366 * 86_400 * 1_000;
/// A certificate starts this far back, for clocks that are behind the signer's (SPEC I5).
pub(crate) const BACKDATED: Duration = Duration::from_secs(3600);

/// Why the CA cannot be used or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The CA's key.
    #[error("the CA key: {0}")]
    Key(#[from] KeyError),
    /// The secret over the CA's key.
    #[error(transparent)]
    Secret(#[from] BadSecret),
    /// The trust bundle beside the key.
    #[error("ca.pem: {0}")]
    Trust(#[from] BadTrust),
    /// The key and the certificates beside it are of different CAs.
    #[error("the CA key fits no certificate in ca.pem: restore the pair that belongs together")]
    NoCertificate,
    /// The request is damaged, or not signed by the key it asks a certificate for.
    #[error("the certificate request is refused: {0}")]
    Request(#[source] rcgen::Error),
    /// The request asks for a kind of key not every client verifies.
    #[error("the certificate request has a key that is not ECDSA P-256")]
    RequestKey,
    /// A name that cannot stand in a certificate.
    #[error("'{name}' is neither a DNS name nor an IP address, it cannot be put into a certificate")]
    BadName {
        /// Which name, cut to 253 characters.
        name: String,
    },
    /// More names than a certificate gets.
    #[error("a certificate gets at most {} names, not {found}", CertificateGrant::NAMES_MAX)]
    TooManyNames {
        /// How many were asked for.
        found: usize,
    },
    /// A Peer is not verified by name.
    #[error("a peer's certificate carries no host names: others know it by its Id alone")]
    NamesOfPeer,
    /// A time outside the calendar.
    #[error("the clock says {0} ms since 1970, which no certificate can carry: set the clock")]
    Clock(UnixMs),
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The signature.
    #[error("cannot sign: {0}")]
    Sign(#[source] rcgen::Error),
}

/// What a certificate shall say.
#[derive(Debug, Clone)]
pub struct CertificateGrant {
    /// For whom.
    pub id: NodeId,
    /// Host names and IP addresses a Server is reached at; localhost and the loopback addresses are added. Empty for Peers.
    pub names: Vec<String>,
    /// When it is signed.
    pub now: UnixMs,
    /// How long it holds from then on.
    pub lifetime: Duration,
    /// What a Peer may do; everybody's are not written into it.
    pub grants: Grants,
}

impl CertificateGrant {
    /// At most this many names.
    pub const NAMES_MAX: usize = 64;

    /// A certificate for `id`, signed `now`, without names, with the lifetime of its kind and everybody's grants.
    pub fn new(id: NodeId, now: UnixMs) -> Self {
        let lifetime = match id.kind() {
            NodeKind::Server => SERVER_LIFETIME,
            NodeKind::Peer => PEER_LIFETIME,
        };
        CertificateGrant { id, names: Vec::new(), now, lifetime, grants: Grants::default() }
    }
}

/// A certificate just signed.
#[derive(Debug, Clone)]
pub struct SignedCertificate {
    /// The certificate in DER.
    pub certificate: CertificateDer<'static>,
    /// The key it is for.
    pub key_hash: KeyHash,
    /// When it ends.
    pub not_after: UnixMs,
}

/// The CA of one cluster, with its key.
pub struct ClusterCa {
    cluster_id: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// Makes the CA of a new cluster.
    ///
    /// # Errors
    /// When the system has no randomness or `now` is outside the calendar.
    pub fn create(cluster_id: ClusterId, now: UnixMs) -> Result<Self, CaError> {
        let key = NodeKey::generate()?;
        Self::self_signed(cluster_id, key, serial()?, validity(now, CA_LIFETIME)?)
    }

    /// The CA of a mesh key: the same for everybody who has the key, but for the signature of its certificate, which
    /// nobody looks at. It has no dates to speak of: whoever has the key can write any.
    pub(crate) fn of_mesh_key(cluster_id: ClusterId, key: NodeKey) -> Result<Self, CaError> {
        let serial = SerialNumber::from_slice(&[1]);
        Self::self_signed(cluster_id, key, serial, validity(UnixMs(0), MESH_LIFETIME)?)
    }

    fn self_signed(
        cluster_id: ClusterId,
        key: NodeKey,
        serial: SerialNumber,
        (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    ) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // CAs of one cluster differ by name too: verifiers look up the issuer by it and then name the cause.
        let key_hash = key.key_hash().to_string();
        let name = format!("p2pcore CA {cluster_id} {}", &key_hash[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = key.into_pair();
        params.serial_number = Some(serial);
        // Room for the CA that follows it, which it vouches for.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (not_before, not_after);
        let certificate = params.self_signed(&key).map_err(CaError::Sign)?.der().clone();
        Ok(ClusterCa { cluster_id, certificate, issuer: Issuer::new(params, key) })
    }

    /// Takes a CA from its key (PEM) and the trust bundle that holds its certificate: how a Server gets it
    /// that joined, and how files of an own CA come in.
    ///
    /// # Errors
    /// When the key is none, or fits no certificate of the bundle.
    pub fn from_parts(cluster_id: ClusterId, key_pem: &str, trust: &TrustBundle) -> Result<Self, CaError> {
        let key = NodeKey::from_pem(key_pem)?.into_pair();
        let spki = key.subject_public_key_info();
        let ours = trust.certificates().iter().find(|certificate| {
            x509_parser::parse_x509_certificate(certificate)
                .is_ok_and(|(_, certificate)| certificate.public_key().raw == spki)
        });
        let certificate = ours.ok_or(CaError::NoCertificate)?.clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Sign)?;
        Ok(ClusterCa { cluster_id, certificate, issuer })
    }

    /// The CA that shall follow another: with the key `key_pem` when it was made before, else with a new one.
    ///
    /// # Errors
    /// When the key is none, or as [`ClusterCa::create`].
    pub fn next(cluster_id: ClusterId, key_pem: Option<&str>, now: UnixMs) -> Result<Self, CaError> {
        let key = match key_pem {
            Some(pem) => NodeKey::from_pem(pem)?,
            None => NodeKey::generate()?,
        };
        Self::self_signed(cluster_id, key, serial()?, validity(now, CA_LIFETIME)?)
    }

    /// Whether `key_pem` is the key of this CA.
    pub fn has_key(&self, key_pem: &str) -> bool {
        let ours = self.issuer.key().subject_public_key_info();
        NodeKey::from_pem(key_pem).is_ok_and(|key| key.into_pair().subject_public_key_info() == ours)
    }

    /// A certificate by which who trusts this CA trusts `other`, too: tokens made before a change of the CA go on
    /// working by it. None when `other` has a name that cannot be written again byte by byte.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn vouch_for(
        &self,
        other: &ClusterCa,
        now: UnixMs,
    ) -> Result<Option<CertificateDer<'static>>, CaError> {
        let subject = |der: &CertificateDer<'_>| {
            let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
            let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
            Some((certificate.subject().as_raw().to_vec(), name))
        };
        let Some((theirs, name)) = subject(&other.certificate) else { return Ok(None) };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        (_, params.not_after) = validity(now, CA_LIFETIME)?;
        // Good for whatever the other has signed so far.
        (params.not_before, _) = validity(UnixMs(now.0.saturating_sub(VOUCHED_BACK_MS)), CA_LIFETIME)?;
        let certificate =
            params.signed_by(other.issuer.key(), &self.issuer).map_err(CaError::Sign)?.der().clone();
        Ok(subject(&certificate).filter(|(ours, _)| *ours == theirs).map(|_| certificate))
    }

    /// The key in PEM: the cluster's greatest secret, for the file and for a Server whose join committed.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Which cluster it signs for.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The CA certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A bundle that trusts this CA alone.
    pub fn trust(&self) -> TrustBundle {
        TrustBundle::from_der([self.certificate.to_vec()]).expect("our own certificate was read or made")
    }

    /// What tokens name this CA by.
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.certificate)
    }

    /// Signs a request (PKCS#10, DER). Of the request only its key counts; everything else the certificate
    /// says is the grant's.
    ///
    /// # Errors
    /// When the request is damaged or not signed by the key it names, or the grant cannot be put into a
    /// certificate.
    pub fn sign(&self, request_der: &[u8], grant: &CertificateGrant) -> Result<SignedCertificate, CaError> {
        let request = CertificateSigningRequestDer::from(request_der);
        let request = CertificateSigningRequestParams::from_der(&request).map_err(CaError::Request)?;
        let key = request.public_key;
        if PublicKeyData::algorithm(&key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::RequestKey);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, grant.id.to_string());
        params.serial_number = Some(serial()?);
        params.subject_alt_names = self.alternative_names(grant)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Servers dial Servers and Peers accept tunnels: every node is a client here and a server there.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(grant.now, grant.lifetime)?;
        let grants = encode_grants(&grant.grants).filter(|_| grant.id.kind() == NodeKind::Peer);
        params.custom_extensions =
            grants.into_iter().map(|grants| CustomExtension::from_oid_content(GRANTS_OID, grants)).collect();
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Sign)?.der().clone();
        let key_hash =
            PeerIdentity::of_certificate(&certificate).expect("it was signed with one name").key_hash;
        Ok(SignedCertificate { certificate, key_hash, not_after: grant.now.plus(grant.lifetime) })
    }

    fn alternative_names(&self, grant: &CertificateGrant) -> Result<Vec<SanType>, CaError> {
        let uri = node_uri(self.cluster_id, grant.id);
        let mut names = vec![SanType::URI(uri.try_into().map_err(CaError::Sign)?)];
        if grant.id.kind() == NodeKind::Peer {
            return if grant.names.is_empty() { Ok(names) } else { Err(CaError::NamesOfPeer) };
        }
        if grant.names.len() > CertificateGrant::NAMES_MAX {
            return Err(CaError::TooManyNames { found: grant.names.len() });
        }
        let loopback = [Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
        let ours = [String::from("localhost")].into_iter().chain(loopback);
        for name in ours.chain(grant.names.iter().cloned()) {
            let san = alternative_name(&name)?;
            if !names.contains(&san) {
                names.push(san);
            }
        }
        Ok(names)
    }
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClusterCa({}, {})", self.cluster_id, self.fingerprint())
    }
}

fn alternative_name(name: &str) -> Result<SanType, CaError> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let bad = || CaError::BadName { name: name.chars().take(253).collect() };
    // Verifiers refuse a whole certificate for one name they cannot read.
    DnsName::try_from(name).map_err(|_| bad())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| bad())?))
}

fn validity(now: UnixMs, lifetime: Duration) -> Result<(OffsetDateTime, OffsetDateTime), CaError> {
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).map_err(|_| CaError::Clock(now))?;
        let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Clock(now))?;
        // X.509 times have four digits for the year.
        if time.year() > 9999 { Err(CaError::Clock(now)) } else { Ok(time) }
    };
    Ok((at(now.secs().saturating_sub(BACKDATED.as_secs()))?, at(now.plus(lifetime).secs())?))
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)?;
    // Positive and of full length (RFC 5280, 4.1.2.2).
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_now;
    use uuid::Uuid;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer;

    fn ca() -> ClusterCa {
        ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap()
    }

    fn server() -> NodeId {
        NodeId::new(NodeKind::Server, Uuid::from_u128(2))
    }

    fn peer() -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(3))
    }

    #[test]
    fn a_certificate_says_what_was_granted() {
        let (ca, key, now) = (ca(), NodeKey::generate().unwrap(), unix_now());
        let mut grant = CertificateGrant::new(server(), now);
        grant.names = vec!["s1.example.com".into(), "192.0.2.7".into(), "localhost".into()];
        let signed = ca.sign(&key.certificate_request(server()).unwrap(), &grant).unwrap();
        let identity = PeerIdentity::of_certificate(&signed.certificate).unwrap();
        assert_eq!(identity.node_id, server());
        assert_eq!(identity.cluster_id, ca.cluster_id());
        assert_eq!(identity.key_hash, key.key_hash());
        assert_eq!(signed.key_hash, key.key_hash());

        let (_, x509) = x509_parser::parse_x509_certificate(&signed.certificate).unwrap();
        let validity = x509.validity();
        assert_eq!(validity.not_before.timestamp() as u64, now.secs() - 3600);
        assert_eq!(validity.not_after.timestamp() as u64, now.secs() + 90 * 86_400);
        assert_eq!(x509.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 6);
        assert!(!x509.is_ca());
    }

    #[test]
    fn a_peer_carries_its_grants_and_a_server_none() {
        let (ca, key) = (ca(), NodeKey::generate().unwrap());
        let narrow = Grants { may_reach: "web*".parse().unwrap(), ..Grants::default() };
        for (id, grants, read) in [
            (peer(), narrow.clone(), narrow.clone()),
            (peer(), Grants::default(), Grants::default()),
            (server(), narrow, Grants::default()),
        ] {
            let grant = CertificateGrant { grants, ..CertificateGrant::new(id, unix_now()) };
            let signed = ca.sign(&key.certificate_request(id).unwrap(), &grant).unwrap();
            assert_eq!(crate::identity::grants_of_certificate(&signed.certificate), read);
        }
    }

    #[test]
    fn refuses_a_request_for_a_key_that_did_not_sign_it() {
        let (ca, ours, theirs) = (ca(), NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let mut request = ours.certificate_request(peer()).unwrap();
        // The same request with somebody else's public key put in the place of ours.
        let (our_key, their_key) = (ours.into_pair(), theirs.into_pair());
        let raw = our_key.public_key_raw();
        let at = request.windows(raw.len()).position(|window| window == raw).unwrap();
        request[at..at + raw.len()].copy_from_slice(their_key.public_key_raw());
        let refused = ca.sign(&request, &CertificateGrant::new(peer(), unix_now()));
        assert!(
            matches!(refused, Err(CaError::Request(rcgen::Error::InvalidCertificationRequestSignature))),
            "{refused:?}"
        );
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_of_a_request_is_refused() {
        let (ca, key) = (ca(), NodeKey::generate().unwrap());
        let request = key.certificate_request(peer()).unwrap();
        let grant = CertificateGrant::new(peer(), unix_now());
        let parsed = X509CertificationRequest::from_der(&request).unwrap().1;
        let header = 3; // The outer sequence: its tag and a length of two bytes.
        let signed_part = header + parsed.certification_request_info.raw.len();
        for end in 0..request.len() {
            assert!(ca.sign(&request[..end], &grant).is_err());
        }
        for at in 0..request.len() {
            let mut damaged = request.clone();
            damaged[at] ^= 0x55;
            // Outside the signed part there is slack (unused bits of the signature); it changes no key.
            if let Ok(signed) = ca.sign(&damaged, &grant) {
                assert!(at >= signed_part, "signed with byte {at} flipped");
                assert_eq!(signed.key_hash, key.key_hash());
            }
        }
    }

    #[test]
    fn refuses_other_kinds_of_keys() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let refused = ca().sign(request.der(), &CertificateGrant::new(peer(), unix_now()));
        assert!(matches!(refused, Err(CaError::RequestKey)));
    }

    #[test]
    fn refuses_grants_no_certificate_can_carry() {
        let (ca, key) = (ca(), NodeKey::generate().unwrap());
        let request = key.certificate_request(server()).unwrap();
        let sign = |id, names: Vec<String>, now| {
            ca.sign(&request, &CertificateGrant { names, ..CertificateGrant::new(id, now) }).unwrap_err()
        };
        for name in ["", "a b", "host:80", "*", "ä.example"] {
            let refused = sign(server(), vec![name.into()], unix_now());
            assert!(matches!(refused, CaError::BadName { .. }), "{name:?}: {refused}");
        }
        let many = (0..65).map(|n| format!("h{n}.example")).collect();
        assert!(matches!(sign(server(), many, unix_now()), CaError::TooManyNames { found: 65 }));
        assert!(matches!(sign(peer(), vec!["h".into()], unix_now()), CaError::NamesOfPeer));
        assert!(matches!(sign(peer(), vec![], UnixMs(u64::MAX)), CaError::Clock(_)));
    }

    #[test]
    fn never_shows_its_key() {
        assert!(!format!("{:?}", ca()).contains("PRIVATE"));
    }

    #[test]
    fn one_ca_vouches_for_the_next() {
        let (old, new, now) = (ca(), ca(), unix_now());
        let vouched = old.vouch_for(&new, now).unwrap().expect("our own names are plain");
        let (_, vouched) = x509_parser::parse_x509_certificate(&vouched).unwrap();
        let (_, theirs) = x509_parser::parse_x509_certificate(new.certificate()).unwrap();
        let (_, ours) = x509_parser::parse_x509_certificate(old.certificate()).unwrap();
        assert_eq!(vouched.subject().as_raw(), theirs.subject().as_raw());
        assert_eq!(vouched.issuer().as_raw(), ours.subject().as_raw());
        assert_eq!(vouched.public_key().raw, theirs.public_key().raw);
    }
}
