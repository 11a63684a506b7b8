//! The thread that waits for the disk, so that the raft thread need not.
//!
//! ```text
//! raft thread ──Persist, Compact, RaiseCommit──► queue (in order, bounded) ──► storage thread ──► Disk
//!     ▲                                                                            │
//!     └────────────── Mailbox: persisted(number), or why it ended ◄────────────────┘
//! ```
//!
//! Writes are done in the order they were given; those that have gathered while the disk was busy share a sync. A snapshot of a large state is stored in steps, and a write that comes
//! meanwhile is done between two of them. The first failure ends the thread: what is on the disk is not known any more,
//! so nothing is written after it. Owner of: the store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use p2p_server_raft::{Compaction, Persist};

use super::driver::DriverEnd;
use super::mailbox::Mailbox;
use crate::store::{Store, StoreError};

/// More than the writes raft has under way (`RaftConfig::writes_in_flight_max`) and a compaction; the commit index is
/// left out when the queue is full.
const QUEUE_MAX: usize = 80;

/// What can be written to; the [`Store`], or in tests one that fails or hangs.
pub trait Disk: Send + 'static {
    /// Writes what raft wants persisted, in order, and returns when all is.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn persist(&mut self, writes: &[Persist]) -> Result<(), StoreError>;

    /// Raises the stored commit index.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn raise_commit(&mut self, commit: u64) -> Result<(), StoreError>;

    /// Begins to store a snapshot in place of the former one; [`Disk::go_on_compacting`] does it.
    fn begin_compacting(&mut self, compaction: Compaction);

    /// Does the next step of what was begun; `false` when there is nothing to do.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn go_on_compacting(&mut self) -> Result<bool, StoreError>;
}

impl Disk for Store {
    fn persist(&mut self, writes: &[Persist]) -> Result<(), StoreError> {
        Store::persist(self, writes)
    }

    fn raise_commit(&mut self, commit: u64) -> Result<(), StoreError> {
        Store::raise_commit(self, commit)
    }

    fn begin_compacting(&mut self, compaction: Compaction) {
        Store::begin_compacting(self, compaction);
    }

    fn go_on_compacting(&mut self) -> Result<bool, StoreError> {
        Store::go_on_compacting(self)
    }
}

/// Something to write.
#[derive(Debug)]
pub(super) enum Work {
    /// Answered with [`Mailbox::persisted`], for the last of several.
    Persist(Persist),
    Compact(Compaction),
    /// Raise the stored commit index to this.
    RaiseCommit(u64),
}

/// The way to the thread. Dropping it ends the thread when what was given is done, and waits for that.
#[derive(Debug)]
pub(super) struct Storage {
    queue: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Storage {
    /// Starts the thread on `disk`; it reports to `mailbox`.
    pub fn spawn(disk: impl Disk, mailbox: Mailbox) -> Self {
        let (queue, work) = sync_channel(QUEUE_MAX);
        let body = move || {
            let done = catch_unwind(AssertUnwindSafe(|| write_all(disk, &work, &mailbox)));
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => mailbox.storage_ended(DriverEnd::Store(error)),
                Err(panic) => mailbox.storage_ended(DriverEnd::from_panic(&*panic)),
            }
        };
        let thread = std::thread::Builder::new().name("raft-storage".into()).spawn(body);
        let thread = thread.expect("a process may start one thread");
        Storage { queue: Some(queue), thread: Some(thread) }
    }

    /// Hands work over. Work that comes after a failure goes nowhere: the mailbox tells.
    pub fn give(&self, work: Work) {
        let Some(queue) = &self.queue else { return };
        match work {
            // The next one says the same and more.
            Work::RaiseCommit(_) => drop(queue.try_send(work)),
            // Full it can only be when the disk hangs and raft goes on: then raft waits.
            Work::Persist(_) | Work::Compact(_) => drop(queue.send(work)),
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported.
            let _ = thread.join();
        }
    }
}

