//! A backup file: the replicated state as of one moment, whole or refused (SPEC C11).
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `p2pcore` and a zero |
//! | 4 | the version of this form, 1 |
//! | 4 | length of the head |
//! | | the head, a [`v1::StoredBackup`]: who made it, when, of which entry, how long the state is |
//! | | the state, a `v1::StoredState` as in a raft snapshot |
//! | 32 | SHA-256 over everything before |
//!
//! Numbers are big-endian. It holds what raft carries and nothing else: hashes of tokens, no key. It is as secret as
//! table C is: Ids, names and addresses.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use p2p_common::cluster_state::ClusterState;
use p2p_common::{NodeId, UnixMs};
use p2p_proto::{convert, v1};
use prost::Message as _;
use sha2::{Digest, Sha256};

use crate::transport::SNAPSHOT_BYTES_MAX;

const MAGIC: &[u8; 8] = b"p2pcore\0";
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;
/// Magic, version and the head's length.
const FIXED_BYTES: usize = 16;
/// A head has some hundred bytes.
const HEAD_BYTES_MAX: usize = 4 * 1024;
/// What one piece of a backup on its way holds; gRPC keeps the memory of the largest message.
const PIECE_BYTES: usize = 64 * 1024;
/// A state that is longer could not be sent to a joiner either.
const FILE_BYTES_MAX: usize = FIXED_BYTES + HEAD_BYTES_MAX + SNAPSHOT_BYTES_MAX + HASH_BYTES;

/// Why a backup cannot be used. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another file.
    #[error("it is no backup of a cluster")]
    NotABackup,
    /// From the future.
    #[error("it has form {found}, this version reads form {VERSION}: use the version that made it")]
    Version {
        /// Its form.
        found: u32,
    },
    /// Cut off or changed.
    #[error("it is damaged ({0}): use another one")]
    Damaged(&'static str),
    /// Whole, and still not a state.
    #[error("what it holds cannot be read: {0}. Was it made by a newer version?")]
    Unreadable(#[from] convert::ConvertError),
    /// Longer than any state.
    #[error("it is longer than {FILE_BYTES_MAX} bytes")]
    TooLong,
}

/// Where a state comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The Server it was taken from.
    pub made_by: NodeId,
    /// When, by that Server's clock.
    pub made_at: UnixMs,
    /// The version of its software.
    pub version: String,
    /// The last applied entry in it.
    pub index: u64,
    /// The term of that moment.
    pub term: u64,
}

/// A backup that was read and found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Where it comes from.
    pub provenance: Provenance,
    /// What was replicated.
    pub state: ClusterState,
}

