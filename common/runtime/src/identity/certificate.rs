//! Node certificates: how an Id is written into one, and how [`PeerIdentity`] is read back.
//!
//! The Id stands in a subject alternative name of the kind URI, `p2p://<cluster id>/<node id>`; nothing else
//! in a certificate says who a node is.

use p2p_common::{BadId, ClusterId, KeyHash, NodeId, NodeKind, UnixMs};
use uuid::Uuid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::key_hash_of_spki;
use crate::ca::BACKDATED;

const SCHEME: &str = "p2p://";

/// Who a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The node.
    pub node_id: NodeId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Its public key.
    pub key_hash: KeyHash,
}

/// Why a certificate is not one of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Not X.509.
    #[error("not an X.509 certificate")]
    Unreadable,
    /// Nothing in it names a node.
    #[error("the certificate names no node: it has no subject alternative name p2p://CLUSTER/ID")]
    NoId,
    /// More than one name of a node.
    #[error("the certificate names more than one node")]
    SeveralIds,
    /// A name of another form.
    #[error("the certificate names a node in another form than p2p://CLUSTER/ID: {0}")]
    Form(#[from] BadId),
    /// A node of another cluster.
    #[error("the certificate is of cluster {found}, this node is in cluster {expected}")]
    OtherCluster {
        /// Whose it is.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
}

impl PeerIdentity {
    /// Whether it is a Server or a Peer.
    pub fn kind(&self) -> NodeKind {
        self.node_id.kind()
    }

    /// Reads whom a certificate (DER) is for. Verifies nothing.
    ///
    /// # Errors
    /// When it does not name exactly one node.
    pub fn of_certificate(der: &[u8]) -> Result<Self, BadCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| BadCertificate::Unreadable)?;
        let names = certificate.subject_alternative_name().map_err(|_| BadCertificate::Unreadable)?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        });
        let uri = uris.next().ok_or(BadCertificate::NoId)?;
        if uris.next().is_some() {
            return Err(BadCertificate::SeveralIds);
        }
        let form = || BadCertificate::Form(BadId { text: uri.chars().take(64).collect() });
        let (cluster, node) = uri.split_once('/').ok_or_else(form)?;
        let cluster_uuid = Uuid::try_parse(cluster).map_err(|_| form())?;
        Ok(PeerIdentity {
            node_id: node.parse()?,
            cluster_id: ClusterId::new(cluster_uuid),
            key_hash: key_hash_of_spki(certificate.public_key().raw),
        })
    }
}

/// From when to when a certificate says that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateDates {
    /// From then on; 1970 for an earlier one.
    pub not_before: UnixMs,
    /// Until then.
    pub not_after: UnixMs,
}

impl CertificateDates {
    /// Reads the dates of a certificate (DER). Verifies nothing.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(der: &[u8]) -> Result<Self, BadCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| BadCertificate::Unreadable)?;
        let validity = certificate.validity();
        let unix = |secs: i64| UnixMs(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000));
        Ok(CertificateDates {
            not_before: unix(validity.not_before.timestamp()),
            not_after: unix(validity.not_after.timestamp()),
        })
    }

    /// How long it has been over at `now`; none while it is not.
    pub fn expired_for(&self, now: UnixMs) -> Option<std::time::Duration> {
        let over_ms = now.0.checked_sub(self.not_after.0).filter(|over_ms| *over_ms > 0)?;
        Some(std::time::Duration::from_millis(over_ms))
    }

    /// When it is to be renewed: at half of its life, give or take a tenth of it. `spread`, from 0 to 1, says where in
    /// that, so that nodes enrolled together do not come together.
    pub fn renewal_due(&self, spread: f64) -> UnixMs {
        let signed = self.not_before.plus(BACKDATED).min(self.not_after);
        let life = std::time::Duration::from_millis(self.not_after.0 - signed.0);
        let spread = if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) };
        signed.plus(life.mul_f64(0.4 + 0.2 * spread))
    }

    /// Whether it has not begun at `now`.
    pub fn is_not_yet_valid(&self, now: UnixMs) -> bool {
        now < self.not_before
    }
}

