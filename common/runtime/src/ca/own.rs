//! The files of a CA of one's own, at the founding of a cluster (SPEC I3): a certificate and its key.
//!
//! Whatever is wrong with them is said before anything is founded, with what to do about it.

use std::fs;
use std::path::{Path, PathBuf};

use p2p_common::{ClusterId, UnixMs};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry;
use zeroize::Zeroizing;

use super::secret::{BadSecret, CaSecret, unseal};
use super::{CaError, ClusterCa};
use crate::identity::{BadTrust, KeyError, NodeKey, TrustBundle};

/// As long as a certificate may be in the replicated state.
const CERTIFICATE_MAX_BYTES: usize = p2p_common::cluster_state::CA_CERTIFICATE_MAX_BYTES;

/// Why files are no CA.
#[derive(Debug, thiserror::Error)]
pub enum BadOwnCa {
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a certificate.
    #[error("{} holds no certificate in PEM (it begins with -----BEGIN CERTIFICATE-----)", .0.display())]
    NotPem(PathBuf),
    /// Several certificates.
    #[error(
        "{} holds {found} certificates: give the file of the CA that shall sign alone, without those above it",
        path.display()
    )]
    Several {
        /// Which file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// Too long for the replicated state.
    #[error("the CA certificate has {0} bytes, more than {CERTIFICATE_MAX_BYTES}")]
    TooLong(usize),
    /// Not of a CA.
    #[error(
        "the certificate is not of a CA (basic constraints without CA:TRUE): make one with `openssl req -x509 -new -key \
         ca-key.pem -subj '/CN=our CA' -days 3650 -addext basicConstraints=critical,CA:TRUE -addext \
         keyUsage=critical,keyCertSign,cRLSign -out ca.pem`"
    )]
    NotACa,
    /// May not sign.
    #[error("the CA certificate has a key usage without keyCertSign: it may not sign certificates")]
    MayNotSign,
    /// No name.
    #[error("the CA certificate has no subject: verifiers find the CA by it")]
    NoName,
    /// Its time.
    #[error("the CA certificate is not valid now: it holds from {from} to {to}")]
    Dates {
        /// Its first moment.
        from: String,
        /// Its last moment.
        to: String,
    },
    /// Another kind of key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The secret of its key.
    #[error(transparent)]
    Secret(#[from] BadSecret),
    /// They do not belong together.
    #[error("the key of {} is not the one of the certificate {}: give the pair", key.display(), certificate.display())]
    OtherKey {
        /// The key file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// What rustls says.
    #[error(transparent)]
    Trust(#[from] BadTrust),
    /// What signing says.
    #[error(transparent)]
    Ca(Box<CaError>),
}

/// A CA of one's own, read and checked.
pub struct OwnCa {
    key: Zeroizing<String>,
    trust: TrustBundle,
}

impl OwnCa {
    /// Reads the certificate and the key (PEM); one under a password is opened by `secret`.
    ///
    /// # Errors
    /// When they are no CA this cluster can have.
    pub fn read(
        certificate: &Path,
        key: &Path,
        secret: Option<&CaSecret>,
        now: UnixMs,
    ) -> Result<Self, BadOwnCa> {
        let read =
            |path: &Path| fs::read(path).map_err(|source| BadOwnCa::File { path: path.to_owned(), source });
        let pem = read(certificate)?;
        let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
        let der = match found.as_slice() {
            [] => return Err(BadOwnCa::NotPem(certificate.to_owned())),
            [one] if one.len() > CERTIFICATE_MAX_BYTES => return Err(BadOwnCa::TooLong(one.len())),
            [one] => one,
            more => return Err(BadOwnCa::Several { path: certificate.to_owned(), found: more.len() }),
        };
        let (_, parsed) =
            x509_parser::parse_x509_certificate(der).map_err(|_| BadOwnCa::NotPem(certificate.to_owned()))?;
        check(&parsed, now)?;
        let text = Zeroizing::new(read(key)?);
        let text =
            std::str::from_utf8(&text).map_err(|_| KeyError::NotAKey(rcgen::Error::CouldNotParseKeyPair))?;
        let (pem, _) = unseal(text, secret, &key.display().to_string())?;
        // Whatever form it has: PKCS#8 from here on.
        let pem = NodeKey::from_pem(&pem)?.to_pem();
        let own = OwnCa { key: pem, trust: TrustBundle::from_der([der.to_vec()])? };
        match own.ca(ClusterId::new(uuid::Uuid::nil())) {
            Ok(_) => Ok(own),
            Err(CaError::NoCertificate) => {
                Err(BadOwnCa::OtherKey { key: key.to_owned(), certificate: certificate.to_owned() })
            }
            Err(error) => Err(BadOwnCa::Ca(Box::new(error))),
        }
    }

    /// As the CA of a cluster.
    ///
    /// # Errors
    /// Never again once it was read.
    pub fn ca(&self, cluster_id: ClusterId) -> Result<ClusterCa, CaError> {
        ClusterCa::from_parts(cluster_id, &self.key, &self.trust)
    }
}

impl std::fmt::Debug for OwnCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnCa")
    }
}

