//! Keeps this Server's [`ClusterClock`] at the median of the clocks of all Servers, its own among them, as they are
//! probed each second (SPEC I5, T6).
//!
//! Of a Server that is not connected its last word counts for as long as it is in table C, so that a wrong clock does not
//! gain by a cut; a Server that has heard no other goes by its own. A clock that is off is reported when it begins and
//! when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use p2p_common::member::RaftId;
use p2p_runtime::clock::{ClockBase, ClusterClock, median};
use prometheus_client::metrics::gauge::Gauge;
use slog::{Logger, info, warn};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::raft::View;
use crate::transport::Reach;

/// Our own clock may be set at any time.
const EVERY: Duration = Duration::from_secs(1);

/// How far the cluster's clock is ahead of this host's, in seconds.
pub(crate) type ClockAhead = Gauge<f64, AtomicU64>;

/// What it works with.
pub(crate) struct ClockTask {
    pub clock: ClusterClock,
    pub view: watch::Receiver<Arc<View>>,
    pub reach: watch::Receiver<Arc<Reach>>,
    pub ahead: ClockAhead,
    pub stop: CancellationToken,
    pub log: Logger,
}

impl ClockTask {
    pub async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut complained) = (BTreeMap::new(), false);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = self.reach.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            let reached = Arc::clone(&self.reach.borrow_and_update());
            heard.extend(reached.of.iter().filter_map(|(raft_id, reached)| Some((*raft_id, reached.clock?))));
            {
                let view = self.view.borrow();
                heard.retain(|raft_id, _| view.state.member_by_raft_id(*raft_id).is_some());
            }
            self.clock.set(agreed(ClockBase::own(), &heard));
            self.ahead.set(self.clock.ahead_ms() as f64 / 1_000.0);
            match self.clock.complaint() {
                Some(complaint) if !complained => {
                    warn!(self.log, "this host's clock is wrong"; "ahead_ms" => -self.clock.ahead_ms(),
                        "reason" => complaint);
                    complained = true;
                }
                None if complained => {
                    info!(self.log, "this host's clock is right again");
                    complained = false;
                }
                _ => {}
            }
        }
    }
}

/// What the cluster clock goes by; none is this host's.
fn agreed(own: ClockBase, heard: &BTreeMap<RaftId, ClockBase>) -> Option<ClockBase> {
    if heard.is_empty() {
        return None;
    }
    median(heard.values().copied().chain([own]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_runtime::clock::unix_now;

    #[test]
    fn most_clocks_decide() {
        let now = unix_now();
        let (right, ahead) = (ClockBase::told(now), ClockBase::told(now.plus(Duration::from_secs(3_600))));
        let heard = |clocks: &[ClockBase]| (1..).zip(clocks.iter().copied()).collect();
        assert_eq!(agreed(ahead, &heard(&[right, right])), Some(right));
        assert_eq!(agreed(right, &heard(&[right, ahead])), Some(right));
        assert_eq!(agreed(ahead, &heard(&[])), None);
        // Two Servers agree, though nobody knows who is right.
        assert_eq!(agreed(ahead, &heard(&[right])), agreed(right, &heard(&[ahead])));
    }
}
