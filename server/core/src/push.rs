//! Table E as this Server sends it: one log of all Peers, a cursor per session.
//!
//! Nothing is queued for a reader: what it gets next is computed when its outbox has room, so that any number of
//! changes in between make one push, and a slow reader costs what a fast one does. The algebra is
//! [`p2p_common::revision`]'s.
//!
//! # What each Peer sees
//!
//! Every Peer is seen by every other, its services as far as they may be ([`visible_entry`]); nobody is sent its
//! own entry. What a reader sees of an entry depends on reader and entry alone, and an entry as a whole is
//! either shown to it always or never. So what it is sent is again a table with the same revisions: a change it
//! may not see is passed over, or arrives as a change that looks like nothing but a new `seq`; and a service
//! taken from its view by a change of visibility is gone with that change, for entries are whole.
//!
//! Source: SPEC P3, F3.

use std::collections::BTreeMap;
use std::sync::Arc;

use p2p_common::push::{PeerEntry, PeerPush};
use p2p_common::revision::{Cursor, Log, Position};
use p2p_common::{Incarnation, NodeId};

use crate::session::SessionId;
use crate::visibility::{Viewer, visible_entry};

/// How many removals are remembered for readers that are away or slow; one that missed more starts anew. As many
/// as there may be sessions, so that a restart of everybody still travels as deltas.
pub const TOMBSTONES_MAX: usize = 20_000;

/// The sending end of table E.
#[derive(Debug)]
pub struct PeerPushes {
    log: Log<NodeId, Arc<PeerEntry>>,
    readers: BTreeMap<SessionId, Reader>,
}

#[derive(Debug)]
struct Reader {
    peer: NodeId,
    cursor: Cursor<NodeId>,
}

impl PeerPushes {
    /// An empty table of the Server's run `incarnation`.
    pub fn new(incarnation: Incarnation) -> Self {
        PeerPushes { log: Log::new(incarnation, TOMBSTONES_MAX), readers: BTreeMap::new() }
    }

    /// Starts to serve the session of `peer`, behind `resume` if that is possible.
    pub fn open(&mut self, session: SessionId, peer: NodeId, resume: Option<Position>) {
        let cursor = self.log.cursor(resume);
        self.readers.insert(session, Reader { peer, cursor });
    }

    /// Stops to serve a session.
    pub fn close(&mut self, session: SessionId) {
        self.readers.remove(&session);
    }

    /// A Peer came or changed.
    pub fn set(&mut self, entry: Arc<PeerEntry>) {
        self.log.set(entry.id, entry);
    }

    /// A Peer went.
    pub fn remove(&mut self, peer: NodeId) {
        self.log.remove(&peer);
    }

    /// How many changes there were.
    pub fn revision(&self) -> u64 {
        self.log.revision()
    }

