//! One request and its response, both directions at once.

use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

use p2p_peer_core::{
    After, FramingError, FramingLimits, RequestFramer, RequestHead, ResponseFramer, Status, Then, after,
};
use tokio::net::TcpStream;

use crate::forward::splice::{Carrier, CopyBuffer, Plain, poll_read_into};
use crate::forward::{End, Opened};
use crate::tunnel::TunnelError;

/// How an exchange ended.
pub(super) enum Outcome {
    /// The response is whole and sent.
    Done(After),
    /// The connection speaks another protocol now; what is in the buffers belongs to it.
    Raw,
    Failed(Failure),
}

/// Whose fault it is.
pub(super) enum Failure {
    /// The client left, or stopped in the middle of its request.
    Client(TunnelError),
    /// The request is malformed.
    Request(FramingError),
    /// The way to the service broke.
    Upstream(TunnelError),
    /// The response is malformed or cut short.
    Response(FramingError),
}

impl Failure {
    /// What the forward's account is told.
    pub(super) fn end(&self) -> End {
        match self {
            Failure::Client(_) | Failure::Request(_) => End::Client,
            Failure::Upstream(_) | Failure::Response(_) => End::Service,
        }
    }

    /// What the client is told.
    pub(super) fn status(&self) -> Status {
        match self {
            Failure::Request(error) => error.status(),
            Failure::Client(_) | Failure::Upstream(_) | Failure::Response(_) => Status::BadGateway,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Client(error) => write!(f, "the client is gone: {error}"),
            Failure::Request(error) => error.fmt(f),
            Failure::Upstream(error) => write!(f, "the way to the service broke: {error}"),
            Failure::Response(error) => write!(f, "the service's answer cannot be forwarded: {error}"),
        }
    }
}

/// One request and its response.
pub(super) struct Exchange {
    request: RequestFramer,
    response: ResponseFramer,
    up: Direction,
    down: Direction,
    /// What comes after the bytes that were taken of the response.
    then: Then,
    client_ended: bool,
    response_seen: bool,
    /// The request can go no further. A service may answer and close before it read all of it, and its answer
    /// counts; so the response decides how this ends.
    request_broke: bool,
}

/// How far one direction got with what lies in its buffer.
#[derive(Default)]
struct Direction {
    /// The first bytes in the buffer that may be sent.
    taken: usize,
    /// The framer has seen all that is there.
    shown: bool,
    unflushed: bool,
}

impl Exchange {
    /// For the request whose head lies at the front of the client's bytes.
    pub(super) fn new(head: &RequestHead, limits: &FramingLimits) -> Self {
        Exchange {
            request: RequestFramer::new(head, limits),
            response: ResponseFramer::new(head, limits),
            up: Direction::default(),
            down: Direction { shown: true, ..Direction::default() },
            then: Then::Read,
            client_ended: false,
            response_seen: false,
            request_broke: false,
        }
    }

    /// How many of the client's bytes belong to the request: they may leave as soon as there is a way.
    ///
    /// # Errors
    /// When the request is malformed.
    pub(super) fn first(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
        self.up.taken = self.request.advance(bytes)?.take;
        self.up.shown = true;
        Ok(self.up.taken)
    }

    /// So many of [`Exchange::first`] were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.up.taken -= count;
        self.up.unflushed = true;
    }

    /// Whether [`Exchange::first`] is all of the request.
    pub(super) fn request_taken(&self) -> bool {
        self.request.is_done()
    }

    /// Whether all of the request was sent.
    pub(super) fn request_done(&self) -> bool {
        self.request.is_done() && self.up.taken == 0
    }

    /// Whether the client can no longer be told that it failed.
    pub(super) fn response_begun(&self) -> bool {
        self.response.status().is_some()
    }

    /// Whether the service answered anything at all.
    pub(super) fn response_seen(&self) -> bool {
        self.response_seen
    }

    /// Whether the client said that it sends no more.
    pub(super) fn client_ended(&self) -> bool {
        self.client_ended
    }

    /// Moves what can be moved.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Plain<TcpStream>,
        upstream: &mut Opened,
        (up, down): (&mut CopyBuffer, &mut CopyBuffer),
    ) -> Poll<Outcome> {
        if !self.request_broke
            && let Poll::Ready(failure) = self.poll_request(cx, client, upstream, up)
        {
            match failure {
                Failure::Upstream(_) => self.request_broke = true,
                failure => return Poll::Ready(Outcome::Failed(failure)),
            }
        }
        self.poll_response(cx, client, upstream, down)
    }

    /// Never ready but with a failure: the exchange ends with the response.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Plain<TcpStream>,
        upstream: &mut Opened,
        buffer: &mut CopyBuffer,
    ) -> Poll<Failure> {
        loop {
            while self.up.taken > 0 {
                match ready!(upstream.poll_send(cx, buffer, self.up.taken, false)) {
                    Ok(sent) => self.up.taken -= sent,
                    Err(error) => return Poll::Ready(Failure::Upstream(error)),
                }
                self.up.unflushed = true;
            }
            if !self.request.is_done() && !self.up.shown {
                match self.request.advance(buffer.unread()) {
                    Ok(step) => self.up.taken = step.take,
                    Err(error) => return Poll::Ready(Failure::Request(error)),
                }
                self.up.shown = true;
                continue;
            }
            // Behind a whole request lies the next one, or the news that the client sends no more.
            if !self.client_ended && !buffer.is_full() {
                match poll_read_into(cx, client, buffer) {
                    Poll::Ready(Ok(0)) => {
                        if let Err(error) = self.request.handle_eof() {
                            return Poll::Ready(Failure::Client(io::Error::other(error).into()));
                        }
                        self.client_ended = true;
                        continue;
                    }
                    Poll::Ready(Ok(_)) => {
                        self.up.shown = false;
                        continue;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Failure::Client(error)),
                    Poll::Pending => {}
                }
            }
            // Passed on as it came: a service that minds that its client sends no more may stop.
            let told = if self.client_ended && buffer.is_empty() {
                upstream.poll_finish(cx)
            } else if self.up.unflushed {
                upstream.poll_flush(cx)
            } else {
                return Poll::Pending;
            };
            return match ready!(told) {
                Ok(()) => {
                    self.up.unflushed = false;
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Failure::Upstream(error)),
            };
        }
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Plain<TcpStream>,
        upstream: &mut Opened,
        buffer: &mut CopyBuffer,
    ) -> Poll<Outcome> {
        let failed = |failure| Poll::Ready(Outcome::Failed(failure));
        loop {
            while self.down.taken > 0 {
                match ready!(client.poll_send(cx, buffer, self.down.taken, false)) {
                    Ok(sent) => self.down.taken -= sent,
                    Err(error) => return failed(Failure::Client(error)),
                }
            }
            match self.then {
                Then::Done => return Poll::Ready(Outcome::Done(after(&self.request, &self.response))),
                Then::Raw => return Poll::Ready(Outcome::Raw),
                Then::Read => {}
            }
            if !self.down.shown {
                match self.response.advance(buffer.unread()) {
                    Ok(step) => (self.down.taken, self.then) = (step.take, step.then),
                    Err(error) => return failed(Failure::Response(error)),
                }
                self.down.shown = true;
                continue;
            }
            match ready!(poll_read_into(cx, upstream, buffer)) {
                Ok(0) => match self.response.handle_eof() {
                    Ok(()) => self.then = Then::Done,
                    Err(error) => return failed(Failure::Response(error)),
                },
                Ok(_) => {
                    self.response_seen = true;
                    self.down.shown = false;
                }
                Err(error) => return failed(Failure::Upstream(error)),
            }
        }
    }
}
