//! [`Forwarder`]: the way from a client to a service, opened: a backend of this Peer, or a tunnel to the owner.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::{Hop, ProxyId};
use p2p_common::{ErrorCode, NodeId};
use p2p_peer_core::{LookupError, Route, Source};
use p2p_runtime::tcp::DialError;
use slog::{Logger, debug};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::ask::{Accepted, NotAccepted, Request};
use super::splice::{Buffers, Carrier, CopyBuffer, Plain};
use super::{End, Forward, Forwards, SilentOwners, backend};
use crate::published::Views;
use crate::tunnel::{Lease, Pool, PoolError, TunnelError};

/// For an owner that accepts, whoever it is: one that is asked has 8 s, and 5 s are left for the next.
const OPEN_TIMEOUT: Duration = Duration::from_secs(13);

/// Opens forwards.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    /// Where services are.
    pub(crate) views: Arc<Views>,
    /// Tunnels to their owners.
    pub(crate) pool: Pool,
    /// The slots.
    pub(crate) forwards: Arc<Forwards>,
    /// Who goes last.
    pub(crate) silent: Arc<SilentOwners>,
    /// For copying.
    pub(crate) buffers: Buffers,
    /// Where to report.
    pub(crate) log: Logger,
}

/// Why the way to a service cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// All slots are taken.
    #[error("this peer carries as many forwards as it can")]
    Full,
    /// There is no route.
    #[error(transparent)]
    NoRoute(#[from] LookupError),
    /// A backend of this Peer does not take the connection.
    #[error(transparent)]
    Backend(#[from] DialError),
    /// No owner can be reached; why not the one tried last.
    #[error(transparent)]
    Owner(#[from] PoolError),
    /// The owner refuses, or the way to it broke before it accepted.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The owner was asked and did not accept.
    #[error("the owner of the service did not answer in time")]
    TimedOut,
    /// The owner is another run than the one that was asked, and does not know what that one did.
    #[error("{0} was started anew while it was asked; whether it carried the request is not known")]
    Restarted(NodeId),
}

impl OpenError {
    /// The stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            OpenError::Full => ErrorCode::Exhausted,
            OpenError::NoRoute(error) => error.code(),
            OpenError::Backend(error) => backend::code(error),
            OpenError::Owner(error) => error.code(),
            OpenError::Tunnel(error) => error.code(),
            OpenError::TimedOut => ErrorCode::BackendTimeout,
            OpenError::Restarted(_) => ErrorCode::OutcomeUnknown,
        }
    }
}

/// A forward that was not opened.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct NotOpened {
    /// The name under which it was tried.
    pub(crate) proxy_id: ProxyId,
    /// Why not.
    pub(crate) error: OpenError,
}

impl NotOpened {
    /// The stable code.
    pub(crate) fn code(&self) -> ErrorCode {
        self.error.code()
    }
}

/// A forward that is open. What it carries towards the service, as a [`Carrier`], is counted.
#[derive(Debug)]
pub(crate) struct Opened {
    upstream: Upstream,
    forward: Forward,
    sent: usize,
}

/// The other end of a forward, seen from the client.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A backend of this Peer.
    Local(Plain<TcpStream>),
    /// A tunnel to the owner.
    Remote(Lease),
    /// A forward of this Peer to the owner, for a Peer that does not see it.
    Onward(Box<Opened>),
}

impl Forwarder {
    /// Opens the way to `service`: an own backend first, else an owner that can be reached, best first
    /// (SPEC F8). The first `count` bytes of `first` leave with FORWARD and are kept until the verdict; how many of
    /// them were sent, and are gone from `first`, says [`Opened::sent`]. Another owner is asked after a refusal that
    /// concerns the first alone, or while no byte has left (SPEC F7).
    ///
    /// # Errors
    /// When nobody accepts; with the name under which it was tried. All of `first` is then there.
    pub(crate) async fn open(
        &self,
        service: &ServiceName,
        first: &mut CopyBuffer,
        count: usize,
    ) -> Result<Opened, NotOpened> {
        let full = || NotOpened { proxy_id: super::new_proxy_id(), error: OpenError::Full };
        let mut forward = self.forwards.begin(service).ok_or_else(full)?;
        let proxy_id = forward.proxy_id();
        let deadline = forward.began() + OPEN_TIMEOUT;
        match self.upstream(Request { proxy_id, service, hop: Hop::First, first, count, deadline }).await {
            Ok((upstream, sent)) => Ok(Opened::new(upstream, sent, forward)),
            Err(error) => {
                debug!(self.log, "cannot open forward"; "proxy_id" => %proxy_id, "service" => %service,
                    "code" => error.code().as_str(), "error" => %error);
                forward.end(End::NotOpened(error.code()));
                Err(NotOpened { proxy_id, error })
            }
        }
    }

    /// Opens a forward of this Peer to the first of `owners` that accepts. No client byte leaves before.
    ///
    /// # Errors
    /// When nobody accepts.
    pub(super) async fn open_onward(
        &self,
        service: &ServiceName,
        owners: &[NodeId],
    ) -> Result<Opened, OpenError> {
        let mut forward = self.forwards.begin(service).ok_or(OpenError::Full)?;
        let mut none = self.buffers.get();
        let deadline = forward.began() + OPEN_TIMEOUT;
        let proxy_id = forward.proxy_id();
        let mut request =
            Request { proxy_id, service, hop: Hop::Carried, first: &mut none, count: 0, deadline };
        let mut failed = OpenError::TimedOut;
        for owner in owners {
            match self.ask(*owner, &mut request).await {
                Ok(Accepted { lease, sent }) => {
                    return Ok(Opened::new(Upstream::Remote(lease), sent, forward));
                }
                Err(NotAccepted { error, elsewhere }) => {
                    failed = error;
                    if !elsewhere || Instant::now() >= deadline {
                        break;
                    }
                }
            }
        }
        forward.end(End::NotOpened(failed.code()));
        Err(failed)
    }

