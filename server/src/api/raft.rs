//! Raft messages from other Servers: their streams, calls and snapshots, into the raft thread's mailbox.
//!
//! Who sends is a member of table C by its certificate, and every message must name it as its sender; what a
//! message says is checked by the raft core. Nothing here waits for raft: what does not fit is dropped.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::member::Member;
use p2p_proto::status::{malformed, refuse};
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::grpc::CallerInfo;
use p2p_server_raft::MessageKind;
use slog::{Logger, debug, warn};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::peering::caller_of;
use crate::ca::{CaHere, CaStore};
use crate::raft::{Mailbox, View, wire};
use crate::transport::{Assembly, Inbound, Place, Remotes, StreamKind, TransportMetrics, handshake};

/// A stream says who it is in its first message, at once.
const FIRST_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
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
    cas: Option<CaStore>,
    snapshots: Semaphore,
    log: Logger,
}

impl RaftApi {
    /// Serves raft behind `mailbox`; streams end when `remotes` stops.
    pub fn new(
        remotes: Remotes,
        view: watch::Receiver<Arc<View>>,
        mailbox: Mailbox,
        metrics: TransportMetrics,
        log: Logger,
    ) -> Self {
        let snapshots = Semaphore::new(SNAPSHOTS_MAX);
        let shared = Shared { remotes, view, mailbox, metrics, cas: None, snapshots, log };
        RaftApi { shared: Arc::new(shared) }
    }

    /// Says in probes what this Server has of the CAs, too.
    #[must_use]
    pub fn telling_of(mut self, cas: CaStore) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.cas = Some(cas);
        }
        self
    }
}

impl Shared {
    /// Who says `hello`: a Server of table C.
    fn sender(&self, hello: Option<v1::Hello>, caller: &CallerInfo) -> Result<Member, Status> {
        let view = Arc::clone(&self.view.borrow());
        handshake::check_server(&self.remotes, &view, hello, caller)
    }

    /// What is told first on a stream, and again when it changes.
    fn reply(&self, to: &Member) -> v1::RaftStreamReply {
        v1::RaftStreamReply {
            hello: Some(self.hello(to)),
            uptime_ms: self.uptime_ms(),
            stopping: *self.remotes.stopping().borrow(),
        }
    }

