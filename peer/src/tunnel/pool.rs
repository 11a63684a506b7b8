//! [`Pool`]: the tunnels to each remote Peer that are between two forwards, and the dialling of more.
//!
//! ```text
//! take ─► idle one, the last used first ─► sound? ─► Lease ─► give_back ─► idle
//!    └──► none: dial, or take what comes back meanwhile, whichever is first
//! ```
//!
//! A Peer that opened a mesh link to here and may not be dialled is asked to bring tunnels instead, see [`asked`].
//!
//! Peers the agent asked to [warm](Pool::warm) are kept [`PoolLimits::warm`] tunnels ready, so that a forward
//! waits for no handshake; those beyond are closed when they were idle for [`PoolLimits::idle_timeout`]. A
//! tunnel is dropped at the first sign of trouble; that it broke while idle is noticed at once or within
//! [`SWEEP_INTERVAL`].
//!
//! Whom to dial where, and which key it must show, is read from the published tables. What became of it is
//! told by [`Pool::take_changes`]: the agent, owner of table F, collects it when [`Pool::changed`] says so.
//!
//! One task, [`Pool::run`], sweeps and tops up. The idle tunnels of a remote are under a lock of its own, held
//! for a push or a pop and never across an await. Bounds: tunnels per remote (a taker waits for one until its
//! deadline, then fails), dials at a time (takers wait likewise).

mod asked;
mod error;
mod lease;
mod limits;
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::link::PathKind;
use p2p_common::{KeyHash, NodeId};
use p2p_peer_core::{Opened, Reach};
use p2p_runtime::tcp::CongestionReport;
use slog::{Logger, debug, info};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::remote::{Idle, Remote, lock};
use super::direct::DialFailures;
use super::{DirectDialer, DirectTunnel, OpenTunnels, TunnelMetrics};
use crate::published::Views;

pub(crate) use self::error::{NotAccepted, PoolError};
pub(crate) use self::lease::{AcceptedTunnel, Lease};
pub(crate) use self::limits::PoolLimits;
pub(crate) use self::remote::Changes;

/// How often idle tunnels are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// After a failed dial nothing is topped up for this long; the agent decides when a lost link is dialled again.
const TOP_UP_REST: Duration = Duration::from_secs(5);

/// The tunnels of this Peer. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dialer: DirectDialer,
    views: Arc<Views>,
    limits: PoolLimits,
    remotes: Mutex<BTreeMap<NodeId, Arc<Remote>>>,
    dials: Semaphore,
    /// Remotes with changes, for whoever keeps table F.
    changed_ids: Mutex<BTreeSet<NodeId>>,
    changed: Notify,
    /// There is something to do for [`Pool::run`].
    wake: Notify,
    congestion: OnceLock<CongestionReport>,
    metrics: TunnelMetrics,
    log: Logger,
}

impl Pool {
    /// An empty pool; [`Pool::run`] must run beside it.
    pub(crate) fn new(
        dialer: DirectDialer,
        views: Arc<Views>,
        limits: PoolLimits,
        metrics: TunnelMetrics,
        log: Logger,
    ) -> Self {
        let dials = Semaphore::new(limits.dials);
        let shared = Shared {
            dialer,
            views,
            limits,
            remotes: Mutex::default(),
            dials,
            changed_ids: Mutex::default(),
            changed: Notify::new(),
            wake: Notify::new(),
            congestion: OnceLock::new(),
            metrics,
            log,
        };
        Pool { shared: Arc::new(shared) }
    }

    /// Opens a tunnel to `id` ahead of need, in the background, and keeps some ready as long as the link lasts.
    pub(crate) fn warm(&self, id: NodeId) {
        let remote = self.shared.remote(id);
        remote.warm.store(true, Ordering::Relaxed);
        self.shared.open_ahead(remote, true);
    }

