//! Who is Master as this Server may say it: raft's leader turned into a [`MasterTitle`], and a stand-in where no quorum is.
//!
//! - The leader holds the title once it is ready, that is, has applied an entry of its own term.
//! - A follower says what raft says and never guesses.
//! - A title never goes back in (epoch, term), and two Servers never hold the same (epoch, term).
//! - Where no quorum of the voters is reached, the longest-running of the Servers that still reach each other is
//!   named, *provisionally*: so that there is always a Master to name. Such a title carries the last term there was
//!   and fences nothing.
//!
//! ```text
//! a leader ready ──► title ──no leader──► none ──no quorum reached either, for 500 ms──► provisional
//!       ▲                                                                                     │
//!       └────────────────────────── a leader, or a quorum reached ◄───────────────────────────┘
//! ```
//!
//! It does not elect and does not wait: the owner calls at every change and every [`MasterTracker::LOOK_EVERY`].
//! Owner: the Server's master task, which publishes the title. Source: SPEC C4-C6, FACTS 4.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use p2p_common::cluster_state::ClusterState;
use p2p_common::member::{MasterTitle, Member, RaftId};
use p2p_common::{Epoch, Now, UnixMs};

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

/// Everything the title depends on, as this Server sees it at one moment.
#[derive(Debug, Clone, Copy)]
pub struct MasterSight<'a> {
    /// This Server.
    pub me: RaftId,
    /// When this Server's process started.
    pub started: Now,
    /// What raft says.
    pub raft: RaftSight,
    /// The voters, and while the configuration is joint, those before it: each needs a quorum.
    pub voters: [&'a BTreeSet<RaftId>; 2],
    /// The other Servers that are connected, and when their processes started, on this Server's clock.
    pub reached: &'a BTreeMap<RaftId, Now>,
    /// The replicated state.
    pub state: &'a ClusterState,
}

/// The Master as this Server knows it.
#[derive(Debug, Clone, Default)]
pub struct MasterTracker {
    /// The newest title with a quorum behind it that there was.
    newest: Option<MasterTitle>,
    /// What is said now.
    title: Option<MasterTitle>,
    /// Since when there is neither a leader nor a quorum in reach.
    lost_since: Option<Now>,
}

impl MasterTracker {
    /// How often to look while nothing changes.
    pub const LOOK_EVERY: Duration = Duration::from_millis(100);
    /// Neither a leader nor a quorum for this long makes a provisional Master: a stream that breaks and is opened
    /// again is no outage.
    pub const PROVISIONAL_AFTER: Duration = Duration::from_millis(500);
    /// Starts closer together than this are a tie: each Server learns of the other's by a message that takes time.
    pub const TIE: Duration = Duration::from_millis(50);

    /// Knows no Master.
    pub fn new() -> Self {
        Self::default()
    }

    /// The Master now; none while there is no leader and a quorum that will elect one.
    pub fn title(&self) -> Option<&MasterTitle> {
        self.title.as_ref()
    }

    /// Takes in what this Server sees at `now`, wall time `wall`. Says whether the title changed.
    pub fn handle_sight(&mut self, sight: &MasterSight<'_>, now: Now, wall: UnixMs) -> bool {
        let lost = sight.raft.leader.is_none() && !sight.reaches_quorum();
        self.lost_since = lost.then(|| self.lost_since.unwrap_or(now));
        let long_lost = self.lost_since.is_some_and(|since| now.since(since) >= Self::PROVISIONAL_AFTER);
        let title = if long_lost { self.stand_in(sight, wall) } else { self.claim(sight, wall) };
        if title.as_ref().is_some_and(|title| !title.provisional) {
            self.newest.clone_from(&title);
        }
        let changed = title != self.title;
        self.title = title;
        changed
    }

