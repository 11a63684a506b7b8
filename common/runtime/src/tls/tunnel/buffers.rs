//! Buffers of [`TunnelStream`](super::TunnelStream)s: held only while bytes are on their way.
//!
//! A stream begins with a small one and gets a large one, as long as there are any, once it fills the small one:
//! fewer and longer reads and writes are what a bulk transfer saves most by. Their number is bounded, so that
//! thousands of streams that are all stuck hold a small one each at most.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::records::{RECORD_MAX_BYTES, SEALED_MAX_BYTES};

/// Records in a small buffer: what a copy buffer of 64 KiB holds.
const SMALL_RECORDS: usize = 4;
/// Records in a large one: 256 KiB.
const LARGE_RECORDS: usize = 16;
/// For a key update and a close_notify behind full records.
const EXTRA_BYTES: usize = 64;
/// Small buffers kept for the next who needs one: 8 MiB. More are allocated and freed as they are needed.
const SPARE_MAX: usize = 128;
/// Large buffers there are at most, in use or not: 16 MiB.
const LARGE_MAX: usize = 64;

/// Buffers that are not in use, of all streams of the process.
static SPARE: Mutex<Spare> = Mutex::new(Spare { small: Vec::new(), large: Vec::new(), large_made: 0 });

struct Spare {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    large_made: usize,
}

impl Spare {
    fn take_large(&mut self) -> Option<Box<[u8]>> {
        self.large.pop().or_else(|| {
            let may = self.large_made < LARGE_MAX;
            self.large_made += usize::from(may);
            may.then(|| vec![0; size_of(LARGE_RECORDS)].into())
        })
    }

    fn put(&mut self, bytes: Box<[u8]>) {
        if bytes.len() == size_of(LARGE_RECORDS) {
            self.large.push(bytes);
        } else if self.small.len() < SPARE_MAX {
            self.small.push(bytes);
        }
    }
}

const fn size_of(records: usize) -> usize {
    records * SEALED_MAX_BYTES + EXTRA_BYTES
}

fn spare() -> MutexGuard<'static, Spare> {
    // A panic of another holder leaves it whole: it changes in single steps.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the wire, contiguous; without any it holds no memory once [`Buffer::release`] is called.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Option<Box<[u8]>>,
    filled: Range<usize>,
    /// A small one was too small.
    wants_large: bool,
}

impl Buffer {
    /// What is there.
    pub(super) fn filled(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Some(bytes) => &mut bytes[self.filled.clone()],
            None => &mut [],
        }
    }

    /// How much there is.
    pub(super) fn len(&self) -> usize {
        self.filled.len()
    }

    /// Has it become large, if it can, when it is to take `count` bytes of plaintext.
    pub(super) fn expect(&mut self, count: usize) {
        self.wants_large = count > SMALL_RECORDS * RECORD_MAX_BYTES;
    }

    /// Full records for which there is room when it is empty.
    pub(super) fn records(&self) -> usize {
        self.bytes.as_ref().map_or(SMALL_RECORDS, |bytes| bytes.len() / SEALED_MAX_BYTES)
    }

    /// Room behind what is there; what is there moves to the front when the room ends.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.filled.is_empty() {
            self.filled = 0..0;
            let is_large = self.bytes.as_ref().is_some_and(|bytes| bytes.len() == size_of(LARGE_RECORDS));
            if self.wants_large && !is_large {
                let mut spare = spare();
                if let Some(large) = spare.take_large()
                    && let Some(small) = self.bytes.replace(large)
                {
                    spare.put(small);
                }
            }
        }
        let bytes = self.bytes.get_or_insert_with(|| {
            spare().small.pop().unwrap_or_else(|| vec![0; size_of(SMALL_RECORDS)].into())
        });
        if self.filled.start > 0 && bytes.len() - self.filled.end < SEALED_MAX_BYTES {
            bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut bytes[self.filled.end..]
    }

    /// Takes `count` bytes that were received into [`Buffer::room`]; whoever fills a small buffer gets a large one.
    pub(super) fn receive(&mut self, count: usize) {
        self.fill(count);
        self.wants_large = self.filled.end >= size_of(SMALL_RECORDS);
    }

    /// Takes `count` bytes that were written into [`Buffer::room`].
    pub(super) fn fill(&mut self, count: usize) {
        self.filled.end += count;
    }

    /// Drops the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.filled.len(), "only what is there is consumed");
        self.filled.start += count;
    }

    /// Gives the memory back when there are no bytes.
    pub(super) fn release(&mut self) {
        if !self.filled.is_empty() {
            return;
        }
        if let Some(bytes) = self.bytes.take() {
            spare().put(bytes);
        }
    }
}

#[cfg(test)]
impl Buffer {
    pub(super) fn holds_memory(&self) -> bool {
        self.bytes.is_some()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.filled = 0..0;
        self.release();
    }
}
