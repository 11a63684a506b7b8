//! Stable storage of a Server: the raft log, its hard state and its last snapshot, in one sled tree.
//!
//! The state machine has no place of its own: it is the snapshot and what the log says after it, so that one
//! fact is stored once. A start installs the snapshot and applies the log again.
//!
//! | key | value |
//! |---|---|
//! | `o` | [`Origin`]: how this Server came into the cluster, written first |
//! | `h` | hard state, when it was written without entries |
//! | `s` | the snapshot's position, members, length and hash |
//! | `d` index part | the data of the snapshot at that index |
//! | `e` index part | entries of the log that were written together, from that index on, and the hard state with them |
//!
//! Every change is one batch, which sled applies as a whole or not at all, also over a crash. It counts as
//! stored when [`Store`] returns: sled's own flush does not reach the disk on Linux (it starts the write-back and
//! syncs nothing), so the log file is synced by a descriptor of our own afterwards. What raft writes most, a few new
//! entries and its hard state, is a single value: sled writes that at once, while it writes the head of a batch
//! separately and waits for the disk twice.
//!
//! No value is longer than `parts::PART_BYTES`: sled moves what is larger than a quarter of a segment into files
//! that it never syncs, and what it writes is not the value alone but its leaf with up to some twenty neighbours.
//!
//! A snapshot of our own is stored in steps, so that a write of raft's never waits for all of a large one: its data lies
//! beside that of the former one until the record that names it is written; then the former data and the entries before
//! it are deleted. What a crash leaves of that is deleted in steps after the next start.
//!
//! A store that does not open, contradicts itself or has lost a write is never repaired or wiped here (SPEC C9): a node
//! that forgets what it acknowledged must not vote again. Owner: the storage thread.

mod changes;
mod error;
mod mark;
mod origin;
mod parts;
mod reading;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use p2p_proto::v1;
use p2p_server_raft::{Compaction, HardState, Loaded, Persist, Snapshot};
use prost::Message as _;
use sha2::{Digest, Sha256};

use crate::raft::wire;
use changes::Changes;
use mark::Mark;
use origin::{origin_from, origin_to};

pub use error::StoreError;
pub use origin::Origin;

const ORIGIN: &[u8] = b"o";
const HARD_STATE: &[u8] = b"h";
const SNAPSHOT: &[u8] = b"s";
const SNAPSHOT_DATA: u8 = b'd';
const ENTRY: u8 = b'e';

/// Entries under one key, encoded: what a compaction keeps too much is bounded by it. One entry may be longer.
const ENTRIES_BYTES: usize = 64 * 1024;
/// sled keeps pages in memory; the working set is the tail of the log.
const CACHE_BYTES: u64 = 32 << 20;
/// How long sled's threads of a former owner in this process may take to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A step of a compaction writes this many parts of the snapshot, or deletes this many keys: some milliseconds.
const STEP_PARTS: usize = 64;
const STEP_KEYS: usize = 1_024;

/// What a start finds.
#[derive(Debug)]
pub struct Stored {
    /// How it began.
    pub origin: Origin,
    /// Where raft goes on.
    pub loaded: Loaded,
}

/// The open store.
pub struct Store {
    path: PathBuf,
    db: sled::Db,
    tree: sled::Tree,
    /// sled's log file, to sync what sled has flushed.
    log_file: File,
    hard_state: HardState,
    /// The last stored entry; that of the snapshot when there is none after it.
    last_index: u64,
    /// How often the hard state was written.
    writes: u64,
    /// Of these, what is synced for sure.
    mark: Mark,
    /// Where the stored snapshot stands; 0 when there is none.
    snapshot_index: u64,
    compacting: Option<Compacting>,
}

/// A compaction on its way.
enum Compacting {
    /// Parts of the snapshot's data from this one on are to be written, then its record.
    Storing { compaction: Compaction, next_part: usize },
    /// The snapshot is stored; what it replaces is to be deleted: other snapshots, and entries before this one.
    Forgetting { first_kept: u64 },
}

