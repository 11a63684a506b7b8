//! [`MeshKey`]: the one secret by which Peers without Servers know each other (SPEC F4).
//!
//! ```text
//! p2pm1 . base64url( key 32 | check 4 )        check: the first bytes of SHA-256 over all before it
//!
//! key ─ HKDF-SHA256 ─┬─ cluster id
//!                    └─ key of the CA ─ signs, at each start ─► certificate for the data directory's own key
//! ```
//!
//! Everybody with the key derives the same CA, trusts it, and signs a certificate for itself; nothing is kept. An Id
//! is therefore worth as much as the key: whoever has it can speak as any Peer. That is why dates say nothing here, and
//! why a mesh that must tell its members apart has Servers.
//!
//! It is not what a node of a Server cluster shows: that one is enrolled, and its certificate is another CA's.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p2p_common::{ClusterId, UnixMs};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::ca::{CaError, CertificateGrant, ClusterCa, MESH_LIFETIME};
use crate::identity::{Enrolment, KeyError, NodeIdentity, NodeKey};

const PREFIX: &str = "p2pm1";
const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
/// Separates these derivations from whatever else the same 32 bytes may be used for.
const SALT: &[u8] = b"p2pcore mesh key v1";

/// The secret of a mesh. Printed without it; [`MeshKey::to_text`] gives the whole.
#[derive(Clone, PartialEq, Eq)]
pub struct MeshKey(Zeroizing<[u8; KEY_BYTES]>);

/// Why a text is no mesh key. Never holds any of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMeshKey {
    /// It does not start like one.
    #[error("not a mesh key: expected one word that starts with p2pm1., as `p2p-peer mesh-key` prints it")]
    NotAKey,
    /// A join token.
    #[error(
        "this is a join token, not a mesh key: give it as --token, or a key that `p2p-peer mesh-key` prints"
    )]
    Token,
    /// It is of a form this version does not know.
    #[error(
        "the mesh key's form is of another version of p2pcore: make one with `p2p-peer mesh-key` of this one"
    )]
    Version,
    /// A character that cannot be in it.
    #[error("the mesh key has a character that no mesh key has: copy it again, as one word")]
    Character,
    /// Too short or too long.
    #[error("the mesh key is not {} bytes long: copy it again, as a whole", KEY_BYTES + CHECK_BYTES)]
    Length,
    /// The check does not fit.
    #[error("the mesh key is damaged (its check does not fit): copy it again")]
    Check,
}

/// Why a mesh key gives no certificate.
#[derive(Debug, thiserror::Error)]
pub enum MeshKeyError {
    /// The CA.
    #[error("the CA of the mesh key: {0}")]
    Ca(#[from] CaError),
    /// The node's own key.
    #[error("key.pem: {0}")]
    Key(#[from] KeyError),
}

impl MeshKey {
    /// Draws a new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        getrandom::fill(&mut *key)?;
        Ok(MeshKey(key))
    }

    /// The whole key as one word: a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut body = Zeroizing::new(self.0.to_vec());
        body.extend_from_slice(&check(&self.0[..]));
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 1 + body.len().div_ceil(3) * 4));
        text.push_str(PREFIX);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(&*body, &mut text);
        text
    }

    /// What those who have this key call their cluster. Says nothing of the key.
    pub fn cluster_id(&self) -> ClusterId {
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&self.derive(&[b"cluster id"])[..16]);
        ClusterId::new(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// A certificate for `identity`, and the CA to trust. What the data directory holds of an enrolment stays as it is.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn enrol(&self, identity: &NodeIdentity) -> Result<Enrolment, MeshKeyError> {
        let ca = self.ca()?;
        let request = identity.key().certificate_request(identity.id())?;
        let mut grant = CertificateGrant::new(identity.id(), UnixMs(0));
        grant.lifetime = MESH_LIFETIME;
        let signed = ca.sign(&request, &grant)?;
        Ok(Enrolment { cluster_id: ca.cluster_id(), certificate: signed.certificate, trust: ca.trust() })
    }

    fn ca(&self) -> Result<ClusterCa, CaError> {
        // One draw in 2^32 is no scalar of the curve; the next one is then taken, by everybody.
        let mut scalars = (0..=u8::MAX).map(|nth| self.derive(&[b"ca key", &[nth]]));
        let key = scalars.find_map(|scalar| NodeKey::from_scalar(&scalar));
        ClusterCa::of_mesh_key(self.cluster_id(), key.expect("256 draws in a row are never off the curve"))
    }

    fn derive(&self, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let key: Prk = Salt::new(HKDF_SHA256, SALT).extract(&self.0[..]);
        let mut out = Zeroizing::new([0u8; 32]);
        let okm = key.expand(info, Bytes32).expect("32 bytes are one block");
        okm.fill(&mut *out).expect("as long as was asked for");
        out
    }
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn check(key: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new().chain_update(PREFIX).chain_update(key).finalize();
    let mut check = [0u8; CHECK_BYTES];
    check.copy_from_slice(&hash[..CHECK_BYTES]);
    check
}

impl FromStr for MeshKey {
    type Err = BadMeshKey;

