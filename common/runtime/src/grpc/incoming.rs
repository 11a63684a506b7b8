//! Incoming connections: TCP accepted, TLS finished, counted and bounded, before tonic sees them.
//!
//! ```text
//! accept ─ handshake slot ─► handshake (own task; 3, 5, 10 s) ─ place of its face ─► tonic
//!          somebody's who     failed: closed, counted            public: a slot as before
//!          had his time                                          node: its oldest, or closed when all are full
//! ```
//!
//! Nodes and anonymous clients have separate bounds: who has no certificate cannot crowd out who has one. Slots are
//! shared among sources ([`Slots`]), so that one of them that takes many has to do with itself.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::nodes::NodeConnections;
use super::stream::{GrpcStream, Place};
use crate::tcp::{self, Crowded, Slot, SlotLimits, Slots};
use crate::tls::{FIRST_BYTE_TIMEOUT, Face, ServerTls};

/// Connections accepted and not yet taken by tonic, which takes them at once.
const QUEUE: usize = 64;
/// After a failed accept (mostly: no file descriptor left) the loop rests, or it would spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// An honest handshake is over by then, unless the path is very bad or hundreds of others come at the same time.
const HANDSHAKE_SPARED: Duration = Duration::from_millis(500);
/// Between two calls of somebody who is at work, mostly.
const PUBLIC_SPARED: Duration = Duration::from_secs(1);
/// Being full is told to people this often; the counts tell it each time.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How many connections a port holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenLimits {
    /// Handshakes at a time. A further one takes the place of the oldest of the source that has most.
    pub handshakes_max: usize,
    /// The share of one source of them.
    pub handshakes_per_source: usize,
    /// Connections of nodes. Further ones are closed.
    pub nodes_max: usize,
    /// Connections of one node. A further one closes its oldest.
    pub per_node: usize,
    /// Connections of the public face. A further one takes the place of one without good credentials, the one that
    /// is idle longest of the source that has most; without any, it is closed.
    pub public_max: usize,
    /// The share of one source of them.
    pub public_per_source: usize,
}

impl Default for ListenLimits {
    /// 1,024 handshakes: a third of a second of work of two cores, so that a crowd that comes back after a restart
    /// is served in its order. 16,384 nodes: at 100 KiB each below 2 GiB. 64 of one node: a Server has about ten to
    /// each other, and leaves some behind when a network breaks. 1,024 public: people and tools, and waves of
    /// enrolments; 128 of one source: some offices are behind one address.
    fn default() -> Self {
        ListenLimits {
            handshakes_max: 1_024,
            handshakes_per_source: 64,
            nodes_max: 16_384,
            per_node: 64,
            public_max: 1_024,
            public_per_source: 128,
        }
    }
}

impl ListenLimits {
    /// What fits into `files` open files: strangers get at most a sixteenth of them for each of handshakes and
    /// connections, nodes the rest.
    pub fn within(files: u64) -> Self {
        let defaults = ListenLimits::default();
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let of_strangers = |most: usize| most.min(files / 16);
        let handshakes_max = of_strangers(defaults.handshakes_max);
        let public_max = of_strangers(defaults.public_max);
        let nodes_max = defaults.nodes_max.min(files - handshakes_max - public_max);
        let share = |most: usize, all: usize| most.min((all / 4).max(1));
        ListenLimits {
            handshakes_max,
            handshakes_per_source: share(defaults.handshakes_per_source, handshakes_max),
            nodes_max,
            per_node: defaults.per_node,
            public_max,
            public_per_source: share(defaults.public_per_source, public_max),
        }
    }

    /// The files it takes when all places are.
    pub fn files(&self) -> u64 {
        (self.handshakes_max + self.nodes_max + self.public_max) as u64
    }
}

/// Counts of a port.
#[derive(Debug, Clone, Default)]
pub struct ListenMetrics {
    opened: Family<FaceLabel, Counter>,
    open: Family<FaceLabel, Gauge>,
    refused: Family<ReasonLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaceLabel {
    face: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl ListenMetrics {
    /// Shows the counts in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "connections_opened",
            "Connections accepted since the start, by face; pairs with connections_open",
            self.opened.clone(),
        );
        registry.register("connections_open", "Connections open now, by face", self.open.clone());
        registry.register(
            "connections_refused",
            "Connections closed before any request, by reason",
            self.refused.clone(),
        );
    }

    fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }
}

/// Accepts connections of one port.
#[derive(Debug, Clone)]
pub struct Acceptor {
    /// Who comes in.
    pub tls: ServerTls,
    /// How many.
    pub limits: ListenLimits,
    /// What is counted.
    pub metrics: ListenMetrics,
    /// The open connections of nodes.
    pub nodes: NodeConnections,
    /// Ends accepting and closes the port; open connections are tonic's.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl Acceptor {
    /// Starts accepting. The stream ends after `stop`, and accepting ends when the stream is dropped.
    pub fn incoming(self, listener: TcpListener) -> ReceiverStream<io::Result<GrpcStream>> {
        let (tx, rx) = mpsc::channel(QUEUE);
        let limits = self.limits;
        let slots = |slots_max, per_source, spared| Slots::new(SlotLimits { slots_max, per_source, spared });
        let door = Door {
            handshakes: slots(limits.handshakes_max, limits.handshakes_per_source, HANDSHAKE_SPARED),
            public: slots(limits.public_max, limits.public_per_source, PUBLIC_SPARED),
            warned: Mutex::default(),
            acceptor: self,
        };
        tokio::spawn(Arc::new(door).run(listener, tx));
        ReceiverStream::new(rx)
    }
}

