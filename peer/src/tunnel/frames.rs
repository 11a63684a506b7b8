//! [`Tunnel`]: the frames of a tunnel over a byte stream, and what may come when.
//!
//! ```text
//! ingress:  greet ─► idle ─ begin ─► Received ─► Accepted ─► Data ─► Ended ─► idle
//!                     ▲                   └─ REFUSE ────────────────►  │
//!                     └────────── both directions ended ◄──────────────┘
//! either may be the one that dialled; one that dialled and is the owner says so by OFFER after the hellos.
//! owner:    hear ─ welcome ─► next_forward ─► received ─► accept ─► Data ─► Ended ─► next_forward
//!                                             └─► refuse ─► discard to the END ─┘
//! ```
//!
//! Between two forwards nothing comes from an owner: whatever does, an end of stream included, makes the
//! tunnel worthless. While a forward runs the tunnel is a [`Carrier`]; the FORWARD itself leaves together with
//! the first client bytes, so that asking costs no round trip of its own.

mod carrier;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::{
    CONTROL_MAX_BYTES, Control, FrameError, Hop, LENGTH_BYTES, ProxyId, frame_length,
};
use p2p_common::wire::{Expected, Hello};
use p2p_common::{ErrorCode, Incarnation};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::TunnelError;
use crate::forward::splice::Carrier;

/// Hellos are one round trip over a connection that just made three.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The empty frame that ends a direction.
const END: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];
/// A REFUSE with this id answers a hello: no forward has it.
const NO_FORWARD: ProxyId = ProxyId(0);

/// Payload bytes over all tunnels of one link.
#[derive(Debug, Default)]
pub(crate) struct LinkCounters {
    /// Received.
    pub(crate) bytes_in: AtomicU64,
    /// Sent.
    pub(crate) bytes_out: AtomicU64,
}

/// What may come next from the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    /// Control frames, read by name.
    Control,
    /// Ingress: RECEIVED of this forward.
    Received(ProxyId),
    /// Ingress: ACCEPT or REFUSE of this forward.
    Verdict(ProxyId),
    Data,
    Ended,
}

/// What we may send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outbound {
    Control,
    /// Of the frame that was announced, these bytes are still to be sent.
    Data {
        header: usize,
        payload: usize,
    },
    Ended,
}

/// One tunnel over a byte stream.
#[derive(Debug)]
pub(crate) struct Tunnel<S> {
    stream: S,
    inbound: Inbound,
    outbound: Outbound,
    /// The length of the next frame, as far as it came.
    length: [u8; LENGTH_BYTES],
    length_have: usize,
    /// Bytes of the current data frame still to come.
    left: usize,
    /// The current control frame, as far as it came, and how long it will be.
    control: Vec<u8>,
    control_bytes: Option<usize>,
    /// Control frames to be sent before anything else.
    pending: BytesMut,
    /// The owner's first control frame, read ahead to see whether it is an OFFER.
    ahead: Option<Control>,
    counters: Arc<LinkCounters>,
    /// The run of the node at the other end; nil before its hello.
    incarnation: Incarnation,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    fn new(stream: S, counters: Arc<LinkCounters>) -> Self {
        Tunnel {
            stream,
            inbound: Inbound::Control,
            outbound: Outbound::Control,
            length: [0; LENGTH_BYTES],
            length_have: 0,
            left: 0,
            control: Vec::new(),
            control_bytes: None,
            pending: BytesMut::new(),
            ahead: None,
            counters,
            incarnation: Incarnation::new(Uuid::nil()),
        }
    }

    /// Exchanges hellos as the side that dialled.
    ///
    /// # Errors
    /// When the other side says nothing, or something that does not fit.
    pub(crate) async fn greet(
        stream: S,
        counters: Arc<LinkCounters>,
        ours: &Hello,
        expected: &Expected,
    ) -> Result<Self, TunnelError> {
        let mut tunnel = Tunnel::new(stream, counters);
        let hellos = async {
            tunnel.send(&Control::Hello(ours.clone())).await?;
            match tunnel.read_control().await?.ok_or(TunnelError::Closed)? {
                Control::Hello(theirs) => {
                    tunnel.incarnation = theirs.incarnation;
                    Ok(theirs.check(expected).map(|_version| ())?)
                }
                Control::Refuse { proxy_id: NO_FORWARD, code, text } => {
                    Err(TunnelError::Turned { code, text })
                }
                _ => Err(TunnelError::Unexpected("its first frame is no HELLO")),
            }
        };
        tokio::time::timeout(HELLO_TIMEOUT, hellos).await.map_err(|_| TunnelError::HelloTimedOut)??;
        Ok(tunnel)
    }

