//! Sessions of Peers: one stream each, reports up, pushes down.
//!
//! ```text
//! opened ──OPEN within 10 s, hello and report right──► WELCOME ──► up ──► END or the Peer hangs up
//!            else END with the code
//! ```
//!
//! A session is a task between its stream and the hub. It asks the hub for the next message only when HTTP/2 has
//! taken the last one, so a slow reader holds one message here. A Peer that sends more often than its [`Pace`] allows
//! is read more slowly. Whatever ends the stream, also a Peer that is
//! just gone, drops the task and with it all the hub holds of the session. Source: SPEC P1-P5, T6.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::revision::Position;
use p2p_common::wire::Expected;
use p2p_common::{ErrorCode, NodeId};
use p2p_proto::convert::ConvertError;
use p2p_proto::status::refuse;
use p2p_proto::v1::session_down::Message as DownMessage;
use p2p_proto::v1::session_up::Message as UpMessage;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::PeerIdentity;
use p2p_server_core::{Arrival, Down, Resume, SessionId};
use slog::debug;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::ApiContext;
use super::gate::Caller;
use super::pace::{Kind, Pace};
use crate::hub_task::{HubError, Session, SessionEnd};

/// The time for the first message: it needs no thought, only a bad path.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// The time for the last message, to a reader that may not read.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Streams that have not opened a session yet. Further ones are refused; open sessions are bounded by the hub.
const OPENING_MAX: usize = 4_096;
/// Of one Peer: it opens one at a time, and may have lost another on the way. Each may hold a whole message.
const OPENING_PER_PEER: usize = 4;

type DownStream = mpsc::Sender<Result<v1::SessionDown, Status>>;

/// The service.
#[derive(Debug)]
pub(super) struct SessionApi {
    context: Arc<ApiContext>,
    opening: Arc<Semaphore>,
    opening_of: Arc<Mutex<BTreeMap<NodeId, usize>>>,
}

/// A stream that has not opened its session yet.
#[derive(Debug)]
struct Opening {
    peer: NodeId,
    of: Arc<Mutex<BTreeMap<NodeId, usize>>>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = of.entry(self.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl SessionApi {
    pub(super) fn new(context: Arc<ApiContext>) -> Self {
        SessionApi { context, opening: Arc::new(Semaphore::new(OPENING_MAX)), opening_of: Arc::default() }
    }

    fn opening(&self, peer: NodeId) -> Option<Opening> {
        let slot = Arc::clone(&self.opening).try_acquire_owned().ok()?;
        let mut of = self.opening_of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of.entry(peer).or_default();
        if *count >= OPENING_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Opening { peer, of: Arc::clone(&self.opening_of), _slot: slot })
    }
}

#[tonic::async_trait]
impl v1::session_server::Session for SessionApi {
    type AttachStream = ReceiverStream<Result<v1::SessionDown, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::SessionUp>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = Caller::of(&request)?;
        let peer = caller.node()?;
        let slot = self.opening(peer.node_id).ok_or_else(|| {
            refuse(ErrorCode::Exhausted, "too many sessions are being opened here: try another server")
        })?;
        // One message on its way: what comes next is decided when this one is taken.
        let (down, stream) = mpsc::channel(1);
        let task = SessionTask {
            context: Arc::clone(&self.context),
            peer,
            remote: caller.remote,
            up: request.into_inner(),
            down,
        };
        tokio::spawn(task.run(slot));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct SessionTask {
    context: Arc<ApiContext>,
    peer: PeerIdentity,
    remote: std::net::SocketAddr,
    up: Streaming<v1::SessionUp>,
    down: DownStream,
}

/// How a session is over: with a reason to tell, or because nobody is there to be told.
enum Over {
    End(SessionEnd),
    Gone,
}

impl From<SessionEnd> for Over {
    fn from(end: SessionEnd) -> Self {
        Over::End(end)
    }
}

impl From<HubError> for Over {
    fn from(error: HubError) -> Self {
        Over::End(error.into())
    }
}

impl From<ConvertError> for Over {
    fn from(error: ConvertError) -> Self {
        end(ErrorCode::BadRequest, error.to_string())
    }
}

impl From<Status> for Over {
    /// What reading the stream failed with.
    fn from(status: Status) -> Self {
        match status.code() {
            // Larger than allowed, or no message at all; everything else is the connection.
            Code::OutOfRange | Code::InvalidArgument | Code::Internal => {
                end(ErrorCode::BadRequest, status.message())
            }
            _ => Over::Gone,
        }
    }
}

fn end(code: ErrorCode, message: impl Into<String>) -> Over {
    Over::End(SessionEnd { code, message: message.into() })
}

fn message(down: DownMessage) -> v1::SessionDown {
    v1::SessionDown { message: Some(down) }
}

impl SessionTask {
    async fn run(mut self, slot: Opening) {
        let over = match self.open().await {
            Ok(session) => {
                drop(slot);
                let id = session.id;
                let over = self.serve(session).await;
                self.context.cas.forget(id);
                over
            }
            Err(over) => over,
        };
        let Over::End(SessionEnd { code, message: text }) = over else { return };
        debug!(self.context.log, "session ends"; "peer" => self.peer.node_id, "remote" => %self.remote,
            "code" => code.as_str(), "reason" => &text);
        let last = DownMessage::End(v1::SessionEnd { code: code.number(), message: text });
        let _ = tokio::time::timeout(END_WITHIN, self.down.send(Ok(message(last)))).await;
    }

