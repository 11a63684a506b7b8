//! The owner's side of a tunnel: answers FORWARDs for the services of this Peer, one after the other.
//!
//! A FORWARD brings a name, never an address; only a backend registered here, and visible to the caller, is
//! dialled (SPEC F7, I8). The caller is who the tunnel's certificate says. A Peer that carries on (`transit`, SPEC F3)
//! opens a forward of its own to the owner first and accepts when that is accepted, so that no byte is ever in doubt.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::{Hop, ProxyId};
use p2p_common::{ErrorCode, NodeId};
use p2p_peer_core::{ForwardRefusal, ForwardTo};
use slog::{debug, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::open::{Opened, Upstream};
use super::recent::{Recent, TakeUp};
use super::splice::{Broken, Pipe, copy_both};
use super::{End, Forward, Forwarder, Recents, backend};
use crate::tunnel::{Tunnel, TunnelError};

/// Client bytes that came with a FORWARD that is refused; more would be a client that does not listen.
const DISCARD_MAX_BYTES: usize = 1 << 20;

/// RECEIVED and ACCEPT wait this long for each other and for the backend's first bytes: with a service that is
/// near and fast all of it is one write here and one wake-up at the ingress. Far below the 250 ms after which
/// an ingress that hears nothing wonders.
const HOLD: Duration = Duration::from_millis(2);

/// How long a Peer that stops refuses what is asked before it closes its tunnels. Its Servers and linked Peers know at
/// once, and theirs within a round trip or two.
const SEND_AWAY_TIME: Duration = Duration::from_millis(500);
/// The answer to a FORWARD that came twice.
const TAKEN_UP: (ErrorCode, &str) = (ErrorCode::AlreadyRuns, "its owner has taken the forward up already");

/// What serving tunnels needs.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// Who may reach which backend; and the way on to those who have what is not here.
    pub(crate) forwarder: Forwarder,
    /// What was taken up lately.
    pub(crate) recents: Recents,
    /// Who was told that it may not.
    pub(crate) refusals: Refusals,
}

/// Who was refused which service for want of a grant: each is worth one record. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Mutex<BTreeSet<(NodeId, ServiceName)>>>);

/// So many are remembered; then it begins anew.
const REFUSALS_MAX: usize = 1_024;

impl Refusals {
    fn is_first(&self, caller: NodeId, service: &ServiceName) -> bool {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSALS_MAX {
            refused.clear();
        }
        refused.insert((caller, service.clone()))
    }
}

/// Why a forward is refused.
struct Refusal {
    code: ErrorCode,
    text: String,
}