impl Store {
    /// Opens the store in `path`, made if there is none.
    ///
    /// # Errors
    /// When it does not open, or lacks what was synced. Nothing was written then, but sled may have cleared parts of its
    /// files that it could not read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Open { path: path.to_owned(), reason };
        let config = sled::Config::new()
            .path(path)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        // sled panics on some damage; nothing of a store half open is used afterwards.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = open_db(&config)?;
            let tree = db.open_tree("raft")?;
            Ok::<_, sled::Error>((db, tree))
        }));
        let (db, tree) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_panic) => return Err(failed("its files contradict each other".to_owned())),
        };
        let open = |file: PathBuf| File::open(&file).map_err(|e| failed(format!("{}: {e}", file.display())));
        let log_file = open(path.join("db"))?;
        let (mark, synced) = Mark::open(path).map_err(|e| failed(e.to_string()))?;
        let mut store = Store {
            writes: 0,
            mark,
            path: path.to_owned(),
            db,
            tree,
            log_file,
            hard_state: HardState::default(),
            last_index: 0,
            snapshot_index: 0,
            compacting: None,
        };
        let found = store.guarded(|store| {
            Ok((store.read_hard_state()?, store.read_last_entries()?, store.read_snapshot_record()?))
        })?;
        let (alone, newest, snapshot) = found;
        store.snapshot_index = snapshot.map_or(0, |record| record.index);
        let last = newest.as_ref().and_then(|newest| newest.entries.last()).map_or(0, |entry| entry.index);
        store.last_index = last.max(store.snapshot_index);
        let with_entries = newest.and_then(|newest| newest.hard_state);
        let states = [alone, with_entries].into_iter().flatten();
        if let Some(record) = states.max_by_key(|record| record.writes) {
            let v1::StoredHardState { term, vote, commit, writes } = record;
            (store.hard_state, store.writes) = (HardState { term, vote, commit }, writes);
        }
        if store.writes < synced {
            return Err(store.damaged(format_args!("it has lost {} writes", synced - store.writes)));
        }
        // A new store's files must outlive a power loss together with what is written into them.
        store.sync().map_err(|e| failed(e.to_string()))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        for made in [path.join("conf"), path.to_owned(), parent.unwrap_or(Path::new(".")).to_owned()] {
            let file = open(made)?;
            file.sync_all().map_err(|e| failed(e.to_string()))?;
        }
        // A crash may have come between two steps of one.
        store.compacting = Some(Compacting::Forgetting { first_kept: 0 });
        Ok(store)
    }

    /// Everything a start needs; `None` for a store nothing was ever written to.
    ///
    /// # Errors
    /// When what is stored cannot be right.
    pub fn load(&self) -> Result<Option<Stored>, StoreError> {
        self.guarded(|store| store.read())
    }

    /// sled panics on some damage that it finds late.
    fn guarded<T>(&self, read: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        catch_unwind(AssertUnwindSafe(|| read(self)))
            .unwrap_or_else(|_| Err(self.damaged("its files contradict each other")))
    }

    fn read(&self) -> Result<Option<Stored>, StoreError> {
        let Some(origin) = self.get(ORIGIN)? else {
            if self.tree.is_empty() {
                return Ok(None);
            }
            return Err(self.damaged("it has a log but no origin"));
        };
        let origin = v1::StoredOrigin::decode(&*origin).map_err(|e| self.damaged(e))?;
        let origin = origin_from(origin).map_err(|e| self.damaged(e))?;
        let loaded = Loaded {
            hard_state: self.hard_state,
            snapshot: self.read_snapshot()?,
            entries: self.read_entries()?,
            applied: None,
        };
        Ok(Some(Stored { origin, loaded }))
    }

    /// The first write of all: where this Server comes from and, for a founder, the cluster's first snapshot. Over a
    /// store that has been used, `founding` takes the place of all that was there, in the same step.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub fn begin(&mut self, origin: &Origin, founding: Option<&Persist>) -> Result<(), StoreError> {
        let mut changes = Changes::default();
        changes.insert(ORIGIN.to_vec(), origin_to(origin).encode_to_vec());
        if let Some(persist) = founding {
            self.put_persist(&mut changes, std::slice::from_ref(persist))?;
        }
        self.write(changes)
    }

    /// Writes what raft wants persisted, one after the other with one sync, and returns when it is.
    ///
    /// # Errors
    /// When it could not be made durable: the process must end.
    pub fn persist(&mut self, writes: &[Persist]) -> Result<(), StoreError> {
        let mut left = writes;
        while !left.is_empty() {
            let (now, later) = left.split_at(appending(left));
            let mut changes = Changes::default();
            self.put_persist(&mut changes, now)?;
            self.apply(changes)?;
            left = later;
        }
        self.sync_writes()
    }

    /// Begins to store a snapshot of our own in place of the former one and to forget the entries before it;
    /// [`Store::go_on_compacting`] does it.
    pub fn begin_compacting(&mut self, compaction: Compaction) {
        if compaction.snapshot.index > self.snapshot_index {
            self.compacting = Some(Compacting::Storing { compaction, next_part: 0 });
        }
    }

    /// Does the next step of what was begun; `false` when there is nothing to do.
    ///
    /// # Errors
    /// When it could not be made durable: the process must end.
    pub fn go_on_compacting(&mut self) -> Result<bool, StoreError> {
        match self.compacting.take() {
            Some(Compacting::Storing { compaction, next_part }) => self.store_step(compaction, next_part)?,
            Some(Compacting::Forgetting { first_kept }) => self.forget_step(first_kept)?,
            None => {}
        }
        Ok(self.compacting.is_some())
    }

    fn store_step(&mut self, compaction: Compaction, first_part: usize) -> Result<(), StoreError> {
        let snapshot = &compaction.snapshot;
        let mut changes = Changes::default();
        let parts = parts::split_long(&snapshot.data).skip(first_part).take(STEP_PARTS);
        let mut next_part = first_part;
        for (part, value) in parts {
            changes.insert(parts::long_key(SNAPSHOT_DATA, snapshot.index, part), value.to_vec());
            next_part += 1;
        }
        if next_part - first_part == STEP_PARTS {
            // Synced with the record at the latest: sled's log keeps the order.
            self.apply(changes)?;
            self.compacting = Some(Compacting::Storing { compaction, next_part });
            return Ok(());
        }
        self.put_snapshot_record(&mut changes, snapshot);
        self.compacting = Some(Compacting::Forgetting { first_kept: compaction.first_kept });
        self.write(changes)
    }

    fn forget_step(&mut self, first_kept: u64) -> Result<(), StoreError> {
        let (first, last) =
            (parts::long_key(SNAPSHOT_DATA, 0, 0), parts::long_key(SNAPSHOT_DATA, u64::MAX, u32::MAX));
        let kept = parts::long_key(SNAPSHOT_DATA, self.snapshot_index, 0);
        let after = parts::long_key(SNAPSHOT_DATA, self.snapshot_index, u32::MAX);
        // Entries that were written together are kept together.
        let first_kept_key = self.key_of_entries_with(first_kept)?.unwrap_or(0);
        let entries = (parts::key(ENTRY, 0, 0), parts::key(ENTRY, first_kept_key, 0));
        let mut changes = Changes::default();
        let mut left = STEP_KEYS;
        for (first, end) in [(first, kept), (after, last), entries] {
            left -= self.remove_some(&mut changes, &first, &end, left)?;
        }
        if left < STEP_KEYS {
            self.apply(changes)?;
            self.compacting = Some(Compacting::Forgetting { first_kept });
        }
        Ok(())
    }

    /// Raises the stored commit index, so that a start without a leader shows what was known. Raft does not ask
    /// for this: no safety hangs on it, and a power loss may take it back.
    ///
    /// # Errors
    /// When it could not be written: the process must end.
    pub fn raise_commit(&mut self, commit: u64) -> Result<(), StoreError> {
        if commit <= self.hard_state.commit {
            return Ok(());
        }
        let mut changes = Changes::default();
        let record = self.next_hard_state(HardState { commit, ..self.hard_state });
        changes.insert(HARD_STATE.to_vec(), record.encode_to_vec());
        self.apply(changes)?;
        self.flush()
    }

    /// Writes that only append to each other, the first of which may take back what is stored or bring a snapshot.
    fn put_persist(&mut self, changes: &mut Changes, writes: &[Persist]) -> Result<(), StoreError> {
        let Some(last) = writes.last() else { return Ok(()) };
        let record = self.next_hard_state(last.hard_state);
        if let Some(snapshot) = &writes[0].snapshot {
            let all = (parts::key(ENTRY, 0, 0), parts::key(ENTRY, u64::MAX, u16::MAX));
            self.remove_some(changes, &all.0, &all.1, usize::MAX)?;
            self.put_snapshot(changes, snapshot)?;
            self.last_index = snapshot.index;
        }
        let mut entries = writes.iter().flat_map(|persist| &persist.entries).peekable();
        let Some(first) = entries.peek().map(|first| first.index) else {
            changes.insert(HARD_STATE.to_vec(), record.encode_to_vec());
            return Ok(());
        };
        if first <= self.last_index {
            self.take_back(changes, first, record)?;
        }
        let mut together = v1::StoredEntries { entries: Vec::new(), hard_state: Some(record) };
        let mut bytes = 0;
        for entry in entries {
            self.last_index = entry.index;
            let entry = wire::entry_to(entry.clone());
            let length = entry.encoded_len();
            if bytes > 0 && bytes + length > ENTRIES_BYTES {
                put_entries(changes, &together);
                together.entries.clear();
                bytes = 0;
            }
            bytes += length;
            together.entries.push(entry);
        }
        put_entries(changes, &together);
        Ok(())
    }

    /// Deletes the entries from `first` on.
    fn take_back(
        &self,
        changes: &mut Changes,
        first: u64,
        record: v1::StoredHardState,
    ) -> Result<(), StoreError> {
        let from = self.key_of_entries_with(first)?.unwrap_or(first);
        let all = (parts::key(ENTRY, from, 0), parts::key(ENTRY, u64::MAX, u16::MAX));
        self.remove_some(changes, &all.0, &all.1, usize::MAX)?;
        let mut stays = self.read_entries_at(from)?.entries;
        stays.retain(|entry| entry.index < first);
        if !stays.is_empty() {
            put_entries(changes, &v1::StoredEntries { entries: stays, hard_state: Some(record) });
        }
        Ok(())
    }

    /// The record of `state` as the next write of all.
    fn next_hard_state(&mut self, state: HardState) -> v1::StoredHardState {
        self.writes += 1;
        self.hard_state = state;
        let HardState { term, vote, commit } = state;
        v1::StoredHardState { term, vote, commit, writes: self.writes }
    }

    /// A snapshot in place of all others, those half stored too.
    fn put_snapshot(&mut self, changes: &mut Changes, snapshot: &Snapshot) -> Result<(), StoreError> {
        let (first, end) =
            (parts::long_key(SNAPSHOT_DATA, 0, 0), parts::long_key(SNAPSHOT_DATA, u64::MAX, u32::MAX));
        self.remove_some(changes, &first, &end, usize::MAX)?;
        for (part, value) in parts::split_long(&snapshot.data) {
            changes.insert(parts::long_key(SNAPSHOT_DATA, snapshot.index, part), value.to_vec());
        }
        self.put_snapshot_record(changes, snapshot);
        self.compacting = None;
        Ok(())
    }

    fn put_snapshot_record(&mut self, changes: &mut Changes, snapshot: &Snapshot) {
        let record = v1::StoredSnapshot {
            index: snapshot.index,
            term: snapshot.term,
            membership: Some(wire::membership_to(&snapshot.membership)),
            data_bytes: snapshot.data.len() as u64,
            data_sha256: Sha256::digest(&snapshot.data).to_vec().into(),
        };
        changes.insert(SNAPSHOT.to_vec(), record.encode_to_vec());
        self.snapshot_index = snapshot.index;
    }

    /// Deletes the stored keys from `first` to before `end`, at most `max`; returns how many. Keys inserted into the
    /// changes later stay.
    fn remove_some(
        &self,
        changes: &mut Changes,
        first: &[u8],
        end: &[u8],
        max: usize,
    ) -> Result<usize, StoreError> {
        let mut removed = 0;
        if first < end {
            for key in self.tree.range(first..end).keys().take(max) {
                changes.remove(key.map_err(|e| StoreError::Write(e.to_string()))?.to_vec());
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn write(&mut self, changes: Changes) -> Result<(), StoreError> {
        self.apply(changes)?;
        self.sync_writes()
    }

    /// After this all writes so far outlive a power loss, and it is known that they were there.
    fn sync_writes(&self) -> Result<(), StoreError> {
        self.sync()?;
        self.mark.note(self.writes).map_err(|e| StoreError::Write(e.to_string()))
    }

    fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        changes.apply(&self.tree).map_err(|e| StoreError::Write(e.to_string()))
    }

    /// After this what was applied outlives the process.
    fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map(|_| ()).map_err(|e| StoreError::Write(e.to_string()))
    }

    /// After this what was applied outlives a power loss.
    fn sync(&self) -> Result<(), StoreError> {
        self.flush()?;
        self.log_file.sync_data().map_err(|e| StoreError::Write(e.to_string()))
    }

    fn damaged(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason: reason.to_string() }
    }
}

/// How many of `writes`, at least the first, only add entries to those of the first.
fn appending(writes: &[Persist]) -> usize {
    let mut last = None;
    for (nth, persist) in writes.iter().enumerate() {
        let first = persist.entries.first().map(|entry| entry.index);
        let adds = last.zip(first).is_none_or(|(last, first): (u64, u64)| first == last + 1);
        if nth > 0 && (persist.snapshot.is_some() || !adds) {
            return nth;
        }
        last = persist.entries.last().map(|entry| entry.index).or(last);
    }
    writes.len()
}

fn put_entries(changes: &mut Changes, together: &v1::StoredEntries) {
    let Some(first) = together.entries.first() else { return };
    for (part, value) in parts::split(&together.encode_to_vec()) {
        changes.insert(parts::key(ENTRY, first.index, part), value.to_vec());
    }
}

/// Opens sled. Its threads hold the lock for a moment after a former owner in this process let go; no other process
/// can have it, since the data directory has a lock of its own.
fn open_db(config: &sled::Config) -> sled::Result<sled::Db> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("acquire lock") && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