    async fn upstream(&self, mut request: Request<'_>) -> Result<(Upstream, usize), OpenError> {
        let pick = rand::random();
        let mut tried = Vec::new();
        let mut failed = None;
        loop {
            let tables = self.views.tables();
            let me = tables.me();
            let service = request.service.as_str();
            let silent = self.silent.list(Instant::now());
            let others = || tables.resolve(service, pick, &[&tried[..], &silent].concat());
            let first = if silent.is_empty() { None } else { others().ok() };
            let owner = match first.map_or_else(|| tables.resolve(service, pick, &tried), Ok) {
                Ok(Route { source: Source::Peer(owner), .. }) => Ok(*owner),
                Ok(Route { source: Source::Local, backend, .. }) => Err(backend.clone()),
                // Why the last one did not do says more than that all have been tried.
                Err(error) => return Err(failed.unwrap_or(OpenError::NoRoute(error))),
            };
            let owner = match owner {
                Ok(owner) => owner,
                Err(backend) => match backend::connect(&backend).await {
                    Ok(backend) => return Ok((Upstream::Local(backend), 0)),
                    // Nothing has left: somebody else may have it.
                    Err(error) => {
                        failed = Some(error.into());
                        tried.push(me);
                        continue;
                    }
                },
            };
            match self.ask(owner, &mut request).await {
                Ok(Accepted { lease, sent }) => return Ok((Upstream::Remote(lease), sent)),
                Err(NotAccepted { error, elsewhere: true }) if Instant::now() < request.deadline => {
                    failed = Some(error);
                    tried.push(owner);
                }
                Err(NotAccepted { error, .. }) => return Err(error),
            }
        }
    }
}

impl Opened {
    /// From here on bytes flow; `sent` of the client's already have.
    pub(super) fn new(upstream: Upstream, sent: usize, mut forward: Forward) -> Self {
        forward.opened(match &upstream {
            Upstream::Local(_) => None,
            Upstream::Remote(lease) => Some((lease.peer(), lease.path())),
            Upstream::Onward(onward) => onward.forward.owner(),
        });
        forward.count(sent as u64, 0);
        Opened { upstream, forward, sent }
    }

    /// The account of the forward.
    pub(crate) fn forward(&self) -> &Forward {
        &self.forward
    }

    /// How many of the first bytes were sent.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Ends the forward in order after its last byte was sent. The future keeps the tunnel, if that settles.
    pub(crate) fn retire(self) -> impl Future<Output = ()> + Send + 'static {
        let Opened { upstream, mut forward, .. } = self;
        forward.end(End::Done);
        drop(forward);
        async move {
            match upstream {
                Upstream::Local(_) => {}
                Upstream::Remote(lease) => lease.retire().await,
                // It is one onward from here: an onward forward is never carried on again.
                Upstream::Onward(onward) => Box::pin(onward.retire()).await,
            }
        }
    }

    /// Ends the forward of which the service, or the way to it, took leave while nothing was under way.
    pub(crate) fn leave(mut self) {
        self.forward.end(End::Done);
    }

    /// Ends the forward in the middle, so that the service does not take what it got for the whole.
    pub(crate) fn abort(mut self, end: End) {
        self.forward.end(end);
        match self.upstream {
            Upstream::Local(backend) => super::ending::abort(backend.get_ref()),
            // A tunnel that is dropped breaks the forward at its owner.
            Upstream::Remote(_) => {}
            Upstream::Onward(onward) => onward.abort(end),
        }
    }
}

impl Carrier for Opened {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, TunnelError>> {
        let received = ready!(match &mut self.upstream {
            Upstream::Local(backend) => backend.poll_recv(cx, into),
            Upstream::Remote(lease) => lease.tunnel().poll_recv(cx, into),
            Upstream::Onward(onward) => onward.poll_recv(cx, into),
        })?;
        self.forward.count(0, received as u64);
        Poll::Ready(Ok(received))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut CopyBuffer,
        count: usize,
        last: bool,
    ) -> Poll<Result<usize, TunnelError>> {
        let sent = ready!(match &mut self.upstream {
            Upstream::Local(backend) => backend.poll_send(cx, from, count, last),
            Upstream::Remote(lease) => lease.tunnel().poll_send(cx, from, count, last),
            Upstream::Onward(onward) => onward.poll_send(cx, from, count, last),
        })?;
        self.forward.count(sent as u64, 0);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        match &mut self.upstream {
            Upstream::Local(backend) => backend.poll_flush(cx),
            Upstream::Remote(lease) => lease.tunnel().poll_flush(cx),
            Upstream::Onward(onward) => onward.poll_flush(cx),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        match &mut self.upstream {
            Upstream::Local(backend) => backend.poll_finish(cx),
            Upstream::Remote(lease) => lease.tunnel().poll_finish(cx),
            Upstream::Onward(onward) => onward.poll_finish(cx),
        }
    }
}
