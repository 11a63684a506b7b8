//! [`GrpcStream`]: an accepted connection as tonic takes it, and who is on its other side.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::nodes::ListenGuard;
use crate::tcp::{Slot, Voucher};
use crate::tls::{Accepted, Face, HANDSHAKE_TIMEOUT, ServerTlsStream, ShownCertificate};

/// The client's HTTP/2 connection preface (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

/// Who makes a request; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct CallerInfo {
    /// What the connection was opened for, and by which node.
    pub face: Face,
    /// What the node showed, on the node face.
    pub certificate: Option<ShownCertificate>,
    /// Where it comes from, as seen here.
    pub remote: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    voucher: Option<Voucher>,
}

impl CallerInfo {
    /// A call of this connection had good credentials: when the port is full, it gives way to nobody for a while.
    /// Means nothing on the node face, whose certificate said so.
    pub fn vouch(&self) {
        if let Some(voucher) = &self.voucher {
            voucher.vouch(Instant::now());
        }
    }
}

/// An accepted connection, as tonic takes it.
pub struct GrpcStream {
    info: CallerInfo,
    stream: ServerTlsStream<TcpStream>,
    preface: Option<PrefaceGuard>,
    /// Until it has shown good credentials; none on the node face.
    throttle: Option<Throttle>,
    closed: CancellationToken,
    until_closed: Pin<Box<WaitForCancellationFutureOwned>>,
    held: Held,
}

/// Bounds the time until the client has started HTTP/2: the HTTP implementation waits for ever.
struct PrefaceGuard {
    missing: usize,
    timeout: Pin<Box<Sleep>>,
}

/// Bounds what is read of a connection that has shown no good credentials: whatever it floods with, frames, resets,
/// settings, it does so slowly.
struct Throttle {
    /// What may still be read; one read may go below.
    left: i64,
    at: Instant,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Throttle {
    /// A dozen enrolments, or the largest request that may come with credentials. As frames of a byte these are
    /// 3,000, some milliseconds of work.
    const AT_ONCE: i64 = 32 * 1024;
    const BYTES_PER_S: i64 = 8 * 1024;
    /// How long is waited at least.
    const REST: Duration = Duration::from_millis(250);

    fn new(now: Instant) -> Self {
        Throttle { left: Self::AT_ONCE, at: now, wait: None }
    }

    /// Ready when something may be read.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        if self.left > 0 {
            return Poll::Ready(());
        }
        let now = Instant::now();
        let ms = i64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(ms.saturating_mul(Self::BYTES_PER_S) / 1_000).min(Self::AT_ONCE);
        self.at = now;
        if self.left > 0 {
            return Poll::Ready(());
        }
        let wait = self.wait.insert(Box::pin(sleep(Self::REST)));
        let _ = wait.as_mut().poll(cx);
        Poll::Pending
    }
}

/// What a connection holds as long as it is open.
struct Held {
    open: Gauge,
    place: Place,
}

/// A place among the connections of a face.
pub(super) enum Place {
    Public(Slot),
    Node(ListenGuard),
}

impl Drop for Held {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl GrpcStream {
    /// A connection that has its place; counted in `open` as long as it is.
    pub(super) fn new(
        Accepted { face, certificate, stream }: Accepted<TcpStream>,
        (remote, local): (SocketAddr, SocketAddr),
        place: Place,
        open: Gauge,
    ) -> Self {
        open.inc();
        let (closed, voucher) = match &place {
            Place::Public(slot) => (slot.evicted(), Some(slot.voucher())),
            Place::Node(guard) => (guard.closed(), None),
        };
        let closed = closed.clone();
        let throttle = voucher.as_ref().map(|_| Throttle::new(Instant::now()));
        let timeout = Box::pin(sleep(HANDSHAKE_TIMEOUT));
        GrpcStream {
            info: CallerInfo { face, certificate, remote, local, voucher },
            stream,
            preface: Some(PrefaceGuard { missing: PREFACE_BYTES, timeout }),
            throttle,
            until_closed: Box::pin(closed.clone().cancelled_owned()),
            closed,
            held: Held { open, place },
        }
    }

    /// So much was read.
    fn count(&mut self, bytes: usize) {
        let Place::Public(slot) = &self.held.place else { return };
        if bytes == 0 {
            return;
        }
        slot.touch(Instant::now());
        match &mut self.throttle {
            Some(_) if slot.has_vouched() => self.throttle = None,
            Some(throttle) => throttle.left -= i64::try_from(bytes).unwrap_or(i64::MAX),
            None => {}
        }
    }

    /// Its place is somebody else's, or its node is not welcome any more.
    fn check_open(&self) -> io::Result<()> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "closed by this server")
}

impl fmt::Debug for GrpcStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcStream").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Connected for GrpcStream {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        self.info.clone()
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_open()?;
        let before = buf.filled().len();
        let may_read = match &mut self.throttle {
            Some(throttle) => throttle.poll(cx),
            None => Poll::Ready(()),
        };
        let read = match may_read {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_read(cx, buf),
            Poll::Pending => Poll::Pending,
        };
        let count = buf.filled().len() - before;
        self.count(count);
        if let Some(guard) = &mut self.preface {
            guard.missing = guard.missing.saturating_sub(count);
            if guard.missing == 0 {
                self.preface = None;
            } else if read.is_pending() && guard.timeout.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        // Whoever waits for the client, also to take what it is sent, has been here and is woken.
        if read.is_pending() && self.until_closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(closed()));
        }
        read
    }
}

impl AsyncWrite for GrpcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_open()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
