//! Copying bytes between two ends: [`Pipe`] moves one direction, [`copy_both`] two at a time.
//!
//! An end is a [`Carrier`]: a plain connection ([`Plain`]) or a tunnel, which frames what it carries. A pipe
//! reads only when all it holds is sent, so a slow reader stops the writer behind it (back-pressure), and an
//! end of stream is passed on without touching the other direction (half-close). Everything is polled from
//! one task: no lock between the directions, no allocation once the buffers are there.

mod buffers;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::tunnel::TunnelError;

pub(crate) use self::buffers::{Buffers, CopyBuffer};

/// Reads some bytes of `from` into `buffer`, which is not full; how many, 0 when the direction ended. While there
/// are none and the buffer is empty, it holds no memory.
pub(crate) fn poll_read_into<C: Carrier>(
    cx: &mut Context<'_>,
    from: &mut C,
    buffer: &mut CopyBuffer,
) -> Poll<Result<usize, TunnelError>> {
    match from.poll_recv(cx, buffer.space()) {
        Poll::Ready(Ok(count)) => {
            buffer.fill(count);
            Poll::Ready(Ok(count))
        }
        other => {
            buffer.rest();
            other
        }
    }
}

/// One end of a forward.
pub(crate) trait Carrier {
    /// Reads some bytes of this end's direction into `into`, which is not empty; 0 when the direction ended.
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, TunnelError>>;

    /// Sends some of the first `count` bytes of `from` (not 0) and consumes them; says how many. What is
    /// promised in one call must still be promised in the next: a frame may have been announced. With `last`
    /// nothing comes after them but [`Carrier::poll_finish`], whose news may then go with them.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut CopyBuffer,
        count: usize,
        last: bool,
    ) -> Poll<Result<usize, TunnelError>>;

    /// Gets on the way what was sent.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>>;

    /// Ends the direction towards this end; calling again after it is done does nothing.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>>;
}

/// A connection that carries the bytes as they are: a client's or a backend's.
#[derive(Debug)]
pub(crate) struct Plain<S> {
    stream: S,
    finished: bool,
}

impl<S> Plain<S> {
    /// Wraps a connection.
    pub(crate) fn new(stream: S) -> Self {
        Plain { stream, finished: false }
    }

    /// The connection.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The connection, to answer on it.
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for Plain<S> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, TunnelError>> {
        let mut read = ReadBuf::new(into);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut CopyBuffer,
        count: usize,
        _last: bool,
    ) -> Poll<Result<usize, TunnelError>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &from.unread()[..count]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
        }
        from.consume(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(TunnelError::from)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        if !self.finished {
            match ready!(Pin::new(&mut self.stream).poll_shutdown(cx)) {
                Ok(()) => {}
                // The other side has already closed everything: there is nobody left to tell.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// Which end of a copy broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Where the bytes come from.
    #[error(transparent)]
    From(TunnelError),
    /// Where they go to.
    #[error(transparent)]
    To(TunnelError),
}

/// One direction of a copy that ends with its stream.
pub(crate) struct Pipe {
    /// What was read and not sent.
    pub(crate) buffer: CopyBuffer,
    ended: bool,
    /// Reading failed behind what `buffer` holds.
    failed: Option<TunnelError>,
    unflushed: bool,
    /// Until then the first flush waits for bytes to go along.
    hold: Option<Pin<Box<Sleep>>>,
    finished: bool,
}

impl Pipe {
    /// Sends what `buffer` holds first.
    pub(crate) fn new(buffer: CopyBuffer) -> Self {
        Pipe { buffer, ended: false, failed: None, unflushed: true, hold: None, finished: false }
    }

    /// Lets what was queued before the first bytes wait up to `time` for them.
    pub(crate) fn hold(mut self, time: Duration) -> Self {
        self.hold = Some(Box::pin(tokio::time::sleep(time)));
        self
    }

    /// Moves what can be moved; ready when `from` ended and `to` was told.
    pub(crate) fn poll<A: Carrier, B: Carrier>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut A,
        to: &mut B,
    ) -> Poll<Result<(), Broken>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.buffer.is_empty() {
                let count = self.buffer.unread().len();
                ready!(to.poll_send(cx, &mut self.buffer, count, self.ended)).map_err(Broken::To)?;
                self.unflushed = true;
                self.hold = None;
            }
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(Broken::From(error)));
            }
            if self.ended {
                ready!(to.poll_finish(cx)).map_err(Broken::To)?;
                self.finished = true;
                return Poll::Ready(Ok(()));
            }
            if self.fill(cx, from).map_err(Broken::From)?.is_pending() {
                return self.poll_flush(cx, to).map_err(Broken::To);
            }
        }
    }

    /// Reads what there is, and looks whether more or the end follows: it costs nothing and saves a write.
    fn fill<A: Carrier>(&mut self, cx: &mut Context<'_>, from: &mut A) -> Poll<Result<(), TunnelError>> {
        self.ended = ready!(poll_read_into(cx, from, &mut self.buffer))? == 0;
        if !self.ended && !self.buffer.is_full() {
            match poll_read_into(cx, from, &mut self.buffer) {
                Poll::Ready(Ok(count)) => self.ended = count == 0,
                Poll::Ready(Err(error)) => self.failed = Some(error),
                Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing to move: what was sent must be on its way. Never ready but with an error.
    fn poll_flush<B: Carrier>(&mut self, cx: &mut Context<'_>, to: &mut B) -> Poll<Result<(), TunnelError>> {
        if let Some(hold) = &mut self.hold {
            ready!(hold.as_mut().poll(cx));
            self.hold = None;
        }
        if self.unflushed {
            ready!(to.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Pending
    }
}

/// Copies both ways until both directions ended. Ends early with the first error, after which neither end is
/// of any use.
///
/// # Errors
/// What an end reports; which one, seen from `a`.
pub(crate) async fn copy_both<A: Carrier, B: Carrier>(
    (a, from_a): (&mut A, &mut Pipe),
    (b, from_b): (&mut B, &mut Pipe),
) -> Result<(), Broken> {
    std::future::poll_fn(|cx| {
        let there = from_a.poll(cx, a, b)?;
        let back = from_b.poll(cx, b, a).map_err(|broken| match broken {
            Broken::From(error) => Broken::To(error),
            Broken::To(error) => Broken::From(error),
        })?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn half_close_passes_and_the_other_direction_goes_on() {
        let ((mut client, near), (far, mut backend)) = (duplex(100), duplex(100));
        let copy = tokio::spawn(async move {
            let (mut near, mut far) = (Plain::new(near), Plain::new(far));
            let (mut there, mut back) =
                (Pipe::new(Buffers::default().get()), Pipe::new(Buffers::default().get()));
            copy_both((&mut near, &mut there), (&mut far, &mut back)).await
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        backend.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        backend.write_all(b"answer").await.unwrap();
        drop(backend);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered, b"answer");
        copy.await.unwrap().unwrap();
    }
}
