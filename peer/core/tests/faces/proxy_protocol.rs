//! PROXY headers, in whatever pieces they arrive.

use p2p_peer_core::{BadProxyHeader, ProxyHeader, SniffLimits, Sniffed, Unrecognised, proxy_header, sniff};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Asks with every prefix: first `None`, then for ever the same; says from where on.
fn grow(bytes: &[u8]) -> (usize, Result<Option<ProxyHeader>, BadProxyHeader>) {
    let at = (0..=bytes.len()).find(|at| proxy_header(&bytes[..*at]) != Ok(None)).unwrap_or(bytes.len());
    let answer = proxy_header(&bytes[..at]);
    for end in at..=bytes.len() {
        assert_eq!(proxy_header(&bytes[..end]), answer, "{end} bytes of {bytes:?}");
    }
    (at, answer)
}

fn version2(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[version_command, family], &length, body].concat()
}

#[test]
fn headers_name_the_client() {
    let v4 = [10, 0, 0, 7, 192, 0, 2, 1, 0xc0, 0, 0, 80];
    let mut v6 = [0; 36];
    (v6[0], v6[15], v6[31]) = (0xfd, 7, 1);
    v6[32..].copy_from_slice(&[0xc0, 1, 0, 80]);
    let with_extension = [&v4[..], &[4, 0, 1, 9]].concat();
    for (header, source) in [
        (b"PROXY TCP4 10.0.0.7 192.0.2.1 49152 80\r\n".to_vec(), Some("10.0.0.7:49152")),
        (b"PROXY TCP6 fd00::7 ::1 49153 0\r\n".to_vec(), Some("[fd00::7]:49153")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ffff::f ffff::f 65535 65535\r\n".to_vec(), None),
        (version2(0x21, 0x11, &v4), Some("10.0.0.7:49152")),
        (version2(0x21, 0x11, &with_extension), Some("10.0.0.7:49152")),
        (version2(0x21, 0x21, &v6), Some("[fd00::7]:49153")),
        (version2(0x21, 0x31, &[0; 216]), None),
        (version2(0x21, 0x00, &[]), None),
        (version2(0x21, 0x00, &[1, 2, 3]), None),
        (version2(0x20, 0x00, &[]), None),
        (version2(0x20, 0x11, &v4), None),
        (version2(0x20, 0x11, &[]), None),
        (version2(0x21, 0x11, &[&v4[..], &[0; 4_068]].concat()), Some("10.0.0.7:49152")),
    ] {
        let source = source.map(|text| text.parse().unwrap());
        let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
        let expected = ProxyHeader { bytes: header.len(), source };
        assert_eq!(grow(&bytes), (header.len(), Ok(Some(expected))), "{header:?}");
        // Whoever is not believed says nothing that this port serves.
        let limits = SniffLimits::default();
        assert_eq!(sniff(&bytes, &limits), Sniffed::Unknown(Unrecognised::ProxyHeader), "{header:?}");
    }
}

#[test]
fn anything_else_is_refused() {
    let v4 = [10, 0, 0, 7, 192, 0, 2, 1, 0xc0, 0, 0, 80];
    for (why, bytes) in [
        ("something else", b"GET / HTTP/1.1\r\n".to_vec()),
        ("something else", b"\x16\x03\x01".to_vec()),
        ("something else", b"PROXY\tTCP4".to_vec()),
        ("something else", b"\r\n\r\nX".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 49152 80\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 49152\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 49152 80 1\r\n".to_vec()),
        ("malformed", b"PROXY TCP4  10.0.0.7 192.0.2.1 49152 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 049152 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 +1 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2.1 65536 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 10.0.0.7 192.0.2 1 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4 fd00::7 ::1 1 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP6 10.0.0.7 192.0.2.1 1 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP5 10.0.0.7 192.0.2.1 1 80\r\n".to_vec()),
        ("malformed", b"PROXY TCP4\r\n".to_vec()),
        ("malformed", b"PROXY UNKNOWNX\r\n".to_vec()),
        ("longer than 107", [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat()),
        ("version or command", version2(0x11, 0x11, &v4)),
        ("version or command", version2(0x22, 0x11, &v4)),
        ("datagrams", version2(0x21, 0x12, &v4)),
        ("family", version2(0x21, 0x41, &v4)),
        ("too short", version2(0x21, 0x11, &v4[..11])),
        ("too short", version2(0x21, 0x21, &[0; 35])),
        ("longer than 4,096", version2(0x21, 0x11, &[0; 4_081])),
    ] {
        let said = grow(&bytes).1.unwrap_err().to_string();
        assert!(said.contains(why), "{bytes:?}: {said}");
    }
    for text in ["PROXY /x HTTP/1.1", "PROXY http://a/ HTTP/1.1", "PROXY"] {
        let expected = if text == "PROXY" { Sniffed::Incomplete } else { Sniffed::Http1 };
        assert_eq!(sniff(text.as_bytes(), &SniffLimits::default()), expected, "{text}");
    }
}
