//! A small blocking HTTP/1.1 client that shows exactly what came back.
//!
//! It shares no code with what it tests: its own framing, no redirects, no retries, no reuse of connections
//! behind the caller's back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// No read or write of a test takes longer.
const IO_DEADLINE: Duration = Duration::from_secs(30);
/// Above this an answer is a mistake.
const HEAD_BYTES: u64 = 64 * 1024;

/// What is sent; the body goes with its Content-Length.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `HEAD`, `POST` and so on.
    pub method: &'a str,
    /// The Host header.
    pub host: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// Sent as it is.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A GET without further headers.
    pub fn get(host: &'a str, target: &'a str) -> Self {
        Request { method: "GET", host, target, headers: &[], body: &[] }
    }

    /// The bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host);
        for (name, value) in self.headers {
            bytes += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() {
            bytes += &format!("Content-Length: {}\r\n", self.body.len());
        }
        bytes += "\r\n";
        [bytes.as_bytes(), self.body].concat()
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without transfer coding.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text, for messages and comparisons.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One GET on a connection of its own.
pub fn get(addr: SocketAddr, host: &str, target: &str) -> anyhow::Result<Response> {
    Connection::open(addr)?.ask(&Request::get(host, target))
}

/// A connection that carries one request after the other.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects, with a deadline on this and on all that follows.
    pub fn open(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, IO_DEADLINE);
        let stream = stream.with_context(|| format!("connecting to {addr}"))?;
        stream.set_read_timeout(Some(IO_DEADLINE))?;
        stream.set_write_timeout(Some(IO_DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the answer.
    pub fn ask(&mut self, request: &Request<'_>) -> anyhow::Result<Response> {
        self.send(&request.to_bytes())?;
        self.receive(request.method)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(bytes).context("sending")
    }

    /// The socket, for what HTTP does not do.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Whether the other side closes without another byte.
    pub fn is_closed(&mut self) -> anyhow::Result<bool> {
        Ok(self.stream.fill_buf().context("waiting for the end")?.is_empty())
    }

    /// Reads exactly `count` bytes, for what comes after an Upgrade.
    pub fn read_exact(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).context("reading")?;
        Ok(bytes)
    }

    /// Reads the answer to a request of `method`; interim answers (1xx, except 101) are passed over.
    pub fn receive(&mut self, method: &str) -> anyhow::Result<Response> {
        loop {
            let mut response = self.receive_head()?;
            if (100..200).contains(&response.status) && response.status != 101 {
                continue;
            }
            let empty = method == "HEAD" || matches!(response.status, 101 | 204 | 304);
            if !empty {
                response.body = self.receive_body(&response)?;
            }
            return Ok(response);
        }
    }

    fn receive_head(&mut self) -> anyhow::Result<Response> {
        let first = self.line()?;
        let mut words = first.splitn(3, ' ');
        ensure!(words.next() == Some("HTTP/1.1"), "no HTTP/1.1 answer: {first:?}");
        let status = words.next().and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status code: {first:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Response { status, headers, body: Vec::new() });
            }
            let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
    }

    fn receive_body(&mut self, head: &Response) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        if head.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default();
                let size =
                    u64::from_str_radix(size, 16).with_context(|| format!("no chunk size: {line:?}"))?;
                if size == 0 {
                    while !self.line()?.is_empty() {}
                    return Ok(body);
                }
                self.append(&mut body, size)?;
                ensure!(self.line()?.is_empty(), "a chunk is longer than it said");
            }
        }
        match head.header("content-length") {
            Some(length) => {
                let length = length.parse().with_context(|| format!("no length: {length:?}"))?;
                self.append(&mut body, length)?;
            }
            None => {
                self.stream.read_to_end(&mut body).context("reading to the end")?;
            }
        }
        Ok(body)
    }

    fn append(&mut self, body: &mut Vec<u8>, count: u64) -> anyhow::Result<()> {
        let read = (&mut self.stream).take(count).read_to_end(body).context("reading the body")?;
        if (read as u64) < count {
            bail!("the body ended after {read} of {count} bytes");
        }
        Ok(())
    }

    /// A line without its CRLF.
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(HEAD_BYTES).read_line(&mut line).context("reading a line")?;
        let Some(text) = line.strip_suffix("\r\n") else {
            bail!("the answer ended within a line: {line:?}");
        };
        Ok(text.to_string())
    }
}