    /// Closes the idle tunnels to `id`; those in use end with their forward.
    pub(crate) fn drop_idle(&self, id: NodeId) {
        let Some(remote) = lock(&self.shared.remotes).get(&id).cloned() else { return };
        remote.warm.store(false, Ordering::Relaxed);
        let idle = std::mem::take(&mut *lock(&remote.idle));
        if !idle.is_empty() {
            self.shared.closed(&remote, idle.len(), "the peer is offline or shows another key");
        }
    }

    /// Where connections of tunnels that others dialled are entered.
    pub(crate) fn open_tunnels(&self) -> &OpenTunnels {
        &self.shared.dialer.open
    }

    /// Whether nothing may be taken up with whoever shows this key.
    pub(crate) fn is_revoked(&self, key_hash: &KeyHash) -> bool {
        self.shared.views.tables().is_revoked(key_hash)
    }

    /// Closes every tunnel of these keys, those with a forward on them as well. The tables that say that they are
    /// revoked are published before: what comes in between sees them.
    pub(crate) fn close_revoked(&self, keys: &[KeyHash]) -> usize {
        keys.iter().map(|key_hash| self.shared.dialer.open.close(key_hash)).sum()
    }

    /// A sound tunnel to `id`, by `deadline`.
    ///
    /// # Errors
    /// When the remote is not known, does not answer, or has no tunnel free in time.
    pub(crate) async fn take(&self, id: NodeId, deadline: Instant) -> Result<Lease, PoolError> {
        if self.shared.views.tables().peer(id).is_none() {
            return Err(PoolError::Unknown(id));
        }
        let remote = self.shared.remote(id);
        let slot = tokio::time::timeout_at(deadline, Arc::clone(&remote.in_use).acquire_owned());
        let slot = slot
            .await
            .map_err(|_| PoolError::Exhausted { id, max: self.shared.limits.per_remote })?
            .expect("the semaphore is never closed");
        let direct = match self.shared.take_idle(&remote, None).await {
            Some(direct) => direct,
            None => {
                let dialled = tokio::time::timeout_at(deadline, self.shared.dial_or_take(&remote));
                Box::pin(dialled).await.map_err(|_| PoolError::TimedOut(id))??
            }
        };
        Ok(Lease { direct: Some(direct), remote, shared: Arc::clone(&self.shared), _slot: slot })
    }

    /// Another tunnel to `id` than those that lie idle, by `deadline`: for a forward that is not heard of on one of
    /// them, since what silenced that one may have silenced them all.
    ///
    /// # Errors
    /// As for [`Pool::take`].
    pub(crate) async fn take_fresh(&self, id: NodeId, deadline: Instant) -> Result<Lease, PoolError> {
        let remote = self.shared.remote(id);
        let slot = Arc::clone(&remote.in_use).try_acquire_owned();
        let slot = slot.map_err(|_| PoolError::Exhausted { id, max: self.shared.limits.per_remote })?;
        let dial = async {
            if self.shared.is_asked(id)
                && let Some(direct) = self.shared.ask_or_take(&remote, true).await?
            {
                return Ok(direct);
            }
            let _permit = self.shared.dials.acquire().await.expect("the semaphore is never closed");
            let dialled = self.shared.dial(&remote).await;
            dialled.map_err(|failures| PoolError::Unreachable { id, failures })
        };
        let direct = tokio::time::timeout_at(deadline, dial).await.map_err(|_| PoolError::TimedOut(id))??;
        Ok(Lease { direct: Some(direct), remote, shared: Arc::clone(&self.shared), _slot: slot })
    }

