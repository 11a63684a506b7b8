//! `make bench-forward`: what a forward through two Peers costs, beside no proxy at all and beside haproxy.
//!
//! client -> Peer -> Peer -> backend against client -> backend, one plain haproxy, and two haproxies with
//! mutual TLS between them, which is the rival that does the same work. One client and one backend serve all;
//! everything is on loopback and shares the processors. `--rounds N` and `--seconds S` change the length.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::bench::{
    Better, Case, Figures, Haproxy, Nginx, Report, Reuse, Row, bulk, cpu_seconds, find_or_install,
    haproxy_chain, haproxy_plain, requests,
};
use p2p_tests::cluster::{Cluster, PATIENCE, wait_for};
use p2p_tests::http;

const SERVICE: &str = "web.example";
const CLIENTS: usize = 32;
const PAGE_BYTES: usize = 1024;
/// Long enough that a clock tick of processor time is no more than 2 % of it.
const BULK_BYTES: u64 = 1 << 30;

const WARM_UP: Duration = Duration::from_millis(300);

const OURS: &str = "two Peers";
const DIRECT: &str = "direct";
const PLAIN: &str = "haproxy x1 plain";
const CHAIN: &str = "haproxy x2 mTLS";

const KEPT: [Case; 3] = [
    Case { name: "keep-alive, 32 clients", unit: "req/s", better: Better::Higher },
    Case { name: "keep-alive, 32 clients, p50", unit: "ms", better: Better::Lower },
    Case { name: "keep-alive, 32 clients, p99", unit: "ms", better: Better::Lower },
];
const CLOSED: [Case; 3] = [
    Case { name: "closing, 32 clients", unit: "req/s", better: Better::Higher },
    Case { name: "closing, 32 clients, p50", unit: "ms", better: Better::Lower },
    Case { name: "closing, 32 clients, p99", unit: "ms", better: Better::Lower },
];
const BULK: Case = Case { name: "bulk, 1 stream", unit: "MB/s", better: Better::Higher };
const COST: Case = Case { name: "bulk, CPU of the proxies", unit: "CPU-s/GB", better: Better::Lower };

/// Something that answers for the service, and the processes that work for it.
#[derive(Debug)]
struct Contestant {
    name: &'static str,
    addr: SocketAddr,
    pids: Vec<u32>,
}

/// Where the pages are.
#[derive(Debug, Clone)]
struct Pages {
    small: String,
    large: String,
}

fn main() -> anyhow::Result<()> {
    let (rounds, seconds) = arguments()?;
    let dir = tempfile::Builder::new().prefix("p2pcore-bench-").tempdir()?;
    let nginx = find_or_install("nginx").map(|program| start_nginx(&program, dir.path())).transpose()?;
    let own = if nginx.is_none() { Some(Backend::start("bench")?) } else { None };
    let (backend, pages) = match (&nginx, &own) {
        (Some(nginx), _) => (nginx.addr(), Pages { small: "/small".into(), large: "/large".into() }),
        (None, Some(own)) => {
            let page = |bytes: u64| format!("/bytes/{bytes}");
            (own.addr(), Pages { small: page(PAGE_BYTES as u64), large: page(BULK_BYTES) })
        }
        (None, None) => bail!("no backend"),
    };
    println!("backend: {}", if nginx.is_some() { "nginx" } else { "our own" });

    let mut cluster = start_cluster(backend)?;
    let haproxies = start_haproxies(dir.path(), backend)?;
    let mut contestants = vec![Contestant { name: DIRECT, addr: backend, pids: Vec::new() }];
    if let Some((plain, chain)) = &haproxies {
        contestants.push(Contestant { name: PLAIN, addr: plain.addr(), pids: plain.pids() });
        contestants.push(Contestant { name: CHAIN, addr: chain.addr(), pids: chain.pids() });
    }
    let pids = cluster.peers.iter_mut().map(|peer| Ok(peer.process_mut()?.pid()));
    let pids = pids.collect::<anyhow::Result<_>>()?;
    contestants.push(Contestant { name: OURS, addr: cluster.peers[1].listen(), pids });

    // Fills page caches and connection pools; its figures are dropped.
    for contestant in &contestants {
        measure(contestant, &pages, WARM_UP, &mut Figures::default()).context(contestant.name)?;
    }
    let mut figures = Figures::default();
    for round in 0..rounds {
        // Each round starts with another one, so that none always follows the same neighbour.
        contestants.rotate_left(usize::from(round > 0));
        for contestant in &contestants {
            let measured = measure(contestant, &pages, Duration::from_secs_f64(seconds), &mut figures);
            let measured = measured.with_context(|| contestant.name);
            cluster.explain(measured)?;
        }
        println!("round {} of {rounds}", round + 1);
    }
    report(&figures, haproxies.is_some())
}

