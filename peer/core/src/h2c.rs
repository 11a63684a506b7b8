//! The opening of an HTTP/2 connection without TLS, read as far as its first request (SPEC F6, RFC 9113).
//!
//! Such a connection is routed once, by the first `:authority`, and then carried as it is: streams, flow control,
//! trailers and errors are the client's and the service's affair. So nothing of HTTP/2 is spoken here but what
//! comes before that: the preface, SETTINGS and other frames up to the first HEADERS with its CONTINUATIONs,
//! whose fields are decoded ([`hpack`]) for the one that names the service.
//!
//! ```text
//! preface ─ SETTINGS ─ (WINDOW_UPDATE, PRIORITY, PING, ...)* ─ HEADERS ─ CONTINUATION* ─ whatever follows
//!           ╰── a client may wait here for SETTINGS of the server ──╯
//! ```
//!
//! Some clients (gRPC) send no request before they have seen the server's SETTINGS, and no server is known
//! before they have sent one. The shell helps them with [`H2C_SETTINGS`], which ask for nothing, and takes the
//! acknowledgement, which the service did not earn, out of what it passes on: [`H2cOpening::ack`] says where it
//! lies. This is the only change to a client's bytes.
//!
//! [`h2c_opening`] is a function of the bytes alone, asked again with more, like [`sniff`](crate::sniff). It
//! refuses what RFC 9113 calls a connection error where it looks, and a first request that names no host or
//! two. Requests that follow on the connection go where the first went.

mod hpack;
mod huffman;
mod reply;

use self::hpack::HpackError;
use crate::sniff::{BadHost, H2_PREFACE, Host};

pub use reply::{H2C_SETTINGS, H2cReply, h2c_goaway};

/// Bounds on what a client may send up to its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2cLimits {
    /// The longest header block, compressed. Default 16 KiB: one frame of the size that every server takes, and
    /// the most that common servers take.
    pub max_header_block_bytes: usize,
    /// The most frames up to the end of the first header block. Default 64: browsers send about ten.
    pub max_frames: usize,
}

impl Default for H2cLimits {
    fn default() -> Self {
        H2cLimits { max_header_block_bytes: 16 * 1024, max_frames: 64 }
    }
}

/// What came of a connection so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct H2cOpening {
    /// The client has sent its SETTINGS; what it sends next may depend on the server's.
    pub settings: bool,
    /// Where the first acknowledgement of SETTINGS lies, [`H2cOpening::ACK_BYTES`] long.
    pub ack: Option<usize>,
    /// The first request, once its header block is whole.
    pub request: Option<H2cRequest>,
}

impl H2cOpening {
    /// The length of an acknowledgement of SETTINGS: a frame header alone.
    pub const ACK_BYTES: usize = FRAME_HEADER_BYTES;
}

/// A first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct H2cRequest {
    /// Whom it is for.
    pub host: Host,
    /// How it can be answered.
    pub stream: H2cStream,
}

/// What it takes to answer a first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2cStream {
    /// Its stream.
    pub id: u32,
    /// Whether it is a HEAD, which gets no body.
    pub is_head: bool,
    /// Whether it is a call of gRPC, which has statuses of its own.
    pub is_grpc: bool,
    /// The most body bytes that the client takes on a stream before it allows more.
    pub window_bytes: u32,
}