    /// Counts a tunnel that `id` dialled to us from `address`. It may know us before we know it: table E then
    /// has until `deadline` to name it.
    ///
    /// # Errors
    /// When table E does not name it, names it with another key, or it has too many tunnels.
    pub(crate) async fn accept(
        &self,
        id: NodeId,
        key_hash: KeyHash,
        address: HostPort,
        deadline: Instant,
    ) -> Result<AcceptedTunnel, NotAccepted> {
        let mut changes = self.shared.views.changes();
        let expected = loop {
            changes.mark_unchanged();
            if self.is_revoked(&key_hash) {
                return Err(NotAccepted::Revoked(id));
            }
            if let Some(peer) = self.shared.views.tables().peer(id) {
                break peer.entry.key_hash;
            }
            let named = tokio::time::timeout_at(deadline, changes.changed()).await;
            named.map_err(|_| NotAccepted::Unknown(id))?.map_err(|_| NotAccepted::Unknown(id))?;
        };
        if expected != key_hash {
            return Err(NotAccepted::OtherKey { id, expected, found: key_hash });
        }
        let remote = self.shared.remote(id);
        let counted = self.shared.count_accepted(&remote).ok_or(NotAccepted::TooMany(id))?;
        let opened =
            Opened { path: PathKind::Direct, address: address.to_string(), dialled: false, carries: false };
        self.shared.note(&remote, |changes| changes.opened.push(opened));
        Ok(counted)
    }

    /// What became of tunnels since it was asked last, by remote.
    pub(crate) fn take_changes(&self) -> Vec<(NodeId, Changes)> {
        let ids = std::mem::take(&mut *lock(&self.shared.changed_ids));
        let remotes = lock(&self.shared.remotes);
        let changed = ids.into_iter().filter_map(|id| remotes.get(&id));
        changed.map(|remote| (remote.id, std::mem::take(&mut *lock(&remote.changes)))).collect()
    }

    /// Payload bytes in and out since it was asked last, of links on which some moved.
    pub(crate) fn take_traffic(&self) -> Vec<(NodeId, u64, u64)> {
        let remotes = lock(&self.shared.remotes);
        let moved = remotes.values().map(|remote| {
            let counters = &remote.counters;
            let bytes_in = counters.bytes_in.swap(0, Ordering::Relaxed);
            (remote.id, bytes_in, counters.bytes_out.swap(0, Ordering::Relaxed))
        });
        moved.filter(|(_, bytes_in, bytes_out)| bytes_in + bytes_out > 0).collect()
    }

    /// Waits until there are changes. One waiter; cancel safe.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// What the first tunnel's TCP ran on.
    pub(crate) fn congestion(&self) -> Option<&CongestionReport> {
        self.shared.congestion.get()
    }

    /// Open tunnels, dialled and accepted.
    pub(crate) fn tunnels(&self) -> (u64, u64) {
        let remotes = lock(&self.shared.remotes);
        remotes.values().fold((0, 0), |(dialled, accepted), remote| {
            let more = (remote.dialled.load(Ordering::Relaxed), remote.accepted.load(Ordering::Relaxed));
            (dialled + u64::from(more.0), accepted + u64::from(more.1))
        })
    }

    /// Sweeps and tops up until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Polled again at each wake of an idle tunnel, since every sweep leaves this task's waker there.
            let noticed =
                std::future::poll_fn(|cx| if self.sweep(cx) { Poll::Ready(()) } else { Poll::Pending });
            tokio::select! {
                () = stop.cancelled() => return,
                () = noticed => {}
                _ = sweeps.tick() => {}
                () = self.shared.wake.notified() => {}
            }
            self.top_up();
        }
    }

    /// Drops idle tunnels that broke or are too old; whether there was any. Forgets remotes nobody needs.
    fn sweep(&self, cx: &mut Context<'_>) -> bool {
        let tables = self.shared.views.tables();
        let remotes: Vec<_> = lock(&self.shared.remotes).values().cloned().collect();
        let mut any = false;
        for remote in remotes {
            let (broken, old) = remote.sweep(cx, &self.shared.limits);
            self.shared.count_unanswered(&remote);
            for (count, reason) in [(broken, "the connection broke while idle"), (old, "not needed any more")]
            {
                if count > 0 {
                    any = true;
                    self.shared.closed(&remote, count, reason);
                }
            }
            let unused = remote.dialled.load(Ordering::Relaxed) == 0
                && remote.accepted.load(Ordering::Relaxed) == 0
                // The map and this loop hold it, and nobody else.
                && Arc::strong_count(&remote) == 2;
            if unused
                && tables.peer(remote.id).is_none()
                && !lock(&self.shared.changed_ids).contains(&remote.id)
            {
                lock(&self.shared.remotes).remove(&remote.id);
            }
        }
        any
    }

    /// Starts dials towards remotes that have fewer idle tunnels than they should.
    fn top_up(&self) {
        let remotes: Vec<_> = lock(&self.shared.remotes).values().cloned().collect();
        for remote in remotes {
            if remote.wants_top_up(self.shared.limits.warm) {
                self.shared.open_ahead(remote, false);
            }
        }
    }
}

