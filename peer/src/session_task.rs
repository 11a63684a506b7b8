//! One attempt at a session with a Server: dial, open the stream, carry messages both ways, end it properly.
//!
//! What is said is the agent's to decide: it hears everything through its mailbox and hands in what goes up.
//! Dropping the [`SessionHandle`] ends the session: the request stream ends first, so that the Server sees an
//! end and the connection is closed, not left behind. Source: SPEC P1, P5.

use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::NetInfo;
use p2p_common::grants::Grants;
use p2p_common::member::Member;
use p2p_common::{ErrorCode, NodeKind, UnixMs};
use p2p_peer_core::{DialFailure, DialServer, FromServer, MemberTable, SessionToken, ToServer};
use p2p_proto::convert::{self, ConvertError};
use p2p_proto::status;
use p2p_proto::v1::session_client::SessionClient;
use p2p_proto::v1::{self, session_down, session_up};
use p2p_runtime::exit::chain;
use p2p_runtime::grpc::{ChannelParams, Connection, connect};
use p2p_runtime::tls::{Connector, Credentials, Expect};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

use crate::agent_task::Input;
use crate::published::Views;
use crate::servers::Servers;
use crate::trust::ToldTrust;

/// Messages on their way up; a Server that lets so many wait takes nothing, and the session ends.
const UP_QUEUE: usize = 64;
/// After our end of the stream the Server has this long to end its own.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The agent's side of a session.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    up: mpsc::Sender<ToServer>,
    /// Dropped, it ends the attempt whatever it is doing.
    _alive: oneshot::Sender<()>,
}

impl SessionHandle {
    /// Hands in a message; `false` when the queue is full or the session is over.
    pub(crate) fn send(&self, message: ToServer) -> bool {
        self.up.try_send(message).is_ok()
    }
}

/// Starts an attempt among `attempts`; everything of it is told to `agent`.
pub(crate) fn spawn(
    attempts: &TaskTracker,
    dial: DialServer,
    credentials: Arc<Credentials>,
    (servers, views): (Arc<Servers>, Arc<Views>),
    agent: mpsc::Sender<Input>,
) -> SessionHandle {
    let (up, messages) = mpsc::channel(UP_QUEUE);
    let (alive, ended) = oneshot::channel();
    attempts.spawn(async move {
        let session = dial.session;
        let attempt = Attempt { session, credentials, servers, views, agent: agent.clone() };
        let ending = attempt.run(dial, messages, ended).await;
        // The agent ended it and expects nothing, or is gone itself: then nobody listens.
        if let Some(input) = ending {
            let _ = agent.send(input).await;
        }
    });
    SessionHandle { up, _alive: alive }
}

struct Attempt {
    session: SessionToken,
    credentials: Arc<Credentials>,
    servers: Arc<Servers>,
    views: Arc<Views>,
    agent: mpsc::Sender<Input>,
}

impl Attempt {
    /// Runs to the end of the attempt; `None` when the agent ended it.
    async fn run(
        self,
        dial: DialServer,
        messages: mpsc::Receiver<ToServer>,
        mut ended: oneshot::Receiver<()>,
    ) -> Option<Input> {
        let session = self.session;
        let dialled = tokio::select! {
            dialled = self.dial(dial) => dialled,
            _ = &mut ended => return None,
        };
        let connection = match dialled {
            Ok(connection) => connection,
            Err(failures) => return Some(Input::SessionFailed { session, failures }),
        };
        let opened = Input::SessionOpened {
            session,
            server: connection.identity.node_id,
            address: connection.remote.to_string(),
        };
        self.agent.send(opened).await.ok()?;
        let server = connection.identity.node_id;
        let reason = self.carry(connection, messages, ended).await;
        self.servers.forget_clock(server);
        let reason = reason?;
        Some(Input::SessionClosed { session, reason })
    }

