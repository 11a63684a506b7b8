//! How an input to something that lives longer than a message is read: steps of one byte of choice, two of length,
//! and so many bytes; the last one may be shorter.

/// The steps of an input: what to do, and the bytes to do it with.
pub fn steps(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (&[choice, high, low], behind) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
        let bytes;
        (bytes, rest) = behind.split_at(length);
        Some((choice, bytes))
    })
}

/// Numbers taken off the front of bytes; zeros behind their end.
pub struct Numbers<'a>(pub &'a [u8]);

impl Numbers<'_> {
    /// The next one, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first) % end
    }
}
