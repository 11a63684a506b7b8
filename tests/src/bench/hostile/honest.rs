//! [`Honest`]: clients that ask at a fixed pace, whatever happens around them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_proto::v1;
use p2p_proto::v1::cluster_client::ClusterClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::cluster::Access;

/// Who has waited for so long was not served.
const DEADLINE: Duration = Duration::from_secs(10);
/// Calls on a kept connection, and requests through a Peer, each so often.
const EVERY: Duration = Duration::from_millis(10);
/// New connections with one call each.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// Whom the honest ask.
#[derive(Debug, Clone)]
pub struct Honest {
    /// The attacked Server, with a token.
    pub access: Access,
    /// A Peer, and a service it forwards to.
    pub entry: (SocketAddr, &'static str),
}

/// What they felt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Felt {
    /// GetStatus on a kept connection: 99 % took no longer, in milliseconds.
    pub calls_p99_ms: f64,
    /// The same on a connection of its own, handshake included.
    pub connects_p99_ms: f64,
    /// A page through two Peers, on a kept connection.
    pub forwards_p99_ms: f64,
    /// What was asked in all.
    pub asked: usize,
    /// What of it was not answered.
    pub failed: usize,
}

/// Times of what was answered, and how much was not.
#[derive(Debug, Default)]
struct Times {
    micros: Vec<u32>,
    failed: usize,
}

impl Times {
    fn add(&mut self, start: Instant, answered: bool) {
        if answered {
            self.micros.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
        } else {
            self.failed += 1;
        }
    }

    fn p99_ms(&mut self) -> anyhow::Result<f64> {
        ensure!(!self.micros.is_empty(), "nothing was answered");
        self.micros.sort_unstable();
        Ok(f64::from(self.micros[(self.micros.len() - 1) * 99 / 100]) / 1e3)
    }
}

impl Honest {
    /// Asks for `length`.
    ///
    /// # Errors
    /// When nothing was answered at all.
    pub async fn ask(&self, length: Duration) -> anyhow::Result<Felt> {
        let until = Instant::now() + length;
        let (calls, connects, forwards) =
            tokio::join!(self.calls(until), self.connects(until), self.forwards(until));
        let (mut calls, mut connects, mut forwards) = (calls, connects, forwards);
        let all = [&calls, &connects, &forwards];
        let failed = all.iter().map(|times| times.failed).sum();
        let asked = all.iter().map(|times| times.micros.len()).sum::<usize>() + failed;
        Ok(Felt {
            calls_p99_ms: calls.p99_ms().context("calls")?,
            connects_p99_ms: connects.p99_ms().context("new connections")?,
            forwards_p99_ms: forwards.p99_ms().context("forwards")?,
            asked,
            failed,
        })
    }

    async fn calls(&self, until: Instant) -> Times {
        let (mut times, mut ticks) = (Times::default(), ticks(EVERY));
        let mut open = None;
        while Instant::now() < until {
            ticks.tick().await;
            let start = Instant::now();
            let asked = async {
                let mut client = match open.take() {
                    Some(client) => client,
                    None => ClusterClient::new(self.access.channel(DEADLINE).await?),
                };
                client.get_status(v1::GetStatusRequest {}).await?;
                open = Some(client);
                anyhow::Ok(())
            };
            let answered = matches!(timeout(DEADLINE, asked).await, Ok(Ok(())));
            times.add(start, answered);
        }
        times
    }

    async fn connects(&self, until: Instant) -> Times {
        let (mut times, mut ticks) = (Times::default(), ticks(CONNECT_EVERY));
        while Instant::now() < until {
            ticks.tick().await;
            let start = Instant::now();
            let asked = async {
                let mut client = ClusterClient::new(self.access.channel(DEADLINE).await?);
                client.get_status(v1::GetStatusRequest {}).await?;
                anyhow::Ok(())
            };
            let answered = matches!(timeout(DEADLINE, asked).await, Ok(Ok(())));
            times.add(start, answered);
        }
        times
    }

    async fn forwards(&self, until: Instant) -> Times {
        let (mut times, mut ticks) = (Times::default(), ticks(EVERY));
        let mut open = None;
        while Instant::now() < until {
            ticks.tick().await;
            let start = Instant::now();
            let answered = matches!(timeout(DEADLINE, self.page(&mut open)).await, Ok(Ok(())));
            if !answered {
                open = None;
            }
            times.add(start, answered);
        }
        times
    }

    /// One page of 100 bytes.
    async fn page(&self, open: &mut Option<TcpStream>) -> anyhow::Result<()> {
        let (entry, host) = self.entry;
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => TcpStream::connect(entry).await?,
        };
        let request = format!("GET /bytes/100 HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let end = loop {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the connection ended");
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end.filter(|end| answer.len() >= end + 4 + 100) {
                break end;
            }
        };
        ensure!(answer.starts_with(b"HTTP/1.1 200 ") && answer.len() == end + 104, "not the page");
        *open = Some(stream);
        Ok(())
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
