//! Copying bytes between two ends: [`Pipe`] moves one direction, [`copy_both`] two at a time.
//!
//! An end is a [`Carrier`]: a plain connection ([`Plain`]) or a tunnel, which frames what it carries. A pipe
//! reads only when all it holds is sent, so a slow reader stops the writer behind it (back-pressure), and an
//! end of stream is passed on without touching the other direction (half-close). Everything is polled from
//! one task: no lock between the directions, no allocation once the buffers are there.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use p2p_common::wire::tunnel::FRAME_MAX_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::tunnel::TunnelError;

/// Bytes of a small copy buffer, the room for a frame header in front included: what four TLS records hold.
const SMALL_BYTES: usize = 64 * 1024;
/// Bytes of a large one: a frame, and sixteen TLS records. Whoever fills a small one gets a large one as long as
/// there are any: a bulk transfer is woken up for a quarter as often.
const LARGE_BYTES: usize = FRAME_MAX_BYTES;
/// Room in front of the bytes, so that a frame header and they go out as one piece.
pub(crate) const FRONT_BYTES: usize = p2p_common::wire::tunnel::LENGTH_BYTES;

/// Small buffers kept for the next forward: 16 MiB. More are allocated and freed as they are needed; how many
/// there can be follows from the bound on forwards.
const SPARE_MAX: usize = 256;
/// Large buffers there are at most, in use or not: 16 MiB. Thousands of forwards that are all stuck hold a small
/// one for each direction.
const LARGE_MAX: usize = 64;

/// Buffers that are not in use. Cheap to copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers {
    spare: Arc<Mutex<Spare>>,
}

#[derive(Debug, Default)]
struct Spare {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    large_made: usize,
}

impl Buffers {
    /// An empty buffer. It holds memory from when it is first read into.
    pub(crate) fn get(&self) -> CopyBuffer {
        CopyBuffer {
            bytes: Box::default(),
            start: 0,
            end: 0,
            kept: None,
            wants_large: false,
            home: self.clone(),
        }
    }

    /// The buffer that is in use, with an empty one put in its place.
    pub(crate) fn swap(&self, used: &mut CopyBuffer) -> CopyBuffer {
        std::mem::replace(used, self.get())
    }

    /// Memory for a buffer in place of `former`, which may be none.
    fn exchange(&self, former: Box<[u8]>, wants_large: bool) -> Box<[u8]> {
        let mut spare = self.spare();
        let large = if wants_large && former.len() < LARGE_BYTES { spare.take_large() } else { None };
        match large {
            Some(large) => {
                spare.put(former);
                large
            }
            None if former.is_empty() => {
                let small = spare.small.pop();
                drop(spare);
                small.unwrap_or_else(|| vec![0; SMALL_BYTES].into())
            }
            None => former,
        }
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        // A panic of another holder leaves it whole: it changes in single steps.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spare {
    fn take_large(&mut self) -> Option<Box<[u8]>> {
        self.large.pop().or_else(|| {
            let may = self.large_made < LARGE_MAX;
            self.large_made += usize::from(may);
            may.then(|| vec![0; LARGE_BYTES].into())
        })
    }

    fn put(&mut self, bytes: Box<[u8]>) {
        match bytes.len() {
            0 => {}
            LARGE_BYTES => self.large.push(bytes),
            _ if self.small.len() < SPARE_MAX => self.small.push(bytes),
            _ => {}
        }
    }
}

/// Bytes read and not yet sent, contiguous, with room for a frame header in front.
#[derive(Debug)]
pub(crate) struct CopyBuffer {
    /// None at all while there is nothing to hold.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// From here on what is consumed is kept, for [`CopyBuffer::seek`].
    kept: Option<usize>,
    /// The last read filled a small one.
    wants_large: bool,
    home: Buffers,
}

impl Drop for CopyBuffer {
    fn drop(&mut self) {
        self.kept = None;
        self.clear();
        self.rest();
    }
}

impl CopyBuffer {
    /// What was read and not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The same, to be changed in place.
    pub(crate) fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Takes the `count` unread bytes from `at` on out of the middle.
    pub(crate) fn cut(&mut self, at: usize, count: usize) {
        self.unread_mut().copy_within(..at, count);
        self.consume(count);
    }

    /// Whether there is nothing unread.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing more can be read before something is consumed.
    pub(crate) fn is_full(&self) -> bool {
        !self.bytes.is_empty() && self.unread().len() == self.bytes.len() - FRONT_BYTES
    }

