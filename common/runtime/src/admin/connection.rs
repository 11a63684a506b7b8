//! One HTTP/1 connection with its time-outs: whoever is slow on purpose holds it for a bounded time.
//!
//! | what | ends it when |
//! |---|---|
//! | head | it began and is not whole in [`HEAD_TIMEOUT`] |
//! | body | it began and the answer has not in [`BODY_TIMEOUT`] |
//! | reader | takes nothing of an answer for [`READER_TIMEOUT`] |
//! | both | neither side has sent anything for [`IDLE_TIMEOUT`] |

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode, header};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::tcp::Slot;

/// The time for a request's head, from its first byte.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for a request's body, from its first byte.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a reader may take nothing of its answer.
pub const READER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long both sides may be silent: longer than a question that waits for news, shorter than for ever.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A head is not longer.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A body is not longer: instances with their metadata have some KiB.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// What a request gets to finish when the process stops.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How often the times are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    TooSlow(&'static str),
    #[error("it made room for another one")]
    Displaced,
}

/// Serves one connection to its end, at the latest some time after `stop`.
pub(super) async fn serve(
    stream: TcpStream,
    router: Router,
    slot: Slot,
    stop: CancellationToken,
) -> Result<(), Ended> {
    let activity = Arc::new(Activity::new());
    let stream = Watched { stream, activity: Arc::clone(&activity), slot: &slot };
    let asked = Arc::clone(&activity);
    let service = service_fn(move |request| answer(request, router.clone(), Arc::clone(&asked)));
    let connection = http1::Builder::new()
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(4 * HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        why = activity.too_slow() => return Err(Ended::TooSlow(why)),
        () = slot.evicted().cancelled() => return Err(Ended::Displaced),
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))?)
}

async fn answer(
    request: Request<Incoming>,
    mut router: Router,
    activity: Arc<Activity>,
) -> Result<Response, std::convert::Infallible> {
    activity.asked();
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let response = if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n").into_response()
    } else {
        let request = request.map(|body| Body::new(Limited::new(body, BODY_BYTES_MAX)));
        router.call(request).await.unwrap_or_else(|never| match never {})
    };
    activity.answered();
    Ok(response)
}

/// What has happened on a connection, and when: milliseconds since it began, one more; 0 is never, or not now.
#[derive(Debug)]
struct Activity {
    start: Instant,
    /// A byte went either way.
    last: AtomicU64,
    /// The first byte of a head, until it is whole.
    head: AtomicU64,
    /// A request is being answered.
    asked: AtomicU64,
    /// The first byte of its body.
    body: AtomicU64,
    /// Since when the reader takes nothing.
    stuck: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        let never = || AtomicU64::new(0);
        Activity {
            start: Instant::now(),
            last: AtomicU64::new(1),
            head: never(),
            asked: never(),
            body: never(),
            stuck: never(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn read(&self) {
        let now = self.now();
        self.last.store(now, Ordering::Relaxed);
        let is_answering = self.asked.load(Ordering::Relaxed) != 0;
        begin(if is_answering { &self.body } else { &self.head }, now);
    }

    fn wrote(&self, taken: bool) {
        if taken {
            self.last.store(self.now(), Ordering::Relaxed);
            self.stuck.store(0, Ordering::Relaxed);
        } else {
            begin(&self.stuck, self.now());
        }
    }

    fn asked(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.asked.store(self.now(), Ordering::Relaxed);
    }

    fn answered(&self) {
        self.asked.store(0, Ordering::Relaxed);
        self.body.store(0, Ordering::Relaxed);
    }

    /// Resolves when a time is over.
    async fn too_slow(&self) -> &'static str {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.now();
            let times = [
                (&self.head, HEAD_TIMEOUT, "the head of a request did not come in time"),
                (&self.body, BODY_TIMEOUT, "the body of a request did not come in time"),
                (&self.stuck, READER_TIMEOUT, "the answer is not taken"),
                (&self.last, IDLE_TIMEOUT, "idle"),
            ];
            for (since, timeout, why) in times {
                let since = since.load(Ordering::Relaxed);
                if since != 0 && u128::from(now.saturating_sub(since)) >= timeout.as_millis() {
                    return why;
                }
            }
        }
    }
}

/// Notes when something begins, unless it has.
fn begin(since: &AtomicU64, now: u64) {
    let _ = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
}

/// A stream whose activity is noted.
struct Watched<'a> {
    stream: TcpStream,
    activity: Arc<Activity>,
    slot: &'a Slot,
}

impl Watched<'_> {
    fn wrote<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.wrote(written.is_ready());
        written
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.read();
            self.slot.touch(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
