//! A real HTTP/1.1 service to forward to, for tests, the demo and benches; needs no install.
//!
//! The path says how it answers, so that a test chooses framing and timing per request:
//!
//! | path | answer |
//! |---|---|
//! | `/` | a greeting that names the backend |
//! | `/echo` | JSON: method, target, host, length and SHA-256 of the body, connection and request number |
//! | `/bytes/N` | N bytes of [`pattern`] with a Content-Length; with `Range: bytes=A-B` those alone |
//! | `/chunked/N` | the same in chunks of many sizes, with a trailer |
//! | `/until-close/N` | the same with neither; the end of the connection ends it |
//! | `/truncated/N` | announces N bytes, sends half, closes |
//! | `/reset/N` | N bytes that only the end of the connection could end, then a reset |
//! | `/slow/MS` | the greeting after MS milliseconds |
//! | `/drip/N/MS` | N chunks of one byte, MS milliseconds apart |
//! | `/status/CODE` | that status, with a body where one is allowed |
//! | `/close` | the greeting with `Connection: close` |
//! | `/upgrade` | 101, then every byte comes back |
//!
//! It reads bodies of any length without keeping them. It is strict about requests, since what reaches it was
//! framed by the system under test: a request it cannot read with certainty gets 400 and ends the connection.

mod answer;
mod request;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use request::{Reader, Refusal};

/// A backend on its own thread; stops when dropped, cutting its connections.
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What reached a backend.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Requests whose head was read.
    pub requests: AtomicU64,
    /// Requests refused as unreadable.
    pub refused: AtomicU64,
}

impl Backend {
    /// Serves on a free loopback port; `name` is part of the greeting.
    pub fn start(name: &str) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let (name, counted) = (name.to_string(), Arc::clone(&counters));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a runtime is entered");
                tokio::select! {
                    _ = stopped => {}
                    never = serve(listener, name, counted) => match never {},
                }
            });
        });
        Ok(Backend { addr, counters, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// Requests read so far.
    pub fn requests(&self) -> u64 {
        self.counters.requests.load(Ordering::Relaxed)
    }

    /// Requests it could not read.
    pub fn refused(&self) -> u64 {
        self.counters.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have stopped by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the backend panicked");
        }
    }
}

/// Byte `index` of every body of known content.
pub fn pattern(index: usize) -> u8 {
    (index.wrapping_mul(31) ^ (index >> 8)) as u8
}