    /// Gives the memory back while there is nothing to hold.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() && self.kept.is_none() && !self.bytes.is_empty() {
            (self.start, self.end) = (0, 0);
            self.home.spare().put(std::mem::take(&mut self.bytes));
        }
    }

    /// Drops the first `count` unread bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.unread().len(), "only what is there is consumed");
        self.start += count;
        if self.start == self.end && self.kept.is_none() {
            self.clear();
        }
    }

    /// Keeps what is consumed until [released](Self::release). Meanwhile nothing is read into the buffer, and at
    /// most one frame of it is sent on each way: the header of a second one would lie on kept bytes.
    pub(crate) fn keep(&mut self) {
        self.kept = Some(self.start);
    }

    /// Goes to where `count` of the kept bytes are consumed.
    pub(crate) fn seek(&mut self, count: usize) {
        let kept = self.kept.expect("only what is kept can be gone back to");
        debug_assert!(kept + count <= self.end, "only what is there is consumed");
        self.start = kept + count;
    }

    /// Forgets what is consumed from here on as well as what was kept.
    pub(crate) fn release(&mut self) {
        self.kept = None;
        self.consume(0);
    }

    /// Where to read into; empty only when the buffer [is full](Self::is_full).
    pub(crate) fn space(&mut self) -> &mut [u8] {
        debug_assert!(self.kept.is_none(), "kept bytes are not moved");
        if self.is_empty() && (self.bytes.is_empty() || self.wants_large) {
            self.bytes = self.home.exchange(std::mem::take(&mut self.bytes), self.wants_large);
            self.clear();
        }
        if self.end == self.bytes.len() && self.start > FRONT_BYTES {
            self.bytes.copy_within(self.start..self.end, FRONT_BYTES);
            (self.start, self.end) = (FRONT_BYTES, FRONT_BYTES + self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// Takes `count` bytes that were read into [`Self::space`].
    pub(crate) fn fill(&mut self, count: usize) {
        debug_assert!(self.end + count <= self.bytes.len(), "a read fits into the space it was given");
        self.end += count;
        self.wants_large = self.end >= SMALL_BYTES;
    }

    /// Drops everything unread.
    pub(crate) fn clear(&mut self) {
        let front = FRONT_BYTES.min(self.bytes.len());
        (self.start, self.end) = (front, front);
    }

    /// The first `count` unread bytes with `header` written in front of them; where the header goes lie only
    /// bytes that were consumed.
    pub(crate) fn with_header(&mut self, header: [u8; FRONT_BYTES], count: usize) -> &[u8] {
        let front = self.start - FRONT_BYTES;
        self.bytes[front..self.start].copy_from_slice(&header);
        &self.bytes[front..self.start + count]
    }
}

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

    const SMALL_MAX_BYTES: usize = SMALL_BYTES - FRONT_BYTES;

    #[test]
    fn who_fills_a_small_buffer_gets_a_large_one_while_there_are_any() {
        let buffers = Buffers::default();
        let mut greedy: Vec<CopyBuffer> = (0..=LARGE_MAX).map(|_| buffers.get()).collect();
        for buffer in &mut greedy {
            let space = buffer.space().len();
            buffer.fill(space);
            buffer.consume(space);
        }
        let sizes: Vec<usize> = greedy.iter_mut().map(|buffer| buffer.space().len() + FRONT_BYTES).collect();
        assert_eq!(sizes[..LARGE_MAX], [LARGE_BYTES; LARGE_MAX]);
        assert_eq!(sizes[LARGE_MAX], SMALL_BYTES);
        // Who no longer fills it gives it back as it rests.
        greedy[0].fill(SMALL_MAX_BYTES - 1);
        greedy[0].consume(SMALL_MAX_BYTES - 1);
        for buffer in &mut greedy {
            buffer.rest();
            assert!(buffer.bytes.is_empty() && buffer.unread().is_empty() && !buffer.is_full());
        }
        assert_eq!(greedy[0].space().len(), SMALL_MAX_BYTES);
        assert_eq!(greedy[LARGE_MAX].space().len(), LARGE_BYTES - FRONT_BYTES);
        drop(greedy);
        let spare = buffers.spare();
        assert_eq!((spare.large.len(), spare.small.len()), (LARGE_MAX, LARGE_MAX + 1));
    }

    #[test]
    fn a_buffer_that_is_not_empty_keeps_its_memory() {
        let mut buffer = Buffers::default().get();
        buffer.rest();
        buffer.clear();
        buffer.space()[..4].copy_from_slice(b"body");
        buffer.fill(4);
        buffer.rest();
        buffer.keep();
        buffer.consume(4);
        buffer.rest();
        buffer.seek(0);
        assert_eq!(buffer.unread(), b"body");
    }

    #[test]
    fn a_buffer_keeps_order_and_room_for_a_header() {
        let mut buffer = Buffers::default().get();
        assert_eq!(buffer.space().len(), SMALL_MAX_BYTES);
        buffer.space()[..6].copy_from_slice(b"abcdef");
        buffer.fill(6);
        assert_eq!(buffer.with_header(*b"HEAD", 2), b"HEADab");
        buffer.consume(2);
        assert_eq!(buffer.with_header(*b"head", 4), b"headcdef");
        let space = buffer.space().len();
        buffer.space().fill(b'x');
        buffer.fill(space);
        assert!(!buffer.is_full(), "the consumed bytes leave room at the front");
        assert_eq!(buffer.space().len(), 2);
        assert_eq!(&buffer.unread()[..4], b"cdef");
        buffer.fill(2);
        assert!(buffer.is_full());
        buffer.cut(2, SMALL_MAX_BYTES - 4);
        assert_eq!(buffer.unread(), b"cdxx");
        buffer.cut(1, 1);
        assert_eq!(buffer.unread(), b"cxx");
        buffer.consume(3);
        assert!(buffer.is_empty());
        assert_eq!(buffer.space().len(), LARGE_BYTES - FRONT_BYTES);
    }

    #[test]
    fn what_is_kept_can_be_sent_again() {
        let mut buffer = Buffers::default().get();
        buffer.space()[..8].copy_from_slice(b"gonebody");
        buffer.fill(8);
        buffer.consume(4);
        buffer.keep();
        assert_eq!(buffer.with_header(*b"HEAD", 4), b"HEADbody");
        buffer.consume(4);
        assert!(buffer.is_empty());
        buffer.seek(0);
        assert_eq!(buffer.with_header(*b"HEAD", 4), b"HEADbody");
        buffer.seek(3);
        assert_eq!(buffer.unread(), b"y");
        buffer.seek(4);
        buffer.release();
        assert_eq!(buffer.space().len(), SMALL_MAX_BYTES);
    }

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
