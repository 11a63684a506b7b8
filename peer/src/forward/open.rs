//! [`Forwarder`]: the way from a client to a service, opened: a backend of this Peer, or a tunnel to the owner.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use p2p_common::ErrorCode;
use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::ProxyId;
use p2p_peer_core::{LookupError, Route, Source};
use p2p_runtime::tcp::DialError;
use slog::{Logger, debug};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::splice::{Buffers, Carrier, CopyBuffer, Plain};
use super::{Forward, Forwards, backend};
use crate::published::Views;
use crate::tunnel::{Lease, Pool, PoolError, TunnelError};

/// For a tunnel to the owner, once it is needed: the client waits.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(5);
/// For the owner's ACCEPT: its backend has 5 s.
pub(crate) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(8);

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

/// A forward that is open, or asked for: the owner's ACCEPT comes with its first bytes.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Where the bytes go.
    pub(crate) upstream: Upstream,
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
    /// (SPEC F8). Another owner is tried only while no byte has left.
    ///
    /// # Errors
    /// When there is none; with the name under which it was tried.
    pub(crate) async fn open(&self, service: &ServiceName) -> Result<Opened, NotOpened> {
        let full = || NotOpened { proxy_id: super::new_proxy_id(), error: OpenError::Full };
        let forward = self.forwards.begin().ok_or_else(full)?;
        let proxy_id = forward.proxy_id();
        match self.upstream(service, proxy_id).await {
            Ok(upstream) => Ok(Opened { upstream, forward }),
            Err(error) => Err(self.not_opened(proxy_id, service, error)),
        }
    }

    /// Waits until bytes flow.
    ///
    /// # Errors
    /// When the owner refuses, or the way to it breaks.
    pub(crate) async fn accepted(
        &self,
        mut opened: Opened,
        service: &ServiceName,
    ) -> Result<Opened, NotOpened> {
        let proxy_id = opened.forward.proxy_id();
        let accepted = tokio::time::timeout(ACCEPT_TIMEOUT, opened.upstream.accepted()).await;
        let error = match accepted {
            Ok(Ok(())) => return Ok(opened),
            Ok(Err(error)) => {
                // The tunnel is sound; only this forward is not.
                if matches!(error, TunnelError::Refused { .. }) {
                    tokio::spawn(opened.upstream.retire());
                }
                OpenError::Tunnel(error)
            }
            Err(_) => OpenError::TimedOut,
        };
        Err(self.not_opened(proxy_id, service, error))
    }

    fn not_opened(&self, proxy_id: ProxyId, service: &ServiceName, error: OpenError) -> NotOpened {
        debug!(self.log, "cannot open forward"; "proxy_id" => %proxy_id, "service" => %service,
            "code" => error.code().as_str(), "error" => %error);
        self.forwards.count_failed();
        NotOpened { proxy_id, error }
    }

    async fn upstream(&self, service: &ServiceName, proxy_id: ProxyId) -> Result<Upstream, OpenError> {
        let deadline = Instant::now() + TUNNEL_TIMEOUT;
        let pick = rand::random();
        let mut tried = Vec::new();
        let mut failed = None;
        loop {
            let owner = match self.views.tables().resolve(service.as_str(), pick, &tried) {
                Ok(Route { source: Source::Peer(owner), .. }) => Ok(*owner),
                Ok(Route { source: Source::Local, backend, .. }) => Err(backend.clone()),
                // The last failure says more than that all have failed.
                Err(error) => return Err(failed.map_or(OpenError::NoRoute(error), OpenError::Owner)),
            };
            let owner = match owner {
                Ok(owner) => owner,
                Err(backend) => return Ok(Upstream::Local(backend::connect(&backend).await?)),
            };
            match self.pool.take(owner, deadline).await {
                Ok(mut lease) => {
                    // The seed's form, for people who know it.
                    debug!(self.log, "forward";
                        "command" => format_args!("FORWARD:{proxy_id}:{service}:80"), "peer_id" => owner);
                    lease.tunnel().begin(proxy_id, service);
                    return Ok(Upstream::Remote(lease));
                }
                Err(error) => failed = Some(error),
            }
            tried.push(owner);
        }
    }
}

impl Upstream {
    /// Whether bytes flow: the owner accepted, or nobody is asked.
    pub(crate) fn is_accepted(&mut self) -> bool {
        match self {
            Upstream::Local(_) => true,
            Upstream::Remote(lease) => lease.tunnel().is_accepted(),
        }
    }

    /// Waits until bytes flow.
    ///
    /// # Errors
    /// When the owner refuses, or the way to it breaks.
    pub(crate) async fn accepted(&mut self) -> Result<(), TunnelError> {
        match self {
            Upstream::Local(_) => Ok(()),
            Upstream::Remote(lease) => std::future::poll_fn(|cx| lease.tunnel().poll_accepted(cx)).await,
        }
    }

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
