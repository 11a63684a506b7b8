//! How much a pool holds, and for how long.

use std::time::Duration;

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolLimits {
    /// Tunnels in use per remote.
    pub(crate) per_remote: usize,
    /// Dials at a time, over all remotes.
    pub(crate) dials: usize,
    /// Idle tunnels kept ready to a remote that the agent asked to warm.
    pub(crate) warm: usize,
    /// How long a tunnel beyond the warm ones is kept.
    pub(crate) idle_timeout: Duration,
}

impl Default for PoolLimits {
    /// 1,024 tunnels per remote (SPEC F12). 32 dials at a time: two cores make some 2,000 handshakes a second,
    /// so that the last of them waits 16 ms. 2 warm: a page and its first picture. 60 s idle: longer than the
    /// pause between two pages.
    fn default() -> Self {
        PoolLimits { per_remote: 1_024, dials: 32, warm: 2, idle_timeout: Duration::from_secs(60) }
    }
}