impl Backup {
    /// The bytes of its file, piece by piece.
    pub fn into_pieces(self) -> Pieces {
        let state = Bytes::from(convert::encode_state(&self.state));
        let head = v1::StoredBackup {
            made_by: self.provenance.made_by.to_string(),
            made_at_unix_ms: self.provenance.made_at.0,
            version: self.provenance.version,
            applied_index: self.provenance.index,
            term: self.provenance.term,
            state_bytes: state.len() as u64,
        }
        .encode_to_vec();
        let mut first = Vec::with_capacity(FIXED_BYTES + head.len());
        first.extend_from_slice(MAGIC);
        first.extend_from_slice(&VERSION.to_be_bytes());
        first.extend_from_slice(&(head.len() as u32).to_be_bytes());
        first.extend_from_slice(&head);
        Pieces { first: Some(first.into()), state, hash: Some(Sha256::new()) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not exactly what was written once.
    pub fn read(path: &Path) -> Result<Backup, BackupError> {
        let failed = |source| BackupError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Backup::decode(&bytes)
    }

    /// Takes the bytes of a file.
    ///
    /// # Errors
    /// When they are not exactly what was written once.
    pub fn decode(bytes: &[u8]) -> Result<Backup, BackupError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(BackupError::TooLong);
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(BackupError::NotABackup)?;
        let (version, rest) = number(rest)?;
        if version != VERSION {
            return Err(BackupError::Version { found: version });
        }
        let (head_bytes, rest) = number(rest)?;
        let (body, hash) =
            rest.split_last_chunk::<HASH_BYTES>().ok_or(BackupError::Damaged("its end is missing"))?;
        if Sha256::digest(&bytes[..bytes.len() - HASH_BYTES])[..] != hash[..] {
            return Err(BackupError::Damaged("its hash does not fit"));
        }
        let head_bytes = head_bytes as usize;
        if head_bytes > HEAD_BYTES_MAX || head_bytes > body.len() {
            return Err(BackupError::Damaged("its head is longer than it can be"));
        }
        let (head, state) = body.split_at(head_bytes);
        let head =
            v1::StoredBackup::decode(head).map_err(|e| convert::ConvertError::new("head", e.to_string()))?;
        if head.state_bytes != state.len() as u64 {
            return Err(BackupError::Damaged("its length does not fit"));
        }
        let provenance = Provenance {
            made_by: convert::parse(&head.made_by, "made_by")?,
            made_at: UnixMs(head.made_at_unix_ms),
            version: convert::name(&head.version, "version")?,
            index: head.applied_index,
            term: head.term,
        };
        Ok(Backup { provenance, state: convert::decode_state(state)? })
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), BackupError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(BackupError::Damaged("it is too short"))?;
    Ok((u32::from_be_bytes(*number), rest))
}

/// The bytes of a backup file in order: the head, the state in pieces of at most 64 KiB, the hash.
#[derive(Debug)]
pub struct Pieces {
    first: Option<Bytes>,
    state: Bytes,
    /// Over what was given out; gone with the last piece.
    hash: Option<Sha256>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let piece = match self.first.take() {
            Some(first) => first,
            None if self.state.is_empty() => {
                let hash = self.hash.take()?.finalize();
                return Some(Bytes::copy_from_slice(&hash));
            }
            None => self.state.split_to(PIECE_BYTES.min(self.state.len())),
        };
        self.hash.as_mut()?.update(&piece);
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::{IdentityRecord, TokenId, TokenRecord, TokenRole};
    use p2p_common::grants::Grants;
    use p2p_common::{ClusterId, Epoch, KeyHash, NodeKind};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn backup(identities: u128) -> Backup {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(3), vec![vec![1, 2]]);
        state.tokens.insert(
            TokenId(7),
            TokenRecord {
                id: TokenId(7),
                role: TokenRole::Operator,
                secret_hash: [7; 32],
                created_at: UnixMs(1),
                expires_at: UnixMs(2),
                uses_left: 0,
                bound_id: None,
                bound_name: None,
                grants: Grants::default(),
                ephemeral: false,
                used_by: p2p_common::shared::SharedSet::new(),
            },
        );
        for n in 0..identities {
            let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(n));
            let record = IdentityRecord::new(id, format!("p{n}"), KeyHash([9; 32]), UnixMs(5));
            state.identities.insert(id, record);
        }
        let made_by = NodeId::new(NodeKind::Server, Uuid::from_u128(2));
        let (made_at, version) = (UnixMs(4), "0.1.0".to_owned());
        Backup { provenance: Provenance { made_by, made_at, version, index: 5, term: 6 }, state }
    }

    fn bytes(backup: &Backup) -> Vec<u8> {
        backup.clone().into_pieces().flatten().collect()
    }

    #[test]
    fn comes_back_in_small_pieces() {
        for identities in [0, 1, 5_000] {
            let backup = backup(identities);
            assert_eq!(Backup::decode(&bytes(&backup)).unwrap(), backup);
            assert!(backup.into_pieces().all(|piece| (1..=PIECE_BYTES).contains(&piece.len())));
        }
    }

    #[test]
    fn every_prefix_and_every_flipped_bit_is_refused() {
        let good = bytes(&backup(3));
        for end in 0..good.len() {
            assert!(Backup::decode(&good[..end]).is_err(), "cut off at {end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Backup::decode(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
        let longer = [good.as_slice(), &[0]].concat();
        assert!(matches!(Backup::decode(&longer), Err(BackupError::Damaged(_))));
    }

    #[test]
    fn says_what_it_is_not() {
        let mut newer = bytes(&backup(0));
        newer[11] = 2;
        assert!(matches!(Backup::decode(&newer), Err(BackupError::Version { found: 2 })));
        assert!(matches!(Backup::decode(b"-----BEGIN CERTIFICATE-----"), Err(BackupError::NotABackup)));
        assert!(matches!(Backup::decode(&vec![0; FILE_BYTES_MAX + 1]), Err(BackupError::TooLong)));
        let refused = Backup::read(Path::new("/nowhere/backup")).unwrap_err();
        assert!(refused.to_string().contains("/nowhere/backup"), "{refused}");
    }

    /// A file with any head and state, and a hash that fits.
    fn sealed(head_bytes: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &head_bytes.to_be_bytes(), body].concat();
        bytes.extend_from_slice(&Sha256::digest(&bytes));
        bytes
    }

    proptest! {
        #[test]
        fn anything_is_a_backup_or_an_error(
            head_bytes in prop_oneof![0..400u32, any::<u32>()],
            body in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let _ = Backup::decode(&body);
            let _ = Backup::decode(&sealed(head_bytes, &body));
        }

        #[test]
        fn what_was_put_in_the_place_of_a_part_is_refused(
            at in any::<proptest::sample::Index>(),
            with in proptest::collection::vec(any::<u8>(), 1..64),
        ) {
            let good = bytes(&backup(2));
            let at = at.index(good.len());
            let mut bad = good.clone();
            let end = bad.len().min(at + with.len());
            bad.splice(at..end, with);
            prop_assert!(bad == good || Backup::decode(&bad).is_err());
        }
    }
}
