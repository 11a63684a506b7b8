//! Keeps this Server's [`ClusterClock`] at the median of the clocks of all Servers it is connected to, its own among
//! them, as they are probed each second (SPEC I5, T6).
//!
//! While no other is connected, what was agreed last counts, so that a wrong clock does not come back with a cut; a Server
//! that is alone in table C goes by its own. A clock that is off is reported when it begins and when it ends.

use std::sync::Arc;
use std::time::Duration;

use p2p_runtime::clock::{ClockBase, ClusterClock, median};
use prometheus_client::metrics::gauge::Gauge;
use slog::{Logger, info, warn};
use std::sync::atomic::AtomicU64;
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
        let mut complained = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = self.reach.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            let is_alone = self.view.borrow().state.members.len() <= 1;
            let others =
                self.reach.borrow_and_update().of.values().filter_map(|reached| reached.clock).collect();
            match agreed(ClockBase::own(), others, is_alone) {
                Agreed::Own => self.clock.set(None),
                Agreed::On(base) => self.clock.set(Some(base)),
                Agreed::AsBefore => {}
            }
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

/// What the cluster clock goes by.
#[derive(Debug, PartialEq, Eq)]
enum Agreed {
    Own,
    On(ClockBase),
    AsBefore,
}

fn agreed(own: ClockBase, mut others: Vec<ClockBase>, is_alone: bool) -> Agreed {
    if others.is_empty() {
        return if is_alone { Agreed::Own } else { Agreed::AsBefore };
    }
    others.push(own);
    median(others).map_or(Agreed::Own, Agreed::On)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_runtime::clock::unix_now;

    #[test]
    fn most_clocks_decide_and_a_cut_forgets_nothing() {
        let now = unix_now();
        let hour = Duration::from_secs(3_600);
        let (right, ahead) = (ClockBase::told(now), ClockBase::told(now.plus(hour)));
        assert_eq!(agreed(ahead, vec![right, right], false), Agreed::On(right));
        assert_eq!(agreed(right, vec![right, ahead], false), Agreed::On(right));
        assert_eq!(agreed(ahead, Vec::new(), false), Agreed::AsBefore);
        assert_eq!(agreed(ahead, Vec::new(), true), Agreed::Own);
        // Two Servers agree, though nobody knows who is right.
        assert_eq!(agreed(ahead, vec![right], false), agreed(right, vec![ahead], false));
    }
}
