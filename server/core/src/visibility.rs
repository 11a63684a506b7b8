//! What of a Peer's entry somebody may see (SPEC F3). It hides; it does not forbid.

use std::sync::Arc;

use p2p_common::NodeId;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::service::{ServiceOffer, Visibility};

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// This Peer: what the cluster may see and what names it; of itself, everything.
    Peer(NodeId),
    /// Operators, readers and Servers: everything but what is private or for linked Peers.
    Operator,
}

/// `entry` as `viewer` may see it; the same allocation when there is nothing to hide.
///
/// A Peer that a service names learns that it is named, and not who else is.
pub fn visible_entry(entry: &Arc<PeerEntry>, viewer: Viewer) -> Arc<PeerEntry> {
    let Viewer::Peer(peer) = viewer else {
        return filter(entry, |service| visible_to_operators(service).then(|| service.clone()));
    };
    if peer == entry.id {
        return entry.clone();
    }
    filter(entry, |service| match &service.visibility {
        Visibility::Cluster => Some(service.clone()),
        Visibility::Linked | Visibility::Private => None,
        Visibility::Ids(ids) => ids
            .contains(&peer)
            .then(|| ServiceOffer { visibility: Visibility::Ids(vec![peer]), ..service.clone() }),
    })
}

fn visible_to_operators(service: &ServiceOffer) -> bool {
    !matches!(service.visibility, Visibility::Linked | Visibility::Private)
}

fn filter(entry: &Arc<PeerEntry>, show: impl Fn(&ServiceOffer) -> Option<ServiceOffer>) -> Arc<PeerEntry> {
    // Most Peers have nothing to hide, and each change goes to every reader.
    if entry.report.services.iter().all(|service| service.visibility == Visibility::Cluster) {
        return entry.clone();
    }
    let report = &entry.report;
    Arc::new(PeerEntry {
        id: entry.id,
        incarnation: entry.incarnation,
        key_hash: entry.key_hash,
        grants: entry.grants.clone(),
        grants_revision: entry.grants_revision,
        report: PeerReport {
            seq: report.seq,
            name: report.name.clone(),
            zone: report.zone.clone(),
            net: report.net.clone(),
            services: report.services.iter().filter_map(show).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::service::ServiceState;
    use p2p_common::{Incarnation, KeyHash, NodeKind};
    use uuid::Uuid;

    fn peer(n: u128) -> NodeId {
        NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
    }

    fn entry(visibilities: &[(&str, Visibility)]) -> Arc<PeerEntry> {
        let offer = |(name, visibility): &(&str, Visibility)| ServiceOffer {
            name: name.parse().unwrap(),
            backend: "127.0.0.1:80".parse().unwrap(),
            visibility: visibility.clone(),
            state: ServiceState::Up,
        };
        Arc::new(PeerEntry {
            id: peer(1),
            incarnation: Incarnation::new(Uuid::from_u128(1)),
            key_hash: KeyHash([1; 32]),
            grants: Arc::default(),
            grants_revision: 0,
            report: PeerReport {
                services: visibilities.iter().map(offer).collect(),
                ..PeerReport::default()
            },
        })
    }

    fn names(entry: &PeerEntry) -> Vec<&str> {
        entry.report.services.iter().map(|service| service.name.as_str()).collect()
    }

    #[test]
    fn each_sees_what_it_may() {
        let entry = entry(&[
            ("all", Visibility::Cluster),
            ("none", Visibility::Private),
            ("near", Visibility::Linked),
            ("two", Visibility::Ids(vec![peer(2), peer(3)])),
        ]);
        let seen = |viewer| visible_entry(&entry, viewer);
        assert_eq!(names(&seen(Viewer::Peer(peer(1)))), ["all", "none", "near", "two"]);
        assert_eq!(names(&seen(Viewer::Peer(peer(2)))), ["all", "two"]);
        assert_eq!(names(&seen(Viewer::Peer(peer(4)))), ["all"]);
        assert_eq!(names(&seen(Viewer::Operator)), ["all", "two"]);
        let named = seen(Viewer::Peer(peer(2)));
        assert_eq!(named.report.services[1].visibility, Visibility::Ids(vec![peer(2)]));
        assert_eq!(named.version(), entry.version());
    }

    #[test]
    fn what_hides_nothing_is_not_copied() {
        let entry = entry(&[("a", Visibility::Cluster), ("b", Visibility::Cluster)]);
        for viewer in [Viewer::Peer(peer(2)), Viewer::Operator] {
            assert!(Arc::ptr_eq(&entry, &visible_entry(&entry, viewer)));
        }
    }
}
