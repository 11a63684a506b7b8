//! The HTTP answers a Peer gives itself when it cannot forward (SPEC F9), as the bytes of HTTP/1.1.
//!
//! For people in front of `curl` as much as for programs: what happened, why, what to do, and the `proxy_id`
//! under which the logs of both Peers speak of it. Clients that speak TLS or another protocol get a clean
//! close instead.

use std::fmt::{self, Write};

use p2p_common::ErrorCode;
use p2p_common::wire::tunnel::ProxyId;

/// The statuses a Peer answers with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// 400: the request is malformed, or names no host.
    BadRequest,
    /// 403: the caller may not reach the service.
    Forbidden,
    /// 404: no such service is known here.
    NotFound,
    /// 431: the head is too large.
    HeadTooLarge,
    /// 501: a transfer coding that is not supported.
    NotImplemented,
    /// 502: the backend refused, or what it answered is not HTTP.
    BadGateway,
    /// 503: the owner is not connected, or a limit is reached.
    Unavailable,
    /// 504: no answer in time.
    GatewayTimeout,
    /// 505: another version than HTTP/1.0 and HTTP/1.1.
    VersionNotSupported,
}

impl Status {
    /// Every status.
    pub const ALL: [Status; 9] = [
        Status::BadRequest,
        Status::Forbidden,
        Status::NotFound,
        Status::HeadTooLarge,
        Status::NotImplemented,
        Status::BadGateway,
        Status::Unavailable,
        Status::GatewayTimeout,
        Status::VersionNotSupported,
    ];

    /// The status of a forward that failed with `code`: the one place that maps codes to client HTTP.
    pub const fn of(code: ErrorCode) -> Status {
        match code {
            ErrorCode::BadRequest => Status::BadRequest,
            ErrorCode::Unauthenticated | ErrorCode::Forbidden | ErrorCode::NotGranted => Status::Forbidden,
            ErrorCode::NotFound | ErrorCode::ServiceUnknown => Status::NotFound,
            ErrorCode::Unavailable
            | ErrorCode::Exhausted
            | ErrorCode::OwnerOffline
            | ErrorCode::Draining
            | ErrorCode::ServiceDown => Status::Unavailable,
            ErrorCode::BackendTimeout => Status::GatewayTimeout,
            _ => Status::BadGateway,
        }
    }

    /// The three digits.
    pub const fn code(self) -> u16 {
        self.row().0
    }

    /// The reason phrase of RFC 9110 and RFC 6585.
    pub const fn reason(self) -> &'static str {
        self.row().1
    }

    /// Code, reason phrase, what happened, what to do.
    const fn row(self) -> (u16, &'static str, &'static str, &'static str) {
        match self {
            Status::BadRequest => (
                400,
                "Bad Request",
                "the request was not forwarded, because it is not one valid request",
                "correct the client; a service is named by one Host header, as in curl -H 'Host: NAME'",
            ),
            Status::Forbidden => (
                403,
                "Forbidden",
                "the request was not forwarded, because this caller may not reach the service",
                "ask its owner, or the operator who issued the token, for access",
            ),
            Status::NotFound => (
                404,
                "Not Found",
                "the request was not forwarded, because no service of this name is known here",
                "compare Host with the names that 'p2p-peer services' lists",
            ),
            Status::HeadTooLarge => (
                431,
                "Request Header Fields Too Large",
                "the request was not forwarded, because its head is too large",
                "send fewer or smaller header fields, or clear the cookies",
            ),
            Status::NotImplemented => (
                501,
                "Not Implemented",
                "the request was not forwarded, because its transfer coding is not supported",
                "send the body with Content-Length or with 'Transfer-Encoding: chunked'",
            ),
            Status::BadGateway => (
                502,
                "Bad Gateway",
                "the service was reached, but its backend gave no usable answer",
                "see that the backend runs, then look for the proxy_id in the log of the peer that owns it",
            ),
            Status::Unavailable => (
                503,
                "Service Unavailable",
                "the service is known, but cannot be reached now",
                "try again; 'p2p-peer links' shows whether its owner is connected",
            ),
            Status::GatewayTimeout => (
                504,
                "Gateway Timeout",
                "the service did not answer in time",
                "try again; look for the proxy_id in the log of the peer that owns it",
            ),
            Status::VersionNotSupported => (
                505,
                "HTTP Version Not Supported",
                "the request was not forwarded, because of its HTTP version",
                "use HTTP/1.1",
            ),
        }
    }
}

