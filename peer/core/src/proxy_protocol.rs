//! The header in which a load balancer says whose connection it passes on: the PROXY protocol of HAProxy,
//! versions 1 (text) and 2 (binary).
//!
//! It is believed from listed sources alone (SPEC F5), and those must send it: a source that may or may not send
//! one would let its clients speak for it. [`proxy_header`] is a function of the bytes alone, asked again with
//! more. What the header says beyond the client's address (destination, TLS details) is passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sniff::{PROXY_V1, PROXY_V2};

/// The longest header of version 1, its line end included.
const V1_MAX_BYTES: usize = 107;
const V2_FIXED_BYTES: usize = 16;
/// The longest header of version 2. The addresses take 216 bytes at most; the rest is for what balancers like to
/// add, a client certificate's name say. The format's own bound is 64 KiB.
const V2_MAX_BYTES: usize = 4_096;

/// A header, to be taken off the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its length.
    pub bytes: usize,
    /// Whose connection it is; `None` when it is the balancer's own (a health check), or of no TCP client.
    pub source: Option<SocketAddr>,
}

/// Why there is no header where one must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this source must send a PROXY header: {0}")]
pub struct BadProxyHeader(&'static str);

/// The header at the front of `bytes`; `None` if it is not whole yet.
///
/// # Errors
/// When there is none, or it is malformed.
pub fn proxy_header(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    if bytes.starts_with(PROXY_V1) {
        version1(bytes)
    } else if bytes.starts_with(PROXY_V2) {
        version2(bytes)
    } else if PROXY_V1.starts_with(bytes) || PROXY_V2.starts_with(bytes) {
        Ok(None)
    } else {
        Err(BadProxyHeader("it sent something else"))
    }
}

/// `PROXY TCP4 source destination port port CR LF`, each part after one blank.
fn version1(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    const BAD: BadProxyHeader = BadProxyHeader("its line is malformed");
    let window = &bytes[..bytes.len().min(V1_MAX_BYTES)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        let whole = window.len() == V1_MAX_BYTES;
        return if whole { Err(BadProxyHeader("its line is longer than 107 bytes")) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(BAD)?;
    let line = std::str::from_utf8(&line[PROXY_V1.len()..]).map_err(|_| BAD)?;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Some(ProxyHeader { bytes: end + 1, source: None }));
    }
    let words: [&str; 4] = words.collect::<Vec<_>>().try_into().map_err(|_| BAD)?;
    let [source, destination, source_port, destination_port] = words;
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            Some("TCP4") => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            Some("TCP6") => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let source = ip(source).zip(port(source_port));
    let (ip, port) = source.filter(|_| ip(destination).zip(port(destination_port)).is_some()).ok_or(BAD)?;
    Ok(Some(ProxyHeader { bytes: end + 1, source: Some(SocketAddr::new(ip, port)) }))
}

/// Digits alone, without leading zeros.
fn port(text: &str) -> Option<u16> {
    let canonical = text == "0" || text.starts_with(|c: char| c.is_ascii_digit() && c != '0');
    if canonical { text.parse().ok() } else { None }
}

/// Signature, version and command, family and transport, length; then as many bytes: addresses and extensions.
fn version2(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let fixed = &bytes[PROXY_V2.len()..bytes.len().min(V2_FIXED_BYTES)];
    let local = match fixed.first() {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(BadProxyHeader("its version or command is unknown")),
    };
    let addresses = match fixed.get(1) {
        None => return Ok(None),
        Some(0x00) => 0,
        Some(0x11) => 12,
        Some(0x21) => 36,
        Some(0x31) => 216,
        Some(0x12 | 0x22 | 0x32) => return Err(BadProxyHeader("it is about datagrams")),
        Some(_) => return Err(BadProxyHeader("its family of addresses is unknown")),
    };
    let [family, high, low] = match fixed[1..].first_chunk() {
        Some(rest) => *rest,
        None => return Ok(None),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < addresses && !local {
        return Err(BadProxyHeader("it is too short for its addresses"));
    }
    let whole = V2_FIXED_BYTES + length;
    if whole > V2_MAX_BYTES {
        return Err(BadProxyHeader("it is longer than 4,096 bytes"));
    }
    let Some(body) = bytes.get(V2_FIXED_BYTES..whole) else { return Ok(None) };
    let source = match family {
        _ if local => None,
        0x11 => {
            let [a, b, c, d, .., e, f, _, _] = *body.first_chunk::<12>().expect("its length was checked");
            Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([e, f]))))
        }
        0x21 => {
            let (ip, rest) = body.split_first_chunk::<16>().expect("its length was checked");
            Some(SocketAddr::from((*ip, u16::from_be_bytes([rest[16], rest[17]]))))
        }
        _ => None,
    };
    Ok(Some(ProxyHeader { bytes: whole, source }))
}