impl Owner {
    /// Serves `caller`'s FORWARDs until it closes the tunnel, or until `drain` is cancelled between two: then those
    /// that still come are refused for a moment.
    ///
    /// # Errors
    /// When the tunnel breaks. A backend that breaks breaks the tunnel of its forward as well: that is how the
    /// ingress learns that what it got is not the whole.
    pub(crate) async fn serve<S>(
        &self,
        mut tunnel: Tunnel<S>,
        caller: NodeId,
        drain: &CancellationToken,
    ) -> Result<(), TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let recent = self.recents.of(caller, tunnel.incarnation(), Instant::now());
        loop {
            let next = tokio::select! {
                next = tunnel.next_forward() => next?,
                () = drain.cancelled() => return self.send_away(&mut tunnel, &recent).await,
            };
            let Some((proxy_id, service, hop)) = next else { return Ok(()) };
            tunnel.received(proxy_id);
            let (code, text) = match self.take_up(&recent, proxy_id, &service, caller) {
                Ok(mut forward) => match self.upstream(&mut tunnel, caller, &service, hop).await? {
                    Ok(upstream) => {
                        self.carry(&mut tunnel, Opened::new(upstream, 0, forward)).await?;
                        continue;
                    }
                    Err(Refusal { code, text }) => {
                        forward.end(End::NotOpened(code));
                        (code, text)
                    }
                },
                Err((code, text)) => (code, text.to_owned()),
            };
            if code == ErrorCode::NotGranted && self.refusals.is_first(caller, &service) {
                warn!(self.forwarder.log, "forward refused: its caller may not reach the service";
                    "proxy_id" => %proxy_id, "service" => %service, "peer_id" => caller, "reason" => &text);
            }
            self.forwarder.forwards.count_refusal(code);
            debug!(self.forwarder.log, "forward refused"; "proxy_id" => %proxy_id, "service" => %service,
                "peer_id" => caller, "code" => code.as_str(), "error" => &text);
            tunnel.refuse(proxy_id, code, text, DISCARD_MAX_BYTES).await?;
        }
    }

    /// This Peer stops: what is asked until the others have heard of it goes elsewhere. A tunnel that was just closed
    /// would leave an ingress in doubt about what it had sent on it.
    async fn send_away<S>(&self, tunnel: &mut Tunnel<S>, recent: &Recent) -> Result<(), TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let until = Instant::now() + SEND_AWAY_TIME;
        while let Ok(next) = tokio::time::timeout_at(until, tunnel.next_forward()).await {
            let Some((proxy_id, ..)) = next? else { break };
            tunnel.received(proxy_id);
            let (code, text) = match recent.take_up(proxy_id, Instant::now()) {
                TakeUp::New | TakeUp::Full => (ErrorCode::Draining, "its owner is stopping"),
                TakeUp::Again => TAKEN_UP,
            };
            tunnel.refuse(proxy_id, code, text.to_owned(), DISCARD_MAX_BYTES).await?;
        }
        Ok(())
    }

    /// Opens the way to the service; RECEIVED leaves when that takes its time.
    async fn upstream<S>(
        &self,
        tunnel: &mut Tunnel<S>,
        caller: NodeId,
        service: &ServiceName,
        hop: Hop,
    ) -> Result<Result<Upstream, Refusal>, TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let open = self.open(caller, service, hop);
        tokio::pin!(open);
        if let Ok(opened) = tokio::time::timeout(HOLD, &mut open).await {
            return Ok(opened);
        }
        tunnel.flush().await?;
        Ok(open.await)
    }

    /// A slot for the forward, once.
    fn take_up(
        &self,
        recent: &Recent,
        proxy_id: ProxyId,
        service: &ServiceName,
        caller: NodeId,
    ) -> Result<Forward, (ErrorCode, &'static str)> {
        // Remembered before anything else may refuse it: the caller may go elsewhere then.
        match recent.take_up(proxy_id, Instant::now()) {
            TakeUp::New => self
                .forwarder
                .forwards
                .serve(proxy_id, service.clone(), caller)
                .ok_or((ErrorCode::Exhausted, "its owner carries as many forwards as it can")),
            TakeUp::Again => Err(TAKEN_UP),
            TakeUp::Full => Err((ErrorCode::Exhausted, "its owner takes no more forwards in this minute")),
        }
    }

    async fn open(&self, caller: NodeId, service: &ServiceName, hop: Hop) -> Result<Upstream, Refusal> {
        let backend = match self.forwarder.views.tables().may_forward(caller, service, hop) {
            Ok(ForwardTo::Backend(backend)) => backend,
            Ok(ForwardTo::Carry { owners }) => {
                let onward = self.forwarder.open_onward(service, &owners).await;
                return match onward {
                    Ok(onward) => Ok(Upstream::Onward(Box::new(onward))),
                    Err(error) => Err(Refusal { code: error.code(), text: error.to_string() }),
                };
            }
            Err(ForwardRefusal { code, text }) => return Err(Refusal { code, text }),
        };
        // The backend's address is the owner's affair: it goes into its own log, not to the caller.
        backend::connect(&backend).await.map(Upstream::Local).map_err(|error| {
            debug!(self.forwarder.log, "backend failed"; "service" => %service, "error" => %error);
            let text = match backend::code(&error) {
                ErrorCode::BackendTimeout => "the backend did not answer its owner in time",
                _ => "the backend refused its owner's connection",
            };
            Refusal { code: backend::code(&error), text: text.to_owned() }
        })
    }

    async fn carry<S>(&self, tunnel: &mut Tunnel<S>, mut opened: Opened) -> Result<(), TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tunnel.accept(opened.forward().proxy_id());
        let mut there = Pipe::new(self.forwarder.buffers.get());
        let mut back = Pipe::new(self.forwarder.buffers.get()).hold(HOLD);
        match copy_both((&mut *tunnel, &mut there), (&mut opened, &mut back)).await {
            Ok(()) => {
                tunnel.reset();
                // A backend needs no time to settle.
                opened.retire().await;
                Ok(())
            }
            Err(broken) => {
                let forward = opened.forward();
                debug!(self.forwarder.log, "forward broke"; "proxy_id" => %forward.proxy_id(),
                    "service" => %forward.service(), "error" => %broken);
                let (end, error) = match broken {
                    Broken::From(error) => (End::Client, error),
                    Broken::To(error) => (End::Service, error),
                };
                opened.abort(end);
                Err(error)
            }
        }
    }
}