    /// The leader's title.
    fn claim(&self, sight: &MasterSight<'_>, wall: UnixMs) -> Option<MasterTitle> {
        let MasterSight { raft, state, .. } = sight;
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
            _ => wall,
        };
        Some(title(state, member, raft.term, since, false))
    }

    /// The title of the longest-running Server in reach.
    fn stand_in(&self, sight: &MasterSight<'_>, wall: UnixMs) -> Option<MasterTitle> {
        let state = sight.state;
        let member = sight.longest_running()?;
        let newest = self.newest.as_ref().filter(|newest| newest.epoch == state.epoch);
        let term = newest.map_or(sight.raft.term, |newest| newest.term);
        let before = self.title.as_ref().filter(|before| before.provisional && before.id == member.id);
        Some(title(state, member, term, before.map_or(wall, |before| before.since), true))
    }
}

impl<'a> MasterSight<'a> {
    /// Whether a leader could be elected among the Servers in reach.
    fn reaches_quorum(&self) -> bool {
        let reaches = |id: &&RaftId| **id == self.me || self.reached.contains_key(id);
        let quorum = |voters: &&BTreeSet<RaftId>| voters.iter().filter(reaches).count() > voters.len() / 2;
        // Who knows of no voters yet knows of no outage.
        self.voters.iter().filter(|voters| !voters.is_empty()).all(quorum)
    }

    /// Of this Server and those in reach, as far as table C has them; none while it does not have this one.
    fn longest_running(&self) -> Option<&'a Member> {
        let me = self.state.member_by_raft_id(self.me)?;
        let others = self.reached.iter().filter_map(|(id, started)| {
            Some((*started, self.state.member_by_raft_id(*id).filter(|member| member.raft_id != me.raft_id)?))
        });
        let all: Vec<_> = others.chain([(self.started, me)]).collect();
        let first = all.iter().map(|(started, _)| *started).min()?;
        let tied = all.into_iter().filter(|(started, _)| started.since(first) <= MasterTracker::TIE);
        tied.map(|(_, member)| member).min_by_key(|member| member.raft_id)
    }
}

