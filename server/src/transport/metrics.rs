//! What the transport counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counts of raft messages. Cheap to copy: copies count together.
#[derive(Debug, Clone, Default)]
pub struct TransportMetrics {
    /// Handed to a connection.
    pub sent: Counter,
    /// Taken from another Server.
    pub received: Counter,
    /// Gone nowhere: the remote is not connected, or a queue is full.
    pub dropped: Counter,
    /// Servers that live in another history of the same epoch, now.
    pub split: Gauge,
}

impl TransportMetrics {
    /// Shows the counts in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("raft_messages_sent", "Raft messages handed to a connection", self.sent.clone());
        registry.register(
            "raft_messages_received",
            "Raft messages taken from other Servers",
            self.received.clone(),
        );
        registry.register(
            "raft_messages_dropped",
            "Raft messages dropped, for want of a connection or of room in a queue; raft sends again",
            self.dropped.clone(),
        );
        registry.register(
            "split_histories",
            "Servers of table C that live in another history of this epoch; an operator must discard one",
            self.split.clone(),
        );
    }
}
