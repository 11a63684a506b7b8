//! HTTP by its first bytes: a method and a space, or the HTTP/2 preface.

use super::{SniffLimits, Sniffed, Unrecognised};

/// What a client sends first when it knows that HTTP/2 is spoken without TLS (RFC 9113 section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `bytes` is not empty.
pub(super) fn sniff(bytes: &[u8], limits: &SniffLimits) -> Sniffed {
    if bytes.starts_with(H2_PREFACE) {
        return Sniffed::H2c;
    }
    if H2_PREFACE.starts_with(bytes) {
        return Sniffed::Incomplete;
    }
    // RFC 9112 section 2.2: an empty line ahead of a request is to be ignored.
    let bytes = match bytes {
        b"\r" | b"\r\n" => return Sniffed::Incomplete,
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
