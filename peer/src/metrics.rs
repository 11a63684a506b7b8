//! What a Peer counts, as Prometheus reads it. `docs/metrics.md` lists all of it.
//!
//! Each count has one owner, which moves it where the thing happens and holds a handle of it: labels are looked up
//! only when something failed. Here are those of what the agent knows; forwards, ports and tunnels have theirs beside
//! their code.

mod mesh;
mod tables;

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub(crate) use self::mesh::MeshMetrics;
pub(crate) use self::tables::TableMetrics;
use crate::forward::ForwardMetrics;
use crate::ingress::IngressMetrics;
use crate::tunnel::TunnelMetrics;

/// All counts of a Peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Of forwards.
    pub(crate) forwards: ForwardMetrics,
    /// Of the listening port.
    pub(crate) ingress: IngressMetrics,
    /// Of tunnels.
    pub(crate) tunnels: TunnelMetrics,
    /// Of the tables.
    pub(crate) tables: TableMetrics,
    /// Of mesh links.
    pub(crate) mesh: MeshMetrics,
    /// This host's clock behind the cluster's, in seconds.
    pub(crate) clock_behind: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Shows all counts.
    pub(crate) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("p2p_peer");
        self.forwards.register(&mut registry);
        self.ingress.register(&mut registry);
        self.tunnels.register(&mut registry);
        self.tables.register(&mut registry);
        self.mesh.register(&mut registry);
        registry.register(
            "clock_behind_seconds",
            "This host's clock behind the cluster's, negative when ahead; moves once a second",
            self.clock_behind.clone(),
        );
        registry
    }
}

/// A label set of one key; values are names of the code, if nothing else is said.
macro_rules! label {
    ($name:ident, $key:ident) => {
        $crate::metrics::label!($name, $key, &'static str);
    };
    ($name:ident, $key:ident, $value:ty) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        struct $name {
            $key: $value,
        }
    };
}
pub(crate) use label;
