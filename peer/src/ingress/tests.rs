//! Requests through two Peers over loopback: client, ingress, tunnel, owner, backend; nothing is faked but the
//! Server the Peers meet through.

mod accounted;
mod bounds;
mod carried;
mod faces;
mod newcomers;
mod retried;
mod revoked;
mod smuggling;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::fixture::Node;

/// A backend: `serve` gets each connection.
async fn backend<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    addr
}

fn service(name: &str, backend: SocketAddr) -> Vec<String> {
    vec![format!("{name}={backend}")]
}

/// A backend that answers every request of a connection with its name, the request's line and body.
async fn echo_backend(name: &'static str) -> SocketAddr {
    backend(move |stream| async move {
        let mut stream = BufReader::new(stream);
        while let Some((head, body)) = read_message(&mut stream).await {
            let line = head.lines().next().unwrap().to_owned();
            let close = head.to_ascii_lowercase().contains("connection: close");
            let answer = format!("{name} {line} {}", String::from_utf8_lossy(&body));
            let ending = if close { "Connection: close\r\n" } else { "" };
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{ending}\r\n");
            let body = if line.starts_with("HEAD") { "" } else { &answer };
            if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() || close {
                return;
            }
        }
    })
    .await
}

/// Reads a head and the body its Content-Length or chunks say.
async fn read_message<S: AsyncBufReadExt + Unpin>(stream: &mut S) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size).await.ok()?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        body.resize(length.unwrap_or(0), 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    Some((head, body))
}

struct Client(BufReader<TcpStream>);

impl Client {
    async fn to(node: &Node) -> Self {
        Client(BufReader::new(TcpStream::connect(node.listen).await.unwrap()))
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// The next response as status and body.
    async fn response(&mut self) -> (u16, String) {
        let (head, body) = within(read_message(&mut self.0)).await.expect("an answer");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8_lossy(&body).into_owned())
    }

    async fn get(&mut self, host: &str, path: &str) -> (u16, String) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        self.response().await
    }

    async fn at_end(&mut self) -> bool {
        let mut byte = [0];
        matches!(within(self.0.read(&mut byte)).await, Ok(0))
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

/// Waits for what becomes true in the background.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn nothing_left(ingress: &Node, owner: &Node) {
    eventually("without forwards", || ingress.forwards.counts().0 == 0 && owner.forwards.counts().0 == 0)
        .await;
}

/// A reproducible stream of bytes.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut jitter = p2p_common::backoff::Jitter::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&jitter.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What `openssl s_client -servername web.example` says first.
fn client_hello() -> Vec<u8> {
    let hex = include_str!("../../core/tests/testdata/client_hello_openssl.hex");
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}