fn measure(
    contestant: &Contestant,
    pages: &Pages,
    length: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let to = (contestant.addr, SERVICE, &*pages.small);
    for (reuse, cases) in [(Reuse::KeepAlive, KEPT), (Reuse::Close, CLOSED)] {
        let load = requests(to, reuse, CLIENTS, length, PAGE_BYTES)?;
        for (case, figure) in cases.iter().zip([load.per_second, load.p50_ms, load.p99_ms]) {
            figures.add(contestant.name, case, figure);
        }
    }
    let before = cpu_seconds(&contestant.pids)?;
    let load = bulk(contestant.addr, SERVICE, &pages.large, BULK_BYTES)?;
    let used = cpu_seconds(&contestant.pids)? - before;
    figures.add(contestant.name, &BULK, load.megabytes_per_second);
    if !contestant.pids.is_empty() {
        figures.add(contestant.name, &COST, used / (load.bytes as f64 / 1e9));
    }
    Ok(())
}

fn report(figures: &Figures, has_haproxy: bool) -> anyhow::Result<()> {
    let mut report = Report::new("forward");
    for case in KEPT.iter().chain(&CLOSED).chain([&BULK, &COST]) {
        let ours = figures.of(OURS, case);
        for rival in [DIRECT, PLAIN, CHAIN] {
            let theirs = figures.of(rival, case);
            let missing = rival != DIRECT && !has_haproxy;
            if missing {
                report.add(Row::compare(case, ours, &format!("{rival}: not installed"), &[]));
            } else if !theirs.is_empty() {
                report.add(Row::compare(case, ours, rival, theirs));
            }
        }
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

fn start_cluster(backend: SocketAddr) -> anyhow::Result<Cluster> {
    println!("building and starting three Servers and two Peers");
    let mut cluster = Cluster::start(3)?;
    cluster.add_peer(&[(SERVICE, backend)])?;
    cluster.add_peer(&[])?;
    let entry = cluster.peers[1].listen();
    let answers = wait_for("the service through both Peers", PATIENCE, || {
        let answer = http::get(entry, SERVICE, "/")?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text().trim());
        Ok(())
    });
    cluster.explain(answers)?;
    Ok(cluster)
}

fn start_haproxies(dir: &Path, backend: SocketAddr) -> anyhow::Result<Option<(Haproxy, Haproxy)>> {
    let Some(program) = find_or_install("haproxy") else {
        return Ok(None);
    };
    Ok(Some((haproxy_plain(&program, dir, backend)?, haproxy_chain(&program, dir, backend)?)))
}

fn start_nginx(program: &Path, dir: &Path) -> anyhow::Result<Nginx> {
    let root = dir.join("pages");
    std::fs::create_dir(&root)?;
    std::fs::write(root.join("index.html"), "the bench's backend\n")?;
    std::fs::write(root.join("small"), vec![b'x'; PAGE_BYTES])?;
    // Sparse: it is read from the page cache in any case.
    std::fs::File::create(root.join("large"))?.set_len(BULK_BYTES)?;
    Nginx::start(program, dir, &root)
}

fn arguments() -> anyhow::Result<(usize, f64)> {
    let (mut rounds, mut seconds) = (7, 3.0);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} wants a value"))?;
        match arg.as_str() {
            "--rounds" => rounds = value.parse().context("--rounds wants a number")?,
            "--seconds" => seconds = value.parse().context("--seconds wants a number")?,
            _ => bail!("usage: bench_forward [--rounds N] [--seconds S]"),
        }
    }
    ensure!(rounds > 0, "--rounds wants at least 1");
    Ok((rounds, seconds))
}
