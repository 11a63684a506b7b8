//! [`NodeIdentity`]: Id, name, key and, once enrolled, the certificate and what the node trusts.

use p2p_common::member::Member;
use p2p_common::{ClusterId, Epoch, KeyHash, NodeId, NodeKind};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::certificate::{BadCertificate, PeerIdentity, certificate_pem};
use super::data_dir::{DataDir, DataDirError, DataDirView, FileMode};
use super::key::{KeyError, NodeKey};
use super::trust::{BadTrust, TrustBundle};

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The key.
    #[error("key.pem: {0}")]
    Key(#[from] KeyError),
    /// The trust bundle.
    #[error("ca.pem: {0}")]
    Trust(#[from] BadTrust),
    /// The certificate.
    #[error("cert.pem: {0}")]
    Certificate(#[from] BadCertificate),
    /// A file's content.
    #[error(
        "{file} in {dir} is damaged: {reason}; restore it from a copy, or start with an empty directory and enrol again"
    )]
    Damaged {
        /// Which file.
        file: &'static str,
        /// In which data directory.
        dir: String,
        /// What is wrong.
        reason: String,
    },
    /// The directory is of another node.
    #[error("the data directory belongs to {stored}, but the configuration says {asked}: change one of them")]
    OtherId {
        /// Whose it is.
        stored: NodeId,
        /// Who was asked for.
        asked: NodeId,
    },
    /// An Id of the other kind.
    #[error("{id} is the Id of a {}, but this is a {expected}", id.kind())]
    OtherKind {
        /// The Id.
        id: NodeId,
        /// What this process is.
        expected: NodeKind,
    },
    /// The name.
    #[error(
        "the name '{name}' cannot be used: 1 to {} bytes without control characters",
        Member::NAME_MAX_BYTES
    )]
    Name {
        /// The refused name, cut to its bound.
        name: String,
    },
    /// A certificate of somebody else.
    #[error("the certificate is for {found} with key {found_key}, but this node is {id} with key {key}")]
    NotOurs {
        /// Whom it is for.
        found: NodeId,
        /// Its key.
        found_key: KeyHash,
        /// Who we are.
        id: NodeId,
        /// Our key.
        key: KeyHash,
    },
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// What enrolment gives a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Which cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Its certificate in DER.
    pub certificate: CertificateDer<'static>,
    /// Whom it trusts.
    pub trust: TrustBundle,
}

/// Who this node is. The only copy of its key in the process.
#[derive(Debug)]
pub struct NodeIdentity {
    id: NodeId,
    name: String,
    key: NodeKey,
    enrolment: Option<Enrolment>,
    epoch: Epoch,
    trusted_as_of: TrustPosition,
}

/// How new a trust bundle is: the changes of the trusted CAs are counted, and a forced recovery begins an epoch. One of a
/// later position replaces one of an earlier, never the other way round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrustPosition {
    /// The cluster's epoch; 0 when it was not told.
    pub epoch: Epoch,
    /// How many changes there were.
    pub version: u64,
}

const NODE_FILE: &str = "node.json";
const KEY_FILE: &str = "key.pem";
const CERTIFICATE_FILE: &str = "cert.pem";
/// The trust bundle; clients of the public faces verify with this file.
pub(crate) const TRUST_FILE: &str = "ca.pem";

#[derive(Debug, Serialize, Deserialize)]
struct NodeFile {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
    #[serde(default)]
    epoch: u64,
    /// Epoch and version of the trust bundle.
    #[serde(default)]
    trusted_as_of: (u64, u64),
}

impl NodeIdentity {
    /// Takes the identity of a data directory, or makes one: Id and name as asked, else random and the
    /// host's name. A name that differs from the stored one replaces it.
    ///
    /// # Errors
    /// When the directory belongs to another Id than the one asked for, the Id is of the other kind, or a
    /// file is damaged or cannot be written.
    pub fn load_or_create(
        dir: &DataDir,
        kind: NodeKind,
        asked_id: Option<NodeId>,
        asked_name: Option<&str>,
    ) -> Result<Self, IdentityError> {
        if let Some(name) = asked_name {
            check_name(name)?;
        }
        let mut identity = match Self::load(dir.view())? {
            Some(identity) => identity,
            None => Self::create(dir, kind, asked_id, asked_name)?,
        };
        if let Some(asked) = asked_id.filter(|asked| *asked != identity.id) {
            return Err(IdentityError::OtherId { stored: identity.id, asked });
        }
        if identity.id.kind() != kind {
            return Err(IdentityError::OtherKind { id: identity.id, expected: kind });
        }
        if let Some(name) = asked_name.filter(|name| *name != identity.name) {
            identity.name = name.to_owned();
            identity.write_node_file(dir)?;
        }
        Ok(identity)
    }

