//! The way into the raft thread: bounded queues under one lock that is held for a push or a swap only.
//!
//! Messages and requests have queues of their own, so that slow proposals never delay a heartbeat (SPEC T3).
//! A full queue drops the message, or refuses the request, at once. Reports of the transport need no queue: of
//! each remote only the newest counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use p2p_common::command::Outcome;
use p2p_common::member::RaftId;
use p2p_server_raft::{
    MemberProgress, MembershipChange, Message, ProposalFailure, ReadFailure, TransferRefused,
};
use tokio::sync::oneshot;

use super::driver::DriverEnd;

/// Messages, and requests, that wait for the raft thread (SPEC T3).
const QUEUE_MAX: usize = 4_096;

/// A queue of the raft thread is full; what was offered is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting for raft: try again later")]
pub struct MailboxFull;

/// What others ask of the raft thread. A dropped `reply` means that the thread has ended.
#[derive(Debug)]
pub enum Request {
    /// Propose an encoded command; answered with the index it was applied at and its outcome.
    Propose {
        /// Decodable: whoever took it in has checked.
        command: Bytes,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(u64, Outcome), ProposalFailure>>,
    },
    /// Change the members of the group.
    Change {
        /// Which change.
        change: MembershipChange,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), ProposalFailure>>,
    },
    /// Confirm that the published view is current; answered with an index it holds.
    Read {
        /// Where the answer goes.
        reply: oneshot::Sender<Result<u64, ReadFailure>>,
    },
    /// Hand over the leadership.
    Transfer {
        /// To whom.
        to: RaftId,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), TransferRefused>>,
    },
    /// The other members as the leader sees them; empty on others.
    Progress {
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<MemberProgress>>,
    },
}

/// Everything that has come in since the last look.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub messages: Vec<Message>,
    pub requests: Vec<Request>,
    pub unreachable: BTreeSet<RaftId>,
    /// Whether the last snapshot sent to a remote was taken there.
    pub snapshot_reports: BTreeMap<RaftId, bool>,
    /// Servers whose process is known to be gone.
    pub gone: BTreeSet<RaftId>,
    /// The last write that is on stable storage, with all before it.
    pub persisted: Option<u64>,
    /// Why nothing is written any more.
    pub storage_ended: Option<DriverEnd>,
    /// The snapshot being encoded is: its index and data.
    pub built: Option<(u64, Bytes)>,
    pub stop: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.requests.is_empty()
            && self.unreachable.is_empty()
            && self.snapshot_reports.is_empty()
            && self.gone.is_empty()
            && self.persisted.is_none()
            && self.storage_ended.is_none()
            && self.built.is_none()
            && !self.stop
    }
}

/// The way into the raft thread. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub struct Mailbox {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A message from another Server.
    ///
    /// # Errors
    /// When the queue is full; raft sends again what it needs.
    pub fn message(&self, message: Message) -> Result<(), MailboxFull> {
        self.put(|inbox| {
            if inbox.messages.len() >= QUEUE_MAX {
                return Err(MailboxFull);
            }
            inbox.messages.push(message);
            Ok(())
        })
    }

    /// Something is asked of the thread.
    ///
    /// # Errors
    /// When the queue is full; nothing was asked.
    pub fn request(&self, request: Request) -> Result<(), MailboxFull> {
        self.put(|inbox| {
            if inbox.requests.len() >= QUEUE_MAX {
                return Err(MailboxFull);
            }
            inbox.requests.push(request);
            Ok(())
        })
    }

    /// Messages to a Server were lost.
    pub fn unreachable(&self, raft_id: RaftId) {
        self.put(|inbox| inbox.unreachable.insert(raft_id));
    }

    /// What became of the last snapshot to a Server.
    pub fn snapshot_report(&self, raft_id: RaftId, taken: bool) {
        self.put(|inbox| inbox.snapshot_reports.insert(raft_id, taken));
    }

    /// Write number `number` and all before it are on stable storage.
    pub(crate) fn persisted(&self, number: u64) {
        self.put(|inbox| inbox.persisted = Some(number));
    }

    /// A write failed: none follows.
    pub(crate) fn storage_ended(&self, why: DriverEnd) {
        self.put(|inbox| inbox.storage_ended = Some(why));
    }

    /// A Server's process is gone: its connection broke and a new one was refused.
    pub fn gone(&self, raft_id: RaftId) {
        self.put(|inbox| inbox.gone.insert(raft_id));
    }

    /// The snapshot asked for is encoded.
    pub(super) fn built(&self, index: u64, data: Bytes) {
        self.put(|inbox| inbox.built = Some((index, data)));
    }

    /// The thread shall end.
    pub fn stop(&self) {
        self.put(|inbox| inbox.stop = true);
    }

    /// Takes everything; waits for something until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> Inbox {
        let mut inbox = self.lock();
        while inbox.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inbox = self.shared.wake.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut inbox)
    }

    fn put<T>(&self, change: impl FnOnce(&mut Inbox) -> T) -> T {
        let mut inbox = self.lock();
        let was_empty = inbox.is_empty();
        let result = change(&mut inbox);
        drop(inbox);
        // The thread sleeps only on an empty inbox, and waking is a system call.
        if was_empty {
            self.shared.wake.notify_one();
        }
        result
    }

    /// Nothing in here can leave the inbox half changed, so a poisoned lock holds what it should.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_server_raft::MessageKind;
    use std::time::Duration;

    fn message() -> Message {
        Message {
            kind: MessageKind::Heartbeat,
            from: 2,
            to: 1,
            term: 1,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            snapshot: None,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
        }
    }

    #[test]
    fn requests_do_not_take_the_place_of_messages() {
        let mailbox = Mailbox::new();
        for _ in 0..QUEUE_MAX {
            let (reply, _) = oneshot::channel();
            mailbox.request(Request::Read { reply }).unwrap();
            mailbox.message(message()).unwrap();
        }
        let (reply, _) = oneshot::channel();
        assert_eq!(mailbox.request(Request::Read { reply }), Err(MailboxFull));
        assert_eq!(mailbox.message(message()), Err(MailboxFull));
        mailbox.snapshot_report(2, false);
        mailbox.snapshot_report(2, true);
        let inbox = mailbox.wait(Instant::now());
        assert_eq!((inbox.messages.len(), inbox.requests.len()), (QUEUE_MAX, QUEUE_MAX));
        assert_eq!(inbox.snapshot_reports, BTreeMap::from([(2, true)]));
        assert!(mailbox.wait(Instant::now()).is_empty());
    }

    #[test]
    fn whoever_waits_is_woken() {
        let mailbox = Mailbox::new();
        let other = mailbox.clone();
        let waiting = std::thread::spawn(move || other.wait(Instant::now() + Duration::from_secs(60)).stop);
        mailbox.stop();
        assert!(waiting.join().unwrap());
    }
}
