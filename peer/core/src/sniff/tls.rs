//! The ClientHello of a TLS connection (RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301 section 3.1).
//!
//! Only what routing needs is read: the server name and the ALPN list. The hello is not checked as a server
//! would check it; who terminates TLS does that. Its structure is: a hello whose lengths do not agree is
//! refused rather than guessed at, because the routed-to server might read another name out of it.

use std::borrow::Cow;
use std::fmt;

use p2p_common::service::ServiceName;

use super::{SniffLimits, Sniffed, Unrecognised};

/// The ALPN protocols of other Peers: tunnels and mesh links; everything else on this port is a client.
pub const PEER_ALPNS: [&[u8]; 2] = [b"p2p-tunnel/1", b"p2p-link/1"];

/// The content type of a handshake record: the first byte of every TLS connection.
pub(super) const RECORD_HANDSHAKE: u8 = 22;
const RECORD_HEADER_BYTES: usize = 5;
/// RFC 8446 section 5.1.
const RECORD_MAX_BYTES: usize = 1 << 14;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const HANDSHAKE_HEADER_BYTES: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const NAME_TYPE_HOST: u8 = 0;

/// What routing needs of a ClientHello.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientHello {
    server_name: Option<ServiceName>,
    /// The protocol name list as on the wire: each name behind its length byte; checked when it was read.
    alpn: Box<[u8]>,
}

impl ClientHello {
    /// The name the client asks for (SNI), in the form in which names are compared.
    pub fn server_name(&self) -> Option<&ServiceName> {
        self.server_name.as_ref()
    }

    /// The protocols the client offers (ALPN), the preferred one first.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Reader(&self.alpn);
        std::iter::from_fn(move || rest.vector8().ok())
    }

    /// Whether another Peer calls, and not a client.
    pub fn is_peer_link(&self) -> bool {
        self.alpn().any(|protocol| PEER_ALPNS.contains(&protocol))
    }
}

impl fmt::Debug for ClientHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHello")
            .field("server_name", &self.server_name)
            .field("alpn", &self.alpn().map(String::from_utf8_lossy).collect::<Vec<_>>())
            .finish()
    }
}

/// A rule of the structure that does not hold.
struct Malformed(&'static str);

/// `bytes` starts with [`RECORD_HANDSHAKE`].
pub(super) fn sniff(bytes: &[u8], limits: &SniffLimits) -> Sniffed {
    let max_bytes = limits.max_client_hello_bytes;
    let seen = &bytes[..bytes.len().min(max_bytes)];
    match handshake(seen, max_bytes) {
        Ok(Handshake::Whole(hello)) => match client_hello(&hello) {
            Ok(hello) => Sniffed::Tls(hello),
            Err(Malformed(why)) => Sniffed::Unknown(Unrecognised::ClientHello(why)),
        },
        Ok(Handshake::Part) if seen.len() < max_bytes => Sniffed::Incomplete,
        Ok(Handshake::Part | Handshake::TooLong) => {
            Sniffed::Unknown(Unrecognised::ClientHelloTooLong { max_bytes })
        }
        Err(Malformed(why)) => Sniffed::Unknown(Unrecognised::ClientHello(why)),
    }
}

/// The first handshake message of a connection, out of its records.
enum Handshake<'a> {
    /// Its body, all of it; copied only if it came in several records.
    Whole(Cow<'a, [u8]>),
    Part,
    TooLong,
}

fn handshake(bytes: &[u8], max_bytes: usize) -> Result<Handshake<'_>, Malformed> {
    let mut header = [0; HANDSHAKE_HEADER_BYTES];
    let mut seen = 0;
    for fragment in Records(bytes) {
        let fragment = fragment?;
        for (slot, byte) in header.iter_mut().skip(seen).zip(fragment) {
            *slot = *byte;
        }
        seen += fragment.len();
        if seen > 0 && header[0] != HANDSHAKE_CLIENT_HELLO {
            return Err(Malformed("the first message is another one"));
        }
        if seen < HANDSHAKE_HEADER_BYTES {
            continue;
        }
        let [_, high, middle, low] = header;
        let whole = HANDSHAKE_HEADER_BYTES + u32::from_be_bytes([0, high, middle, low]) as usize;
        if whole > max_bytes {
            return Ok(Handshake::TooLong);
        }
        if seen < whole {
            continue;
        }
        if fragment.len() == seen {
            return Ok(Handshake::Whole(Cow::Borrowed(&fragment[HANDSHAKE_HEADER_BYTES..whole])));
        }
        let mut joined = Vec::with_capacity(seen);
        for fragment in Records(bytes) {
            if joined.len() < whole {
                joined.extend_from_slice(fragment?);
            }
        }
        joined.truncate(whole);
        joined.drain(..HANDSHAKE_HEADER_BYTES);
        return Ok(Handshake::Whole(Cow::Owned(joined)));
    }
    Ok(Handshake::Part)
}

