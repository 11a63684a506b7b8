//! [`TunnelStream`]: TLS 1.3 for connections that carry many bytes, or wait for long.
//!
//! rustls shakes hands, verifies, and derives the keys; the records in between are sealed and opened here, with
//! the AEADs of the same library, and for two reasons only: bytes are sealed straight out of the caller's
//! buffer and opened where they were received, up to sixteen records to a system call, where the general stream copies
//! each twice and reads it in pieces of 4 KiB; and a stream on which nothing moves holds no buffer
//! (SPEC F12). On the wire it is plain TLS 1.3 (RFC 8446), whatever the other side runs.
//!
//! ```text
//! accept, connect ─► handshake (rustls) ─► records: data ⇄  ─ key update ─┐
//!                                             │  ▲────────────────────────┘
//!                                             └─ close_notify ─► end of stream
//! ```
//!
//! Keys are replaced after [`REKEY_RECORDS`] and whenever the other side asks. Session tickets and every other
//! message after the handshake are refused: our servers send none. An end of the connection without
//! close_notify is an error, since bytes may be missing (RFC 8446, 6.1). After any error the stream is of no
//! use; alerts about bad records are not sent, the connection just ends.

mod buffers;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod handshake;
mod records;

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::buffers::Buffer;
use self::handshake::{Established, Rekey};
use self::records::{Content, HEADER_BYTES, Keys, RECORD_MAX_BYTES, RecordError, sealed_length};

/// Records sent under one key: 64 GiB when they are full. AES-GCM is good for four times as many
/// (RFC 8446, 5.5).
const REKEY_RECORDS: u64 = 1 << 22;
/// `update_not_requested` (RFC 8446, 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// The same, asking for one in return.
const KEY_UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];
/// A warning, as which it counts in any case (RFC 8446, 6).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// A stream after its handshake.
pub struct TunnelStream<S> {
    io: S,
    rekey: Box<dyn Rekey>,
    send: Keys,
    receive: Keys,
    /// Received and not opened.
    incoming: Buffer,
    /// How many bytes at the front of `incoming` are opened, and what in them is left to read.
    opened: Opened,
    /// Sealed and not sent.
    outgoing: Buffer,
    /// The other side wants us to change our keys before we send anything else.
    owes_update: bool,
    /// The other side sent close_notify.
    ended: bool,
    /// We did.
    closed: bool,
    rekey_records: u64,
}

/// The record at the front of the incoming bytes, when it is open.
#[derive(Debug, Default, Clone, Copy)]
struct Opened {
    /// Where the next unread byte lies.
    start: usize,
    /// Where the plaintext ends.
    end: usize,
    /// Where the record does.
    record: usize,
}

/// A stream and what its handshake showed.
pub(super) struct Shaken<S> {
    pub(super) stream: TunnelStream<S>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) alpn: Option<Vec<u8>>,
}

/// Shakes hands as the side that dialled. The configuration must allow the extraction of secrets.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<Shaken<S>> {
    let established = handshake::connect(&mut io, config, name).await?;
    TunnelStream::after(io, established)
}

/// Shakes hands as the side that was dialled; `first` was read of the stream already.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    config: Arc<ServerConfig>,
    first: &[u8],
) -> io::Result<Shaken<S>> {
    let established = handshake::accept(&mut io, config, first).await?;
    TunnelStream::after(io, established)
}

impl<S> TunnelStream<S> {
    fn after(io: S, established: Established) -> io::Result<Shaken<S>> {
        let Established { secrets, rekey, unread, chain, alpn } = established;
        let mut incoming = Buffer::default();
        let room = incoming.room().get_mut(..unread.len()).ok_or_else(|| bad("it sent too much at once"))?;
        room.copy_from_slice(&unread);
        incoming.fill(unread.len());
        incoming.release();
        let stream = TunnelStream {
            io,
            rekey,
            send: Keys::new(secrets.tx).map_err(bad)?,
            receive: Keys::new(secrets.rx).map_err(bad)?,
            incoming,
            opened: Opened::default(),
            outgoing: Buffer::default(),
            owes_update: false,
            ended: false,
            closed: false,
            rekey_records: REKEY_RECORDS,
        };
        Ok(Shaken { stream, chain, alpn })
    }

