//! What other Servers prove to this one about its own place in the cluster.
//!
//! | told | by | then |
//! |---|---|---|
//! | its key is revoked | a Server of its table C, or the state itself | it stops: an operator must act |
//! | it was removed from table C | a Server of its table C | it stops: an operator must act |
//! | a forced recovery has ended its epoch | a Server of its table C | it stops: an operator must act |
//! | its epoch was begun by another recovery, too | whoever shows it in a hello | alarm: both go on, apart |
//!
//! Every such Server has shown the certificate and the pinned key of its row. Source: SPEC C9, C11.

use std::collections::BTreeSet;
use std::sync::Arc;

use p2p_common::wire::HelloError;
use p2p_common::{Epoch, ErrorCode, NodeId};
use prometheus_client::metrics::gauge::Gauge;
use slog::{Logger, error, info};
use tokio::sync::watch;

/// Why this Server must not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MustStop {
    /// It has left table C.
    #[error("this server was removed from the cluster, says {by}: {words}")]
    Removed {
        /// The Server that says so.
        by: NodeId,
        /// In its words.
        words: String,
    },
    /// Its key opens nothing any more.
    #[error("the key of this server is revoked: {words}")]
    Revoked {
        /// In the words of whoever says so.
        words: String,
    },
    /// A forced recovery has begun a new epoch.
    #[error(
        "a forced recovery has ended epoch {ours}, in which this server lives: {by} lives in epoch {theirs}. What only \
         this server holds may not have survived it"
    )]
    EpochOver {
        /// The Server that shows it.
        by: NodeId,
        /// Its epoch.
        theirs: Epoch,
        /// The epoch here.
        ours: Epoch,
    },
}

impl MustStop {
    /// What an operator types to bring the Server of data directory `data` back.
    pub fn way_back(&self, data: &str) -> String {
        match self {
            MustStop::Revoked { .. } => "It does not come back with this key: take it out of the cluster with \
                 `p2p-server remove` at another server, and start a new one with an empty data directory, --join and a \
                 new token"
                .to_owned(),
            MustStop::Removed { .. } | MustStop::EpochOver { .. } => format!(
                "To bring it back, type `p2p-server rejoin --discard-state --data {data}` and start it again: its store \
                 is moved aside, and it returns under a new raft id"
            ),
        }
    }
}

/// What is known now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alarm {
    /// The first proof that this Server must not go on; it stays.
    pub must_stop: Option<MustStop>,
    /// Servers that live in another history of the same epoch.
    pub split_from: BTreeSet<NodeId>,
}

/// Collects alarms and publishes them. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Alarms {
    tx: Arc<watch::Sender<Alarm>>,
    split: Gauge,
    log: Logger,
}

impl Alarms {
    /// None yet; `split` counts the Servers of another history.
    pub fn new(split: Gauge, log: Logger) -> Self {
        Alarms { tx: Arc::new(watch::Sender::default()), split, log }
    }

    /// The newest.
    pub fn watch(&self) -> watch::Receiver<Alarm> {
        self.tx.subscribe()
    }

    /// The hello of `by`, a Server of table C, does not fit ours.
    pub(super) fn hello_refused(&self, by: NodeId, refused: &HelloError) {
        match refused {
            HelloError::EpochAhead { theirs, ours } => {
                self.must_stop(MustStop::EpochOver { by, theirs: *theirs, ours: *ours });
            }
            HelloError::SplitHistory { .. } => self.split(by, &refused.to_string()),
            _ => {}
        }
    }

    /// `by`, a Server of table C, has refused us.
    pub(super) fn refused(&self, by: NodeId, code: ErrorCode, words: &str) {
        match code {
            ErrorCode::RemovedMember => {
                self.must_stop(MustStop::Removed { by, words: words.to_owned() });
            }
            ErrorCode::Revoked => {
                self.must_stop(MustStop::Revoked { words: format!("{by} says so: {words}") })
            }
            ErrorCode::SplitHistory => self.split(by, words),
            _ => {}
        }
    }

    /// `with` and this Server share a history, or it left table C.
    pub(super) fn settled(&self, with: NodeId) {
        let settled = self.tx.send_if_modified(|alarm| alarm.split_from.remove(&with));
        if settled {
            self.count();
            info!(self.log, "split history settled"; "with" => with);
        }
    }

    /// The replicated state, or an emergency here, says that this Server's own key is revoked.
    pub fn revoked(&self) {
        self.must_stop(MustStop::Revoked { words: "an operator has revoked it".to_owned() });
    }

    fn must_stop(&self, why: MustStop) {
        self.tx.send_if_modified(|alarm| {
            let first = alarm.must_stop.is_none();
            if first {
                error!(self.log, "this server must not go on"; "reason" => %why);
                alarm.must_stop = Some(why);
            }
            first
        });
    }

    fn split(&self, from: NodeId, words: &str) {
        if self.tx.send_if_modified(|alarm| alarm.split_from.insert(from)) {
            self.count();
            error!(self.log, "the cluster's history is split"; "from" => from, "reason" => words);
        }
    }

    fn count(&self) {
        self.split.set(i64::try_from(self.tx.borrow().split_from.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::NodeKind;
    use slog::{Discard, o};
    use uuid::Uuid;

    fn server(n: u128) -> NodeId {
        NodeId::new(NodeKind::Server, Uuid::from_u128(n))
    }

    #[test]
    fn the_first_proof_stays_and_a_split_is_counted_once() {
        let split = Gauge::default();
        let alarms = Alarms::new(split.clone(), Logger::root(Discard, o!()));
        let alarm = alarms.watch();
        alarms.refused(server(2), ErrorCode::Forbidden, "not yet");
        alarms.hello_refused(server(2), &HelloError::EpochOver { theirs: Epoch(1), ours: Epoch(2) });
        assert_eq!(*alarm.borrow(), Alarm::default());

        let parted = HelloError::SplitHistory { epoch: Epoch(2), theirs: "a".into(), ours: "b".into() };
        alarms.hello_refused(server(2), &parted);
        alarms.refused(server(2), ErrorCode::SplitHistory, "split");
        alarms.refused(server(3), ErrorCode::SplitHistory, "split");
        assert_eq!((split.get(), alarm.borrow().split_from.len()), (2, 2));
        alarms.settled(server(2));
        assert_eq!((split.get(), alarm.borrow().split_from.contains(&server(3))), (1, true));

        alarms.refused(server(4), ErrorCode::RemovedMember, "raft id 3 was removed");
        alarms.hello_refused(server(2), &HelloError::EpochAhead { theirs: Epoch(3), ours: Epoch(2) });
        alarms.refused(server(2), ErrorCode::Revoked, "revoked");
        let why = alarm.borrow().must_stop.clone().unwrap();
        assert_eq!(why, MustStop::Removed { by: server(4), words: "raft id 3 was removed".into() });
    }
}