/// The name of a node as its certificate carries it.
pub(crate) fn node_uri(cluster_id: ClusterId, node_id: NodeId) -> String {
    format!("{SCHEME}{cluster_id}/{node_id}")
}

/// A certificate in PEM (RFC 7468).
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData, SanType};

    const CLUSTER: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    const NODE: &str = "C6ba7b810-9dad-11d1-80b4-00c04fd430c9";

    fn read(uris: &[&str]) -> Result<PeerIdentity, BadCertificate> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let certificate = params.self_signed(&key).unwrap();
        let identity = PeerIdentity::of_certificate(certificate.der())?;
        assert_eq!(identity.key_hash, key_hash_of_spki(&key.subject_public_key_info()));
        Ok(identity)
    }

    #[test]
    fn reads_the_one_name_of_a_node() {
        let identity = read(&["https://elsewhere.example", &format!("p2p://{CLUSTER}/{NODE}")]).unwrap();
        assert_eq!(identity.node_id.to_string(), NODE);
        assert_eq!(identity.cluster_id.to_string(), CLUSTER);
        assert_eq!(identity.kind(), NodeKind::Peer);
    }

    #[test]
    fn refuses_every_other_certificate() {
        let name = format!("p2p://{CLUSTER}/{NODE}");
        assert_eq!(read(&[]), Err(BadCertificate::NoId));
        assert_eq!(read(&["spiffe://a/b"]), Err(BadCertificate::NoId));
        assert_eq!(read(&[&name, &name]), Err(BadCertificate::SeveralIds));
        for form in ["p2p://", "p2p://x", &format!("p2p://{CLUSTER}"), &format!("p2p://{CLUSTER}/x")] {
            assert!(matches!(read(&[form]), Err(BadCertificate::Form(_))), "{form}");
        }
        assert_eq!(PeerIdentity::of_certificate(b"junk"), Err(BadCertificate::Unreadable));
    }

    #[test]
    fn dates_are_read() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(1_000).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(2_000).unwrap();
        let dates = CertificateDates::of(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!((dates.not_before, dates.not_after), (UnixMs(1_000_000), UnixMs(2_000_000)));
        assert!(dates.is_not_yet_valid(UnixMs(999_999)) && !dates.is_not_yet_valid(UnixMs(1_000_000)));
        assert_eq!(dates.expired_for(UnixMs(2_000_000)), None);
        assert_eq!(dates.expired_for(UnixMs(2_060_000)), Some(std::time::Duration::from_secs(60)));
        assert!(CertificateDates::of(b"junk").is_err());
    }

    #[test]
    fn renewal_is_due_at_half_of_the_life_after_the_signature() {
        let signed_ms = 1_000_000_000;
        let dates = |life_ms: u64| CertificateDates {
            not_before: UnixMs(signed_ms - 3_600_000),
            not_after: UnixMs(signed_ms + life_ms),
        };
        for (spread, due) in [(0.0, 4_000), (0.5, 5_000), (1.0, 6_000), (f64::NAN, 4_000), (9.0, 6_000)] {
            let due_ms = dates(10_000).renewal_due(spread).0 - signed_ms;
            assert!(due_ms.abs_diff(due) <= 1 || spread.is_nan(), "{spread}: {due_ms}");
        }
        // Whatever somebody else has written into one.
        let odd = CertificateDates { not_before: UnixMs(u64::MAX), not_after: UnixMs(0) };
        assert_eq!(odd.renewal_due(0.5), UnixMs(0));
    }

    #[test]
    fn every_prefix_of_a_certificate_is_an_error() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        for end in 0..certificate.der().len() {
            assert!(PeerIdentity::of_certificate(&certificate.der()[..end]).is_err());
        }
    }
}
