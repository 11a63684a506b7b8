//! Real processes: a cluster of Servers and Peers on free loopback ports in a temporary directory.
//!
//! Started and asked only through their command lines, as a user would. Every wait has a deadline. Whatever
//! ends the test, its processes end with it, and a panic shows the last lines of each one's log. Nothing is
//! shared between two [`Cluster`]s, so tests run side by side.

mod access;
mod binaries;
mod clock;
mod command;
mod hostile;
mod knock;
mod peer;
mod ports;
mod process;
mod proxy;
mod refusal;
pub mod report;
mod seat;
mod server;
mod sockets;
mod wait;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

pub use access::{Access, Bearer, BearerChannel};
pub use binaries::{Binaries, binaries};
pub use clock::TestClock;
pub use command::{Output, Watch, run};
pub use hostile::Hostile;
pub use knock::{Heard, Shown, ca_of, knock, knock_tls};
pub use peer::PeerProcess;
pub use ports::PortLease;
pub use process::{Lifetime, Process, Signal};
pub use proxy::TcpProxy;
pub use refusal::{FAILED, NEEDS_OPERATOR, UNAVAILABLE, USAGE, expect_refusal};
pub use seat::Seat;
pub use server::{ServerProcess, Start};
pub use sockets::OtherEnds;
pub use wait::{interrupt_on_signal, wait_for};

/// How long a start, a join or an election may take here before it counts as failed. Far above what they
/// take, since a loaded machine is no defect of the product.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster and what it needs; all of it goes when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// In the order they were added, named `s1`, `s2` and so on.
    pub servers: Vec<ServerProcess>,
    /// In the order they were added, named `p1`, `p2` and so on.
    pub peers: Vec<PeerProcess>,
    /// Of the next Servers; afterwards loopback.
    seats: VecDeque<Seat>,
    lifetime: Lifetime,
    /// Last, so that it is removed after the processes ended.
    dir: TempDir,
}

