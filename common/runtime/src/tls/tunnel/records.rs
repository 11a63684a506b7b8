//! Records of TLS 1.3, sealed and opened (RFC 8446, section 5): pure, no sockets.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

/// Type, version and length.
pub(super) const HEADER_BYTES: usize = 5;
/// Plaintext of a record at most.
pub(super) const RECORD_MAX_BYTES: usize = 1 << 14;
/// The tag of every suite of TLS 1.3 that is in use.
const TAG_BYTES: usize = 16;
/// What sealing adds inside: the content type and the tag.
const TAIL_BYTES: usize = 1 + TAG_BYTES;
/// A full record as we send it.
pub(super) const SEALED_MAX_BYTES: usize = HEADER_BYTES + RECORD_MAX_BYTES + TAIL_BYTES;
/// What may follow a header: others may pad.
const CIPHERTEXT_MAX_BYTES: usize = RECORD_MAX_BYTES + 256;
/// All sealed records claim to be of TLS 1.2 and to hold application data (RFC 8446, 5.2).
const SEALED_HEADER: [u8; 3] = [23, 3, 3];

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// What is wrong with a record. The connection is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("a record that is not encrypted")]
    Plain,
    #[error("a record of {0} bytes")]
    TooLong(usize),
    #[error("a record that was not sealed with our keys")]
    Forged,
    #[error("a record of unknown content")]
    UnknownContent,
    #[error("too many records under one key")]
    Exhausted,
    #[error("keys of a suite that is not in use")]
    Suite,
}

/// The keys of one direction, and how many records they were used for.
pub(super) struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Keys {
    /// Keys that were agreed on, and how many records they have been used for.
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Suite),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Suite)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Suite)?;
        Ok(Keys { key: LessSafeKey::new(key), iv, sequence })
    }

    /// For how many records they were used.
    pub(super) fn used(&self) -> u64 {
        self.sequence
    }

    /// Each record has a nonce of its own, by its number (RFC 8446, 5.3).
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals `plain`, at most [`RECORD_MAX_BYTES`], into the front of `into`; how long the record is.
    pub(super) fn seal(
        &mut self,
        content: Content,
        plain: &[u8],
        into: &mut [u8],
    ) -> Result<usize, RecordError> {
        let nonce = self.nonce()?;
        let record = HEADER_BYTES + plain.len() + TAIL_BYTES;
        let header = header(plain.len());
        let (front, rest) = into[..record].split_at_mut(HEADER_BYTES);
        front.copy_from_slice(&header);
        let (cipher, tail) = rest.split_at_mut(plain.len());
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(header), plain, cipher, &[content as u8], tail)
            .map_err(|_| RecordError::Exhausted)?;
        Ok(record)
    }

    /// Seals the `length` bytes that lie in `record` where a record's plaintext does; how long the record is.
    pub(super) fn seal_in_place(
        &mut self,
        content: Content,
        length: usize,
        record: &mut [u8],
    ) -> Result<usize, RecordError> {
        let nonce = self.nonce()?;
        let header = header(length);
        let (front, rest) = record[..HEADER_BYTES + length + TAIL_BYTES].split_at_mut(HEADER_BYTES);
        front.copy_from_slice(&header);
        let (cipher, tail) = rest.split_at_mut(length);
        self.key
            .seal_in_place_scatter(nonce, Aad::from(header), cipher, &[content as u8], tail)
            .map_err(|_| RecordError::Exhausted)?;
        Ok(HEADER_BYTES + length + TAIL_BYTES)
    }

    /// Opens a whole record in place: what it holds, and which of its bytes.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(Content, &'a mut [u8]), RecordError> {
        let nonce = self.nonce()?;
        let (front, sealed) = record.split_at_mut(HEADER_BYTES);
        let header: [u8; HEADER_BYTES] = (&*front).try_into().expect("split at its length");
        let plain =
            self.key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| RecordError::Forged)?;
        // Zeros behind the content type are padding (RFC 8446, 5.4).
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::UnknownContent)?;
        let content = match plain[end] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(RecordError::UnknownContent),
        };
        if end > RECORD_MAX_BYTES {
            return Err(RecordError::TooLong(end));
        }
        Ok((content, &mut plain[..end]))
    }
}