impl Shared {
    /// The last used tunnel that is still sound, of those that were opened later than `newer_than`.
    async fn take_idle(&self, remote: &Arc<Remote>, newer_than: Option<Instant>) -> Option<DirectTunnel> {
        loop {
            let mut direct = {
                let mut idle = lock(&remote.idle);
                let fits = |idle: &Idle| newer_than.is_none_or(|since| idle.direct.opened_at > since);
                let at = idle.iter().rposition(fits)?;
                idle.remove(at).direct
            };
            let sound =
                std::future::poll_fn(|cx| Poll::Ready(direct.tunnel.poll_idle(cx).is_pending())).await;
            if sound {
                return Some(direct);
            }
            drop(direct);
            self.closed(remote, 1, "the connection broke while idle");
        }
    }

    fn remote(&self, id: NodeId) -> Arc<Remote> {
        let mut remotes = lock(&self.remotes);
        Arc::clone(remotes.entry(id).or_insert_with(|| Arc::new(Remote::new(id, self.limits.per_remote))))
    }

    /// Whether `id` brings the tunnels to it itself.
    fn is_asked(&self, id: NodeId) -> bool {
        self.views.tables().peer(id).is_some_and(|known| known.reach == Reach::Ask)
    }

    /// Gets a tunnel ahead of need; one at a time, and not right after a failure unless the agent `asked`.
    fn open_ahead(self: &Arc<Self>, remote: Arc<Remote>, asked: bool) {
        if self.is_asked(remote.id) {
            return self.ask_ahead(&remote);
        }
        if remote.start_dial(asked) {
            let shared = Arc::clone(self);
            tokio::spawn(async move { shared.dial_ahead(&remote).await });
        }
    }

    /// One more tunnel for forwards of `remote`; none when it has too many.
    fn count_accepted(self: &Arc<Self>, remote: &Arc<Remote>) -> Option<AcceptedTunnel> {
        // The other side keeps as many in use as we do, and a few idle ones beside them.
        if remote.accepted.fetch_add(1, Ordering::Relaxed) as usize >= self.limits.per_remote * 2 {
            remote.accepted.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let (remote, shared) = (Arc::clone(remote), Arc::clone(self));
        Some(AcceptedTunnel { remote, shared, reason: "its side closed the tunnel" })
    }

    /// Dials, unless a tunnel comes back first.
    async fn dial_or_take(&self, remote: &Arc<Remote>) -> Result<DirectTunnel, PoolError> {
        if self.is_asked(remote.id)
            && let Some(direct) = self.ask_or_take(remote, false).await?
        {
            return Ok(direct);
        }
        let dial = async {
            let _permit = self.dials.acquire().await.expect("the semaphore is never closed");
            if let Some(direct) = self.take_idle(remote, None).await {
                return Ok(direct);
            }
            self.dial(remote).await
        };
        tokio::pin!(dial);
        loop {
            tokio::select! {
                biased;
                () = remote.returned.notified() => {
                    if let Some(direct) = self.take_idle(remote, None).await {
                        return Ok(direct);
                    }
                }
                dialled = &mut dial => {
                    return dialled.map_err(|failures| PoolError::Unreachable { id: remote.id, failures });
                }
            }
        }
    }

    async fn dial(&self, remote: &Arc<Remote>) -> Result<DirectTunnel, DialFailures> {
        let dialled = self.dial_known(remote).await;
        match &dialled {
            Ok(direct) => {
                let before = remote.dialled.fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    info!(self.log, "link up"; "peer_id" => remote.id, "address" => %direct.address,
                        "rtt_us" => direct.rtt.as_micros() as u64, "congestion" => %direct.congestion);
                }
                let _ = self.congestion.set(direct.congestion.clone());
                let address = direct.address.to_string();
                let opened = Opened { path: PathKind::Direct, address, dialled: true, carries: true };
                self.note(remote, |changes| {
                    changes.opened.push(opened);
                    changes.rtt = Some(direct.rtt);
                });
            }
            Err(failures) => self.dial_failed(remote, failures),
        }
        dialled
    }

