//! What a Peer counts, as Prometheus reads it.

use p2p_peer_core::Tables;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::forward::ForwardMetrics;
use crate::ingress::IngressMetrics;

/// All counts of a Peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Of forwards.
    pub(crate) forwards: ForwardMetrics,
    /// Of the listening port.
    pub(crate) ingress: IngressMetrics,
    /// Of the tables.
    pub(crate) tables: TableMetrics,
}

/// Sizes of what the agent owns; they move in one step with the tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct TableMetrics {
    peers: Gauge,
    routes: Gauge,
    tunnels_dialled: Gauge,
    tunnels_accepted: Gauge,
}

impl Metrics {
    /// Shows all counts.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("p2p_peer");
        self.forwards.register(&mut registry);
        self.ingress.register(&mut registry);
        self.tables.register(&mut registry);
        registry
    }
}

impl TableMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("peers", "Other Peers online", self.peers.clone());
        registry.register("routes", "Rows of the route table", self.routes.clone());
        registry.register("tunnels_dialled", "Open tunnels this Peer dialled", self.tunnels_dialled.clone());
        registry.register("tunnels_accepted", "Open tunnels others dialled", self.tunnels_accepted.clone());
    }

    /// The tables are now these.
    pub(crate) fn set_tables(&self, tables: &Tables) {
        self.peers.set(i64::try_from(tables.peers().len()).unwrap_or(i64::MAX));
        self.routes.set(i64::try_from(tables.routes_len()).unwrap_or(i64::MAX));
    }

    /// So many tunnels are open, dialled and accepted.
    pub(crate) fn set_tunnels(&self, (dialled, accepted): (u64, u64)) {
        self.tunnels_dialled.set(i64::try_from(dialled).unwrap_or(i64::MAX));
        self.tunnels_accepted.set(i64::try_from(accepted).unwrap_or(i64::MAX));
    }
}
