//! [`TableMetrics`]: sizes of the tables, which move in one step with them.

use p2p_peer_core::{RouteLink, Tables};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::label;

label!(LearnedLabel, learned);

/// Gauges of the tables.
#[derive(Debug, Clone)]
pub(crate) struct TableMetrics {
    known: Learned,
    connected: Learned,
    up: Learned,
    routes: Gauge,
}

/// A gauge of Peers, by how they were met.
#[derive(Debug, Clone)]
struct Learned {
    family: Family<LearnedLabel, Gauge>,
    linked: Gauge,
    told: Gauge,
}

impl Learned {
    fn new() -> Self {
        let family = Family::<LearnedLabel, Gauge>::default();
        let of = |learned| family.get_or_create_owned(&LearnedLabel { learned });
        Learned { linked: of("mesh"), told: of("servers"), family }
    }
}

impl Default for TableMetrics {
    fn default() -> Self {
        let [known, connected, up] = [(); 3].map(|()| Learned::new());
        TableMetrics { known, connected, up, routes: Gauge::default() }
    }
}

impl TableMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "peers",
            "Other Peers in the tables, by how they were met",
            self.known.family.clone(),
        );
        registry.register(
            "peers_connected",
            "Those of them that a mesh link or a Server says are there now",
            self.connected.family.clone(),
        );
        registry.register(
            "peers_up",
            "Those of them to which a tunnel is open, in either direction",
            self.up.family.clone(),
        );
        registry.register("routes", "Rows of the route table, own services included", self.routes.clone());
    }

    /// The tables are now these.
    pub(crate) fn set(&self, tables: &Tables) {
        let mut counts = [[0_i64; 3]; 2];
        for peer in tables.peers().values() {
            let [known, connected, up] = &mut counts[usize::from(peer.linked)];
            *known += 1;
            *connected += i64::from(peer.connected);
            *up += i64::from(matches!(peer.link, RouteLink::Up(_)));
        }
        let [told, linked] = counts;
        for (at, gauge) in [&self.known, &self.connected, &self.up].into_iter().enumerate() {
            gauge.told.set(told[at]);
            gauge.linked.set(linked[at]);
        }
        self.routes.set(i64::try_from(tables.routes_len()).unwrap_or(i64::MAX));
    }
}
