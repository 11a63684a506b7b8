//! The cluster's certificate authority: [`ClusterCa`] signs requests of nodes into certificates.
//!
//! Its key is a file per Server (`ca-key.pem`, 0600), never part of the replicated state (SPEC I6). Whether a
//! node may have a certificate is decided elsewhere; here the only checks are that the request is signed by
//! the key it asks a certificate for, and that the grant makes sense.

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

use crate::identity::{
    BadTrust, CaFingerprint, DataDir, DataDirError, DataDirView, FileMode, GRANTS_OID, KeyError, NodeKey,
    PeerIdentity, TRUST_FILE, TrustBundle, encode_grants, node_uri,
};

/// A CA outlives what it signs many times; a change of it is an operator's decision.
const CA_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// Certificates of Peers: short, since a revoked Peer may be out of reach of the news (SPEC I5).
pub const PEER_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Certificates of Servers: long enough to survive a cluster that was off for weeks (SPEC I5).
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// From 1970 to the end of 9999, which says that there is no end (RFC 5280, 4.1.2.5).
pub(crate) const MESH_LIFETIME: Duration = Duration::from_secs(253_402_300_799);
/// A certificate starts this far back, for clocks that are behind the signer's (SPEC I5).
pub(crate) const BACKDATED: Duration = Duration::from_secs(3600);
const KEY_FILE: &str = "ca-key.pem";

/// Why the CA cannot be used or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The CA's key.
    #[error("{KEY_FILE}: {0}")]
    Key(#[from] KeyError),
    /// The trust bundle beside the key.
    #[error("ca.pem: {0}")]
    Trust(#[from] BadTrust),
    /// The key and the certificates beside it are of different CAs.
    #[error("{KEY_FILE} fits no certificate in ca.pem: restore the pair that belongs together")]
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
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
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

    /// Takes the CA of a data directory; `None` when this Server holds no CA key.
    ///
    /// # Errors
    /// When the files are damaged or do not belong together.
    pub fn load(dir: &DataDirView, cluster_id: ClusterId) -> Result<Option<Self>, CaError> {
        let Some(key) = dir.read(KEY_FILE)?.map(Zeroizing::new) else { return Ok(None) };
        let key =
            std::str::from_utf8(&key).map_err(|_| KeyError::NotAKey(rcgen::Error::CouldNotParseKeyPair))?;
        let trust = TrustBundle::from_pem(&dir.read(TRUST_FILE)?.unwrap_or_default())?;
        Self::from_parts(cluster_id, key, &trust).map(Some)
    }

    /// Keeps the key in the data directory. The certificate is kept by the enrolment of the node itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_key(&self, dir: &DataDir) -> Result<(), CaError> {
        Ok(dir.write(KEY_FILE, self.key_pem().as_bytes(), FileMode::Private)?)
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
    fn comes_back_from_its_files_and_notices_a_foreign_key() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let ca = ca();
        assert!(ClusterCa::load(dir.view(), ca.cluster_id()).unwrap().is_none());
        ca.store_key(&dir).unwrap();
        dir.write(TRUST_FILE, ca.trust().to_pem().as_bytes(), FileMode::Public).unwrap();
        let again = ClusterCa::load(dir.view(), ca.cluster_id()).unwrap().unwrap();
        assert_eq!(again.fingerprint(), ca.fingerprint());

        let request = NodeKey::generate().unwrap().certificate_request(peer()).unwrap();
        again.sign(&request, &CertificateGrant::new(peer(), unix_now())).unwrap();

        self::ca().store_key(&dir).unwrap();
        let refused = ClusterCa::load(dir.view(), ca.cluster_id());
        assert!(matches!(refused, Err(CaError::NoCertificate)));
        assert!(!format!("{again:?}").contains("PRIVATE"));
    }
}