    fn create(
        dir: &DataDir,
        kind: NodeKind,
        asked_id: Option<NodeId>,
        asked_name: Option<&str>,
    ) -> Result<Self, IdentityError> {
        let id = match asked_id {
            Some(id) if id.kind() == kind => id,
            Some(id) => return Err(IdentityError::OtherKind { id, expected: kind }),
            None => {
                let mut bytes = [0u8; 16];
                getrandom::fill(&mut bytes)?;
                NodeId::new(kind, uuid::Builder::from_random_bytes(bytes).into_uuid())
            }
        };
        let name = asked_name.map(str::to_owned).or_else(host_name).unwrap_or_else(|| id.to_string());
        // A crash after the key and before node.json leaves a key without an Id: taken, not replaced.
        let key = match dir.view().read(KEY_FILE)? {
            Some(pem) => read_key(dir.view(), &pem)?,
            None => {
                let key = NodeKey::generate()?;
                dir.write(KEY_FILE, key.to_pem().as_bytes(), FileMode::Private)?;
                key
            }
        };
        let identity = NodeIdentity {
            id,
            name,
            key,
            enrolment: None,
            epoch: Epoch(0),
            trusted_as_of: TrustPosition::default(),
        };
        identity.write_node_file(dir)?;
        Ok(identity)
    }

    /// Reads the identity of a data directory; `None` when it has none yet.
    ///
    /// # Errors
    /// When a file is missing beside the others, damaged, or does not fit the others.
    pub fn load(dir: &DataDirView) -> Result<Option<Self>, IdentityError> {
        let damaged = |file, reason: String| IdentityError::Damaged {
            file,
            dir: dir.path().display().to_string(),
            reason,
        };
        let missing = |file| move || damaged(file, "it is missing".to_owned());

        let Some(node) = dir.read(NODE_FILE)? else { return Ok(None) };
        let node: NodeFile = serde_json::from_slice(&node).map_err(|e| damaged(NODE_FILE, e.to_string()))?;
        let id: NodeId = node.id.parse().map_err(|e: p2p_common::BadId| damaged(NODE_FILE, e.to_string()))?;
        let key = read_key(dir, &dir.read(KEY_FILE)?.ok_or_else(missing(KEY_FILE))?)?;
        let (epoch, version) = node.trusted_as_of;
        let trusted_as_of = TrustPosition { epoch: Epoch(epoch), version };
        let mut identity = NodeIdentity {
            id,
            name: node.name,
            key,
            enrolment: None,
            epoch: Epoch(node.epoch),
            trusted_as_of,
        };
        if let Some(cluster_id) = node.cluster_id {
            let cluster_id = cluster_id
                .parse::<Uuid>()
                .map(ClusterId::new)
                .map_err(|e| damaged(NODE_FILE, format!("cluster_id: {e}")))?;
            let pem = dir.read(CERTIFICATE_FILE)?.ok_or_else(missing(CERTIFICATE_FILE))?;
            let certificate =
                CertificateDer::from_pem_slice(&pem).map_err(|e| damaged(CERTIFICATE_FILE, e.to_string()))?;
            let trust = TrustBundle::from_pem(&dir.read(TRUST_FILE)?.ok_or_else(missing(TRUST_FILE))?)?;
            let enrolment = Enrolment { cluster_id, certificate, trust };
            identity.check_ours(&enrolment)?;
            identity.enrolment = Some(enrolment);
        }
        Ok(Some(identity))
    }

    /// Keeps what enrolment or renewal gave, durably: node.json, which names the cluster, is written last,
    /// so that a crash in between leaves a node that enrols again.
    ///
    /// # Errors
    /// When the certificate is not for this Id, key and cluster, or a file cannot be written; nothing has
    /// changed in memory then.
    pub fn enrol(&mut self, dir: &DataDir, enrolment: Enrolment) -> Result<(), IdentityError> {
        self.check_ours(&enrolment)?;
        dir.write(TRUST_FILE, enrolment.trust.to_pem().as_bytes(), FileMode::Public)?;
        dir.write(CERTIFICATE_FILE, certificate_pem(&enrolment.certificate).as_bytes(), FileMode::Public)?;
        let before = self.enrolment.replace(enrolment);
        let written = self.write_node_file(dir);
        if written.is_err() {
            self.enrolment = before;
        }
        written
    }

