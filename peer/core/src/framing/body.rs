//! [`Body`]: how many of the next bytes belong to a message's body.

use super::{FramingError, FramingLimits};

/// What is left of a body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked(ChunkScan),
    /// Everything until the connection ends.
    UntilClose,
}

impl Body {
    pub(super) const EMPTY: Body = Body::Length(0);

    /// How many bytes at the front of `bytes` belong to the body, and whether it ends with them.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), FramingError> {
        match self {
            Body::Length(left) => {
                let taken = at_most(bytes.len(), *left);
                *left -= taken as u64;
                Ok((taken, *left == 0))
            }
            Body::Chunked(scan) => scan.advance(bytes),
            Body::UntilClose => Ok((bytes.len(), false)),
        }
    }
}

fn at_most(count: usize, left: u64) -> usize {
    usize::try_from(left).map_or(count, |left| count.min(left))
}

/// Where a chunked body ends (RFC 9112 section 7.1), byte by byte through its lines and at one go through its
/// data.
///
/// Blanks between size and line end are taken: some old servers pad the size, and no reader is known to see
/// another number. Everything else is the grammar's: hexadecimal digits alone, CR LF alone ends a line, no
/// control characters.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkScan {
    at: At,
    /// While in a size: its digits so far. Else: what is left of the chunk's data.
    size: u64,
    digits: u8,
    /// Bytes of the extension, later of the trailer section.
    spent: usize,
    max_extension_bytes: usize,
    max_trailer_bytes: usize,
}

/// Which part comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    End,
}

/// Sixteen digits fill 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

impl ChunkScan {
    pub(super) fn new(limits: &FramingLimits) -> Self {
        ChunkScan {
            at: At::Size,
            size: 0,
            digits: 0,
            spent: 0,
            max_extension_bytes: limits.max_chunk_extension_bytes,
            max_trailer_bytes: limits.max_trailer_bytes,
        }
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), FramingError> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::End {
            if self.at == At::Data {
                let data = at_most(bytes.len() - taken, self.size);
                self.size -= data as u64;
                taken += data;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
            } else {
                self.at = self.next(bytes[taken])?;
                taken += 1;
            }
        }
        Ok((taken, self.at == At::End))
    }

    /// The part after `byte`, which is not data.
    fn next(&mut self, byte: u8) -> Result<At, FramingError> {
        const NO_SIZE: FramingError = FramingError::Chunk("a chunk size is not a hexadecimal number");
        const NO_LF: FramingError = FramingError::Chunk("a carriage return without its line feed");
        Ok(match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.digits == SIZE_DIGITS_MAX {
                    return Err(FramingError::Chunk("a chunk size has too many digits"));
                }
                let digit = (byte as char).to_digit(16).expect("matched as a hexadecimal digit");
                self.size = self.size << 4 | u64::from(digit);
                self.digits += 1;
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return Err(NO_SIZE),
            // As with lengths: some readers count in signed numbers.
            (At::Size, _) if self.size > i64::MAX as u64 => {
                return Err(FramingError::Chunk("a chunk size is too large"));
            }
            (At::Size | At::Blank | At::Extension, b'\r') => At::SizeLf,
            (At::Size | At::Blank, b' ' | b'\t') => self.spend_extension(At::Blank)?,
            (At::Size | At::Blank, b';') => self.spend_extension(At::Extension)?,
            (At::Size | At::Blank, _) => return Err(NO_SIZE),
            (At::Extension, _) if is_text(byte) => self.spend_extension(At::Extension)?,
            (At::Extension, _) => {
                return Err(FramingError::Chunk("a control character in a chunk extension"));
            }
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                self.spent = 0;
                if self.size == 0 { At::TrailerStart } else { At::Data }
            }
            (At::SizeLf, _) => return Err(NO_LF),

            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::DataCr | At::DataLf, _) => {
                return Err(FramingError::Chunk("a chunk is longer than its size"));
            }

            (At::TrailerStart, b'\r') => At::LastLf,
            (At::TrailerName, b':') => self.spend_trailer(At::TrailerValue)?,
            (At::TrailerStart | At::TrailerName, _) if is_tchar(byte) => {
                self.spend_trailer(At::TrailerName)?
            }
            (At::TrailerStart | At::TrailerName, _) => {
                return Err(FramingError::Chunk("a trailer field has a malformed name"));
            }
            (At::TrailerValue, b'\r') => self.spend_trailer(At::TrailerLf)?,
            (At::TrailerValue, _) if is_text(byte) => self.spend_trailer(At::TrailerValue)?,
            (At::TrailerValue, _) => {
                return Err(FramingError::Chunk("a control character in a trailer field"));
            }
            (At::TrailerLf, b'\n') => self.spend_trailer(At::TrailerStart)?,
            (At::LastLf, b'\n') => At::End,
            (At::TrailerLf | At::LastLf, _) => return Err(NO_LF),

            (At::Data | At::End, _) => unreachable!("`advance` passes data by length and stops at the end"),
        })
    }

    fn spend_extension(&mut self, at: At) -> Result<At, FramingError> {
        self.spent += 1;
        let max_bytes = self.max_extension_bytes;
        if self.spent > max_bytes { Err(FramingError::ChunkExtensionTooLong { max_bytes }) } else { Ok(at) }
    }

    fn spend_trailer(&mut self, at: At) -> Result<At, FramingError> {
        self.spent += 1;
        let max_bytes = self.max_trailer_bytes;
        if self.spent > max_bytes { Err(FramingError::TrailersTooLarge { max_bytes }) } else { Ok(at) }
    }
}

/// RFC 9110 section 5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in a field value (RFC 9110 section 5.5).
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}
