//! [`Ingress`]: accepts connections, decides who may say what, and gives each to whom it is for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_runtime::tcp::{Slot, SlotLimits, Slots};
use p2p_runtime::tls::{FIRST_BYTE_TIMEOUT, ServerTls};
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bound::{self, BoundPort};
use super::metrics::IngressMetrics;
use super::peek::{self, Caller, NoCaller};
use super::{SourceRanges, h2c, http, socks, tls};
use crate::forward::Forwarder;
use crate::forward::owner::Owner;
use crate::forward::splice::{Buffers, CopyBuffer};
use crate::mesh_task::Links;
use crate::published::Myself;
use crate::tunnel::Pool;

/// After a failed accept (mostly: no file descriptor left) the loop rests, or it would spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// An honest newcomer has said who he is by then, unless the path is very bad or hundreds come at the same time.
const NEWCOMER_SPARED: Duration = Duration::from_millis(500);
/// This part of the connections is kept for other Peers: clients that hold many do not cut them off.
const PEERS_SHARE: usize = 8;

/// Serves the one port.
#[derive(Debug)]
pub(crate) struct Ingress {
    /// To services.
    pub(crate) forwarder: Forwarder,
    /// For other Peers.
    pub(crate) owner: Owner,
    /// Counts the tunnels of others.
    pub(crate) pool: Pool,
    /// For mesh links.
    pub(crate) links: Links,
    /// For other Peers.
    pub(crate) tls: ServerTls,
    /// Who we are.
    pub(crate) myself: Arc<Myself>,
    /// For copying.
    pub(crate) buffers: Buffers,
    /// Whose clients are served.
    pub(crate) clients_allow: SourceRanges,
    /// Who must say, in a PROXY header, whose connection it passes on.
    pub(crate) proxy_protocol_from: SourceRanges,
    /// The open connections.
    pub(crate) connections: Connections,
    /// What is counted.
    pub(crate) metrics: IngressMetrics,
    /// Where to report.
    pub(crate) log: Logger,
}

/// The connections of all ports that are open now.
#[derive(Debug)]
pub(crate) struct Connections {
    slots: Arc<Semaphore>,
    /// Of the slots, those that clients may take.
    clients: Semaphore,
    /// Those of which is not known yet who they are.
    newcomers: Slots,
    tasks: TaskTracker,
    /// Ends what is between two forwards when the port closes, and everything after the grace.
    abort: CancellationToken,
}

impl Connections {
    /// None yet.
    pub(crate) fn new(limits: IngressLimits) -> Self {
        Connections {
            slots: Arc::new(Semaphore::new(limits.connections)),
            clients: Semaphore::new(limits.connections - limits.connections / PEERS_SHARE),
            newcomers: Slots::new(SlotLimits {
                slots_max: limits.newcomers,
                per_source: limits.newcomers_per_source,
                spared: NEWCOMER_SPARED,
            }),
            tasks: TaskTracker::new(),
            abort: CancellationToken::new(),
        }
    }

    /// Where their tasks run: whoever waits for them waits for what else runs here.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Waits at most `grace` for those that are open.
    async fn close(&self, grace: Duration) {
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            self.abort.cancel();
            self.tasks.wait().await;
        }
    }
}

/// What a port is for.
#[derive(Debug, Clone)]
pub(super) enum Port {
    /// Everybody: first bytes say who calls.
    Shared,
    /// The clients of one service.
    Bound(Arc<BoundPort>),
}

/// Bounds of the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IngressLimits {
    /// Connections at a time; further ones are closed at once.
    pub(crate) connections: usize,
    /// Connections of which is not known yet who they are, handshakes of Peers included; a further one takes the
    /// place of the oldest of the source that has most.
    pub(crate) newcomers: usize,
    /// The share of one source of them.
    pub(crate) newcomers_per_source: usize,
}

