//! Keys that open nothing any more, as Servers told them (SPEC I7).
//!
//! ```text
//! kept file ─► known ◄── pieces of each session, in the order of their numbers
//!                ├─► OPEN: up to which number nothing need be told again
//!                └─► new keys ─► links, tunnels, sessions of them are closed; handshakes are refused from now on
//! ```
//!
//! Once revoked a key stays so: nothing takes it out but the bound. Numbers count within an epoch of the cluster; in
//! another one everything is told again. A session tells without gaps from where its OPEN said that this Peer stands,
//! so what it has told up to is known, whatever other sessions are still at.
//!
//! Bound: [`REVOKED_MAX`]; the one that was heard of first makes room. Servers keep no more than that themselves, and
//! only while a certificate of the key may still be good. Owner: the agent; others read what its tables publish.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use p2p_common::cluster_state::REVOCATIONS_MAX;
use p2p_common::push::{RevocationPush, RevokedKey};
use p2p_common::{Epoch, KeyHash, NodeId};

/// At most this many keys: all that Servers replicate, and as many emergencies as they keep.
pub const REVOKED_MAX: usize = REVOCATIONS_MAX + RevocationPush::KEYS_MAX;

/// The keys, with whose they were.
pub type RevokedKeys = BTreeMap<KeyHash, NodeId>;

/// What is known of revocations; whole again after a restart by [`Revoked::restore`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked {
    keys: Arc<RevokedKeys>,
    /// In which order they were heard of.
    order: VecDeque<KeyHash>,
    epoch: Epoch,
    known: u64,
}

impl Revoked {
    /// What an earlier run kept: the keys in their order, and up to which number of `epoch` they are all there.
    pub fn restore(epoch: Epoch, known: u64, keys: impl IntoIterator<Item = (KeyHash, NodeId)>) -> Self {
        let mut revoked = Revoked { epoch, known, ..Revoked::default() };
        for (key_hash, id) in keys {
            revoked.insert(key_hash, id);
        }
        revoked
    }

    /// The keys in the order in which they were heard of, for [`Revoked::restore`].
    pub fn in_order(&self) -> impl Iterator<Item = (KeyHash, NodeId)> {
        self.order.iter().filter_map(|key_hash| Some((*key_hash, *self.keys.get(key_hash)?)))
    }

    /// The epoch that [`Revoked::known_in`] is about.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Every revocation of `epoch` up to this number is known.
    pub fn known_in(&self, epoch: Epoch) -> u64 {
        if epoch == self.epoch { self.known } else { 0 }
    }

    /// The keys, for whoever reads.
    pub fn keys(&self) -> &Arc<RevokedKeys> {
        &self.keys
    }

    /// Takes a piece that a session in `epoch` brought; the keys that were not known.
    pub(crate) fn take(&mut self, epoch: Epoch, push: &RevocationPush) -> Vec<RevokedKey> {
        let new: Vec<RevokedKey> =
            push.keys.iter().filter(|key| self.insert(key.key_hash, key.id)).copied().collect();
        if epoch > self.epoch {
            (self.epoch, self.known) = (epoch, push.up_to);
        } else if epoch == self.epoch {
            self.known = self.known.max(push.up_to);
        }
        new
    }

    /// Whether it is new.
    fn insert(&mut self, key_hash: KeyHash, id: NodeId) -> bool {
        if self.keys.contains_key(&key_hash) {
            return false;
        }
        let keys = Arc::make_mut(&mut self.keys);
        if self.order.len() >= REVOKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            keys.remove(&oldest);
        }
        keys.insert(key_hash, id);
        self.order.push_back(key_hash);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::peer;

    fn key(n: u64) -> KeyHash {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        KeyHash(key)
    }

    fn push(numbers: &[u64], up_to: u64) -> RevocationPush {
        let key = |n: &u64| RevokedKey { number: *n, id: peer(1), key_hash: key(*n) };
        RevocationPush { keys: numbers.iter().map(key).collect(), up_to, done: true }
    }

    #[test]
    fn what_is_new_is_said_once_and_kept() {
        let mut revoked = Revoked::default();
        assert_eq!(revoked.take(Epoch(1), &push(&[1, 2], 2)).len(), 2);
        assert_eq!(revoked.take(Epoch(1), &push(&[2, 3], 3)), push(&[3], 3).keys);
        assert_eq!(revoked.known_in(Epoch(1)), 3);
        let again = Revoked::restore(revoked.epoch(), revoked.known_in(Epoch(1)), revoked.in_order());
        assert_eq!(again, revoked);
    }

    #[test]
    fn a_session_that_is_behind_takes_nothing_back() {
        let mut revoked = Revoked::default();
        revoked.take(Epoch(1), &push(&[1, 2], 2));
        revoked.take(Epoch(1), &push(&[], 1));
        assert_eq!(revoked.known_in(Epoch(1)), 2);
    }

    #[test]
    fn numbers_of_another_epoch_say_nothing_and_keys_stay() {
        let mut revoked = Revoked::default();
        revoked.take(Epoch(1), &push(&[7], 7));
        assert_eq!(revoked.known_in(Epoch(2)), 0);
        revoked.take(Epoch(2), &push(&[1], 1));
        assert_eq!((revoked.known_in(Epoch(2)), revoked.known_in(Epoch(1))), (1, 0));
        revoked.take(Epoch(1), &push(&[8], 8));
        assert_eq!(revoked.known_in(Epoch(2)), 1);
        assert!([7, 1, 8].iter().all(|n| revoked.keys().contains_key(&key(*n))));
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut revoked = Revoked::default();
        let all: Vec<u64> = (1..=REVOKED_MAX as u64 + 3).collect();
        for piece in all.chunks(RevocationPush::KEYS_MAX) {
            revoked.take(Epoch(1), &push(piece, piece[piece.len() - 1]));
        }
        assert_eq!(revoked.keys().len(), REVOKED_MAX);
        assert!(!revoked.keys().contains_key(&key(3)) && revoked.keys().contains_key(&key(4)));
    }
}
