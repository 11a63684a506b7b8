//! [`IngressMetrics`]: what is counted of the ports, as Prometheus reads it.

use p2p_peer_core::Status;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::peek::Caller;
use crate::metrics::label;

label!(KindLabel, kind);
label!(ReasonLabel, reason);
label!(StatusLabel, status, u16);

/// Counts of the ports. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct IngressMetrics {
    opened: [Counter; Caller::KINDS.len()],
    opened_family: Family<KindLabel, Counter>,
    pub(super) open: Gauge,
    refused: Family<ReasonLabel, Counter>,
    answers: Family<StatusLabel, Counter>,
}

impl Default for IngressMetrics {
    fn default() -> Self {
        let opened_family = Family::<KindLabel, Counter>::default();
        IngressMetrics {
            opened: Caller::KINDS.map(|kind| opened_family.get_or_create_owned(&KindLabel { kind })),
            opened_family,
            open: Gauge::default(),
            refused: Family::default(),
            answers: Family::default(),
        }
    }
}

impl IngressMetrics {
    /// Shows the counts in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "connections_opened",
            "Connections to the listening port and bound ports, by what they turned out to be",
            self.opened_family.clone(),
        );
        registry.register(
            "connections_open",
            "Connections to the listening port and bound ports open now",
            self.open.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed before any forward, by reason",
            self.refused.clone(),
        );
        registry.register(
            "error_answers",
            "Errors that HTTP/1 and h2c clients were told by this Peer itself, by status",
            self.answers.clone(),
        );
    }

    pub(super) fn opened(&self, caller: &Caller) {
        self.opened[caller.kind()].inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// How many were closed for `reason`.
    #[cfg(test)]
    pub(super) fn count_refused(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&ReasonLabel { reason }).get()
    }

    pub(super) fn told(&self, status: Status) {
        self.answers.get_or_create(&StatusLabel { status: status.code() }).inc();
    }
}
