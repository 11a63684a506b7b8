//! What the fuzz targets need of tunnels: a stream behind a handshake that did not take place, and the other side's
//! hand. In no other build, but for the unit tests', so that it keeps compiling.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers::Buffer;
use super::handshake::Rekey;
use super::records::Keys;
use super::{Opened, REKEY_RECORDS, TunnelStream};

const KEY: [u8; 32] = [7; 32];
const IV: [u8; NONCE_LEN] = [9; NONCE_LEN];
/// More does not fit into the length of a record.
const PLAIN_BYTES_MAX: usize = u16::MAX as usize - 64;

fn secrets() -> (u64, ConnectionTrafficSecrets) {
    (0, ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from(KEY), iv: Iv::new(IV) })
}

fn keys() -> Keys {
    Keys::new(secrets()).expect("keys of a suite in use")
}

/// Every update begins again with the same keys.
struct SameKeys;

impl Rekey for SameKeys {
    fn next_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        Ok(secrets())
    }

    fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        Ok(secrets())
    }
}

/// The other side: it has the keys and seals what it likes.
#[derive(Debug, Default)]
pub struct Sealer {
    sequence: u64,
}

impl Sealer {
    /// At the beginning.
    pub fn new() -> Self {
        Sealer::default()
    }

    /// Appends a record of `plain`, cut to what a record can say, with so many zeros behind its type of content.
    pub fn seal(&mut self, content: u8, plain: &[u8], padding: usize, into: &mut Vec<u8>) {
        let plain = &plain[..plain.len().min(PLAIN_BYTES_MAX)];
        let key = UnboundKey::new(&AES_256_GCM, &KEY).expect("a key of its length");
        let mut nonce = IV;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        let mut sealed = [plain, &[content], &vec![0; padding]].concat();
        let [high, low] = u16::try_from(sealed.len() + 16).expect("it was cut").to_be_bytes();
        let header = [23, 3, 3, high, low];
        LessSafeKey::new(key)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed)
            .expect("it is short enough");
        into.extend_from_slice(&header);
        into.extend_from_slice(&sealed);
        // The reader begins with new keys behind an update.
        let updates = content == 22 && matches!(plain, [24, 0, 0, 1, 0 | 1]);
        self.sequence = if updates { 0 } else { self.sequence + 1 };
    }
}

/// A connection that gives at most `step` bytes at a time, and takes everything.
struct Wire<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.step.min(self.rest.len()).min(buf.remaining());
        let (now, rest) = self.rest.split_at(count);
        buf.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads all of `wire`, which comes in pieces of `step` bytes: the data in it, and whether it ended well.
pub fn read(wire: &[u8], step: usize) -> (Vec<u8>, bool) {
    let mut stream = TunnelStream {
        io: Wire { rest: wire, step },
        rekey: Box::new(SameKeys),
        send: keys(),
        receive: keys(),
        incoming: Buffer::default(),
        opened: Opened::default(),
        outgoing: Buffer::default(),
        owes_update: false,
        ended: false,
        closed: false,
        rekey_records: REKEY_RECORDS,
    };
    let mut cx = Context::from_waker(Waker::noop());
    let mut data = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let mut buf = ReadBuf::new(&mut buffer);
        match Pin::new(&mut stream).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (data, true),
            Poll::Ready(Ok(())) => data.extend_from_slice(buf.filled()),
            Poll::Ready(Err(_)) => return (data, false),
            Poll::Pending => unreachable!("the wire always has an answer"),
        }
        // An answer, so that an update that is owed is sent.
        if let Poll::Ready(Err(_)) = Pin::new(&mut stream).poll_write(&mut cx, b"answer") {
            return (data, false);
        }
    }
}
