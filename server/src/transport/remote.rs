//! One remote Server: the four ways out to it and which one a message takes (SPEC T1, T2).
//!
//! ```text
//!              ┌─ snapshot ──────────────────► its own connection, in chunks
//! raft ─send─► pick ─ append stream works ───► connection of appends
//!              ├─ message stream works ──────► connection of messages
//!              └─ else ─ pipeline ───────────► connection of calls, 4 in flight
//! ```
//!
//! [`Remote::send`] never waits: what finds no room is dropped, counted and reported to raft, which sends again what
//! it still needs. Owner of: the queues, the picked address, the status, the counts. Each way has a task of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::member::{Member, RaftId};
use p2p_common::{Incarnation, Now};
use p2p_runtime::grpc::{self, ChannelParams, Connection};
use p2p_runtime::tls::{Connector, Expect};
use p2p_server_raft::{Message, MessageKind};
use slog::Logger;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::metrics::RemoteMetrics;
use super::picker::Picker;
use super::queue::{Queue, Waiting, queue};
use super::redial::Redial;
use super::status::StatusCell;
use super::stream::StreamKind;
use super::{Shared, pipeline, snapshot, stream};

/// Messages that wait for a stream (SPEC T3) ...
const STREAM_QUEUE: usize = 4_096;
/// ... and their bytes: what a slow remote may hold of this Server's memory.
const STREAM_QUEUE_BYTES: usize = 64 << 20;
/// Messages that wait for a call (SPEC T2).
const PIPELINE_QUEUE: usize = 64;
/// Raft sends no second snapshot before the first is reported.
const SNAPSHOT_QUEUE: usize = 1;

/// How exactly the start of a remote is known: far below what counts as a tie.
const STARTED_EXACT: Duration = Duration::from_millis(5);

/// A way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The stream of appends.
    Append,
    /// The stream of everything else.
    Message,
    /// Short-lived calls.
    Pipeline,
    /// In chunks, over a connection of its own.
    Snapshot,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::Append, Way::Message, Way::Pipeline, Way::Snapshot];

    /// In metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Way::Append => "append",
            Way::Message => "message",
            Way::Pipeline => "pipeline",
            Way::Snapshot => "snapshot",
        }
    }
}

/// Which streams work now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Working {
    pub append: bool,
    pub message: bool,
}

/// The way a message of `kind` takes.
pub(super) fn pick(kind: MessageKind, working: Working) -> Way {
    match kind {
        MessageKind::Snapshot => Way::Snapshot,
        MessageKind::Append if working.append => Way::Append,
        _ if working.message => Way::Message,
        _ => Way::Pipeline,
    }
}

/// See the module. Shared by the ways of one remote and by whoever sends to it.
#[derive(Debug)]
pub(super) struct Remote {
    pub shared: Arc<Shared>,
    pub raft_id: RaftId,
    /// Its row of table C, the newest.
    pub member: watch::Sender<Member>,
    picker: Mutex<Picker>,
    pub status: StatusCell,
    pub metrics: RemoteMetrics,
    append_works: AtomicBool,
    message_works: AtomicBool,
    paused: AtomicBool,
    queues: Queues,
    /// The connection of calls, or while there is none that of messages.
    calls: watch::Sender<Option<Channel>>,
    messages: watch::Sender<Option<Channel>>,
    /// Its run that was heard of last, and when that started.
    run: Mutex<Option<(Incarnation, Now)>>,
    wake: watch::Sender<()>,
    /// Ends every way and closes every connection.
    pub stop: CancellationToken,
    pub log: Logger,
}

