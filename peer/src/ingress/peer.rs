//! Another Peer on the port: its tunnels, and its mesh links (SPEC F2, F7).
//!
//! ```text
//! TLS ─┬─ p2p-link/1   ─► mesh_task
//!      └─ p2p-tunnel/1 ─► known and not too many? ─► hellos ─┬─ FORWARD ─► forward::owner
//!                                                            └─ OFFER, and we asked for it ─► the pool
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2p_common::{ErrorCode, NodeKind};
use p2p_runtime::identity::PeerIdentity;
use p2p_runtime::tcp::{self, CongestionReport, Slot};
use p2p_runtime::tls::{AcceptError, AcceptedTunnel as AcceptedTls, Face, Prefixed, shown_grants};
use slog::debug;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Ingress;
use super::peek::NoCaller;
use crate::forward::splice::CopyBuffer;
use crate::tunnel::{AcceptedTunnel, DirectTunnel, PeerStream, Tunnel, TunnelError};

/// A Peer may learn of us before we learn of it: the same news reaches both, at different speeds.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// A tunnel another Peer dialled, before its hello.
struct Newcomer {
    stream: PeerStream,
    identity: PeerIdentity,
    remote: SocketAddr,
    congestion: CongestionReport,
}

impl Ingress {
    /// Serves a mesh link to its end.
    pub(super) async fn link(
        &self,
        stream: TcpStream,
        first: CopyBuffer,
        remote: SocketAddr,
        newcomer: Option<Slot>,
    ) {
        let replayed = Prefixed::new(Bytes::copy_from_slice(first.unread()), stream);
        drop(first);
        let Some(accepted) = self.shaken(self.tls.accept(replayed), remote, newcomer).await else { return };
        match accepted.face {
            Face::Link(identity) if self.pool.is_revoked(&identity.key_hash) => {
                debug!(self.log, "mesh link turned away"; "peer_id" => identity.node_id, "remote" => %remote,
                    "error" => "its key is revoked");
                self.metrics.refused(ErrorCode::Revoked.as_str());
            }
            Face::Link(identity) if identity.kind() == NodeKind::Peer => {
                let grants = Arc::new(shown_grants(accepted.stream.get_ref().1));
                self.links.accept(accepted.stream, identity, grants, remote.to_string()).await;
            }
            Face::Link(_) => self.metrics.refused("role"),
            Face::Tunnel(_) | Face::Node(_) | Face::Public => self.metrics.refused("face"),
        }
    }

    /// Serves a tunnel to its end, or has the pool take it.
    pub(super) async fn tunnel(
        &self,
        stream: TcpStream,
        first: CopyBuffer,
        remote: SocketAddr,
        newcomer: Option<Slot>,
        stop: &CancellationToken,
    ) {
        let congestion = tcp::use_bbr(&stream);
        let handshake = self.tls.accept_tunnel(stream, first.unread());
        let Some(accepted) = self.shaken(handshake, remote, newcomer).await else { return };
        drop(first);
        let AcceptedTls { identity, stream } = accepted;
        if identity.kind() == NodeKind::Server {
            return self.metrics.refused("role");
        }
        let stream = self.pool.open_tunnels().enter(identity.key_hash, stream);
        self.newcomer(Newcomer { stream, identity, remote, congestion }, stop).await;
    }

    /// What a handshake comes to, as long as it may take its place.
    async fn shaken<T>(
        &self,
        handshake: impl Future<Output = Result<T, AcceptError>>,
        remote: SocketAddr,
        newcomer: Option<Slot>,
    ) -> Option<T> {
        let displaced = async {
            match &newcomer {
                Some(slot) => slot.evicted().cancelled().await,
                None => std::future::pending().await,
            }
        };
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = displaced => {
                self.metrics.refused(NoCaller::Displaced.reason());
                return None;
            }
        };
        match shaken {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                debug!(self.log, "peer handshake failed"; "remote" => %remote, "error" => %error);
                self.metrics.refused(error.reason());
                None
            }
        }
    }

    async fn newcomer(&self, newcomer: Newcomer, stop: &CancellationToken) {
        let Newcomer { stream, identity, remote, congestion } = newcomer;
        let id = identity.node_id;
        let deadline = Instant::now() + NEWS_TIMEOUT;
        let link = self.pool.accept(id, identity.key_hash, remote.into(), deadline).await;
        let counters = link.as_ref().map(|link| link.counters()).unwrap_or_default();
        let (mut tunnel, hello) = match Tunnel::hear(stream, counters).await {
            Ok(heard) => heard,
            Err(error) => {
                debug!(self.log, "tunnel without hello"; "peer_id" => id, "error" => %error);
                return self.metrics.refused("hello");
            }
        };
        let fits = hello.check(&self.myself.expected(id)).map_err(|e| (e.code(), e.to_string()));
        let fits = fits.and_then(|_version| link.map_err(|e| (e.code(), e.to_string())));
        let link = match fits {
            Ok(link) => link,
            Err((code, text)) => {
                debug!(self.log, "tunnel turned away"; "peer_id" => id, "remote" => %remote,
                    "code" => code.as_str(), "error" => &text);
                self.metrics.refused(ErrorCode::as_str(code));
                return tunnel.turn_away(code, text).await;
            }
        };
        let start = Instant::now();
        let greeted = async {
            tunnel.welcome(&self.myself.hello(Some(id))).await?;
            tokio::select! {
                offered = tunnel.is_offered() => offered.map(Some),
                () = stop.cancelled() => Ok(None),
            }
        };
        let served = match greeted.await {
            Ok(Some(false)) => self.serve_tunnel(tunnel, link, identity, stop).await,
            Ok(Some(true)) => {
                let direct = DirectTunnel {
                    tunnel: Box::new(tunnel),
                    address: remote.into(),
                    rtt: start.elapsed(),
                    opened_at: Instant::now(),
                    congestion,
                };
                if let Err(error) = self.pool.take_offered(link, direct) {
                    debug!(self.log, "tunnel not taken"; "peer_id" => id, "error" => %error);
                    self.metrics.refused("not_asked");
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            debug!(self.log, "tunnel ended"; "peer_id" => id, "error" => %error);
        }
    }

    async fn serve_tunnel(
        &self,
        tunnel: Tunnel<PeerStream>,
        link: AcceptedTunnel,
        identity: PeerIdentity,
        stop: &CancellationToken,
    ) -> Result<(), TunnelError> {
        let served = self.owner.serve(tunnel, identity.node_id, stop).await;
        drop(link);
        served
    }
}
