//! The task of one remote Server: dials it, keeps a stream to it, dials again.
//!
//! ```text
//! dialling ──taken──► connected ──broken──► dialling at once ──refused──► gone: raft is told
//!    ▲                                         │
//!    └── rest: 50 ms to 1 s, jittered, or until it dials us ◄──┘
//! ```
//!
//! While it is not connected, messages are dropped and reported: raft sends what is still needed.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::member::{Member, RaftId};
use p2p_common::{Incarnation, Now};
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::{self, ChannelParams, Connection};
use p2p_runtime::tls::{Connector, Expect};
use p2p_server_raft::{Message, MessageKind};
use prost::Message as _;
use slog::{Logger, debug, info};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{BATCH_BYTES, Reached, RemoteStatus, Shared, handshake, snapshot};
use crate::raft::wire;

/// Between two attempts: at most 20 a second, at least one.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A refusal this long after a stream broke says that the process is gone; later it is news no more.
const EVIDENCE_WITHIN: Duration = Duration::from_secs(2);
/// Batches between this task and HTTP/2: enough to keep the connection busy, little enough that a slow remote
/// fills the queue, which counts, and not this.
const BATCHES: usize = 16;
/// Messages taken from the queue at once.
const MESSAGES: usize = 256;

/// The task. See the module.
pub(super) struct RemoteTask {
    pub shared: Arc<Shared>,
    pub member: watch::Receiver<Member>,
    pub messages: mpsc::Receiver<Message>,
    pub status: watch::Sender<RemoteStatus>,
    pub channel: watch::Sender<Option<Channel>>,
    pub wake: Arc<Notify>,
    pub stop: CancellationToken,
    pub log: Logger,
    /// The remote's run that was heard of last, and when it started.
    pub run: Option<(Incarnation, Now)>,
}

/// Why a stream ended.
enum Ended {
    /// The process stops, or the remote left table C.
    Stopped,
    /// Anything else.
    Broken(String),
}

