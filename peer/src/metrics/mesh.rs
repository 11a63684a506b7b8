//! [`MeshMetrics`]: what the agent counts of mesh links, as of the last time it was asked.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use p2p_peer_core::{LinkEnding, LinkSide, MeshCounts};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Counts of mesh links. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct MeshMetrics {
    counts: Arc<Mutex<MeshCounts>>,
}

impl MeshMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// The counts are now these.
    pub(crate) fn set(&self, counts: MeshCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }
}

/// A line of a metric: its labels and its value.
type Row = (Vec<(&'static str, &'static str)>, u64);

impl Collector for MeshMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Mesh links open now, by who dialled: those opened and not closed yet";
        let mut open = encoder.encode_descriptor("mesh_links_open", help, None, MetricType::Gauge)?;
        for (labels, value) in by_side(counts.open()) {
            ConstGauge::new(value).encode(open.encode_family(&labels)?)?;
        }
        for (name, help, value) in [
            ("mesh_registers_sent", "REGISTERs sent", counts.registers_sent),
            ("mesh_heartbeats_sent", "Heartbeats sent, for want of anything else", counts.heartbeats_sent),
            (
                "mesh_heartbeats_missed",
                "Heartbeat times, past the first, in which nothing came over an open mesh link",
                counts.heartbeats_missed,
            ),
            (
                "mesh_peers_offline",
                "Linked Peers forgotten, since nothing was heard of them for the offline time",
                counts.offline,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let closed = LinkSide::ALL.into_iter().zip(counts.closed).flat_map(|(side, endings)| {
            let endings = LinkEnding::ALL.into_iter().zip(endings);
            endings.map(move |(ending, count)| {
                (vec![("side", side.as_str()), ("reason", ending.as_str())], count)
            })
        });
        let answered = [("accepted", counts.registers_accepted), ("refused", counts.registers_refused)];
        let received = [("accepted", counts.registers_taken), ("refused", counts.registers_turned_away)];
        let syncs = [("sent", counts.syncs_sent), ("received", counts.syncs_received)];
        for (name, help, lines) in [
            ("mesh_links_opened", "Mesh links that came about, by who dialled", by_side(counts.opened)),
            ("mesh_links_closed", "Mesh links that ended, by who dialled and why", closed.collect()),
            (
                "mesh_links_failed",
                "Attempts at mesh links that came to nothing, by who dialled",
                by_side(counts.failed),
            ),
            (
                "mesh_registers_answered",
                "Answers of others to REGISTERs sent",
                rows("outcome", answered).collect(),
            ),
            (
                "mesh_registers_received",
                "REGISTERs of others, by how they were answered",
                rows("outcome", received).collect(),
            ),
            ("mesh_syncs", "SYNCs over mesh links", rows("direction", syncs).collect()),
        ] {
            let mut counters = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, value) in lines {
                ConstCounter::new(value).encode(counters.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn by_side(values: [u64; 2]) -> Vec<Row> {
    let names = LinkSide::ALL.map(LinkSide::as_str);
    rows("side", [(names[0], values[0]), (names[1], values[1])]).collect()
}

fn rows(
    key: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = Row> {
    values.into_iter().map(move |(label, value)| (vec![(key, label)], value))
}
