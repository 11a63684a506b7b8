//! [`Forwarder`]: the way from a client to a service, opened: a backend of this Peer, or a tunnel to the owner.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::ProxyId;
use p2p_common::{ErrorCode, NodeId};
use p2p_peer_core::{LookupError, Route, Source};
use p2p_runtime::tcp::DialError;
use slog::{Logger, debug};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::ask::{Accepted, NotAccepted, Request};
use super::splice::{Buffers, Carrier, CopyBuffer, Plain};
use super::{Forward, Forwards, backend};
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

/// A forward that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Where the bytes go.
    pub(crate) upstream: Upstream,
    /// How many of the first bytes were sent.
    pub(crate) sent: usize,
    /// Its name and slot.
    pub(crate) forward: Forward,
}

/// The other end of a forward, seen from the client.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// A backend of this Peer.
    Local(Plain<TcpStream>),
    /// A tunnel to the owner.
    Remote(Lease),
}

impl Forwarder {
    /// Opens the way to `service`: an own backend first, else an owner that can be reached, best first
    /// (SPEC F8). The first `count` bytes of `first` leave with FORWARD and are kept until the verdict; how many of
    /// them were sent, and are gone from `first`, is in [`Opened`]. Another owner is asked after a refusal that
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
        let forward = self.forwards.begin().ok_or_else(full)?;
        let proxy_id = forward.proxy_id();
        let deadline = Instant::now() + OPEN_TIMEOUT;
        match self.upstream(Request { proxy_id, service, first, count, deadline }).await {
            Ok((upstream, sent)) => Ok(Opened { upstream, sent, forward }),
            Err(error) => {
                debug!(self.log, "cannot open forward"; "proxy_id" => %proxy_id, "service" => %service,
                    "code" => error.code().as_str(), "error" => %error);
                self.forwards.count_failed();
                Err(NotOpened { proxy_id, error })
            }
        }
    }

    async fn upstream(&self, mut request: Request<'_>) -> Result<(Upstream, usize), OpenError> {
        let pick = rand::random();
        let mut tried = Vec::new();
        let mut failed = None;
        loop {
            let owner = match self.views.tables().resolve(request.service.as_str(), pick, &tried) {
                Ok(Route { source: Source::Peer(owner), .. }) => Ok(*owner),
                Ok(Route { source: Source::Local, backend, .. }) => Err(backend.clone()),
                // Why the last one did not do says more than that all have been tried.
                Err(error) => return Err(failed.unwrap_or(OpenError::NoRoute(error))),
            };
            let owner = match owner {
                Ok(owner) => owner,
                Err(backend) => return Ok((Upstream::Local(backend::connect(&backend).await?), 0)),
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

impl Upstream {
    /// Ends the forward in order after its last byte was sent, and keeps the tunnel.
    pub(crate) async fn retire(self) {
        if let Upstream::Remote(lease) = self {
            lease.retire().await;
        }
    }

    /// Ends the forward in the middle, so that the service does not take what it got for the whole.
    pub(crate) fn abort(self) {
        if let Upstream::Local(backend) = self {
            super::ending::abort(backend.get_ref());
        }
        // A tunnel that is dropped breaks the forward at its owner.
    }
}

impl Carrier for Upstream {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, TunnelError>> {
        match self {
            Upstream::Local(backend) => backend.poll_recv(cx, into),
            Upstream::Remote(lease) => lease.tunnel().poll_recv(cx, into),
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut CopyBuffer,
        count: usize,
        last: bool,
    ) -> Poll<Result<usize, TunnelError>> {
        match self {
            Upstream::Local(backend) => backend.poll_send(cx, from, count, last),
            Upstream::Remote(lease) => lease.tunnel().poll_send(cx, from, count, last),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        match self {
            Upstream::Local(backend) => backend.poll_flush(cx),
            Upstream::Remote(lease) => lease.tunnel().poll_flush(cx),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        match self {
            Upstream::Local(backend) => backend.poll_finish(cx),
            Upstream::Remote(lease) => lease.tunnel().poll_finish(cx),
        }
    }
}