/// An answer to a request that is not forwarded.
#[derive(Clone, Copy)]
pub struct ErrorReply<'a> {
    /// The status; it brings what happened and what to do.
    pub status: Status,
    /// The forward this is about.
    pub proxy_id: ProxyId,
    /// Why, in one phrase. Text of a client may be in it: control characters are shown as `?`, and it is cut
    /// at [`ErrorReply::WHY_MAX_CHARS`].
    pub why: &'a dyn fmt::Display,
    /// Whether the connection stays open: only if the request asked for it and all of its body was taken.
    pub keep_alive: bool,
    /// Whether the request was a HEAD, which gets the same head and no body.
    pub to_head: bool,
}

impl ErrorReply<'_> {
    /// The longest `why` in characters.
    pub const WHY_MAX_CHARS: usize = 512;

    /// The text for people.
    pub(crate) fn body(&self) -> String {
        let (code, reason, what, remedy) = self.status.row();
        let proxy_id = self.proxy_id;
        let why: String = self
            .why
            .to_string()
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .take(Self::WHY_MAX_CHARS)
            .collect();
        format!("{code} {reason}: {what}\nwhy: {why}\nwhat to do: {remedy}\nproxy_id: {proxy_id}\n")
    }

    /// The whole response.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (code, reason, ..) = self.status.row();
        let proxy_id = self.proxy_id;
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let body = self.body();
        let length = body.len();
        let mut reply = String::with_capacity(256 + length);
        write!(
            reply,
            "HTTP/1.1 {code} {reason}\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             X-P2p-Proxy-Id: {proxy_id}\r\n\
             Connection: {connection}\r\n\r\n"
        )
        .expect("writing to a string does not fail");
        if !self.to_head {
            reply.push_str(&body);
        }
        reply.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FramingLimits, RequestHeads, ResponseFramer, Then};

    fn reply(status: Status) -> ErrorReply<'static> {
        ErrorReply {
            status,
            proxy_id: ProxyId(0x3f9a_1c2b),
            why: &"the link is down",
            keep_alive: true,
            to_head: false,
        }
    }

    /// Reads a reply as the answer to `method`.
    fn framed(method: &str, bytes: &[u8]) -> (Option<u16>, bool) {
        let limits = FramingLimits::default();
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = RequestHeads::new(limits).next_head(request.as_bytes()).unwrap().unwrap();
        let mut framer = ResponseFramer::new(&head, &limits);
        let step = framer.advance(bytes).unwrap();
        (framer.status(), step.take == bytes.len() && step.then == Then::Done)
    }

    #[test]
    fn every_reply_is_a_whole_response_that_says_all() {
        for status in Status::ALL {
            let bytes = reply(status).to_bytes();
            assert_eq!(framed("GET", &bytes), (Some(status.code()), true));
            let text = String::from_utf8(bytes).unwrap();
            for part in ["why: the link is down\n", "what to do: ", "proxy_id: 3f9a1c2b\n"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(
                text.contains("\r\nX-P2p-Proxy-Id: 3f9a1c2b\r\nConnection: keep-alive\r\n\r\n"),
                "{text}"
            );

            let bytes = ErrorReply { to_head: true, keep_alive: false, ..reply(status) }.to_bytes();
            assert_eq!(framed("HEAD", &bytes), (Some(status.code()), true));
            assert!(bytes.ends_with(b"\r\nConnection: close\r\n\r\n"));
        }
    }

    #[test]
    fn what_comes_from_outside_cannot_break_out() {
        let evil = "x\r\nSet-Cookie: a=b\r\n\r\n".repeat(100);
        let bytes = ErrorReply { why: &evil, ..reply(Status::NotFound) }.to_bytes();
        assert_eq!(framed("GET", &bytes), (Some(404), true));
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("\r\nSet-Cookie"), "{text}");
        assert!(text.len() < 2_000);
    }

    #[test]
    fn codes_of_failed_forwards() {
        for (code, status) in [
            (ErrorCode::ServiceUnknown, 404),
            (ErrorCode::Forbidden, 403),
            (ErrorCode::NotGranted, 403),
            (ErrorCode::BackendRefused, 502),
            (ErrorCode::OwnerOffline, 503),
            (ErrorCode::Exhausted, 503),
            (ErrorCode::BackendTimeout, 504),
        ] {
            assert_eq!(Status::of(code).code(), status);
        }
    }
}
