//! How many writes of raft's the store has synced, in a file beside sled's.
//!
//! sled takes an end of its log that it cannot read for a write torn by a crash, and drops it without a word, with all
//! that came after it. Those writes may have been acknowledged. So each carries a number, and the newest that is
//! known to be on the disk is noted here, after its sync: a store that opens with an older one has lost some.
//!
//! The note itself is not synced. It may be older than the store after a power loss, never newer, and a disk that
//! forgets is caught all the same unless it forgets the note as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const FILE: &str = "synced";

/// The note.
#[derive(Debug)]
pub struct Mark {
    file: File,
}

impl Mark {
    /// Opens the note of the store in `path`, made if there is none, and reads it; 0 when nothing is in it that could
    /// have been noted.
    pub fn open(path: &Path) -> io::Result<(Mark, u64)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(path.join(FILE))?;
        let mut bytes = [0; 16];
        let noted = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => noted(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        Ok((Mark { file }, noted.unwrap_or(0)))
    }

    /// The write with this number, and all before it, are on the disk.
    pub fn note(&self, number: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&(!number).to_be_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

/// A number and its complement, or what a crash left of them.
fn noted(bytes: &[u8; 16]) -> Option<u64> {
    let (number, complement) = bytes.split_first_chunk::<8>()?;
    let number = u64::from_be_bytes(*number);
    (complement == (!number).to_be_bytes()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_number_and_takes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().1, 0);
        for number in [1, u64::MAX, 7] {
            let (mark, _) = Mark::open(dir.path()).unwrap();
            mark.note(number).unwrap();
            assert_eq!(Mark::open(dir.path()).unwrap().1, number);
        }
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(Mark::open(dir.path()).unwrap().1, 0);
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert_eq!(Mark::open(dir.path()).unwrap().1, 0);
        }
    }
}
