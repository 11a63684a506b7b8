//! Raft messages from other Servers: their streams and snapshots, into the raft thread's mailbox.
//!
//! Who sends is a member of table C by its certificate, and every message must name it as its sender; what a
//! message says is checked by the raft core. Nothing here waits for raft: what does not fit is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::member::{Member, RaftId};
use p2p_proto::{convert, v1};
use p2p_runtime::grpc::CallerInfo;
use p2p_server_raft::MessageKind;
use slog::{Logger, debug, warn};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::peering::caller_of;
use crate::raft::{Mailbox, View, wire};
use crate::transport::handshake::{self, identity_of};
use crate::transport::{Assembly, Remotes, TransportMetrics};
use p2p_proto::status::{malformed, refuse};

/// A stream says who it is in its first message, at once.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two chunks of a snapshot.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// What is told on a stream: the first word, that this Server stops, and why the stream ends.
const REPLIES: usize = 3;
/// Snapshots received at a time: each is held in memory until it is whole.
const SNAPSHOTS_MAX: usize = 2;

/// The service. Cheap to copy.
#[derive(Debug, Clone)]
pub struct RaftApi {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    remotes: Remotes,
    view: watch::Receiver<Arc<View>>,
    mailbox: Mailbox,
    metrics: TransportMetrics,
    /// The newest stream of each remote, by its number; a newer one ends it (SPEC T5).
    streams: Mutex<Streams>,
    snapshots: Semaphore,
    stop: CancellationToken,
    log: Logger,
}

#[derive(Debug, Default)]
struct Streams {
    last: u64,
    of: BTreeMap<RaftId, (u64, CancellationToken)>,
}

impl RaftApi {
    /// Serves raft behind `mailbox`; streams end with `stop`.
    pub fn new(
        remotes: Remotes,
        view: watch::Receiver<Arc<View>>,
        mailbox: Mailbox,
        metrics: TransportMetrics,
        stop: CancellationToken,
        log: Logger,
    ) -> Self {
        let (streams, snapshots) = (Mutex::default(), Semaphore::new(SNAPSHOTS_MAX));
        RaftApi {
            shared: Arc::new(Shared { remotes, view, mailbox, metrics, streams, snapshots, stop, log }),
        }
    }
}

impl Shared {
    /// Who says `hello`: a Server of table C.
    fn sender(&self, hello: Option<v1::Hello>, caller: &CallerInfo) -> Result<Member, Status> {
        let view = Arc::clone(&self.view.borrow());
        handshake::check_server(self.remotes.myself(), &view, self.remotes.alarms(), hello, caller)
    }

    /// What is told first on a stream, and again when it changes.
    fn reply(&self, to: &Member) -> v1::RaftStreamReply {
        v1::RaftStreamReply {
            hello: Some(convert::hello_to(&self.remotes.myself().hello(Some(to.id)))),
            uptime_ms: u64::try_from(self.remotes.uptime().as_millis()).unwrap_or(u64::MAX),
            stopping: *self.remotes.stopping().borrow(),
        }
    }

    /// Makes this the stream of `raft_id`.
    fn open(&self, raft_id: RaftId) -> (u64, CancellationToken) {
        let token = self.stop.child_token();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.last += 1;
        let number = streams.last;
        if let Some((_, older)) = streams.of.insert(raft_id, (number, token.clone())) {
            older.cancel();
        }
        (number, token)
    }

    fn close(&self, raft_id: RaftId, number: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.of.get(&raft_id).is_some_and(|(newest, _)| *newest == number) {
            streams.of.remove(&raft_id);
        }
    }

    fn take(&self, from: RaftId, batch: v1::RaftBatch) -> Result<(), Status> {
        for message in batch.messages {
            let message =
                wire::message_from(message).map_err(|e| refuse(ErrorCode::BadRequest, e.to_string()))?;
            if message.from != from || message.kind == MessageKind::Snapshot {
                return Err(refuse(ErrorCode::BadRequest, "a raft message of another sender or kind"));
            }
            self.metrics.received.inc();
            if self.mailbox.message(message).is_err() {
                self.metrics.dropped.inc();
            }
        }
        Ok(())
    }

    async fn read(&self, from: RaftId, inbound: &mut Streaming<v1::RaftBatch>) -> Result<(), Status> {
        while let Some(batch) = inbound.message().await? {
            self.take(from, batch)?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl v1::raft_server::Raft for RaftApi {
    type StreamStream = ReceiverStream<Result<v1::RaftStreamReply, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::RaftBatch>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let caller = caller_of(&request)?;
        let mut inbound = request.into_inner();
        let first = first(&mut inbound).await?;
        let member = shared.sender(first.hello.clone(), &caller)?;
        shared.take(member.raft_id, first)?;

        let (number, token) = shared.open(member.raft_id);
        shared.remotes.wake(member.raft_id);
        let (replies, rx) = mpsc::channel(REPLIES);
        let mut stopping = shared.remotes.stopping();
        stopping.mark_unchanged();
        let _ = replies.try_send(Ok(shared.reply(&member)));
        tokio::spawn(async move {
            let say = async {
                while stopping.changed().await.is_ok() {
                    let _ = replies.try_send(Ok(shared.reply(&member)));
                }
                std::future::pending::<()>().await
            };
            // It ends here, by its sender, or when the sender's interest in replies ends: its connection.
            let ended = tokio::select! {
                ended = shared.read(member.raft_id, &mut inbound) => ended,
                () = token.cancelled() => Err(refuse(ErrorCode::Replaced, "a newer stream has taken over, or this server stops")),
                () = replies.closed() => Ok(()),
                () = say => Ok(()),
            };
            shared.close(member.raft_id, number);
            if let Err(status) = ended {
                debug!(shared.log, "raft stream ended"; "remote" => member.name, "reason" => status.message());
                let _ = replies.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        let shared = &self.shared;
        let caller = caller_of(&request)?;
        identity_of(&caller)?;
        let _slot = shared
            .snapshots
            .try_acquire()
            .map_err(|_| refuse(ErrorCode::Exhausted, "other snapshots are being received: try again"))?;
        let mut inbound = request.into_inner();
        let mut assembly = Assembly::default();
        let mut chunk = first(&mut inbound).await?;
        let member = shared.sender(chunk.hello.take(), &caller)?;
        loop {
            assembly.add(&chunk).map_err(|e| refuse(ErrorCode::BadRequest, e))?;
            let next = tokio::time::timeout(CHUNK_TIMEOUT, inbound.message()).await;
            match next
                .map_err(|_| refuse(ErrorCode::Unavailable, "the next chunk did not come in time"))??
            {
                Some(next) => chunk = next,
                None => break,
            }
        }
        let message = assembly.finish().map_err(|e| refuse(ErrorCode::BadRequest, e))?;
        if message.from != member.raft_id || message.kind != MessageKind::Snapshot {
            warn!(shared.log, "snapshot refused"; "remote" => &member.name);
            return Err(refuse(ErrorCode::BadRequest, "a raft message of another sender or kind"));
        }
        shared.mailbox.message(message).map_err(|full| refuse(ErrorCode::Exhausted, full.to_string()))?;
        Ok(Response::new(v1::RaftSnapshotReply {}))
    }
}

async fn first<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(FIRST_TIMEOUT, inbound.message()).await;
    let message = message.map_err(|_| refuse(ErrorCode::BadRequest, "nothing came in time"))??;
    message.ok_or_else(|| malformed(&convert::ConvertError::new("hello", "is missing")))
}
