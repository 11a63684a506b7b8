//! Messages end where they end, in whatever pieces they arrive.

use crate::driver::{Outcome, head, requests, response};
use p2p_peer_core::{
    After, BodyLength, FramingError, FramingLimits, HttpVersion, RequestFramer, RequestHeads, ResponseFramer,
    TargetForm, Then, after,
};

const LIMITS: fn() -> FramingLimits = FramingLimits::default;

/// One kept-alive connection each, as the requests it consists of.
const REQUESTS: &[&[&str]] = &[
    &["GET / HTTP/1.1\r\nHost: web.example\r\n\r\n"],
    &["GET / HTTP/1.0\r\nHost: web.example\r\n\r\n"],
    &["BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n"],
    &[
        "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world",
        "PATCH /b HTTP/1.1\r\nHost: b\r\ncontent-length:3\r\n\r\nabc",
        "\r\nGET /c HTTP/1.1\r\nHOST:c:80\r\n\r\n",
    ],
    &[
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n00A;name=value;q=\"a b\"\r\n0123456789\r\n0\r\nChecksum: 1\r\nX:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: b\r\n\r\n",
    ],
    &["POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tChunked \r\n\r\n\
             1 \t\r\nx\r\n2 ;x\r\n\r\n\r\n00\r\n\r\n"],
    &[
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://A.example:80/x?y HTTP/1.1\r\nHost: a.EXAMPLE.\r\n\r\n",
        "HEAD https://[::1]/ HTTP/1.1\r\nHost: [0::1]:443\r\n\r\n",
        "GET http://a HTTP/1.0\r\n\r\n",
        "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\n\r\n",
    ],
    &["GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\nCookie: a=b\r\n\r\n"],
];

#[test]
fn requests_end_where_they_end_in_any_pieces() {
    for connection in REQUESTS {
        let bytes = connection.concat().into_bytes();
        let whole = requests([&bytes[..]], LIMITS());
        assert_eq!(whole.error, None, "{connection:?}");
        let texts: Vec<_> = whole.messages.iter().map(|m| std::str::from_utf8(m).unwrap()).collect();
        assert_eq!(&texts, connection);
        assert!(whole.part.is_empty() && whole.unread.is_empty());

        assert_eq!(requests(bytes.chunks(1), LIMITS()), whole, "byte by byte");
        for at in 0..=bytes.len() {
            let (before, rest) = bytes.split_at(at);
            assert_eq!(requests([before, rest], LIMITS()), whole, "split at {at}");

            let prefix = requests([before], LIMITS());
            assert_eq!(prefix.error, None, "prefix of {at}");
            let mut ends = 0;
            let done = connection
                .iter()
                .filter(|m| {
                    ends += m.len();
                    ends <= at
                })
                .count();
            assert_eq!(prefix.messages, whole.messages[..done], "prefix of {at}");
            let seen = prefix.messages.iter().map(Vec::len).sum::<usize>() + prefix.part.len();
            assert_eq!(seen + prefix.unread.len(), at, "nothing is lost");
        }
    }
}

