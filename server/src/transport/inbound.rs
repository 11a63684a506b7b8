//! The streams other Servers have opened to this one: of each remote and kind the newest, which ends the one before
//! (SPEC T5). Whoever serves a stream holds a [`Place`] and leaves when it is cancelled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2p_common::member::RaftId;
use tokio_util::sync::CancellationToken;

use super::stream::StreamKind;

/// What a Server may have open here, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Inbound {
    /// Raft messages.
    Stream(StreamKind),
    /// Probes.
    Probe,
}

/// All of them. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(super) struct InboundTable {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    of: BTreeMap<(RaftId, Inbound), (u64, CancellationToken)>,
}

/// One stream's place; gone when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    table: InboundTable,
    key: (RaftId, Inbound),
    number: u64,
    /// Cancelled when a newer stream takes over, the remote is stopped, or this Server stops.
    pub left: CancellationToken,
}

impl InboundTable {
    /// Makes this the stream of `raft_id`; it ends with `stop`.
    pub fn enter(&self, raft_id: RaftId, what: Inbound, stop: &CancellationToken) -> Place {
        let (key, left) = ((raft_id, what), stop.child_token());
        let mut open = self.lock();
        open.last += 1;
        let number = open.last;
        if let Some((_, older)) = open.of.insert(key, (number, left.clone())) {
            older.cancel();
        }
        Place { table: self.clone(), key, number, left }
    }

    /// Ends every stream of `raft_id`.
    pub fn end_all(&self, raft_id: RaftId) {
        self.lock().of.retain(|(of, _), (_, left)| {
            if *of == raft_id {
                left.cancel();
            }
            *of != raft_id
        });
    }

    /// Every change is whole, so a poisoned lock holds what it should.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.table.lock();
        if open.of.get(&self.key).is_some_and(|(newest, _)| *newest == self.number) {
            open.of.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_kind_stays() {
        let (table, stop) = (InboundTable::default(), CancellationToken::new());
        let append = Inbound::Stream(StreamKind::Append);
        let message = Inbound::Stream(StreamKind::Message);
        let older = table.enter(2, append, &stop);
        let other_kind = table.enter(2, message, &stop);
        let other_remote = table.enter(3, append, &stop);
        let newer = table.enter(2, append, &stop);
        assert!(older.left.is_cancelled());
        // The older one's end is not the newer one's.
        drop(older);
        assert!([&other_kind, &other_remote, &newer].iter().all(|place| !place.left.is_cancelled()));
        assert_eq!(table.lock().of.len(), 3);
        table.end_all(2);
        assert!(newer.left.is_cancelled() && other_kind.left.is_cancelled());
        assert!(!other_remote.left.is_cancelled());
        drop((newer, other_kind));
        stop.cancel();
        assert!(other_remote.left.is_cancelled());
        drop(other_remote);
        assert!(table.lock().of.is_empty());
    }
}
