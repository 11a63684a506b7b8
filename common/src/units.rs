//! Time as the cores see it: handed in by the caller, never read.
//!
//! [`Now`] is monotonic and means nothing outside one process; [`UnixMs`] is wall time, used only where
//! people or other nodes read it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on a process's monotonic clock: time since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Now(pub Duration);

impl Now {
    /// The start of the clock.
    pub const ZERO: Now = Now(Duration::ZERO);

    /// The point `ms` milliseconds after the start; for tests and simulations.
    pub const fn from_ms(ms: u64) -> Now {
        Now(Duration::from_millis(ms))
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    pub fn since(self, earlier: Now) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Now {
    type Output = Now;

    fn add(self, later: Duration) -> Now {
        Now(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for Now {
    type Output = Now;

    fn sub(self, earlier: Duration) -> Now {
        Now(self.0.saturating_sub(earlier))
    }
}

/// Wall time in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// Whole seconds since the Unix epoch.
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// This time moved later.
    pub fn plus(self, later: Duration) -> UnixMs {
        UnixMs(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for UnixMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
