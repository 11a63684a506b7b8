//! Tunnels that the other side dials: asking for them, and taking those that were asked for (SPEC F2).
//!
//! ```text
//! need ─► ask ─► Changes::wanted ─► agent ─► OPEN_TUNNELS over the mesh link ─► the other side dials, says OFFER
//!                                             whoever waits ◄─ idle ones ◄─ Pool::take_offered ◄─┘
//! ```
//!
//! Only as many are taken as were asked for lately; what comes beyond is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p2p_common::NodeId;
use p2p_common::link::PathKind;
use p2p_common::wire::link::TUNNELS_ASKED_MAX;
use p2p_peer_core::Opened;
use slog::{debug, info};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lease::AcceptedTunnel;
use super::remote::{Remote, lock};
use super::{Pool, PoolError, Shared};
use crate::forward::owner::Owner;
use crate::tunnel::{DirectTunnel, TunnelError};

/// What was asked for comes within this, or not at all: the other side gives each dial 5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than a dial takes on most paths: what has not come by then is asked for again, in case it never comes.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Who asks may be known to the asked one a little later: the same link brings both.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// Why an offered tunnel is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} offers a tunnel that nobody asked it for")]
pub(crate) struct NotAsked(NodeId);

/// When one remote was asked for tunnels that it has not brought yet, the oldest first; at most [`TUNNELS_ASKED_MAX`].
#[derive(Debug, Default)]
pub(super) struct Asked {
    since: VecDeque<Instant>,
    /// How many did not come in time and are not counted yet.
    unanswered: u64,
}

impl Asked {
    fn forget_old(&mut self, now: Instant) {
        while self.since.front().is_some_and(|at| now.duration_since(*at) >= ANSWER_TIMEOUT) {
            self.since.pop_front();
            self.unanswered += 1;
        }
    }

    /// How many did not come in time, since it was asked last.
    fn take_unanswered(&mut self, now: Instant) -> u64 {
        self.forget_old(now);
        std::mem::take(&mut self.unanswered)
    }

    /// Notes that one more is wanted; false when as many are already.
    fn push(&mut self, now: Instant) -> bool {
        self.forget_old(now);
        let room = self.since.len() < TUNNELS_ASKED_MAX as usize;
        if room {
            self.since.push_back(now);
        }
        room
    }

    /// One came; false when none is expected.
    fn pop(&mut self, now: Instant) -> bool {
        self.forget_old(now);
        self.since.pop_front().is_some()
    }

    /// How many can be counted on.
    fn expected(&self, now: Instant) -> usize {
        self.since.iter().filter(|at| now.duration_since(**at) < ASK_AGAIN).count()
    }
}

/// One who waits for a tunnel, counted until dropped.
struct Waiting<'a>(&'a Remote);

impl<'a> Waiting<'a> {
    fn new(remote: &'a Remote) -> Self {
        remote.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(remote)
    }

    /// How many wait, this one included.
    fn count(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed) as usize
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// Dials `count` tunnels to `id`, which asked for them over its mesh link, and serves them with `owner` until it
    /// closes them or `stop`.
    pub(crate) fn offer(&self, id: NodeId, count: u32, owner: &Owner, stop: &CancellationToken) {
        for _ in 0..count.min(TUNNELS_ASKED_MAX) {
            let (shared, owner, stop) = (Arc::clone(&self.shared), owner.clone(), stop.clone());
            tokio::spawn(async move { Box::pin(shared.offer(id, owner, stop)).await });
        }
    }

    /// Takes a tunnel whose dialler serves it, if it was asked for.
    ///
    /// # Errors
    /// When it was not; then it closes.
    pub(crate) fn take_offered(
        &self,
        mut counted: AcceptedTunnel,
        direct: DirectTunnel,
    ) -> Result<(), NotAsked> {
        let (shared, remote) = (&self.shared, Arc::clone(&counted.remote));
        if !lock(&remote.asked).pop(Instant::now()) {
            shared.metrics.unexpected.inc();
            return Err(NotAsked(remote.id));
        }
        shared.metrics.matched.inc();
        if remote.dialled.fetch_add(1, Ordering::Relaxed) == 0 {
            info!(shared.log, "link up"; "peer_id" => remote.id, "address" => %direct.address,
                "rtt_us" => direct.rtt.as_micros() as u64, "congestion" => %direct.congestion);
        }
        let _ = shared.congestion.set(direct.congestion.clone());
        let address = direct.address.to_string();
        let opened = Opened { path: PathKind::Direct, address, dialled: false, carries: true };
        shared.note(&remote, |changes| {
            changes.opened.push(opened);
            changes.rtt = Some(direct.rtt);
        });
        // From here on it is one of ours.
        counted.reason = "it serves the tunnel itself";
        drop(counted);
        shared.put_back(&remote, direct);
        remote.offered.notify_waiters();
        Ok(())
    }
}

