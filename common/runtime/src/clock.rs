//! The only place that reads clocks: a [`Clock`] gives the cores their monotonic [`Now`], [`unix_now`] this host's wall
//! time, and a [`ClusterClock`] the time the cluster agrees on.
//!
//! # The cluster clock (SPEC I5)
//!
//! A certificate signed by a wrong clock is of no use, and a right one looks expired to a wrong clock. So dates are
//! written and judged by the median of the Servers' clocks: one that is off by an hour, or begins in 1970, changes
//! nothing. What a clock shows is kept as its [`ClockBase`], the time it gives the moment at which this host started;
//! so a jump of our own wall clock moves nothing that was learned of others.
//!
//! ```text
//! Server: {own clock, the clock of each connected Server}  ─► median ─► base ─► now = base + time since the host started
//! Peer:   {the cluster clock as each Server told it last}  ─┘
//! nobody heard of: this host's wall clock
//! ```
//!
//! Time-outs have nothing to do with it; they go by the monotonic clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use p2p_common::{Now, UnixMs};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;

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

/// This host's clock is off by more than this from the cluster's: worth a warning (SPEC I5).
pub const CLOCK_OFF: Duration = Duration::from_secs(5 * 60);

/// What a clock shows, as the Unix ms it gives the moment at which this host started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClockBase(i64);

impl ClockBase {
    /// Of this host's wall clock.
    pub fn own() -> Self {
        Self::told(unix_now())
    }

    /// Of a clock that shows `unix` now.
    pub fn told(unix: UnixMs) -> Self {
        let unix = i64::try_from(unix.0).unwrap_or(i64::MAX);
        ClockBase(unix.saturating_sub(host_uptime_ms()))
    }

    /// How far it is ahead of `other` in ms.
    pub fn ahead_ms(self, other: ClockBase) -> i64 {
        self.0.saturating_sub(other.0)
    }
}

/// What most of `clocks` agree on: the median, of an even number the later of the two in the middle, so that all who
/// see the same clocks choose the same one; clocks that were never set are behind. None of none.
pub fn median(mut clocks: Vec<ClockBase>) -> Option<ClockBase> {
    clocks.sort_unstable();
    clocks.get(clocks.len() / 2).copied()
}

const SAME_MS: u64 = 1_000;

/// The time the cluster agrees on. Copies agree with each other: one per process.
#[derive(Debug, Clone, Default)]
pub struct ClusterClock {
    base: watch::Sender<Option<ClockBase>>,
}

impl ClusterClock {
    /// From now on it goes by `base`; by this host's wall clock with `None`. What differs by less than a second is no
    /// change: nobody needs to look at his dates again for it.
    pub fn set(&self, base: Option<ClockBase>) {
        self.base.send_if_modified(|now| {
            let same = match (*now, base) {
                (Some(now), Some(base)) => base.ahead_ms(now).unsigned_abs() < SAME_MS,
                (now, base) => now == base,
            };
            if !same {
                *now = base;
            }
            !same
        });
    }

    /// Sees each change from now on.
    pub fn watch(&self) -> watch::Receiver<Option<ClockBase>> {
        self.base.subscribe()
    }

    /// Whether others were heard of.
    pub fn is_set(&self) -> bool {
        self.base.borrow().is_some()
    }

    /// Waits until others were heard of. Cancel safe.
    pub async fn heard(&self) {
        // The sender is ours.
        let _ = self.base.subscribe().wait_for(Option::is_some).await;
    }

    /// Now.
    pub fn now(&self) -> UnixMs {
        match *self.base.borrow() {
            None => unix_now(),
            Some(ClockBase(base)) => {
                UnixMs(u64::try_from(base.saturating_add(host_uptime_ms())).unwrap_or(0))
            }
        }
    }

    /// How far it is ahead of this host's wall clock, in ms.
    pub fn ahead_ms(&self) -> i64 {
        self.base.borrow().map_or(0, |base| base.ahead_ms(ClockBase::own()))
    }

    /// What people are told when this host's clock is off by more than [`CLOCK_OFF`].
    pub fn complaint(&self) -> Option<String> {
        clock_complaint(self.ahead_ms())
    }
}

/// What people are told of a host whose clock is so far behind the cluster's: nothing below [`CLOCK_OFF`].
pub fn clock_complaint(behind_ms: i64) -> Option<String> {
    let off_ms = behind_ms.unsigned_abs();
    let side = if behind_ms > 0 { "behind" } else { "ahead of" };
    let is_off = u128::from(off_ms) > CLOCK_OFF.as_millis();
    is_off.then(|| format!("its host's clock is {} s {side} the cluster's: set it", off_ms / 1_000))
}

/// A point in time for people: RFC 3339, or `never` for one that no calendar has.
pub fn time_text(at: UnixMs) -> String {
    let time =
        i64::try_from(at.secs()).ok().and_then(|secs| time::OffsetDateTime::from_unix_timestamp(secs).ok());
    let text = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| "never".to_owned())
}

impl TimeProvider for ClusterClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().0)))
    }
}

/// Goes on while the host sleeps, and when its wall clock is set does nothing.
fn host_uptime_ms() -> i64 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    since.tv_sec.saturating_mul(1_000).saturating_add(since.tv_nsec / 1_000_000)
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
    fn the_median_of_the_clocks_counts() {
        let of = |clocks: &[i64]| median(clocks.iter().copied().map(ClockBase).collect()).map(|base| base.0);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(7));
        // Both see the same two, and choose the same.
        assert_eq!(of(&[-1_000, 5]), Some(5));
        assert_eq!(of(&[5, -1_000]), Some(5));
        for odd in [i64::MIN, -3_600_000, 3_600_000, i64::MAX] {
            assert_eq!(of(&[10, odd, 10]), Some(10));
            assert_eq!(of(&[10, 11, odd, 12, 13]).map(|base| (11..=12).contains(&base)), Some(true));
        }
    }

    #[test]
    fn the_cluster_clock_is_our_own_until_others_are_heard_of() {
        let clock = ClusterClock::default();
        assert!(!clock.is_set() && clock.ahead_ms() == 0 && clock.complaint().is_none());
        let year_ms = 365 * 86_400_000;
        let copy = clock.clone();
        copy.set(Some(ClockBase::told(UnixMs(unix_now().0 + year_ms))));
        assert!(clock.is_set());
        assert!(clock.ahead_ms().abs_diff(year_ms as i64) < 5_000, "{}", clock.ahead_ms());
        assert!(clock.complaint().unwrap().contains("behind"), "{:?}", clock.complaint());
        assert!(clock.now().0.abs_diff(unix_now().0 + year_ms) < 5_000);
        clock.set(Some(ClockBase::told(UnixMs(unix_now().0 - 3_600_000))));
        assert!(clock.complaint().unwrap().contains("ahead"), "{:?}", clock.complaint());
        clock.set(None);
        assert_eq!(clock.ahead_ms(), 0);
    }

    #[test]
    fn clocks_out_of_all_bounds_are_no_panic() {
        let clock = ClusterClock::default();
        for unix in [0, u64::MAX] {
            clock.set(Some(ClockBase::told(UnixMs(unix))));
            assert!(clock.is_set());
            let _ = (clock.now(), clock.ahead_ms(), clock.complaint(), clock.current_time());
        }
    }

    #[test]
    fn wall_time_is_this_century() {
        assert!(unix_now().secs() > 1_600_000_000);
    }
}
