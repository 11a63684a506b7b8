//! The operations port: its pages, and that slow or many clients do not take it away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2p_runtime::admin::{METRICS_PATH, Readiness, router, serve};
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
    let pages = router(METRICS_PATH, Arc::new(registry), readiness);
    let done = tokio::spawn(serve(listener, pages, stop.clone(), Logger::root(Discard, o!())));
    Port { addr, ready, stop, done }
}

async fn get(addr: SocketAddr, path: &str) -> String {
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
    assert!(get(port.addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    let answer = get(port.addr, "/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready\nno server\nno key\n"),
        "{answer}"
    );
    port.ready.send(Readiness::Ready).unwrap();
    assert!(get(port.addr, "/readyz").await.starts_with("HTTP/1.1 200"));
    let answer = get(port.addr, "/metrics").await;
    assert!(answer.contains("forwards_total 3\n") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(get(port.addr, "/other").await.starts_with("HTTP/1.1 404"));
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
    assert!(get(port.addr, "/healthz").await.starts_with("HTTP/1.1 200"));
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
    let asked = tokio::time::timeout(Duration::from_secs(5), get(port.addr, "/healthz"));
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