impl RemoteTask {
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.keep_connected() => {}
            () = stop.cancelled() => {}
        }
        self.channel.send_replace(None);
        let raft_id = self.member.borrow().raft_id;
        self.shared.connect(raft_id, false);
        self.shared.heard(raft_id, None);
    }

    async fn keep_connected(&mut self) {
        let (mut rest, mut next_address) = (REST.0, 0);
        // When a stream broke: a refusal soon after it is evidence.
        let mut broke_at: Option<Instant> = None;
        loop {
            let member = self.member.borrow_and_update().clone();
            let raft_id = member.raft_id;
            let address = member.addresses[next_address % member.addresses.len().max(1)].clone();
            let opened = Box::pin(self.open(&member, &address));
            let opened = Self::dropping(&mut self.messages, &self.shared, raft_id, opened).await;
            let reason = match opened {
                Ok((connection, stream)) => {
                    rest = REST.0;
                    match self.stream(raft_id, &address, connection, stream).await {
                        Ended::Stopped => return,
                        Ended::Broken(reason) => {
                            self.shared.mailbox.unreachable(raft_id);
                            self.show(false, reason);
                            broke_at = Some(Instant::now());
                            continue;
                        }
                    }
                }
                Err(failed) => {
                    // The first dial may still have met the port of a process that was just ending.
                    if failed.refused && broke_at.take().is_some_and(|at| at.elapsed() < EVIDENCE_WITHIN) {
                        self.shared.mailbox.gone(raft_id);
                    }
                    failed.reason
                }
            };
            next_address += 1;
            self.show(false, reason);
            let wait = tokio::time::sleep(rest.mul_f64(rand::random_range(0.5..1.5)));
            let wake = Arc::clone(&self.wake);
            let wait = async {
                tokio::select! {
                    () = wait => {}
                    () = wake.notified() => {}
                }
            };
            Self::dropping(&mut self.messages, &self.shared, raft_id, wait).await;
            rest = (rest * 2).min(REST.1);
        }
    }

    /// Waits for `future`; messages that come meanwhile are dropped.
    async fn dropping<T>(
        messages: &mut mpsc::Receiver<Message>,
        shared: &Shared,
        raft_id: RaftId,
        future: impl Future<Output = T>,
    ) -> T {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return done,
                Some(message) = messages.recv() => shared.dropped(raft_id, message.kind),
            }
        }
    }

    /// Dials and opens the stream; done when the remote has taken it.
    fn open(
        &self,
        member: &Member,
        address: &HostPort,
    ) -> impl Future<Output = Result<Opened, OpenFailed>> + use<> {
        let expect = Expect::Node { id: member.id, key_hash: Some(member.key_hash) };
        let connector = Connector::node(Arc::clone(&self.shared.myself.credentials), expect);
        let hello = convert::hello_to(&self.shared.myself.hello(Some(member.id)));
        let (shared, member, address) = (Arc::clone(&self.shared), member.clone(), address.clone());
        async move {
            let failed = |reason| OpenFailed { refused: false, reason };
            let connection = grpc::connect(&connector, &address, &channel_params())
                .await
                .map_err(|e| OpenFailed { refused: e.is_refused(), reason: e.to_string() })?;
            let (batches, rx) = mpsc::channel(BATCHES);
            let first = v1::RaftBatch { hello: Some(hello), messages: Vec::new() };
            batches.try_send(first).expect("the channel is new");
            let mut client = v1::raft_client::RaftClient::new(connection.channel.clone());
            let taken = client.stream(ReceiverStream::new(rx));
            let learn = |status| handshake::learn(&shared.myself, &member, &shared.alarms, &status);
            let taken = async {
                let mut replies = taken.await.map_err(learn)?.into_inner();
                let first = replies.message().await.map_err(learn)?;
                let first = first.ok_or("the other server ended the stream")?;
                let hello =
                    handshake::check_reply(&shared.myself, &member, &shared.alarms, first.hello.clone())?;
                Ok((replies, hello, first))
            };
            let (replies, hello, first) = tokio::time::timeout(OPEN_TIMEOUT, taken)
                .await
                .unwrap_or_else(|_| Err("the stream was not taken in time".to_owned()))
                .map_err(failed)?;
            Ok((connection, Stream { batches, replies, run: hello.incarnation, first }))
        }
    }

    async fn stream(
        &mut self,
        raft_id: RaftId,
        address: &HostPort,
        connection: Connection,
        mut stream: Stream,
    ) -> Ended {
        info!(self.log, "connected to server"; "address" => %address);
        self.channel.send_replace(Some(connection.channel.clone()));
        self.show(true, String::new());
        self.hear(raft_id, &stream);
        self.shared.connect(raft_id, true);
        let ended = self.pump(raft_id, address, &mut stream).await;
        self.shared.connect(raft_id, false);
        self.shared.heard(raft_id, None);
        self.channel.send_replace(None);
        ended
    }

    /// Publishes what the first reply on a stream says.
    fn hear(&mut self, raft_id: RaftId, stream: &Stream) {
        let now = self.shared.clock.now();
        // Told once per run: what a later receipt would give differs by jitter only.
        let told = now - Duration::from_millis(stream.first.uptime_ms);
        let started = self.run.filter(|(run, _)| *run == stream.run).map_or(told, |(_, started)| started);
        self.run = Some((stream.run, started));
        let stopping = stream.first.stopping;
        let reached = Reached { started, since: now, rtt: None, clock_ahead_ms: None, stopping };
        self.shared.heard(raft_id, Some(reached));
    }

    async fn pump(&mut self, raft_id: RaftId, address: &HostPort, stream: &mut Stream) -> Ended {
        let Stream { batches, replies, .. } = stream;
        let mut taken = Vec::with_capacity(MESSAGES);
        let member = self.member.borrow().clone();
        loop {
            tokio::select! {
                count = self.messages.recv_many(&mut taken, MESSAGES) => {
                    if count == 0 {
                        return Ended::Stopped;
                    }
                    for batch in self.batches(raft_id, taken.drain(..)) {
                        tokio::select! {
                            sent = batches.send(batch) => if sent.is_err() {
                                return Ended::Broken("the stream broke".to_owned());
                            },
                            ended = replied(&self.shared, &member, replies) => return ended,
                        }
                    }
                }
                ended = replied(&self.shared, &member, replies) => return ended,
                changed = self.member.changed() => {
                    if changed.is_err() {
                        return Ended::Stopped;
                    }
                    if !self.member.borrow_and_update().addresses.contains(address) {
                        return Ended::Broken("it has other addresses now".to_owned());
                    }
                }
            }
        }
    }

    /// Packs messages in order; snapshots go their own way.
    fn batches(&self, raft_id: RaftId, messages: impl Iterator<Item = Message>) -> Vec<v1::RaftBatch> {
        let mut batches = vec![v1::RaftBatch::default()];
        let mut bytes = 0;
        for message in messages {
            self.shared.metrics.sent.inc();
            if message.kind == MessageKind::Snapshot {
                self.send_snapshot(raft_id, message);
                continue;
            }
            let message = wire::message_to(message);
            let length = message.encoded_len();
            if bytes > 0 && bytes + length > BATCH_BYTES {
                batches.push(v1::RaftBatch::default());
                bytes = 0;
            }
            bytes += length;
            batches.last_mut().expect("never empty").messages.push(message);
        }
        batches.retain(|batch| !batch.messages.is_empty());
        batches
    }

    /// In a task of its own; raft sends no second one before this one is reported.
    fn send_snapshot(&self, raft_id: RaftId, message: Message) {
        let (shared, log) = (Arc::clone(&self.shared), self.log.clone());
        let (member, stop) = (self.member.borrow().clone(), self.stop.clone());
        tokio::spawn(async move {
            let sent = tokio::select! {
                sent = snapshot::send(&shared.myself, &member, message) => sent,
                () = stop.cancelled() => Err("stopped".to_owned()),
            };
            match &sent {
                Ok(bytes) => info!(log, "snapshot sent"; "bytes" => bytes),
                Err(reason) => info!(log, "snapshot not sent"; "reason" => reason),
            }
            shared.mailbox.snapshot_report(raft_id, sent.is_ok());
        });
    }

    /// Publishes the state; logged on change only.
    fn show(&self, connected: bool, reason: String) {
        self.status.send_if_modified(|status| {
            if status.connected == connected && status.reason == reason {
                return false;
            }
            if status.connected {
                info!(self.log, "connection to server lost"; "reason" => &reason);
            } else if !connected {
                debug!(self.log, "no connection to server"; "reason" => &reason);
            }
            let since = if status.connected == connected { status.since } else { unix_now() };
            *status = RemoteStatus { connected, since, reason };
            true
        });
    }
}