    /// The connection below.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Opens the record at the front if it is whole; whether it was. Its plaintext, if it is data, is
    /// `self.opened` then.
    fn open_next(&mut self) -> io::Result<bool> {
        debug_assert!(self.opened.start == self.opened.end, "what is open is read first");
        self.incoming.consume(std::mem::take(&mut self.opened).record);
        let bytes = self.incoming.filled();
        let Some(record) = sealed_length(bytes).map_err(bad)?.filter(|record| *record <= bytes.len()) else {
            return Ok(false);
        };
        let (content, plain) = self.receive.open(&mut bytes[..record]).map_err(bad)?;
        match content {
            Content::Data => {
                let start = HEADER_BYTES;
                self.opened = Opened { start, end: start + plain.len(), record };
                return Ok(true);
            }
            Content::Alert if plain.len() == 2 && plain[1] == CLOSE_NOTIFY[1] => self.ended = true,
            Content::Alert => return Err(bad(format!("it sent alert {:?}", plain))),
            Content::Handshake => {
                self.owes_update |= match &*plain {
                    plain if plain == KEY_UPDATE => false,
                    plain if plain == KEY_UPDATE_REQUESTED => true,
                    _ => return Err(bad("it sent a handshake message after the handshake")),
                };
                self.receive = Keys::new(self.rekey.next_receive().map_err(bad)?).map_err(bad)?;
            }
        }
        self.incoming.consume(record);
        Ok(true)
    }

    /// Gives the reader of what is open.
    fn take_opened(&mut self, buf: &mut ReadBuf<'_>) {
        let count = buf.remaining().min(self.opened.end - self.opened.start);
        if count > 0 {
            let from = self.opened.start;
            buf.put_slice(&self.incoming.filled()[from..from + count]);
            self.opened.start += count;
        }
    }

    /// Seals what of `pieces` fits into the buffer behind what waits to be sent, at most a key update; how many
    /// bytes.
    fn seal(&mut self, pieces: &[IoSlice<'_>]) -> Result<usize, RecordError> {
        let all_bytes = self.outgoing.records() * RECORD_MAX_BYTES;
        let mut pieces = pieces.iter().map(|piece| &**piece).filter(|piece| !piece.is_empty());
        let mut piece = pieces.next().unwrap_or_default();
        let mut next = pieces.next();
        let mut sealed = 0;
        while !piece.is_empty() && sealed < all_bytes {
            let most = RECORD_MAX_BYTES.min(all_bytes - sealed);
            let into = self.outgoing.room();
            let record;
            if piece.len() >= most || next.is_none() {
                let (plain, rest) = piece.split_at(piece.len().min(most));
                record = self.send.seal(Content::Data, plain, into)?;
                sealed += plain.len();
                piece = rest;
            } else {
                // Small pieces share a record.
                let plain = &mut into[HEADER_BYTES..][..most];
                let mut joined = 0;
                while !piece.is_empty() && joined < most {
                    let (part, rest) = piece.split_at(piece.len().min(most - joined));
                    plain[joined..joined + part.len()].copy_from_slice(part);
                    joined += part.len();
                    piece = rest;
                    if piece.is_empty() {
                        piece = next.unwrap_or_default();
                        next = pieces.next();
                    }
                }
                record = self.send.seal_in_place(Content::Data, joined, into)?;
                sealed += joined;
            }
            self.outgoing.fill(record);
            if piece.is_empty() {
                piece = next.unwrap_or_default();
                next = pieces.next();
            }
        }
        Ok(sealed)
    }

    fn seal_message(&mut self, content: Content, message: &[u8]) -> io::Result<()> {
        let record = self.send.seal(content, message, self.outgoing.room()).map_err(bad)?;
        self.outgoing.fill(record);
        Ok(())
    }

    /// Changes our keys if it is time or asked for.
    fn update_keys(&mut self) -> io::Result<()> {
        if self.owes_update || self.send.used() >= self.rekey_records {
            self.seal_message(Content::Handshake, &KEY_UPDATE)?;
            self.send = Keys::new(self.rekey.next_send().map_err(bad)?).map_err(bad)?;
            self.owes_update = false;
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TunnelStream<S> {
    /// Sends what is sealed, and gives the buffer back once it is gone.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.outgoing.len() > 0 {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.outgoing.filled()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.outgoing.consume(count),
            }
        }
        self.outgoing.release();
        Poll::Ready(Ok(()))
    }

    /// Receives some bytes; an empty buffer goes back while there are none.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut read = ReadBuf::new(self.incoming.room());
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let count = read.filled().len();
        if polled.is_pending() || count == 0 {
            self.incoming.release();
        }
        ready!(polled)?;
        if count == 0 {
            let why = "the connection ended without close_notify";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
        }
        self.incoming.receive(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TunnelStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            this.take_opened(buf);
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // What was received is handed out before more is asked for.
            if !this.ended && this.open_next()? {
                continue;
            }
            if this.ended || buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_incoming(cx))?;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TunnelStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_outgoing(cx))?;
        this.outgoing.expect(bufs.iter().map(|buf| buf.len()).sum());
        this.outgoing.room();
        this.update_keys()?;
        let count = this.seal(bufs).map_err(bad)?;
        // What the socket does not take now goes out with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_outgoing(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outgoing(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            // The buffer has room for it behind a full write.
            self.seal_message(Content::Alert, &CLOSE_NOTIFY)?;
            self.closed = true;
        }
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for TunnelStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").field("io", &self.io).finish_non_exhaustive()
    }
}

fn bad(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
