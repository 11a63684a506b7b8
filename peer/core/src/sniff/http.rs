//! HTTP by its first bytes: a method and a space, or the HTTP/2 preface; and the two headers of the PROXY protocol,
//! which begin like HTTP.

use super::{SniffLimits, Sniffed, Unrecognised};

/// What a client sends first when it knows that HTTP/2 is spoken without TLS (RFC 9113 section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a PROXY header of version 1 begins; what follows is `TCP4`, `TCP6` or `UNKNOWN`.
pub(crate) const PROXY_V1: &[u8] = b"PROXY ";
/// How one of version 2 begins.
pub(crate) const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// `bytes` is not empty.
pub(super) fn sniff(bytes: &[u8], limits: &SniffLimits) -> Sniffed {
    if bytes.starts_with(H2_PREFACE) {
        return Sniffed::H2c;
    }
    if H2_PREFACE.starts_with(bytes) {
        return Sniffed::Incomplete;
    }
    if bytes.starts_with(PROXY_V2) {
        return Sniffed::Unknown(Unrecognised::ProxyHeader);
    }
    if PROXY_V2.starts_with(bytes) {
        return Sniffed::Incomplete;
    }
    // No target of a request begins so, not even of a method that is called PROXY.
    match bytes.strip_prefix(PROXY_V1) {
        Some([]) => return Sniffed::Incomplete,
        Some([b'T' | b'U', ..]) => return Sniffed::Unknown(Unrecognised::ProxyHeader),
        _ => {}
    }
    // RFC 9112 section 2.2: an empty line ahead of a request is to be ignored.
    let bytes = match bytes {
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let longest = &bytes[..bytes.len().min(limits.max_method_bytes + 1)];
    match longest.iter().position(|byte| !is_tchar(*byte)) {
        Some(at) if at > 0 && longest[at] == b' ' => Sniffed::Http1,
        None if longest.len() <= limits.max_method_bytes => Sniffed::Incomplete,
        _ => Sniffed::Unknown(Unrecognised::Protocol),
    }
}

/// RFC 9110 section 5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
