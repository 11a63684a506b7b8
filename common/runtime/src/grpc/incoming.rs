//! Incoming connections: TCP accepted, TLS finished, counted and bounded, before tonic sees them.
//!
//! ```text
//! accept ─ handshake slot ─► handshake (own task, 10 s) ─ slot of its face ─► tonic
//!          none free: waits   failed: closed, counted      none free: closed, counted
//! ```
//!
//! Nodes and anonymous clients have separate bounds: who has no certificate cannot crowd out who has one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use slog::{Logger, debug, warn};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::tcp;
use crate::tls::{Face, HANDSHAKE_TIMEOUT, ServerTls, ServerTlsStream, ShownCertificate};

/// Connections accepted and not yet taken by tonic, which takes them at once.
const QUEUE: usize = 64;
/// After a failed accept (mostly: no file descriptor left) the loop rests, or it would spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// The client's HTTP/2 connection preface (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// Who makes a request; in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerInfo {
    /// What the connection was opened for, and by which node.
    pub face: Face,
    /// What the node showed, on the node face.
    pub certificate: Option<ShownCertificate>,
    /// Where it comes from, as seen here.
    pub remote: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
}

/// How many connections a port holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenLimits {
    /// Handshakes at a time. Further connections wait to be accepted.
    pub handshakes_max: usize,
    /// Connections of nodes. Further ones are closed.
    pub nodes_max: usize,
    /// Connections of the public face. Further ones are closed.
    pub public_max: usize,
}

impl Default for ListenLimits {
    /// 256 handshakes: at 10 s for the slowest, 25 silent clients a second are borne. 16,384 nodes: at 100 KiB
    /// each below 2 GiB. 1,024 public: people and tools, and waves of enrolments.
    fn default() -> Self {
        ListenLimits { handshakes_max: 256, nodes_max: 16_384, public_max: 1_024 }
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
    /// Ends accepting and closes the port; open connections are tonic's.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl Acceptor {
    /// Starts accepting. The stream ends after `stop`, and accepting ends when the stream is dropped.
    pub fn incoming(self, listener: TcpListener) -> ReceiverStream<io::Result<GrpcStream>> {
        let (tx, rx) = mpsc::channel(QUEUE);
        tokio::spawn(self.run(listener, tx));
        ReceiverStream::new(rx)
    }

    async fn run(self, listener: TcpListener, tx: mpsc::Sender<io::Result<GrpcStream>>) {
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes_max));
        let nodes = Arc::new(Semaphore::new(self.limits.nodes_max));
        let public = Arc::new(Semaphore::new(self.limits.public_max));
        let this = Arc::new(self);
        loop {
            let next = async {
                let slot = Arc::clone(&handshakes).acquire_owned().await.expect("never closed");
                (slot, listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                next = next => next,
                () = this.stop.cancelled() => return,
                () = tx.closed() => return,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                // The client was faster to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    warn!(this.log, "cannot accept connections"; "error" => %e);
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let faces = Faces { nodes: Arc::clone(&nodes), public: Arc::clone(&public) };
            let (this, tx) = (Arc::clone(&this), tx.clone());
            tokio::spawn(async move {
                let handshake = this.handshake(stream, remote, faces);
                let opened = tokio::select! {
                    opened = handshake => opened,
                    () = this.stop.cancelled() => return,
                };
                drop(slot);
                if let Some(opened) = opened {
                    // A failure to send is the server's end: the connection is closed by dropping it.
                    let _ = tx.send(Ok(opened)).await;
                }
            });
        }
    }

    async fn handshake(&self, stream: TcpStream, remote: SocketAddr, faces: Faces) -> Option<GrpcStream> {
        tcp::tune(&stream);
        let local = stream.local_addr().ok()?;
        let accepted = match self.tls.accept(stream).await {
            Ok(accepted) => accepted,
            Err(e) => {
                self.metrics.refuse(e.reason());
                debug!(self.log, "connection refused"; "remote" => %remote, "reason" => e.reason(), "error" => %e);
                return None;
            }
        };
        let (label, slots) = match accepted.face {
            Face::Public => ("public", faces.public),
            Face::Node(_) => ("node", faces.nodes),
            Face::Tunnel(_) => ("tunnel", faces.nodes),
            Face::Link(_) => ("link", faces.nodes),
        };
        let Ok(slot) = slots.try_acquire_owned() else {
            self.metrics.refuse("full");
            warn!(self.log, "connection refused, the port is full"; "remote" => %remote, "face" => label);
            return None;
        };
        let label = FaceLabel { face: label };
        self.metrics.opened.get_or_create(&label).inc();
        self.metrics.open.get_or_create(&label).inc();
        let open = self.metrics.open.get_or_create(&label).clone();
        Some(GrpcStream {
            info: CallerInfo { face: accepted.face, certificate: accepted.certificate, remote, local },
            stream: accepted.stream,
            preface: Some(PrefaceGuard {
                missing: PREFACE_BYTES,
                timeout: Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT)),
            }),
            _held: Held { open, _slot: slot },
        })
    }
}

struct Faces {
    nodes: Arc<Semaphore>,
    public: Arc<Semaphore>,
}

/// An accepted connection, as tonic takes it.
pub struct GrpcStream {
    info: CallerInfo,
    stream: ServerTlsStream<TcpStream>,
    preface: Option<PrefaceGuard>,
    _held: Held,
}

/// Bounds the time until the client has started HTTP/2: the HTTP implementation waits for ever.
struct PrefaceGuard {
    missing: usize,
    timeout: Pin<Box<Sleep>>,
}

/// What a connection holds as long as it is open.
struct Held {
    open: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl fmt::Debug for GrpcStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcStream").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Connected for GrpcStream {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        self.info
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(guard) = &mut self.preface {
            guard.missing = guard.missing.saturating_sub(buf.filled().len() - before);
            if guard.missing == 0 {
                self.preface = None;
            } else if read.is_pending() && guard.timeout.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for GrpcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