    /// Keeps a certificate that was renewed and, if it is as new as the one so far, the bundle that came with it.
    ///
    /// # Errors
    /// As [`NodeIdentity::enrol`].
    pub fn renew(
        &mut self,
        dir: &DataDir,
        renewed: Enrolment,
        as_of: TrustPosition,
    ) -> Result<&Enrolment, IdentityError> {
        let known = self.enrolment.as_ref().filter(|_| as_of < self.trusted_as_of);
        let trust = known.map_or_else(|| renewed.trust.clone(), |known| known.trust.clone());
        let before = self.trusted_as_of;
        self.trusted_as_of = before.max(as_of);
        let kept = self.enrol(dir, Enrolment { trust, ..renewed });
        if kept.is_err() {
            self.trusted_as_of = before;
        }
        kept.map(|()| self.enrolment.as_ref().expect("it was just kept"))
    }

    /// Trusts another bundle from now on, durably, if it is newer than the one so far. Says whether it is.
    ///
    /// # Errors
    /// When a file cannot be written; nothing has changed in memory then.
    pub fn follow_trust(
        &mut self,
        dir: &DataDir,
        trust: TrustBundle,
        as_of: TrustPosition,
    ) -> Result<bool, IdentityError> {
        let Some(enrolment) = self.enrolment.clone().filter(|_| as_of > self.trusted_as_of) else {
            return Ok(false);
        };
        self.renew(dir, Enrolment { trust, ..enrolment }, as_of).map(|_| true)
    }

    /// How new the trust bundle is.
    pub fn trusted_as_of(&self) -> TrustPosition {
        self.trusted_as_of
    }

    /// The highest epoch this node has lived in; 0 before its first. A Peer begins with it after a restart,
    /// when it has not heard a Server yet.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Keeps the epoch, durably. A lower one than before is not taken (SPEC C11).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_epoch(&mut self, dir: &DataDir, epoch: Epoch) -> Result<(), IdentityError> {
        if epoch <= self.epoch {
            return Ok(());
        }
        self.epoch = epoch;
        self.write_node_file(dir)
    }

    /// The Id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// What enrolment gave; `None` before it.
    pub fn enrolment(&self) -> Option<&Enrolment> {
        self.enrolment.as_ref()
    }

    fn check_ours(&self, enrolment: &Enrolment) -> Result<(), IdentityError> {
        let found = PeerIdentity::of_certificate(&enrolment.certificate)?;
        let key = self.key.key_hash();
        if found.node_id != self.id || found.key_hash != key {
            return Err(IdentityError::NotOurs {
                found: found.node_id,
                found_key: found.key_hash,
                id: self.id,
                key,
            });
        }
        if found.cluster_id != enrolment.cluster_id {
            let (found, expected) = (found.cluster_id, enrolment.cluster_id);
            return Err(BadCertificate::OtherCluster { found, expected }.into());
        }
        Ok(())
    }

    fn write_node_file(&self, dir: &DataDir) -> Result<(), IdentityError> {
        let file = NodeFile {
            id: self.id.to_string(),
            name: self.name.clone(),
            cluster_id: self.enrolment.as_ref().map(|e| e.cluster_id.to_string()),
            epoch: self.epoch.0,
            trusted_as_of: (self.trusted_as_of.epoch.0, self.trusted_as_of.version),
        };
        let mut json = serde_json::to_vec_pretty(&file).expect("strings and numbers are always JSON");
        json.push(b'\n');
        Ok(dir.write(NODE_FILE, &json, FileMode::Private)?)
    }
}

/// The host's name, as people know it: what a node is called unless it is told otherwise.
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    (!name.is_empty() && check_name(&name).is_ok()).then_some(name)
}

fn read_key(dir: &DataDirView, pem: &[u8]) -> Result<NodeKey, IdentityError> {
    let text = std::str::from_utf8(pem).map_err(|_| IdentityError::Damaged {
        file: KEY_FILE,
        dir: dir.path().display().to_string(),
        reason: "it is not text".to_owned(),
    })?;
    Ok(NodeKey::from_pem(text)?)
}

fn check_name(name: &str) -> Result<(), IdentityError> {
    let fits = !name.is_empty() && name.len() <= Member::NAME_MAX_BYTES;
    if fits && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(IdentityError::Name { name: name.chars().take(Member::NAME_MAX_BYTES).collect() })
}

#[cfg(test)]
mod tests;