/// The answer to a stream takes a round trip; the remote waits for nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent remote is noticed after 4 s, a dial given up after 2 s: raft elects in 1 s, and whoever comes back
/// should not wait for a dial begun long before.
fn channel_params() -> ChannelParams {
    ChannelParams {
        dial_timeout: Duration::from_secs(2),
        keepalive_interval: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(2),
        stream_window_bytes: 4 << 20,
        connection_window_bytes: 8 << 20,
    }
}

type Opened = (Connection, Stream);

struct OpenFailed {
    /// Nobody listens there.
    refused: bool,
    reason: String,
}

struct Stream {
    batches: mpsc::Sender<v1::RaftBatch>,
    replies: tonic::Streaming<v1::RaftStreamReply>,
    /// Which run of the remote took it.
    run: Incarnation,
    /// What it said then.
    first: v1::RaftStreamReply,
}

/// Follows what the remote says until it ends its stream. Cancel safe.
async fn replied(
    shared: &Shared,
    member: &Member,
    replies: &mut tonic::Streaming<v1::RaftStreamReply>,
) -> Ended {
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                let now = shared.reach.borrow().of.get(&member.raft_id).cloned();
                let told = now.map(|reached| Reached { stopping: reply.stopping, ..reached });
                shared.heard(member.raft_id, told);
            }
            Ok(None) => return Ended::Broken("the other server ended the stream".to_owned()),
            Err(status) => {
                let words = handshake::learn(&shared.myself, member, &shared.alarms, &status);
                return Ended::Broken(words);
            }
        }
    }
}
