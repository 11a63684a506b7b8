//! Which keys open nothing any more, and what each session is still to be told of them (SPEC I7).
//!
//! ```text
//! replicated: numbered ─► every session gets those after the number it knows
//! emergencies: not replicated yet ─► every session gets all of them, once
//! ```
//!
//! A session hears of revocations before anything else, in pieces, so that its Peer opens no link to somebody who has
//! been thrown out. Nothing is queued for it: what it gets is computed when it can send.
//!
//! Whose quorum a revoked Server leaves behind is [`check_revocable`]'s question.

use std::collections::{BTreeMap, BTreeSet};

use p2p_common::cluster_state::ClusterState;
use p2p_common::member::RaftId;
use p2p_common::push::{RevocationPush, RevokedKey};
use p2p_common::{KeyHash, NodeId};

use crate::session::SessionId;

/// At most this many emergencies at a time; each waits for a quorum only.
pub const EMERGENCIES_MAX: usize = 256;

/// What each session knows of revocations.
#[derive(Debug, Default)]
pub struct RevocationNews {
    /// The replicated ones by number.
    numbered: BTreeMap<u64, RevokedKey>,
    version: u64,
    /// Those that are not replicated yet, in the order in which they came here.
    emergencies: BTreeMap<u64, RevokedKey>,
    /// The place of the last emergency.
    last_emergency: u64,
    readers: BTreeMap<SessionId, Reader>,
}

#[derive(Debug)]
struct Reader {
    number: u64,
    emergency: u64,
    /// It has heard that nothing more follows.
    done: bool,
}

impl RevocationNews {
    /// Starts with the replicated state as it is.
    pub fn new(state: &ClusterState) -> Self {
        let mut news = RevocationNews::default();
        news.update(state);
        news
    }

    /// Takes a newer state. Says whether there is a new revocation.
    pub fn update(&mut self, state: &ClusterState) -> bool {
        if state.revocations_version == self.version {
            return false;
        }
        self.version = state.revocations_version;
        let numbered = state.revocations.values().map(|revocation| {
            let (number, id, key_hash) = (revocation.number, revocation.id, revocation.key_hash);
            (number, RevokedKey { number, id, key_hash })
        });
        self.numbered = numbered.collect();
        true
    }

    /// The emergencies are now these. Says whether there is a new one.
    pub fn set_emergencies(&mut self, emergencies: &BTreeMap<KeyHash, NodeId>) -> bool {
        self.emergencies.retain(|_, known| emergencies.contains_key(&known.key_hash));
        let known: BTreeSet<KeyHash> = self.emergencies.values().map(|known| known.key_hash).collect();
        let before = self.last_emergency;
        for (key_hash, id) in emergencies.iter().filter(|(key_hash, _)| !known.contains(*key_hash)) {
            self.last_emergency += 1;
            let revoked = RevokedKey { number: 0, id: *id, key_hash: *key_hash };
            self.emergencies.insert(self.last_emergency, revoked);
        }
        self.last_emergency != before
    }

    /// Whether `key_hash` is revoked by an emergency.
    pub fn is_emergency(&self, key_hash: &KeyHash) -> bool {
        self.emergencies.values().any(|revoked| revoked.key_hash == *key_hash)
    }

    /// A session begins, whose Peer knows every revocation up to number `known`.
    pub fn open(&mut self, session: SessionId, known: u64) {
        self.readers.insert(session, Reader { number: known, emergency: 0, done: false });
    }

    /// A session ended.
    pub fn close(&mut self, session: SessionId) {
        self.readers.remove(&session);
    }

    /// The next piece for `session`; none when it has everything. The first one comes also when there is nothing in it:
    /// it says so.
    pub fn poll_push(&mut self, session: SessionId) -> Option<RevocationPush> {
        let reader = self.readers.get_mut(&session)?;
        let mut keys = Vec::new();
        for (place, revoked) in self.emergencies.range(reader.emergency + 1..) {
            if keys.len() == RevocationPush::KEYS_MAX {
                break;
            }
            reader.emergency = *place;
            keys.push(*revoked);
        }
        for (number, revoked) in self.numbered.range(reader.number.saturating_add(1)..) {
            if keys.len() == RevocationPush::KEYS_MAX {
                break;
            }
            reader.number = *number;
            keys.push(*revoked);
        }
        let done = keys.len() < RevocationPush::KEYS_MAX;
        if keys.is_empty() && reader.done {
            return None;
        }
        if done {
            // Numbers of revocations that made room for others are nobody's.
            reader.number = reader.number.max(self.version);
        }
        reader.done = done;
        Some(RevocationPush { keys, up_to: reader.number, done })
    }
}

/// Why a Server is not revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRevocable {
    /// Nobody could vote any more.
    #[error(
        "it is the only voter: without it the cluster decides nothing any more. Add servers first, or use --force"
    )]
    LastVoter,
    /// Too few could vote.
    #[error(
        "without it {reachable} of {voters} voters are reachable from here, and {needed} are needed to decide anything: \
         start the others first, or use --force"
    )]
    QuorumLost {
        /// Voters that would be left and can be reached.
        reachable: usize,
        /// All voters.
        voters: usize,
        /// A majority of them.
        needed: usize,
    },
}

