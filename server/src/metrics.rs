//! What a Server counts for the operations port. Each metric says when it moves.
//!
//! Gauges of raft and of table C are read from the published view at each scrape; the rest is counted where it
//! happens. Connections are counted by the port itself (`ListenMetrics` of the runtime).

use std::fmt;
use std::sync::Arc;

use p2p_common::addr::CandidateKind;
use p2p_server_core::METHODS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tonic::Code;

use crate::cluster_clock::ClockAhead;
use crate::raft::View;

/// The counts of one Server's API. Cheap to copy: copies count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Peers with a session here; moved by the hub at every opening and end.
    pub sessions: Gauge,
    calls: Family<CallLabels, Counter>,
    proposals: Family<ProposalLabels, Counter>,
    limited: Counter,
    /// Services withheld; moved by the hub when one is that was not before.
    pub(crate) offers_refused: Counter,
    candidates_refused: Family<CandidateLabels, Counter>,
    /// How far this host's clock is behind the cluster's; moved once a second.
    pub clock_behind: ClockAhead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CandidateLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProposalLabels {
    command: &'static str,
    result: &'static str,
}

impl Metrics {
    /// Shows the counts in `registry`, and what `view` says whenever it is read.
    pub fn register(&self, registry: &mut Registry, view: watch::Receiver<Arc<View>>) {
        registry.register(
            "sessions",
            "Peers with an open session at this Server; moves when one is opened or ends",
            self.sessions.clone(),
        );
        registry.register(
            "calls",
            "gRPC calls answered, by method and code; moves when the answer begins: a stream counts as it began",
            self.calls.clone(),
        );
        registry.register(
            "proposals",
            "Commands of API calls put to raft, by result: done, refused (by the state machine), failed (no \
             answer); moves at the answer",
            self.proposals.clone(),
        );
        registry.register(
            "calls_limited",
            "Calls refused because their source made too many without credentials; also counted in calls",
            self.limited.clone(),
        );
        registry.register(
            "offers_refused",
            "Services withheld since their Peer's may_offer does not let it offer them; moves when a session \
             begins to offer one, or the grants change",
            self.offers_refused.clone(),
        );
        for kind in [CandidateKind::Host, CandidateKind::Mapped, CandidateKind::Advertised] {
            drop(self.candidates_refused.get_or_create(&CandidateLabels { kind: kind.as_str() }));
        }
        registry.register(
            "candidates_refused",
            "Addresses of Peers withheld since they may be somebody else's, by kind; moves when a session begins \
             to name one, or the grants change",
            self.candidates_refused.clone(),
        );
        registry.register(
            "clock_behind_seconds",
            "This host's clock behind the cluster's, negative when ahead; moves once a second",
            self.clock_behind.clone(),
        );
        registry.register_collector(Box::new(ViewCollector { view }));
    }

    /// A call was answered.
    pub(crate) fn called(&self, path: &str, code: Code) {
        // Paths are the caller's words: only known ones become labels.
        let known = METHODS.iter().map(|(known, _)| *known).find(|known| *known == path);
        let labels = CallLabels { method: known.unwrap_or("other"), code: code_name(code) };
        self.calls.get_or_create(&labels).inc();
    }

    /// A command came back from raft.
    pub(crate) fn proposed(&self, command: &'static str, result: &'static str) {
        self.proposals.get_or_create(&ProposalLabels { command, result }).inc();
    }

    /// An address was withheld.
    pub(crate) fn candidate_refused(&self, kind: CandidateKind) {
        self.candidates_refused.get_or_create(&CandidateLabels { kind: kind.as_str() }).inc();
    }

    /// A source was stopped for a while.
    pub(crate) fn limited(&self) {
        self.limited.inc();
    }
}

/// The gRPC code as its specification writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Reads the published view at each scrape.
#[derive(Debug)]
struct ViewCollector {
    view: watch::Receiver<Arc<View>>,
}

impl Collector for ViewCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let view = Arc::clone(&self.view.borrow());
        let gauges = [
            ("members", "Servers in table C; moves with its version", view.state.members.len() as u64),
            (
                "members_version",
                "Version of table C; moves at every change of it",
                view.state.members_version,
            ),
            ("is_master", "1 while this Server holds the title of Master, else 0", u64::from(view.leads())),
            ("raft_term", "Raft's term; moves at every election", view.status.term),
            ("raft_commit_index", "The last entry known to be committed", view.committed),
            (
                "raft_applied_index",
                "The last entry applied here; lags behind raft_commit_index",
                view.applied,
            ),
            (
                "identities",
                "Ids bound to a key; moves when a node enrols",
                view.state.identities.len() as u64,
            ),
            (
                "tokens",
                "Tokens stored; moves when one is created, revoked or forgotten",
                view.state.tokens.len() as u64,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