/// Serves connections of `listener` for ever.
pub async fn serve(listener: TcpListener, name: String, counters: Arc<Counters>) -> std::convert::Infallible {
    let name: Arc<str> = name.into();
    loop {
        // A failed accept (too many files) is over when connections end.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let connection = counters.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (name, counters) = (Arc::clone(&name), Arc::clone(&counters));
        counters.open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            // A client that goes away is no concern of ours.
            let _ = serve_connection(stream, &name, connection, &counters).await;
            counters.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    name: &str,
    connection: u64,
    counters: &Counters,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    let mut served = 0;
    loop {
        let head = match reader.head().await? {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(Refusal(why)) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                return answer::refuse(&mut write, why).await;
            }
        };
        served += 1;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let context = answer::Context { name, connection, request: served };
        match answer::answer(&context, head, &mut reader, &mut write).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // Dropped, it would say that all was sent.
                write.forget();
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Connection, Request};
    use sha2::{Digest, Sha256};

    fn body(count: usize) -> Vec<u8> {
        (0..count).map(pattern).collect()
    }

    #[test]
    fn greets_and_keeps_the_connection() {
        let backend = Backend::start("b1").unwrap();
        let mut connection = Connection::open(backend.addr()).unwrap();
        for request in 1..=3 {
            let answer = connection.ask(&Request::get("a.example", "/echo?x=1")).unwrap();
            let echo: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(echo["host"], "a.example");
            assert_eq!(echo["target"], "/echo?x=1");
            assert_eq!((&echo["connection"], &echo["request"]), (&1.into(), &request.into()));
        }
        assert!(http::get(backend.addr(), "a.example", "/").unwrap().text().contains("b1"));
        assert_eq!((backend.connections(), backend.requests(), backend.refused()), (2, 4, 0));
    }

    #[test]
    fn frames_bodies_in_every_way() {
        let backend = Backend::start("b1").unwrap();
        for count in [0, 1, 4095, 70_000] {
            for kind in ["bytes", "chunked", "until-close"] {
                let answer = http::get(backend.addr(), "a", &format!("/{kind}/{count}")).unwrap();
                assert_eq!(answer.body, body(count), "/{kind}/{count}");
            }
        }
        assert!(http::get(backend.addr(), "a", "/reset/100").is_err());
        let error = http::get(backend.addr(), "a", "/truncated/100").unwrap_err();
        assert!(error.to_string().contains("50 of 100"), "{error}");
    }

    #[test]
    fn reads_bodies_in_every_framing() {
        let backend = Backend::start("b1").unwrap();
        let sent = body(100_000);
        let expected: String = Sha256::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut connection = Connection::open(backend.addr()).unwrap();
        let request = Request { method: "POST", body: &sent, ..Request::get("a", "/echo") };
        let plain = connection.ask(&request).unwrap();
        let expecting = Request { headers: &[("Expect", "100-continue")], ..request };
        let continued = connection.ask(&expecting).unwrap();
        connection.send(b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for chunk in sent.chunks(33_333) {
            connection.send(format!("{:x};ext=1\r\n", chunk.len()).as_bytes()).unwrap();
            connection.send(chunk).unwrap();
            connection.send(b"\r\n").unwrap();
        }
        connection.send(b"0\r\nTrailer: 1\r\n\r\n").unwrap();
        for answer in [plain, continued, connection.receive("PUT").unwrap()] {
            let echo: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(echo["body_bytes"], 100_000);
            assert_eq!(echo["body_sha256"], *expected);
        }
    }

    #[test]
    fn answers_head_status_close_and_upgrade() {
        let backend = Backend::start("b1").unwrap();
        let mut connection = Connection::open(backend.addr()).unwrap();
        let part = Request { headers: &[("Range", "bytes=3-5")], ..Request::get("a", "/bytes/10") };
        let answer = connection.ask(&part).unwrap();
        assert_eq!((answer.status, answer.header("content-range")), (206, Some("bytes 3-5/10")));
        assert_eq!(answer.body, body(10)[3..6]);
        let head = Request { method: "HEAD", ..Request::get("a", "/bytes/10") };
        let answer = connection.ask(&head).unwrap();
        assert_eq!((answer.header("content-length"), answer.body.len()), (Some("10"), 0));
        assert_eq!(connection.ask(&Request::get("a", "/status/204")).unwrap().status, 204);
        assert_eq!(connection.ask(&Request::get("a", "/status/503")).unwrap().status, 503);
        assert_eq!(connection.ask(&Request::get("a", "/nowhere")).unwrap().status, 404);
        assert_eq!(connection.ask(&Request::get("a", "/slow/20")).unwrap().status, 200);
        assert_eq!(connection.ask(&Request::get("a", "/drip/3/5")).unwrap().body, body(3));
        assert_eq!(connection.ask(&Request::get("a", "/close")).unwrap().status, 200);
        assert!(connection.is_closed().unwrap());
        let mut upgraded = Connection::open(backend.addr()).unwrap();
        let headers = [("Connection", "Upgrade"), ("Upgrade", "echo")];
        let upgrade = Request { headers: &headers, ..Request::get("a", "/upgrade") };
        assert_eq!(upgraded.ask(&upgrade).unwrap().status, 101);
        upgraded.send(b"any bytes").unwrap();
        assert_eq!(upgraded.read_exact(9).unwrap(), b"any bytes");
    }

    #[test]
    fn refuses_what_it_cannot_frame() {
        let backend = Backend::start("b1").unwrap();
        for request in [
            "nonsense\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        ] {
            let mut connection = Connection::open(backend.addr()).unwrap();
            connection.send(request.as_bytes()).unwrap();
            assert_eq!(connection.receive("GET").unwrap().status, 400, "{request:?}");
        }
        assert_eq!(backend.refused(), 6);
    }
}
