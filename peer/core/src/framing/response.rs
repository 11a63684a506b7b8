//! Responses: where the answer to one request ends.

use std::mem::MaybeUninit;

use super::body::{Body, ChunkScan};
use super::fields::{Coding, Fields, malformed};
use super::scan::HeadScan;
use super::{FramingError, FramingLimits, RequestHead, Step, Then};

/// Where the answer to one request ends: interim responses, the final head, its body (RFC 9112 section 6.3).
#[derive(Debug)]
pub struct ResponseFramer {
    limits: FramingLimits,
    asked: Asked,
    upgrade: bool,
    state: State,
    interim: u32,
    status: Option<u16>,
    persistent: bool,
    /// No further answer can be had here.
    spent: bool,
}

/// What of a request's method decides about its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Head,
    Connect,
    Other,
}

#[derive(Debug)]
enum State {
    Head(HeadScan),
    Body(Body),
    Done,
    Raw,
}

impl ResponseFramer {
    /// For the answer to `request`.
    pub fn new(request: &RequestHead, limits: &FramingLimits) -> Self {
        ResponseFramer {
            limits: *limits,
            asked: match request {
                _ if request.is_head() => Asked::Head,
                _ if request.is_connect() => Asked::Connect,
                _ => Asked::Other,
            },
            upgrade: request.upgrade,
            state: State::Head(HeadScan::default()),
            interim: 0,
            status: None,
            persistent: false,
            spent: false,
        }
    }

    /// How much of the service's unread `bytes` belongs to the answer. A head is taken when it is whole, so
    /// that a malformed one can still be answered with 502.
    ///
    /// # Errors
    ///
    /// When the response is malformed: forward nothing of `bytes`.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Step, FramingError> {
        let mut take = 0;
        loop {
            let rest = &bytes[take..];
            match &mut self.state {
                State::Head(scan) => match scan.end(rest, 0, &self.limits)? {
                    None => return Ok(Step { take, then: Then::Read }),
                    Some(end) => {
                        self.state = self.read_head(&rest[..end])?;
                        take += end;
                    }
                },
                State::Body(body) => {
                    let (taken, done) = body.advance(rest)?;
                    take += taken;
                    if !done {
                        return Ok(Step { take, then: Then::Read });
                    }
                    self.state = State::Done;
                }
                State::Done => {
                    // An answer to nothing: it would be taken for that to the next request.
                    self.spent |= !rest.is_empty();
                    return Ok(Step { take, then: Then::Done });
                }
                State::Raw => return Ok(Step { take: bytes.len(), then: Then::Raw }),
            }
        }
    }

    /// The status of the final response, once its head was taken.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether all of the response was taken.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The service sends no more: that ends a body which has no other end.
    ///
    /// # Errors
    ///
    /// When the response is not whole; without a [`ResponseFramer::status`] and a byte forwarded the client
    /// can be told with 502, else only by an abrupt close.
    pub fn handle_eof(&mut self) -> Result<(), FramingError> {
        self.spent = true;
        match self.state {
            State::Body(Body::UntilClose) => self.state = State::Done,
            State::Done | State::Raw => {}
            State::Head(_) | State::Body(_) => return Err(FramingError::Truncated),
        }
        Ok(())
    }

    pub(super) fn persists(&self) -> bool {
        self.is_done() && self.persistent
    }

    pub(super) fn is_spent(&self) -> bool {
        self.spent
    }

    /// What follows the whole head `bytes`.
    fn read_head(&mut self, bytes: &[u8]) -> Result<State, FramingError> {
        let mut slots = [const { MaybeUninit::uninit() }; FramingLimits::HEADERS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut response, bytes, &mut slots) {
            Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
            Ok(_) => return Err(FramingError::Malformed("it ends in the wrong place")),
            Err(error) => return Err(malformed(error)),
        }
        let fields = Fields::collect(response.headers)?;
        let modern = response.version == Some(1);
        match response.code.unwrap_or_default() {
            101 if self.upgrade => Ok(State::Raw),
            101 => Err(FramingError::UnaskedUpgrade),
            100..200 => {
                self.interim += 1;
                let max = self.limits.max_interim_responses;
                if self.interim > max {
                    return Err(FramingError::TooManyInterim { max });
                }
                Ok(State::Head(HeadScan::default()))
            }
            0..100 => Err(FramingError::Malformed("its status is below 100")),
            status => {
                self.status = Some(status);
                if self.asked == Asked::Connect && (200..300).contains(&status) {
                    return Ok(State::Raw);
                }
                let body = self.body(status, &fields, modern)?;
                self.persistent =
                    !fields.close && (modern || fields.keep_alive) && !matches!(body, Body::UntilClose);
                Ok(State::Body(body))
            }
        }
    }

    fn body(&self, status: u16, fields: &Fields<'_>, modern: bool) -> Result<Body, FramingError> {
        if self.asked == Asked::Head || matches!(status, 204 | 304) {
            return Ok(Body::EMPTY);
        }
        if fields.coding_lines == 0 {
            return Ok(fields.length.map_or(Body::UntilClose, Body::Length));
        }
        if fields.lengths > 0 {
            return Err(FramingError::LengthAndCoding);
        }
        match fields.coding {
            // HTTP/1.0 knows no codings. What the client makes of it is its affair: until close is always right.
            _ if !modern => Ok(Body::UntilClose),
            Coding::Chunked | Coding::OthersThenChunked => Ok(Body::Chunked(ChunkScan::new(&self.limits))),
            Coding::None | Coding::Others => Ok(Body::UntilClose),
            Coding::Misplaced => Err(FramingError::TransferEncoding),
        }
    }
}
