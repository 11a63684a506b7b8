//! SOCKS5 as far as a Peer speaks it (RFC 1928): CONNECT to a service by its name, without authentication.
//!
//! ```text
//! client: 05 n methods ─► 05 00 ─► client: 05 01 00 03 name port ─► open the service ─► 05 00 ... ─► bytes
//!                          05 ff: no method suits                     else 05 and why not
//! ```
//!
//! A service has a name, and only what is registered can be reached (SPEC F5). So a target given as an address
//! is refused with the code for it, and clients must leave the look-up of names to the proxy (`socks5h` in
//! curl). The port says nothing: a service is one backend. Both parsers are functions of the bytes alone.

use p2p_common::ErrorCode;
use p2p_common::service::ServiceName;

use crate::sniff::SOCKS5_VERSION;

const NO_AUTHENTICATION: u8 = 0x00;
const COMMAND_CONNECT: u8 = 0x01;
const ADDRESS_IPV4: u8 = 0x01;
const ADDRESS_NAME: u8 = 0x03;
const ADDRESS_IPV6: u8 = 0x04;
const PORT_BYTES: usize = 2;

/// A message of a client, taken off the front of what it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocksMessage<T> {
    /// Its length.
    pub bytes: usize,
    /// What it says.
    pub says: T,
}

/// What a client may be told at the end of the negotiation (RFC 1928 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksReply {
    /// The service is open: its bytes follow.
    Succeeded,
    /// Something failed that has no code of its own.
    GeneralFailure,
    /// The caller may not reach the service.
    NotAllowed,
    /// No such service, or nobody who has it is connected.
    HostUnreachable,
    /// The backend refused.
    ConnectionRefused,
    /// No answer in time.
    TimedOut,
    /// Only CONNECT is served.
    CommandNotSupported,
    /// Only names are.
    AddressTypeNotSupported,
}

impl SocksReply {
    /// The reply to a forward that failed with `code`: the one place that maps codes to SOCKS.
    pub const fn of(code: ErrorCode) -> SocksReply {
        match code {
            ErrorCode::Unauthenticated | ErrorCode::Forbidden | ErrorCode::NotGranted => {
                SocksReply::NotAllowed
            }
            ErrorCode::NotFound
            | ErrorCode::ServiceUnknown
            | ErrorCode::ServiceDown
            | ErrorCode::OwnerOffline => SocksReply::HostUnreachable,
            ErrorCode::BackendRefused => SocksReply::ConnectionRefused,
            ErrorCode::BackendTimeout => SocksReply::TimedOut,
            _ => SocksReply::GeneralFailure,
        }
    }

    const fn number(self) -> u8 {
        match self {
            SocksReply::Succeeded => 0x00,
            SocksReply::GeneralFailure => 0x01,
            SocksReply::NotAllowed => 0x02,
            SocksReply::HostUnreachable => 0x04,
            SocksReply::ConnectionRefused => 0x05,
            // "TTL expired"; clients show it as a time-out.
            SocksReply::TimedOut => 0x06,
            SocksReply::CommandNotSupported => 0x07,
            SocksReply::AddressTypeNotSupported => 0x08,
        }
    }

    /// The message. No address is bound, so none is told.
    pub const fn to_bytes(self) -> [u8; 10] {
        [SOCKS5_VERSION, self.number(), 0, ADDRESS_IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// Why a client is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocksError {
    /// A message is none of SOCKS5: there is no answer.
    #[error("not SOCKS5: {0}")]
    Malformed(&'static str),
    /// It wants something that is not served: the answer says what.
    #[error("{why}")]
    Refused {
        /// The answer.
        reply: SocksReply,
        /// For the log.
        why: &'static str,
    },
}

/// The answer to a greeting: the method in use, or that none suits.
pub const fn socks_method(no_authentication: bool) -> [u8; 2] {
    [SOCKS5_VERSION, if no_authentication { NO_AUTHENTICATION } else { 0xff }]
}

/// The first message of a client; it says whether the client goes on without authentication. `None` if it is not
/// whole yet.
///
/// # Errors
/// When it is another protocol's.
pub fn socks_greeting(bytes: &[u8]) -> Result<Option<SocksMessage<bool>>, SocksError> {
    match bytes {
        [version, ..] if *version != SOCKS5_VERSION => Err(SocksError::Malformed("the version is not 5")),
        [_, 0, ..] => Err(SocksError::Malformed("the client offers no method")),
        [_, count, rest @ ..] => {
            let methods = rest.get(..usize::from(*count));
            Ok(methods.map(|methods| SocksMessage {
                bytes: 2 + methods.len(),
                says: methods.contains(&NO_AUTHENTICATION),
            }))
        }
        _ => Ok(None),
    }
}

/// The second message of a client: the service it wants. `None` if it is not whole yet.
///
/// # Errors
/// When it is malformed or not served.
pub fn socks_request(bytes: &[u8]) -> Result<Option<SocksMessage<ServiceName>>, SocksError> {
    let refused = |reply, why| Err(SocksError::Refused { reply, why });
    let (kind, rest) = match bytes {
        [version, ..] if *version != SOCKS5_VERSION => {
            return Err(SocksError::Malformed("the version is not 5"));
        }
        [_, _, reserved, ..] if *reserved != 0 => {
            return Err(SocksError::Malformed("what is reserved is not 0"));
        }
        [_, COMMAND_CONNECT, _, kind, rest @ ..] => (*kind, rest),
        [_, _, _, _, ..] => return refused(SocksReply::CommandNotSupported, "only CONNECT is served"),
        _ => return Ok(None),
    };
    let name = match (kind, rest) {
        (ADDRESS_IPV4 | ADDRESS_IPV6, _) => {
            return refused(
                SocksReply::AddressTypeNotSupported,
                "services have names, not addresses: let the proxy resolve them (curl: --socks5-hostname)",
            );
        }
        (ADDRESS_NAME, []) => return Ok(None),
        (ADDRESS_NAME, [0, ..]) => return Err(SocksError::Malformed("the name is empty")),
        (ADDRESS_NAME, [length, rest @ ..]) => match rest.get(..usize::from(*length) + PORT_BYTES) {
            Some(name) => &name[..usize::from(*length)],
            None => return Ok(None),
        },
        _ => return refused(SocksReply::AddressTypeNotSupported, "the address has a type that nobody knows"),
    };
    match std::str::from_utf8(name).ok().and_then(|text| text.parse().ok()) {
        Some(service) => Ok(Some(SocksMessage { bytes: 5 + name.len() + PORT_BYTES, says: service })),
        None => refused(SocksReply::HostUnreachable, "no service can have this name"),
    }
}