    /// The next push for `session`, for which its outbox has room; none when it has everything.
    pub fn poll_push(&mut self, session: SessionId) -> Option<PeerPush> {
        let Reader { peer, cursor } = self.readers.get_mut(&session)?;
        let visible = |id: &NodeId, entry: &Arc<PeerEntry>| {
            (id != peer).then(|| visible_entry(entry, Viewer::Peer(*peer)))
        };
        self.log.next_push(cursor, visible, |entry| entry.estimated_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::push::PeerReport;
    use p2p_common::revision::{PIECE_BYTES, Push, View};
    use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
    use p2p_common::{KeyHash, NodeKind};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn peer(n: u8) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n.into()))
    }

    fn run() -> Incarnation {
        Incarnation::new(Uuid::from_u128(1))
    }

    fn entry(n: u8, seq: u64, services: Vec<ServiceOffer>) -> Arc<PeerEntry> {
        let report = PeerReport { seq, name: format!("p{n}"), services, ..PeerReport::default() };
        Arc::new(PeerEntry {
            id: peer(n),
            incarnation: run(),
            key_hash: KeyHash([n; 32]),
            grants: Arc::default(),
            grants_revision: 0,
            report,
        })
    }

    fn offer(name: u8, visibility: Visibility) -> ServiceOffer {
        ServiceOffer {
            name: format!("s{name}").parse().unwrap(),
            backend: "127.0.0.1:80".parse().unwrap(),
            visibility,
            state: ServiceState::Up,
        }
    }

    #[test]
    fn a_change_only_its_owner_makes_is_not_sent_back() {
        let mut pushes = PeerPushes::new(run());
        pushes.open(SessionId(1), peer(1), None);
        pushes.set(entry(1, 1, vec![]));
        let Some(Push::Snapshot(piece)) = pushes.poll_push(SessionId(1)) else { panic!("no snapshot") };
        assert!(piece.first && piece.done && piece.entries.is_empty());
        assert_eq!(pushes.poll_push(SessionId(1)), None);
        pushes.set(entry(1, 2, vec![]));
        assert_eq!(pushes.poll_push(SessionId(1)), None);
        pushes.set(entry(2, 1, vec![]));
        let Some(Push::Delta(delta)) = pushes.poll_push(SessionId(1)) else { panic!("no delta") };
        assert_eq!((delta.previous, delta.revision, delta.changed.len()), (1, 3, 1));
        pushes.close(SessionId(1));
        assert_eq!(pushes.poll_push(SessionId(1)), None);
    }

    #[test]
    fn big_tables_leave_in_small_pieces() {
        let mut pushes = PeerPushes::new(run());
        for n in 2..=200 {
            pushes.set(entry(n, 1, vec![]));
        }
        pushes.open(SessionId(1), peer(1), None);
        let mut view = View::new(1_000);
        while let Some(push) = pushes.poll_push(SessionId(1)) {
            let Push::Snapshot(piece) = &push else { panic!("{push:?}") };
            let bytes: usize = piece.entries.iter().map(|(_, entry)| entry.estimated_bytes()).sum();
            assert!(bytes < PIECE_BYTES + 200, "{bytes}");
            view.apply(run(), push).unwrap();
        }
        assert_eq!(view.entries().len(), 199);
    }

    fn visibility() -> impl Strategy<Value = Visibility> {
        prop_oneof![
            Just(Visibility::Cluster),
            Just(Visibility::Private),
            prop::collection::vec((1u8..5).prop_map(peer), 0..3).prop_map(Visibility::Ids),
        ]
    }

    proptest! {
        /// Every Peer ends with what it may see of the table, whenever it reads.
        #[test]
        fn every_view_is_the_visible_table(
            steps in prop::collection::vec(
                (1u8..5, prop::option::of(prop::collection::vec((0u8..4, visibility()), 0..4)), 0u8..6),
                0..80,
            ),
        ) {
            let mut pushes = PeerPushes::new(run());
            let mut views: BTreeMap<u8, View<NodeId, Arc<PeerEntry>>> = BTreeMap::new();
            for reader in 1..5u8 {
                pushes.open(SessionId(reader.into()), peer(reader), None);
                views.insert(reader, View::new(10));
            }
            let mut table = BTreeMap::new();
            for (seq, (n, change, reads)) in (1..).zip(steps) {
                match change {
                    Some(services) => {
                        let services = services.into_iter().map(|(name, v)| offer(name, v)).collect();
                        let entry = entry(n, seq, services);
                        table.insert(peer(n), entry.clone());
                        pushes.set(entry);
                    }
                    None => {
                        table.remove(&peer(n));
                        pushes.remove(peer(n));
                    }
                }
                if let Some(view) = views.get_mut(&reads)
                    && let Some(push) = pushes.poll_push(SessionId(reads.into()))
                {
                    view.apply(run(), push).unwrap();
                }
            }
            for (reader, view) in &mut views {
                while let Some(push) = pushes.poll_push(SessionId((*reader).into())) {
                    view.apply(run(), push).unwrap();
                }
                let mut expected = table.clone();
                expected.remove(&peer(*reader));
                for entry in expected.values_mut() {
                    *entry = visible_entry(entry, Viewer::Peer(peer(*reader)));
                }
                prop_assert_eq!(view.entries(), &expected);
            }
        }
    }
}
