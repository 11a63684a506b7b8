//! [`Pace`]: how often a Peer may send each kind of message of its session (SPEC P2, P4, S1).
//!
//! Whoever sends more is not refused: its next message is taken when its time has come, and until then HTTP/2 holds
//! it back. Only that Peer notices.

use std::time::Duration;

use tokio::time::Instant;

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A report of services or of links: work for the hub, and news for all others.
    Report,
    /// A sign of life: next to no work.
    Heartbeat,
}

/// Messages a second of each kind, in the long run: a Peer that starts, moves or loses a Server sends some in a row,
/// then hours pass.
const INTERVAL: Duration = Duration::from_millis(250);
/// Reports at once.
const REPORTS: u32 = 32;
/// Heartbeats at once.
const HEARTBEATS: u32 = 16;

/// The buckets of one session, each as the time at which it is full again.
#[derive(Debug)]
pub(super) struct Pace {
    reports: Instant,
    heartbeats: Instant,
}

impl Pace {
    /// Both full.
    pub(super) fn new(now: Instant) -> Self {
        Pace { reports: now, heartbeats: now }
    }

    /// Counts a message that came at `now`; says when it may be taken.
    pub(super) fn take(&mut self, kind: Kind, now: Instant) -> Instant {
        let (full, at_once) = match kind {
            Kind::Report => (&mut self.reports, REPORTS),
            Kind::Heartbeat => (&mut self.heartbeats, HEARTBEATS),
        };
        *full = (*full).max(now) + INTERVAL;
        // A clock that has just begun has no time to go back to.
        full.checked_sub(at_once * INTERVAL).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_kinds_apart() {
        let start = Instant::now() + Duration::from_secs(3_600);
        let mut pace = Pace::new(start);
        for _ in 0..REPORTS {
            assert_eq!(pace.take(Kind::Report, start), start);
        }
        let mut now = start;
        for n in 1..=10 {
            let at = pace.take(Kind::Report, now);
            assert_eq!(at, start + n * INTERVAL);
            now = at;
        }
        for _ in 0..HEARTBEATS {
            assert_eq!(pace.take(Kind::Heartbeat, now), now);
        }
        assert_eq!(pace.take(Kind::Heartbeat, now), now + INTERVAL);
        let later = now + Duration::from_secs(60);
        for _ in 0..REPORTS {
            assert_eq!(pace.take(Kind::Report, later), later);
        }
        assert!(pace.take(Kind::Report, later) > later);
    }
}