    fn from_str(text: &str) -> Result<Self, BadMeshKey> {
        let (head, body) = text.split_once('.').ok_or(BadMeshKey::NotAKey)?;
        match head.as_bytes() {
            head if head == PREFIX.as_bytes() => {}
            [b'p', b'2', b'p', b'm', ..] => return Err(BadMeshKey::Version),
            [b'p', b'2', b'p', b's' | b'p' | b'o' | b'r', ..] => return Err(BadMeshKey::Token),
            _ => return Err(BadMeshKey::NotAKey),
        }
        let body = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|e| match e {
            base64::DecodeError::InvalidByte(..) => BadMeshKey::Character,
            // A cut text is as good as a short one: how base64 noticed says nothing to people.
            _ => BadMeshKey::Length,
        })?);
        let (key, given) = body.split_first_chunk::<KEY_BYTES>().ok_or(BadMeshKey::Length)?;
        if given.len() != CHECK_BYTES {
            return Err(BadMeshKey::Length);
        }
        if check(key) != given {
            return Err(BadMeshKey::Check);
        }
        Ok(MeshKey(Zeroizing::new(*key)))
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKey(of {})", self.cluster_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{DataDir, PeerIdentity};
    use p2p_common::NodeKind;
    use proptest::prelude::*;

    #[test]
    fn everybody_with_the_key_derives_the_same() {
        let key = MeshKey::generate().unwrap();
        let again: MeshKey = key.to_text().parse().unwrap();
        assert_eq!(key, again);
        assert_eq!(key.cluster_id(), again.cluster_id());
        let (ca, same) = (key.ca().unwrap(), again.ca().unwrap());
        assert_eq!(spki(ca.certificate()), spki(same.certificate()));

        let other = MeshKey::generate().unwrap();
        assert_ne!(other.cluster_id(), key.cluster_id());
        assert_ne!(spki(other.ca().unwrap().certificate()), spki(ca.certificate()));
    }

    /// What was derived once is what all later versions must derive.
    #[test]
    fn derivations_stay_as_they_are() {
        let key = MeshKey(Zeroizing::new([7; KEY_BYTES]));
        assert_eq!(&*key.to_text(), "p2pm1.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwfBr3tn");
        assert_eq!(key.cluster_id().to_string(), "cebec3e7-dff3-409e-8f86-69806c01d747");
        let spki = spki(key.ca().unwrap().certificate());
        assert_eq!(
            format!("{:x}", Sha256::digest(spki)),
            "a2e8b403abf5bcf971f939266e31421dbec952e3115be1f5b60975d09811dad5"
        );
    }

    #[test]
    fn a_certificate_has_no_dates_to_speak_of() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let identity = NodeIdentity::load_or_create(&dir, NodeKind::Peer, None, None).unwrap();
        let key = MeshKey::generate().unwrap();
        let enrolment = key.enrol(&identity).unwrap();
        let shown = PeerIdentity::of_certificate(&enrolment.certificate).unwrap();
        assert_eq!((shown.node_id, shown.cluster_id), (identity.id(), key.cluster_id()));
        assert_eq!(shown.key_hash, identity.key().key_hash());
        let (_, x509) = x509_parser::parse_x509_certificate(&enrolment.certificate).unwrap();
        assert_eq!(x509.validity().not_before.timestamp(), 0);
        assert_eq!(x509.validity().not_after.to_datetime().year(), 9999);
        // The next start finds no enrolment that it might take for one of Servers.
        assert!(NodeIdentity::load(dir.view()).unwrap().unwrap().enrolment().is_none());
    }

    #[test]
    fn says_what_is_wrong() {
        let text = MeshKey::generate().unwrap().to_text();
        let parse = |text: &str| text.parse::<MeshKey>().unwrap_err();
        assert_eq!(parse(""), BadMeshKey::NotAKey);
        assert_eq!(parse("secret"), BadMeshKey::NotAKey);
        assert_eq!(parse(&text.replace("p2pm1.", "p2pm2.")), BadMeshKey::Version);
        assert_eq!(parse(&text.replace("p2pm1.", "p2pp1.")), BadMeshKey::Token);
        assert_eq!(parse(&format!("{} ", *text)), BadMeshKey::Character);
        assert_eq!(parse(&format!("{}AAAA", *text)), BadMeshKey::Length);
    }

    #[test]
    fn every_prefix_and_every_other_character_is_an_error() {
        let text = MeshKey::generate().unwrap().to_text();
        for end in 0..text.len() {
            assert!(text[..end].parse::<MeshKey>().is_err(), "the first {end} bytes were taken for a key");
            for other in ["A", "B", "_", ".", "p", " "] {
                let changed = format!("{}{other}{}", &text[..end], &text[end + 1..]);
                assert!(changed == *text || changed.parse::<MeshKey>().is_err(), "{end} {other}");
            }
        }
    }

    #[test]
    fn never_shows_itself() {
        let key = MeshKey::generate().unwrap();
        let shown = format!("{key:?} {key:#?} {}", key.cluster_id());
        assert!(!shown.contains(&key.to_text()[6..16]));
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text in "(p2pm1\\.)?[A-Za-z0-9_-]{0,60}") {
            if let Ok(key) = text.parse::<MeshKey>() {
                prop_assert_eq!(&*key.to_text(), &text);
            }
        }
    }

    fn spki(certificate: &[u8]) -> Vec<u8> {
        x509_parser::parse_x509_certificate(certificate).unwrap().1.public_key().raw.to_vec()
    }
}
