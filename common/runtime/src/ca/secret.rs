//! [`CaSecret`]: what encrypts the files of CA keys (SPEC I6), as PKCS#8 under a password (RFC 5958, RFC 8018).
//!
//! Written with scrypt and AES-256; read is what OpenSSL writes, too. A secret belongs to one Server: its key files are
//! under it, and nobody else hears of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pkcs8::der::pem::LineEnding;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, PrivateKeyInfo, SecretDocument};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// How a key under a password begins.
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// 2^15 blocks of 1 KiB: 32 MiB and about 100 ms for each guess.
const SCRYPT_LOG_N: u8 = 15;

/// Why a secret, or a key under one, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSecret {
    /// It would be guessed.
    #[error(
        "the CA secret has {found} bytes, and must have {} to {}: `openssl rand -base64 32` makes one",
        CaSecret::MIN_BYTES,
        CaSecret::MAX_BYTES
    )]
    Length {
        /// How long it is.
        found: usize,
    },
    /// Its file.
    #[error("cannot read the CA secret {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key is encrypted and nobody says how.
    #[error(
        "{file} is encrypted and no secret is given: add --ca-secret-file FILE or P2P_CA_SECRET with the secret it was \
         written under"
    )]
    Missing {
        /// Which key file.
        file: String,
    },
    /// The secret is of another key.
    #[error(
        "the CA secret does not open {file}: give the one it was written under. When that is lost and another server holds \
         the CA key, move {file} aside: it is fetched again"
    )]
    Wrong {
        /// Which key file.
        file: String,
    },
    /// It cannot be encrypted.
    #[error("the CA key cannot be encrypted: {0}")]
    Seal(String),
}

/// The secret over the CA keys of one Server. Never printed.
#[derive(Clone)]
pub struct CaSecret(Arc<Zeroizing<Vec<u8>>>);

impl CaSecret {
    /// Shorter ones are guessed.
    pub const MIN_BYTES: usize = 12;
    /// Longer ones are a file given by mistake.
    pub const MAX_BYTES: usize = 1_024;

    /// Takes a text; the end of its line does not count.
    ///
    /// # Errors
    /// When it is too short or too long.
    pub fn new(text: &str) -> Result<Self, BadSecret> {
        let text = text.trim_end_matches(['\n', '\r']);
        if !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&text.len()) {
            return Err(BadSecret::Length { found: text.len() });
        }
        Ok(CaSecret(Arc::new(Zeroizing::new(text.as_bytes().to_vec()))))
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn read(path: &Path) -> Result<Self, BadSecret> {
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|source| BadSecret::File { path: path.to_owned(), source })?;
        Self::new(&text)
    }

    /// A private key (PEM, PKCS#8) under this secret.
    pub(super) fn seal(&self, key_pem: &str) -> Result<Zeroizing<String>, BadSecret> {
        let failed = |e: &dyn fmt::Display| BadSecret::Seal(e.to_string());
        let (mut salt, mut iv) = ([0u8; 16], [0u8; 16]);
        getrandom::fill(&mut salt).map_err(|e| failed(&e))?;
        getrandom::fill(&mut iv).map_err(|e| failed(&e))?;
        let cost = scrypt::Params::new(SCRYPT_LOG_N, 8, 1, 32).map_err(|e| failed(&e))?;
        let scheme = pbes2::Parameters::scrypt_aes256cbc(cost, &salt, &iv).map_err(|e| failed(&e))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| failed(&e))?;
        let key = PrivateKeyInfo::try_from(key.secret_der()).map_err(|e| failed(&e))?;
        let sealed = key.encrypt_with_params(scheme, &**self.0).map_err(|e| failed(&e))?;
        sealed.to_pem(ENCRYPTED, LineEnding::LF).map_err(|e| failed(&e))
    }

    /// The private key (PEM, PKCS#8) in `sealed`; `None` when this secret does not open it.
    fn open(&self, sealed: &SecretDocument) -> Option<Zeroizing<String>> {
        let sealed = EncryptedPrivateKeyInfo::try_from(sealed.as_bytes()).ok()?;
        let key = sealed.decrypt(&**self.0).ok()?;
        // One wrong secret in 256 gives bytes without any sense.
        PrivateKeyInfo::try_from(key.as_bytes()).ok()?;
        key.to_pem("PRIVATE KEY", LineEnding::LF).ok()
    }
}

/// The key in the text of a key file as PEM (PKCS#8), and whether it was encrypted.
///
/// # Errors
/// When it is encrypted and `secret` is none or another.
pub(super) fn unseal(
    text: &str,
    secret: Option<&CaSecret>,
    file: &str,
) -> Result<(Zeroizing<String>, bool), BadSecret> {
    if !text.contains(ENCRYPTED) {
        return Ok((Zeroizing::new(text.to_owned()), false));
    }
    let file = || file.to_owned();
    let secret = secret.ok_or_else(|| BadSecret::Missing { file: file() })?;
    let wrong = || BadSecret::Wrong { file: file() };
    let (_, sealed) = SecretDocument::from_pem(text).map_err(|_| wrong())?;
    Ok((secret.open(&sealed).ok_or_else(wrong)?, true))
}

impl std::str::FromStr for CaSecret {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        Self::new(text)
    }
}

impl fmt::Debug for CaSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaSecret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    #[test]
    fn a_key_is_opened_by_its_secret_alone() {
        let key = NodeKey::generate().unwrap();
        let (secret, other) =
            (CaSecret::new("correct horse\n").unwrap(), CaSecret::new("battery staple").unwrap());
        let sealed = secret.seal(&key.to_pem()).unwrap();
        assert!(sealed.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "{}", *sealed);
        let (opened, was_sealed) = unseal(&sealed, Some(&secret), "f").unwrap();
        assert!(was_sealed);
        assert_eq!(NodeKey::from_pem(&opened).unwrap().key_hash(), key.key_hash());
        assert!(matches!(unseal(&sealed, None, "f"), Err(BadSecret::Missing { .. })));
        assert!(matches!(unseal(&sealed, Some(&other), "f"), Err(BadSecret::Wrong { .. })));
        assert!(!unseal(&key.to_pem(), Some(&secret), "f").unwrap().1);
        assert_ne!(sealed, secret.seal(&key.to_pem()).unwrap(), "salted");
        assert!(!format!("{secret:?}").contains("horse"));
        // Cut anywhere it is no key, and no panic.
        for end in (0..sealed.len()).step_by(40) {
            assert!(unseal(&sealed[..end], Some(&secret), "f").is_err() || end < 60);
        }
    }

    #[test]
    fn a_secret_that_is_guessed_is_refused() {
        assert!(matches!(CaSecret::new("short"), Err(BadSecret::Length { found: 5 })));
        assert!(CaSecret::new(&"x".repeat(1_025)).is_err());
        assert!(matches!(CaSecret::read(Path::new("/no/such/file")), Err(BadSecret::File { .. })));
    }
}
