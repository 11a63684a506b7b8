//! A rolling restart of three Servers under load breaks no acknowledged write and no direct forward (SPEC C10).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Access, Cluster, PATIENCE, Start, wait_for};
use p2p_tests::history::{Clients, Load, Operation, Outcome, Reads};
use p2p_tests::http::{Connection, Request};
use rand::SeedableRng;
use rand::rngs::StdRng;

const SERVICE: &str = "echo.example";
/// A stop in order takes less.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Requests under way get their answers meanwhile, so that none waits longer.
const STOPPED: Duration = Duration::from_millis(1500);
/// Between two writes of all clients together there is never so much: a lost leader alone would cost as much as
/// the time-out of an election, and a machine that is busy makes it more.
const PAUSE: Duration = Duration::from_secs(3);

/// A connection through two Peers that carries a few bytes and back, again and again.
struct Forward {
    is_over: Arc<AtomicBool>,
    echoing: JoinHandle<anyhow::Result<(usize, Duration)>>,
}

impl Forward {
    fn open(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut connection = Connection::open(cluster.peers[1].listen())?;
        let headers = [("Connection", "Upgrade"), ("Upgrade", "echo")];
        let upgrade = Request { headers: &headers, ..Request::get(SERVICE, "/upgrade") };
        let answer = connection.ask(&upgrade)?;
        ensure!(answer.status == 101, "{}: {}", answer.status, answer.text());
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let echoing = std::thread::spawn(move || {
            let (mut echoes, mut longest) = (0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let sent = Instant::now();
                let bytes = format!("{echoes:08}");
                connection.send(bytes.as_bytes())?;
                let came = connection.read_exact(bytes.len())?;
                ensure!(came == bytes.as_bytes(), "{bytes} came back as {came:?}");
                longest = longest.max(sent.elapsed());
                echoes += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok((echoes, longest))
        });
        Ok(Forward { is_over, echoing })
    }

    /// Ends it; how often it echoed and how long one took at most.
    fn end(self) -> anyhow::Result<(usize, Duration)> {
        self.is_over.store(true, Ordering::Relaxed);
        self.echoing.join().expect("echoing does not panic").context("the forward under way")
    }
}

/// The longest time without an acknowledged write, and the longest that one client waited for one.
fn pauses(operations: &[Operation]) -> (Duration, Duration) {
    let written = operations.iter().filter(|op| matches!(op.outcome, Outcome::Written { .. }));
    let mut returned: Vec<_> = written.clone().map(|op| op.returned).collect();
    returned.sort_unstable();
    let gaps = returned.windows(2).map(|pair| pair[1] - pair[0]);
    let waits = written.map(|op| op.returned - op.invoked);
    (gaps.max().unwrap_or_default(), waits.max().unwrap_or_default())
}

fn start_clients(cluster: &Cluster, clients: usize) -> anyhow::Result<Clients> {
    let token = cluster.servers[0].token("operator", 1, "1h")?;
    let servers: Vec<_> =
        cluster.servers.iter().map(|server| Access::of(server, &token)).collect::<Result<_, _>>()?;
    let load = Load {
        clients,
        rest: Duration::from_millis(3),
        patience: Duration::from_secs(2),
        reads: Reads::Linearizable,
    };
    Clients::start(&servers, load, &mut StdRng::seed_from_u64(rand::random()))
}

fn roll(cluster: &mut Cluster, backend: &Backend) -> anyhow::Result<()> {
    cluster.add_peer(&[(SERVICE, backend.addr())])?;
    cluster.add_peer(&[])?;
    let forward = wait_for("a forward", PATIENCE, || Forward::open(cluster))?;
    wait_for("a direct link", PATIENCE, || {
        let links = cluster.peers[1].links()?.links;
        ensure!(links.iter().any(|link| link.path == "direct"), "{links:?}");
        Ok(())
    })?;
    let clients = start_clients(cluster, 8)?;
    std::thread::sleep(Duration::from_millis(300));
    // Whoever leads goes last in one round and first in the next.
    for round in 0..2 {
        for step in 0..3 {
            let master = cluster.master()?;
            let server = if round == 0 { (master + 1 + step) % 3 } else { master };
            let known = clients.recorder().operations(0).len();
            let asked = Instant::now();
            let status = cluster.servers[server].process_mut()?.terminate(STOP_WITHIN)?;
            let stopped = asked.elapsed();
            ensure!(status.success(), "{} ended with {status}", cluster.servers[server].name());
            ensure!(stopped < STOPPED, "{} took {stopped:?} to stop", cluster.servers[server].name());
            cluster.servers[server].start(Start::Again)?;
            cluster.wait_agreed(PATIENCE)?;
            let (gap, wait) = pauses(&clients.recorder().operations(known));
            println!(
                "round {round}, step {step}: {} stopped after {stopped:?}{}; longest pause of writes {gap:?}, of one \
                 client {wait:?}",
                cluster.servers[server].name(),
                if server == master { ", it was the Master" } else { "" },
            );
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let (echoes, longest_echo) = forward.end()?;
    let resting = clients.pause();
    let checked = clients.check()?;
    drop(resting);
    let operations = clients.recorder().operations(0);
    let (gap, wait) = pauses(&operations);
    let written = operations.iter().filter(|op| matches!(op.outcome, Outcome::Written { .. })).count();
    println!(
        "6 restarts: {checked} operations are linearizable, {written} acknowledged writes are there; longest pause of \
         writes {gap:?}, of one client {wait:?}; {echoes} echoes through the forward, the longest {longest_echo:?}; {:?}",
        clients.reasons()
    );
    ensure!(written > 100, "only {written} writes were acknowledged");
    ensure!(gap < PAUSE, "no write was acknowledged for {gap:?}");
    Ok(())
}

#[test]
fn a_rolling_restart_breaks_nothing() -> anyhow::Result<()> {
    let backend = Backend::start("b1")?;
    let mut cluster = Cluster::start(3)?;
    let rolled = roll(&mut cluster, &backend);
    cluster.explain(rolled)
}
