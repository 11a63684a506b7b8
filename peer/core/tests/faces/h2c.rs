//! Openings of HTTP/2 connections, in whatever pieces they arrive.

use p2p_common::wire::tunnel::ProxyId;
use p2p_peer_core::{
    ErrorReply, H2C_SETTINGS, H2cError, H2cErrorCode, H2cLimits, H2cOpening, H2cReply, H2cStream,
    SniffLimits, Sniffed, Status, h2c_goaway, h2c_opening, sniff,
};

use crate::from_hex;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn open(bytes: &[u8]) -> Result<H2cOpening, H2cError> {
    h2c_opening(bytes, &H2cLimits::default())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

/// A field that is neither indexed nor Huffman-coded.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// Preface, SETTINGS and one HEADERS frame with `block`.
fn request(block: &[u8]) -> Vec<u8> {
    [PREFACE, &settings(), &frame(1, 5, 1, block)].concat()
}

/// Asks with every prefix: first no request and no error, then for ever the same; says from where on.
fn grow(bytes: &[u8]) -> (usize, Result<H2cOpening, H2cError>) {
    let limits = SniffLimits::default();
    for end in 0..PREFACE.len() {
        assert_eq!(sniff(&bytes[..end], &limits), Sniffed::Incomplete);
    }
    let decided = |end: &usize| open(&bytes[..*end]).map_or(true, |opening| opening.request.is_some());
    let at = (PREFACE.len()..=bytes.len()).find(decided).unwrap_or(bytes.len());
    let answer = open(&bytes[..at]);
    for end in at..=bytes.len() {
        let (later, first) = (open(&bytes[..end]), &answer);
        match (&later, first) {
            (Ok(later), Ok(first)) => assert_eq!(later.request, first.request, "{end}"),
            _ => assert_eq!(&later, first, "{end}"),
        }
    }
    (at, open(bytes))
}

#[test]
fn real_clients_are_routed_by_their_authority() {
    for (name, hex, host, stream) in [
        ("curl", include_str!("../testdata/h2c_curl.hex"), "web.example", 1),
        ("curl, a POST", include_str!("../testdata/h2c_curl_post.hex"), "web.example", 1),
        ("nghttp", include_str!("../testdata/h2c_nghttp.hex"), "web.example", 13),
        ("h2load", include_str!("../testdata/h2c_h2load.hex"), "web.example", 1),
    ] {
        let bytes = from_hex(hex);
        assert_eq!(sniff(&bytes, &SniffLimits::default()), Sniffed::H2c, "{name}");
        let (_, opening) = grow(&bytes);
        let opening = opening.unwrap();
        let request = opening.request.expect(name);
        assert_eq!(request.host.service().unwrap().as_str(), host, "{name}");
        assert_eq!((request.stream.id, request.stream.is_head), (stream, false), "{name}");
        assert_eq!(request.stream.is_grpc, name == "curl, a POST", "{name}");
        // The POST was captured with SETTINGS of a server in the way.
        assert_eq!(opening.ack.is_some(), name == "curl, a POST", "{name}");
        if let Some(at) = opening.ack {
            assert_eq!(bytes[at..at + H2cOpening::ACK_BYTES], frame(4, 1, 0, &[]));
        }
    }
}

#[test]
fn everything_a_header_block_may_come_in() {
    let block = fields(&[(":method", "HEAD"), (":authority", "a:80"), ("host", "A."), ("x", "y")]);
    let (front, rest) = block.split_at(7);
    let (middle, rear) = rest.split_at(3);
    let padded = [&[4], &block[..], &[0; 4]].concat();
    let prioritised = [&[0, 0, 0, 0, 9], &block[..]].concat();
    let both = [&[2, 0, 0, 0, 0, 9], &block[..], &[0; 2]].concat();
    let pieces = [frame(1, 1, 1, front), frame(9, 0, 1, middle), frame(9, 0, 1, b""), frame(9, 4, 1, rear)];
    for (why, headers) in [
        ("plain", frame(1, 5, 1, &block)),
        ("without its body", frame(1, 4, 1, &block)),
        ("reserved bit", frame(1, 4, 1 | 1 << 31, &block)),
        ("padded", frame(1, 4 | 8, 1, &padded)),
        ("with priority", frame(1, 4 | 0x20, 1, &prioritised)),
        ("with both", frame(1, 4 | 8 | 0x20, 1, &both)),
        ("continued", pieces.concat()),
    ] {
        let window = [&[0, 2, 0, 0, 0, 0][..], &[0, 4, 0, 0, 0, 200]].concat();
        let before = [
            PREFACE,
            &frame(4, 0, 0, &window),
            &frame(8, 0, 0, &[0, 0, 1, 0]),
            &frame(2, 0, 3, &[0; 5]),
            &frame(6, 0, 0, &[7; 8]),
            &frame(4, 1, 0, &[]),
            &frame(0x7f, 0xff, 5, b"unknown"),
        ]
        .concat();
        let bytes = [&before[..], &headers, &frame(0, 1, 1, b"body"), b"\xff\xff\xff whatever"].concat();
        let (at, opening) = grow(&bytes);
        let opening = opening.unwrap();
        assert_eq!(at, before.len() + headers.len(), "{why}");
        let ack = before.len() - 16 - 9;
        assert_eq!((opening.settings, opening.ack), (true, Some(ack)), "{why}");
        let request = opening.request.unwrap();
        assert_eq!(
            request.stream,
            H2cStream { id: 1, is_head: true, is_grpc: false, window_bytes: 200 },
            "{why}"
        );
        assert_eq!(request.host.service().unwrap().as_str(), "a", "{why}");
    }
}

#[test]
fn a_client_that_waits_for_settings_is_known() {
    let bytes = [PREFACE, &settings()].concat();
    assert_eq!(open(&bytes[..bytes.len() - 1]), Ok(H2cOpening::default()));
    assert_eq!(open(&bytes), Ok(H2cOpening { settings: true, ..H2cOpening::default() }));
    // Its acknowledgement may come behind its first request.
    let bytes =
        [&request(&field(":authority", "a"))[..], &frame(0, 0, 1, b"xyz"), &frame(4, 1, 0, &[])].concat();
    let (_, opening) = grow(&bytes);
    assert_eq!(opening.unwrap().ack, Some(bytes.len() - H2cOpening::ACK_BYTES));
    // One with content is none, and what it holds is not taken for frames.
    let bad = frame(4, 1, 0, &frame(4, 1, 0, &[]));
    let bytes = [&request(&field(":authority", "a"))[..], &bad].concat();
    assert_eq!(grow(&bytes).1.unwrap().ack, None);
}

/// The service that a first request is for, or a part of why it has none.
type Answer = Result<&'static str, &'static str>;

/// Each block is the one of a first request.
const REQUESTS: &[(Answer, &[(&str, &str)])] = &[
    (Ok("a"), &[(":method", "GET"), (":authority", "a")]),
    (Ok("a"), &[(":method", "GET"), ("host", "a")]),
    (Ok("a"), &[(":authority", "A.:443"), ("host", "a")]),
    (Ok("a"), &[(":method", "CONNECT"), (":authority", "a:5432")]),
    (Err("names no host"), &[(":method", "GET"), (":path", "/")]),
    (Err("names no host"), &[]),
    (Err("names no host"), &[(":authority", "")]),
    (Err("1 to 253 letters"), &[(":authority", ""), ("host", "a")]),
    (Err("differs from its :authority"), &[(":authority", "a"), ("host", "b")]),
    (Err("twice"), &[(":authority", "a"), (":authority", "b")]),
    (Err("twice"), &[(":authority", "a"), (":authority", "a")]),
    (Err("twice"), &[("host", "a"), ("host", "b")]),
    (Err("twice"), &[(":authority", "a"), ("host", "a"), ("host", "a")]),
    (Err("upper case"), &[("Host", "a")]),
    (Err("upper case"), &[(":authority", "a"), ("HOST", "b")]),
    (Err("behind its fields"), &[(":method", "GET"), ("x", "y"), (":authority", "a")]),
    (Err("1 to 253 letters"), &[(":authority", "u@a")]),
    (Err("1 to 253 letters"), &[(":authority", "a, b")]),
    (Err("1 to 253 letters"), &[(":authority", "a/b")]),
    (Err("not a port"), &[(":authority", "a\r\nhost: b")]),
    (Err("not a port"), &[(":authority", "a:b")]),
];

#[test]
fn two_hosts_in_one_request_are_refused() {
    for (answer, block) in REQUESTS {
        let bytes = request(&fields(block));
        let (at, opening) = grow(&bytes);
        assert_eq!(at, bytes.len(), "{block:?}");
        match (answer, opening) {
            (Ok(service), Ok(opening)) => {
                assert_eq!(opening.request.unwrap().host.service().unwrap().as_str(), *service);
            }
            (Err(why), Err(H2cError::Request { why: said, stream })) => {
                assert!(said.contains(why), "{block:?}: {said}");
                assert_eq!(stream.id, 1);
            }
            (_, other) => panic!("{block:?}: {other:?}"),
        }
    }
    let ipv6 = open(&request(&field(":authority", "[::1]:80"))).unwrap().request.unwrap();
    assert_eq!(ipv6.host.service(), None);
}

#[test]
fn what_is_not_http2_is_refused_where_it_shows() {
    use H2cErrorCode::{Calm, Compression, FrameSize, Protocol};
    let good = field(":authority", "a");
    let s = settings();
    let many = s.repeat(65);
    let long: Vec<u8> = (0..3).flat_map(|n| field(&format!("x{n}"), &"y".repeat(120)).repeat(50)).collect();
    let (long_front, long_rest) = long.split_at(16_000);
    let long = [&s[..], &frame(1, 0, 1, long_front), &frame(9, 4, 1, long_rest)].concat();
    let drip = [&s[..], &frame(1, 0, 1, &good), &frame(9, 0, 1, b"").repeat(70)].concat();
    for (why, code, bytes) in [
        ("no SETTINGS", Protocol, frame(1, 5, 1, &good)),
        ("an ACK first", Protocol, frame(4, 1, 0, &[])),
        ("SETTINGS of a stream", Protocol, frame(4, 0, 1, &[])),
        ("odd SETTINGS", FrameSize, frame(4, 0, 0, &[0; 5])),
        ("an ACK with content", FrameSize, [&s[..], &frame(4, 1, 0, &[0; 6])].concat()),
        ("a huge window", Protocol, frame(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("a huge frame", FrameSize, [&s[..], &[0, 0x40, 1, 0x7f, 0, 0, 0, 0, 0]].concat()),
        ("DATA", Protocol, [&s[..], &frame(0, 0, 1, b"x")].concat()),
        ("RST_STREAM", Protocol, [&s[..], &frame(3, 0, 1, &[0; 4])].concat()),
        ("PUSH_PROMISE", Protocol, [&s[..], &frame(5, 4, 1, &[0; 4])].concat()),
        ("a short PING", FrameSize, [&s[..], &frame(6, 0, 0, &[0; 7])].concat()),
        ("PING of a stream", Protocol, [&s[..], &frame(6, 0, 1, &[0; 8])].concat()),
        ("a short PRIORITY", FrameSize, [&s[..], &frame(2, 0, 1, &[0; 4])].concat()),
        ("PRIORITY of none", Protocol, [&s[..], &frame(2, 0, 0, &[0; 5])].concat()),
        ("a window of a stream", Protocol, [&s[..], &frame(8, 0, 1, &[0; 4])].concat()),
        ("a short window", FrameSize, [&s[..], &frame(8, 0, 0, &[0; 3])].concat()),
        ("CONTINUATION alone", Protocol, [&s[..], &frame(9, 4, 1, &good)].concat()),
        ("HEADERS of none", Protocol, [&s[..], &frame(1, 5, 0, &good)].concat()),
        ("an even stream", Protocol, [&s[..], &frame(1, 5, 2, &good)].concat()),
        ("padding beyond", Protocol, [&s[..], &frame(1, 5 | 8, 1, &[200, 1, 2])].concat()),
        ("no padding length", FrameSize, [&s[..], &frame(1, 5 | 8, 1, &[])].concat()),
        ("priority beyond", Protocol, [&s[..], &frame(1, 5 | 0x20, 1, &[0; 4])].concat()),
        ("interrupted", Protocol, [&s[..], &frame(1, 0, 1, &good), &frame(6, 0, 0, &[0; 8])].concat()),
        ("another's", Protocol, [&s[..], &frame(1, 0, 1, &good), &frame(9, 4, 3, &good)].concat()),
        ("too many frames", Calm, many),
        ("too long a block", Calm, long),
        ("a drip of frames", Calm, drip),
        ("bad compression", Compression, [&s[..], &frame(1, 5, 1, &[0x80])].concat()),
        ("bad Huffman", Compression, [&s[..], &frame(1, 5, 1, &[0x41, 0x81, 0x00])].concat()),
    ] {
        let bytes = [PREFACE, &bytes, &frame(1, 5, 1, &good)].concat();
        match grow(&bytes).1 {
            Err(H2cError::Connection { code: said, .. }) => assert_eq!(said, code, "{why}"),
            other => panic!("{why}: {other:?}"),
        }
    }
}

/// Kind, flags, stream and payload of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [high, middle, low, kind, flags, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let stream = u32::from_be_bytes([*a, *b, *c, *d]);
        frames.push((*kind, *flags, stream, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    frames
}

#[test]
fn refusals_are_whole_responses() {
    let error = ErrorReply {
        status: Status::NotFound,
        proxy_id: ProxyId(0x3f9a_1c2b),
        why: &"no service is called so",
        keep_alive: false,
        to_head: false,
    };
    let stream = H2cStream { id: 13, is_head: false, is_grpc: false, window_bytes: 65_535 };
    let reply = H2cReply { error, stream, has_settings: false };
    let said = frames(&reply.to_bytes());
    let kinds: Vec<_> = said.iter().map(|(kind, flags, stream, _)| (*kind, *flags, *stream)).collect();
    assert_eq!(kinds, [(4, 0, 0), (4, 1, 0), (1, 4, 13), (0, 1, 13), (7, 0, 0)]);
    for (name, value) in [(":status", "404"), ("x-p2p-proxy-id", "3f9a1c2b")] {
        let field = field(name, value);
        assert!(said[2].3.windows(field.len()).any(|window| window == field), "{name}");
    }
    let body = String::from_utf8(said[3].3.clone()).unwrap();
    assert!(
        body.contains("why: no service is called so\n") && body.contains("proxy_id: 3f9a1c2b\n"),
        "{body}"
    );
    assert_eq!(said[4].3, [0, 0, 0, 13, 0, 0, 0, 0]);

    // A HEAD and a client that takes nothing get no body; SETTINGS are said once.
    for stream in [H2cStream { is_head: true, ..stream }, H2cStream { window_bytes: 0, ..stream }] {
        let said = frames(&H2cReply { stream, has_settings: true, ..reply }.to_bytes());
        let kinds: Vec<_> = said.iter().map(|(kind, flags, ..)| (*kind, *flags)).collect();
        assert_eq!(kinds, [(4, 1), (1, 5), (7, 0)]);
    }
    let said = frames(&H2cReply { stream: H2cStream { window_bytes: 5, ..stream }, ..reply }.to_bytes());
    assert_eq!(said[3].3, b"404 N");

    // A call of gRPC is answered in its own way; what is read of our fields is what was written.
    let error = ErrorReply { why: &"50 % \u{e9}", ..error };
    let said = frames(&H2cReply { error, stream: H2cStream { is_grpc: true, ..stream }, ..reply }.to_bytes());
    assert_eq!((said.len(), said[2].0, said[2].1), (4, 1, 5));
    let block = String::from_utf8(said[2].3.clone()).unwrap();
    for part in ["\u{3}200", "grpc-status\u{2}12", "why: 50 %25 %C3%A9; what to do: ", "proxy_id: 3f9a1c2b"] {
        assert!(block.contains(part), "{part}: {block:?}");
    }
    let read = [&said[2].3[..], &field(":authority", "a")].concat();
    assert!(matches!(open(&request(&read)), Err(H2cError::Request { why, .. }) if why.contains("behind")));

    let said = frames(&h2c_goaway(H2cErrorCode::Protocol, "why", false));
    assert_eq!(said[0], frames(H2C_SETTINGS)[0]);
    assert_eq!(said[1], (7, 0, 0, b"\0\0\0\0\0\0\0\x01why".to_vec()));
    assert_eq!(frames(&h2c_goaway(H2cErrorCode::Calm, "", true)).len(), 1);
}
