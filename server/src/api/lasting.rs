//! [`LastingBody`]: the answer to a call that was let through by a token, for as long as the token is good.
//!
//! The gate looks at a call when it begins; a stream may go on for months. It ends with the reason soon after its token
//! was revoked or ran out. Streams of nodes end with their connections.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Resolves with the reason when the token is not good any more.
pub(super) type Over = Pin<Box<dyn Future<Output = Status> + Send>>;

/// `body`, until `over`.
pub(super) fn lasting(body: Body, over: Over) -> Body {
    if body.is_end_stream() { body } else { Body::new(LastingBody { inner: body, over: Some(over) }) }
}

struct LastingBody {
    inner: Body,
    /// None when the reason was told.
    over: Option<Over>,
}

impl HttpBody for LastingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { inner, over } = &mut *self;
        let Some(waiting) = over else { return Poll::Ready(None) };
        if let Poll::Ready(status) = waiting.as_mut().poll(cx) {
            *over = None;
            *inner = Body::empty();
            let reason = status.into_http::<Body>();
            let mut trailers = reason.headers().clone();
            trailers.remove(http::header::CONTENT_TYPE);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.over.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
