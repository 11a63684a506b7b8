//! Tunnels that are out of the pool: [`Lease`] for those we dialled, [`AcceptedTunnel`] for those of others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use p2p_common::NodeId;
use p2p_common::link::PathKind;
use slog::debug;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::remote::Remote;
use crate::forward::ending;
use crate::tunnel::{DirectTunnel, LinkCounters, PeerStream, Tunnel};

/// What may still come of a forward that we ended before its tunnel is not worth waiting for.
const DISCARD_MAX_BYTES: usize = 256 * 1024;
/// How long the owner has to end its direction after we ended ours. Most services close as soon as their
/// client does; one that does not costs a tunnel.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// A tunnel in use. Dropped, it closes; [`Lease::give_back`] and [`Lease::retire`] keep it.
#[derive(Debug)]
pub(crate) struct Lease {
    /// None only after it was given back.
    pub(super) direct: Option<DirectTunnel>,
    pub(super) remote: Arc<Remote>,
    pub(super) shared: Arc<Shared>,
    pub(super) _slot: OwnedSemaphorePermit,
}

/// Counts a tunnel that carries forwards of a remote, until dropped.
#[derive(Debug)]
pub(crate) struct AcceptedTunnel {
    pub(super) remote: Arc<Remote>,
    pub(super) shared: Arc<Shared>,
    /// Whose word ended it.
    pub(super) reason: &'static str,
}

impl AcceptedTunnel {
    /// The link's byte counts.
    pub(crate) fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.remote.counters)
    }
}

impl Drop for AcceptedTunnel {
    fn drop(&mut self) {
        self.remote.accepted.fetch_sub(1, Ordering::Relaxed);
        self.shared.note(&self.remote, |changes| {
            changes.closed_accepted += 1;
            changes.reason = self.reason.to_owned();
        });
    }
}

impl Lease {
    /// The tunnel.
    pub(crate) fn tunnel(&mut self) -> &mut Tunnel<PeerStream> {
        &mut self.direct.as_mut().expect("only giving back takes it").tunnel
    }

    /// To whom it is.
    pub(crate) fn peer(&self) -> NodeId {
        self.remote.id
    }

    /// How its bytes travel.
    pub(crate) fn path(&self) -> PathKind {
        PathKind::Direct
    }

    /// The round trip of its hellos.
    pub(crate) fn rtt(&self) -> Duration {
        self.direct.as_ref().expect("only giving back takes it").rtt
    }

    /// Closes the tunnel with a reset: what was not delivered yet never will be.
    pub(crate) fn abort(mut self) {
        ending::abort(self.tunnel().get_ref().get_ref());
    }

    /// Puts the tunnel back for the next forward; only when it is between two.
    pub(crate) fn give_back(mut self) {
        if let Some(direct) = self.direct.take_if(|direct| direct.tunnel.is_between_forwards()) {
            self.shared.put_back(&self.remote, direct);
        }
    }

    /// Ends the forward from our side and gives the tunnel back once the owner ended its side too; closes it
    /// when that takes too long.
    pub(crate) async fn retire(mut self) {
        let settle = self.tunnel().settle(DISCARD_MAX_BYTES);
        match tokio::time::timeout(SETTLE_TIMEOUT, settle).await {
            Ok(Ok(())) => self.give_back(),
            Ok(Err(error)) => debug!(self.shared.log, "tunnel dropped"; "error" => %error),
            Err(_) => debug!(self.shared.log, "tunnel dropped"; "error" => "its forward did not end in time"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.direct.take().is_some() {
            self.shared.closed(&self.remote, 1, "its forward broke");
        }
    }
}