/// How long the sealed record at the front of `bytes` is; `None` while its header is not whole.
pub(super) fn sealed_length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[0] != SEALED_HEADER[0] {
        return Err(RecordError::Plain);
    }
    if !(TAIL_BYTES..=CIPHERTEXT_MAX_BYTES).contains(&length) {
        return Err(RecordError::TooLong(length));
    }
    Ok(Some(HEADER_BYTES + length))
}

fn header(plain_bytes: usize) -> [u8; HEADER_BYTES] {
    let length = u16::try_from(plain_bytes + TAIL_BYTES).expect("a record is shorter than 2^16");
    let [high, low] = length.to_be_bytes();
    [SEALED_HEADER[0], SEALED_HEADER[1], SEALED_HEADER[2], high, low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn keys() -> Keys {
        let secrets =
            ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::new([9; NONCE_LEN]) };
        Keys::new((5, secrets)).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_once_and_in_order() {
        let (mut seal, mut open) = (keys(), keys());
        let mut wire = vec![0; 2 * SEALED_MAX_BYTES];
        let first = seal.seal(Content::Data, &[1; RECORD_MAX_BYTES], &mut wire).unwrap();
        assert_eq!(first, SEALED_MAX_BYTES);
        let second = seal.seal(Content::Alert, &[1, 0], &mut wire[first..]).unwrap();
        for have in 0..HEADER_BYTES {
            assert_eq!(sealed_length(&wire[..have]), Ok(None));
        }
        assert_eq!(sealed_length(&wire), Ok(Some(first)));
        assert_eq!(sealed_length(&wire[first..]), Ok(Some(second)));

        let again = wire.clone();
        assert_eq!(open.open(&mut wire[..first]), Ok((Content::Data, &mut [1; RECORD_MAX_BYTES][..])));
        let mut replayed = again[..first].to_vec();
        assert_eq!(keys().open(&mut again.clone()[first..first + second]), Err(RecordError::Forged));
        assert_eq!(open.open(&mut wire[first..first + second]), Ok((Content::Alert, &mut [1, 0][..])));
        assert_eq!(open.open(&mut replayed), Err(RecordError::Forged));
        assert_eq!((seal.used(), open.used()), (7, 8));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut wire = vec![0; 64];
        let length = keys().seal(Content::Data, b"data", &mut wire).unwrap();
        for bit in 0..length * 8 {
            let mut flipped = wire[..length].to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys().open(&mut flipped), Err(RecordError::Forged), "bit {bit}");
        }
    }

    #[test]
    fn lengths_and_types_are_bounded() {
        for (header, expected) in [
            ([23, 3, 3, 0, 17], Ok(Some(22))),
            ([23, 3, 3, 0, 16], Err(RecordError::TooLong(16))),
            ([23, 3, 3, 0x41, 0], Ok(Some(5 + 0x4100))),
            ([23, 3, 3, 0x41, 1], Err(RecordError::TooLong(0x4101))),
            ([22, 3, 3, 0, 40], Err(RecordError::Plain)),
            ([20, 3, 3, 0, 1], Err(RecordError::Plain)),
        ] {
            assert_eq!(sealed_length(&header), expected);
        }
        // Padded, padding alone, and content that does not exist.
        for (plain, content, expected) in [
            (&b"data\x17\0\0"[..], 0, Ok((Content::Data, &mut b"data".to_vec()[..]))),
            (&[0; 9], 0, Err(RecordError::UnknownContent)),
            (b"data", 99, Err(RecordError::UnknownContent)),
        ] {
            let mut keys = keys();
            let nonce = keys.nonce().unwrap();
            let mut wire = [&header(plain.len())[..], plain, &[content]].concat();
            let aad = Aad::from(header(plain.len()));
            let tag = keys.key.seal_in_place_separate_tag(nonce, aad, &mut wire[HEADER_BYTES..]).unwrap();
            wire.extend_from_slice(tag.as_ref());
            assert_eq!(self::keys().open(&mut wire), expected);
        }
    }
}
