//! A download of any size by curl, hashed at both ends while it flows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::RngCore;
use sha2::{Digest, Sha256};

use super::shell;

const BLOCK_BYTES: usize = 1 << 20;

/// Serves one download; what was sent is known when it has ended.
#[derive(Debug)]
pub struct Source {
    addr: SocketAddr,
    thread: JoinHandle<anyhow::Result<String>>,
}

/// What came of a download.
#[derive(Debug, Clone)]
pub struct Downloaded {
    /// Bytes received.
    pub bytes: u64,
    /// From curl's start to its end.
    pub took: Duration,
    /// SHA-256 of what the source sent.
    pub sent_sha256: String,
    /// SHA-256 of what curl got.
    pub got_sha256: String,
}

impl Source {
    /// Will serve `bytes`, no two blocks of them alike.
    pub fn start(bytes: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            send(stream, bytes)
        });
        Ok(Source { addr, thread })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Has curl fetch it from `service` at `port`.
    ///
    /// # Errors
    /// When curl fails.
    pub fn download(self, service: &str, port: u16) -> anyhow::Result<Downloaded> {
        let begun = Instant::now();
        let script = "exec curl --no-progress-meter --fail -H \"Host: $SERVICE\" http://127.0.0.1:$PORT/";
        let mut curl = shell(script, &[("SERVICE", &service), ("PORT", &port)]);
        let mut curl = Curl(curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut pipe = curl.0.stdout.take().context("stdout is piped")?;
        let (mut block, mut digest, mut bytes) = (vec![0; BLOCK_BYTES], Sha256::new(), 0);
        loop {
            let read = pipe.read(&mut block)?;
            if read == 0 {
                break;
            }
            digest.update(&block[..read]);
            bytes += read as u64;
        }
        let status = curl.0.wait()?;
        let took = begun.elapsed();
        ensure!(status.success(), "curl after {bytes} bytes: {status}");
        let sent_sha256 = self.thread.join().expect("the source does not panic")?;
        Ok(Downloaded { bytes, took, sent_sha256, got_sha256: hex(digest) })
    }
}

/// Dies with the test that started it.
struct Curl(Child);

impl Drop for Curl {
    fn drop(&mut self) {
        // It mostly has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(mut stream: TcpStream, bytes: u64) -> anyhow::Result<String> {
    let mut head = BufReader::new(stream.try_clone()?).lines();
    while !head.next().context("the request ended within its head")??.is_empty() {}
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    let mut block = vec![0; BLOCK_BYTES];
    rand::rng().fill_bytes(&mut block);
    let (mut digest, mut sent) = (Sha256::new(), 0);
    while sent < bytes {
        // A block that is lost, doubled or out of place changes the hash.
        block[..8].copy_from_slice(&sent.to_le_bytes());
        let count = usize::try_from(bytes - sent).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        stream.write_all(&block[..count])?;
        digest.update(&block[..count]);
        sent += count as u64;
    }
    Ok(hex(digest))
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
