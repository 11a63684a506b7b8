//! [`TunnelMetrics`]: what is counted of tunnels, as Prometheus reads it.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::metrics::label;

label!(ForwardsLabel, forwards);
label!(OutcomeLabel, outcome);

/// Counts of tunnels. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct TunnelMetrics {
    open_family: Family<ForwardsLabel, Gauge>,
    own: Gauge,
    others: Gauge,
    dials_family: Family<OutcomeLabel, Counter>,
    pub(super) dialled: Counter,
    pub(super) dial_failed: Counter,
    pub(super) asked: Counter,
    offers_family: Family<OutcomeLabel, Counter>,
    pub(super) matched: Counter,
    pub(super) timed_out: Counter,
    pub(super) unexpected: Counter,
}

impl Default for TunnelMetrics {
    fn default() -> Self {
        let open_family = Family::<ForwardsLabel, Gauge>::default();
        let dials_family = Family::<OutcomeLabel, Counter>::default();
        let offers_family = Family::<OutcomeLabel, Counter>::default();
        let open = |forwards| open_family.get_or_create_owned(&ForwardsLabel { forwards });
        let dials = |outcome| dials_family.get_or_create_owned(&OutcomeLabel { outcome });
        let offers = |outcome| offers_family.get_or_create_owned(&OutcomeLabel { outcome });
        TunnelMetrics {
            own: open("own"),
            others: open("others"),
            dialled: dials("open"),
            dial_failed: dials("failed"),
            asked: Counter::default(),
            matched: offers("matched"),
            timed_out: offers("timed_out"),
            unexpected: offers("unexpected"),
            open_family,
            dials_family,
            offers_family,
        }
    }
}

impl TunnelMetrics {
    /// Shows the counts in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tunnels_open",
            "Tunnels open now, for own forwards and for those of other Peers, whoever dialled",
            self.open_family.clone(),
        );
        registry.register(
            "tunnel_dials",
            "Dials of tunnels, by what came of them",
            self.dials_family.clone(),
        );
        registry.register(
            "tunnels_asked",
            "Tunnels that Peers which cannot be dialled were asked for; pairs with tunnel_offers",
            self.asked.clone(),
        );
        registry.register(
            "tunnel_offers",
            "Tunnels of such Peers: that came as asked, did not come in time, or that nobody had asked for",
            self.offers_family.clone(),
        );
    }

    /// So many are open, for own forwards and for those of others.
    pub(crate) fn set_open(&self, (own, others): (u64, u64)) {
        self.own.set(i64::try_from(own).unwrap_or(i64::MAX));
        self.others.set(i64::try_from(others).unwrap_or(i64::MAX));
    }
}
