//! The operations port: its pages, and that slow or many clients do not take it away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use p2p_runtime::admin::{
    BODY_BYTES_MAX, BODY_TIMEOUT, CONNECTIONS_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, METRICS_PATH, READER_TIMEOUT,
    Readiness, router, serve,
};
use p2p_runtime::tcp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use slog::{Discard, Logger, o};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Port {
    addr: SocketAddr,
    ready: watch::Sender<Readiness>,
    stop: CancellationToken,
    done: JoinHandle<()>,
}

fn open() -> Port {
    let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--ops").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut registry = Registry::default();
    let counter: Counter = Counter::default();
    counter.inc_by(3);
    registry.register("forwards", "Forwards carried", counter);
    let (ready, readiness) = watch::channel(Readiness::NotReady(vec!["no server".into(), "no key".into()]));
    let stop = CancellationToken::new();
    let big: Router = Router::new()
        .route("/big", get(async || vec![b'a'; 64 << 20]))
        .route("/count", post(async |body: axum::body::Bytes| body.len().to_string()))
        .route("/waits", get(async || tokio::time::sleep(Duration::from_secs(45)).await));
    let pages = router(METRICS_PATH, Arc::new(registry), readiness).merge(big);
    let done =
        tokio::spawn(serve(listener, pages, CONNECTIONS_MAX, stop.clone(), Logger::root(Discard, o!())));
    Port { addr, ready, stop, done }
}

async fn ask(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages_say_what_they_should() {
    let port = open();
    assert!(ask(port.addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    let answer = ask(port.addr, "/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready\nno server\nno key\n"),
        "{answer}"
    );
    port.ready.send(Readiness::Ready).unwrap();
    assert!(ask(port.addr, "/readyz").await.starts_with("HTTP/1.1 200"));
    let answer = ask(port.addr, "/metrics").await;
    assert!(answer.contains("forwards_total 3\n") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(ask(port.addr, "/other").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn garbage_and_oversized_heads_cost_their_own_connection() {
    let port = open();
    let long = [b"GET /healthz HTTP/1.1\r\nx: ".as_slice(), &vec![b'a'; 1 << 20]].concat();
    for input in [b"\x16\x03\x01\x00\x05hello\r\n\r\n".as_slice(), b"\0\0\0\0\r\n\r\n", &long] {
        let mut stream = TcpStream::connect(port.addr).await.unwrap();
        let _ = stream.write_all(input).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    assert!(ask(port.addr, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn silent_clients_give_their_place_up() {
    let port = open();
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(port.addr).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    let asked = tokio::time::timeout(Duration::from_secs(5), ask(port.addr, "/healthz"));
    assert!(asked.await.unwrap().starts_with("HTTP/1.1 200"));
    let mut end = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), silent[0].read(&mut end)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "the oldest is still open");
    let newest = tokio::time::timeout(Duration::from_millis(100), silent[299].read(&mut end)).await;
    assert!(newest.is_err(), "the newest was closed for no reason");
}

#[tokio::test]
async fn it_ends_when_asked_even_with_idle_clients() {
    let port = open();
    let mut idle = TcpStream::connect(port.addr).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.unwrap();
    port.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), port.done).await.unwrap().unwrap();
    assert!(TcpStream::connect(port.addr).await.is_err());
}

/// Lets the others go on, moves tokio's clock, and lets them notice.
async fn later(time: Duration) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::pause();
    tokio::time::advance(time + Duration::from_secs(1)).await;
    tokio::time::resume();
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 64])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

async fn say(port: &Port, text: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(port.addr).await.unwrap();
    stream.write_all(text).await.unwrap();
    stream
}

#[tokio::test]
async fn slow_heads_and_bodies_and_silence_have_their_times() {
    let port = open();
    let mut head = say(&port, b"GET /healthz HTTP/1.1\r\n").await;
    let mut body = say(&port, b"POST /count HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    body.write_all(b"1").await.unwrap();
    let mut waits = say(&port, b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut idle = say(&port, b"").await;
    later(HEAD_TIMEOUT).await;
    assert!(is_closed(&mut head).await);
    assert!(!is_closed(&mut body).await && !is_closed(&mut waits).await && !is_closed(&mut idle).await);
    later(BODY_TIMEOUT - HEAD_TIMEOUT).await;
    assert!(is_closed(&mut body).await);
    assert!(!is_closed(&mut waits).await && !is_closed(&mut idle).await);
    later(Duration::from_secs(12)).await;
    let mut answer = [0; 15];
    waits.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK", "an answer may take its time");
    assert!(!is_closed(&mut idle).await);
    later(IDLE_TIMEOUT - BODY_TIMEOUT).await;
    assert!(is_closed(&mut idle).await);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed() {
    let port = open();
    let mut deaf = say(&port, b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    later(READER_TIMEOUT).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut answer = Vec::new();
    let _ = deaf.read_to_end(&mut answer).await;
    assert!(!answer.is_empty() && answer.len() < 64 << 20, "{}", answer.len());
}

#[tokio::test]
async fn bodies_are_bounded_announced_or_not() {
    let port = open();
    let announced =
        format!("POST /count HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    let mut stream = say(&port, announced.as_bytes()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    let mut stream =
        say(&port, b"POST /count HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let chunk = [b"10000\r\n".as_slice(), &[b'a'; 0x10000], b"\r\n"].concat();
    for _ in 0..2 * BODY_BYTES_MAX / 0x10000 {
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    // The rest of the body may have reset the connection before the answer was read.
    if stream.read_exact(&mut answer).await.is_ok() {
        assert_eq!(&answer, b"HTTP/1.1 413");
    }
    let fits = "POST /count HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc";
    let mut stream = say(&port, fits.as_bytes()).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\n3"), "{answer}");
}