#[derive(Debug)]
struct Queues {
    append: Queue,
    message: Queue,
    pipeline: Queue,
    snapshot: Queue,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct DialFailed {
    /// Nobody listens there.
    pub refused: bool,
    pub reason: String,
}

impl Remote {
    /// Starts the ways to `member`; `None` when its row has no address.
    pub fn spawn(shared: Arc<Shared>, member: Member, log: Logger) -> Option<Arc<Remote>> {
        let picker = Picker::new(member.addresses.clone())?;
        let (append, appends) = queue(STREAM_QUEUE, STREAM_QUEUE_BYTES);
        let (message, messages) = queue(STREAM_QUEUE, STREAM_QUEUE_BYTES);
        let (pipeline, calls) = queue(PIPELINE_QUEUE, STREAM_QUEUE_BYTES);
        let (snapshot, snapshots) = queue(SNAPSHOT_QUEUE, usize::MAX);
        let remote = Arc::new(Remote {
            raft_id: member.raft_id,
            picker: Mutex::new(picker),
            status: StatusCell::new(log.clone()),
            metrics: shared.metrics.remote(&member.name),
            append_works: AtomicBool::new(false),
            message_works: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            queues: Queues { append, message, pipeline, snapshot },
            calls: watch::Sender::new(None),
            messages: watch::Sender::new(None),
            run: Mutex::new(None),
            wake: watch::Sender::new(()),
            stop: shared.stop.child_token(),
            member: watch::Sender::new(member),
            shared,
            log,
        });
        remote.spawn_way(|remote| stream::run(remote, StreamKind::Append, appends));
        remote.spawn_way(|remote| stream::run(remote, StreamKind::Message, messages));
        remote.spawn_way(|remote| pipeline::run(remote, calls));
        remote.spawn_way(|remote| snapshot::run(remote, snapshots));
        Some(remote)
    }

