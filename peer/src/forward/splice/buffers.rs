//! [`CopyBuffer`]: bytes on their way through a forward, and [`Buffers`], where their memory comes from.
//!
//! Memory is held only while there are bytes, and its size follows them: a small buffer for most, a large one for
//! whoever fills a small one, as long as there are any.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2p_common::wire::tunnel::FRAME_MAX_BYTES;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
