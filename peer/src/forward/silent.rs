//! [`SilentOwners`]: owners that did not answer go last for a while (SPEC F8).
//!
//! A Peer that hangs is in the tables until its 30 s of silence are over, and its tunnels take bytes until then.
//! Each request that goes to it waits in vain; so the first that does warns the others. An owner that answers, no
//! matter what, is as good as any again; one that never does is forgotten when the tables decide about it. An owner
//! without another beside it is asked all the same.
//!
//! Bound: one entry for each Peer that was asked, at most [`OWNERS_MAX`]; when full, further ones are not noted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use p2p_common::NodeId;
use tokio::time::Instant;

/// As long as it takes until a silent Peer counts as offline (SPEC P5).
const REMEMBERED: Duration = Duration::from_secs(30);
/// Of so many owners.
const OWNERS_MAX: usize = 1_024;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct SilentOwners {
    since: Mutex<BTreeMap<NodeId, Instant>>,
    /// How many there are, so that nobody takes the lock while there are none.
    count: AtomicUsize,
}

impl SilentOwners {
    /// `owner` has not answered in time.
    pub(super) fn note(&self, owner: NodeId, now: Instant) {
        let mut since = self.lock();
        if since.len() < OWNERS_MAX || since.contains_key(&owner) {
            since.insert(owner, now);
        }
        self.count.store(since.len(), Ordering::Relaxed);
    }

    /// `owner` has answered.
    pub(super) fn answered(&self, owner: NodeId) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut since = self.lock();
            since.remove(&owner);
            self.count.store(since.len(), Ordering::Relaxed);
        }
    }

    /// Those that go last.
    pub(super) fn list(&self, now: Instant) -> Vec<NodeId> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut since = self.lock();
        since.retain(|_, since| now.duration_since(*since) < REMEMBERED);
        self.count.store(since.len(), Ordering::Relaxed);
        since.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_remembered_until_it_answers_or_for_30_s() {
        let (silent, start) = (SilentOwners::default(), Instant::now());
        let owner = |n: u8| format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap();
        assert!(silent.list(start).is_empty());
        silent.note(owner(1), start);
        silent.note(owner(2), start + Duration::from_secs(10));
        assert_eq!(silent.list(start), [owner(1), owner(2)]);
        silent.answered(owner(3));
        assert_eq!(silent.list(start + REMEMBERED), [owner(2)]);
        silent.answered(owner(2));
        assert!(silent.list(start + REMEMBERED).is_empty());
        for n in 0..2_000 {
            silent.note(format!("C00000000-0000-0000-0000-{n:012x}").parse().unwrap(), start);
        }
        assert_eq!(silent.list(start).len(), OWNERS_MAX);
    }
}