/// Why a connection is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum H2cError {
    /// The client broke a rule of HTTP/2; the connection is of no use.
    #[error("not HTTP/2: {why}")]
    Connection {
        /// The code of RFC 9113 section 7.
        code: H2cErrorCode,
        /// The rule.
        why: &'static str,
    },
    /// The first request names no service.
    #[error("the first request cannot be routed: {why}")]
    Request {
        /// Where to answer.
        stream: H2cStream,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The error codes that are used here (RFC 9113 section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H2cErrorCode {
    /// NO_ERROR: the connection is not needed any more.
    NoError,
    /// PROTOCOL_ERROR.
    Protocol,
    /// FRAME_SIZE_ERROR.
    FrameSize,
    /// COMPRESSION_ERROR.
    Compression,
    /// ENHANCE_YOUR_CALM: a bound is reached.
    Calm,
}

impl H2cErrorCode {
    const fn number(self) -> u32 {
        match self {
            H2cErrorCode::NoError => 0x0,
            H2cErrorCode::Protocol => 0x1,
            H2cErrorCode::FrameSize => 0x6,
            H2cErrorCode::Compression => 0x9,
            H2cErrorCode::Calm => 0xb,
        }
    }
}

const FRAME_HEADER_BYTES: usize = 9;
/// RFC 9113 section 4.2: what everybody takes unless told otherwise, and nobody was told otherwise.
const FRAME_MAX_BYTES: usize = 1 << 14;
/// RFC 9113 section 6.9.2.
const WINDOW_DEFAULT_BYTES: u32 = 65_535;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;

const FLAG_ACK: u8 = 0x1;
const FLAG_END_STREAM: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;

const SETTING_INITIAL_WINDOW_SIZE: u16 = 0x4;

/// A frame, as far as it is there.
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    length: usize,
    /// Where it starts.
    at: usize,
    /// `None` while it is not whole.
    payload: Option<&'a [u8]>,
}

impl<'a> Frame<'a> {
    /// The frame that starts at `at`; `None` while its header is not whole.
    fn read(bytes: &'a [u8], at: usize) -> Option<Frame<'a>> {
        let (header, rest) = bytes.get(at..)?.split_first_chunk::<FRAME_HEADER_BYTES>()?;
        let [high, middle, low, kind, flags, stream @ ..] = *header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        Some(Frame { kind, flags, stream, length, at, payload: rest.get(..length) })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_ack(&self) -> bool {
        self.kind == SETTINGS && self.has(FLAG_ACK)
    }

    fn end(&self) -> usize {
        self.at + FRAME_HEADER_BYTES + self.length
    }

    /// What can be told from the header alone, ahead of the first request.
    fn check(&self, first: bool) -> Result<(), H2cError> {
        if self.length > FRAME_MAX_BYTES {
            return Err(size("a frame is longer than 16,384 bytes"));
        }
        if first && (self.kind != SETTINGS || self.has(FLAG_ACK)) {
            return Err(protocol("the preface is not followed by SETTINGS"));
        }
        let of_connection = matches!(self.kind, SETTINGS | PING | GOAWAY);
        let of_stream = matches!(self.kind, HEADERS | PRIORITY);
        if of_connection && self.stream != 0 {
            return Err(protocol("SETTINGS, PING and GOAWAY belong to no stream"));
        }
        if of_stream && self.stream == 0 {
            return Err(protocol("HEADERS and PRIORITY belong to a stream"));
        }
        let sized = match self.kind {
            SETTINGS if self.has(FLAG_ACK) => self.length == 0,
            SETTINGS => self.length.is_multiple_of(6),
            PRIORITY => self.length == 5,
            PING => self.length == 8,
            WINDOW_UPDATE => self.length == 4,
            GOAWAY => self.length >= 8,
            _ => true,
        };
        if !sized {
            return Err(size("a frame does not have the size of its type"));
        }
        match self.kind {
            HEADERS if self.stream.is_multiple_of(2) => {
                Err(protocol("clients open streams with odd numbers"))
            }
            DATA | RST_STREAM => Err(protocol("a stream is used before it is opened")),
            WINDOW_UPDATE if self.stream != 0 => Err(protocol("a stream is used before it is opened")),
            PUSH_PROMISE => Err(protocol("clients push nothing")),
            CONTINUATION => Err(protocol("CONTINUATION continues nothing")),
            // Others are for those who know them (RFC 9113 section 5.5).
            _ => Ok(()),
        }
    }

    /// The piece of the header block in HEADERS, without padding and priority.
    fn fragment(&self, payload: &'a [u8]) -> Result<&'a [u8], H2cError> {
        const BEYOND: H2cError = protocol("padding or priority go beyond the frame that holds them");
        let (padding, rest) = if self.has(FLAG_PADDED) {
            let (padding, rest) = payload.split_first().ok_or(size("there is no room for padding"))?;
            (usize::from(*padding), rest)
        } else {
            (0, payload)
        };
        let rest = if self.has(FLAG_PRIORITY) { rest.get(5..).ok_or(BEYOND)? } else { rest };
        let length = rest.len().checked_sub(padding).ok_or(BEYOND)?;
        Ok(&rest[..length])
    }
}

const fn protocol(why: &'static str) -> H2cError {
    H2cError::Connection { code: H2cErrorCode::Protocol, why }
}

const fn size(why: &'static str) -> H2cError {
    H2cError::Connection { code: H2cErrorCode::FrameSize, why }
}

const fn calm(why: &'static str) -> H2cError {
    H2cError::Connection { code: H2cErrorCode::Calm, why }
}

/// Reads `bytes`, all that came on a connection so far; they begin with the whole preface.
///
/// Once there is a request, more bytes do not change it; only an [`ack`](H2cOpening::ack) may be found in them.
///
/// # Errors
/// When the connection cannot be routed: nothing of it may reach a service.
pub fn h2c_opening(bytes: &[u8], limits: &H2cLimits) -> Result<H2cOpening, H2cError> {
    let mut opening = H2cOpening::default();
    let mut window_bytes = WINDOW_DEFAULT_BYTES;
    let mut at = H2_PREFACE.len();
    let mut frames = 0;
    while let Some(frame) = Frame::read(bytes, at) {
        if frames == limits.max_frames {
            return Err(calm("too many frames come ahead of the first request"));
        }
        frame.check(frames == 0)?;
        frames += 1;
        let Some(payload) = frame.payload else { return Ok(opening) };
        if frame.is_ack() {
            opening.ack.get_or_insert(frame.at);
        } else if frame.kind == SETTINGS {
            opening.settings = true;
            window_bytes = initial_window(payload)?.unwrap_or(window_bytes);
        } else if frame.kind == HEADERS {
            let Some((block, end)) = header_block(bytes, &frame, payload, frames, limits)? else {
                return Ok(opening);
            };
            let stream = H2cStream { id: frame.stream, is_head: false, is_grpc: false, window_bytes };
            opening.request = Some(read_request(&block, stream)?);
            if opening.ack.is_none() {
                opening.ack = find_ack(bytes, end);
            }
            return Ok(opening);
        }
        at = frame.end();
    }
    Ok(opening)
}

/// The header block that starts in `first`, and where the frames that hold it end; `None` while it is not whole.
fn header_block(
    bytes: &[u8],
    first: &Frame<'_>,
    payload: &[u8],
    mut frames: usize,
    limits: &H2cLimits,
) -> Result<Option<(Vec<u8>, usize)>, H2cError> {
    let mut block = first.fragment(payload)?.to_vec();
    let (mut end, mut whole) = (first.end(), first.has(FLAG_END_HEADERS));
    loop {
        if block.len() > limits.max_header_block_bytes {
            return Err(calm("the header block of the first request is too long"));
        }
        if whole {
            return Ok(Some((block, end)));
        }
        let Some(frame) = Frame::read(bytes, end) else { return Ok(None) };
        if frames == limits.max_frames {
            return Err(calm("the header block of the first request comes in too many frames"));
        }
        frames += 1;
        if frame.kind != CONTINUATION || frame.stream != first.stream {
            return Err(protocol("a header block is interrupted"));
        }
        if frame.length > FRAME_MAX_BYTES {
            return Err(size("a frame is longer than 16,384 bytes"));
        }
        let Some(payload) = frame.payload else { return Ok(None) };
        block.extend_from_slice(payload);
        (end, whole) = (frame.end(), frame.has(FLAG_END_HEADERS));
    }
}

/// The first acknowledgement of SETTINGS at or behind `at`. What else comes there is the service's to judge.
fn find_ack(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let frame = Frame::read(bytes, at)?;
        // One with content is malformed: the service shall see it.
        if frame.is_ack() && frame.length == 0 {
            return Some(frame.at);
        }
        at = frame.end();
    }
}

/// How much a client takes on a stream, if its SETTINGS say so.
fn initial_window(settings: &[u8]) -> Result<Option<u32>, H2cError> {
    let mut window = None;
    for setting in settings.chunks_exact(6) {
        let (id, value) = setting.split_at(2);
        if id == SETTING_INITIAL_WINDOW_SIZE.to_be_bytes() {
            let value = u32::from_be_bytes([value[0], value[1], value[2], value[3]]);
            if value > i32::MAX as u32 {
                return Err(protocol("the initial window is too large"));
            }
            window = Some(value);
        }
    }
    Ok(window)
}

/// What the fields of a request say about its host.
#[derive(Default)]
struct Named {
    authority: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    /// Fields that are not pseudo-fields have begun.
    regular: bool,
    wrong: Option<&'static str>,
}

impl Named {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        let pseudo = name.first() == Some(&b':');
        if pseudo && self.regular {
            self.wrong.get_or_insert("it has a pseudo-field behind its fields");
        }
        self.regular |= !pseudo;
        let slot = match name {
            b":authority" => &mut self.authority,
            b"host" => &mut self.host,
            // Field names are lower-case (RFC 9113 section 8.2); who reads them otherwise reads another host.
            name if name.eq_ignore_ascii_case(b"host") => {
                self.wrong.get_or_insert("it has a field name in upper case");
                return;
            }
            _ => return,
        };
        if slot.replace(value.to_vec()).is_some() {
            self.wrong.get_or_insert("it names its host twice");
        }
    }

    /// RFC 9113 section 8.3.1, and no difference between the two.
    fn host(self) -> Result<Host, &'static str> {
        const NONE: &str = "it names no host: neither :authority nor host";
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let read = |text: Vec<u8>| Host::from_authority(&text).map_err(|BadHost(why)| why);
        match (self.authority, self.host) {
            (Some(authority), Some(host)) => {
                let (authority, host) = (read(authority)?, read(host)?);
                if authority == host {
                    Ok(authority)
                } else {
                    Err("it has a host that differs from its :authority")
                }
            }
            (Some(only), None) | (None, Some(only)) if !only.is_empty() => read(only),
            _ => Err(NONE),
        }
    }
}

fn read_request(block: &[u8], mut stream: H2cStream) -> Result<H2cRequest, H2cError> {
    let mut named = Named::default();
    hpack::decode(block, |name, value| {
        stream.is_head |= name == b":method" && value == b"HEAD";
        stream.is_grpc |= name == b"content-type" && value.starts_with(b"application/grpc");
        named.take(name, value);
    })
    .map_err(|HpackError(why)| H2cError::Connection { code: H2cErrorCode::Compression, why })?;
    let host = named.host().map_err(|why| H2cError::Request { stream, why })?;
    Ok(H2cRequest { host, stream })
}