fn check(certificate: &X509Certificate<'_>, now: UnixMs) -> Result<(), BadOwnCa> {
    if !certificate.is_ca() {
        return Err(BadOwnCa::NotACa);
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(BadOwnCa::MayNotSign);
    }
    if certificate.subject().iter().next().is_none() {
        return Err(BadOwnCa::NoName);
    }
    if certificate.public_key().algorithm.algorithm != oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(KeyError::Algorithm.into());
    }
    let validity = certificate.validity();
    let now = i64::try_from(now.secs()).unwrap_or(i64::MAX);
    if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
        let (from, to) = (validity.not_before.to_string(), validity.not_after.to_string());
        return Err(BadOwnCa::Dates { from, to });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_now;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    use time::OffsetDateTime;

    struct Files(tempfile::TempDir);

    impl Files {
        fn with(change: impl FnOnce(&mut CertificateParams), key: &KeyPair) -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            change(&mut params);
            let files = Files(tempfile::tempdir().unwrap());
            fs::write(files.path("ca.pem"), params.self_signed(key).unwrap().pem()).unwrap();
            fs::write(files.path("key.pem"), key.serialize_pem()).unwrap();
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn read(&self) -> Result<OwnCa, BadOwnCa> {
            OwnCa::read(&self.path("ca.pem"), &self.path("key.pem"), None, unix_now())
        }
    }

    fn p256() -> KeyPair {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
    }

    #[test]
    fn a_pair_is_taken_and_every_fault_is_named() {
        let files = Files::with(|_| {}, &p256());
        let own = files.read().unwrap();
        own.ca(ClusterId::new(uuid::Uuid::from_u128(1))).unwrap();
        assert_eq!(format!("{own:?}"), "OwnCa");

        let secret = CaSecret::new("correct horse").unwrap();
        fs::write(files.path("key.pem"), &*secret.seal(&own.key).unwrap()).unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::Secret(BadSecret::Missing { .. }))));
        let (ca, key) = (files.path("ca.pem"), files.path("key.pem"));
        OwnCa::read(&ca, &key, Some(&secret), unix_now()).unwrap();
        fs::write(&key, p256().serialize_pem()).unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::OtherKey { .. })));
        fs::write(&key, "no key").unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::Key(KeyError::NotAKey(_)))));
        let one = fs::read_to_string(&ca).unwrap();
        fs::write(&ca, format!("{one}{one}")).unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::Several { found: 2, .. })));
        fs::write(&ca, "nothing").unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::NotPem(_))));
        fs::remove_file(&ca).unwrap();
        assert!(matches!(files.read(), Err(BadOwnCa::File { .. })));
    }

    #[test]
    fn certificates_that_are_no_cas_are_refused() {
        let refused = |change: fn(&mut CertificateParams)| Files::with(change, &p256()).read().unwrap_err();
        assert!(matches!(refused(|p| p.is_ca = IsCa::NoCa), BadOwnCa::NotACa));
        let digital = |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        assert!(matches!(refused(digital), BadOwnCa::MayNotSign));
        assert!(matches!(
            refused(|p| p.distinguished_name = rcgen::DistinguishedName::new()),
            BadOwnCa::NoName
        ));
        let over = |p: &mut CertificateParams| p.not_after = OffsetDateTime::UNIX_EPOCH;
        assert!(matches!(refused(over), BadOwnCa::Dates { .. }));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(Files::with(|_| {}, &other).read(), Err(BadOwnCa::Key(KeyError::Algorithm))));
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(matches!(Files::with(|_| {}, &p384).read(), Err(BadOwnCa::Key(KeyError::Algorithm))));
    }
}
