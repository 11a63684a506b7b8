//! [`PeerStream`]: the encrypted connection below a tunnel in the pool, whoever dialled it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use p2p_runtime::tls::{ClientTlsStream, Prefixed, ServerTlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What the port hands over of another Peer: its first bytes were looked at.
pub(crate) type AcceptedStream = ServerTlsStream<Prefixed<TcpStream>>;

/// A connection to another Peer.
#[derive(Debug)]
pub(crate) enum PeerStream {
    /// We dialled.
    Dialled(Box<ClientTlsStream<TcpStream>>),
    /// The other Peer did.
    Accepted(Box<AcceptedStream>),
}

impl PeerStream {
    /// The TCP connection below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            PeerStream::Dialled(stream) => stream.get_ref().0,
            PeerStream::Accepted(stream) => stream.get_ref().0.get_ref(),
        }
    }
}

macro_rules! each {
    ($this:ident, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            PeerStream::Dialled(stream) => {
                let $stream = Pin::new(&mut **stream);
                $call
            }
            PeerStream::Accepted(stream) => {
                let $stream = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            PeerStream::Dialled(stream) => stream.is_write_vectored(),
            PeerStream::Accepted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}
