//! What a connection to the Peer's one port speaks, told from its first bytes (SPEC F5).
//!
//! ```text
//! 0x16 0x03 …            TLS: wait for the whole ClientHello, in any number of pieces and records
//! 0x05                   SOCKS5 (RFC 1928)
//! "PRI * HTTP/2.0 …"     HTTP/2 with prior knowledge (RFC 9113 section 3.4)
//! "PROXY T", "PROXY U",
//! CR LF CR LF NUL …      a PROXY header, which is read ahead of this where it is believed: not for this port
//! tchar+ SP              HTTP/1: every method of RFC 9110, also ones nobody has heard of
//! anything else          not for this port
//! ```
//!
//! [`sniff`] is a function of the bytes alone: the caller peeks, asks, and on [`Sniffed::Incomplete`] asks
//! again with more. Nothing is consumed, so what was peeked is forwarded or parsed from its first byte. It
//! decides which language is spoken, not whether it is spoken well: an HTTP/1 head is judged by
//! [`RequestHeads`](crate::RequestHeads), so that a malformed one is answered in HTTP. It knows no routes,
//! and it does not know how long to wait: a client that stays silent (as clients of protocols in which the
//! server speaks first do) is the caller's to time out.

mod host;
mod http;
mod tls;

pub use host::{BadHost, Host};
pub(crate) use http::{H2_PREFACE, PROXY_V1, PROXY_V2};
pub use tls::{ClientHello, PEER_ALPNS};

/// The first byte of every SOCKS5 message.
pub(crate) const SOCKS5_VERSION: u8 = 5;

/// How many first bytes of a connection are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SniffLimits {
    /// The most bytes on the wire until a ClientHello is whole, record headers included. Default 64 KiB: a
    /// hello with post-quantum key shares is about 2 KiB and with a long resumption ticket below 20 KiB; one
    /// copy buffer holds it all.
    pub max_client_hello_bytes: usize,
    /// The longest HTTP method. Default 32: the longest registered one (UPDATEREDIRECTREF) has 17 letters,
    /// and a stream of token characters without an end must not be waited for.
    pub max_method_bytes: usize,
}

impl Default for SniffLimits {
    fn default() -> Self {
        SniffLimits { max_client_hello_bytes: 64 * 1024, max_method_bytes: 32 }
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// Too few to tell: ask again with more. Ends at the latest when [`SniffLimits`] are reached.
    Incomplete,
    /// A whole ClientHello: a peer link ([`ClientHello::is_peer_link`]) or a client to be routed by its SNI.
    Tls(ClientHello),
    /// An HTTP/1 request, good or bad.
    Http1,
    /// The whole HTTP/2 connection preface.
    H2c,
    /// A SOCKS5 client's greeting, good or bad.
    Socks5,
    /// Nothing this port serves.
    Unknown(Unrecognised),
}

/// Why first bytes are nothing this port serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unrecognised {
    /// A protocol without a name in it; it needs a port bound to one service.
    #[error(
        "the first bytes are neither TLS, HTTP nor SOCKS5: such a protocol names no service, bind a port to it"
    )]
    Protocol,
    /// A PROXY header from somebody who is not believed.
    #[error("a PROXY header from a source that proxy_protocol_from does not list")]
    ProxyHeader,
    /// TLS, but the first message is no well-formed ClientHello.
    #[error("not a ClientHello: {0}")]
    ClientHello(&'static str),
    /// TLS, but the ClientHello is longer than [`SniffLimits::max_client_hello_bytes`].
    #[error("the ClientHello is longer than {max_bytes} bytes")]
    ClientHelloTooLong {
        /// The bound.
        max_bytes: usize,
    },
}

/// Tells what `bytes`, all that came on a connection so far, are the beginning of.
///
/// # Examples
///
/// ```
/// use p2p_peer_core::{Sniffed, SniffLimits, sniff};
///
/// let limits = SniffLimits::default();
/// assert_eq!(sniff(b"PATC", &limits), Sniffed::Incomplete);
/// assert_eq!(sniff(b"PATCH /a HTTP/1.1\r\n", &limits), Sniffed::Http1);
/// ```
pub fn sniff(bytes: &[u8], limits: &SniffLimits) -> Sniffed {
    match bytes.first() {
        None => Sniffed::Incomplete,
        Some(&tls::RECORD_HANDSHAKE) => tls::sniff(bytes, limits),
        Some(&SOCKS5_VERSION) => Sniffed::Socks5,
        Some(_) => http::sniff(bytes, limits),
    }
}
