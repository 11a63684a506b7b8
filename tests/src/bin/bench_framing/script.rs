//! Both ends of the hop, in memory: a client that asks the same again and again, and a backend that answers.
//!
//! The streams cost next to nothing and never make a writer wait; each end has its next bytes ready only when
//! the message before has arrived whole, as on a kept-alive connection without pipelining. Where a message
//! ends is read from the first one that arrives; later ones are told by their length or by the last chunk.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whom all requests are for.
pub const SERVICE: &str = "web.example";

const REQUEST_HEAD_BYTES: usize = 320;
const RESPONSE_HEAD_BYTES: usize = 232;

/// A request and its response, as they are sent.
#[derive(Debug)]
pub struct Exchange {
    pub request: Vec<u8>,
    pub response: Vec<u8>,
}

impl Exchange {
    /// A request that carries `asked` bytes, if any, and is answered with `answered` by length.
    pub fn by_length(asked: usize, answered: usize) -> Self {
        let body = vec![b'x'; answered];
        Exchange {
            request: request(asked),
            response: response(&format!("Content-Length: {answered}"), &body),
        }
    }

    /// A GET that is answered with `answered` bytes in chunks of `chunk`.
    pub fn in_chunks(answered: usize, chunk: usize) -> Self {
        let mut body = Vec::new();
        for size in std::iter::repeat_n(chunk, answered / chunk) {
            body.extend(
                format!("{size:x}\r\n").bytes().chain(std::iter::repeat_n(b'x', size)).chain(*b"\r\n"),
            );
        }
        body.extend(b"0\r\n\r\n");
        Exchange { request: request(0), response: response("Transfer-Encoding: chunked", &body) }
    }
}

fn request(body_bytes: usize) -> Vec<u8> {
    let (method, length) = match body_bytes {
        0 => ("GET", String::new()),
        _ => ("POST", format!("Content-Length: {body_bytes}\r\n")),
    };
    let head = format!(
        "{method} /api/v1/things?page=2 HTTP/1.1\r\nHost: {SERVICE}\r\n{length}Accept: application/json\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nUser-Agent: bench/1.0 (framing)\r\n\
         X-Request-Id: 4f1c2a90-5d1e-4c0e-9d5b-0a4a1f6f2f11\r\n"
    );
    message(head, "Cookie", REQUEST_HEAD_BYTES, &vec![b'x'; body_bytes])
}

fn response(framing: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Fri, 20 Nov 2026 10:20:38 GMT\r\n\
         Content-Type: application/json\r\n{framing}\r\nCache-Control: no-store\r\nVary: Accept-Encoding\r\n"
    );
    message(head, "ETag", RESPONSE_HEAD_BYTES, body)
}

/// Fills the head up with a field.
fn message(mut head: String, filler: &str, head_bytes: usize, body: &[u8]) -> Vec<u8> {
    head += filler;
    head += ": ";
    let missing = head_bytes - head.len() - 4;
    head.extend(std::iter::repeat_n('f', missing));
    head += "\r\n\r\n";
    [head.as_bytes(), body].concat()
}

/// The streams of a client that asks `count` times and of a backend that answers.
pub fn ends(exchange: &Arc<Exchange>, count: usize) -> (End, End) {
    let state = Arc::new(Mutex::new(State {
        exchange: exchange.clone(),
        left: count,
        there: Way { sendable: exchange.request.len(), ..Way::default() },
        back: Way::default(),
    }));
    (End { state: state.clone(), role: Role::Client }, End { state, role: Role::Backend })
}

/// The hop's side of a connection.
#[derive(Debug)]
pub struct End {
    state: Arc<Mutex<State>>,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Backend,
}

#[derive(Debug)]
struct State {
    exchange: Arc<Exchange>,
    /// Exchanges that have not ended.
    left: usize,
    there: Way,
    back: Way,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// What the hop has not read of the message.
    sendable: usize,
    reader: Option<Waker>,
    /// How much of the message left the hop.
    arrived: usize,
    /// The end of it.
    tail: [u8; LAST_CHUNK.len()],
    ending: Ending,
    /// The first message that arrived.
    first: Vec<u8>,
    last: Vec<u8>,
}

