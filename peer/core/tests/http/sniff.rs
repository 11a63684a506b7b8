//! First bytes are told apart, in whatever pieces they arrive.

use p2p_peer_core::{ClientHello, PEER_ALPNS, SniffLimits, Sniffed, Unrecognised, sniff};

fn look(bytes: &[u8]) -> Sniffed {
    sniff(bytes, &SniffLimits::default())
}

/// Asks with every prefix: first `Incomplete`, then for ever the same answer, which comes at `at`.
fn look_growing(bytes: &[u8]) -> (usize, Sniffed) {
    let at = (0..=bytes.len()).find(|at| look(&bytes[..*at]) != Sniffed::Incomplete).unwrap_or(bytes.len());
    let answer = look(&bytes[..at]);
    for longer in at..=bytes.len() {
        assert_eq!(look(&bytes[..longer]), answer, "{longer} bytes of {bytes:?}");
    }
    (at, answer)
}

#[test]
fn every_method_is_http() {
    for method in [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "DELETE",
        "CONNECT",
        "OPTIONS",
        "TRACE",
        "PATCH",
        "PROPFIND",
        "PRI",
        "P",
        "a!#$%&'*+-.^_`|~9",
    ] {
        for start in ["", "\r\n"] {
            let bytes = format!("{start}{method} /x HTTP/1.1\r\nHost: a\r\n\r\n");
            let (at, answer) = look_growing(bytes.as_bytes());
            assert_eq!(answer, Sniffed::Http1, "{bytes:?}");
            assert!(at <= start.len() + method.len() + 2, "told as soon as it can be: {bytes:?}");
        }
    }
    assert_eq!(look_growing(b"PRI * HTTP/1.1\r\n").1, Sniffed::Http1);
    assert_eq!(look_growing(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").1, Sniffed::Http1, "its head gets 505");
}

#[test]
fn the_preface_is_h2c_when_it_is_whole() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04";
    assert_eq!(look_growing(preface), (24, Sniffed::H2c));
}

#[test]
fn other_protocols_are_unknown_at_once() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x04\x01\x00\x50",
        b"\x80\x2e\x01\x03\x01",
        b"\n\nGET / HTTP/1.1",
        b"\r\n\r\nGET / HTTP/1.1",
        b" GET / HTTP/1.1",
        b"\xff\xfe",
    ] {
        assert_eq!(look_growing(bytes).1, Sniffed::Unknown(Unrecognised::Protocol), "{bytes:?}");
    }
    assert_eq!(look(b""), Sniffed::Incomplete);
    assert_eq!(look(&[b'a'; 32]), Sniffed::Incomplete);
    assert_eq!(look(&[b'a'; 33]), Sniffed::Unknown(Unrecognised::Protocol));
    assert_eq!(look_growing(&[&[b'a'; 32][..], b" / HTTP/1.1"].concat()).1, Sniffed::Http1);
}

/// The bytes of a ClientHello that OpenSSL 3.0 made.
fn openssl_hello() -> Vec<u8> {
    let hex: Vec<u8> = include_bytes!("../testdata/client_hello_openssl.hex")
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|digit| (*digit as char).to_digit(16).unwrap() as u8)
        .collect();
    hex.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn prefixed8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn prefixed16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed16(data)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &prefixed16(&[&[0], &prefixed16(name)[..]].concat()))
}

fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    extension(16, &prefixed16(&protocols.iter().flat_map(|p| prefixed8(p)).collect::<Vec<_>>()))
}

/// The handshake message of a hello with the given bytes behind its compression methods.
fn message(rest: &[u8]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &prefixed8(&[9; 32]), &prefixed16(&[0x13, 1]), &prefixed8(&[0]), rest]
        .concat();
    [&[1], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat()
}

/// `message` in records of at most `most` bytes.
fn records(message: &[u8], most: usize) -> Vec<u8> {
    message.chunks(most).flat_map(|part| [&[22, 3, 1][..], &prefixed16(part)].concat()).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&prefixed16(&extensions.concat())), 16_384)
}

fn read(bytes: &[u8]) -> ClientHello {
    match look_growing(bytes) {
        (_, Sniffed::Tls(hello)) => hello,
        (at, other) => panic!("{other:?} after {at} bytes"),
    }
}

#[test]
fn a_real_hello_is_read_in_any_pieces() {
    let bytes = openssl_hello();
    let (at, answer) = look_growing(&[&bytes[..], b"more"].concat());
    assert_eq!(at, bytes.len(), "not before it is whole, and not after");
    let Sniffed::Tls(hello) = answer else { panic!("{answer:?}") };
    assert_eq!(hello.server_name().unwrap().as_str(), "web.example");
    assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    assert!(!hello.is_peer_link());
    assert!(format!("{hello:?}").contains("http/1.1"));
    // The same in records of every size.
    for most in (1..40).chain([bytes.len() - 6, bytes.len() - 5]) {
        assert_eq!(read(&records(&bytes[5..], most)), hello, "records of {most}");
    }
}

