//! The connection of one mesh link: dialled or accepted, hellos, then messages both ways (SPEC F2).
//!
//! ```text
//! dialler:   TCP ─► TLS, p2p-link/1 ─► HELLO ─► HELLO back ─► opened ─┐
//! acceptor:  (the listening port did TLS) ◄─ HELLO ─► agent: room? ─► HELLO back ─┴─► messages until either side ends
//! ```
//!
//! What is said, and when a link is lost, is the agent's to decide: it hears everything through its mailbox and hands
//! in what goes out. Dropping the [`LinkHandle`] ends the link: what was handed in still goes out, within
//! [`LAST_WORDS_TIMEOUT`]. Bounds: the queue of messages to send (full: the link is lost), a frame (1 MiB), the hellos
//! (5 s). An operator wrote the addresses that are dialled here, so no rule is asked about them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use p2p_common::addr::HostPort;
use p2p_common::grants::Grants;
use p2p_common::wire::link::LinkMessage;
use p2p_common::wire::{Hello, HelloError};
use p2p_common::{ErrorCode, KeyHash, NodeId};
use p2p_peer_core::{LinkOpened, LinkToken};
use p2p_proto::convert::{LinkFrameError, decode_link, encode_link};
use p2p_runtime::exit::chain;
use p2p_runtime::identity::PeerIdentity;
use p2p_runtime::tls::{ConnectError, Connector, Credentials, shown_grants};
use slog::{Logger, debug};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::agent_task::Input;
use crate::published::Myself;

/// For TCP and TLS: two SYN retransmissions and some work.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Hellos are one round trip over a connection that just made three.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages on their way out; a Peer that lets so many wait takes nothing.
const QUEUE: usize = 32;
/// What was said last has this long to get out.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// That a message is on its way is told this often; silence is counted in seconds.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// How much is read at a time; most messages are heartbeats.
const READ_BYTES: usize = 8 * 1024;

/// The agent's side of a link.
#[derive(Debug)]
pub(crate) struct LinkHandle {
    /// What was dialled; none when the other side did.
    pub(crate) address: Option<HostPort>,
    /// Who is there, once that is known.
    pub(crate) peer: Option<NodeId>,
    messages: mpsc::Sender<LinkMessage>,
    /// Dropped, it ends the link whatever it is doing.
    _alive: oneshot::Sender<()>,
}

/// The connection's side of a link.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    /// Which link.
    link: LinkToken,
    messages: mpsc::Receiver<LinkMessage>,
    ended: oneshot::Receiver<()>,
}

/// A Peer that dialled us for a link and said a hello that fits.
#[derive(Debug)]
pub(crate) struct LinkOffer {
    /// Who it is.
    pub(crate) opened: LinkOpened,
    /// Where the link goes, if the agent has room for it.
    pub(crate) answer: oneshot::Sender<Option<LinkEnd>>,
}

/// Opens and carries links as one node.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    /// What is shown and trusted.
    pub(crate) credentials: Arc<Credentials>,
    /// Who we are.
    pub(crate) myself: Arc<Myself>,
    /// The agent.
    pub(crate) mailbox: mpsc::Sender<Input>,
    /// Where to report.
    pub(crate) log: Logger,
}

/// Why there is no link, or none any more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the link")]
    Closed,
    #[error(transparent)]
    Frame(#[from] LinkFrameError),
    #[error("no hello came within {} s", HELLO_TIMEOUT.as_secs())]
    HelloTimedOut,
    #[error("its first message is no HELLO")]
    NoHello,
    #[error("it says HELLO a second time")]
    SecondHello,
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the other side refuses the link ({code}): {text}")]
    Refused { code: ErrorCode, text: String },
}

/// Makes both sides of a link.
pub(crate) fn link(link: LinkToken, address: Option<HostPort>) -> (LinkHandle, LinkEnd) {
    let (sender, messages) = mpsc::channel(QUEUE);
    let (alive, ended) = oneshot::channel();
    (LinkHandle { address, peer: None, messages: sender, _alive: alive }, LinkEnd { link, messages, ended })
}

