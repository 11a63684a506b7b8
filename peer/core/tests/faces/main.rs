//! Scenarios for the faces of the one port beside HTTP/1 and TLS: h2c, SOCKS5 and the PROXY protocol.

mod h2c;
mod proxy_protocol;
mod socks;

/// The bytes of a capture in `testdata`.
fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
