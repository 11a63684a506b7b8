//! Where HTTP/1 messages end, on kept-alive connections in both directions (SPEC F6, RFC 9112).
//!
//! One forward carries consecutive requests for one service, and a request for another service must not reach
//! it. So the ingress has to know exactly where each request and each response ends; what cannot be framed
//! with certainty is refused. These are state machines over byte slices: they own no buffer, copy no body and
//! allocate twice per request (its host and its method), never per read.
//!
//! ```text
//! client bytes ─► RequestHeads::next_head ─► RequestHead ─┬─► RequestFramer::advance  ─► peer
//!                 (looks, takes nothing)      (route it)  └─► ResponseFramer::advance ─► client
//!                                 ▲                                  │
//!                                 └─────── [`after`] both ────────────┘
//! ```
//!
//! One exchange at a time. The shell reads into a buffer (64 KiB; at least
//! [`FramingLimits::max_head_bytes`]), asks for the next head, routes by its host, makes both framers of it
//! and runs two loops at once, each: `advance` with the unread bytes, write and drop the first [`Step::take`]
//! of them, then do what [`Step::then`] says. A pipelined request stays in the buffer until the response
//! before it has ended; then its head is looked at like any other, and may go elsewhere.
//!
//! - [`Then::Raw`] (101, or 2xx to CONNECT): framing is over for this connection; copy both ways, first what
//!   both buffers still hold.
//! - End of stream: ask `handle_eof` of that side's framer.
//! - Response bytes that lie in the buffer before a request was sent answer nothing: drop that forward.
//! - The response is done: ask [`after`]. If the request is not done by then (the client waits for a 100 it
//!   will not get, or the service has seen enough), it says [`After::Close`]; do not wait for the rest.
//!
//! Bytes go on exactly as received, head included: no field is added, removed or folded, hop-by-hop fields
//! neither. One thing a proxy must change: a target in absolute form loses its scheme and authority, which Host
//! repeats ([`RequestHead::to_origin_form`]). To both ends the forward is the connection they would have had without it, and `Connection`,
//! `Upgrade` and `Transfer-Encoding` mean the same on both sides, because the ingress keeps the client's
//! connection exactly as long as the exchange says.
//!
//! Requests are held to the letter of RFC 9112, and a little more where two readers of one request are known
//! to differ (bare LF, repeated `Content-Length`, any coding but `chunked` alone): what another reader could
//! take for two requests never leaves. Responses are held to the same syntax, but framed as section 6.3 says;
//! where that says "until close", the connection is not used again.

mod body;
mod error;
mod fields;
mod request;
mod response;
mod scan;

pub use error::FramingError;
pub use request::{BodyLength, HttpVersion, RequestFramer, RequestHead, RequestHeads, TargetForm};
pub use response::ResponseFramer;

/// Bounds on what one message may make us hold or look through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramingLimits {
    /// The longest head, request or status line included. Default 32 KiB: four times what nginx takes by
    /// default, twice what Node.js takes, and half a copy buffer.
    pub max_head_bytes: usize,
    /// The most fields in a head. Default 100, as in Apache and hyper; above [`FramingLimits::HEADERS_MAX`]
    /// it counts as that.
    pub max_headers: usize,
    /// The longest chunk extension. Default 1 KiB: nobody uses them, and those who try to hide a request in
    /// one need room.
    pub max_chunk_extension_bytes: usize,
    /// The longest trailer section. Default 8 KiB: gRPC-Web statuses and checksums are some hundred bytes.
    pub max_trailer_bytes: usize,
    /// The most interim (1xx) responses to one request. Default 1,000: they cost nothing to pass on, but
    /// there must be an end; a 102 every 20 s makes 180 an hour.
    pub max_interim_responses: u32,
}

impl FramingLimits {
    /// No head has more fields, whatever the settings say.
    pub const HEADERS_MAX: usize = 256;
}

impl Default for FramingLimits {
    fn default() -> Self {
        FramingLimits {
            max_head_bytes: 32 * 1024,
            max_headers: 100,
            max_chunk_extension_bytes: 1024,
            max_trailer_bytes: 8 * 1024,
            max_interim_responses: 1_000,
        }
    }
}

/// What to do with the bytes a framer was shown.
#[must_use = "the first `take` bytes are to be forwarded and dropped"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// This many bytes at the front belong to the message: forward them, and do not show them again.
    pub take: usize,
    /// What comes after.
    pub then: Then,
}

/// What follows the bytes of a [`Step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// More of the message: read behind the bytes that were not taken, and show all of them.
    Read,
    /// The message is whole; the bytes not taken are not part of it.
    Done,
    /// The connection speaks another protocol from here on; all bytes were taken. Responses only.
    Raw,
}

/// What becomes of the client's connection and of the forward when the response is [`Then::Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Close both: a side asked for it, the response ended only with its connection, or it ended before the
    /// request.
    Close,
    /// The client may ask again, but the forward is spent: its stream ended, or more came than was asked for.
    Reopen,
    /// The client may ask again, on the same forward if it asks for the same service.
    Reuse,
}

/// What may follow an exchange.
pub fn after(request: &RequestFramer, response: &ResponseFramer) -> After {
    if !request.persists() || !response.persists() {
        After::Close
    } else if response.is_spent() {
        After::Reopen
    } else {
        After::Reuse
    }
}