#[test]
fn a_peer_link_is_told_by_its_alpn() {
    for protocol in PEER_ALPNS {
        assert!(read(&hello(&[alpn(&[protocol])])).is_peer_link());
    }
    assert!(read(&hello(&[server_name(b"x"), alpn(&[b"h2", b"p2p-tunnel/1"])])).is_peer_link());
    assert!(!read(&hello(&[alpn(&[b"p2p-tunnel/12", b"p2p-tunnel"])])).is_peer_link());
    assert!(!read(&hello(&[server_name(b"p2p-tunnel")])).is_peer_link());
}

#[test]
fn hellos_without_a_name_are_hellos() {
    for bytes in [hello(&[]), records(&message(&[]), 16_384), hello(&[extension(10, b"")])] {
        let hello = read(&bytes);
        assert_eq!((hello.server_name(), hello.alpn().count()), (None, 0));
    }
    assert_eq!(read(&hello(&[server_name(b"A.Example.")])).server_name().unwrap().as_str(), "a.example");
}

#[test]
fn malformed_hellos_are_refused_not_guessed_at() {
    let nameless = extension(0, &prefixed16(&[&[1], &prefixed16(b"a")[..]].concat()));
    let two_names = [&[0], &prefixed16(b"a")[..], &[0], &prefixed16(b"b")].concat();
    for (why, extensions) in [
        ("comes twice", vec![server_name(b"a"), server_name(b"a")]),
        ("comes twice", vec![alpn(&[b"h2"]), alpn(&[b"h2"])]),
        ("is not one", vec![server_name(b"")]),
        ("is not one", vec![server_name(b"a b")]),
        ("is not one", vec![server_name(b"a:80")]),
        ("is not one", vec![server_name(b"\xff")]),
        ("is not one", vec![server_name(&[b'a'; 254])]),
        ("is missing", vec![nameless]),
        ("is missing", vec![extension(0, &prefixed16(b""))]),
        ("several server names", vec![extension(0, &prefixed16(&two_names))]),
        ("left over", vec![[&server_name(b"a")[..2], &prefixed16(b"\x00\x04\x00\x00\x01ax")].concat()]),
        ("goes beyond", vec![extension(0, b"")]),
        ("goes beyond", vec![extension(0, b"\x00\x05\x00\x00\x09ab")]),
        ("goes beyond", vec![extension(16, b"\x00\x02\x05h")]),
        ("is empty", vec![extension(16, &prefixed16(b""))]),
        ("without a name", vec![alpn(&[b"h2", b""])]),
        ("goes beyond", vec![vec![0, 0, 0]]),
    ] {
        let (_, answer) = look_growing(&hello(&extensions));
        let Sniffed::Unknown(Unrecognised::ClientHello(said)) = answer else { panic!("{why}: {answer:?}") };
        assert!(said.contains(why), "{why}: {said}");
    }
    for (why, bytes) in [
        ("left over", records(&message(&[0, 0, 0]), 16_384)),
        ("goes beyond", records(&message(&[0, 1]), 16_384)),
        ("goes beyond", records(&[1, 0, 0, 3, 3, 3, 7], 16_384)),
        ("goes beyond", records(&[1, 0, 0, 0], 16_384)),
        ("another one", records(&[2, 0, 0, 1, 0], 16_384)),
        ("no TLS version", b"\x16\x02\x00".to_vec()),
        ("longer than 16 KiB", b"\x16\x03\x01\x00\x00".to_vec()),
        ("longer than 16 KiB", b"\x16\x03\x01\x40\x01".to_vec()),
        ("another record", [&records(&message(&[]), 40)[..45], b"\x15\x03\x01\x00\x02"].concat()),
    ] {
        let (_, answer) = look_growing(&bytes);
        let Sniffed::Unknown(Unrecognised::ClientHello(said)) = answer else { panic!("{why}: {answer:?}") };
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn a_hello_longer_than_the_bound_is_refused() {
    let max_bytes = SniffLimits::default().max_client_hello_bytes;
    let refused = Sniffed::Unknown(Unrecognised::ClientHelloTooLong { max_bytes });
    assert_eq!(look(b"\x16\x03\x01\x40\x00\x01\x01\x00\x00"), refused, "told by its length alone");

    // 40 bytes of extension header, hello and message header around the padding, 5 bytes a record.
    let padded = |padding: usize| records(&message(&prefixed16(&extension(21, &vec![0; padding]))), 16_384);
    let room = max_bytes - padded(50_000).len();
    let longest = padded(50_000 + room);
    assert_eq!(longest.len(), max_bytes);
    assert!(matches!(look(&longest), Sniffed::Tls(_)));
    assert_eq!(look(&longest[..max_bytes - 1]), Sniffed::Incomplete);
    let longer = padded(50_001 + room);
    assert_eq!(look(&longer), refused);
    assert_eq!(look(&longer[..max_bytes]), refused, "asking for more would never end");
    assert_eq!(look(&longer[..max_bytes - 1]), Sniffed::Incomplete);

    // Tiny records count whole.
    let tiny = records(&message(&prefixed16(&extension(21, &vec![0; 12_000]))), 1);
    assert_eq!(look(&tiny), refused);
}