impl LinkHandle {
    /// Hands in a message; `false` when the queue is full or the link is over.
    pub(crate) fn send(&self, message: LinkMessage) -> bool {
        self.messages.try_send(message).is_ok()
    }
}

impl Links {
    /// Dials a link among `attempts`; everything of it is told to the agent.
    pub(crate) fn dial(&self, attempts: &TaskTracker, token: LinkToken, address: HostPort) -> LinkHandle {
        let (handle, mut end) = link(token, Some(address.clone()));
        let this = self.clone();
        attempts.spawn(async move {
            let dialled = tokio::select! {
                dialled = this.dial_address(&address) => dialled,
                _ = &mut end.ended => return,
            };
            let (wire, opened) = match dialled {
                Ok(dialled) => dialled,
                Err(error) => {
                    let input = Input::LinkFailed { link: token, error: chain(&error) };
                    // Without an agent nobody listens; likewise below.
                    return drop(this.mailbox.send(input).await);
                }
            };
            if this.mailbox.send(Input::LinkOpened { link: token, opened }).await.is_ok() {
                this.carry(wire, end).await;
            }
        });
        handle
    }

    async fn dial_address(
        &self,
        address: &HostPort,
    ) -> Result<(Wire<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>, LinkOpened), LinkError> {
        let connector = Connector::link(Arc::clone(&self.credentials));
        let dialed = Box::pin(connector.dial(address, DIAL_TIMEOUT)).await?;
        let identity = dialed.identity;
        let grants = Arc::new(shown_grants(dialed.stream.get_ref().1));
        let mut wire = Wire::new(dialed.stream);
        let hellos = async {
            wire.send(&LinkMessage::Hello(self.myself.hello(Some(identity.node_id)))).await?;
            wire.hello().await
        };
        let theirs = tokio::time::timeout(HELLO_TIMEOUT, hellos).await;
        let theirs = theirs.map_err(|_| LinkError::HelloTimedOut)??;
        theirs.check(&self.myself.expected(identity.node_id))?;
        Ok((wire, opened(identity, grants, &theirs, address.to_string())))
    }

    /// Takes a link that the Peer of `identity`, which may do what its certificate says, dialled from `remote`, and
    /// carries it to its end.
    pub(crate) async fn accept<S>(
        &self,
        stream: S,
        identity: PeerIdentity,
        grants: Arc<Grants>,
        remote: String,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let id = identity.node_id;
        let mut wire = Wire::new(stream);
        let heard = tokio::time::timeout(HELLO_TIMEOUT, wire.hello()).await;
        let hello = match heard.unwrap_or(Err(LinkError::HelloTimedOut)) {
            Ok(hello) => hello,
            Err(error) => {
                debug!(self.log, "mesh link without hello"; "peer_id" => id, "error" => %error);
                return;
            }
        };
        if let Err(error) = hello.check(&self.myself.expected(id)) {
            debug!(self.log, "mesh link turned away"; "peer_id" => id, "remote" => &remote, "error" => %error);
            return wire.turn_away(error.code(), error.to_string()).await;
        }
        let (answer, answered) = oneshot::channel();
        let offer = LinkOffer { opened: opened(identity, grants, &hello, remote), answer };
        if self.mailbox.send(Input::LinkAccepted(offer)).await.is_err() {
            return;
        }
        let Ok(Some(end)) = answered.await else {
            let text = "this peer has as many mesh links as it can".to_owned();
            return wire.turn_away(ErrorCode::Exhausted, text).await;
        };
        let link = end.link;
        // The first message goes out ahead of those that the agent hands in.
        match wire.send(&LinkMessage::Hello(self.myself.hello(Some(id)))).await {
            Ok(()) => self.carry(wire, end).await,
            Err(error) => {
                let input = Input::LinkClosed { link, reason: chain(&error) };
                drop(self.mailbox.send(input).await);
            }
        }
    }