    /// Waits for the hello of the side that dialled; [`Tunnel::welcome`] or [`Tunnel::turn_away`] answers it.
    ///
    /// # Errors
    /// When the other side says nothing, or something else.
    pub(crate) async fn hear(stream: S, counters: Arc<LinkCounters>) -> Result<(Self, Hello), TunnelError> {
        let mut tunnel = Tunnel::new(stream, counters);
        let heard = tokio::time::timeout(HELLO_TIMEOUT, tunnel.read_control()).await;
        match heard.map_err(|_| TunnelError::HelloTimedOut)??.ok_or(TunnelError::Closed)? {
            Control::Hello(hello) => {
                tunnel.incarnation = hello.incarnation;
                Ok((tunnel, hello))
            }
            _ => Err(TunnelError::Unexpected("its first frame is no HELLO")),
        }
    }

    /// Answers a hello that fits.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn welcome(&mut self, ours: &Hello) -> Result<(), TunnelError> {
        self.send(&Control::Hello(ours.clone())).await
    }

    /// Answers a hello that does not fit with the reason, and closes.
    pub(crate) async fn turn_away(mut self, code: ErrorCode, text: String) {
        // A courtesy: the connection ends either way.
        let _ = self.send(&Control::Refuse { proxy_id: NO_FORWARD, code, text }).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
    }

    /// Says as the side that dialled that it serves this tunnel; right after the hellos.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn offer(&mut self) -> Result<(), TunnelError> {
        self.send(&Control::Offer).await
    }

    /// Waits, after the hellos, for what the side that dialled says first: whether it is that it serves this tunnel.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn is_offered(&mut self) -> Result<bool, TunnelError> {
        self.ahead = match self.read_control().await? {
            None => return Err(TunnelError::Closed),
            Some(Control::Offer) => return Ok(true),
            other => other,
        };
        Ok(false)
    }

    /// Asks for a service: the FORWARD goes out with the first bytes or the first flush. Only between two
    /// forwards.
    pub(crate) fn begin(&mut self, proxy_id: ProxyId, service: &ServiceName, hop: Hop) {
        debug_assert!(self.is_between_forwards(), "one forward at a time");
        Control::Forward { proxy_id, service: service.clone(), hop }.encode(&mut self.pending);
        self.inbound = Inbound::Received(proxy_id);
        self.outbound = Outbound::Data { header: 0, payload: 0 };
    }

    /// The run of the node at the other end.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The connection below.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The connection below, for tests that go on in bytes.
    #[cfg(test)]
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// Whether the owner has said that the FORWARD arrived.
    pub(crate) fn is_received(&self) -> bool {
        !matches!(self.inbound, Inbound::Control | Inbound::Received(_))
    }

    /// Whether all of the frame that was begun is sent.
    pub(crate) fn is_frame_whole(&self) -> bool {
        !matches!(self.outbound, Outbound::Data { header, payload } if header + payload > 0)
    }

    /// Whether the next forward may begin.
    pub(crate) fn is_between_forwards(&self) -> bool {
        self.inbound == Inbound::Control && self.outbound == Outbound::Control
    }

    /// Ends the forward from our side and throws away what still comes, so that the tunnel can be used again.
    ///
    /// # Errors
    /// When the other side breaks the protocol, or sends more than `discard_max_bytes`.
    pub(crate) async fn settle(&mut self, discard_max_bytes: usize) -> Result<(), TunnelError> {
        if !self.is_frame_whole() {
            return Err(TunnelError::Unexpected("a frame was not sent to its end"));
        }
        std::future::poll_fn(|cx| self.poll_finish(cx)).await?;
        let mut discarded = 0;
        let mut scrap = [0; 4096];
        loop {
            match std::future::poll_fn(|cx| self.poll_recv(cx, &mut scrap)).await {
                Ok(0) | Err(TunnelError::Refused { .. }) => {
                    self.reset();
                    return Ok(());
                }
                Ok(count) => discarded += count,
                Err(error) => return Err(error),
            }
            if discarded > discard_max_bytes {
                return Err(TunnelError::Unexpected("it goes on sending after its forward was ended"));
            }
        }
    }

    /// Pending as long as an idle tunnel is sound; ready once it is worthless.
    pub(crate) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        let mut byte = [0; 1];
        let mut read = ReadBuf::new(&mut byte);
        Poll::Ready(match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
            Ok(()) if read.filled().is_empty() => TunnelError::Closed,
            Ok(()) => TunnelError::Unexpected("an owner speaks without having been asked"),
            Err(error) => error.into(),
        })
    }

    /// Waits for the next FORWARD; `None` when the other side closed the tunnel between two forwards.
    ///
    /// # Errors
    /// When the connection breaks or something else comes.
    pub(crate) async fn next_forward(&mut self) -> Result<Option<(ProxyId, ServiceName, Hop)>, TunnelError> {
        match self.read_control().await? {
            None => Ok(None),
            Some(Control::Forward { proxy_id, service, hop }) => {
                self.inbound = Inbound::Data;
                Ok(Some((proxy_id, service, hop)))
            }
            Some(_) => Err(TunnelError::Unexpected("another frame than FORWARD between two forwards")),
        }
    }

    /// Tells that the FORWARD came; goes out with what follows or the first flush.
    pub(crate) fn received(&mut self, proxy_id: ProxyId) {
        Control::Received { proxy_id }.encode(&mut self.pending);
    }

    /// Gets on the way what waits.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn flush(&mut self) -> Result<(), TunnelError> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Tells that the backend is open; goes out with its first bytes or the first flush.
    pub(crate) fn accept(&mut self, proxy_id: ProxyId) {
        Control::Accept { proxy_id }.encode(&mut self.pending);
        self.outbound = Outbound::Data { header: 0, payload: 0 };
    }

    /// Tells why the forward will not happen, and throws away the client bytes that were already sent.
    ///
    /// # Errors
    /// When the connection breaks, or the other side sends more than `discard_max_bytes`.
    pub(crate) async fn refuse(
        &mut self,
        proxy_id: ProxyId,
        code: ErrorCode,
        text: String,
        discard_max_bytes: usize,
    ) -> Result<(), TunnelError> {
        self.send(&Control::Refuse { proxy_id, code, text }).await?;
        self.outbound = Outbound::Ended;
        self.settle(discard_max_bytes).await
    }

    /// Back to control frames after both directions ended.
    pub(crate) fn reset(&mut self) {
        debug_assert!(self.outbound == Outbound::Ended, "both directions have ended");
        self.inbound = Inbound::Control;
        self.outbound = Outbound::Control;
    }

    async fn send(&mut self, frame: &Control) -> Result<(), TunnelError> {
        frame.encode(&mut self.pending);
        self.flush().await
    }

    /// A control frame; `None` when the stream ended before its first byte.
    async fn read_control(&mut self) -> Result<Option<Control>, TunnelError> {
        if self.ahead.is_some() {
            return Ok(self.ahead.take());
        }
        std::future::poll_fn(|cx| self.poll_control(cx)).await
    }

    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Control>, TunnelError>> {
        let wanted = match self.control_bytes {
            Some(wanted) => wanted,
            None => {
                let Some(bytes) = ready!(self.poll_length(cx))? else { return Poll::Ready(Ok(None)) };
                if bytes == 0 {
                    return Poll::Ready(Err(TunnelError::Unexpected("an END outside of a forward")));
                }
                if bytes > CONTROL_MAX_BYTES {
                    return Poll::Ready(Err(FrameError::TooLong { bytes, max: CONTROL_MAX_BYTES }.into()));
                }
                self.control.clear();
                *self.control_bytes.insert(bytes)
            }
        };
        while self.control.len() < wanted {
            let have = self.control.len();
            self.control.resize(wanted, 0);
            let mut read = ReadBuf::new(&mut self.control[have..]);
            let polled = Pin::new(&mut self.stream).poll_read(cx, &mut read);
            let count = read.filled().len();
            self.control.truncate(have + count);
            ready!(polled)?;
            if count == 0 {
                return Poll::Ready(Err(TunnelError::Closed));
            }
        }
        self.control_bytes = None;
        Poll::Ready(Ok(Some(Control::decode(&self.control)?)))
    }

    /// The length of the next frame; `None` when the stream ended before its first byte.
    fn poll_length(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<usize>, TunnelError>> {
        while self.length_have < LENGTH_BYTES {
            let mut read = ReadBuf::new(&mut self.length[self.length_have..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            match read.filled().len() {
                0 if self.length_have == 0 => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(TunnelError::Closed)),
                count => self.length_have += count,
            }
        }
        self.length_have = 0;
        Poll::Ready(Ok(Some(frame_length(self.length)?)))
    }

    /// Takes the owner's answers; ready with its ACCEPT, or with its REFUSE as an error.
    pub(crate) fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        loop {
            let (expected, received) = match self.inbound {
                Inbound::Received(proxy_id) => (proxy_id, false),
                Inbound::Verdict(proxy_id) => (proxy_id, true),
                _ => return Poll::Ready(Ok(())),
            };
            let frame = ready!(self.poll_control(cx))?.ok_or(TunnelError::Closed)?;
            let found = match &frame {
                Control::Received { proxy_id }
                | Control::Accept { proxy_id }
                | Control::Refuse { proxy_id, .. } => *proxy_id,
                Control::Hello(_) | Control::Offer | Control::Forward { .. } => {
                    return Poll::Ready(Err(TunnelError::Unexpected("an owner does not ask")));
                }
            };
            if found != expected {
                return Poll::Ready(Err(TunnelError::OtherForward { expected, found }));
            }
            match frame {
                Control::Received { .. } if !received => self.inbound = Inbound::Verdict(expected),
                Control::Accept { .. } if received => self.inbound = Inbound::Data,
                Control::Refuse { code, text, .. } if received => {
                    self.inbound = Inbound::Ended;
                    return Poll::Ready(Err(TunnelError::Refused { code, text }));
                }
                _ => return Poll::Ready(Err(TunnelError::Unexpected("answers in the wrong order"))),
            }
        }
    }

    /// Sends the control frames that wait.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        while !self.pending.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending))?;
            if sent == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.pending.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
