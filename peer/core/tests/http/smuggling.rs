//! What two readers of one request could take for two requests, or for one to another host, never leaves.

use crate::driver::requests;
use p2p_peer_core::FramingLimits;

/// Each head is completed with `\r\n\r\n`; the answer is the status, or 0 if the request is taken.
const HEADS: &[(u16, &str)] = &[
    // Two lengths, or a length that is none.
    (0, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0,"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0_0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"0\""),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0;0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \u{b}0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \u{ff10}"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616"),
    // A length and a coding.
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nContent-Length: 0"),
    // A coding that is not `chunked` alone.
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, "),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\""),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunk\u{0}ed"),
    (400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked"),
    (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked"),
    (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked"),
    (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked"),
    // Line ends and folds.
    (400, "GET / HTTP/1.1\nHost: a"),
    (400, "GET / HTTP/1.1\r\nHost: a\nX: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\rX: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\r\nX: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\n"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz"),
    (400, "GET / HTTP/1.1\r\n Host: a"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n \r\nZ: z"),
    (0, "\r\nGET / HTTP/1.1\r\nHost: a"),
    (400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a"),
    (400, "\nGET / HTTP/1.1\r\nHost: a"),
    // Names.
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 0"),
    (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked"),
    (400, "GET / HTTP/1.1\r\nHost : a"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\n: x"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX\u{0}: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX(: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\n\u{e9}: y"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nno colon"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: \u{0}"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nX: \u{7f}"),
    // The request line.
    (400, "GET  / HTTP/1.1\r\nHost: a"),
    (400, "GET /  HTTP/1.1\r\nHost: a"),
    (400, "GET / HTTP/1.1 \r\nHost: a"),
    (400, " GET / HTTP/1.1\r\nHost: a"),
    (400, "GET\t/ HTTP/1.1\r\nHost: a"),
    (400, "G(T / HTTP/1.1\r\nHost: a"),
    (400, "GET / a HTTP/1.1\r\nHost: a"),
    (400, "GET /\u{0} HTTP/1.1\r\nHost: a"),
    (400, "GET / HTTP/1.1x\r\nHost: a"),
    (400, "GET / http/1.1\r\nHost: a"),
    (400, "GET / HTTP/11\r\nHost: a"),
    (400, "GET / HTTP/1.10\r\nHost: a"),
    (400, "GET /\r\nHost: a"),
    (400, "GET\r\nHost: a"),
    (505, "GET / HTTP/2.0\r\nHost: a"),
    (505, "GET / HTTP/1.2\r\nHost: a"),
    (505, "GET / HTTP/0.9\r\nHost: a"),
    (505, "\r\nGET / HTTP/3.0\r\nHost: a"),
    (505, "PRI * HTTP/2.0"),
    // Host.
    (400, "GET / HTTP/1.1"),
    (400, "GET / HTTP/1.0"),
    (400, "GET / HTTP/1.1\r\nHost:"),
    (400, "GET / HTTP/1.1\r\nHost: \t"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b"),
    (400, "GET / HTTP/1.1\r\nHost: a\r\nhost: a"),
    (400, "GET / HTTP/1.1\r\nHost: a, b"),
    (400, "GET / HTTP/1.1\r\nHost: a b"),
    (400, "GET / HTTP/1.1\r\nHost: u@a"),
    (400, "GET / HTTP/1.1\r\nHost: a/b"),
    (400, "GET / HTTP/1.1\r\nHost: http://a"),
    (400, "GET / HTTP/1.1\r\nHost: a#b"),
    (400, "GET / HTTP/1.1\r\nHost: a?b"),
    (400, "GET / HTTP/1.1\r\nHost: a\\b"),
    (400, "GET / HTTP/1.1\r\nHost: a%2eb"),
    (400, "GET / HTTP/1.1\r\nHost: a:b"),
    (400, "GET / HTTP/1.1\r\nHost: a:80:81"),
    (400, "GET / HTTP/1.1\r\nHost: a:65536"),
    (400, "GET / HTTP/1.1\r\nHost: ::1"),
    (400, "GET / HTTP/1.1\r\nHost: [::1"),
    (400, "GET / HTTP/1.1\r\nHost: [a]"),
    (400, "GET / HTTP/1.1\r\nHost: \u{e9}"),
    (0, "GET / HTTP/1.1\r\nHost: [::1]:80"),
    (0, "GET / HTTP/1.1\r\nHost: A_b-c.9.:80"),
    // The target.
    (0, "GET http://a/ HTTP/1.1\r\nHost: a"),
    (0, "GET HTTPS://A.:443?x HTTP/1.1\r\nHost: a:80"),
    (0, "GET http://a HTTP/1.0"),
    (400, "GET http://a HTTP/1.1"),
    (400, "GET http://a HTTP/1.1\r\nHost:"),
    (400, "GET http://a/ HTTP/1.1\r\nHost: b"),
    (400, "GET http://a/ HTTP/1.0\r\nHost: b"),
    (400, "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b"),
    (400, "GET http://u@a/ HTTP/1.1\r\nHost: a"),
    (400, "GET http://a:x/ HTTP/1.1\r\nHost: a"),
    (400, "GET http:///x HTTP/1.1\r\nHost: a"),
    (400, "GET http:/x HTTP/1.1\r\nHost: a"),
    (400, "GET http://a#@b/ HTTP/1.1\r\nHost: a"),
    (400, "GET http://a\\@b/ HTTP/1.1\r\nHost: a"),
    (400, "GET ftp://a/ HTTP/1.1\r\nHost: a"),
    (400, "GET a/b HTTP/1.1\r\nHost: a"),
    (400, "GET a:80 HTTP/1.1\r\nHost: a"),
    (400, "GET * HTTP/1.1\r\nHost: a"),
    (400, "GET ?x HTTP/1.1\r\nHost: a"),
    (0, "OPTIONS * HTTP/1.1\r\nHost: a"),
    (0, "GET //b/c HTTP/1.1\r\nHost: a"),
    (0, "CONNECT a:80 HTTP/1.1\r\nHost: a"),
    (0, "CONNECT [::1]:80 HTTP/1.1\r\nHost: [::1]:80"),
    (400, "CONNECT a HTTP/1.1\r\nHost: a"),
    (400, "CONNECT a: HTTP/1.1\r\nHost: a"),
    (400, "CONNECT a:80 HTTP/1.1\r\nHost: b"),
    (400, "CONNECT a:80 HTTP/1.1"),
    (400, "CONNECT [::1] HTTP/1.1\r\nHost: [::1]"),
    (400, "CONNECT /a:80 HTTP/1.1\r\nHost: a"),
    (400, "CONNECT http://a:80 HTTP/1.1\r\nHost: a"),
    (400, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 5"),
    (400, "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked"),
];

/// Each is the body of a chunked request; `true` if it is whole, and so ends where it ends.
const CHUNKED: &[(bool, &str)] = &[
    (true, "0\r\n\r\n"),
    (true, "1\r\nx\r\n0\r\n\r\n"),
    (true, "00000001\r\nx\r\n000\r\n\r\n"),
    (true, "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
    (true, "1;a=\"b;c\"\r\nx\r\n0;d\r\n\r\n"),
    (true, "1  \r\nx\r\n0\r\n\r\n"),
    (true, "0\r\nA: b\r\nC:\td\r\n\r\n"),
    (false, "\r\n"),
    (false, "-1\r\n"),
    (false, "+1\r\nx\r\n0\r\n\r\n"),
    (false, "0x1\r\nx\r\n0\r\n\r\n"),
    (false, "1_0\r\n"),
    (false, " 1\r\nx\r\n0\r\n\r\n"),
    (false, "1 1\r\n"),
    (false, "1,1\r\n"),
    (false, "g\r\n"),
    (false, ";a\r\n"),
    (false, "1\nx\r\n0\r\n\r\n"),
    (false, "1\rx"),
    (false, "1\r\r\nx"),
    (false, "1;a\nx\r\n0\r\n\r\n"),
    (false, "1;a\rb\r\nx\r\n0\r\n\r\n"),
    (false, "1;\u{0}\r\nx\r\n0\r\n\r\n"),
    (false, "1\r\nxx\r\n0\r\n\r\n"),
    (false, "1\r\nx\n0\r\n\r\n"),
    (false, "1\r\nx\r0\r\n\r\n"),
    (false, "1\r\nx0\r\n\r\n"),
    (false, "2\r\nx\r\n0\r\n\r\n"),
    (false, "8000000000000000\r\n"),
    (false, "ffffffffffffffff\r\n"),
    (false, "00000000000000001\r\n"),
    (false, "0\r\n\n"),
    (false, "0\n\r\n"),
    (false, "0\r\n\rG"),
    (false, "0\r\nG\r\n"),
    (false, "0\r\n x\r\n"),
    (false, "0\r\nA : b\r\n\r\n"),
    (false, "0\r\n: b\r\n\r\n"),
    (false, "0\r\nA: b\n\r\n"),
    (false, "0\r\nA: \u{0}\r\n\r\n"),
    (false, "0\r\nGET / HTTP/1.1\r\n\r\n"),
];

#[test]
fn heads_get_the_answer_of_the_table() {
    let limits = FramingLimits::default();
    for (status, head) in HEADS {
        let bytes = format!("{head}\r\n\r\n").into_bytes();
        let whole = requests([&bytes[..]], limits);
        assert_eq!(
            whole.error.map_or(0, |error| error.status().code()),
            *status,
            "{head:?}: {:?}",
            whole.error
        );
        if *status == 0 {
            assert_eq!(whole.messages, [&bytes[..]], "{head:?}");
        } else {
            assert!(whole.messages.is_empty() && whole.part.is_empty(), "nothing leaves: {head:?}");
        }
        assert_eq!(requests(bytes.chunks(1), limits).settled(), whole.clone().settled(), "{head:?}");
        for at in 0..bytes.len() {
            let (before, rest) = bytes.split_at(at);
            assert_eq!(requests([before, rest], limits).settled(), whole.clone().settled(), "{at}: {head:?}");
        }
    }
}

#[test]
fn chunked_bodies_get_the_answer_of_the_table() {
    let limits = FramingLimits::default();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let next = "GET / HTTP/1.1\r\nHost: b\r\n\r\n";
    for (valid, body) in CHUNKED {
        let bytes = format!("{head}{body}{next}").into_bytes();
        let whole = requests([&bytes[..]], limits);
        if *valid {
            assert_eq!(whole.messages, [&bytes[..head.len() + body.len()], next.as_bytes()], "{body:?}");
        } else {
            assert_eq!(whole.error.map(|error| error.status().code()), Some(400), "{body:?}: {whole:?}");
            assert!(whole.messages.is_empty(), "{body:?}");
        }
        assert_eq!(requests(bytes.chunks(1), limits).settled(), whole.clone().settled(), "{body:?}");
        for at in 0..bytes.len() {
            let (before, rest) = bytes.split_at(at);
            assert_eq!(requests([before, rest], limits).settled(), whole.clone().settled(), "{at}: {body:?}");
        }
    }
}
