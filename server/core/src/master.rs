//! Who is Master, as this Server may say it: what raft knows, turned into a [`MasterTitle`].
//!
//! - The leader holds the title once it is ready, that is, has applied an entry of its own term.
//! - A follower says what raft says and never guesses: without a leader there is no Master.
//! - A title never goes back in (epoch, term), and two Servers never hold the same (epoch, term).
//!
//! It does not elect and does not wait. Owner: the raft driver, which publishes the title. Source: SPEC C6.

use p2p_common::cluster_state::ClusterState;
use p2p_common::member::{MasterTitle, RaftId};
use p2p_common::{Epoch, UnixMs};

/// What this Server's raft says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftSight {
    /// The leader, as far as this Server knows.
    pub leader: Option<RaftId>,
    /// The current term.
    pub term: u64,
    /// This Server leads.
    pub leads: bool,
    /// It has applied an entry of its own term; means something only while it leads.
    pub leader_ready: bool,
}

/// The Master as this Server knows it.
#[derive(Debug, Clone, Default)]
pub struct MasterTracker {
    /// The newest title there was.
    newest: Option<MasterTitle>,
    /// It still holds.
    holds: bool,
}

impl MasterTracker {
    /// Knows no Master.
    pub fn new() -> Self {
        Self::default()
    }

    /// The Master now; none while there is no leader.
    pub fn title(&self) -> Option<&MasterTitle> {
        self.newest.as_ref().filter(|_| self.holds)
    }

    /// Takes in what raft and the replicated state say at wall time `now`. Says whether the title changed.
    pub fn handle_status(&mut self, raft: RaftSight, state: &ClusterState, now: UnixMs) -> bool {
        let claim = self.claim(raft, state, now);
        let changed = claim.as_ref() != self.title();
        self.holds = claim.is_some();
        if claim.is_some() {
            self.newest = claim;
        }
        changed
    }

    fn claim(&self, raft: RaftSight, state: &ClusterState, now: UnixMs) -> Option<MasterTitle> {
        if raft.leads && !raft.leader_ready {
            return None;
        }
        let member = state.member_by_raft_id(raft.leader?)?;
        let token = (state.epoch, raft.term);
        let since = match &self.newest {
            Some(newest) if token < fencing_token(newest) => return None,
            Some(newest) if token == fencing_token(newest) => {
                if newest.id != member.id {
                    return None;
                }
                newest.since
            }
            _ => now,
        };
        Some(MasterTitle {
            id: member.id,
            name: member.name.clone(),
            addresses: member.addresses.clone(),
            term: raft.term,
            cluster_id: state.cluster_id,
            epoch: state.epoch,
            since,
            provisional: false,
        })
    }
}

fn fencing_token(title: &MasterTitle) -> (Epoch, u64) {
    (title.epoch, title.term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::member::Member;
    use p2p_common::{ClusterId, KeyHash, NodeId, NodeKind};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn state(epoch: u64, members: u64) -> ClusterState {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(epoch), Vec::new());
        for raft_id in 1..=members {
            let id = NodeId::new(NodeKind::Server, Uuid::from_u128(raft_id.into()));
            let member = Member {
                id,
                name: format!("s{raft_id}"),
                addresses: vec!["127.0.0.1:7400".parse().unwrap()],
                zone: String::new(),
                raft_id,
                key_hash: KeyHash([0; 32]),
            };
            state.members.insert(id, member);
        }
        state
    }

    fn follows(leader: Option<RaftId>, term: u64) -> RaftSight {
        RaftSight { leader, term, leads: false, leader_ready: false }
    }

    fn leads(ready: bool, term: u64) -> RaftSight {
        RaftSight { leader: Some(1), term, leads: true, leader_ready: ready }
    }

    fn shown(tracker: &MasterTracker) -> Option<(&str, u64, u64)> {
        tracker.title().map(|title| (title.name.as_str(), title.term, title.since.0))
    }

    #[test]
    fn a_leader_is_master_once_it_is_ready() {
        let (mut tracker, state) = (MasterTracker::new(), state(0, 1));
        assert!(!tracker.handle_status(leads(false, 2), &state, UnixMs(1)));
        assert_eq!(tracker.title(), None);
        assert!(tracker.handle_status(leads(true, 2), &state, UnixMs(2)));
        assert_eq!(shown(&tracker), Some(("s1", 2, 2)));
        assert!(!tracker.handle_status(leads(true, 2), &state, UnixMs(3)));
        assert_eq!(shown(&tracker), Some(("s1", 2, 2)), "since is when it was learned");
    }

    #[test]
    fn a_follower_says_what_raft_says() {
        let (mut tracker, mut state) = (MasterTracker::new(), state(0, 2));
        assert!(!tracker.handle_status(follows(Some(9), 1), &state, UnixMs(1)), "not in table C yet");
        assert!(tracker.handle_status(follows(Some(2), 1), &state, UnixMs(2)));
        assert!(tracker.handle_status(follows(None, 1), &state, UnixMs(3)));
        assert_eq!(shown(&tracker), None);
        assert!(tracker.handle_status(follows(Some(2), 1), &state, UnixMs(4)));
        assert_eq!(shown(&tracker), Some(("s2", 1, 2)), "the same title as before");
        for member in state.members.values_mut() {
            member.name = format!("new-{}", member.name);
        }
        assert!(tracker.handle_status(follows(Some(2), 1), &state, UnixMs(5)));
        assert_eq!(shown(&tracker), Some(("new-s2", 1, 2)));
        assert!(tracker.handle_status(follows(Some(1), 3), &state, UnixMs(6)));
        assert_eq!(shown(&tracker), Some(("new-s1", 3, 6)));
    }

    #[test]
    fn a_new_epoch_starts_its_terms_anew() {
        let mut tracker = MasterTracker::new();
        tracker.handle_status(follows(Some(1), 7), &state(0, 1), UnixMs(1));
        assert!(tracker.handle_status(follows(Some(1), 1), &state(1, 1), UnixMs(2)));
        assert!(tracker.handle_status(follows(Some(1), 8), &state(0, 1), UnixMs(3)));
        assert_eq!(tracker.title(), None, "the old epoch is over");
    }

    proptest! {
        #[test]
        fn a_title_never_goes_back_and_has_one_holder(
            events in prop::collection::vec(
                (0u64..3, prop::option::of(1u64..4), 0u64..5, any::<bool>(), any::<bool>()), 0..60,
            ),
        ) {
            let mut tracker = MasterTracker::new();
            let mut newest: Option<((Epoch, u64), NodeId)> = None;
            for (at, (epoch, leader, term, leads, leader_ready)) in events.into_iter().enumerate() {
                let before = tracker.title().cloned();
                let raft = RaftSight { leader, term, leads, leader_ready };
                let changed = tracker.handle_status(raft, &state(epoch, 3), UnixMs(at as u64));
                prop_assert_eq!(changed, before.as_ref() != tracker.title());
                let Some(title) = tracker.title() else { continue };
                let token = fencing_token(title);
                if let Some((held, by)) = newest {
                    prop_assert!(token > held || (token == held && title.id == by));
                }
                newest = Some((token, title.id));
            }
        }
    }
}
