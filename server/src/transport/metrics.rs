//! What the transport counts, per remote Server. A remote's lines go when it leaves the cluster.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::remote::Way;

/// Seconds as a gauge.
type Seconds = Gauge<f64, AtomicU64>;

/// Counts of raft messages and of the connections they take. Cheap to copy: copies count together.
#[derive(Debug, Clone)]
pub struct TransportMetrics {
    sent: Family<WayLabels, Counter>,
    failed: Family<WayLabels, Counter>,
    dropped: Family<WayLabels, Counter>,
    latency: Family<WayLabels, Histogram>,
    received: Family<RemoteLabel, Counter>,
    refused: Family<RemoteLabel, Counter>,
    active: Family<RemoteLabel, Gauge>,
    round_trip: Family<RemoteLabel, Seconds>,
    clock_ahead: Family<RemoteLabel, Seconds>,
    /// Servers that live in another history of the same epoch, now.
    pub split: Gauge,
}

impl Default for TransportMetrics {
    fn default() -> Self {
        // 100 us to 26 s, each bucket four times the one before.
        let latency: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        TransportMetrics {
            sent: Family::default(),
            failed: Family::default(),
            dropped: Family::default(),
            latency: Family::new_with_constructor(latency),
            received: Family::default(),
            refused: Family::default(),
            active: Family::default(),
            round_trip: Family::default(),
            clock_ahead: Family::default(),
            split: Gauge::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemoteLabel {
    remote: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WayLabels {
    remote: String,
    way: &'static str,
}

/// The counts of one remote.
#[derive(Debug)]
pub(crate) struct RemoteMetrics {
    all: TransportMetrics,
    remote: String,
    ways: [WayMetrics; Way::ALL.len()],
    /// 1 while the message stream to it is taken.
    pub active: Gauge,
    pub round_trip: Seconds,
    pub clock_ahead: Seconds,
}

/// The counts of one way out to one remote.
#[derive(Debug)]
pub(crate) struct WayMetrics {
    /// Handed to a connection; of calls and snapshots those the remote has answered.
    pub sent: Counter,
    /// Taken up, and lost with a connection or refused.
    pub failed: Counter,
    /// Not taken up.
    pub dropped: Counter,
    /// In seconds, from raft to the connection; of calls and snapshots until answered.
    pub latency: Histogram,
}

impl TransportMetrics {
    /// Shows the counts in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "raft_messages_sent",
            "Raft messages handed to a connection, by remote and way: append, message, pipeline, snapshot",
            self.sent.clone(),
        );
        registry.register(
            "raft_messages_failed",
            "Raft messages lost with their connection, or refused; raft sends again what it needs",
            self.failed.clone(),
        );
        registry.register(
            "raft_messages_dropped",
            "Raft messages that found no room in a queue, or no connection; raft sends again what it needs",
            self.dropped.clone(),
        );
        registry.register(
            "raft_message_seconds",
            "Time from raft to the connection, of the oldest message of each batch; of calls and snapshots until answered",
            self.latency.clone(),
        );
        registry.register(
            "raft_messages_received",
            "Raft messages taken from another Server",
            self.received.clone(),
        );
        registry.register(
            "raft_messages_refused",
            "Raft messages of another Server that the raft thread had no room for",
            self.refused.clone(),
        );
        registry.register(
            "remote_active",
            "1 while the message stream to a Server is taken there, else 0",
            self.active.clone(),
        );
        registry.register(
            "remote_round_trip_seconds",
            "The last probe's round trip to a Server",
            self.round_trip.clone(),
        );
        registry.register(
            "remote_clock_ahead_seconds",
            "How far a Server's wall clock is ahead of this one's, give or take half a round trip",
            self.clock_ahead.clone(),
        );
        registry.register(
            "split_histories",
            "Servers of table C that live in another history of this epoch; an operator must discard one",
            self.split.clone(),
        );
    }

    /// The counts of one remote, from zero.
    pub(crate) fn remote(&self, name: &str) -> RemoteMetrics {
        let label = RemoteLabel { remote: name.to_owned() };
        let ways = Way::ALL.map(|way| {
            let labels = WayLabels { remote: name.to_owned(), way: way.name() };
            WayMetrics {
                sent: self.sent.get_or_create_owned(&labels),
                failed: self.failed.get_or_create_owned(&labels),
                dropped: self.dropped.get_or_create_owned(&labels),
                latency: self.latency.get_or_create_owned(&labels),
            }
        });
        self.received(name, 0, 0);
        RemoteMetrics {
            all: self.clone(),
            ways,
            active: self.active.get_or_create_owned(&label),
            round_trip: self.round_trip.get_or_create_owned(&label),
            clock_ahead: self.clock_ahead.get_or_create_owned(&label),
            remote: label.remote,
        }
    }

    /// `count` messages came from the Server called `name`, `refused` of them to no avail.
    pub(crate) fn received(&self, name: &str, count: u64, refused: u64) {
        let label = RemoteLabel { remote: name.to_owned() };
        self.received.get_or_create(&label).inc_by(count);
        self.refused.get_or_create(&label).inc_by(refused);
    }

    /// A message to a Server that is none was dropped.
    pub(super) fn dropped_to_nobody(&self, way: Way) {
        let labels = WayLabels { remote: "unknown".to_owned(), way: way.name() };
        self.dropped.get_or_create(&labels).inc();
    }
}

impl RemoteMetrics {
    pub fn way(&self, way: Way) -> &WayMetrics {
        &self.ways[way as usize]
    }

    /// It has left the cluster: its lines go.
    pub fn forget(&self) {
        let label = RemoteLabel { remote: self.remote.clone() };
        for way in Way::ALL {
            let labels = WayLabels { remote: self.remote.clone(), way: way.name() };
            for family in [&self.all.sent, &self.all.failed, &self.all.dropped] {
                family.remove(&labels);
            }
            self.all.latency.remove(&labels);
        }
        for family in [&self.all.received, &self.all.refused] {
            family.remove(&label);
        }
        self.all.active.remove(&label);
        for family in [&self.all.round_trip, &self.all.clock_ahead] {
            family.remove(&label);
        }
    }
}
