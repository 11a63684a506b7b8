//! How an input to a framer is read: one byte of choices, one of how many cuts, two for each cut, the rest are bytes
//! from the network.

use p2p_peer_core::FramingLimits;

/// An input taken apart.
pub struct Input<'a> {
    /// What is left of the choices for the target.
    pub choice: u8,
    /// The limits to use: the default ones, or so small that an input reaches them.
    pub limits: FramingLimits,
    /// Where the bytes are cut, in order, both ends included.
    cuts: Vec<usize>,
    /// The bytes from the network.
    pub bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// `None` if there are not enough bytes.
    pub fn read(data: &'a [u8]) -> Option<Self> {
        let (&[choice, count], rest) = data.split_first_chunk()?;
        let (cuts, bytes) = rest.split_at_checked(2 * usize::from(count % 8))?;
        let mut cuts: Vec<usize> = cuts
            .chunks(2)
            .map(|cut| usize::from(u16::from_le_bytes([cut[0], cut[1]])) % (bytes.len() + 1))
            .chain([0, bytes.len()])
            .collect();
        cuts.sort_unstable();
        let small = FramingLimits {
            max_head_bytes: 128,
            max_headers: 4,
            max_chunk_extension_bytes: 5,
            max_trailer_bytes: 12,
            max_interim_responses: 2,
        };
        let limits = if choice & 1 == 0 { FramingLimits::default() } else { small };
        Some(Input { choice: choice >> 1, limits, cuts, bytes })
    }

    /// The bytes in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> {
        self.cuts.windows(2).map(|pair| &self.bytes[pair[0]..pair[1]])
    }
}
