//! The other side as a test wants it: it refuses, is slow, or lies about the time.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// What its probes tell; its streams tell less, as if they had been long on their way.
pub const PROBED_UPTIME_MS: u64 = 60_000;

/// How it behaves.
#[derive(Clone)]
pub struct Stub {
    state: Arc<State>,
}

struct State {
    myself: Myself,
    /// Streams are taken.
    takes_streams: bool,
    /// Batches of append streams are read.
    reads_appends: bool,
    /// What is added to the clock it tells, in ms.
    clock_ahead_ms: u64,
    /// Calls and snapshots wait here before they are answered.
    answers: Semaphore,
    calls: AtomicUsize,
    calls_most: AtomicUsize,
    came: mpsc::UnboundedSender<(&'static str, v1::RaftMessage)>,
}

/// What comes in at a stub: the way and the message.
pub type Came = mpsc::UnboundedReceiver<(&'static str, v1::RaftMessage)>;

impl Stub {
    pub fn new(node: &Node, takes_streams: bool, reads_appends: bool, clock_ahead_ms: u64) -> (Stub, Came) {
        // Unbounded: a test looks into it at its end.
        #[allow(clippy::disallowed_methods)]
        let (came, coming) = mpsc::unbounded_channel();
        let state = State {
            myself: node.myself.clone(),
            takes_streams,
            reads_appends,
            clock_ahead_ms,
            answers: Semaphore::new(0),
            calls: AtomicUsize::new(0),
            calls_most: AtomicUsize::new(0),
            came,
        };
        (Stub { state: Arc::new(state) }, coming)
    }

    pub fn routes(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(v1::raft_server::RaftServer::new(self.clone()))
    }

    /// Lets `count` more calls be answered.
    pub fn answer(&self, count: usize) {
        self.state.answers.add_permits(count);
    }

    /// Calls that have not been answered.
    pub fn waiting(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The most there ever were.
    pub fn waiting_most(&self) -> usize {
        self.state.calls_most.load(Ordering::SeqCst)
    }

    fn hello(&self, to: &v1::Hello) -> v1::Hello {
        convert::hello_to(&self.state.myself.hello(Some(to.from.parse().unwrap())))
    }
}

impl State {
    async fn answered(&self) {
        let waiting = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.calls_most.fetch_max(waiting, Ordering::SeqCst);
        self.answers.acquire().await.unwrap().forget();
        self.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl v1::raft_server::Raft for Stub {
    type StreamStream = ReceiverStream<Result<v1::RaftStreamReply, Status>>;
    type ProbeStream = ReceiverStream<Result<v1::RaftProbeReply, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::RaftBatch>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        if !self.state.takes_streams {
            return Err(Status::unavailable("this one takes no streams"));
        }
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap();
        let (replies, rx) = mpsc::channel(1);
        let hello = Some(self.hello(first.hello.as_ref().unwrap()));
        replies.try_send(Ok(v1::RaftStreamReply { hello, uptime_ms: 1, stopping: false })).unwrap();
        let appends = StreamKind::of(&first) == Some(StreamKind::Append);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let way = if appends { "append" } else { "message" };
            if appends && !state.reads_appends {
                replies.closed().await;
            }
            while let Ok(Some(batch)) = inbound.message().await {
                for message in batch.messages {
                    let _ = state.came.send((way, message));
                }
            }
            drop(replies);
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn send(&self, request: Request<v1::RaftBatch>) -> Result<Response<v1::RaftSendReply>, Status> {
        self.state.answered().await;
        for message in request.into_inner().messages {
            let _ = self.state.came.send(("pipeline", message));
        }
        Ok(Response::new(v1::RaftSendReply {}))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        let mut inbound = request.into_inner();
        while inbound.message().await?.is_some() {}
        self.state.answered().await;
        Ok(Response::new(v1::RaftSnapshotReply {}))
    }

    async fn probe(
        &self,
        request: Request<Streaming<v1::RaftProbe>>,
    ) -> Result<Response<Self::ProbeStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap();
        let (answers, rx) = mpsc::channel(1);
        let reply = |hello, ahead| v1::RaftProbeReply {
            hello,
            unix_ms: unix_now().0 + ahead,
            uptime_ms: PROBED_UPTIME_MS,
            cas: Vec::new(),
        };
        let ahead = self.state.clock_ahead_ms;
        answers.try_send(Ok(reply(Some(self.hello(first.hello.as_ref().unwrap())), ahead))).unwrap();
        tokio::spawn(async move {
            while let Ok(Some(_)) = inbound.message().await {
                let _ = answers.send(Ok(reply(None, ahead))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}
