//! A long-lived stream of raft messages to one remote, over a connection of its own: appends take one, everything
//! else the other, so that a slow append delays no heartbeat (SPEC T2).
//!
//! ```text
//! dialling ──taken──► working ──broken──► dialling at once ──refused──► gone: raft is told
//!    ▲                                         │
//!    └── rest: 50 ms to 1 s, jittered, or until it dials us ◄──┘
//! ```
//!
//! While it does not work, messages take the next way. What is lost with it is reported: raft sends what is still
//! needed. The message stream alone says whether the remote is active, connected and reached, and brings the evidence
//! that its process is gone (FACTS 6 measured what that saves).

use std::sync::Arc;
use std::time::Duration;

use p2p_common::Incarnation;
use p2p_common::addr::HostPort;
use p2p_proto::{convert, v1};
use p2p_server_raft::MessageKind;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::queue::{Queued, Waiting};
use super::remote::{DialFailed, Remote, Way, channel_params, losing};
use super::{BATCH_BYTES, Reached, handshake};
use crate::raft::wire;

/// A refusal this long after the stream broke says that the process is gone; later it is news no more.
const EVIDENCE_WITHIN: Duration = Duration::from_secs(2);
/// The answer to a stream takes a round trip; the remote waits for nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Batches between this task and HTTP/2: enough to keep the connection busy, little enough that a slow remote
/// fills the queue, which counts, and not this.
const BATCHES: usize = 16;
/// Messages taken from the queue at once.
const MESSAGES: usize = 256;

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StreamKind {
    /// Appends.
    Append,
    /// Everything else, and appends while their own stream does not work.
    Message,
}

impl StreamKind {
    /// What a first batch says; `None` for what no version of ours says.
    pub(crate) fn of(first: &v1::RaftBatch) -> Option<StreamKind> {
        match v1::RaftStreamKind::try_from(first.kind) {
            Ok(v1::RaftStreamKind::Append) => Some(StreamKind::Append),
            Ok(v1::RaftStreamKind::Message) => Some(StreamKind::Message),
            Ok(v1::RaftStreamKind::Unspecified) | Err(_) => None,
        }
    }

    fn to_wire(self) -> i32 {
        match self {
            StreamKind::Append => v1::RaftStreamKind::Append.into(),
            StreamKind::Message => v1::RaftStreamKind::Message.into(),
        }
    }

    fn way(self) -> Way {
        match self {
            StreamKind::Append => Way::Append,
            StreamKind::Message => Way::Message,
        }
    }
}

/// A stream the remote has taken.
struct Open {
    channel: Channel,
    address: HostPort,
    batches: mpsc::Sender<v1::RaftBatch>,
    replies: Streaming<v1::RaftStreamReply>,
    /// Which run of the remote took it.
    run: Incarnation,
    /// What it said then.
    first: v1::RaftStreamReply,
}

/// Keeps the stream until the remote is stopped.
pub(super) async fn run(remote: Arc<Remote>, kind: StreamKind, waiting: Waiting) {
    // Whatever ends this, a dropped future included: nobody is told that it works.
    let mut task = Task { remote, kind, waiting };
    let mut redial = task.remote.redial();
    // When the stream broke: a refusal soon after it is evidence.
    let mut broke_at: Option<Instant> = None;
    loop {
        let remote = Arc::clone(&task.remote);
        losing(&remote, kind.way(), &mut task.waiting, redial.due()).await;
        let opened = losing(&remote, kind.way(), &mut task.waiting, Box::pin(open(&remote, kind))).await;
        let reason = match opened {
            Ok(stream) => {
                let reason = task.carry(stream).await;
                redial.broke();
                broke_at = Some(Instant::now());
                reason
            }
            Err(failed) => {
                // The first dial may still have met the port of a process that was just ending.
                if failed.refused
                    && kind == StreamKind::Message
                    && broke_at.take().is_some_and(|at| at.elapsed() < EVIDENCE_WITHIN)
                {
                    remote.shared.mailbox.gone(remote.raft_id);
                }
                failed.reason
            }
        };
        match kind {
            StreamKind::Message => remote.status.deactivate(reason),
            StreamKind::Append => slog::debug!(remote.log, "no append stream to server"; "reason" => reason),
        }
    }
}

/// Dials and opens the stream; done when the remote has taken it.
async fn open(remote: &Remote, kind: StreamKind) -> Result<Open, DialFailed> {
    let (connection, address) = remote.dial(&channel_params()).await?;
    let (shared, member) = (&remote.shared, remote.member.borrow().clone());
    let hello = convert::hello_to(&shared.myself.hello(Some(member.id)));
    let (batches, rx) = mpsc::channel(BATCHES);
    let first = v1::RaftBatch { hello: Some(hello), messages: Vec::new(), kind: kind.to_wire() };
    batches.try_send(first).expect("the channel is new");
    let mut client = v1::raft_client::RaftClient::new(connection.channel.clone());
    let learn = |status| handshake::learn(&shared.myself, &member, &shared.alarms, &status);
    let taken = async {
        let mut replies = client.stream(ReceiverStream::new(rx)).await.map_err(learn)?.into_inner();
        let first = replies.message().await.map_err(learn)?;
        let first = first.ok_or("the other server ended the stream")?;
        let hello = handshake::check_reply(&shared.myself, &member, &shared.alarms, first.hello.clone())?;
        Ok((replies, hello, first))
    };
    let (replies, hello, first) = tokio::time::timeout(OPEN_TIMEOUT, taken)
        .await
        .unwrap_or_else(|_| Err("the stream was not taken in time".to_owned()))
        .map_err(|reason| DialFailed { refused: false, reason })?;
    Ok(Open { channel: connection.channel, address, batches, replies, run: hello.incarnation, first })
}

