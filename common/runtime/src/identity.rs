//! Who this process is, kept across restarts: a [`DataDir`] of its own, a key, an Id, a certificate, and the
//! [`Token`]s that open doors.
//!
//! ```text
//! new ──load_or_create──► Id and key, not enrolled ──enrol──► certificate and trust bundle, enrolled
//! ```
//!
//! Files of the data directory that live here, each replaced in one step:
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `lock` | 0600 | the pid of the process that holds the directory |
//! | `node.json` | 0600 | Id, name and, once enrolled, the cluster id |
//! | `key.pem` | 0600 | the private key, PKCS#8 |
//! | `cert.pem` | 0644 | the certificate |
//! | `ca.pem` | 0644 | the trust bundle: one CA certificate, or two |
//!
//! It does not speak to anyone: enrolment itself (the RPC) is the binaries'. SPEC I1-I4, I9.

mod certificate;
mod data_dir;
mod grants;
mod key;
mod node;
mod token;
mod trust;

pub use certificate::{BadCertificate, CertificateDates, PeerIdentity};
pub use data_dir::{DataDir, DataDirError, DataDirView, FileMode};
pub use grants::grants_of_certificate;
pub use key::{KeyError, NodeKey};
pub use node::{Enrolment, IdentityError, NodeIdentity, TrustPosition};
pub use token::{BadToken, Token};
pub use trust::{BadTrust, CaDescription, CaFingerprint, TrustBundle};

pub(crate) use certificate::node_uri;
pub(crate) use grants::{GRANTS_OID, encode as encode_grants};
pub(crate) use node::TRUST_FILE;