impl Ingress {
    /// Accepts on the shared port until `stop`; then waits at most `grace` for what is in flight, on all ports.
    pub(crate) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        grace: Duration,
    ) {
        self.accept(listener, Port::Shared, stop).await;
        self.connections.close(grace).await;
    }

    /// Accepts on one port until `stop`.
    pub(super) async fn accept(self: &Arc<Self>, listener: TcpListener, port: Port, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                // The client was faster to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    warn!(self.log, "cannot accept connections"; "error" => %e);
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&self.connections.slots).try_acquire_owned() else {
                self.metrics.refused(NoCaller::Limit.reason());
                continue;
            };
            let (this, port, stop) = (Arc::clone(self), port.clone(), stop.clone());
            self.connections.tasks.spawn(async move {
                this.metrics.open.inc();
                tokio::select! {
                    () = this.serve(stream, remote, &port, &stop) => {}
                    () = this.connections.abort.cancelled() => {}
                }
                this.metrics.open.dec();
                drop(slot);
            });
        }
    }

    async fn serve(
        self: &Arc<Self>,
        mut stream: TcpStream,
        remote: SocketAddr,
        port: &Port,
        stop: &CancellationToken,
    ) {
        if let Port::Shared = port
            && timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await.is_err()
        {
            return self.metrics.refused(NoCaller::Silent.reason());
        }
        let mut first = self.buffers.get();
        let caller = match self.caller(&mut stream, remote, &mut first, port).await {
            Ok(caller) => caller,
            Err((remote, why)) => {
                debug!(self.log, "connection closed"; "remote" => %remote, "error" => %why);
                return self.metrics.refused(why.reason());
            }
        };
        let (remote, caller, place) = caller;
        let (newcomer, client) = match place {
            Place::Newcomer(slot) if caller.is_peer() => (Some(slot), None),
            Place::Client(_) if caller.is_peer() => return self.metrics.refused(NoCaller::Crowded.reason()),
            Place::Client(slot) => (None, Some(slot)),
            Place::Newcomer(slot) => {
                // A client has said what it wants and is no newcomer any more.
                drop(slot);
                match self.connections.clients.try_acquire() {
                    Ok(slot) => (None, Some(slot)),
                    Err(_) => return self.metrics.refused(NoCaller::Limit.reason()),
                }
            }
        };
        self.metrics.opened(&caller);
        match caller {
            Caller::Tunnel => Box::pin(self.tunnel(stream, first, remote, newcomer, stop)).await,
            Caller::Link => Box::pin(self.link(stream, first, remote, newcomer)).await,
            Caller::Tls(service) => Box::pin(tls::serve(stream, first, service, Arc::clone(self))).await,
            Caller::Http => Box::pin(http::serve(stream, first, Arc::clone(self), stop)).await,
            Caller::H2c => Box::pin(h2c::serve(stream, first, remote, self, stop)).await,
            Caller::Socks => Box::pin(socks::serve(stream, first, remote, self)).await,
            Caller::Bound(port) => Box::pin(bound::serve(stream, first, &port, self)).await,
        }
        drop(client);
    }

    /// Who calls, and from where; and the place that is held until more is known.
    async fn caller<'a>(
        &'a self,
        stream: &mut TcpStream,
        mut remote: SocketAddr,
        first: &mut CopyBuffer,
        port: &Port,
    ) -> Result<(SocketAddr, Caller, Place<'a>), (SocketAddr, NoCaller)> {
        if self.proxy_protocol_from.contains(remote.ip()) {
            let header = peek::proxy_header(stream, first).await.map_err(|why| (remote, why))?;
            remote = header.source.unwrap_or(remote);
        }
        let allowed = self.clients_allow.contains(remote.ip());
        let client = || self.connections.clients.try_acquire().map(Place::Client);
        if let Port::Bound(port) = port {
            if !allowed {
                return Err((remote, NoCaller::NotAllowed));
            }
            let place = client().map_err(|_| (remote, NoCaller::Limit))?;
            return Ok((remote, Caller::Bound(Arc::clone(port)), place));
        }
        let place = match self.connections.newcomers.wait(remote.ip().into()).await {
            Ok(slot) => Place::Newcomer(slot),
            // Hundreds of clients of one host may come at once; what they may hold is theirs already.
            Err(_) if allowed => client().map_err(|_| (remote, NoCaller::Limit))?,
            Err(_) => return Err((remote, NoCaller::Crowded)),
        };
        let caller = tokio::select! {
            caller = peek::caller(stream, first) => caller,
            () = place.displaced() => Err(NoCaller::Displaced),
        };
        // Before a byte of a client is acted on; who a Peer is says its certificate, not its address.
        match caller.map_err(|why| (remote, why))? {
            caller if allowed || caller.is_peer() => Ok((remote, caller, place)),
            _ => Err((remote, NoCaller::NotAllowed)),
        }
    }
}

/// What a connection holds until it is known who it is.
enum Place<'a> {
    Newcomer(Slot),
    /// One of those of clients, whatever it turns out to be.
    Client(SemaphorePermit<'a>),
}

impl Place<'_> {
    async fn displaced(&self) {
        match self {
            Place::Newcomer(slot) => slot.evicted().cancelled().await,
            Place::Client(_) => std::future::pending().await,
        }
    }
}