/// An acceptor at work.
struct Door {
    acceptor: Acceptor,
    handshakes: Slots,
    public: Slots,
    warned: Mutex<Option<Instant>>,
}

impl Door {
    async fn run(self: Arc<Self>, listener: TcpListener, tx: mpsc::Sender<io::Result<GrpcStream>>) {
        let stop = self.acceptor.stop.clone();
        loop {
            let next = async {
                let (stream, remote) = listener.accept().await?;
                io::Result::Ok(self.slot(remote).await.map(|slot| (stream, remote, slot)))
            };
            let next = tokio::select! {
                next = next => next,
                () = stop.cancelled() => return,
                () = tx.closed() => return,
            };
            let (stream, remote, slot) = match next {
                Ok(Some(next)) => next,
                Ok(None) => continue,
                // The client was faster to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    warn!(self.acceptor.log, "cannot accept connections"; "error" => %e);
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let (this, tx, stop) = (Arc::clone(&self), tx.clone(), stop.clone());
            tokio::spawn(async move {
                let handshake = this.handshake(stream, remote);
                let opened = tokio::select! {
                    opened = handshake => opened,
                    () = slot.evicted().cancelled() => return this.acceptor.metrics.refuse("displaced"),
                    () = stop.cancelled() => return,
                };
                drop(slot);
                if let Some(opened) = opened {
                    // A failure to send is the server's end: the connection is closed by dropping it.
                    let _ = tx.send(Ok(opened)).await;
                }
            });
        }
    }

    /// A slot for a handshake.
    async fn slot(&self, remote: SocketAddr) -> Option<Slot> {
        let slot = self.handshakes.wait(remote.ip().into()).await;
        slot.map_err(|_| self.full(remote, "handshakes", "crowded")).ok()
    }

    async fn handshake(&self, stream: TcpStream, remote: SocketAddr) -> Option<GrpcStream> {
        let Acceptor { tls, metrics, log, .. } = &self.acceptor;
        tcp::tune(&stream);
        let local = stream.local_addr().ok()?;
        if timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await.is_err() {
            metrics.refuse("silent");
            return None;
        }
        let accepted = match tls.accept(stream).await {
            Ok(accepted) => accepted,
            Err(e) => {
                metrics.refuse(e.reason());
                debug!(log, "connection refused"; "remote" => %remote, "reason" => e.reason(), "error" => %e);
                return None;
            }
        };
        let (label, place) = self.place(accepted.face, remote)?;
        let label = FaceLabel { face: label };
        metrics.opened.get_or_create(&label).inc();
        let open = metrics.open.get_or_create(&label).clone();
        Some(GrpcStream::new(accepted, (remote, local), place, open))
    }

    fn place(&self, face: Face, remote: SocketAddr) -> Option<(&'static str, Place)> {
        let label = match face {
            Face::Public => "public",
            Face::Node(_) => "node",
            Face::Tunnel(_) => "tunnel",
            Face::Link(_) => "link",
        };
        let place = match face.identity() {
            Some(identity) => {
                let ListenLimits { nodes_max, per_node, .. } = self.acceptor.limits;
                self.acceptor.nodes.enter(identity, nodes_max, per_node).map(Place::Node).ok_or("full")
            }
            None => match self.public.take(remote.ip().into(), Instant::now()) {
                Ok(slot) => Ok(Place::Public(slot)),
                Err(Crowded::Source) => Err("crowded"),
                Err(Crowded::Until(_) | Crowded::Full) => Err("full"),
            },
        };
        place.map_err(|reason| self.full(remote, label, reason)).ok().map(|place| (label, place))
    }

    fn full(&self, remote: SocketAddr, what: &'static str, reason: &'static str) {
        self.acceptor.metrics.refuse(reason);
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| now >= warned + WARN_EVERY) {
            *warned = Some(now);
            warn!(self.acceptor.log, "connections refused, the port is full"; "remote" => %remote,
                "full" => what, "reason" => reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_files_all_places_fit_and_nodes_have_most() {
        for files in [64, 512, 1_000, 4_096, 18_000, 20_000, 1 << 20, u64::MAX] {
            let limits = ListenLimits::within(files);
            assert!(limits.files() <= files, "{files}: {limits:?}");
            assert!(limits.nodes_max >= 8 * limits.public_max, "{files}: {limits:?}");
            assert!(limits.handshakes_per_source > 0 && limits.public_per_source > 0, "{files}: {limits:?}");
        }
        assert_eq!(ListenLimits::within(1 << 20), ListenLimits::default());
    }
}
