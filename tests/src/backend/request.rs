//! Reads requests off a connection: the head, then the body in whichever framing the head announced.

use std::io;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;

/// Heads above this are refused.
const HEAD_BYTES: usize = 64 * 1024;
const BUFFER_BYTES: usize = 64 * 1024;

/// A request that cannot be read with certainty, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) &'static str);

/// How the body that follows a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// What stands above a body.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
    /// The client ends the connection after this.
    pub(super) close: bool,
    /// The client waits for 100 before it sends the body.
    pub(super) expects_continue: bool,
    /// The bytes it wants of the body, first and last.
    pub(super) range: Option<(usize, usize)>,
    framing: Framing,
}

/// The reading half of a connection.
#[derive(Debug)]
pub(super) struct Reader {
    stream: BufReader<OwnedReadHalf>,
}

impl Reader {
    pub(super) fn new(stream: OwnedReadHalf) -> Self {
        Reader { stream: BufReader::with_capacity(BUFFER_BYTES, stream) }
    }

    /// The next head; `None` when the client is done.
    pub(super) async fn head(&mut self) -> io::Result<Result<Option<Head>, Refusal>> {
        let mut lines = Vec::new();
        let mut total = 0;
        loop {
            let Some(line) = self.line().await? else {
                return Ok(if lines.is_empty() { Ok(None) } else { Err(Refusal("the head is cut off")) });
            };
            total += line.len();
            if total > HEAD_BYTES {
                return Ok(Err(Refusal("the head is too long")));
            }
            if line.is_empty() {
                return Ok(parse(&lines).map(Some));
            }
            lines.push(line);
        }
    }

    /// Reads the body of `head` to its end, handing each piece to `on_piece`.
    pub(super) async fn body(&mut self, head: &Head, mut on_piece: impl FnMut(&[u8])) -> io::Result<()> {
        match head.framing {
            Framing::Length(length) => self.pieces(length, &mut on_piece).await,
            Framing::Chunked => loop {
                let line = self.line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let size = line.split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                self.pieces(size, &mut on_piece).await?;
                if size == 0 {
                    while self.line().await?.is_some_and(|trailer| !trailer.is_empty()) {}
                    return Ok(());
                }
                if self.line().await?.as_deref() != Some("") {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            },
        }
    }

    /// Whatever comes next, for a connection that is HTTP until its Upgrade; empty at the end.
    pub(super) async fn raw(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).await
    }

    async fn pieces(&mut self, mut left: u64, on_piece: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES)];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            let read = self.stream.read(&mut buffer[..most]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            on_piece(&buffer[..read]);
            left -= read as u64;
        }
        Ok(())
    }

    /// A line without its end; `None` when nothing comes any more.
    async fn line(&mut self) -> io::Result<Option<String>> {
        use tokio::io::AsyncBufReadExt;
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(HEAD_BYTES as u64);
        bounded.read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(None);
        }
        // Whoever forwards a bare LF frames differently from what RFC 9112 asks of a sender.
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(Some(String::from_utf8_lossy(text).into_owned()))
    }
}

fn parse(lines: &[String]) -> Result<Head, Refusal> {
    let first = lines.first().ok_or(Refusal("no request line"))?;
    let [method, target, "HTTP/1.1"] = first.split(' ').collect::<Vec<_>>()[..] else {
        return Err(Refusal("no request line of HTTP/1.1"));
    };
    let mut head = Head {
        method: method.into(),
        target: target.into(),
        host: String::new(),
        close: false,
        expects_continue: false,
        range: None,
        framing: Framing::Length(0),
    };
    let (mut hosts, mut framings) = (0, 0);
    for line in &lines[1..] {
        let (name, value) = line.split_once(':').ok_or(Refusal("a header without a colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => {
                hosts += 1;
                head.host = value.into();
            }
            "content-length" => {
                framings += 1;
                if !value.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(Refusal("Content-Length is no number"));
                }
                head.framing =
                    Framing::Length(value.parse().map_err(|_| Refusal("Content-Length too large"))?);
            }
            "transfer-encoding" => {
                framings += 1;
                if !value.eq_ignore_ascii_case("chunked") {
                    return Err(Refusal("only chunked is known"));
                }
                head.framing = Framing::Chunked;
            }
            "connection" => head.close |= value.eq_ignore_ascii_case("close"),
            "range" => head.range = parse_range(value),
            "expect" => head.expects_continue |= value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    match (hosts, framings) {
        (1, 0 | 1) => Ok(head),
        (1, _) => Err(Refusal("two framings of the body")),
        _ => Err(Refusal("not exactly one Host")),
    }
}

/// Of the forms of a range only the one with both ends; others are ignored, as anybody may.
fn parse_range(value: &str) -> Option<(usize, usize)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}
