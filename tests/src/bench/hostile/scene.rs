//! [`Scene`]: three Servers, two Peers, a backend and honest clients, one of each attacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use p2p_runtime::identity::TrustBundle;
use p2p_runtime::tls::Connector;
use tokio::runtime::Runtime;

use super::{Attack, Door, Felt, Honest, Strike, Target};
use crate::backend::Backend;
use crate::bench::{cpu_seconds, footprint};
use crate::cluster::{Access, Cluster, PATIENCE, wait_for};
use crate::http;

const SERVICE: &str = "web.example";
/// How often the memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Attackers are at work for so long before the honest are asked: what they hold has been built up.
const BUILD_UP: Duration = Duration::from_millis(500);

/// A cluster with something to lose.
#[derive(Debug)]
pub struct Scene {
    cluster: Cluster,
    honest: Honest,
    connector: Connector,
    runtime: Runtime,
    _backend: Backend,
}

/// What an attack has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// What the honest felt before.
    pub before: Felt,
    /// And while it lasted.
    pub during: Felt,
    /// How much memory the attacked process has gained at most, resident, in MiB.
    pub grown_mib: f64,
    /// Processors it was busy on.
    pub busy: f64,
    /// How many connections were made to it.
    pub connections: u64,
    /// How often the harm was done: bytes, frames, calls, whatever the attack consists of.
    pub acts: u64,
}

impl Scene {
    /// Starts it.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start() -> anyhow::Result<Self> {
        let backend = Backend::start("b1")?;
        let mut cluster = Cluster::start(3)?;
        cluster.add_peer(&[(SERVICE, backend.addr())])?;
        let entry = cluster.add_peer(&[])?.listen();
        wait_for("the page", PATIENCE, || {
            anyhow::ensure!(http::get(entry, SERVICE, "/")?.status == 200, "no page yet");
            Ok(())
        })?;
        let server = &cluster.servers[0];
        let access = Access::of(server, &server.token("reader", 1, "24h")?)?;
        let ca = std::fs::read(server.data().join("ca.pem")).context("reading ca.pem")?;
        let connector = Connector::public(&TrustBundle::from_pem(&ca)?)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let honest = Honest { access, entry: (entry, SERVICE) };
        Ok(Scene { cluster, honest, connector, runtime, _backend: backend })
    }

    /// Asks for `calm`, then during `attack` for `length`.
    ///
    /// # Errors
    /// When a process ends, or nothing is answered.
    pub fn withstand(&mut self, attack: Attack, calm: Duration, length: Duration) -> anyhow::Result<Outcome> {
        let outcome = self.try_withstand(attack, calm, length).context(attack.name());
        self.cluster.explain(outcome)
    }

    fn try_withstand(&mut self, attack: Attack, calm: Duration, length: Duration) -> anyhow::Result<Outcome> {
        let server = &self.cluster.servers[0];
        let addr = match attack.door() {
            Door::Api => server.listen(),
            Door::Ops => server.ops(),
            Door::Peer => self.cluster.peers[1].listen(),
        };
        let pid = match attack.door() {
            Door::Api | Door::Ops => self.cluster.servers[0].process_mut()?.pid(),
            Door::Peer => self.cluster.peers[1].process_mut()?.pid(),
        };
        let before = self.runtime.block_on(self.honest.ask(calm))?;
        let memory = footprint(pid)?.resident_bytes;
        let (busy, began) = (cpu_seconds(&[pid])?, Instant::now());
        let watch = Watch::begin(pid, memory);
        let target = Target { addr, connector: self.connector.clone() };
        let strike = Strike::begin(attack, target, length);
        std::thread::sleep(BUILD_UP.min(length / 4));
        let left = length.saturating_sub(began.elapsed());
        let during = self.runtime.block_on(self.honest.ask(left))?;
        let busy = (cpu_seconds(&[pid])? - busy) / began.elapsed().as_secs_f64();
        let (connections, acts) = strike.wait()?;
        let grown_mib = watch.end()?.saturating_sub(memory) as f64 / f64::from(1 << 20);
        Ok(Outcome { before, during, grown_mib, busy, connections, acts })
    }
}

/// Looks at the memory of a process.
struct Watch {
    thread: std::thread::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
}

impl Watch {
    fn begin(pid: u32, now: u64) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(now)));
        let (until, found) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                // One that is gone is noticed by who asks it.
                if let Ok(now) = footprint(pid) {
                    found.fetch_max(now.resident_bytes, Ordering::Relaxed);
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Watch { thread, stop, most }
    }

    /// The most it had.
    fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the one who looks panicked"))?;
        Ok(self.most.load(Ordering::Relaxed))
    }
}
