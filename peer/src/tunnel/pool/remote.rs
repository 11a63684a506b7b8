//! [`Remote`]: the tunnels with one other Peer.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use p2p_common::NodeId;
use p2p_peer_core::Opened;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::PoolLimits;
use super::asked::Asked;
use crate::tunnel::direct::DialFailures;
use crate::tunnel::{DirectTunnel, LinkCounters};

/// What became of the tunnels with one remote since it was asked last.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Tunnels that opened, those we dialled first.
    pub(crate) opened: Vec<Opened>,
    /// How many of those for our forwards closed.
    pub(crate) closed_dialled: u32,
    /// How many of those for its forwards closed.
    pub(crate) closed_accepted: u32,
    /// Why the last of them did.
    pub(crate) reason: String,
    /// How many more tunnels it should dial for us.
    pub(crate) wanted: u32,
    /// The last dial that failed.
    pub(crate) failed: Option<DialFailures>,
    /// The round trip measured last.
    pub(crate) rtt: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Remote {
    pub(super) id: NodeId,
    /// The agent wants tunnels ready.
    pub(super) warm: AtomicBool,
    pub(super) in_use: Arc<Semaphore>,
    /// The last used at the end.
    pub(super) idle: Mutex<Vec<Idle>>,
    pub(super) returned: Notify,
    /// It brought a tunnel it was asked for.
    pub(super) offered: Notify,
    pub(super) asked: Mutex<Asked>,
    /// Forwards that wait until it brings one.
    pub(super) waiting: AtomicU32,
    /// Open tunnels for our forwards, idle or not.
    pub(super) dialled: AtomicU32,
    /// Open tunnels for its forwards.
    pub(super) accepted: AtomicU32,
    pub(super) counters: Arc<LinkCounters>,
    pub(super) changes: Mutex<Changes>,
    pub(super) top_up: Mutex<TopUp>,
}

#[derive(Debug)]
pub(super) struct TopUp {
    pub(super) dialling: bool,
    pub(super) not_before: Instant,
}

#[derive(Debug)]
pub(super) struct Idle {
    pub(super) direct: DirectTunnel,
    pub(super) since: Instant,
}

impl Remote {
    pub(super) fn new(id: NodeId, per_remote: usize) -> Self {
        Remote {
            id,
            warm: AtomicBool::new(false),
            in_use: Arc::new(Semaphore::new(per_remote)),
            idle: Mutex::default(),
            returned: Notify::new(),
            offered: Notify::new(),
            asked: Mutex::default(),
            waiting: AtomicU32::new(0),
            dialled: AtomicU32::new(0),
            accepted: AtomicU32::new(0),
            counters: Arc::default(),
            changes: Mutex::default(),
            top_up: Mutex::new(TopUp { dialling: false, not_before: Instant::now() }),
        }
    }

    /// Drops what broke, and what is too old; how many of each.
    pub(super) fn sweep(&self, cx: &mut Context<'_>, limits: &PoolLimits) -> (usize, usize) {
        let mut idle = lock(&self.idle);
        let before = idle.len();
        idle.retain_mut(|idle| idle.direct.tunnel.poll_idle(cx).is_pending());
        let broken = before - idle.len();
        let keep = if self.warm.load(Ordering::Relaxed) { limits.warm } else { 0 };
        let now = Instant::now();
        // The least recently used are at the front.
        let old =
            idle.iter().take_while(|idle| now.duration_since(idle.since) >= limits.idle_timeout).count();
        let surplus = old.min(idle.len().saturating_sub(keep));
        idle.drain(..surplus);
        (broken, surplus)
    }

    pub(super) fn wants_top_up(&self, warm: usize) -> bool {
        let open = self.dialled.load(Ordering::Relaxed) as usize;
        // A lost link is the agent's to dial again; under load tunnels come back by themselves.
        self.warm.load(Ordering::Relaxed) && (1..warm * 4).contains(&open) && lock(&self.idle).len() < warm
    }

    /// Whether a dial ahead of need starts now: one at a time, and not right after a failure unless `asked`.
    pub(super) fn start_dial(&self, asked: bool) -> bool {
        let mut top_up = lock(&self.top_up);
        let start = !top_up.dialling && (asked || Instant::now() >= top_up.not_before);
        top_up.dialling |= start;
        start
    }
}

/// A panic of another holder leaves these tables whole: they change in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