    /// From the first message to the welcome.
    async fn open(&mut self) -> Result<Session, Over> {
        let first = tokio::select! {
            first = tokio::time::timeout(OPEN_WITHIN, self.up.message()) => first,
            () = self.down.closed() => return Err(Over::Gone),
            () = self.context.stop.cancelled() => return Err(HubError::Stopping.into()),
        };
        let first =
            first.map_err(|_| end(ErrorCode::BadRequest, "the first message did not come in time"))??;
        let Some(UpMessage::Open(open)) = first.ok_or(Over::Gone)?.message else {
            return Err(end(ErrorCode::BadRequest, "the first message is not an OPEN"));
        };
        let hello = convert::hello_from(open.hello)?;
        let myself = &self.context.myself;
        let expected = Expected {
            cluster_id: myself.credentials.cluster_id(),
            // A Peer has no history to defend: one that lived before a forced recovery is told the new epoch by the
            // WELCOME and follows it. One that has seen a later epoch belongs to Servers of that.
            epoch: myself.epoch.min(hello.epoch),
            recovery_id: None,
            me: myself.id,
            authenticated: self.peer.node_id,
        };
        hello.check(&expected).map_err(|e| end(e.code(), e.to_string()))?;
        let resume = match open.view_revision {
            0 => None,
            revision => {
                let incarnation = convert::parse(&open.view_server_incarnation, "view_server_incarnation")?;
                Some(Position { incarnation, revision })
            }
        };
        let arrival = Arrival {
            id: self.peer.node_id,
            incarnation: hello.incarnation,
            key_hash: self.peer.key_hash,
            seen_from: self.remote,
            report: convert::report_from(open.report)?,
            since: unix_now(),
        };
        // Numbers count within an epoch: a forced recovery may have lost the last ones.
        let revocations = if hello.epoch == myself.epoch { open.revocations_known } else { 0 };
        let session = self.context.hub.open(arrival, Resume { view: resume, revocations }).await?;
        self.context.cas.hear(session.id, self.peer.node_id, &open.signed_by);
        let (version, members) = (session.state.members_version, session.state.members.values());
        let welcome = DownMessage::Welcome(v1::SessionWelcome {
            hello: Some(convert::hello_to(&myself.hello(Some(self.peer.node_id)))),
            seen_from: self.remote.to_string(),
            members: Some(convert::member_table_to(version, members)),
            now_unix_ms: myself.credentials.clock().now().0,
            revocations_follow: true,
        });
        if self.down.send(Ok(message(welcome))).await.is_err() {
            self.context.cas.forget(session.id);
            return Err(Over::Gone);
        }
        Ok(session)
    }