/// Whether the cluster can still decide when the Server `revoked` is not heard any more; `reachable` are those heard
/// here, this Server included. It keeps its vote until it is removed, so a majority counts it.
///
/// # Errors
/// When it cannot.
pub fn check_revocable(
    voters: &BTreeSet<RaftId>,
    reachable: &BTreeSet<RaftId>,
    revoked: RaftId,
) -> Result<(), NotRevocable> {
    if !voters.contains(&revoked) {
        return Ok(());
    }
    if voters.len() == 1 {
        return Err(NotRevocable::LastVoter);
    }
    let needed = voters.len() / 2 + 1;
    let left = voters.iter().filter(|voter| **voter != revoked && reachable.contains(*voter)).count();
    if left >= needed {
        return Ok(());
    }
    Err(NotRevocable::QuorumLost { reachable: left, voters: voters.len(), needed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::command::Revocation;
    use p2p_common::{ClusterId, Epoch, NodeKind, UnixMs};
    use uuid::Uuid;

    fn id(n: u64) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n.into()))
    }

    fn key(n: u64) -> KeyHash {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        KeyHash(key)
    }

    fn state(numbers: impl IntoIterator<Item = u64>) -> ClusterState {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(1), Vec::new());
        for number in numbers {
            let (name, reason) = (String::new(), String::new());
            let revocation = Revocation {
                number,
                id: id(number),
                key_hash: key(number),
                name,
                reason,
                revoked_at: UnixMs(1),
            };
            state.revocations.insert(revocation.key_hash, revocation);
            state.revocations_version = number;
        }
        state
    }

    fn numbers(push: &RevocationPush) -> Vec<u64> {
        push.keys.iter().map(|key| key.number).collect()
    }

    #[test]
    fn a_session_gets_what_it_does_not_know_in_pieces_and_hears_that_there_is_no_more() {
        let session = SessionId(1);
        let mut news = RevocationNews::new(&state(1..=600));
        news.open(session, 50);
        let pieces: Vec<_> = std::iter::from_fn(|| news.poll_push(session)).collect();
        let sent: Vec<u64> = pieces.iter().flat_map(numbers).collect();
        assert_eq!(sent, (51..=600).collect::<Vec<_>>());
        let ends: Vec<_> = pieces.iter().map(|piece| (piece.keys.len(), piece.up_to, piece.done)).collect();
        assert_eq!(ends, [(256, 306, false), (256, 562, false), (38, 600, true)]);

        assert!(!news.update(&state(1..=600)));
        assert!(news.update(&state(1..=601)));
        let piece = news.poll_push(session).unwrap();
        assert_eq!((numbers(&piece), piece.up_to, piece.done), (vec![601], 601, true));
        assert_eq!(news.poll_push(session), None);
    }

    #[test]
    fn who_knows_everything_hears_so_once() {
        let (session, full) = (SessionId(1), SessionId(2));
        let mut news = RevocationNews::new(&state([3, 256]));
        news.open(session, 256);
        let nothing = RevocationPush { keys: Vec::new(), up_to: 256, done: true };
        assert_eq!((news.poll_push(session), news.poll_push(session)), (Some(nothing.clone()), None));
        // It knows more than this Server has heard of yet.
        news.open(session, 300);
        assert_eq!(news.poll_push(session).unwrap().up_to, 300);
        // Exactly one piece full: the end is said in another.
        let mut news = RevocationNews::new(&state(1..=256));
        news.open(full, 0);
        assert!(!news.poll_push(full).unwrap().done);
        assert_eq!((news.poll_push(full), news.poll_push(full)), (Some(nothing), None));
        news.close(full);
        assert_eq!(news.poll_push(full), None);
    }

    #[test]
    fn emergencies_go_to_everybody_once_until_they_are_replicated() {
        let (known, later) = (SessionId(1), SessionId(2));
        let mut news = RevocationNews::new(&state([1]));
        news.open(known, 1);
        news.poll_push(known);
        let emergencies = BTreeMap::from([(key(9), id(9))]);
        assert!(news.set_emergencies(&emergencies) && !news.set_emergencies(&emergencies));
        assert!(news.is_emergency(&key(9)) && !news.is_emergency(&key(1)));
        let piece = news.poll_push(known).unwrap();
        assert_eq!(piece.keys, [RevokedKey { number: 0, id: id(9), key_hash: key(9) }]);
        assert_eq!((piece.up_to, news.poll_push(known)), (1, None));
        news.open(later, 0);
        assert_eq!(numbers(&news.poll_push(later).unwrap()), [0, 1]);

        assert!(!news.set_emergencies(&BTreeMap::new()));
        assert!(news.update(&state([1, 2])));
        assert_eq!(numbers(&news.poll_push(known).unwrap()), [2]);
        assert!(!news.is_emergency(&key(9)));
    }

    #[test]
    fn a_server_whose_vote_is_needed_stays() {
        let set = |ids: &[RaftId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let check = |voters: &[RaftId], reachable: &[RaftId], revoked| {
            check_revocable(&set(voters), &set(reachable), revoked)
        };
        assert_eq!(check(&[1], &[1, 2], 1), Err(NotRevocable::LastVoter));
        assert_eq!(check(&[1], &[1], 2), Ok(()), "a learner");
        assert_eq!(check(&[1, 2, 3], &[1, 2, 3], 3), Ok(()));
        assert_eq!(check(&[1, 2, 3], &[1, 2], 3), Ok(()), "it is down already");
        let lost = NotRevocable::QuorumLost { reachable: 1, voters: 3, needed: 2 };
        assert_eq!(check(&[1, 2, 3], &[1, 3], 3), Err(lost));
        assert_eq!(check(&[1, 2, 3, 4, 5], &[1, 2, 3, 5], 5), Ok(()));
    }
}
