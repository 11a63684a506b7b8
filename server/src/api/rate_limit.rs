//! How often one source may call without credentials, or with wrong ones: a token bucket per source (SPEC I4).
//!
//! Whoever shows good credentials is never counted, also behind the address of somebody who does not; what turns out
//! to be good only in the end, an enrolment, is given back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use p2p_common::Now;
use p2p_runtime::tcp::Source;

/// Calls at once: a few hundred nodes behind one router may be enrolling at a time.
pub const BURST: u64 = 256;
/// Calls a second after that: a refused one costs up to a question to the leader, and a cluster bears thousands of
/// these a second.
pub const RATE_PER_S: u64 = 32;
/// Sources remembered, at some 100 bytes each. When there are more, newcomers share one bucket until others are full
/// again and forgotten, which takes 8 s.
pub const SOURCES_MAX: usize = 16_384;

/// Looking for full buckets costs a walk over all of them.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// A bucket counts in thousandths of calls, so that each millisecond adds `RATE_PER_S`.
const CALL: u64 = 1_000;

/// The buckets of all sources.
#[derive(Debug)]
pub struct RateLimit {
    buckets: BTreeMap<Source, Bucket>,
    shared: Bucket,
    forgot: Now,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: u64,
    at: Now,
}

impl Bucket {
    fn full(now: Now) -> Self {
        Bucket { level: BURST * CALL, at: now }
    }

    fn level(&self, now: Now) -> u64 {
        let ms = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.level.saturating_add(ms.saturating_mul(RATE_PER_S)).min(BURST * CALL)
    }

    fn take(&mut self, now: Now) -> bool {
        let level = self.level(now);
        let left = level.checked_sub(CALL);
        *self = Bucket { level: left.unwrap_or(level), at: now };
        left.is_some()
    }
}

impl RateLimit {
    /// Remembers nobody.
    pub fn new(now: Now) -> Self {
        RateLimit { buckets: BTreeMap::new(), shared: Bucket::full(now), forgot: now }
    }

    /// Counts a call of `source`. Says whether it may go on.
    pub fn take(&mut self, source: IpAddr, now: Now) -> bool {
        let source = Source::from(source);
        if let Some(bucket) = self.buckets.get_mut(&source) {
            return bucket.take(now);
        }
        if self.buckets.len() >= SOURCES_MAX && now.since(self.forgot) >= FORGET_EVERY {
            self.forgot = now;
            // A full bucket says what no bucket says.
            self.buckets.retain(|_, bucket| bucket.level(now) < BURST * CALL);
        }
        if self.buckets.len() >= SOURCES_MAX {
            return self.shared.take(now);
        }
        self.buckets.entry(source).or_insert_with(|| Bucket::full(now)).take(now)
    }

    /// A counted call of `source` was good after all.
    pub fn give_back(&mut self, source: IpAddr) {
        let bucket = self.buckets.get_mut(&Source::from(source)).unwrap_or(&mut self.shared);
        bucket.level = (bucket.level + CALL).min(BURST * CALL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    fn taken(limit: &mut RateLimit, source: IpAddr, now: Now) -> u64 {
        (0..2 * BURST).map(|_| u64::from(limit.take(source, now))).sum()
    }

    #[test]
    fn a_burst_then_a_rate_per_source() {
        let mut limit = RateLimit::new(Now::ZERO);
        assert_eq!(taken(&mut limit, v4(1), Now::ZERO), BURST);
        assert_eq!(taken(&mut limit, v4(2), Now::ZERO), BURST, "others are not touched");
        assert!(!limit.take(v4(1), Now::from_ms(31)));
        assert!(limit.take(v4(1), Now::from_ms(32)));
        assert!(!limit.take(v4(1), Now::from_ms(32)));
        assert_eq!(taken(&mut limit, v4(1), Now::from_ms(1_032)), RATE_PER_S);
        assert_eq!(taken(&mut limit, v4(1), Now::from_ms(3_600_000)), BURST);
    }

    #[test]
    fn what_was_good_is_given_back_and_no_more() {
        let mut limit = RateLimit::new(Now::ZERO);
        for _ in 0..10 * BURST {
            assert!(limit.take(v4(1), Now::ZERO));
            limit.give_back(v4(1));
        }
        limit.give_back(v4(1));
        limit.give_back(v4(2));
        assert_eq!(taken(&mut limit, v4(1), Now::ZERO), BURST);
        assert_eq!(taken(&mut limit, v4(2), Now::ZERO), BURST);
    }

    #[test]
    fn one_client_is_one_source() {
        let mut limit = RateLimit::new(Now::ZERO);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(taken(&mut limit, ip("2001:db8::1"), Now::ZERO), BURST);
        assert_eq!(taken(&mut limit, ip("2001:db8::ffff:1"), Now::ZERO), 0);
        assert_eq!(taken(&mut limit, ip("2001:db8:0:1::1"), Now::ZERO), BURST);
        assert_eq!(taken(&mut limit, ip("::ffff:0.0.0.9"), Now::ZERO), BURST);
        assert_eq!(taken(&mut limit, v4(9), Now::ZERO), 0);
    }

    #[test]
    fn sources_are_bounded_and_newcomers_share() {
        let mut limit = RateLimit::new(Now::ZERO);
        for n in 0..SOURCES_MAX as u32 {
            assert!(limit.take(v4(n), Now::ZERO));
        }
        let newcomers = (0..1_000).filter(|n| limit.take(v4(1 << 20 | n), Now::ZERO)).count();
        assert_eq!((newcomers as u64, limit.buckets.len()), (BURST, SOURCES_MAX));
        // All are full again and forgotten.
        assert!(limit.take(v4(1 << 21), Now::from_ms(1_000)));
        assert_eq!(limit.buckets.len(), 1);
    }
}
