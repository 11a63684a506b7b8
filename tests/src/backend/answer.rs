//! Answers one request as its path asks.

use std::io;
use std::time::Duration;

use sha2::{Digest, Sha256};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use super::pattern;
use super::request::{Head, Reader};

/// Above this a piece of a body is sent in parts.
const PIECE_BYTES: usize = 64 * 1024;

/// Who answers, and which request of which connection.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) name: &'a str,
    pub(super) connection: u64,
    pub(super) request: u64,
}

/// Says why a request was not read; the connection ends with it.
pub(super) async fn refuse(write: &mut OwnedWriteHalf, why: &str) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", why.len());
    write.write_all(head.as_bytes()).await?;
    write.write_all(why.as_bytes()).await?;
    write.shutdown().await
}

/// Reads the body, answers, and says whether the connection goes on.
pub(super) async fn answer(
    context: &Context<'_>,
    head: Head,
    reader: &mut Reader,
    write: &mut OwnedWriteHalf,
) -> io::Result<bool> {
    if head.expects_continue {
        write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (mut digest, mut length) = (Sha256::new(), 0u64);
    let wants_digest = head.target.starts_with("/echo");
    let on_piece = |piece: &[u8]| {
        length += piece.len() as u64;
        if wants_digest {
            digest.update(piece);
        }
    };
    reader.body(&head, on_piece).await?;

    let mut out = Out { write, is_head: head.method == "HEAD", close: head.close };
    let path = head.target.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let number = |index: usize| parts.get(index).and_then(|part| part.parse::<usize>().ok()).unwrap_or(0);
    let greeting = format!("hello from {} to {}\n", context.name, head.host);
    match parts[0] {
        "" => out.whole(200, greeting.as_bytes()).await?,
        "echo" => {
            let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            let echo = serde_json::json!({
                "method": head.method, "target": head.target, "host": head.host,
                "body_bytes": length, "body_sha256": sha256,
                "connection": context.connection, "request": context.request,
            });
            out.whole(200, echo.to_string().as_bytes()).await?;
        }
        "bytes" if head.range.is_some_and(|(_, last)| last < number(1)) => {
            let (first, last) = head.range.unwrap_or_default();
            out.part(first, last, number(1)).await?;
        }
        "bytes" => out.sized(number(1), number(1)).await?,
        "chunked" => out.chunked(number(1)).await?,
        "until-close" => {
            out.close = true;
            out.head(200, "").await?;
            out.pattern(0, number(1)).await?;
        }
        "truncated" => {
            out.sized(number(1), number(1) / 2).await?;
            out.close = true;
        }
        "reset" => {
            out.close = true;
            out.head(200, "").await?;
            out.pattern(0, number(1)).await?;
            // What it wrote would be thrown away with the reset if nobody had read it yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
            SockRef::from(AsRef::<TcpStream>::as_ref(out.write)).set_linger(Some(Duration::ZERO))?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        "slow" => {
            tokio::time::sleep(Duration::from_millis(number(1) as u64)).await;
            out.whole(200, greeting.as_bytes()).await?;
        }
        "drip" => out.drip(number(1), Duration::from_millis(number(2) as u64)).await?,
        "status" => match u16::try_from(number(1)) {
            Ok(status @ (204 | 304)) => out.head(status, "").await?,
            Ok(status @ 200..=599) => out.whole(status, greeting.as_bytes()).await?,
            _ => out.whole(404, b"a status lies between 200 and 599\n").await?,
        },
        "close" => {
            out.close = true;
            out.whole(200, greeting.as_bytes()).await?;
        }
        "upgrade" => {
            out.head(101, "Connection: Upgrade\r\nUpgrade: echo\r\n").await?;
            return echo_bytes(reader, out.write).await;
        }
        _ => out.whole(404, b"no such path\n").await?,
    }
    if out.close {
        out.write.shutdown().await?;
    }
    Ok(!out.close)
}

async fn echo_bytes(reader: &mut Reader, write: &mut OwnedWriteHalf) -> io::Result<bool> {
    let mut buffer = vec![0; 4096];
    loop {
        let read = reader.raw(&mut buffer).await?;
        if read == 0 {
            write.shutdown().await?;
            return Ok(false);
        }
        write.write_all(&buffer[..read]).await?;
    }
}

/// The writing half, and what the request asked of the answer's form.
#[derive(Debug)]
struct Out<'a> {
    write: &'a mut OwnedWriteHalf,
    is_head: bool,
    close: bool,
}

impl Out<'_> {
    async fn head(&mut self, status: u16, headers: &str) -> io::Result<()> {
        let reason = match status {
            101 => "Switching Protocols",
            200..=299 => "OK",
            _ => "As Asked",
        };
        let close = if self.close { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status} {reason}\r\nServer: p2p-tests\r\n{headers}{close}\r\n");
        self.write.write_all(head.as_bytes()).await
    }

    /// Head and body in one write, as a short answer usually comes.
    async fn whole(&mut self, status: u16, body: &[u8]) -> io::Result<()> {
        let close = if self.close { "Connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} OK\r\nServer: p2p-tests\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{close}\r\n",
            body.len()
        );
        let body = if self.is_head { &[] } else { body };
        self.write.write_all(&[head.as_bytes(), body].concat()).await
    }

    async fn sized(&mut self, announced: usize, sent: usize) -> io::Result<()> {
        self.head(200, &format!("Content-Length: {announced}\r\n")).await?;
        if self.is_head { Ok(()) } else { self.pattern(0, sent).await }
    }

    async fn part(&mut self, first: usize, last: usize, whole: usize) -> io::Result<()> {
        let count = last - first + 1;
        let range = format!("Content-Length: {count}\r\nContent-Range: bytes {first}-{last}/{whole}\r\n");
        self.head(206, &range).await?;
        if self.is_head { Ok(()) } else { self.pattern(first, count).await }
    }

    async fn chunked(&mut self, count: usize) -> io::Result<()> {
        self.head(200, "Transfer-Encoding: chunked\r\nTrailer: X-Checked\r\n").await?;
        if self.is_head {
            return Ok(());
        }
        let (mut sent, mut size) = (0, 1);
        while sent < count {
            let chunk = size.min(count - sent);
            self.write.write_all(format!("{chunk:X}\r\n").as_bytes()).await?;
            self.pattern(sent, chunk).await?;
            self.write.write_all(b"\r\n").await?;
            sent += chunk;
            size = (size * 3) % 40_000 + 1;
        }
        self.write.write_all(b"0\r\nX-Checked: yes\r\n\r\n").await
    }

    async fn drip(&mut self, count: usize, pause: Duration) -> io::Result<()> {
        self.head(200, "Transfer-Encoding: chunked\r\n").await?;
        for index in 0..if self.is_head { 0 } else { count } {
            self.write.write_all(b"1\r\n").await?;
            self.pattern(index, 1).await?;
            self.write.write_all(b"\r\n").await?;
            tokio::time::sleep(pause).await;
        }
        if self.is_head { Ok(()) } else { self.write.write_all(b"0\r\n\r\n").await }
    }

    async fn pattern(&mut self, from: usize, count: usize) -> io::Result<()> {
        let mut piece = Vec::with_capacity(count.min(PIECE_BYTES));
        for start in (from..from + count).step_by(PIECE_BYTES) {
            piece.clear();
            piece.extend((start..(start + PIECE_BYTES).min(from + count)).map(pattern));
            self.write.write_all(&piece).await?;
        }
        Ok(())
    }
}
