//! A node's key pair: ECDSA P-256, and the requests for certificates it signs.

use std::fmt;

use p2p_common::{KeyHash, NodeId};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Why a key cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no private key.
    #[error("not a private key in PEM (PKCS#8): {0}")]
    NotAKey(#[source] rcgen::Error),
    /// Another kind of key than the one every client can verify.
    #[error(
        "the key is not ECDSA P-256: make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`"
    )]
    Algorithm,
    /// No key or signature could be made.
    #[error("cannot make a key or sign with it: {0}")]
    Crypto(#[source] rcgen::Error),
}

/// The private key of a node. Never printed.
pub struct NodeKey {
    pair: KeyPair,
}

impl NodeKey {
    /// Draws a new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(KeyError::Crypto)?;
        Ok(NodeKey { pair })
    }

    /// Reads a key from PEM (PKCS#8).
    ///
    /// # Errors
    /// When the text is no key, or no ECDSA P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pem(pem).map_err(KeyError::NotAKey)?;
        if !pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(KeyError::Algorithm);
        }
        Ok(NodeKey { pair })
    }

    /// The key with this private scalar (RFC 5915); none when there is no such key.
    pub(crate) fn from_scalar(scalar: &[u8; 32]) -> Option<Self> {
        // PKCS#8 of a P-256 key without its public half, up to the scalar (RFC 5208, RFC 5915).
        const HEAD: [u8; 35] = [
            0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
            0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01,
            0x01, 0x04, 0x20,
        ];
        let der = Zeroizing::new([&HEAD[..], scalar].concat());
        let der = PrivatePkcs8KeyDer::from(der.as_slice());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256).ok()?;
        Some(NodeKey { pair })
    }

    /// The key in PEM (PKCS#8): a secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// The pin an identity is bound to: SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub fn key_hash(&self) -> KeyHash {
        key_hash_of_spki(&self.pair.subject_public_key_info())
    }

    /// A certificate signing request (PKCS#10, DER). Its signature proves that we hold the key; all else in
    /// a certificate is the signer's decision, the Id is there for people.
    ///
    /// # Errors
    /// When signing fails.
    pub fn certificate_request(&self, id: NodeId) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, id.to_string());
        let request = params.serialize_request(&self.pair).map_err(KeyError::Crypto)?;
        Ok(request.der().to_vec())
    }

    /// The key as rustls takes it.
    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// The key as the CA signs with it.
    pub(crate) fn into_pair(self) -> KeyPair {
        self.pair
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.key_hash())
    }
}

/// SHA-256 over a SubjectPublicKeyInfo in DER.
pub(crate) fn key_hash_of_spki(spki_der: &[u8]) -> KeyHash {
    KeyHash(Sha256::digest(spki_der).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_pem_and_stays_hidden() {
        let key = NodeKey::generate().unwrap();
        let pem = key.to_pem();
        let again = NodeKey::from_pem(&pem).unwrap();
        assert_eq!(key.key_hash(), again.key_hash());
        assert_ne!(key.key_hash(), NodeKey::generate().unwrap().key_hash());
        let debug = format!("{key:?}");
        assert!(!pem.lines().skip(1).any(|line| debug.contains(line)));
    }

    #[test]
    fn refuses_what_is_no_p256_key() {
        assert!(matches!(NodeKey::from_pem("no key"), Err(KeyError::NotAKey(_))));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem();
        assert!(matches!(NodeKey::from_pem(&other), Err(KeyError::Algorithm)));
    }
}