    /// Carries messages both ways until something ends it.
    async fn serve(&mut self, session: Session) -> Over {
        let Session { id, mut inbox, end: mut ended, .. } = session;
        let mut pace = Pace::new(Instant::now());
        let mut held: Option<(Instant, v1::SessionUp)> = None;
        let over = loop {
            // What came too early waits here, and what comes behind it in HTTP/2.
            let received = async {
                match &held {
                    None => Some(self.up.message().await),
                    Some((at, _)) => {
                        sleep_until(*at).await;
                        None
                    }
                }
            };
            let next = async {
                let room = self.down.reserve().await.ok()?;
                Some((room, inbox.next().await))
            };
            tokio::select! {
                received = received => {
                    let message = match received {
                        Some(Ok(Some(message))) => {
                            let now = Instant::now();
                            let at = pace.take(kind_of(&message), now);
                            if at > now {
                                held = Some((at, message));
                                continue;
                            }
                            message
                        }
                        Some(Ok(None)) => break Over::Gone,
                        None => held.take().expect("it was waited for").1,
                        Some(Err(status)) => break status.into(),
                    };
                    if let Err(over) = self.hear(id, message).await {
                        break over;
                    }
                }
                next = next => match next {
                    Some((room, Some(down))) => room.send(Ok(message(self.down_to(&down)))),
                    // The reason is on its way beside it.
                    Some((_, None)) => break Over::Gone,
                    None => return Over::Gone,
                },
                ended = &mut ended => return ended.unwrap_or_else(|_| HubError::Stopping.into()).into(),
                () = self.down.closed() => return Over::Gone,
            }
        };
        // The hub may have ended it for a reason of its own.
        match (over, ended.try_recv()) {
            (Over::Gone, Ok(end)) => end.into(),
            (over, _) => over,
        }
    }

    fn down_to(&self, down: &Down) -> DownMessage {
        match down {
            Down::Revocations(push) => DownMessage::Revocations(convert::revocations_to(push)),
            Down::Trust(state) => DownMessage::Trust(v1::Trust {
                epoch: state.epoch.0,
                version: state.trust_version,
                bundle: state.trust_bundle.iter().map(|der| der.clone().into()).collect(),
                signer: u32::try_from(state.signer).unwrap_or_default(),
            }),
            Down::Members(state) => {
                DownMessage::Members(convert::member_table_to(state.members_version, state.members.values()))
            }
            Down::Push(push) => DownMessage::Push(convert::push_to(push)),
            Down::Grants(own) => DownMessage::Grants(v1::SessionGrants {
                grants: Some(convert::grants_to(&own.grants)),
                withheld_addresses: own.withheld.iter().map(ToString::to_string).collect(),
            }),
            Down::Heartbeat => {
                let now_unix_ms = self.context.myself.credentials.clock().now().0;
                DownMessage::Heartbeat(v1::Heartbeat { now_unix_ms, ..v1::Heartbeat::default() })
            }
        }
    }

    async fn hear(&self, session: SessionId, received: v1::SessionUp) -> Result<(), Over> {
        let hub = &self.context.hub;
        match received.message {
            Some(UpMessage::Report(report)) => {
                hub.report(session, convert::report_from(Some(report))?).await?;
            }
            Some(UpMessage::Links(report)) => {
                hub.links(session, convert::links_from(report.links)?).await?;
            }
            Some(UpMessage::Heartbeat(heartbeat)) => {
                self.context.cas.hear(session, self.peer.node_id, &heartbeat.signed_by);
                hub.heartbeat(session).await?;
            }
            // A message of a newer version says at least that somebody is there.
            None => hub.heartbeat(session).await?,
            Some(UpMessage::Open(_)) => return Err(end(ErrorCode::BadRequest, "a second OPEN")),
        }
        Ok(())
    }
}

fn kind_of(message: &v1::SessionUp) -> Kind {
    match &message.message {
        Some(UpMessage::Report(_) | UpMessage::Links(_) | UpMessage::Open(_)) => Kind::Report,
        Some(UpMessage::Heartbeat(_)) | None => Kind::Heartbeat,
    }
}
