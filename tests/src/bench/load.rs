//! The load: the same client for every contestant.
//!
//! Requests run closed-loop on a fixed number of connections: each sends its next request when the former is
//! answered in full. Any answer but a 200 of the expected length ends the measurement with an error: a fast
//! wrong answer is no figure.

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a single answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Whether a connection carries more than one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Request after request.
    KeepAlive,
    /// A connection per request, closed by the other side.
    Close,
}

/// What a run of short requests found.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Answers per second over all connections.
    pub per_second: f64,
    /// Half of the answers took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 % of the answers took no longer, in milliseconds.
    pub p99_ms: f64,
}

/// What a long download found.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// 10^6 bytes of body per second.
    pub megabytes_per_second: f64,
    /// The body.
    pub bytes: u64,
}

/// Where to, for what, and how long the answer's body must be.
#[derive(Debug, Clone)]
struct Target {
    addr: SocketAddr,
    request: Vec<u8>,
    body_bytes: usize,
    reuse: Reuse,
}

/// Asks `addr` for `target` of `host` from `clients` connections for `length`.
///
/// # Errors
/// When any answer is not a 200 with `body_bytes` bytes.
pub fn requests(
    (addr, host, target): (SocketAddr, &str, &str),
    reuse: Reuse,
    clients: usize,
    length: Duration,
    body_bytes: usize,
) -> anyhow::Result<Load> {
    let close = if reuse == Reuse::Close { "Connection: close\r\n" } else { "" };
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").into_bytes();
    let target = Target { addr, request, body_bytes, reuse };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let start = Instant::now();
        let tasks: Vec<_> =
            (0..clients).map(|_| tokio::spawn(client(target.clone(), start + length))).collect();
        let mut micros = Vec::new();
        for task in tasks {
            micros.extend(task.await.context("a client panicked")??);
        }
        let seconds = start.elapsed().as_secs_f64();
        ensure!(!micros.is_empty(), "no answer in {length:?}");
        micros.sort_unstable();
        let at = |share: f64| f64::from(micros[((micros.len() - 1) as f64 * share) as usize]) / 1e3;
        Ok(Load { per_second: micros.len() as f64 / seconds, p50_ms: at(0.5), p99_ms: at(0.99) })
    })
}

/// Downloads `target` once and throws it away.
pub fn bulk(addr: SocketAddr, host: &str, target: &str, bytes: u64) -> anyhow::Result<Bulk> {
    let mut stream = std::net::TcpStream::connect(addr).with_context(|| format!("connecting to {addr}"))?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let start = Instant::now();
    std::io::Write::write_all(&mut stream, request.as_bytes())?;
    let mut buffer = vec![0; 256 * 1024];
    let mut head = Vec::new();
    let mut received = loop {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended within the head");
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = end_of_head(&head) {
            ensure!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head[..end]));
            break (head.len() - end) as u64;
        }
    };
    while received < bytes {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the body ended after {received} of {bytes} bytes");
        received += read as u64;
    }
    ensure!(received == bytes, "the body has {received} bytes, not {bytes}");
    Ok(Bulk { megabytes_per_second: bytes as f64 / 1e6 / start.elapsed().as_secs_f64(), bytes })
}

/// One connection's (or, closing, one after the other's) answers until `end`: microseconds each.
async fn client(target: Target, end: Instant) -> anyhow::Result<Vec<u32>> {
    let mut micros = Vec::with_capacity(100_000);
    let mut stream = None;
    let mut buffer = Vec::with_capacity(64 * 1024);
    while Instant::now() < end {
        let start = Instant::now();
        let asked = tokio::time::timeout(ANSWER_DEADLINE, ask(&target, stream.take(), &mut buffer)).await;
        stream = asked.with_context(|| format!("no answer for {ANSWER_DEADLINE:?}"))??;
        micros.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok(micros)
}

/// One request and its answer; gives the connection back if it goes on.
async fn ask(
    target: &Target,
    stream: Option<TcpStream>,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<TcpStream>> {
    let mut stream = match stream {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(target.addr).await.context("connecting")?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    stream.write_all(&target.request).await.context("sending a request")?;
    buffer.clear();
    let end = loop {
        let read = stream.read_buf(buffer).await.context("reading an answer")?;
        if let Some(end) = end_of_head(buffer)
            && buffer.len() >= end + target.body_bytes
        {
            break end;
        }
        ensure!(read > 0, "the connection ended within an answer: {}", String::from_utf8_lossy(buffer));
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") || buffer.len() != end + target.body_bytes {
        bail!("not the answer expected: {}", String::from_utf8_lossy(buffer));
    }
    if target.reuse == Reuse::KeepAlive {
        return Ok(Some(stream));
    }
    ensure!(stream.read_buf(buffer).await? == 0, "more came than the answer");
    Ok(None)
}

/// The index after the empty line.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|index| index + 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn measures_a_backend_and_refuses_wrong_answers() {
        let backend = Backend::start("b").unwrap();
        let run = |reuse, target: &str, bytes| {
            requests((backend.addr(), "a", target), reuse, 4, Duration::from_millis(100), bytes)
        };
        let kept = run(Reuse::KeepAlive, "/bytes/100", 100).unwrap();
        assert!(kept.per_second > 0.0 && kept.p50_ms <= kept.p99_ms);
        let requests = backend.requests();
        assert_eq!(backend.connections(), 4);
        run(Reuse::Close, "/bytes/100", 100).unwrap();
        assert_eq!(backend.connections() - 4, backend.requests() - requests);
        assert!(run(Reuse::KeepAlive, "/bytes/100", 99).is_err());
        assert!(run(Reuse::KeepAlive, "/nowhere", 13).is_err());
        assert_eq!(bulk(backend.addr(), "a", "/bytes/1000000", 1_000_000).unwrap().bytes, 1_000_000);
        assert!(bulk(backend.addr(), "a", "/truncated/1000", 1000).is_err());
    }
}
