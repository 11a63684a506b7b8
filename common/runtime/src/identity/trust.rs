//! What a node trusts: the [`TrustBundle`] of CA certificates, and their [`CaFingerprint`]s.

use std::fmt;

use p2p_common::UnixMs;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use super::certificate::certificate_pem;

/// SHA-256 over a CA certificate in DER: what a token names the CA by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        CaFingerprint(Sha256::digest(certificate_der).into())
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BadTrust {
    /// Not one or two certificates.
    #[error("a trust bundle holds 1 or 2 CA certificates, this one {found}")]
    Count {
        /// How many there were.
        found: usize,
    },
    /// One of them is none.
    #[error("a CA certificate of the trust bundle cannot be read: {0}")]
    Certificate(#[source] rustls::Error),
    /// The text is no PEM.
    #[error("the trust bundle is not PEM: {0}")]
    Pem(#[source] rustls_pki_types::pem::Error),
}

/// A CA certificate for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaDescription {
    /// Its fingerprint.
    pub fingerprint: CaFingerprint,
    /// Whose it is, as it says; without control characters and cut to 256.
    pub subject: String,
    /// Its end.
    pub not_after: UnixMs,
}

/// One CA certificate, or two while the CA is being changed (SPEC I6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// At most this many CA certificates.
    pub const CERTIFICATES_MAX: usize = 2;

    /// Takes CA certificates in DER, as the cluster state and the wire carry them.
    ///
    /// # Errors
    /// When there are none, too many, or one is no certificate.
    pub fn from_der<I, C>(certificates: I) -> Result<Self, BadTrust>
    where
        I: IntoIterator<Item = C>,
        C: Into<Vec<u8>>,
    {
        Self::new(certificates.into_iter().map(|c| CertificateDer::from(c.into())).collect())
    }

    /// Reads a `ca.pem`.
    ///
    /// # Errors
    /// As [`TrustBundle::from_der`], and when the text is no PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadTrust> {
        let certificates =
            CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(BadTrust::Pem)?;
        Self::new(certificates)
    }

    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BadTrust> {
        if certificates.is_empty() || certificates.len() > Self::CERTIFICATES_MAX {
            return Err(BadTrust::Count { found: certificates.len() });
        }
        let bundle = TrustBundle { certificates };
        bundle.roots().map_err(BadTrust::Certificate)?;
        Ok(bundle)
    }

    /// The certificates in DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Each of them for people.
    pub fn describe(&self) -> Vec<CaDescription> {
        let describe = |der: &CertificateDer<'static>| {
            let parsed = x509_parser::parse_x509_certificate(der).ok().map(|(_, parsed)| parsed);
            let subject = parsed.as_ref().map(|parsed| parsed.subject().to_string()).unwrap_or_default();
            let seconds = parsed.as_ref().map_or(0, |parsed| parsed.validity().not_after.timestamp());
            CaDescription {
                fingerprint: CaFingerprint::of(der),
                subject: subject.chars().filter(|c| !c.is_control()).take(256).collect(),
                not_after: UnixMs(u64::try_from(seconds).unwrap_or_default().saturating_mul(1_000)),
            }
        };
        self.certificates.iter().map(describe).collect()
    }

    /// The bundle as a `ca.pem`.
    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(|c| certificate_pem(c)).collect()
    }

    /// The bundle as rustls takes it.
    pub(crate) fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.certificates {
            roots.add(certificate.clone())?;
        }
        Ok(roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::ClusterCa;
    use crate::clock::unix_now;
    use p2p_common::ClusterId;
    use uuid::Uuid;

    fn ca() -> CertificateDer<'static> {
        ClusterCa::create(ClusterId::new(Uuid::nil()), unix_now()).unwrap().certificate().clone()
    }

    #[test]
    fn holds_one_or_two_and_survives_its_pem() {
        let (a, b) = (ca(), ca());
        let two = TrustBundle::from_der([a.to_vec(), b.to_vec()]).unwrap();
        assert_eq!(TrustBundle::from_pem(two.to_pem().as_bytes()).unwrap(), two);
        assert!(matches!(TrustBundle::from_der(Vec::<Vec<u8>>::new()), Err(BadTrust::Count { found: 0 })));
        let three = [a.to_vec(), b.to_vec(), ca().to_vec()];
        assert!(matches!(TrustBundle::from_der(three), Err(BadTrust::Count { found: 3 })));
    }

    #[test]
    fn refuses_what_is_no_certificate() {
        assert!(matches!(TrustBundle::from_der([b"junk".to_vec()]), Err(BadTrust::Certificate(_))));
        assert!(matches!(TrustBundle::from_pem(b"no pem"), Err(BadTrust::Count { found: 0 })));
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(TrustBundle::from_pem(cut.as_bytes()), Err(BadTrust::Pem(_))));
    }
}
