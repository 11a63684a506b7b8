//! A tunnel as what carries a forward: frames of data, each direction ended by an empty one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use p2p_common::wire::tunnel::{LENGTH_BYTES, data_header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{END, Inbound, Outbound, Tunnel};
use crate::forward::splice::{Carrier, CopyBuffer};
use crate::tunnel::TunnelError;

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for Tunnel<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, TunnelError>> {
        ready!(self.poll_verdict(cx))?;
        if self.inbound == Inbound::Ended {
            return Poll::Ready(Ok(0));
        }
        debug_assert!(self.inbound == Inbound::Data, "a tunnel between two forwards carries nothing");
        if self.left == 0 {
            self.left = ready!(self.poll_length(cx))?.ok_or(TunnelError::Closed)?;
            if self.left == 0 {
                self.inbound = Inbound::Ended;
                return Poll::Ready(Ok(0));
            }
        }
        let most = into.len().min(self.left);
        let mut read = ReadBuf::new(&mut into[..most]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        let count = read.filled().len();
        if count == 0 {
            return Poll::Ready(Err(TunnelError::Closed));
        }
        self.left -= count;
        self.counters.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut CopyBuffer,
        count: usize,
        last: bool,
    ) -> Poll<Result<usize, TunnelError>> {
        let (header, payload) = match self.outbound {
            Outbound::Data { header: 0, payload: 0 } => (LENGTH_BYTES, count),
            Outbound::Data { header, payload } => (header, payload),
            Outbound::Control | Outbound::Ended => {
                return Poll::Ready(Err(TunnelError::Unexpected("bytes outside of a forward")));
            }
        };
        debug_assert!(payload <= count, "what was announced is still there");
        self.outbound = Outbound::Data { header, payload };
        let piece = if header > 0 {
            &from.with_header(data_header(payload), payload)[LENGTH_BYTES - header..]
        } else {
            &from.unread()[..payload]
        };
        let end: &[u8] = if last && payload == count { &END } else { &[] };
        let stream = Pin::new(&mut self.stream);
        let mut sent = if self.pending.is_empty() && end.is_empty() {
            ready!(stream.poll_write(cx, piece))?
        } else {
            let pieces = [IoSlice::new(&self.pending), IoSlice::new(piece), IoSlice::new(end)];
            ready!(stream.poll_write_vectored(cx, &pieces))?
        };
        if sent == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
        }
        let mut of = |bytes: usize| {
            let taken = sent.min(bytes);
            sent -= taken;
            taken
        };
        let of_pending = of(self.pending.len());
        let (of_header, of_payload) = (of(header), of(payload));
        self.pending.advance(of_pending);
        self.outbound = if sent > 0 {
            self.pending.extend_from_slice(&END[sent..]);
            Outbound::Ended
        } else {
            Outbound::Data { header: header - of_header, payload: payload - of_payload }
        };
        from.consume(of_payload);
        self.counters.bytes_out.fetch_add(of_payload as u64, Ordering::Relaxed);
        Poll::Ready(Ok(of_payload))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx).map_err(TunnelError::from)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if let Outbound::Data { header, payload } = self.outbound {
            if header + payload > 0 {
                return Poll::Ready(Err(TunnelError::Unexpected("a frame was not sent to its end")));
            }
            self.pending.extend_from_slice(&END);
            self.outbound = Outbound::Ended;
        }
        self.poll_flush(cx)
    }
}
