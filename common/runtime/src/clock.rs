//! The only place that reads clocks: a [`Clock`] gives the cores their monotonic [`Now`], and wall time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use p2p_common::{Now, UnixMs};

/// What a clock shows at its start: 100 years, so that what began before it, another process say, has its place too.
const AT_START: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A process's clock, made as it starts; copies agree with each other.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now. Make one per process and copy it.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Monotonic time.
    pub fn now(&self) -> Now {
        self.started() + self.uptime()
    }

    /// When the clock was made.
    pub fn started(&self) -> Now {
        Now(AT_START)
    }

    /// Since the clock was made.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    /// The point on tokio's clock that stands for `at`: what a core's next deadline is waited for with.
    pub fn instant(&self, at: Now) -> tokio::time::Instant {
        let at = self.start.checked_add(at.since(self.started()));
        // Further away than the platform can say is as good as a day: the loop then asks again.
        let at = at.unwrap_or_else(|| Instant::now() + std::time::Duration::from_secs(86_400));
        tokio::time::Instant::from_std(at)
    }
}

/// Wall time; zero for a clock set before 1970.
pub fn unix_now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn what_began_earlier_has_its_place() {
        let clock = Clock::start();
        assert!(clock.now() - Duration::from_secs(3_600) < clock.started());
        assert!(clock.instant(clock.now() + Duration::from_secs(3_600)) > tokio::time::Instant::now());
        assert!(clock.instant(Now::ZERO) <= tokio::time::Instant::now());
    }

    #[test]
    fn copies_agree_and_never_go_back() {
        let clock = Clock::start();
        let copy = clock;
        let earlier = clock.now();
        assert!(copy.now() >= earlier);
    }

    #[test]
    fn a_deadline_beyond_the_platform_is_still_a_deadline() {
        let clock = Clock::start();
        let far = clock.instant(Now(Duration::MAX));
        assert!(far > tokio::time::Instant::now());
    }

    #[test]
    fn wall_time_is_this_century() {
        assert!(unix_now().secs() > 1_600_000_000);
    }
}
