//! [`Host`]: whom a client asks for, out of a Host header or a request target.

use std::net::Ipv6Addr;

use p2p_common::service::ServiceName;

/// The host a client named, in the one form that is compared: lower-case, without port and final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name; an IPv4 address is one too.
    Name(ServiceName),
    /// An IPv6 address out of brackets. No service is called so, but it is a valid Host.
    Ipv6(Ipv6Addr),
}

/// Why a text is not a host with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHost(pub(crate) &'static str);

impl Host {
    /// The service asked for; `None` for an IPv6 address, which names none.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Host::Name(name) => Some(name),
            Host::Ipv6(_) => None,
        }
    }

    /// Reads `host`, `host:port` or `[v6]:port`. The port may be empty (RFC 3986) and is dropped.
    ///
    /// Narrower than RFC 3986: a name has the characters of a [`ServiceName`], no percent-encoding and no
    /// sub-delimiters. None of these can be part of a service's name, and a comma or a `@` is what a merged
    /// or disguised Host has.
    ///
    /// # Errors
    ///
    /// With the rule that is broken.
    pub fn from_authority(authority: &[u8]) -> Result<Host, BadHost> {
        if let Some(literal) = authority.strip_prefix(b"[") {
            let end = literal
                .iter()
                .position(|byte| *byte == b']')
                .ok_or(BadHost("an IPv6 address has no closing bracket"))?;
            check_port(&literal[end + 1..])?;
            return std::str::from_utf8(&literal[..end])
                .ok()
                .and_then(|text| text.parse().ok())
                .map(Host::Ipv6)
                .ok_or(BadHost("there is no IPv6 address between the brackets"));
        }
        let colon = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
        let (name, port) = authority.split_at(colon);
        check_port(port)?;
        std::str::from_utf8(name).ok().and_then(|text| text.parse().ok()).map(Host::Name).ok_or(BadHost(
            "a host is 1 to 253 letters, digits, '.', '-' and '_', or an IPv6 address in brackets",
        ))
    }
}

/// Nothing, or a colon and what fits a port.
fn check_port(text: &[u8]) -> Result<(), BadHost> {
    const BAD: BadHost = BadHost("what follows the host is not a port");
    let digits = match text {
        [] => return Ok(()),
        [b':', digits @ ..] => digits,
        _ => return Err(BAD),
    };
    let port = digits.iter().try_fold(0u32, |port, digit| match digit {
        b'0'..=b'9' => Some(port * 10 + u32::from(digit - b'0')).filter(|port| *port <= 65_535),
        _ => None,
    });
    port.map(|_| ()).ok_or(BAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Host {
        Host::Name(text.parse().unwrap())
    }

    #[test]
    fn port_case_and_final_dot_do_not_matter() {
        for text in ["Web.Example", "web.example.", "WEB.example:80", "web.example.:8080", "web.example:"] {
            assert_eq!(Host::from_authority(text.as_bytes()), Ok(name("web.example")), "{text}");
        }
        assert_eq!(Host::from_authority(b"127.0.0.1:80"), Ok(name("127.0.0.1")));
        assert_eq!(Host::from_authority(b"a:65535"), Ok(name("a")));
        assert_eq!(Host::from_authority(b"a:000000080"), Ok(name("a")));
    }

    #[test]
    fn ipv6_is_kept_whole() {
        for text in ["[::1]", "[::1]:80", "[0:0:0:0:0:0:0:1]:", "[::0001]:65535"] {
            let host = Host::from_authority(text.as_bytes()).unwrap();
            assert_eq!(host, Host::Ipv6(Ipv6Addr::LOCALHOST), "{text}");
            assert_eq!(host.service(), None);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = "x".repeat(254);
        for text in [
            "",
            ".",
            ":80",
            "a..b",
            ".a",
            "a b",
            "a,b",
            "a/b",
            "u@a",
            "a%2eb",
            "a:b",
            "a:80:90",
            "a:65536",
            "a:-1",
            "a:+1",
            "a: 80",
            "::1",
            "fe80::1",
            "[::1",
            "[::1]80",
            "[::1]]",
            "[]",
            "[web]",
            "[fe80::1%25eth0]",
            "[v1.a]",
            "a\0",
            "a\t",
            "\u{e9}",
            "a?b",
            "a#b",
            "a\\b",
            long.as_str(),
        ] {
            assert!(Host::from_authority(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Host::from_authority(b"a\xff").is_err());
    }
}
