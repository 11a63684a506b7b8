//! Long values in parts, and the keys they lie under, which sort like the numbers in them.

/// The longest value. A sled leaf of some twenty of these stays below the size that goes into an unsynced file.
pub const PART_BYTES: usize = 4 * 1024;

/// The key of a part of a numbered value: the letter, the number, the part.
pub fn key(letter: u8, number: u64, part: u16) -> Vec<u8> {
    let mut key = vec![letter];
    key.extend(number.to_be_bytes());
    key.extend(part.to_be_bytes());
    key
}

/// The key of a part of a numbered value that may be long.
pub fn long_key(letter: u8, number: u64, part: u32) -> Vec<u8> {
    let mut key = vec![letter];
    key.extend(number.to_be_bytes());
    key.extend(part.to_be_bytes());
    key
}

/// The number in a [`key`].
pub fn number(key: &[u8]) -> Option<u64> {
    let (number, part) = key.get(1..)?.split_first_chunk::<8>()?;
    (part.len() == 2).then(|| u64::from_be_bytes(*number))
}

/// A value of at most 256 MiB in numbered parts; an empty one is one empty part.
pub fn split(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let empty = bytes.is_empty().then_some(bytes);
    (0..).zip(bytes.chunks(PART_BYTES).chain(empty))
}

/// A long value in numbered parts; an empty one has none.
pub fn split_long(bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    (0..).zip(bytes.chunks(PART_BYTES))
}