/// The contents of the handshake records in `.0`; of the last one what is there.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        match bytes {
            [] => None,
            [kind, ..] if *kind != RECORD_HANDSHAKE => {
                Some(Err(Malformed("another record comes before its end")))
            }
            [_, major, ..] if *major != 3 => Some(Err(Malformed("the record is of no TLS version"))),
            [_, _, _, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > RECORD_MAX_BYTES {
                    return Some(Err(Malformed("a record is empty or longer than 16 KiB")));
                }
                let (fragment, rest) = rest.split_at(length.min(rest.len()));
                self.0 = rest;
                Some(Ok(fragment))
            }
            _ => {
                debug_assert!(bytes.len() < RECORD_HEADER_BYTES, "a whole record header was matched above");
                None
            }
        }
    }
}

/// Reads the body of a ClientHello.
fn client_hello(body: &[u8]) -> Result<ClientHello, Malformed> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // legacy_version, random
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    let mut server_name = None;
    let mut alpn = None;
    // TLS 1.2 and older may end here.
    if !hello.is_empty() {
        let mut extensions = Reader(hello.vector16()?);
        hello.end()?;
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let data = Reader(extensions.vector16()?);
            let again = match kind {
                EXTENSION_SERVER_NAME => server_name.replace(read_server_name(data)?).is_some(),
                EXTENSION_ALPN => alpn.replace(read_alpn(data)?).is_some(),
                _ => false,
            };
            if again {
                return Err(Malformed("an extension comes twice"));
            }
        }
    }
    Ok(ClientHello { server_name, alpn: alpn.unwrap_or_default() })
}

fn read_server_name(mut data: Reader<'_>) -> Result<ServiceName, Malformed> {
    let mut list = Reader(data.vector16()?);
    data.end()?;
    let mut name = None;
    while !list.is_empty() {
        let kind = list.take(1)?[0];
        let text = list.vector16()?;
        if kind == NAME_TYPE_HOST && name.replace(text).is_some() {
            return Err(Malformed("it has several server names"));
        }
    }
    let name = name.ok_or(Malformed("its server name is missing"))?;
    let text = std::str::from_utf8(name).map_err(|_| Malformed("its server name is not one"))?;
    text.parse().map_err(|_| Malformed("its server name is not one"))
}

fn read_alpn(mut data: Reader<'_>) -> Result<Box<[u8]>, Malformed> {
    let list = data.vector16()?;
    data.end()?;
    let mut names = Reader(list);
    while !names.is_empty() {
        if names.vector8()?.is_empty() {
            return Err(Malformed("it offers a protocol without a name"));
        }
    }
    if list.is_empty() {
        return Err(Malformed("its protocol list is empty"));
    }
    Ok(list.into())
}

/// Takes bytes and length-prefixed vectors (RFC 8446 section 3.4) off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or(Malformed("a length goes beyond what holds it"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed("bytes are left over")) }
    }
}
