//! What clients of a real cluster are told is linearizable, and it would be noticed if it were not.

use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_tests::cluster::{Access, Cluster, PATIENCE, Signal, Start};
use p2p_tests::history::{Clients, Load, Reads, Violation};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rounds of faults; stale reads are noticed in the first or second.
const ROUNDS: usize = 10;

const LOAD: Load = Load {
    clients: 8,
    rest: Duration::from_millis(3),
    patience: Duration::from_secs(1),
    reads: Reads::Linearizable,
};

/// A Server freezes and goes on, another one dies and comes back.
fn round(cluster: &mut Cluster, clients: &Clients, rng: &mut StdRng) -> anyhow::Result<()> {
    let frozen = rng.random_range(0..3);
    cluster.servers[frozen].process_mut()?.signal(Signal::Stop)?;
    let others: Vec<_> = (0..3).filter(|server| *server != frozen).collect();
    let outage = clients.outage(&others, PATIENCE, || Ok(()))?;
    std::thread::sleep(Duration::from_millis(200));
    cluster.servers[frozen].process_mut()?.signal(Signal::Continue)?;
    std::thread::sleep(Duration::from_millis(200));
    let killed = rng.random_range(0..3);
    cluster.servers[killed].kill()?;
    cluster.servers[killed].start(Start::Again)?;
    cluster.servers[killed].wait_ready(PATIENCE)?;
    println!("s{} frozen: written again after {outage:?}; s{} killed", frozen + 1, killed + 1);
    Ok(())
}

fn play(reads: Reads, seed: u64) -> anyhow::Result<usize> {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3)?;
    let token = cluster.servers[0].token("operator", 1, "1h")?;
    let servers: Vec<_> =
        cluster.servers.iter().map(|server| Access::of(server, &token)).collect::<Result<_, _>>()?;
    let clients = Clients::start(&servers, Load { reads, ..LOAD }, &mut rng)?;
    let mut checked = 0;
    for number in 1..=ROUNDS {
        let played = round(&mut cluster, &clients, &mut rng).with_context(|| format!("round {number}"));
        cluster.explain(played)?;
        let resting = clients.pause();
        checked = clients.check()?;
        println!("round {number}: {checked} operations are linearizable");
        drop(resting);
    }
    println!("{:?}", clients.reasons());
    Ok(checked)
}

#[test]
fn what_clients_are_told_is_linearizable() -> anyhow::Result<()> {
    let checked = play(Reads::Linearizable, rand::random())?;
    ensure!(checked > 1_000, "only {checked} operations");
    Ok(())
}

/// Long enough for an election on a busy machine, and less than any request may take.
const ELECTED: Duration = Duration::from_secs(3);

#[test]
fn a_request_on_its_way_to_a_frozen_master_goes_to_the_next() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let token = cluster.servers[0].token("operator", 1, "1h")?;
    let servers: Vec<_> =
        cluster.servers.iter().map(|server| Access::of(server, &token)).collect::<Result<_, _>>()?;
    let master = cluster.master()?;
    let others: Vec<_> = (0..3).filter(|server| *server != master).collect();
    let asked: Vec<_> = others.iter().map(|server| servers[*server].clone()).collect();
    let mut rng = StdRng::seed_from_u64(rand::random());
    let clients = Clients::start(&asked, Load { patience: PATIENCE, ..LOAD }, &mut rng)?;
    std::thread::sleep(Duration::from_millis(300));
    let known = clients.recorder().operations(0).len();
    let played = (|| {
        let process = cluster.servers[master].process_mut()?;
        let outage = clients.outage(&[0, 1], PATIENCE, || process.signal(Signal::Stop))?;
        // Whatever was under way when the Master froze comes to its end while it still is.
        let _resting = clients.pause();
        let operations = clients.recorder().operations(known);
        let longest = operations.iter().max_by_key(|op| op.returned - op.invoked).context("no operations")?;
        println!("written again after {outage:?}; the longest of {} operations: {longest}", operations.len());
        ensure!(longest.returned - longest.invoked < ELECTED, "it hung: {longest}");
        clients.check()
    })();
    cluster.explain(played).map(|_| ())
}

#[test]
fn stale_reads_would_be_noticed() {
    let error = play(Reads::Stale, rand::random()).expect_err("stale reads pass for linearizable ones");
    let violation = error.downcast_ref::<Box<Violation>>();
    let violation = violation.unwrap_or_else(|| panic!("something else went wrong: {error:#}"));
    println!("{violation}");
    assert!(violation.reason.contains("tells of the past"), "{violation}");
}