#[test]
fn a_head_says_what_the_shell_decides_by() {
    let get = head(b"\r\nGET / HTTP/1.1\r\nHost: Web.Example.:8080\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(get.host.service().unwrap().as_str(), "web.example");
    assert_eq!((get.head_bytes, &*get.method, get.target), (65, "GET", TargetForm::Origin));
    assert_eq!((get.version, get.body), (HttpVersion::Http11, BodyLength::Bytes(0)));
    assert!(get.persistent && get.upgrade && !get.expect_continue && get.is_bodiless());

    let old = head(b"GET / HTTP/1.0\r\nHost: a\r\nUpgrade: x\r\nExpect: 100-continue\r\n\r\n");
    assert!(!old.persistent && !old.upgrade && !old.expect_continue);
    assert!(head(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: x, Keep-Alive\r\n\r\n").persistent);
    assert!(!head(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n").persistent);
    assert!(!head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade ,CLOSE\r\n\r\n").persistent);

    let post = head(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 07\r\nExpect: 100-Continue\r\n\r\n");
    assert!(post.expect_continue && !post.is_bodiless());
    assert_eq!(post.body, BodyLength::Bytes(7));
    let connect = head(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n");
    assert!(connect.is_connect() && !connect.is_head());
    let ipv6 = head(b"HEAD / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n");
    assert!(ipv6.is_head() && ipv6.host.service().is_none());
}

#[test]
fn the_next_head_is_seen_before_it_is_taken() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n";
    let mut heads = RequestHeads::new(LIMITS());
    let first = heads.next_head(bytes).unwrap().unwrap();
    assert_eq!(heads.next_head(bytes).unwrap().unwrap(), first, "looking takes nothing");
    let mut framer = RequestFramer::new(&first, &LIMITS());
    let step = framer.advance(bytes).unwrap();
    assert_eq!((step.take, step.then), (first.head_bytes, Then::Done));
    assert_eq!(framer.advance(&bytes[step.take..]).unwrap().take, 0, "what is done takes no more");
    let second = heads.next_head(&bytes[step.take..]).unwrap().unwrap();
    assert_eq!(second.host.service().unwrap().as_str(), "b");
}

#[test]
fn a_request_cut_short_is_told() {
    let bytes = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx";
    let mut framer = RequestFramer::new(&head(bytes), &LIMITS());
    assert_eq!(framer.advance(bytes).unwrap().then, Then::Read);
    assert_eq!(framer.handle_eof(), Err(FramingError::Truncated));
    assert_eq!(framer.advance(b"y").unwrap().then, Then::Done);
    assert_eq!(framer.handle_eof(), Ok(()));
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
const CONNECT: &[u8] = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// How a response ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// By itself, and the connection may go on.
    Keep,
    /// By itself, and the connection may not go on.
    Close,
    /// With the stream.
    Eof,
    /// Never: another protocol.
    Raw,
}

/// The request, the response, bytes behind it that are not part of it, how it ends, its status.
type Case = (&'static [u8], &'static str, &'static str, End, Option<u16>);

const RESPONSES: &[Case] = &[
    (GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "", End::Keep, Some(200)),
    (GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\n", End::Keep, Some(200)),
    (
        GET,
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello",
        "",
        End::Keep,
        Some(200),
    ),
    (GET, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "x", End::Keep, Some(200)),
    (GET, "HTTP/1.1 999 \u{e9}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "", End::Close, Some(999)),
    (GET, "HTTP/1.1 200 OK\r\n\r\nuntil the end", "", End::Eof, Some(200)),
    (GET, "HTTP/1.1 200 OK\r\n\r\n", "", End::Eof, Some(200)),
    (GET, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", "", End::Close, Some(200)),
    (
        GET,
        "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx",
        "",
        End::Keep,
        Some(200),
    ),
    (GET, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", End::Eof, Some(200)),
    (
        GET,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "0\r\n\r\n",
        End::Keep,
        Some(200),
    ),
    (
        GET,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nGrpc-Status: 0\r\n\r\n",
        "",
        End::Keep,
        Some(200),
    ),
    (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n\x1f\x08", "", End::Eof, Some(200)),
    (GET, "HTTP/1.1 204 No Content\r\n\r\n", "x", End::Keep, Some(204)),
    (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "hello", End::Keep, Some(204)),
    (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "", End::Keep, Some(304)),
    (GET, "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "", End::Keep, Some(304)),
    (HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "", End::Keep, Some(200)),
    (HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n", End::Keep, Some(200)),
    (HEAD, "HTTP/1.1 200 OK\r\n\r\n", "", End::Keep, Some(200)),
    (
        GET,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "",
        End::Keep,
        Some(200),
    ),
    (
        HEAD,
        "HTTP/1.1 102 Processing\r\nContent-Length: 9\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n",
        "",
        End::Keep,
        Some(404),
    ),
    (
        UPGRADE,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x00anything\r\n\r\n",
        "",
        End::Raw,
        None,
    ),
    (
        UPGRADE,
        "HTTP/1.1 100 Continue\r\n\r\n\
             HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x00\u{7f}",
        "",
        End::Raw,
        None,
    ),
    (UPGRADE, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 1\r\n\r\nx", "", End::Keep, Some(426)),
    (
        CONNECT,
        "HTTP/1.1 200 Connection established\r\nContent-Length: 7\r\n\r\n\x16\x03\x01",
        "",
        End::Raw,
        Some(200),
    ),
    (CONNECT, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "", End::Close, Some(403)),
];

#[test]
fn responses_end_where_they_end_in_any_pieces() {
    for (request, text, behind, end, status) in RESPONSES {
        let request = head(request);
        let bytes = [text.as_bytes(), behind.as_bytes()].concat();
        let eof = *end == End::Eof;
        let (whole, framer) = response(&request, [&bytes[..]], eof, LIMITS());
        assert_eq!((whole.error, framer.status()), (None, *status), "{text:?}");
        if *end == End::Raw {
            assert!(whole.raw && whole.part == bytes && !framer.is_done(), "{text:?}");
        } else {
            assert_eq!(whole.messages, [text.as_bytes()], "{text:?}");
            assert_eq!(whole.unread, behind.as_bytes(), "{text:?}");
        }

        let mut sent = RequestFramer::new(&request, &LIMITS());
        assert_eq!(after(&sent, &framer), After::Close, "the request is not done: {text:?}");
        let _ = sent.advance(&vec![b' '; request.head_bytes]).unwrap();
        let expected = match end {
            End::Keep if behind.is_empty() => After::Reuse,
            End::Keep => After::Reopen,
            _ => After::Close,
        };
        assert_eq!(after(&sent, &framer), expected, "{text:?}");

        let (bytewise, _) = response(&request, bytes.chunks(1), eof, LIMITS());
        assert_eq!(bytewise, whole, "byte by byte: {text:?}");
        for at in 0..=bytes.len() {
            let (before, rest) = bytes.split_at(at);
            assert_eq!(response(&request, [before, rest], eof, LIMITS()).0, whole, "split at {at}: {text:?}");

            let (prefix, framer) = response(&request, [before], false, LIMITS());
            assert_eq!(prefix.error, None, "prefix of {at}: {text:?}");
            let by_itself = matches!(end, End::Keep | End::Close);
            assert_eq!(framer.is_done(), by_itself && at >= text.len(), "prefix of {at}: {text:?}");
            let (cut, _) = response(&request, [before], true, LIMITS());
            let truncated = match end {
                // Once the head is whole, any end is the end.
                End::Eof => framer.status().is_none(),
                End::Raw => !prefix.raw,
                _ => at < text.len(),
            };
            assert_eq!(cut.error, truncated.then_some(FramingError::Truncated), "cut at {at}: {text:?}");
        }
    }
}

#[test]
fn a_service_that_hangs_up_after_its_answer_costs_the_forward_not_the_client() {
    let request = head(GET);
    let (_, framer) = response(&request, [&b"HTTP/1.1 204 No Content\r\n\r\n"[..]], true, LIMITS());
    let mut sent = RequestFramer::new(&request, &LIMITS());
    assert_eq!(sent.advance(GET).unwrap().then, Then::Done);
    assert_eq!(after(&sent, &framer), After::Reopen);
}

#[test]
fn a_client_that_asks_to_close_is_closed() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let request = head(bytes);
    let (_, framer) = response(&request, [&b"HTTP/1.1 204 No Content\r\n\r\n"[..]], false, LIMITS());
    let mut sent = RequestFramer::new(&request, &LIMITS());
    assert_eq!(sent.advance(bytes).unwrap().then, Then::Done);
    assert_eq!(after(&sent, &framer), After::Close);
}

#[test]
fn malformed_responses_are_not_forwarded() {
    use FramingError as E;
    let malformed = |error: &E| matches!(error, E::Malformed(_));
    for text in [
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (whole, _) = response(&head(GET), [text.as_bytes()], false, LIMITS());
        assert!(whole.error.is_some_and(|error| malformed(&error)), "{text:?}: {whole:?}");
    }
    for (text, error) in [
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", E::BareLineEnd),
        ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", E::BareLineEnd),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", E::SeveralContentLengths),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", E::SeveralContentLengths),
        ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", E::ContentLength),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", E::LengthAndCoding),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", E::TransferEncoding),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", E::TransferEncoding),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", E::TransferEncoding),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", E::UnaskedUpgrade),
    ] {
        let bytes = text.as_bytes();
        let (whole, _) = response(&head(GET), [bytes], false, LIMITS());
        assert_eq!(
            whole,
            Outcome { unread: bytes.into(), error: Some(error), ..Outcome::default() },
            "{text:?}"
        );
        assert_eq!(response(&head(GET), bytes.chunks(1), false, LIMITS()).0.error, Some(error), "{text:?}");
    }
}

#[test]
fn every_bound_holds_at_its_edge() {
    let limits = FramingLimits {
        max_head_bytes: 64,
        max_headers: 3,
        max_chunk_extension_bytes: 4,
        max_trailer_bytes: 6,
        max_interim_responses: 2,
    };
    let request = |bytes: &str| {
        let whole = requests([bytes.as_bytes()], limits);
        let bytewise = requests(bytes.as_bytes().chunks(1), limits);
        assert_eq!(whole.clone().settled(), bytewise.settled(), "{bytes:?}");
        whole.error
    };
    let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let fitting = format!("{start}{}\r\n\r\n", "x".repeat(64 - start.len() - 4));
    assert_eq!(request(&fitting), None);
    let longer = format!("{start}x{}\r\n\r\n", "x".repeat(64 - start.len() - 4));
    assert_eq!(request(&longer), Some(FramingError::HeadTooLarge { max_bytes: 64 }));
    assert_eq!(request(&"x".repeat(63)), None, "could still become one");
    assert_eq!(request(&"x".repeat(64)), Some(FramingError::HeadTooLarge { max_bytes: 64 }));
    assert_eq!(request("GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\n\r\n"), None);
    let error = request("GET / HTTP/1.1\r\nHost: a\r\nB:\r\nC:\r\nD:\r\n\r\n");
    assert_eq!(error, Some(FramingError::TooManyHeaders { max: 3 }));
    assert_eq!(error.unwrap().status().code(), 431);

    let chunked = "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(request(&format!("{chunked}1;abc\r\nx\r\n1;abc\r\nx\r\n0;abc\r\nA:12\r\n\r\n")), None);
    let error = request(&format!("{chunked}1;abcd\r\n"));
    assert_eq!(error, Some(FramingError::ChunkExtensionTooLong { max_bytes: 4 }));
    let error = request(&format!("{chunked}0\r\nA:\r\nB:\r\n\r\n"));
    assert_eq!(error, Some(FramingError::TrailersTooLarge { max_bytes: 6 }));

    let answer = |count: usize| {
        let text = "HTTP/1.1 100 Continue\r\n\r\n".repeat(count) + "HTTP/1.1 204 No Content\r\n\r\n";
        response(&head(GET), [text.as_bytes()], false, limits).0.error
    };
    assert_eq!(answer(2), None);
    assert_eq!(answer(3), Some(FramingError::TooManyInterim { max: 2 }));

    // A bound above what can be held counts as that.
    let many = FramingLimits { max_headers: usize::MAX, ..LIMITS() };
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    assert_eq!(requests([fields(256).as_bytes()], many).error, None);
    let error = requests([fields(257).as_bytes()], many).error;
    assert_eq!(error, Some(FramingError::TooManyHeaders { max: 256 }));
}

#[test]
fn a_response_can_be_longer_than_any_buffer() {
    let length = i64::MAX as u64;
    let request = head(GET);
    let mut framer = ResponseFramer::new(&request, &LIMITS());
    let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    assert_eq!(framer.advance(start.as_bytes()).unwrap().take, start.len());
    let block = vec![0; 64 * 1024];
    for _ in 0..100 {
        let step = framer.advance(&block).unwrap();
        assert_eq!((step.take, step.then), (block.len(), Then::Read));
    }
}

#[test]
fn absolute_targets_become_what_the_service_expects() {
    for (before, after) in [
        ("GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET http://A.:80 HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            "GET HTTPS://[::1]:443?q HTTP/1.1\r\nHost: [0::1]\r\n\r\n",
            "GET /?q HTTP/1.1\r\nHost: [0::1]\r\n\r\n",
        ),
        ("\r\nPOST http://a// HTTP/1.0\r\nHost: a\r\n\r\n", "\r\nPOST // HTTP/1.0\r\nHost: a\r\n\r\n"),
        ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS http://a?x HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS /?x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n"),
        // These stay: the target is all there is, or has no authority to lose.
        ("GET http://a/x HTTP/1.0\r\n\r\n", "GET http://a/x HTTP/1.0\r\n\r\n"),
        ("GET /http://a/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET /http://a/x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let mut bytes = [before.as_bytes(), b"behind"].concat();
        let mut rewritten = head(before.as_bytes());
        let dropped = rewritten.to_origin_form(&mut bytes);
        assert_eq!(std::str::from_utf8(&bytes[dropped..]).unwrap(), format!("{after}behind"));
        // It is what it would be had it come so.
        let came = head(after.as_bytes());
        assert_eq!((rewritten.head_bytes, rewritten.target), (came.head_bytes, came.target), "{before:?}");
        assert_eq!(rewritten.to_origin_form(&mut bytes), 0, "once is enough");
    }
}
