//! One check of a backend: does it take a connection, does it answer a GET.

use std::io;
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::service::{HealthCheck, ServiceName};
use p2p_runtime::tcp::{self, DialError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// For a whole check. Backends are near; one that needs longer helps nobody who waits for it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// A status line is shorter.
const STATUS_LINE_MAX_BYTES: usize = 256;

/// Why a backend does not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    /// It takes no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {} s", CHECK_TIMEOUT.as_secs())]
    TimedOut,
    /// What came is not HTTP.
    #[error("what it answers is not HTTP/1")]
    NotHttp,
    /// It says that it does not work.
    #[error("it answers with status {0}")]
    Status(u16),
}

/// Runs one check.
///
/// # Errors
/// When the backend does not pass.
pub(super) async fn check(
    name: &ServiceName,
    backend: &HostPort,
    check: &HealthCheck,
) -> Result<(), CheckError> {
    tokio::time::timeout(CHECK_TIMEOUT, run(name, backend, check)).await.map_err(|_| CheckError::TimedOut)?
}

async fn run(name: &ServiceName, backend: &HostPort, check: &HealthCheck) -> Result<(), CheckError> {
    let mut stream = tcp::connect(backend, CHECK_TIMEOUT).await?;
    let HealthCheck::Http { path } = check else { return Ok(()) };
    // Asked for as clients ask: a backend may serve several names.
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: p2p-peer\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::with_capacity(STATUS_LINE_MAX_BYTES);
    while !line.contains(&b'\n') {
        let read =
            (&mut stream).take((STATUS_LINE_MAX_BYTES - line.len()) as u64).read_buf(&mut line).await?;
        if read == 0 {
            return Err(CheckError::NotHttp);
        }
    }
    match status(&line) {
        Some(200..400) => Ok(()),
        Some(status) => Err(CheckError::Status(status)),
        None => Err(CheckError::NotHttp),
    }
}

/// The code of a status line, of RFC 9112.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?.split_first().filter(|(minor, _)| minor.is_ascii_digit())?.1;
    let code = rest.strip_prefix(b" ")?.get(..3)?;
    let ends = matches!(rest.get(4), Some(b' ' | b'\r' | b'\n'));
    let code = str::from_utf8(code).ok()?.parse().ok()?;
    (ends && code >= 100).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// What a check makes of a backend that answers with these bytes, and what it asked.
    async fn checked(how: &str, answer: &'static [u8]) -> (Result<(), String>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = HostPort::from(listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let count = stream.read(&mut asked).await.unwrap();
            asked.truncate(count);
            let _ = stream.write_all(answer).await;
            asked
        });
        let outcome = check(&"web.example".parse().unwrap(), &backend, &how.parse().unwrap()).await;
        (outcome.map_err(|error| error.to_string()), served.await.unwrap())
    }

    #[tokio::test]
    async fn an_answer_below_400_passes() {
        for (answer, says) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..], None),
            (b"HTTP/1.0 302 Found\r\n\r\n", None),
            (b"HTTP/1.1 204\r\n\r\n", None),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", Some("status 404")),
            (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", Some("status 500")),
            (b"HTTP/1.1 099 Odd\r\n\r\n", Some("not HTTP")),
            (b"HTTP/1.1 2000 Odd\r\n\r\n", Some("not HTTP")),
            (b"SSH-2.0-OpenSSH\r\n", Some("not HTTP")),
            (b"HTTP/1.1 20", Some("not HTTP")),
            (b"", Some("not HTTP")),
        ] {
            let (outcome, asked) = checked("http:/up?x=1", answer).await;
            match says {
                None => assert_eq!(outcome, Ok(()), "{answer:?}"),
                Some(says) => {
                    assert!(outcome.as_ref().unwrap_err().contains(says), "{answer:?}: {outcome:?}")
                }
            }
            assert!(asked.starts_with(b"GET /up?x=1 HTTP/1.1\r\nHost: web.example\r\n"));
        }
        let (outcome, _) = checked("http:/", &[b'x'; 1_000]).await;
        assert!(outcome.unwrap_err().contains("not HTTP"));
    }

    #[tokio::test]
    async fn a_connection_passes_for_tcp_and_none_for_nothing() {
        let (outcome, asked) = checked("tcp", b"").await;
        assert_eq!((outcome, asked), (Ok(()), Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = HostPort::from(listener.local_addr().unwrap());
        let name = "web.example".parse().unwrap();
        let silent = check(&name, &backend, &"http:/".parse().unwrap()).await;
        assert!(matches!(silent, Err(CheckError::TimedOut)), "{silent:?}");
        drop(listener);
        let refused = check(&name, &backend, &HealthCheck::Tcp).await;
        assert!(matches!(&refused, Err(CheckError::Dial(error)) if error.is_refused()), "{refused:?}");
    }
}