    fn spawn_way<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        way: impl FnOnce(Arc<Self>) -> F,
    ) {
        let (stop, way) = (self.stop.clone(), way(Arc::clone(self)));
        tokio::spawn(async move {
            tokio::select! {
                () = way => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Sends a message that raft gave at `at`. Never waits.
    pub fn send(&self, message: Message, at: Instant) {
        if self.paused.load(Ordering::Relaxed) {
            return;
        }
        let (kind, way) = (message.kind, pick(message.kind, self.working()));
        let queue = match way {
            Way::Append => &self.queues.append,
            Way::Message => &self.queues.message,
            Way::Pipeline => &self.queues.pipeline,
            Way::Snapshot => &self.queues.snapshot,
        };
        if queue.offer(message, at).is_err() {
            self.metrics.way(way).dropped.inc();
            self.shared.lost(self.raft_id, kind);
        }
    }

    /// Messages that were on their way are lost.
    pub fn failed(&self, way: Way, kinds: impl IntoIterator<Item = MessageKind>) {
        for kind in kinds {
            self.metrics.way(way).failed.inc();
            self.shared.lost(self.raft_id, kind);
        }
    }

    /// Drops what goes out and what comes in, silently; for tests.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub fn working(&self) -> Working {
        Working {
            append: self.append_works.load(Ordering::Relaxed),
            message: self.message_works.load(Ordering::Relaxed),
        }
    }

    /// From now on, or until now, messages go this way.
    pub fn set_works(&self, kind: StreamKind, works: bool) {
        let flag = match kind {
            StreamKind::Append => &self.append_works,
            StreamKind::Message => &self.message_works,
        };
        flag.store(works, Ordering::Relaxed);
    }

    /// Its row of table C has changed, not its Id, key or name.
    pub fn update(&self, member: Member) {
        self.picker().update(member.addresses.clone());
        self.member.send_replace(member);
    }

    /// It has opened a stream to us, so it is there: what is not connected is dialled at once.
    pub fn wake(&self) {
        self.wake.send_replace(());
    }

    /// The rhythm of one of its connections.
    pub fn redial(&self) -> Redial {
        Redial::new(self.wake.subscribe())
    }

    /// Dials the picked address; when that fails, another one is picked for the next time.
    pub async fn dial(&self, params: &ChannelParams) -> Result<(Connection, HostPort), DialFailed> {
        let address = self.picker().pick().clone();
        let expect = {
            let member = self.member.borrow();
            Expect::Node { id: member.id, key_hash: Some(member.key_hash) }
        };
        let connector = Connector::node(Arc::clone(&self.shared.myself.credentials), expect);
        match grpc::connect(&connector, &address, params).await {
            Ok(connection) => Ok((connection, address)),
            Err(error) => {
                self.picker().failed(&address);
                Err(DialFailed { refused: error.is_refused(), reason: error.to_string() })
            }
        }
    }

    /// Resolves when its addresses are others than `address`.
    pub async fn moved(&self, address: &HostPort) {
        let mut member = self.member.subscribe();
        // The sender lives in this very struct.
        let _ = member.wait_for(|member| !member.addresses.contains(address)).await;
    }

    /// A connection for calls, while there is one.
    pub fn channel(&self) -> Option<Channel> {
        self.calls.borrow().clone().or_else(|| self.messages.borrow().clone())
    }

    pub fn set_calls(&self, channel: Option<Channel>) {
        self.calls.send_replace(channel);
    }

    pub fn set_messages(&self, channel: Option<Channel>) {
        self.messages.send_replace(channel);
    }

    /// When the remote's run started, on our clock: `uptime` before now, or earlier if it was told faster before. A message
    /// that took its time makes it look younger; less than [`STARTED_EXACT`] is no news.
    pub fn started(&self, run: Incarnation, uptime: Duration, now: Now) -> Now {
        let mut known = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let told = now - uptime;
        let before = known.filter(|(known, _)| *known == run).map(|(_, started)| started);
        let started = before.filter(|before| told + STARTED_EXACT > *before).unwrap_or(told);
        *known = Some((run, started));
        started
    }

    /// The same, told again by the run that was heard of last.
    pub fn started_again(&self, uptime: Duration, now: Now) -> Option<Now> {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).map(|(run, _)| run)?;
        Some(self.started(run, uptime, now))
    }

    /// A picker cannot be left half changed.
    fn picker(&self) -> MutexGuard<'_, Picker> {
        self.picker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between Servers: a silent remote is noticed after 4 s, a dial given up after 2 s: raft elects in 1 s, and whoever
/// comes back should not wait for a dial begun long before.
pub(super) fn channel_params() -> ChannelParams {
    ChannelParams {
        dial_timeout: Duration::from_secs(2),
        keepalive_interval: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(2),
        stream_window_bytes: 4 << 20,
        connection_window_bytes: 8 << 20,
    }
}

/// Waits for `future`; messages that come meanwhile are lost: there is no connection.
pub(super) async fn losing<T>(
    remote: &Remote,
    way: Way,
    waiting: &mut Waiting,
    future: impl Future<Output = T>,
) -> T {
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            done = &mut future => return done,
            Some(queued) = waiting.next() => remote.failed(way, [queued.message.kind]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_takes_the_way_of_the_specification() {
        use MessageKind::*;
        let kinds = [
            Append,
            AppendResponse,
            Vote,
            VoteResponse,
            PreVote,
            PreVoteResponse,
            Snapshot,
            Heartbeat,
            HeartbeatResponse,
            TimeoutNow,
            ReadIndex,
            ReadIndexResponse,
        ];
        // The streams that work; where a snapshot, an append and everything else go.
        let table = [
            ((false, false), [Way::Snapshot, Way::Pipeline, Way::Pipeline]),
            ((true, false), [Way::Snapshot, Way::Append, Way::Pipeline]),
            ((false, true), [Way::Snapshot, Way::Message, Way::Message]),
            ((true, true), [Way::Snapshot, Way::Append, Way::Message]),
        ];
        for ((append, message), [snapshots, appends, others]) in table {
            for kind in kinds {
                let expected = match kind {
                    Snapshot => snapshots,
                    Append => appends,
                    _ => others,
                };
                let working = Working { append, message };
                assert_eq!(pick(kind, working), expected, "{kind:?} with {working:?}");
            }
        }
    }
}