fn write_all(mut disk: impl Disk, work: &Receiver<Work>, mailbox: &Mailbox) -> Result<(), StoreError> {
    let mut gathered = Vec::new();
    // A former run may have left something to do.
    let mut compacting = true;
    loop {
        let next = match work.try_recv() {
            Ok(next) => Some(next),
            Err(TryRecvError::Empty) if !gathered.is_empty() => None,
            Err(TryRecvError::Empty) if compacting => {
                compacting = disk.go_on_compacting()?;
                continue;
            }
            Err(TryRecvError::Empty) => match work.recv() {
                Ok(next) => Some(next),
                Err(RecvError) => return Ok(()),
            },
            Err(TryRecvError::Disconnected) if !gathered.is_empty() => None,
            Err(TryRecvError::Disconnected) => return Ok(()),
        };
        let next = match next {
            Some(Work::Persist(persist)) => {
                gathered.push(persist);
                continue;
            }
            next => next,
        };
        if let Some(last) = gathered.last() {
            disk.persist(&gathered)?;
            mailbox.persisted(last.number);
            gathered.clear();
        }
        match next {
            Some(Work::RaiseCommit(commit)) => disk.raise_commit(commit)?,
            Some(Work::Compact(compaction)) => {
                disk.begin_compacting(compaction);
                compacting = true;
            }
            Some(Work::Persist(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};
    use std::time::{Duration, Instant};

    use p2p_server_raft::{HardState, Membership, Snapshot};

    use super::*;

    /// Tells what was done, and goes on compacting when it is let.
    struct Recorder {
        done: SyncSender<String>,
        let_on: Receiver<()>,
        steps: usize,
    }

    impl Disk for Recorder {
        fn persist(&mut self, writes: &[Persist]) -> Result<(), StoreError> {
            let numbers: Vec<_> = writes.iter().map(|persist| persist.number).collect();
            self.done.send(format!("persist {numbers:?}")).unwrap();
            Ok(())
        }

        fn raise_commit(&mut self, commit: u64) -> Result<(), StoreError> {
            self.done.send(format!("commit {commit}")).unwrap();
            Ok(())
        }

        fn begin_compacting(&mut self, compaction: Compaction) {
            self.done.send(format!("compact {}", compaction.snapshot.index)).unwrap();
            self.steps = 3;
        }

        fn go_on_compacting(&mut self) -> Result<bool, StoreError> {
            if self.steps > 0 {
                self.done.send("step".to_owned()).unwrap();
                self.let_on.recv().unwrap();
                self.steps -= 1;
            }
            Ok(self.steps > 0)
        }
    }

    #[test]
    fn writes_come_in_order_and_between_the_steps_of_a_compaction() {
        let (done, seen) = sync_channel(16);
        let (allow, let_on) = sync_channel(16);
        let mailbox = Mailbox::new();
        let storage = Storage::spawn(Recorder { done, let_on, steps: 0 }, mailbox.clone());
        let persist = |number| {
            let hard_state = HardState::default();
            Work::Persist(Persist { number, snapshot: None, entries: Vec::new(), hard_state })
        };
        let membership = Membership::sole_voter(1);
        let snapshot = Snapshot { index: 9, term: 1, membership, data: bytes::Bytes::new() };
        let next = || seen.recv_timeout(Duration::from_secs(20)).unwrap();
        storage.give(persist(1));
        storage.give(Work::Compact(Compaction { snapshot, first_kept: 2 }));
        assert_eq!([next(), next(), next()], ["persist [1]", "compact 9", "step"]);
        // What comes meanwhile is done before the next step.
        storage.give(Work::RaiseCommit(5));
        storage.give(persist(2));
        storage.give(persist(3));
        storage.give(Work::RaiseCommit(6));
        storage.give(persist(4));
        allow.send(()).unwrap();
        assert_eq!(
            [next(), next(), next(), next(), next()],
            ["commit 5", "persist [2, 3]", "commit 6", "persist [4]", "step"]
        );
        allow.send(()).unwrap();
        allow.send(()).unwrap();
        assert_eq!(next(), "step");
        drop(storage);
        let inbox = mailbox.wait(Instant::now());
        assert_eq!(inbox.persisted, Some(4));
        assert!(inbox.storage_ended.is_none());
    }
}