    fn probe_reply(&self, hello: Option<v1::Hello>) -> v1::RaftProbeReply {
        let cas = self.cas.as_ref().map(|cas| cas.here(&self.view.borrow().state)).unwrap_or_default();
        v1::RaftProbeReply {
            hello,
            unix_ms: unix_now().0,
            uptime_ms: self.uptime_ms(),
            cas: cas.iter().map(ca_to).collect(),
        }
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.remotes.uptime().as_millis()).unwrap_or(u64::MAX)
    }

    fn hello(&self, to: &Member) -> v1::Hello {
        convert::hello_to(&self.remotes.myself().hello(Some(to.id)))
    }

    /// Makes this the stream of its kind. Whoever has left the cluster since its hello was checked gets none.
    fn enter(&self, member: &Member, what: Inbound) -> Result<Place, Status> {
        let place = self.remotes.enter(member.raft_id, what);
        match self.seat_lost(member) {
            Some(lost) => Err(lost),
            None => Ok(place),
        }
    }

    /// The refusal of a Server that has left the cluster.
    fn seat_lost(&self, member: &Member) -> Option<Status> {
        let view = Arc::clone(&self.view.borrow());
        handshake::check_seat(&self.remotes, &view, member).err()
    }

    /// Why a stream ends that this side ends.
    fn left(&self, member: &Member) -> Status {
        let other = || refuse(ErrorCode::Replaced, "a newer stream has taken over, or this server stops");
        self.seat_lost(member).unwrap_or_else(other)
    }

    fn take(&self, member: &Member, messages: Vec<v1::RaftMessage>) -> Result<(), Status> {
        if self.remotes.is_paused(member.raft_id) {
            return Ok(());
        }
        let (mut taken, mut refused) = (0, 0);
        let mut result = Ok(());
        for message in messages {
            let message = match wire::message_from(message) {
                Ok(message) if message.from == member.raft_id && message.kind != MessageKind::Snapshot => {
                    message
                }
                Ok(_) => {
                    result = Err(refuse(ErrorCode::BadRequest, "a raft message of another sender or kind"));
                    break;
                }
                Err(error) => {
                    result = Err(refuse(ErrorCode::BadRequest, error.to_string()));
                    break;
                }
            };
            taken += 1;
            if self.mailbox.message(message).is_err() {
                refused += 1;
            }
        }
        self.metrics.received(&member.name, taken, refused);
        result
    }

    async fn read(&self, member: &Member, inbound: &mut Streaming<v1::RaftBatch>) -> Result<(), Status> {
        while let Some(batch) = inbound.message().await? {
            self.take(member, batch.messages)?;
        }
        Ok(())
    }

    /// Answers probes. Each answer waits for the one before to leave, so who asks without listening waits.
    async fn answer(&self, inbound: &mut Streaming<v1::RaftProbe>, answers: &Answers) -> Result<(), Status> {
        while inbound.message().await?.is_some() {
            let answer = self.probe_reply(None);
            if answers.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

type Answers = mpsc::Sender<Result<v1::RaftProbeReply, Status>>;

#[tonic::async_trait]
impl v1::raft_server::Raft for RaftApi {
    type StreamStream = ReceiverStream<Result<v1::RaftStreamReply, Status>>;
    type ProbeStream = ReceiverStream<Result<v1::RaftProbeReply, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::RaftBatch>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let caller = caller_of(&request)?;
        let mut inbound = request.into_inner();
        let first = first(&mut inbound).await?;
        let member = shared.sender(first.hello.clone(), &caller)?;
        let kind = StreamKind::of(&first).ok_or_else(|| {
            refuse(ErrorCode::BadRequest, format!("{} is no kind of stream known here", first.kind))
        })?;
        let place = shared.enter(&member, Inbound::Stream(kind))?;
        shared.take(&member, first.messages)?;

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
                ended = shared.read(&member, &mut inbound) => ended,
                () = place.left.cancelled() => Err(shared.left(&member)),
                () = replies.closed() => Ok(()),
                () = say => Ok(()),
            };
            drop(place);
            if let Err(status) = ended {
                debug!(shared.log, "raft stream ended"; "remote" => member.name, "reason" => status.message());
                let _ = replies.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn send(&self, request: Request<v1::RaftBatch>) -> Result<Response<v1::RaftSendReply>, Status> {
        let caller = caller_of(&request)?;
        let batch = request.into_inner();
        let member = self.shared.sender(batch.hello, &caller)?;
        self.shared.take(&member, batch.messages)?;
        Ok(Response::new(v1::RaftSendReply {}))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        let shared = &self.shared;
        let caller = caller_of(&request)?;
        let mut inbound = request.into_inner();
        let mut chunk = first(&mut inbound).await?;
        let member = shared.sender(chunk.hello.take(), &caller)?;
        let _slot = shared
            .snapshots
            .try_acquire()
            .map_err(|_| refuse(ErrorCode::Exhausted, "other snapshots are being received: try again"))?;
        let mut assembly = Assembly::default();
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
        if !shared.remotes.is_paused(member.raft_id) {
            let taken = shared.mailbox.message(message);
            shared.metrics.received(&member.name, 1, u64::from(taken.is_err()));
            taken.map_err(|full| refuse(ErrorCode::Exhausted, full.to_string()))?;
        }
        Ok(Response::new(v1::RaftSnapshotReply {}))
    }

    async fn probe(
        &self,
        request: Request<Streaming<v1::RaftProbe>>,
    ) -> Result<Response<Self::ProbeStream>, Status> {
        let shared = Arc::clone(&self.shared);
        let caller = caller_of(&request)?;
        let mut inbound = request.into_inner();
        let first = first(&mut inbound).await?;
        let member = shared.sender(first.hello, &caller)?;
        let place = shared.enter(&member, Inbound::Probe)?;
        let (answers, rx) = mpsc::channel(1);
        let _ = answers.try_send(Ok(shared.probe_reply(Some(shared.hello(&member)))));
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = shared.answer(&mut inbound, &answers) => ended,
                () = place.left.cancelled() => Err(shared.left(&member)),
                () = answers.closed() => Ok(()),
            };
            drop(place);
            if let Err(status) = ended {
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// What a Server has of a CA, as it is told.
pub(super) fn ca_to(ca: &CaHere) -> v1::CaAtServer {
    v1::CaAtServer {
        fingerprint: ca.fingerprint.0.to_vec().into(),
        has_key: ca.has_key,
        is_own: ca.is_own,
        sessions: ca.sessions,
    }
}

async fn first<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(FIRST_TIMEOUT, inbound.message()).await;
    let message = message.map_err(|_| refuse(ErrorCode::BadRequest, "nothing came in time"))??;
    message.ok_or_else(|| malformed(&convert::ConvertError::new("hello", "is missing")))
}