    async fn dial(&self, dial: DialServer) -> Result<Connection, Vec<DialFailure>> {
        let expect = match dial.server {
            Some(id) => Expect::Node { id, key_hash: dial.key_hash },
            None => Expect::Kind(NodeKind::Server),
        };
        let connector = Connector::node(Arc::clone(&self.credentials), expect);
        let mut failures = Vec::new();
        for address in &dial.addresses {
            match connect(&connector, address, &ChannelParams::default()).await {
                // Behind a configured address anybody may answer.
                Ok(connection) if self.views.tables().is_revoked(&connection.identity.key_hash) => {
                    let error = format!("{} is revoked", connection.identity.node_id);
                    failures.push(DialFailure { address: address.to_string(), error });
                }
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    failures.push(DialFailure { address: address.to_string(), error: chain(&error) });
                }
            }
        }
        Err(failures)
    }

    /// Carries messages until the stream ends; the reason, or `None` when the agent ended it.
    async fn carry(
        &self,
        connection: Connection,
        messages: mpsc::Receiver<ToServer>,
        mut ended: oneshot::Receiver<()>,
    ) -> Option<String> {
        let server = connection.identity.node_id;
        let shown = Arc::clone(&self.credentials);
        let up = ReceiverStream::new(messages).map(move |message| up_to(message, &shown));
        let mut client = SessionClient::new(connection.channel);
        let attached = tokio::select! {
            attached = client.attach(up) => attached,
            _ = &mut ended => return None,
        };
        let mut down = match attached {
            Ok(response) => response.into_inner(),
            Err(status) => {
                if status::code_of(&status) == Some(ErrorCode::CertificateExpired) {
                    self.servers.ask_renewal();
                }
                if let Some(code @ ErrorCode::Revoked) = status::code_of(&status) {
                    // As if it had been taken in and thrown out.
                    let message = FromServer::End { code, message: refusal(&status) };
                    let input = Input::SessionMessage { session: self.session, message };
                    self.agent.send(input).await.ok()?;
                }
                return Some(refusal(&status));
            }
        };
        loop {
            let message = tokio::select! {
                message = down.message() => message,
                _ = &mut ended => {
                    // Our stream ended with the handle; the Server ends its own when it has read that.
                    let rest = async { while let Ok(Some(_)) = down.message().await {} };
                    let _ = tokio::time::timeout(END_TIMEOUT, rest).await;
                    return None;
                }
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return Some("the Server ended the stream".to_owned()),
                Err(status) => return Some(refusal(&status)),
            };
            if let Some(unix) = clock_of(&message) {
                self.servers.hear_clock(server, unix);
            }
            if let Some(session_down::Message::Trust(told)) = &message.message {
                match ToldTrust::read(told) {
                    Ok(told) => self.servers.trust().hear(told),
                    Err(error) => return Some(format!("the Server sent what makes no sense: {error}")),
                }
            }
            match down_from(message) {
                Ok(Some(message)) => {
                    let input = Input::SessionMessage { session: self.session, message };
                    self.agent.send(input).await.ok()?;
                }
                // Of a newer version.
                Ok(None) => {}
                Err(error) => return Some(format!("the Server sent what makes no sense: {error}")),
            }
        }
    }
}

fn refusal(status: &tonic::Status) -> String {
    match status.message() {
        "" => format!("the Server answered {}", status.code()),
        text => text.to_owned(),
    }
}

/// The message to send; by those that come again and again the Server learns which CA has signed what is shown now.
fn up_to(message: ToServer, credentials: &Credentials) -> v1::SessionUp {
    use session_up::Message;
    let signed_by = || credentials.issuer().map(|ca| ca.0.to_vec().into()).unwrap_or_default();
    let message = match message {
        ToServer::Open { hello, report, resume, revocations_known } => Message::Open(v1::SessionOpen {
            hello: Some(convert::hello_to(&hello)),
            report: Some(convert::report_to(&report)),
            view_revision: resume.map_or(0, |at| at.revision),
            view_server_incarnation: resume.map(|at| at.incarnation.to_string()).unwrap_or_default(),
            revocations_known,
            signed_by: signed_by(),
        }),
        ToServer::Report(report) => Message::Report(convert::report_to(&report)),
        ToServer::Links(links) => {
            Message::Links(v1::LinkReport { links: links.iter().map(convert::link_to).collect() })
        }
        ToServer::Heartbeat => Message::Heartbeat(v1::Heartbeat { now_unix_ms: 0, signed_by: signed_by() }),
    };
    v1::SessionUp { message: Some(message) }
}

