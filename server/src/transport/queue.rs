//! What waits for one way out: bounded in number and in bytes, and never waited for by who puts in (SPEC T1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use p2p_server_raft::{Message, MessageKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The queue has no room; what was offered is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A message on its way.
#[derive(Debug)]
pub(super) struct Queued {
    pub message: Message,
    /// When raft sent it.
    pub at: Instant,
    /// What it counts for.
    bytes: usize,
}

/// The way in. Cheap to copy.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    tx: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// The way out.
#[derive(Debug)]
pub(super) struct Waiting {
    rx: mpsc::Receiver<Queued>,
    bytes: Arc<AtomicUsize>,
}

/// A queue for `messages_max` messages with together `bytes_max` bytes; one message may be larger than that.
pub(super) fn queue(messages_max: usize, bytes_max: usize) -> (Queue, Waiting) {
    let (tx, rx) = mpsc::channel(messages_max);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { tx, bytes: Arc::clone(&bytes), bytes_max }, Waiting { rx, bytes })
}

impl Queue {
    /// Puts a message in; never waits.
    pub fn offer(&self, message: Message, at: Instant) -> Result<(), Full> {
        let bytes = size_of(&message);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(bytes) <= self.bytes_max;
        if fits && self.tx.try_send(Queued { message, at, bytes }).is_ok() {
            return Ok(());
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(Full)
    }
}

impl Waiting {
    /// Takes up to `max` messages, at least one; none when nobody can put in any more. Cancel safe.
    pub async fn take(&mut self, into: &mut Vec<Queued>, max: usize) -> usize {
        let count = self.rx.recv_many(into, max).await;
        let bytes: usize = into[into.len() - count..].iter().map(|queued| queued.bytes).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        count
    }

    /// Takes one. Cancel safe.
    pub async fn next(&mut self) -> Option<Queued> {
        let queued = self.rx.recv().await?;
        self.bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
        Some(queued)
    }

    /// Empties it; gives the kinds of what was there.
    pub fn clear(&mut self) -> Vec<MessageKind> {
        let mut kinds = Vec::new();
        while let Ok(queued) = self.rx.try_recv() {
            self.bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
            kinds.push(queued.message.kind);
        }
        kinds
    }
}

/// What a message takes of memory, in round figures.
fn size_of(message: &Message) -> usize {
    let entries: usize = message.entries.iter().map(|entry| entry.data.len() + ENTRY_BYTES).sum();
    ENTRY_BYTES + entries + message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len())
}

/// An entry, or a message, without its data.
const ENTRY_BYTES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use p2p_server_raft::{EntryKind, LogEntry};

    fn message(data: usize) -> Message {
        let entry = LogEntry {
            index: 1,
            term: 1,
            kind: EntryKind::Normal,
            data: vec![0; data].into(),
            context: Bytes::new(),
        };
        Message {
            kind: MessageKind::Append,
            from: 1,
            to: 2,
            term: 1,
            log_term: 0,
            index: 0,
            entries: vec![entry],
            commit: 0,
            commit_term: 0,
            snapshot: None,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn it_is_bounded_in_number_and_in_bytes() {
        let now = Instant::now();
        let (queue, mut waiting) = queue(3, 10_000);
        for _ in 0..3 {
            assert_eq!(queue.offer(message(10), now), Ok(()));
        }
        assert_eq!(queue.offer(message(10), now), Err(Full));
        assert_eq!(waiting.clear().len(), 3);
        // One message passes whatever its size, nothing beside it.
        assert_eq!(queue.offer(message(1 << 20), now), Ok(()));
        assert_eq!(queue.offer(message(10), now), Err(Full));
        assert!(waiting.next().await.is_some());
        assert_eq!(queue.offer(message(6_000), now), Ok(()));
        assert_eq!(queue.offer(message(6_000), now), Err(Full));
        assert_eq!(queue.offer(message(1_000), now), Ok(()));
        let mut taken = Vec::new();
        assert_eq!(waiting.take(&mut taken, 9).await, 2);
        // Nothing is counted twice or left over.
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
        drop(waiting);
        assert_eq!(queue.offer(message(1), now), Err(Full));
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
    }
}