impl Cluster {
    /// No process yet. `lifetime` is for all that will come.
    pub fn empty(lifetime: Lifetime) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2pcore-").tempdir().context("making a directory")?;
        Ok(Cluster { servers: Vec::new(), peers: Vec::new(), seats: VecDeque::new(), lifetime, dir })
    }

    /// `count` Servers, the first bootstrapped, the others joined through it; returns when all agree.
    ///
    /// # Errors
    /// When a process does not start, or they do not agree in time; the error holds the logs.
    pub fn start(count: usize) -> anyhow::Result<Self> {
        let mut cluster = Cluster::empty(Lifetime::Bound)?;
        let started = cluster.add_servers(count);
        cluster.explain(started)?;
        Ok(cluster)
    }

    /// As [`Self::start`], with a Server in each of `seats`.
    ///
    /// # Errors
    /// As there.
    pub fn start_in(seats: Vec<Seat>) -> anyhow::Result<Self> {
        let mut cluster = Cluster::empty(Lifetime::Bound)?;
        let count = seats.len();
        cluster.seats.extend(seats);
        let started = cluster.add_servers(count);
        cluster.explain(started)?;
        Ok(cluster)
    }

    /// Adds `count` Servers, the first one of all bootstrapped, and waits until all agree.
    pub fn add_servers(&mut self, count: usize) -> anyhow::Result<()> {
        let mut left = count;
        if self.servers.is_empty() && left > 0 {
            let first = self.new_server()?;
            first.start(Start::Bootstrap)?;
            first.wait_ready(PATIENCE)?;
            left -= 1;
        }
        if left > 0 {
            let token = self.token("server", left)?;
            let introducer = self.servers[0].listen();
            for _ in 0..left {
                let server = self.new_server()?;
                server.start(Start::Join { introducer, token: token.clone() })?;
            }
        }
        self.wait_agreed(PATIENCE)
    }

    /// Adds a Server that is not started yet.
    pub fn new_server(&mut self) -> anyhow::Result<&mut ServerProcess> {
        let name = format!("s{}", self.servers.len() + 1);
        let dir = self.dir.path();
        self.servers.push(match self.seats.pop_front() {
            Some(seat) => ServerProcess::seated(&name, seat, dir, self.lifetime),
            None => ServerProcess::new(&name, dir, self.lifetime)?,
        });
        Ok(self.servers.last_mut().expect("one was just pushed"))
    }

    /// Adds a Peer that offers `services`, known to one of the running Servers, and waits until it works.
    pub fn add_peer(&mut self, services: &[(&str, SocketAddr)]) -> anyhow::Result<&mut PeerProcess> {
        self.add_peer_with(|peer| {
            for (name, backend) in services {
                peer.offer(name, *backend);
            }
            Ok(())
        })
    }

    /// Adds a Peer that `prepare` gives its settings, known to one of the running Servers, and waits until it
    /// works.
    pub fn add_peer_with(
        &mut self,
        prepare: impl FnOnce(&mut PeerProcess) -> anyhow::Result<()>,
    ) -> anyhow::Result<&mut PeerProcess> {
        let token = self.token("peer", 1)?;
        let running: Vec<_> = self.servers.iter().filter(|server| server.is_started()).collect();
        let (servers, introducer) = (running.len(), running[self.peers.len() % running.len()].listen());
        let peer = self.new_peer()?;
        peer.introduce(&[introducer], &token);
        prepare(peer)?;
        peer.start()?;
        peer.wait_working(servers, PATIENCE)?;
        Ok(self.peers.last_mut().expect("new_peer pushed it"))
    }

    /// Adds a Peer that is not started yet and knows no Server.
    pub fn new_peer(&mut self) -> anyhow::Result<&mut PeerProcess> {
        let name = format!("p{}", self.peers.len() + 1);
        self.peers.push(PeerProcess::new(&name, self.dir.path(), self.lifetime)?);
        Ok(self.peers.last_mut().expect("one was just pushed"))
    }

    /// A fresh join token for `uses` nodes of `role`, valid for an hour, made by the first running Server.
    pub fn token(&self, role: &str, uses: usize) -> anyhow::Result<String> {
        let server = self.servers.iter().find(|server| server.is_started()).context("no Server runs")?;
        server.token(role, uses, "1h")
    }

    /// Waits until every running Server lists all of them, sees the running ones connected, counts the voters
    /// that this size has, and names the same Master, not a provisional one. Returns the Master.
    pub fn wait_agreed(&self, within: Duration) -> anyhow::Result<()> {
        wait_for("agreement of all Servers", within, || self.agreed())
    }

    fn agreed(&self) -> anyhow::Result<()> {
        let running: Vec<_> = self.servers.iter().filter(|server| server.is_started()).collect();
        let voters = match self.servers.len() {
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        };
        let mut masters = Vec::new();
        for server in &running {
            let found = server.members()?.members;
            let name = server.name();
            ensure!(found.len() == self.servers.len(), "{name} lists {} members", found.len());
            let connected = found.iter().filter(|member| member.connected).count();
            ensure!(connected >= running.len(), "{name} sees {connected} of {} connected", running.len());
            let found_voters = found.iter().filter(|member| member.role == "voter").count();
            ensure!(found_voters == voters, "{name} counts {found_voters} voters, not {voters}");
            let master = server.master()?;
            ensure!(!master.provisional, "{name} names {} for want of a quorum", master.name);
            masters.push((master.term, master.id));
        }
        masters.dedup();
        ensure!(masters.len() == 1, "they name {} Masters", masters.len());
        Ok(())
    }

    /// The place in [`Self::servers`] of the Master that the first running Server names.
    pub fn master(&self) -> anyhow::Result<usize> {
        let server = self.servers.iter().find(|server| server.is_started()).context("no Server runs")?;
        let master = server.master()?;
        let place = self.servers.iter().position(|server| server.name() == master.name);
        place.with_context(|| format!("{} is none of ours", master.name))
    }

    /// The directory that holds all data directories and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds the last lines of every process to an error.
    pub fn explain<T>(&mut self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| anyhow::anyhow!("{error:#}\n{}", self.log_tails()))
    }

    /// The last lines of every process that was started.
    pub fn log_tails(&mut self) -> String {
        let servers = self.servers.iter_mut().filter_map(ServerProcess::process_if_started);
        let peers = self.peers.iter_mut().filter_map(PeerProcess::process_if_started);
        servers.chain(peers).map(Process::log_tail).collect()
    }

    /// Asks all processes to stop, Peers first, and waits.
    ///
    /// # Errors
    /// When one does not end within `within` or with another status than 0.
    pub fn stop(&mut self, within: Duration) -> anyhow::Result<()> {
        let peers = self.peers.iter_mut().filter_map(PeerProcess::process_if_started);
        let servers = self.servers.iter_mut().filter_map(ServerProcess::process_if_started);
        for process in peers.chain(servers) {
            // A killed one was meant to die.
            if process.exited()?.is_none() {
                let status = process.terminate(within)?;
                ensure!(status.success(), "{} ended with {status} when asked to stop", process.name());
            }
        }
        Ok(())
    }

    /// Leaves all that run running and the directory in place; returns their names and pids.
    pub fn leave(self) -> Vec<(String, u32)> {
        let Cluster { servers, peers, dir, .. } = self;
        let _kept = dir.keep();
        let servers = servers.into_iter().filter_map(ServerProcess::leave);
        servers.chain(peers.into_iter().filter_map(PeerProcess::leave)).collect()
    }
}