/// What the Server says the cluster clock shows.
fn clock_of(message: &v1::SessionDown) -> Option<UnixMs> {
    use session_down::Message;
    let unix_ms = match &message.message {
        Some(Message::Welcome(welcome)) => welcome.now_unix_ms,
        Some(Message::Heartbeat(heartbeat)) => heartbeat.now_unix_ms,
        _ => 0,
    };
    Some(UnixMs(unix_ms)).filter(|unix| *unix != UnixMs(0))
}

/// A received message; `None` for kinds this version does not know.
pub(crate) fn down_from(message: v1::SessionDown) -> Result<Option<FromServer>, ConvertError> {
    use session_down::Message;
    let Some(message) = message.message else { return Ok(None) };
    Ok(Some(match message {
        Message::Welcome(welcome) => FromServer::Welcome {
            hello: convert::hello_from(welcome.hello)?,
            seen_from: match welcome.seen_from.as_str() {
                "" => None,
                text => Some(convert::parse(text, "seen_from")?),
            },
            members: members_from(welcome.members)?,
            revocations_follow: welcome.revocations_follow,
        },
        Message::Members(table) => FromServer::Members(members_from(Some(table))?),
        Message::Push(push) => FromServer::Push(convert::push_from(push)?),
        Message::Grants(own) => {
            let grants = own.grants.map_or(Ok(Grants::default()), convert::grants_from)?;
            let withheld = own.withheld_addresses.iter().take(NetInfo::CANDIDATES_MAX);
            let withheld = withheld.map(|text| convert::parse(text, "withheld_addresses"));
            FromServer::OwnGrants { grants: Arc::new(grants), withheld: withheld.collect::<Result<_, _>>()? }
        }
        Message::Heartbeat(v1::Heartbeat { .. }) => FromServer::Heartbeat,
        Message::Revocations(push) => FromServer::Revocations(convert::revocations_from(push)?),
        // Heard beside the agent, which has no part in it.
        Message::Trust(_) => return Ok(None),
        Message::End(end) => FromServer::End {
            code: ErrorCode::from_number(end.code),
            message: end.message.chars().take(512).collect(),
        },
    }))
}

fn members_from(table: Option<v1::MemberTable>) -> Result<MemberTable, ConvertError> {
    let (version, members): (u64, Vec<Member>) = convert::member_table_from(table)?;
    Ok(MemberTable { version, members })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2p_common::wire::{Hello, VERSIONS};
    use p2p_common::{ClusterId, Epoch, Incarnation, NodeId};
    use uuid::Uuid;

    #[test]
    fn messages_are_taken_checked_or_skipped() {
        let hello = Hello {
            versions: VERSIONS,
            cluster_id: Some(ClusterId::new(Uuid::from_u128(1))),
            from: NodeId::new(NodeKind::Server, Uuid::from_u128(2)),
            to: None,
            epoch: Epoch(1),
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(3)),
            features: 0,
        };
        let welcome = v1::SessionWelcome {
            hello: Some(convert::hello_to(&hello)),
            seen_from: "192.0.2.1:50000".into(),
            members: Some(v1::MemberTable::default()),
            now_unix_ms: 0,
            revocations_follow: false,
        };
        let down = |message| v1::SessionDown { message: Some(message) };
        let taken = down_from(down(session_down::Message::Welcome(welcome.clone()))).unwrap();
        assert!(matches!(taken, Some(FromServer::Welcome { seen_from: Some(_), .. })), "{taken:?}");
        for bad in [
            v1::SessionWelcome { hello: None, ..welcome.clone() },
            v1::SessionWelcome { seen_from: "here".into(), ..welcome.clone() },
            v1::SessionWelcome { members: None, ..welcome },
        ] {
            assert!(down_from(down(session_down::Message::Welcome(bad))).is_err());
        }
        let own = |address: &str| {
            let withheld_addresses = vec![address.to_owned()];
            down(session_down::Message::Grants(v1::SessionGrants { grants: None, withheld_addresses }))
        };
        let grants = Arc::new(Grants::default());
        let withheld = vec!["a.b:1".parse().unwrap()];
        assert_eq!(down_from(own("a.b:1")), Ok(Some(FromServer::OwnGrants { grants, withheld })));
        assert!(down_from(own("nowhere")).is_err());
        assert_eq!(down_from(v1::SessionDown { message: None }), Ok(None));
    }
}