    /// Carries messages until either side ends the link.
    async fn carry<S>(&self, wire: Wire<S>, end: LinkEnd)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let LinkEnd { link, mut messages, ended } = end;
        let Wire { reader, mut writer, received } = wire;
        let last_words = async {
            // Sent or dropped: the agent ended the link.
            let _ = ended.await;
            tokio::time::sleep(LAST_WORDS_TIMEOUT).await;
        };
        let error = tokio::select! {
            error = self.hear(link, reader, received) => error,
            said = say(&mut writer, &mut messages) => match said {
                // The agent ended the link and expects nothing.
                Ok(()) => return,
                Err(error) => Some(error),
            },
            () = last_words => return,
        };
        let Some(error) = error else { return };
        drop(self.mailbox.send(Input::LinkClosed { link, reason: chain(&error) }).await);
    }

    /// Tells the agent all that comes, of a long message also that it is coming; why nothing more does, or none when
    /// there is no agent.
    async fn hear<S: AsyncRead>(
        &self,
        link: LinkToken,
        mut reader: ReadHalf<S>,
        mut received: BytesMut,
    ) -> Option<LinkError> {
        let mut told_at = Instant::now();
        loop {
            let input = match next(&mut reader, &mut received).await {
                Ok(Some(LinkMessage::Hello(_))) => return Some(LinkError::SecondHello),
                Ok(Some(message)) => Input::LinkMessage { link, message },
                Ok(None) if told_at.elapsed() < HEARD_INTERVAL => continue,
                Ok(None) => Input::LinkHeard { link },
                Err(error) => return Some(error),
            };
            told_at = Instant::now();
            self.mailbox.send(input).await.ok()?;
        }
    }
}

fn opened(identity: PeerIdentity, grants: Arc<Grants>, hello: &Hello, address: String) -> LinkOpened {
    let key_hash: KeyHash = identity.key_hash;
    LinkOpened { peer: identity.node_id, key_hash, incarnation: hello.incarnation, address, grants }
}

/// A link's connection.
struct Wire<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    /// What came and was not read yet.
    received: BytesMut,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Wire { reader, writer, received: BytesMut::new() }
    }

    async fn send(&mut self, message: &LinkMessage) -> Result<(), LinkError> {
        let mut frame = BytesMut::new();
        encode_link(message, &mut frame)?;
        self.writer.write_all(&frame).await?;
        Ok(self.writer.flush().await?)
    }

    async fn hello(&mut self) -> Result<Hello, LinkError> {
        match receive(&mut self.reader, &mut self.received).await? {
            LinkMessage::Hello(hello) => Ok(hello),
            LinkMessage::Refused { code, text } => Err(LinkError::Refused { code, text }),
            _ => Err(LinkError::NoHello),
        }
    }

    /// Answers a hello that is not taken with the reason, and closes.
    async fn turn_away(mut self, code: ErrorCode, text: String) {
        // A courtesy: the connection ends either way.
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, async {
            self.send(&LinkMessage::Refused { code, text }).await?;
            Ok::<_, LinkError>(self.writer.shutdown().await?)
        })
        .await;
    }
}

/// The next message.
async fn receive<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    received: &mut BytesMut,
) -> Result<LinkMessage, LinkError> {
    loop {
        if let Some(message) = next(reader, received).await? {
            return Ok(message);
        }
    }
}

/// The next message, or none when some of it has come.
async fn next<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    received: &mut BytesMut,
) -> Result<Option<LinkMessage>, LinkError> {
    if let Some(message) = decode_link(received)? {
        return Ok(Some(message));
    }
    received.reserve(READ_BYTES);
    match reader.read_buf(received).await {
        Ok(0) => Err(LinkError::Closed),
        // A process that died says no more than that in TLS.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(LinkError::Closed),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(None),
    }
}

/// Sends what the agent hands in, to the last; then says that nothing more comes.
async fn say<S: AsyncWrite>(
    writer: &mut WriteHalf<S>,
    messages: &mut mpsc::Receiver<LinkMessage>,
) -> Result<(), LinkError> {
    let mut frames = BytesMut::new();
    while let Some(message) = messages.recv().await {
        encode_link(&message, &mut frames)?;
        writer.write_all(&frames).await?;
        writer.flush().await?;
        frames.clear();
    }
    // The other side may be gone.
    let _ = writer.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests;
