//! Garbage, heads without end, slow and silent clients on every port: each costs its own connection and nobody else's.

use std::time::{Duration, Instant};

use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, Hostile, PATIENCE, Process, wait_for};
use p2p_tests::http;

const SERVICE: &str = "web.example";
/// Silent connections to each port: more than the share of a source, which is everybody's here.
const HALF_OPEN: usize = 600;
/// How long the attack lasts.
const ATTACK: Duration = Duration::from_secs(8);
/// What others wait at most; they would notice more. Mostly the weather of a loaded machine.
const PROMPT: Duration = Duration::from_secs(3);
/// A process may grow by this much, whoever speaks to it: buffers of some hundreds of connections.
const GROWTH_MIB: u64 = 96;

/// What the processes have, before and after.
fn footprint(cluster: &mut Cluster) -> anyhow::Result<Vec<(String, u64, usize)>> {
    let server = cluster.servers[0].process_mut()?;
    let of = |process: &Process| {
        anyhow::Ok((process.name().to_string(), process.memory_mib()?, process.open_files()?))
    };
    let server = of(server)?;
    Ok(vec![server, of(cluster.peers[1].process_mut()?)?])
}

#[test]
fn hostile_clients_harm_themselves_only() {
    let seed = rand::random();
    println!("seed {seed}");
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        cluster.add_peer(&[(SERVICE, backend.addr())])?;
        cluster.add_peer(&[])?;
        let (server, peer) = (&cluster.servers[0], &cluster.peers[1]);
        let ports = [server.listen(), server.ops(), server.registry(), peer.listen(), peer.metrics()];
        let (ops, metrics, client) = (server.ops(), peer.metrics(), peer.listen());
        let ask = |what: &str, addr, host, path| -> anyhow::Result<()> {
            let asked = Instant::now();
            let answer = http::get(addr, host, path)?;
            anyhow::ensure!(answer.status == 200, "{what}: {}: {}", answer.status, answer.text());
            anyhow::ensure!(asked.elapsed() < PROMPT, "{what} took {:?}", asked.elapsed());
            Ok(())
        };
        wait_for("the page", PATIENCE, || ask("the page", client, SERVICE, "/"))?;
        let before = footprint(&mut cluster)?;

        let hostile = Hostile::begin(&ports, HALF_OPEN, seed)?;
        let (began, mut asked, mut slowest) = (Instant::now(), 0, Duration::ZERO);
        while began.elapsed() < ATTACK {
            let round = Instant::now();
            ask("the page", client, SERVICE, "/bytes/100000")?;
            ask("the Server's health", ops, "localhost", "/readyz")?;
            ask("the Peer's health", metrics, "localhost", "/readyz")?;
            let members = Instant::now();
            cluster.servers[0].members()?;
            anyhow::ensure!(members.elapsed() < PROMPT, "members took {:?}", members.elapsed());
            cluster.peers[1].status()?;
            (asked, slowest) = (asked + 1, slowest.max(round.elapsed()));
        }
        let during = footprint(&mut cluster)?;
        println!(
            "{} hostile connections, {asked} rounds of questions, the slowest {slowest:?}",
            hostile.connections()
        );
        drop(hostile);

        // What they took comes back, but for what allocators keep.
        wait_for("files closed", PATIENCE, || {
            for (before, after) in before.iter().zip(footprint(&mut cluster)?) {
                let (name, files) = (&after.0, after.2);
                anyhow::ensure!(files <= before.2 + 16, "{name} has {files} files open, {} before", before.2);
            }
            Ok(())
        })?;
        let after = footprint(&mut cluster)?;
        for ((before, during), after) in before.iter().zip(&during).zip(&after) {
            println!(
                "{}: {} MiB, {} in the attack, {} after; files {}, {}, {}",
                before.0, before.1, during.1, after.1, before.2, during.2, after.2
            );
            let grown = during.1.max(after.1).saturating_sub(before.1);
            anyhow::ensure!(grown <= GROWTH_MIB, "{} has grown by {grown} MiB", before.0);
        }
        for process in [cluster.servers[0].process_mut()?, cluster.peers[1].process_mut()?] {
            let log = process.log();
            anyhow::ensure!(!log.contains("panicked"), "{} panicked", process.name());
            anyhow::ensure!(process.exited()?.is_none(), "{} ended", process.name());
        }
        ask("the page", client, SERVICE, "/")
    })();
    cluster.explain(tried).unwrap();
}
