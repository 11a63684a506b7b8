//! Tables E1..n: what each Server says of the Peers online there, and the one merged answer.
//!
//! Each Server's pushes keep a [`View`] of their own. Merged, a Peer is online while any Server's view holds
//! it, and its newest entry by (incarnation, seq) is the one that counts. The merged rows are a pure function
//! of the views: losing a view can bring an older entry back, until the Server that holds it catches up.
//!
//! Views of Servers that are away stay as they are until their owner drops them; a returning Server resumes
//! where its view stands. This Peer itself is in no merged row. Owner: the agent. Source: SPEC P3.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2p_common::cluster_state::IDENTITIES_MAX;
use p2p_common::push::{PeerEntry, PeerPush};
use p2p_common::revision::{Applied, Position, Resync, View};
use p2p_common::{Incarnation, NodeId, UnixMs};

/// A Peer that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlinePeer {
    /// Its newest entry.
    pub entry: Arc<PeerEntry>,
    /// The Servers it is online at.
    pub servers: BTreeSet<NodeId>,
    /// When this entry was last told.
    pub synced_at: UnixMs,
}

/// All Servers' views and what they say together.
#[derive(Debug)]
pub(crate) struct PeerViews {
    me: NodeId,
    views: BTreeMap<NodeId, View<NodeId, Arc<PeerEntry>>>,
    merged: BTreeMap<NodeId, OnlinePeer>,
}

impl PeerViews {
    pub(crate) fn new(me: NodeId) -> Self {
        PeerViews { me, views: BTreeMap::new(), merged: BTreeMap::new() }
    }

    /// A session with `server` begins: where to resume its pushes.
    pub(crate) fn begin_session(&mut self, server: NodeId) -> Option<Position> {
        self.view_mut(server).begin_session()
    }

    /// Whether `server`'s whole table has been seen in its run `incarnation`.
    pub(crate) fn is_loaded(&self, server: NodeId, incarnation: Incarnation) -> bool {
        let at = self.views.get(&server).and_then(View::position);
        at.is_some_and(|at| at.incarnation == incarnation)
    }

    /// Applies a push and says whose merged row may have changed.
    ///
    /// # Errors
    /// When the push does not follow: the session must end and begin anew.
    pub(crate) fn apply(
        &mut self,
        server: NodeId,
        incarnation: Incarnation,
        push: PeerPush,
        unix: UnixMs,
    ) -> Result<Vec<NodeId>, Resync> {
        let changed = match self.view_mut(server).apply(incarnation, push)? {
            Applied::Pending => return Ok(Vec::new()),
            Applied::Changed(peers) => peers,
            Applied::Replaced => self.concerned_by(server),
        };
        Ok(self.merge(changed, unix))
    }

    /// Forgets what `server` said and says whose merged row may have changed.
    pub(crate) fn drop_server(&mut self, server: NodeId, unix: UnixMs) -> Vec<NodeId> {
        if self.views.remove(&server).is_none() {
            return Vec::new();
        }
        self.merge(self.concerned_by(server), unix)
    }

    /// The Servers that have a view here.
    pub(crate) fn servers(&self) -> impl Iterator<Item = NodeId> {
        self.views.keys().copied()
    }

    /// The Peer `id`, while it is online.
    pub(crate) fn get(&self, id: NodeId) -> Option<&OnlinePeer> {
        self.merged.get(&id)
    }

    /// All Peers online, by Id.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &OnlinePeer)> {
        self.merged.iter().map(|(id, online)| (*id, online))
    }

    /// Whoever `server`'s view holds now or held at the last merge.
    fn concerned_by(&self, server: NodeId) -> Vec<NodeId> {
        let held =
            self.merged.iter().filter(|(_, online)| online.servers.contains(&server)).map(|(id, _)| *id);
        let holds = self.views.get(&server).into_iter().flat_map(|view| view.entries().keys().copied());
        held.chain(holds).collect::<BTreeSet<NodeId>>().into_iter().collect()
    }

    /// Derives the rows of `peers` anew.
    fn merge(&mut self, mut peers: Vec<NodeId>, unix: UnixMs) -> Vec<NodeId> {
        peers.retain(|id| *id != self.me);
        for id in &peers {
            let held = |view: &View<NodeId, Arc<PeerEntry>>| view.entries().get(id).cloned();
            let holders = self.views.iter().filter_map(|(server, view)| Some((*server, held(view)?)));
            let holders: BTreeMap<NodeId, Arc<PeerEntry>> = holders.collect();
            match newest(&holders) {
                Some(entry) => {
                    let servers = holders.into_keys().collect();
                    self.merged.insert(*id, OnlinePeer { entry, servers, synced_at: unix });
                }
                None => {
                    self.merged.remove(id);
                }
            }
        }
        peers
    }

    fn view_mut(&mut self, server: NodeId) -> &mut View<NodeId, Arc<PeerEntry>> {
        self.views.entry(server).or_insert_with(|| View::new(IDENTITIES_MAX))
    }
}

