//! Read-only handles to what others own: the data path reads them and waits for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use p2p_common::wire::{Expected, Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, NodeId};
use p2p_peer_core::Tables;
use tokio::sync::watch;

/// Who this Peer is on every wire. The epoch alone changes while it runs: it follows the Servers.
#[derive(Debug)]
pub(crate) struct Myself {
    /// The own Id.
    pub(crate) id: NodeId,
    /// The cluster it enrolled in.
    pub(crate) cluster_id: ClusterId,
    /// This run.
    pub(crate) incarnation: Incarnation,
    epoch: AtomicU64,
}

impl Myself {
    /// At the start of a run.
    pub(crate) fn new(id: NodeId, cluster_id: ClusterId, incarnation: Incarnation, epoch: Epoch) -> Self {
        Myself { id, cluster_id, incarnation, epoch: AtomicU64::new(epoch.0) }
    }

    /// The epoch the Servers live in.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Follows the Servers to another epoch.
    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    /// What is said first on every wire.
    pub(crate) fn hello(&self, to: Option<NodeId>) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: Some(self.cluster_id),
            from: self.id,
            to,
            epoch: self.epoch(),
            recovery_id: None,
            raft_id: 0,
            incarnation: self.incarnation,
            features: 0,
        }
    }

    /// What the hello of the node with this certificate must say.
    pub(crate) fn expected(&self, authenticated: NodeId) -> Expected {
        Expected {
            cluster_id: self.cluster_id,
            epoch: self.epoch(),
            recovery_id: None,
            me: self.id,
            authenticated,
        }
    }
}

/// The tables as the agent published them last.
#[derive(Debug)]
pub(crate) struct Views {
    tables: ArcSwap<Tables>,
    revision: watch::Sender<u64>,
}

impl Views {
    /// With the agent's first tables.
    pub(crate) fn new(tables: Arc<Tables>) -> Self {
        let revision = watch::Sender::new(tables.revision());
        Views { tables: ArcSwap::new(tables), revision }
    }

    /// `RouteTable`, `PeerServices` and the Peers they come from, all of one moment.
    pub(crate) fn tables(&self) -> Guard<Arc<Tables>> {
        self.tables.load()
    }

    /// Replaces them; the agent alone does.
    pub(crate) fn publish(&self, tables: Arc<Tables>) {
        let revision = tables.revision();
        self.tables.store(tables);
        self.revision.send_replace(revision);
    }

    /// Tells when they are replaced.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
