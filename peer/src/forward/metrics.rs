//! [`ForwardMetrics`]: what is counted of forwards, as Prometheus reads it.
//!
//! On the data path counts are reached by handles; labels are looked up only when something failed.

use std::time::Duration;

use p2p_common::ErrorCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::account::Role;
use super::{End, Protocol};
use crate::metrics::label;

/// From a backend on the same host to the longest wait for an owner.
const OPEN_BUCKETS_S: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// From a cache on the same host to a report that takes its minute.
const FIRST_BYTE_BUCKETS_S: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0];
/// From a request that closes to a connection that stays for a day.
const DURATION_BUCKETS_S: [f64; 9] = [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0];

/// What a FORWARD was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// ACCEPT.
    Accepted,
    /// REFUSE.
    Refused,
    /// No RECEIVED, or no verdict, in time.
    TimedOut,
    /// The word on another forward, or on one that came twice.
    Unexpected,
    /// The tunnel broke.
    Lost,
}

impl Answer {
    const ALL: [Answer; 5] =
        [Answer::Accepted, Answer::Refused, Answer::TimedOut, Answer::Unexpected, Answer::Lost];

    const fn as_str(self) -> &'static str {
        match self {
            Answer::Accepted => "accepted",
            Answer::Refused => "refused",
            Answer::TimedOut => "timed_out",
            Answer::Unexpected => "unexpected",
            Answer::Lost => "lost",
        }
    }
}

/// Counts of forwards. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct ForwardMetrics {
    pub(super) active: Gauge,
    pub(super) pending: Gauge,
    pub(super) total: [Counter; Role::ALL.len()],
    total_family: Family<RoleLabel, Counter>,
    failed: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    pub(super) refused_full: Counter,
    bytes_in: Counter,
    bytes_out: Counter,
    bytes_family: Family<DirectionLabel, Counter>,
    ended: [[Counter; End::OUTCOMES.len()]; Role::ALL.len()],
    ended_family: Family<EndLabels, Counter>,
    open: Times,
    first_byte: Times,
    duration: Times,
    requests: [Counter; Protocol::ALL.len()],
    requests_family: Family<ProtocolLabel, Counter>,
    answers: [Counter; Answer::ALL.len()],
    answers_family: Family<OutcomeLabel, Counter>,
}

label!(RoleLabel, role);
label!(ReasonLabel, reason);
label!(DirectionLabel, direction);
label!(ProtocolLabel, protocol);
label!(OutcomeLabel, outcome);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    role: &'static str,
    outcome: &'static str,
}

/// A histogram for each role.
#[derive(Debug, Clone)]
struct Times {
    of: [Histogram; Role::ALL.len()],
    family: Family<RoleLabel, Histogram, fn() -> Histogram>,
}

impl Times {
    fn new(histogram: fn() -> Histogram) -> Self {
        let family = Family::new_with_constructor(histogram);
        let of = Role::ALL.map(|it| family.get_or_create_owned(&RoleLabel { role: it.as_str() }));
        Times { of, family }
    }

    fn observe(&self, role: Role, time: Duration) {
        self.of[role as usize].observe(time.as_secs_f64());
    }
}

impl Default for ForwardMetrics {
    fn default() -> Self {
        let total_family = Family::<RoleLabel, Counter>::default();
        let bytes_family = Family::<DirectionLabel, Counter>::default();
        let requests_family = Family::<ProtocolLabel, Counter>::default();
        let answers_family = Family::<OutcomeLabel, Counter>::default();
        let ended_family = Family::<EndLabels, Counter>::default();
        let ended = |role: Role, outcome| {
            ended_family.get_or_create_owned(&EndLabels { role: role.as_str(), outcome })
        };
        ForwardMetrics {
            active: Gauge::default(),
            pending: Gauge::default(),
            total: Role::ALL.map(|it| total_family.get_or_create_owned(&RoleLabel { role: it.as_str() })),
            total_family,
            failed: Family::default(),
            refused: Family::default(),
            refused_full: Counter::default(),
            bytes_in: bytes_family.get_or_create_owned(&DirectionLabel { direction: "in" }),
            bytes_out: bytes_family.get_or_create_owned(&DirectionLabel { direction: "out" }),
            bytes_family,
            ended: Role::ALL.map(|role| End::OUTCOMES.map(|outcome| ended(role, outcome))),
            ended_family,
            open: Times::new(|| Histogram::new(OPEN_BUCKETS_S)),
            first_byte: Times::new(|| Histogram::new(FIRST_BYTE_BUCKETS_S)),
            duration: Times::new(|| Histogram::new(DURATION_BUCKETS_S)),
            requests: Protocol::ALL
                .map(|it| requests_family.get_or_create_owned(&ProtocolLabel { protocol: it.as_str() })),
            requests_family,
            answers: Answer::ALL
                .map(|it| answers_family.get_or_create_owned(&OutcomeLabel { outcome: it.as_str() })),
            answers_family,
        }
    }
}