/// How a message's end is known.
#[derive(Debug, Default, Clone, Copy)]
enum Ending {
    /// The first is under way.
    #[default]
    Unknown,
    Bytes(usize),
    /// hyper's chunks are what it happens to read at once.
    LastChunk,
}

/// Nowhere else in a message of ours.
const LAST_CHUNK: &[u8; 5] = b"0\r\n\r\n";

impl Way {
    /// Whether the message is whole with `bytes`.
    fn arrive(&mut self, bytes: &[u8], last: bool) -> bool {
        self.arrived += bytes.len();
        let kept = bytes.len().min(self.tail.len());
        self.tail.rotate_left(kept);
        self.tail[LAST_CHUNK.len() - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        if last {
            self.last.extend_from_slice(bytes);
        }
        if matches!(self.ending, Ending::Unknown) {
            self.first.extend_from_slice(bytes);
            self.ending = ending(&self.first);
        }
        let whole = match self.ending {
            Ending::Unknown => false,
            Ending::Bytes(length) => {
                assert!(self.arrived <= length, "a message is longer than the first");
                self.arrived == length
            }
            Ending::LastChunk => self.tail == *LAST_CHUNK,
        };
        if whole {
            self.arrived = 0;
            assert!(!last || data_bytes(&self.last) == data_bytes(&self.first), "the last differs");
        }
        whole
    }

    fn send(&mut self, bytes: usize) {
        self.sendable = bytes;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Of a first message, known when it is whole; slow and simple.
fn ending(message: &[u8]) -> Ending {
    let Some((head, body)) = split(message) else { return Ending::Unknown };
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    if head.contains("\r\ntransfer-encoding: chunked") {
        return if body.ends_with(LAST_CHUNK) { Ending::LastChunk } else { Ending::Unknown };
    }
    let length = head.split_once("\r\ncontent-length: ").and_then(|(_, rest)| rest.lines().next());
    let length = length.map_or(0, |length| length.parse().expect("a length is a number"));
    if body.len() == length { Ending::Bytes(message.len()) } else { Ending::Unknown }
}

/// Head, with its empty line, and body.
fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = message.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    Some(message.split_at(end))
}

/// How many bytes of a message's body are data (our data has one letter and that is no hexadecimal digit).
pub fn data_bytes(message: &[u8]) -> Option<usize> {
    let (_, body) = split(message)?;
    Some(body.iter().filter(|byte| **byte == b'x').count())
}

impl End {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the bench ends with the first panic")
    }

    /// The first request as the backend got it, and the first response as the client did.
    pub fn seen(&self) -> (Vec<u8>, Vec<u8>) {
        let state = self.state();
        (state.there.first.clone(), state.back.first.clone())
    }

    /// Whether all exchanges ended.
    pub fn is_done(&self) -> bool {
        self.state().left == 0
    }

    /// A second handle of the same end, to look through.
    pub fn observer(&self) -> End {
        End { state: self.state.clone(), role: self.role }
    }
}

impl State {
    fn arrive(&mut self, role: Role, bytes: &[u8]) {
        let last = self.left == 1;
        match role {
            Role::Backend => {
                if self.there.arrive(bytes, last) {
                    self.back.send(self.exchange.response.len());
                }
            }
            Role::Client => {
                if self.back.arrive(bytes, last) {
                    self.left -= 1;
                    self.there.send(if self.left > 0 { self.exchange.request.len() } else { 0 });
                }
            }
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let State { exchange, left, there, back } = &mut *state;
        let (way, message) = match self.role {
            Role::Client => (there, &exchange.request),
            Role::Backend => (back, &exchange.response),
        };
        if way.sendable == 0 {
            // All exchanges done: the client closes.
            if *left == 0 && self.role == Role::Client {
                return Poll::Ready(Ok(()));
            }
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = way.sendable.min(buffer.remaining());
        let start = message.len() - way.sendable;
        buffer.put_slice(&message[start..start + count]);
        way.sendable -= count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.state().arrive(self.role, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            state.arrive(self.role, piece);
        }
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    /// As sockets are.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
