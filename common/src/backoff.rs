//! Waiting longer after each failure, with jitter, so that many nodes that lost the same thing do not all
//! come back at once (SPEC P6).
//!
//! The randomness comes from a [`Jitter`] that its owner seeds: equal seeds give equal waits.

use std::time::Duration;

/// A seeded sequence of numbers (SplitMix64), good enough to spread waits and to pick among equals. Never use
/// it for secrets.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Jitter(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A time between half of `wait` and `wait`.
    pub fn spread(&mut self, wait: Duration) -> Duration {
        let half = wait / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1);
        half + Duration::from_nanos(self.next_u64() % (nanos + 1))
    }
}

/// How long to wait after the next failure: doubled each time, up to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits about `first` after the first failure and never longer than `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Backoff { first, max, failures: 0 }
    }

    /// Counts a failure and says how long to wait because of it.
    pub fn fail(&mut self, jitter: &mut Jitter) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(self.failures.min(31)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        jitter.spread(doubled.min(self.max))
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets the failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let mut jitter = Jitter::new(7);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for full_ms in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.fail(&mut jitter).as_millis();
            assert!((full_ms / 2..=full_ms).contains(&wait), "{wait} of {full_ms}");
        }
        backoff.reset();
        assert!(backoff.fail(&mut jitter) <= Duration::from_millis(100));
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut jitter = Jitter::new(0);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        for _ in 0..100 {
            assert!(backoff.fail(&mut jitter) >= Duration::from_millis(500));
        }
        assert_eq!(backoff.failures(), 100);
    }

    #[test]
    fn seeds_decide() {
        let draw =
            |seed| (0..4).map(|_| 0).scan(Jitter::new(seed), |j, _| Some(j.next_u64())).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
