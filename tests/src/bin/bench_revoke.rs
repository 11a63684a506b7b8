//! `make bench-revoke`: how soon everybody has closed what a revoked Peer holds open.
//!
//! Three Servers and 20 Peers in a full mesh, with requests running between some of them all the time. One Peer after the
//! other is frozen, so that nothing closes from its side, and revoked; the kernel says when the last of its sessions and
//! the last of its links is closed at the other end. Times are from the start of the command. After each a new Peer takes
//! its place. `--peers N` and `--rounds N` change the size.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::bench::{Better, Report, Row};
use p2p_tests::cluster::{Cluster, OtherEnds, PATIENCE, Signal, wait_for};
use p2p_tests::http::{self, Connection, Request};

/// Peers that stay, and carry the requests.
const STAY: usize = 4;
/// Requests of one client a second: traffic, not a load test.
const REST: Duration = Duration::from_millis(5);
/// Between two looks at the kernel's table.
const LOOK: Duration = Duration::from_millis(2);
/// SPEC I7.
const AIM_MS: f64 = 5_000.0;

/// What the clients of the Peers that stay met.
#[derive(Debug, Default)]
struct Traffic {
    stop: AtomicBool,
    requests: AtomicU64,
    failed: AtomicU64,
}

struct Times {
    sessions_ms: f64,
    links_ms: f64,
    command_ms: f64,
}

fn main() -> anyhow::Result<()> {
    let (peers, rounds) = arguments()?;
    println!("building and starting 3 Servers and {peers} Peers");
    let mut cluster = Cluster::start(3)?;
    let measured = measure(&mut cluster, peers, rounds);
    let (times, requests, failed) = cluster.explain(measured)?;
    let mut report = Report::new("revoke");
    let of = |what: fn(&Times) -> f64| times.iter().map(what).collect::<Vec<f64>>();
    for (name, figures) in [
        ("last session closed at every Server", of(|times| times.sessions_ms)),
        ("last link closed at every Peer", of(|times| times.links_ms)),
        ("command returned", of(|times| times.command_ms)),
    ] {
        let longest = figures.iter().copied().fold(0.0, f64::max);
        println!("{name}: longest {longest:.0} ms of {} revocations", figures.len());
        let row = Row::alone(&format!("{name}, median of {peers} Peers"), "ms", Better::Lower, &figures);
        report.add(row.map(|row| row.with_aim(Some(AIM_MS))));
        let row = Row::alone(&format!("{name}, longest"), "ms", Better::Lower, &[longest]);
        report.add(row.map(|row| row.with_aim(Some(AIM_MS))));
    }
    println!("requests between the others meanwhile: {requests}, failed: {failed}");
    let row = Row::alone("failed requests between the others", "requests", Better::Lower, &[failed as f64]);
    report.add(row.map(|row| row.with_aim(Some(0.0))));
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

fn measure(cluster: &mut Cluster, peers: usize, rounds: usize) -> anyhow::Result<(Vec<Times>, u64, u64)> {
    let backend = Backend::start("b")?;
    for nth in 0..peers {
        add(cluster, nth, &backend)?;
    }
    let traffic = Arc::new(Traffic::default());
    let clients: Vec<_> = (0..STAY)
        .map(|nth| {
            let (ingress, service) = (cluster.peers[nth].listen(), service((nth + 1) % STAY));
            let traffic = Arc::clone(&traffic);
            std::thread::spawn(move || client(ingress, &service, &traffic))
        })
        .collect();
    let mut times = Vec::new();
    for round in 0..rounds {
        // The one that has been there longest of those that do not stay.
        let bad = STAY + round;
        wait_for("the full mesh", PATIENCE, || {
            let links = cluster.peers[bad].links()?.links;
            let linked =
                links.iter().filter(|link| link.id.starts_with('C') && link.path == "direct").count();
            ensure!(linked + 1 >= peers, "{linked} of {} links", peers - 1);
            Ok(())
        })?;
        times.push(revoke(cluster, bad)?);
        cluster.peers[bad].kill()?;
        let next = cluster.peers.len();
        add(cluster, next, &backend)?;
    }
    traffic.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    }
    Ok((times, traffic.requests.load(Ordering::Relaxed), traffic.failed.load(Ordering::Relaxed)))
}

