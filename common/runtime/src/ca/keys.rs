//! The CA keys of one Server: in memory ([`CaKeys`]), and as files ([`CaKeyFiles`]).
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `ca-key.pem` | 0600 | the key of the CA, PKCS#8, under the [`CaSecret`] when there is one |
//! | `ca-key-next.pem` | 0600 | while the CA is being changed: the other key |
//!
//! Which key is of which CA is told by the certificates in `ca.pem`, not by the file. A key in the second file that
//! fits none of them was made for a change of the CA that has not been agreed on.

use std::sync::Arc;

use p2p_common::ClusterId;
use zeroize::Zeroizing;

use super::secret::{CaSecret, unseal};
use super::{CaError, ClusterCa};
use crate::identity::{CaFingerprint, DataDir, DataDirView, FileMode, KeyError, TRUST_FILE, TrustBundle};

/// The key of the CA.
const KEY_FILE: &str = "ca-key.pem";
/// The other key, while there are two CAs.
const NEXT_FILE: &str = "ca-key-next.pem";

/// The CAs whose keys a Server holds, and which of them signs.
#[derive(Debug, Clone, Default)]
pub struct CaKeys {
    held: Vec<Arc<ClusterCa>>,
    signer: Option<CaFingerprint>,
}

impl CaKeys {
    /// Holds `held`; certificates are signed by `signer`, if it is among them.
    pub fn new(held: Vec<Arc<ClusterCa>>, signer: Option<CaFingerprint>) -> Self {
        CaKeys { held, signer }
    }

    /// The CA that signs; none when its key is not here, or it is not known yet which one it is.
    pub fn signer(&self) -> Option<&Arc<ClusterCa>> {
        self.get(self.signer?)
    }

    /// Which CA signs, whether its key is here or not; none while that is not known.
    pub fn signs(&self) -> Option<CaFingerprint> {
        self.signer
    }

    /// The CA of a fingerprint; none when its key is not here.
    pub fn get(&self, fingerprint: CaFingerprint) -> Option<&Arc<ClusterCa>> {
        self.held.iter().find(|ca| ca.fingerprint() == fingerprint)
    }

    /// All of them.
    pub fn held(&self) -> &[Arc<ClusterCa>] {
        &self.held
    }
}

/// How the CA keys lie in a data directory.
#[derive(Debug, Clone, Default)]
pub struct CaKeyFiles {
    secret: Option<CaSecret>,
}

/// A key as a file holds it.
struct KeyInFile {
    pem: Zeroizing<String>,
    is_sealed: bool,
}

impl CaKeyFiles {
    /// Encrypted under `secret`, or in the clear without one.
    pub fn new(secret: Option<CaSecret>) -> Self {
        CaKeyFiles { secret }
    }

    /// The CAs of the directory's `ca.pem` whose keys are beside it; none when there is no key.
    ///
    /// # Errors
    /// When a file is damaged or not opened by the secret, or no key fits any certificate.
    pub fn load(&self, dir: &DataDirView, cluster_id: ClusterId) -> Result<Vec<Arc<ClusterCa>>, CaError> {
        if !dir.join(KEY_FILE).exists() && !dir.join(NEXT_FILE).exists() {
            return Ok(Vec::new());
        }
        let trust = TrustBundle::from_pem(&dir.read(TRUST_FILE)?.unwrap_or_default())?;
        let held = self.load_of(dir, cluster_id, &trust)?;
        if held.is_empty() { Err(CaError::NoCertificate) } else { Ok(held) }
    }