fn title(state: &ClusterState, member: &Member, term: u64, since: UnixMs, provisional: bool) -> MasterTitle {
    MasterTitle {
        id: member.id,
        name: member.name.clone(),
        addresses: member.addresses.clone(),
        term,
        cluster_id: state.cluster_id,
        epoch: state.epoch,
        since,
        provisional,
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

    /// Sees `raft` as Server 1 of a group that reaches its quorum.
    fn see(tracker: &mut MasterTracker, raft: RaftSight, state: &ClusterState, wall: u64) -> bool {
        let (voters, reached) = (BTreeSet::from([1]), BTreeMap::new());
        let voters = [&voters, &BTreeSet::new()];
        let sight = MasterSight { me: 1, started: Now::ZERO, raft, voters, reached: &reached, state };
        tracker.handle_sight(&sight, Now::ZERO, UnixMs(wall))
    }

    fn shown(tracker: &MasterTracker) -> Option<(&str, u64, u64)> {
        tracker.title().map(|title| (title.name.as_str(), title.term, title.since.0))
    }

    #[test]
    fn a_leader_is_master_once_it_is_ready() {
        let (mut tracker, state) = (MasterTracker::new(), state(0, 1));
        assert!(!see(&mut tracker, leads(false, 2), &state, 1));
        assert_eq!(tracker.title(), None);
        assert!(see(&mut tracker, leads(true, 2), &state, 2));
        assert_eq!(shown(&tracker), Some(("s1", 2, 2)));
        assert!(!see(&mut tracker, leads(true, 2), &state, 3));
        assert_eq!(shown(&tracker), Some(("s1", 2, 2)), "since is when it was learned");
    }

    #[test]
    fn a_follower_says_what_raft_says() {
        let (mut tracker, mut state) = (MasterTracker::new(), state(0, 2));
        assert!(!see(&mut tracker, follows(Some(9), 1), &state, 1), "not in table C yet");
        assert!(see(&mut tracker, follows(Some(2), 1), &state, 2));
        assert!(see(&mut tracker, follows(None, 1), &state, 3));
        assert_eq!(shown(&tracker), None);
        assert!(see(&mut tracker, follows(Some(2), 1), &state, 4));
        assert_eq!(shown(&tracker), Some(("s2", 1, 2)), "the same title as before");
        let renamed = |(id, member): (&NodeId, &Member)| {
            (*id, Member { name: format!("new-{}", member.name), ..member.clone() })
        };
        state.members = state.members.iter().map(renamed).collect();
        assert!(see(&mut tracker, follows(Some(2), 1), &state, 5));
        assert_eq!(shown(&tracker), Some(("new-s2", 1, 2)));
        assert!(see(&mut tracker, follows(Some(1), 3), &state, 6));
        assert_eq!(shown(&tracker), Some(("new-s1", 3, 6)));
    }

    #[test]
    fn a_new_epoch_starts_its_terms_anew() {
        let mut tracker = MasterTracker::new();
        see(&mut tracker, follows(Some(1), 7), &state(0, 1), 1);
        assert!(see(&mut tracker, follows(Some(1), 1), &state(1, 1), 2));
        assert!(see(&mut tracker, follows(Some(1), 8), &state(0, 1), 3));
        assert_eq!(tracker.title(), None, "the old epoch is over");
    }

    #[test]
    fn who_is_not_in_the_table_names_no_stand_in() {
        let (mut tracker, state) = (MasterTracker::new(), state(0, 2));
        let (voters, reached) = (BTreeSet::from([1]), BTreeMap::from([(2, Now::ZERO)]));
        let voters = [&voters, &BTreeSet::new()];
        let raft = follows(None, 3);
        let sight = MasterSight { me: 9, started: Now::ZERO, raft, voters, reached: &reached, state: &state };
        tracker.handle_sight(&sight, Now::ZERO, UnixMs(1));
        assert!(!tracker.handle_sight(&sight, Now::from_ms(5_000), UnixMs(2)));
        assert_eq!(tracker.title(), None);
        let sight = MasterSight { me: 2, reached: &BTreeMap::from([(9, Now::ZERO)]), ..sight };
        assert!(tracker.handle_sight(&sight, Now::from_ms(9_000), UnixMs(3)));
        let title = tracker.title().unwrap();
        assert_eq!(
            (title.name.as_str(), title.term, title.provisional),
            ("s2", 3, true),
            "raft's term, for display"
        );
    }

    proptest! {
        #[test]
        fn a_title_never_goes_back_and_has_one_holder(
            events in prop::collection::vec(
                (
                    (0u64..3, prop::option::of(1u64..4), 0u64..5, any::<bool>(), any::<bool>()),
                    prop::collection::btree_map(2u64..4, (0u64..200).prop_map(Now::from_ms), 0..3),
                    0u64..800,
                ),
                0..60,
            ),
        ) {
            let mut tracker = MasterTracker::new();
            let mut newest: Option<((Epoch, u64), NodeId)> = None;
            let (mut now, mut wall) = (Now::ZERO, 0);
            let voters = BTreeSet::from([1, 2, 3]);
            for ((epoch, leader, term, leads, leader_ready), reached, ms) in events {
                (now, wall) = (now + Duration::from_millis(ms), wall + ms);
                let before = tracker.title().cloned();
                let raft = RaftSight { leader, term, leads, leader_ready };
                let state = state(epoch, 3);
                let voters = [&voters, &BTreeSet::new()];
                let sight = MasterSight { me: 1, started: Now::from_ms(100), raft, voters, reached: &reached, state: &state };
                let changed = tracker.handle_sight(&sight, now, UnixMs(wall));
                prop_assert_eq!(changed, before.as_ref() != tracker.title());
                let Some(title) = tracker.title() else { continue };
                if title.provisional {
                    prop_assert!(leader.is_none() && reached.is_empty());
                    prop_assert!(newest.is_none_or(|(held, _)| fencing_token(title) == held || title.epoch != held.0));
                    continue;
                }
                prop_assert!(leader.is_some());
                let token = fencing_token(title);
                if let Some((held, by)) = newest {
                    prop_assert!(token > held || (token == held && title.id == by));
                }
                newest = Some((token, title.id));
            }
        }
    }
}
