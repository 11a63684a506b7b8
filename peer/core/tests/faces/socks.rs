//! SOCKS5 clients, in whatever pieces they speak.

use p2p_common::ErrorCode;
use p2p_peer_core::{
    SniffLimits, Sniffed, SocksError, SocksMessage, SocksReply, sniff, socks_greeting, socks_method,
    socks_request,
};

/// Asks with every prefix: first `None`, then for ever the same; says from where on.
fn grow<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<Option<T>, SocksError>,
) -> (usize, Result<Option<T>, SocksError>) {
    let at = (0..=bytes.len()).find(|at| read(&bytes[..*at]) != Ok(None)).unwrap_or(bytes.len());
    let answer = read(&bytes[..at]);
    for end in at..=bytes.len() {
        assert_eq!(read(&bytes[..end]), answer, "{end} bytes of {bytes:?}");
    }
    (at, answer)
}

#[test]
fn greetings() {
    assert_eq!(sniff(b"\x05", &SniffLimits::default()), Sniffed::Socks5);
    for (bytes, length, no_authentication) in [
        (&b"\x05\x01\x00"[..], 3, true),
        (b"\x05\x03\x02\x01\x00\x05\x01\x00", 5, true),
        (b"\x05\x02\x01\x02", 4, false),
    ] {
        let message = SocksMessage { bytes: length, says: no_authentication };
        assert_eq!(grow(bytes, socks_greeting), (length, Ok(Some(message))));
    }
    for bytes in [&b"\x04\x01\x00\x50"[..], b"\x05\x00"] {
        assert!(matches!(grow(bytes, socks_greeting).1, Err(SocksError::Malformed(_))), "{bytes:?}");
    }
    assert_eq!((socks_method(true), socks_method(false)), ([5, 0], [5, 0xff]));
}

#[test]
fn requests_reach_names_alone() {
    let bytes = b"\x05\x01\x00\x03\x0cWeb.Example.\x00\x50and what follows";
    let (at, message) = grow(bytes, socks_request);
    let message = message.unwrap().unwrap();
    assert_eq!((at, message.bytes, message.says.as_str()), (19, 19, "web.example"));

    use SocksReply::{AddressTypeNotSupported, CommandNotSupported, HostUnreachable};
    for (bytes, expected) in [
        (&b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x16"[..], Some(AddressTypeNotSupported)),
        (b"\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00", Some(AddressTypeNotSupported)),
        (b"\x05\x01\x00\x02\x00", Some(AddressTypeNotSupported)),
        (b"\x05\x02\x00\x03\x01a\x00\x50", Some(CommandNotSupported)),
        (b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", Some(CommandNotSupported)),
        (b"\x05\x01\x00\x03\x03a b\x00\x50", Some(HostUnreachable)),
        (b"\x05\x01\x00\x03\x02\xff\xff\x00\x50", Some(HostUnreachable)),
        (b"\x05\x01\x00\x03\x03::1\x00\x50", Some(HostUnreachable)),
        (b"\x05\x01\x00\x03\x00\x00\x50", None),
        (b"\x05\x01\x01\x03\x01a\x00\x50", None),
        (b"\x04\x01\x00\x50\x00\x00\x00\x01x\x00", None),
    ] {
        let refused = match grow(bytes, socks_request).1 {
            Err(SocksError::Refused { reply, .. }) => Some(reply),
            Err(SocksError::Malformed(_)) => None,
            other => panic!("{bytes:?}: {other:?}"),
        };
        assert_eq!(refused, expected, "{bytes:?}");
    }
    // The longest name there is.
    let name = [b'a'; 253];
    let bytes = [&b"\x05\x01\x00\x03\xfd"[..], &name, b"\x00\x50"].concat();
    assert_eq!(grow(&bytes, socks_request).1.unwrap().unwrap().bytes, 260);
}

#[test]
fn failures_have_their_codes() {
    for (code, reply) in [
        (ErrorCode::ServiceUnknown, 4),
        (ErrorCode::OwnerOffline, 4),
        (ErrorCode::Forbidden, 2),
        (ErrorCode::BackendRefused, 5),
        (ErrorCode::BackendTimeout, 6),
        (ErrorCode::Exhausted, 1),
    ] {
        assert_eq!(SocksReply::of(code).to_bytes(), [5, reply, 0, 1, 0, 0, 0, 0, 0, 0], "{code:?}");
    }
    assert_eq!(SocksReply::Succeeded.to_bytes()[..2], [5, 0]);
    assert_eq!(SocksReply::CommandNotSupported.to_bytes()[1], 7);
    assert_eq!(SocksReply::AddressTypeNotSupported.to_bytes()[1], 8);
}