impl ForwardMetrics {
    /// Shows the counts in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "forwards_active",
            "Forwards in flight, as ingress and as owner",
            self.active.clone(),
        );
        registry.register(
            "forwards_pending",
            "Forwards that are asked for and neither accepted nor refused yet; part of forwards_active",
            self.pending.clone(),
        );
        registry.register(
            "forwards",
            "Forwards begun, by the part this Peer has in them; pairs with forwards_ended",
            self.total_family.clone(),
        );
        registry.register(
            "forwards_ended",
            "Forwards that ended, by the part this Peer had in them and how they did",
            self.ended_family.clone(),
        );
        registry.register(
            "forwards_failed",
            "Forwards that were refused, could not be opened or broke before their end, by reason",
            self.failed.clone(),
        );
        // What an alert is put on is there before it happens.
        drop(self.refused.get_or_create(&ReasonLabel { reason: ErrorCode::NotGranted.as_str() }));
        registry.register(
            "forwards_refused",
            "FORWARDs of other Peers that this one refused as owner, by reason; moves with the REFUSE",
            self.refused.clone(),
        );
        registry.register(
            "forwards_over_limit",
            "Forwards refused because all slots were taken; not in forwards_failed, since they were never begun",
            self.refused_full.clone(),
        );
        registry.register_with_unit(
            "forward",
            "Bytes of clients (in) and of services (out) carried since the start",
            Unit::Bytes,
            self.bytes_family.clone(),
        );
        registry.register_with_unit(
            "forward_open",
            "How long forwards took from the wish to the first byte that may flow",
            Unit::Seconds,
            self.open.family.clone(),
        );
        registry.register_with_unit(
            "forward_first_byte",
            "How long forwards took from the wish to the first byte of the service",
            Unit::Seconds,
            self.first_byte.family.clone(),
        );
        registry.register_with_unit(
            "forward_duration",
            "How long forwards took from the wish to their end",
            Unit::Seconds,
            self.duration.family.clone(),
        );
        registry.register(
            "requests",
            "Requests of clients by how they asked: HTTP/1 requests one by one, else connections",
            self.requests_family.clone(),
        );
        registry.register(
            "forward_answers",
            "What FORWARDs to owners were answered with; one that is asked twice is counted twice",
            self.answers_family.clone(),
        );
    }

    pub(super) fn count_request(&self, protocol: Protocol) {
        self.requests[protocol as usize].inc();
    }

    pub(super) fn count_answer(&self, answer: Answer) {
        self.answers[answer as usize].inc();
    }

    pub(super) fn count_refusal(&self, code: ErrorCode) {
        self.refused.get_or_create(&ReasonLabel { reason: code.as_str() }).inc();
    }

    pub(super) fn count_bytes(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.inc_by(bytes_in);
        self.bytes_out.inc_by(bytes_out);
    }

    pub(super) fn opened(&self, role: Role, after: Duration) {
        self.open.observe(role, after);
    }

    pub(super) fn answered(&self, role: Role, after: Duration) {
        self.first_byte.observe(role, after);
    }

    pub(super) fn ended(&self, role: Role, end: End, after: Duration) {
        self.duration.observe(role, after);
        self.ended[role as usize][end.outcome()].inc();
        if end != End::Done {
            self.failed.get_or_create(&ReasonLabel { reason: end.as_str() }).inc();
        }
    }
}