fn service(nth: usize) -> String {
    format!("s{nth}.example")
}

fn add(cluster: &mut Cluster, nth: usize, backend: &Backend) -> anyhow::Result<()> {
    let token = cluster.token("peer", 1)?;
    let introducer = cluster.servers[nth % 3].listen();
    let peer = cluster.new_peer()?;
    peer.introduce(&[introducer], &token);
    peer.set("--mesh", "full");
    peer.set("--print-tables", "off");
    peer.offer(&service(nth), backend.addr());
    peer.start()?;
    peer.wait_working(3, PATIENCE)?;
    let listen = peer.listen();
    wait_for("a service of another Peer", PATIENCE, || {
        let answer = http::get(listen, &service(nth.min(1)), "/")?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(())
    })
}

/// One request after the other on a connection that is opened anew only when it broke.
fn client(ingress: SocketAddr, service: &str, traffic: &Traffic) {
    let mut kept: Option<Connection> = None;
    while !traffic.stop.load(Ordering::Relaxed) {
        let asked = match kept.take().map_or_else(|| Connection::open(ingress), Ok) {
            Ok(mut connection) => {
                connection.ask(&Request::get(service, "/")).map(|answer| (answer, connection))
            }
            Err(error) => Err(error),
        };
        traffic.requests.fetch_add(1, Ordering::Relaxed);
        match asked {
            Ok((answer, connection)) if answer.status == 200 => kept = Some(connection),
            _ => drop(traffic.failed.fetch_add(1, Ordering::Relaxed)),
        }
        std::thread::sleep(REST);
    }
}

fn revoke(cluster: &mut Cluster, bad: usize) -> anyhow::Result<Times> {
    let id = cluster.peers[bad].status()?.id;
    let process = cluster.peers[bad].process_mut()?;
    process.signal(Signal::Stop)?;
    // The signal is taken when it is next scheduled.
    std::thread::sleep(Duration::from_millis(100));
    let ends = OtherEnds::of(process.pid())?.without(std::process::id())?;
    let servers: Vec<SocketAddr> = cluster.servers.iter().map(|server| server.listen()).collect();
    let sessions = ends.at(|local| servers.contains(&local));
    let links = ends.at(|local| !servers.contains(&local));
    ensure!(sessions.open()? >= 3 && links.open()? > 0, "nothing to close: {ends:?}");
    let mut command = cluster.servers[bad % 3].command(&["revoke", &id, "--json"])?;
    let began = Instant::now();
    let told = std::thread::spawn(move || (command.output(), began.elapsed()));
    let (mut sessions_ms, mut links_ms) = (None, None);
    while sessions_ms.is_none() || links_ms.is_none() {
        ensure!(
            began.elapsed() < PATIENCE,
            "still open: {} sessions, {} links",
            sessions.open()?,
            links.open()?
        );
        for (ends, ms) in [(&sessions, &mut sessions_ms), (&links, &mut links_ms)] {
            if ms.is_none() && ends.open()? == 0 {
                *ms = Some(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        std::thread::sleep(LOOK);
    }
    let (output, took) = told.join().map_err(|_| anyhow::anyhow!("the command panicked"))?;
    let output = output.context("running the command")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (sessions_ms, links_ms) = (sessions_ms.unwrap_or_default(), links_ms.unwrap_or_default());
    Ok(Times { sessions_ms, links_ms, command_ms: took.as_secs_f64() * 1e3 })
}

fn arguments() -> anyhow::Result<(usize, usize)> {
    let (mut peers, mut rounds) = (20, 20);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().context("a number is missing")?.parse()?;
        match argument.as_str() {
            "--peers" => peers = value,
            "--rounds" => rounds = value,
            other => bail!("unknown argument {other}"),
        }
    }
    ensure!(peers > STAY && rounds > 0, "more than {STAY} Peers and a round");
    Ok((peers, rounds))
}