    /// Dials where the published tables say, and counts nothing.
    async fn dial_known(&self, remote: &Remote) -> Result<DirectTunnel, DialFailures> {
        let dialled = self.dial_where_known(remote).await;
        match &dialled {
            Ok(_) => self.metrics.dialled.inc(),
            Err(_) => self.metrics.dial_failed.inc(),
        };
        dialled
    }

    async fn dial_where_known(&self, remote: &Remote) -> Result<DirectTunnel, DialFailures> {
        let (known, rule) = {
            let tables = self.views.tables();
            (tables.peer(remote.id).cloned(), Arc::clone(tables.dial_rule()))
        };
        let Some(peer) = &known else { return Err(DialFailures(Vec::new())) };
        let (addresses, rule) = match &peer.reach {
            Reach::Dial(plan) => (&plan.addresses[..], Some(&*rule)),
            Reach::Configured(addresses) => (&addresses[..], None),
            Reach::Ask => (&[][..], None),
        };
        let dialled =
            self.dialer.dial(remote.id, peer.entry.key_hash, addresses, rule, &remote.counters).await?;
        // It may have been revoked while it was dialled, before there was anything to close.
        if self.views.tables().is_revoked(&peer.entry.key_hash) {
            return Err(DialFailures(vec![(dialled.address, "its key is revoked".to_owned())]));
        }
        Ok(dialled)
    }

    fn dial_failed(&self, remote: &Remote, failures: &DialFailures) {
        debug!(self.log, "dial failed"; "peer_id" => remote.id, "error" => %failures);
        lock(&remote.top_up).not_before = Instant::now() + TOP_UP_REST;
        self.note(remote, |changes| changes.failed = Some(failures.clone()));
    }

    async fn dial_ahead(&self, remote: &Arc<Remote>) {
        let dialled = {
            let _permit = self.dials.acquire().await.expect("the semaphore is never closed");
            Box::pin(self.dial(remote)).await
        };
        lock(&remote.top_up).dialling = false;
        if let Ok(direct) = dialled {
            self.put_back(remote, direct);
            self.wake.notify_one();
        }
    }

    fn put_back(&self, remote: &Arc<Remote>, direct: DirectTunnel) {
        lock(&remote.idle).push(Idle { direct, since: Instant::now() });
        remote.returned.notify_one();
    }

    /// Counts closed tunnels for our forwards.
    fn closed(&self, remote: &Arc<Remote>, count: usize, reason: &str) {
        let count = count as u32;
        if remote.dialled.fetch_sub(count, Ordering::Relaxed) == count {
            info!(self.log, "link down"; "peer_id" => remote.id, "reason" => reason);
        }
        self.note(remote, |changes| {
            changes.closed_dialled += count;
            changes.reason = reason.to_owned();
        });
        self.wake.notify_one();
    }

    fn note(&self, remote: &Remote, change: impl FnOnce(&mut Changes)) {
        change(&mut lock(&remote.changes));
        lock(&self.changed_ids).insert(remote.id);
        self.changed.notify_one();
    }
}