    /// The CAs of `trust` whose keys are in the directory.
    ///
    /// # Errors
    /// When a file is damaged or not opened by the secret.
    pub fn load_of(
        &self,
        dir: &DataDirView,
        cluster_id: ClusterId,
        trust: &TrustBundle,
    ) -> Result<Vec<Arc<ClusterCa>>, CaError> {
        let mut held = Vec::new();
        for file in [KEY_FILE, NEXT_FILE] {
            let Some(key) = self.read(dir, file)? else { continue };
            match ClusterCa::from_parts(cluster_id, &key.pem, trust) {
                Ok(ca) => held.push(Arc::new(ca)),
                Err(CaError::NoCertificate) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(held)
    }

    /// Opens each key file there is, and writes those again that are not as the secret wants them: in the clear although
    /// there is one.
    ///
    /// # Errors
    /// When a file is damaged, not opened by the secret, or cannot be written.
    pub fn check(&self, dir: &DataDir) -> Result<(), CaError> {
        for file in [KEY_FILE, NEXT_FILE] {
            if let Some(key) = self.read(dir.view(), file)?
                && self.secret.is_some()
                && !key.is_sealed
            {
                self.write(dir, file, &key.pem)?;
            }
        }
        Ok(())
    }

    /// Writes every key file again under `other`, or in the clear.
    ///
    /// # Errors
    /// When a file is damaged, not opened by the secret so far, or cannot be written.
    pub fn change_secret(&self, dir: &DataDir, other: Option<CaSecret>) -> Result<Self, CaError> {
        let other = CaKeyFiles { secret: other };
        for file in [KEY_FILE, NEXT_FILE] {
            // One that was interrupted has written some of them already.
            let key = match other.read(dir.view(), file) {
                Ok(key) if other.secret.is_some() && key.as_ref().is_some_and(|key| key.is_sealed) => {
                    continue;
                }
                _ => self.read(dir.view(), file)?,
            };
            if let Some(key) = key {
                other.write(dir, file, &key.pem)?;
            }
        }
        Ok(other)
    }

    /// Keeps the keys of these CAs, durably, and drops every other: a crash in between loses none of them.
    ///
    /// # Errors
    /// When there are more than two, or a file cannot be read or written.
    pub fn keep(&self, dir: &DataDir, wanted: &[Arc<ClusterCa>]) -> Result<(), CaError> {
        let place = |file| -> Result<Option<usize>, CaError> {
            let Some(key) = self.read(dir.view(), file)? else { return Ok(None) };
            Ok(wanted.iter().position(|ca| ca.has_key(&key.pem)))
        };
        let (mut first, mut next) = (place(KEY_FILE)?, place(NEXT_FILE)?);
        for (nth, ca) in wanted.iter().enumerate() {
            if first != Some(nth) && next != Some(nth) {
                let file = if first.is_none() { KEY_FILE } else { NEXT_FILE };
                self.write(dir, file, &ca.key_pem())?;
                if first.is_none() { first = Some(nth) } else { next = Some(nth) }
            }
        }
        // One key alone lies in the first file.
        if let (None, Some(nth)) = (first, next) {
            self.write(dir, KEY_FILE, &wanted[nth].key_pem())?;
            first = Some(nth);
        }
        if next.is_none() || next == first {
            dir.remove(NEXT_FILE)?;
        }
        if first.is_none() {
            dir.remove(KEY_FILE)?;
        }
        Ok(())
    }

    /// The CA for a change that has not been agreed on: the one that was made here before, else a new one, which is
    /// durable when this returns. Its certificate may be another each time; its key is not.
    ///
    /// # Errors
    /// When a file cannot be read or written, or there is no randomness.
    pub fn stage(
        &self,
        dir: &DataDir,
        held: &[Arc<ClusterCa>],
        make: impl FnOnce(Option<&str>) -> Result<ClusterCa, CaError>,
    ) -> Result<ClusterCa, CaError> {
        let staged = self.read(dir.view(), NEXT_FILE)?;
        let staged = staged.filter(|key| !held.iter().any(|ca| ca.has_key(&key.pem)));
        let ca = make(staged.as_ref().map(|key| key.pem.as_str()))?;
        if staged.is_none() {
            self.write(dir, NEXT_FILE, &ca.key_pem())?;
        }
        Ok(ca)
    }

    fn read(&self, dir: &DataDirView, file: &str) -> Result<Option<KeyInFile>, CaError> {
        let Some(bytes) = dir.read(file)?.map(Zeroizing::new) else { return Ok(None) };
        let text =
            std::str::from_utf8(&bytes).map_err(|_| KeyError::NotAKey(rcgen::Error::CouldNotParseKeyPair))?;
        let path = dir.join(file).display().to_string();
        let (pem, is_sealed) = unseal(text, self.secret.as_ref(), &path)?;
        Ok(Some(KeyInFile { pem, is_sealed }))
    }

    fn write(&self, dir: &DataDir, file: &str, key_pem: &str) -> Result<(), CaError> {
        match &self.secret {
            Some(secret) => dir.write(file, secret.seal(key_pem)?.as_bytes(), FileMode::Private)?,
            None => dir.write(file, key_pem.as_bytes(), FileMode::Private)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clock::unix_now;
    use uuid::Uuid;

    fn ca() -> Arc<ClusterCa> {
        Arc::new(ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap())
    }

    fn trust(cas: &[&Arc<ClusterCa>]) -> TrustBundle {
        TrustBundle::from_der(cas.iter().map(|ca| ca.certificate().to_vec())).unwrap()
    }

    struct Dir(tempfile::TempDir, DataDir, CaKeyFiles);

    impl Dir {
        fn new(secret: Option<&str>) -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let dir = DataDir::open(tmp.path()).unwrap();
            Dir(tmp, dir, CaKeyFiles::new(secret.map(|secret| CaSecret::new(secret).unwrap())))
        }

        fn trusts(&self, cas: &[&Arc<ClusterCa>]) {
            self.1.write(TRUST_FILE, trust(cas).to_pem().as_bytes(), FileMode::Public).unwrap();
        }

        fn load(&self) -> Result<Vec<CaFingerprint>, CaError> {
            let held = self.2.load(self.1.view(), ClusterId::new(Uuid::from_u128(1)))?;
            Ok(held.iter().map(|ca| ca.fingerprint()).collect())
        }

        fn files(&self) -> [bool; 2] {
            [KEY_FILE, NEXT_FILE].map(|file| self.0.path().join(file).exists())
        }
    }

    #[test]
    fn keys_come_and_go_with_their_cas() {
        let (old, new, dir) = (ca(), ca(), Dir::new(None));
        assert!(dir.load().unwrap().is_empty());
        dir.trusts(&[&old]);
        dir.2.keep(&dir.1, std::slice::from_ref(&old)).unwrap();
        assert_eq!((dir.load().unwrap(), dir.files()), (vec![old.fingerprint()], [true, false]));
        dir.trusts(&[&old, &new]);
        dir.2.keep(&dir.1, &[old.clone(), new.clone()]).unwrap();
        assert_eq!((dir.load().unwrap().len(), dir.files()), (2, [true, true]));
        dir.2.keep(&dir.1, &[new.clone(), old.clone()]).unwrap();
        assert_eq!(dir.load().unwrap().len(), 2);
        dir.2.keep(&dir.1, std::slice::from_ref(&new)).unwrap();
        // Before the old certificate is gone, and after.
        assert_eq!((dir.load().unwrap(), dir.files()), (vec![new.fingerprint()], [true, false]));
        dir.trusts(&[&new]);
        assert_eq!(dir.load().unwrap(), [new.fingerprint()]);
        dir.trusts(&[&old]);
        assert!(matches!(dir.load(), Err(CaError::NoCertificate)), "a foreign key");
        dir.2.keep(&dir.1, &[]).unwrap();
        assert_eq!(dir.files(), [false, false]);
    }

    #[test]
    fn a_key_that_is_not_agreed_on_is_kept_and_used_again() {
        let (old, dir) = (ca(), Dir::new(Some("correct horse")));
        dir.trusts(&[&old]);
        dir.2.keep(&dir.1, std::slice::from_ref(&old)).unwrap();
        let held = [old.clone()];
        let stage =
            || dir.2.stage(&dir.1, &held, |key| ClusterCa::next(old.cluster_id(), key, unix_now())).unwrap();
        let (first, again) = (stage(), stage());
        assert!(first.has_key(&again.key_pem()), "the same key, also after a crash");
        assert_eq!(dir.load().unwrap(), [old.fingerprint()], "it signs nothing yet");
        let first = Arc::new(first);
        dir.2.keep(&dir.1, &[old.clone(), first.clone()]).unwrap();
        dir.trusts(&[&old, &first]);
        assert_eq!(dir.load().unwrap().len(), 2);
        // Another one was agreed on.
        stage();
        dir.2.keep(&dir.1, &[old]).unwrap();
        assert_eq!(dir.files(), [true, false]);
    }

    #[test]
    fn files_are_private_and_under_the_secret() {
        use std::os::unix::fs::PermissionsExt;
        let (ca, clear) = (ca(), Dir::new(None));
        clear.trusts(&[&ca]);
        clear.2.keep(&clear.1, std::slice::from_ref(&ca)).unwrap();
        let path = clear.0.path().join(KEY_FILE);
        let secret = |text| CaKeyFiles::new(Some(CaSecret::new(text).unwrap()));
        let (first, second) = (secret("correct horse"), secret("battery staple"));
        // A secret that comes later.
        first.check(&clear.1).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("ENCRYPTED") && !text.contains("BEGIN PRIVATE"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let missing = clear.2.check(&clear.1).unwrap_err().to_string();
        assert!(missing.contains("--ca-secret-file") && missing.contains("ca-key.pem"), "{missing}");
        let wrong = second.check(&clear.1).unwrap_err().to_string();
        assert!(wrong.contains("does not open"), "{wrong}");
        assert!(clear.load().is_err());
        assert_eq!(first.load(clear.1.view(), ca.cluster_id()).unwrap().len(), 1);
        // And another one; a change that was interrupted is finished by the same command.
        for _ in 0..2 {
            first.change_secret(&clear.1, CaSecret::new("battery staple").ok()).unwrap();
        }
        assert!(first.check(&clear.1).is_err());
        second.change_secret(&clear.1, None).unwrap();
        assert_eq!(clear.load().unwrap(), [ca.fingerprint()]);
    }
}
