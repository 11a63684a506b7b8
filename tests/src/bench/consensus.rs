//! Two kinds of replicated groups under the same load: our Servers and etcd members, each over gRPC and TLS.
//!
//! Both write one value under one name, durably at a majority, and read it linearizably. Clients, load and the way
//! a new leader is noticed are the same code for both.

mod etcd;
mod failover;
mod ours;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cluster::Process;

pub use etcd::Etcd;
pub use failover::{Blow, failover_ms};
pub use ours::OurServers;

/// Connections that many clients share: one would be the bottleneck of either.
const CONNECTIONS: usize = 8;

/// A group of three members.
pub trait Group {
    /// How to dial a member.
    type Access: Access;

    /// Who leads, by its place from 0.
    ///
    /// # Errors
    /// When nobody does, or nobody says so.
    fn leader(&mut self) -> anyhow::Result<usize>;

    /// How to dial the member at `place`.
    ///
    /// # Errors
    /// When what that needs cannot be read.
    fn access(&self, place: usize) -> anyhow::Result<Self::Access>;

    /// The process of the member at `place`.
    ///
    /// # Errors
    /// When it does not run.
    fn process(&mut self, place: usize) -> anyhow::Result<&mut Process>;

    /// Starts the killed member at `place` again.
    ///
    /// # Errors
    /// When it does not start.
    fn restart(&mut self, place: usize) -> anyhow::Result<()>;

    /// Waits until all members are back and agree on a leader.
    ///
    /// # Errors
    /// When they do not, in time.
    fn wait_healthy(&mut self) -> anyhow::Result<()>;
}

/// A way to a member. Cheap to copy.
pub trait Access: Clone + Send + Sync + 'static {
    /// An open connection; copies share it.
    type Client: Client;

    /// Dials.
    fn connect(&self) -> impl Future<Output = anyhow::Result<Self::Client>> + Send;
}

/// A connection to a member. Copies share it.
pub trait Client: Clone + Send + 'static {
    /// Writes the value, durably.
    fn write(&mut self, value: &str) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Reads it, linearizably; its length.
    fn read(&mut self) -> impl Future<Output = anyhow::Result<usize>> + Send;
}

/// What clients do, each again and again.
#[derive(Debug, Clone)]
pub enum Work {
    /// They write values of so many bytes.
    Write(usize),
    /// They read the value, which has so many bytes.
    Read(usize),
}

/// What came out of a load.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Finished operations.
    pub per_s: f64,
    /// The median of their durations.
    pub p50_ms: f64,
    /// What one in a hundred exceeds.
    pub p99_ms: f64,
}

/// `clients` at the member behind `access` for `length`, after a tenth of that without counting.
///
/// # Errors
/// When an operation fails: in a healthy group none does.
pub async fn load<A: Access>(
    access: &A,
    clients: usize,
    work: &Work,
    length: Duration,
) -> anyhow::Result<Throughput> {
    let mut connections = Vec::new();
    for _ in 0..clients.min(CONNECTIONS) {
        connections.push(access.connect().await?);
    }
    let start = Instant::now() + length / 10;
    let end = start + length;
    let work = Arc::new(work.clone());
    let tasks: Vec<_> = (0..clients)
        .map(|nth| {
            let client = connections[nth % connections.len()].clone();
            tokio::spawn(one_client(client, Arc::clone(&work), start, end))
        })
        .collect();
    let mut took_ms = Vec::new();
    for task in tasks {
        took_ms.extend(task.await.context("a client panicked")??);
    }
    ensure!(!took_ms.is_empty(), "no operation finished in {length:?}");
    took_ms.sort_by(f64::total_cmp);
    let at = |share: f64| took_ms[((took_ms.len() - 1) as f64 * share) as usize];
    Ok(Throughput { per_s: took_ms.len() as f64 / length.as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99) })
}

/// The durations, in ms, of what finished between `start` and `end`.
async fn one_client<C: Client>(
    mut client: C,
    work: Arc<Work>,
    start: Instant,
    end: Instant,
) -> anyhow::Result<Vec<f64>> {
    let value = "v".repeat(match *work {
        Work::Write(bytes) | Work::Read(bytes) => bytes,
    });
    let mut took_ms = Vec::new();
    loop {
        let began = Instant::now();
        match *work {
            Work::Write(_) => client.write(&value).await?,
            Work::Read(bytes) => {
                let read = client.read().await?;
                ensure!(read == bytes, "{read} bytes were read, {bytes} written");
            }
        }
        let now = Instant::now();
        if now >= end {
            return Ok(took_ms);
        }
        if now >= start {
            took_ms.push((now - began).as_secs_f64() * 1e3);
        }
    }
}
