//! Buffers of [`TunnelStream`](super::TunnelStream)s: held only while bytes are on their way.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::records::{RECORD_MAX_BYTES, SEALED_MAX_BYTES};

/// Records sealed by one write: what a copy buffer of 64 KiB holds.
pub(super) const WRITE_RECORDS: usize = 4;
/// Plaintext of one write.
pub(super) const WRITE_MAX_BYTES: usize = WRITE_RECORDS * RECORD_MAX_BYTES;
/// A write's records, a key update and a close_notify.
const BUFFER_BYTES: usize = WRITE_RECORDS * SEALED_MAX_BYTES + 64;
/// Buffers kept for the next who needs one: 8 MiB. More are allocated and freed as they are needed.
const SPARE_MAX: usize = 128;

/// Buffers that are not in use, of all streams of the process.
static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Bytes of the wire, contiguous; without any it holds no memory once [`Buffer::release`] is called.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Option<Box<[u8]>>,
    filled: Range<usize>,
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

    /// Room behind what is there; what is there moves to the front when the room ends.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let bytes = self.bytes.get_or_insert_with(|| {
            let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
            spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into())
        });
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.filled.start > 0 && bytes.len() - self.filled.end < SEALED_MAX_BYTES {
            bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut bytes[self.filled.end..]
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
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < SPARE_MAX {
                spare.push(bytes);
            }
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