/// The stream while it is there, and what goes with it.
struct Task {
    remote: Arc<Remote>,
    kind: StreamKind,
    waiting: Waiting,
}

impl Task {
    /// Carries messages until the stream breaks, and says why.
    async fn carry(&mut self, mut stream: Open) -> String {
        self.begin(&stream);
        let reason = self.pump(&mut stream).await;
        self.end();
        reason
    }

    fn begin(&self, stream: &Open) {
        let Remote { shared, raft_id, .. } = &*self.remote;
        // Whoever learns that it is connected finds it working.
        self.remote.set_works(self.kind, true);
        if self.kind == StreamKind::Message {
            self.remote.status.activate(&stream.address.to_string());
            self.remote.metrics.active.set(1);
            self.remote.set_messages(Some(stream.channel.clone()));
            let now = shared.clock.now();
            let uptime = Duration::from_millis(stream.first.uptime_ms);
            let started = self.remote.started(stream.run, uptime, now);
            let stopping = stream.first.stopping;
            let reached = Reached {
                started,
                since: now,
                rtt: None,
                clock_ahead_ms: None,
                clock: None,
                cas: [].into(),
                stopping,
            };
            shared.heard(*raft_id, Some(reached));
            shared.connect(*raft_id, true);
        }
    }

    fn end(&mut self) {
        self.remote.set_works(self.kind, false);
        if self.kind == StreamKind::Message {
            let Remote { shared, raft_id, .. } = &*self.remote;
            self.remote.metrics.active.set(0);
            self.remote.set_messages(None);
            shared.connect(*raft_id, false);
            shared.heard(*raft_id, None);
            shared.mailbox.unreachable(*raft_id);
        }
        self.remote.failed(self.kind.way(), self.waiting.clear());
    }

    async fn pump(&mut self, stream: &mut Open) -> String {
        let Open { address, batches, replies, .. } = stream;
        let remote = Arc::clone(&self.remote);
        let replied = replied(&remote, self.kind, replies);
        let moved = remote.moved(address);
        tokio::pin!(replied, moved);
        let mut taken = Vec::with_capacity(MESSAGES);
        loop {
            tokio::select! {
                count = self.waiting.take(&mut taken, MESSAGES) => {
                    if count == 0 {
                        return "stopped".to_owned();
                    }
                    let oldest = taken[0].at;
                    let mut packed = pack(taken.drain(..)).into_iter();
                    while let Some((batch, kinds)) = packed.next() {
                        let count = kinds.len() as u64;
                        let lost = tokio::select! {
                            sent = batches.send(batch) => match sent {
                                Ok(()) => None,
                                Err(_) => Some("the stream broke".to_owned()),
                            },
                            reason = &mut replied => Some(reason),
                        };
                        if let Some(reason) = lost {
                            let rest = packed.flat_map(|(_, kinds)| kinds);
                            remote.failed(self.kind.way(), kinds.into_iter().chain(rest));
                            return reason;
                        }
                        let way = remote.metrics.way(self.kind.way());
                        way.sent.inc_by(count);
                        way.latency.observe(oldest.elapsed().as_secs_f64());
                    }
                }
                reason = &mut replied => return reason,
                () = &mut moved => return "it has other addresses now".to_owned(),
            }
        }
    }
}

impl Drop for Task {
    /// The remote is stopped: whatever was there is not.
    fn drop(&mut self) {
        self.end();
        if self.kind == StreamKind::Message {
            self.remote.status.deactivate("it left the cluster, or this server stops".to_owned());
        }
    }
}

/// Packs messages in order into batches, each with the kinds that are in it.
fn pack(messages: impl Iterator<Item = Queued>) -> Vec<(v1::RaftBatch, Vec<MessageKind>)> {
    let mut batches: Vec<(v1::RaftBatch, Vec<MessageKind>)> = Vec::new();
    let mut bytes = 0;
    for Queued { message, .. } in messages {
        let kind = message.kind;
        let message = wire::message_to(message);
        let length = message.encoded_len();
        match batches.last_mut() {
            Some((batch, kinds)) if bytes + length <= BATCH_BYTES => {
                batch.messages.push(message);
                kinds.push(kind);
                bytes += length;
            }
            _ => {
                let batch = v1::RaftBatch { messages: vec![message], ..v1::RaftBatch::default() };
                batches.push((batch, vec![kind]));
                bytes = length;
            }
        }
    }
    batches
}

/// Follows what the remote says until it ends its stream, and gives the reason.
async fn replied(remote: &Remote, kind: StreamKind, replies: &mut Streaming<v1::RaftStreamReply>) -> String {
    let shared = &remote.shared;
    loop {
        match replies.message().await {
            Ok(Some(reply)) if kind == StreamKind::Message => {
                shared.change_reached(remote.raft_id, |reached| reached.stopping = reply.stopping);
            }
            Ok(Some(_)) => {}
            Ok(None) => return "the other server ended the stream".to_owned(),
            Err(status) => {
                let member = remote.member.borrow().clone();
                return handshake::learn(&shared.myself, &member, &shared.alarms, &status);
            }
        }
    }
}