impl Shared {
    /// Asks `remote` for tunnels until `count` are on their way, or as many as it may be asked for.
    fn ask(&self, remote: &Remote, count: usize) {
        let now = Instant::now();
        let more = {
            let mut asked = lock(&remote.asked);
            let missing = count.saturating_sub(asked.expected(now));
            (0..missing).take_while(|_| asked.push(now)).count() as u32
        };
        if more > 0 {
            self.metrics.asked.inc_by(u64::from(more));
            self.note(remote, |changes| changes.wanted += more);
        }
    }

    /// Counts the tunnels that `remote` did not bring in time.
    pub(super) fn count_unanswered(&self, remote: &Remote) {
        let unanswered = lock(&remote.asked).take_unanswered(Instant::now());
        if unanswered > 0 {
            self.metrics.timed_out.inc_by(unanswered);
        }
    }

    /// Asks for so many idle tunnels as are missing.
    pub(super) fn ask_ahead(&self, remote: &Remote) {
        let idle = lock(&remote.idle).len();
        self.ask(remote, self.limits.warm.saturating_sub(idle));
    }

    /// A tunnel that is brought, or one that comes back first; with `fresh` only one that is opened from now on.
    ///
    /// None when it is to be dialled by now.
    ///
    /// # Errors
    /// When there is no link any more over which it could be asked.
    pub(super) async fn ask_or_take(
        &self,
        remote: &Arc<Remote>,
        fresh: bool,
    ) -> Result<Option<DirectTunnel>, PoolError> {
        let newer_than = fresh.then(Instant::now);
        let waiting = Waiting::new(remote);
        let mut changes = self.views.changes();
        loop {
            let (offered, returned) = (remote.offered.notified(), remote.returned.notified());
            tokio::pin!(offered, returned);
            // Before the look: what comes meanwhile is then noticed.
            if fresh {
                offered.as_mut().enable();
            } else {
                returned.as_mut().enable();
            }
            if let Some(direct) = self.take_idle(remote, newer_than).await {
                return Ok(Some(direct));
            }
            changes.mark_unchanged();
            if !self.is_asked(remote.id) {
                return Ok(None);
            }
            if !self.hears(remote.id) {
                return Err(PoolError::Unlinked(remote.id));
            }
            self.ask(remote, waiting.count());
            tokio::select! {
                () = offered, if fresh => {}
                () = returned, if !fresh => {}
                // An error would be the end of this process.
                _ = changes.changed() => {}
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    /// Whether there is a link over which `id` can be asked.
    fn hears(&self, id: NodeId) -> bool {
        self.views.tables().peer(id).is_some_and(|known| known.connected)
    }

    async fn offer(self: &Arc<Self>, id: NodeId, owner: Owner, stop: CancellationToken) {
        let mut changes = self.views.changes();
        let known = changes.wait_for(|_| self.views.tables().peer(id).is_some());
        // Unknown for longer: the dial says so.
        let _ = tokio::time::timeout(NEWS_TIMEOUT, known).await;
        let remote = self.remote(id);
        let Some(counted) = self.count_accepted(&remote) else { return };
        let dialled = {
            let _permit = self.dials.acquire().await.expect("the semaphore is never closed");
            self.dial_known(&remote).await
        };
        let mut direct = match dialled {
            Ok(direct) => direct,
            Err(failures) => return self.dial_failed(&remote, &failures),
        };
        let opened = Opened {
            path: PathKind::Direct,
            address: direct.address.to_string(),
            dialled: true,
            carries: false,
        };
        self.note(&remote, |changes| changes.opened.push(opened));
        let serving = async {
            direct.tunnel.offer().await?;
            owner.serve(*direct.tunnel, id, &stop).await
        };
        let served: Result<(), TunnelError> = serving.await;
        if let Err(error) = served {
            debug!(self.log, "tunnel ended"; "peer_id" => id, "error" => %error);
        }
        drop(counted);
    }
}

#[cfg(test)]
mod tests;
