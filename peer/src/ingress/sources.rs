//! [`SourceRanges`]: whose connections are treated in a certain way, by the address they come from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Ranges of source addresses, as `10.0.0.0/8`, `fd00::/8` or a single address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRanges(Vec<(IpAddr, u8)>);

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no range of addresses: expected an IP address or one with its prefix length, as 10.0.0.0/8"
)]
pub struct BadRange(String);

impl SourceRanges {
    /// This host alone.
    pub fn loopback() -> Self {
        SourceRanges(vec![(Ipv4Addr::new(127, 0, 0, 0).into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)])
    }

    /// Nobody.
    pub fn none() -> Self {
        SourceRanges(Vec::new())
    }

    /// From texts.
    ///
    /// # Errors
    /// With the first that is no range.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadRange> {
        texts.into_iter().map(parse_range).collect::<Result<_, _>>().map(SourceRanges)
    }

    /// Whether `ip` lies in one of them; an IPv4 address written as IPv6 counts as what it is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|(range, bits)| match (range, ip) {
            (IpAddr::V4(range), IpAddr::V4(ip)) => {
                same_prefix(range.to_bits().into(), ip.to_bits().into(), *bits, 32)
            }
            (IpAddr::V6(range), IpAddr::V6(ip)) => same_prefix(range.to_bits(), ip.to_bits(), *bits, 128),
            _ => false,
        })
    }
}

impl fmt::Display for SourceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect();
        f.write_str(&texts.join(","))
    }
}

fn parse_range(text: &str) -> Result<(IpAddr, u8), BadRange> {
    let bad = || BadRange(text.chars().take(64).collect());
    let (ip, bits) = match text.trim().split_once('/') {
        Some((ip, bits)) => (ip, Some(bits)),
        None => (text.trim(), None),
    };
    let ip = IpAddr::from_str(ip).map_err(|_| bad())?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), |bits| bits.parse::<u8>().map_err(|_| bad()))?;
    if bits > most { Err(bad()) } else { Ok((ip, bits)) }
}

fn same_prefix(a: u128, b: u128, bits: u8, width: u32) -> bool {
    let ignored = width - u32::from(bits);
    ignored >= 128 || (a ^ b) >> ignored == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say() {
        let ranges = SourceRanges::parse(["10.0.0.0/8", "192.0.2.7", "fd00::/8"]).unwrap();
        for (ip, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.1.1.1", true),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(ranges.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        let all = SourceRanges::parse(["0.0.0.0/0", "::/0"]).unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()) && all.contains("2001:db8::1".parse().unwrap()));
        let loopback = SourceRanges::loopback();
        assert!(loopback.contains("127.9.9.9".parse().unwrap()) && loopback.contains("::1".parse().unwrap()));
        assert!(!loopback.contains("10.0.0.1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "localhost"] {
            assert!(SourceRanges::parse([bad]).is_err(), "{bad:?}");
        }
    }
}
