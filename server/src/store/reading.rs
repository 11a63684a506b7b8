//! What lies under the keys, checked as far as it can be.

use bytes::Bytes;
use p2p_proto::v1;
use p2p_server_raft::{LogEntry, Snapshot};
use prost::Message as _;
use sha2::{Digest, Sha256};

use super::{ENTRY, HARD_STATE, SNAPSHOT, SNAPSHOT_DATA, Store, StoreError, parts};
use crate::raft::wire;

impl Store {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.tree.get(key).map_err(|e| self.damaged(e))
    }

    /// The hard state that was written last without entries.
    pub(super) fn read_hard_state(&self) -> Result<Option<v1::StoredHardState>, StoreError> {
        let Some(bytes) = self.get(HARD_STATE)? else { return Ok(None) };
        v1::StoredHardState::decode(&*bytes).map(Some).map_err(|e| self.damaged(e))
    }

    /// The last entries that were written together.
    pub(super) fn read_last_entries(&self) -> Result<Option<v1::StoredEntries>, StoreError> {
        let last = self.key_of_entries_with(u64::MAX)?;
        last.map(|first| self.read_entries_at(first)).transpose()
    }

    /// The index under which the entry at `index` lies with others, or the last ones before it.
    pub(super) fn key_of_entries_with(&self, index: u64) -> Result<Option<u64>, StoreError> {
        let (first, end) = (parts::key(ENTRY, 0, 0), parts::key(ENTRY, index, u16::MAX));
        let Some(key) = self.tree.range(first..=end).keys().next_back() else { return Ok(None) };
        let key = key.map_err(|e| self.damaged(e))?;
        parts::number(&key).map(Some).ok_or_else(|| self.damaged("a key has another form"))
    }

    /// The entries that lie under `first`; none when nothing does.
    pub(super) fn read_entries_at(&self, first: u64) -> Result<v1::StoredEntries, StoreError> {
        let mut bytes = Vec::new();
        for item in self.tree.range(parts::key(ENTRY, first, 0)..=parts::key(ENTRY, first, u16::MAX)) {
            bytes.extend_from_slice(&item.map_err(|e| self.damaged(e))?.1);
        }
        v1::StoredEntries::decode(Bytes::from(bytes)).map_err(|e| self.damaged(e))
    }

    pub(super) fn read_snapshot_record(&self) -> Result<Option<v1::StoredSnapshot>, StoreError> {
        let Some(bytes) = self.get(SNAPSHOT)? else { return Ok(None) };
        v1::StoredSnapshot::decode(&*bytes).map(Some).map_err(|e| self.damaged(e))
    }

    pub(super) fn read_snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let Some(record) = self.read_snapshot_record()? else { return Ok(None) };
        let mut data = Vec::new();
        let (first, end) = (
            parts::long_key(SNAPSHOT_DATA, record.index, 0),
            parts::long_key(SNAPSHOT_DATA, record.index, u32::MAX),
        );
        for item in self.tree.range(first..end) {
            data.extend_from_slice(&item.map_err(|e| self.damaged(e))?.1);
        }
        let whole = data.len() as u64 == record.data_bytes;
        if !whole || Sha256::digest(&data)[..] != record.data_sha256[..] {
            return Err(self.damaged("the snapshot's data does not fit its hash"));
        }
        let membership = record.membership.ok_or_else(|| self.damaged("the snapshot has no members"))?;
        Ok(Some(Snapshot {
            index: record.index,
            term: record.term,
            membership: wire::membership_from(membership),
            data: data.into(),
        }))
    }

    pub(super) fn read_entries(&self) -> Result<Vec<LogEntry>, StoreError> {
        let mut joined = Vec::<(u64, Vec<u8>)>::new();
        for item in self.tree.scan_prefix([ENTRY]) {
            let (key, value) = item.map_err(|e| self.damaged(e))?;
            let index = parts::number(&key).ok_or_else(|| self.damaged("a key has another form"))?;
            match joined.last_mut() {
                Some((last, bytes)) if *last == index => bytes.extend_from_slice(&value),
                _ => joined.push((index, value.to_vec())),
            }
        }
        let mut entries = Vec::<LogEntry>::new();
        for (first, bytes) in joined {
            let together = v1::StoredEntries::decode(Bytes::from(bytes)).map_err(|e| self.damaged(e))?;
            for (index, entry) in (first..).zip(together.entries) {
                let follows = entries.last().is_none_or(|last| last.index + 1 == index);
                if entry.index != index || !follows {
                    return Err(self.damaged(format_args!("entry {} lies at {index}", entry.index)));
                }
                entries.push(wire::entry_from(entry));
            }
        }
        Ok(entries)
    }
}