/// The newest entry, under the newest grants: a Server that lags behind in these may be ahead in the rest.
fn newest(holders: &BTreeMap<NodeId, Arc<PeerEntry>>) -> Option<Arc<PeerEntry>> {
    let newest = holders.values().max_by_key(|entry| (entry.version(), entry.grants_revision))?;
    let granted = holders.values().max_by_key(|entry| entry.grants_revision)?;
    if granted.grants_revision <= newest.grants_revision {
        return Some(newest.clone());
    }
    let mut entry = PeerEntry::clone(newest);
    (entry.grants, entry.grants_revision) = (granted.grants.clone(), granted.grants_revision);
    entry.report.services.retain(|offer| granted.grants.may_offer.matches(offer.name.as_str()));
    Some(Arc::new(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{entry, peer, run, server};
    use p2p_common::grants::Grants;
    use p2p_common::push::PeerPush;
    use p2p_common::revision::{Delta, Piece};
    use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
    use proptest::prelude::*;

    fn snapshot(revision: u64, entries: &[Arc<PeerEntry>]) -> PeerPush {
        let entries = entries.iter().map(|entry| (entry.id, entry.clone())).collect();
        PeerPush::Snapshot(Piece { revision, first: true, done: true, entries })
    }

    fn views() -> PeerViews {
        PeerViews::new(peer(99))
    }

    fn seen(views: &PeerViews) -> Vec<(NodeId, u64, usize)> {
        views.iter().map(|(id, online)| (id, online.entry.report.seq, online.servers.len())).collect()
    }

    #[test]
    fn a_peer_is_online_while_any_server_holds_it_and_the_newest_entry_counts() {
        let mut views = views();
        let unix = UnixMs(5);
        let changed = views.apply(server(1), run(1), snapshot(1, &[entry(1, 7), entry(2, 1)]), unix).unwrap();
        assert_eq!(changed, [peer(1), peer(2)]);
        views.apply(server(2), run(2), snapshot(9, &[entry(1, 6), entry(99, 1)]), unix).unwrap();
        assert_eq!(seen(&views), [(peer(1), 7, 2), (peer(2), 1, 1)]);
        assert_eq!(views.drop_server(server(1), unix), [peer(1), peer(2)]);
        assert_eq!(seen(&views), [(peer(1), 6, 1)]);
        assert_eq!(views.drop_server(server(1), unix), []);
        views.apply(server(2), run(2), snapshot(10, &[]), unix).unwrap();
        assert_eq!(seen(&views), []);
    }

    #[test]
    fn the_newest_grants_count_whoever_tells_them() {
        let offer = |name: &str| ServiceOffer {
            name: name.parse().unwrap(),
            backend: "127.0.0.1:80".parse().unwrap(),
            visibility: Visibility::Cluster,
            state: ServiceState::Up,
        };
        let of = |seq: u64, revision: u64, may_offer: &str| {
            let mut entry = PeerEntry::clone(&entry(1, seq));
            entry.report.services = vec![offer("a"), offer("b")];
            entry.report.services.retain(|offer| may_offer.contains(offer.name.as_str()));
            entry.grants = Arc::new(Grants { may_offer: may_offer.parse().unwrap(), ..Grants::default() });
            entry.grants_revision = revision;
            Arc::new(entry)
        };
        for (one, two, services) in [
            (of(5, 3, "a"), of(5, 2, "a,b"), 1),
            (of(5, 3, "a"), of(6, 2, "a,b"), 1),
            (of(6, 3, "a,b"), of(5, 2, "a"), 2),
        ] {
            for servers in [[1, 2], [2, 1]] {
                let mut views = views();
                for (server_n, entry) in servers.into_iter().zip([&one, &two]) {
                    let (of, run) = (server(server_n), run(server_n));
                    views.apply(of, run, snapshot(1, std::slice::from_ref(entry)), UnixMs(0)).unwrap();
                }
                let merged = views.get(peer(1)).unwrap().entry.clone();
                assert_eq!((merged.grants_revision, merged.report.services.len()), (3, services));
                assert_eq!(merged.version(), one.version().max(two.version()));
            }
        }
    }

    #[test]
    fn a_returning_server_resumes_and_a_gap_begins_anew() {
        let mut views = views();
        assert_eq!(views.begin_session(server(1)), None);
        views.apply(server(1), run(1), snapshot(4, &[entry(1, 1)]), UnixMs(0)).unwrap();
        assert_eq!(views.begin_session(server(1)), Some(Position { incarnation: run(1), revision: 4 }));
        assert!(views.is_loaded(server(1), run(1)));
        assert!(!views.is_loaded(server(1), run(2)), "another run of the Server counts anew");
        let gap =
            PeerPush::Delta(Delta { previous: 9, revision: 10, changed: vec![], removed: vec![peer(1)] });
        views.apply(server(1), run(1), gap, UnixMs(0)).unwrap_err();
        assert_eq!(seen(&views).len(), 1, "what is known stays");
        assert_eq!(views.begin_session(server(1)), None);
    }

    proptest! {
        #[test]
        fn merged_rows_follow_from_the_views_alone(
            steps in proptest::collection::vec((1u8..4, proptest::collection::btree_map(1u8..6, 1u64..4, 0..5)), 1..12)
        ) {
            let mut views = views();
            let mut last = BTreeMap::new();
            for (revision, (who, peers)) in steps.into_iter().enumerate() {
                let entries: Vec<_> = peers.iter().map(|(n, seq)| entry(*n, *seq)).collect();
                if entries.is_empty() {
                    views.drop_server(server(who), UnixMs(0));
                    last.remove(&who);
                } else {
                    views.apply(server(who), run(who), snapshot(revision as u64 + 1, &entries), UnixMs(0)).unwrap();
                    last.insert(who, entries);
                }
            }
            let mut fresh = PeerViews::new(peer(99));
            for (who, entries) in last {
                fresh.apply(server(who), run(who), snapshot(1, &entries), UnixMs(0)).unwrap();
            }
            prop_assert_eq!(seen(&views), seen(&fresh));
        }
    }
}
