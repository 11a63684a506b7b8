//! `make bench-forward`: what a forward through two Peers costs, beside no proxy at all and beside its rivals.
//!
//! client -> Peer -> Peer -> backend against client -> backend, one plain haproxy, two haproxies with mutual
//! TLS between them, and rathole over TCP and over TLS. The mutual TLS chain is the rival that does the same
//! work; rathole's TLS shows a certificate on one side only and it reads no HTTP. One client and one backend
//! serve all; everything is on loopback and shares the processors. Load is closed-loop but for the rows at 70 %
//! of the slower one's rate, which keep a timetable. `--rounds N` and `--seconds S` change the length, `--only`
//! and `--beside` what is compared: `--beside PATH` has another build of `p2p-peer` as a rival, and
//! `--only NAME,NAME` leaves out the rivals it does not name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::bench::{
    Better, Case, Figures, Haproxy, Nginx, Rathole, RatholeTransport, Report, Reuse, Row, bulk,
    cargo_install, cpu_seconds, find_or_install, haproxy_chain, haproxy_plain, paced_p99_ms, requests,
};
use p2p_tests::cluster::{Cluster, PATIENCE, wait_for};
use p2p_tests::http;

const SERVICE: &str = "web.example";
/// The same backend, by Peers of another build.
const BESIDE_SERVICE: &str = "beside.example";
const CLIENTS: usize = 32;
const PAGE_BYTES: usize = 1024;
/// Long enough that a clock tick of processor time is no more than 2 % of it.
const BULK_BYTES: u64 = 1 << 30;

const WARM_UP: Duration = Duration::from_millis(300);

const OURS: &str = "two Peers";
const DIRECT: &str = "direct";
const PLAIN: &str = "haproxy x1 plain";
const CHAIN: &str = "haproxy x2 mTLS";
const BESIDE: &str = "two Peers of the other build";
const RATHOLE_TCP: &str = "rathole TCP";
const RATHOLE_TLS: &str = "rathole TLS";

/// The last release that was published.
const RATHOLE_VERSION: &str = "0.5.0";

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
/// Of the rate that the slower of the two reached in the same round.
const PACE: f64 = 0.7;
/// The rivals of these rows, which are measured at a rate of their own.
const PACED: [(&str, Case); 2] = [
    (RATHOLE_TLS, paced("keep-alive at 70 % of the slower's rate (rathole TLS), p99")),
    (CHAIN, paced("keep-alive at 70 % of the slower's rate (haproxy mTLS), p99")),
];

const fn paced(name: &'static str) -> Case {
    Case { name, unit: "ms", better: Better::Lower }
}

/// What the project wants of a ratio.
const AIMS: &[(&Case, &str, f64)] = &[
    (&KEPT[0], RATHOLE_TLS, 3.0),
    (&KEPT[0], CHAIN, 1.0),
    (&CLOSED[0], RATHOLE_TLS, 4.0),
    (&CLOSED[0], RATHOLE_TCP, 1.0),
    (&BULK, RATHOLE_TLS, 1.6),
    (&BULK, RATHOLE_TCP, 1.1),
    (&BULK, CHAIN, 1.25),
    (&COST, RATHOLE_TLS, 0.6),
    (&PACED[0].1, RATHOLE_TLS, 1.0),
    (&PACED[1].1, CHAIN, 1.0),
];

/// Something that answers for the service, and the processes that work for it.
#[derive(Debug, Clone)]
struct Contestant {
    name: &'static str,
    /// How it is asked for.
    host: &'static str,
    addr: SocketAddr,
    pids: Vec<u32>,
}

/// The rivals that are to be had.
#[derive(Debug, Default)]
struct Rivals {
    haproxies: Vec<(&'static str, Haproxy)>,
    ratholes: Vec<(&'static str, Rathole)>,
}

/// Where the pages are.
#[derive(Debug, Clone)]
struct Pages {
    small: String,
    large: String,
}

fn main() -> anyhow::Result<()> {
    let Arguments { rounds, seconds, beside, only } = Arguments::parse()?;
    let length = Duration::from_secs_f64(seconds);
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

    let rivals = Rivals::start(dir.path(), backend)?;
    println!("building and starting three Servers and two Peers");
    let mut cluster = Cluster::start(3)?;
    let ours = start_peers(&mut cluster, OURS, SERVICE, backend, None)?;
    let mut contestants = vec![Contestant { name: DIRECT, host: SERVICE, addr: backend, pids: Vec::new() }];
    contestants.extend(rivals.contestants());
    if let Some(program) = &beside {
        contestants.push(start_peers(&mut cluster, BESIDE, BESIDE_SERVICE, backend, Some(program))?);
    }
    contestants.retain(|rival| only.is_empty() || only.iter().any(|name| name == rival.name));
    contestants.push(ours.clone());

    // Fills page caches and connection pools; its figures are dropped.
    for contestant in &contestants {
        measure(contestant, &pages, WARM_UP, &mut Figures::default()).context(contestant.name)?;
    }
    let mut figures = Figures::default();
    for round in 0..rounds {
        // Each round starts with another one, so that none always follows the same neighbour.
        contestants.rotate_left(usize::from(round > 0));
        for contestant in &contestants {
            let measured = measure(contestant, &pages, length, &mut figures);
            let measured = measured.with_context(|| contestant.name);
            cluster.explain(measured)?;
        }
        for (rival, case) in &PACED {
            let Some(rival) = contestants.iter().find(|contestant| contestant.name == *rival) else {
                continue;
            };
            let measured = measure_paced([&ours, rival], case, &pages, length, &mut figures);
            cluster.explain(measured)?;
        }
        println!("round {} of {rounds}", round + 1);
    }
    report(&figures, &contestants)
}

fn measure(
    contestant: &Contestant,
    pages: &Pages,
    length: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let to = (contestant.addr, contestant.host, &*pages.small);
    for (reuse, cases) in [(Reuse::KeepAlive, KEPT), (Reuse::Close, CLOSED)] {
        let load = requests(to, reuse, CLIENTS, length, PAGE_BYTES)?;
        for (case, figure) in cases.iter().zip([load.per_second, load.p50_ms, load.p99_ms]) {
            figures.add(contestant.name, case, figure);
        }
    }
    let before = cpu_seconds(&contestant.pids)?;
    let load = bulk(contestant.addr, contestant.host, &pages.large, BULK_BYTES)?;
    let used = cpu_seconds(&contestant.pids)? - before;
    figures.add(contestant.name, &BULK, load.megabytes_per_second);
    if !contestant.pids.is_empty() {
        figures.add(contestant.name, &COST, used / (load.bytes as f64 / 1e9));
    }
    Ok(())
}

/// Both at a rate that the slower one carries.
fn measure_paced(
    pair: [&Contestant; 2],
    case: &Case,
    pages: &Pages,
    length: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let rates = pair.map(|contestant| figures.of(contestant.name, &KEPT[0]).last().copied());
    let [Some(ours), Some(theirs)] = rates else { bail!("no rate was measured before") };
    for contestant in pair {
        let to = (contestant.addr, contestant.host, &*pages.small);
        let p99 = paced_p99_ms(to, ours.min(theirs) * PACE, CLIENTS, length, PAGE_BYTES);
        figures.add(contestant.name, case, p99.with_context(|| contestant.name)?);
    }
    Ok(())
}

fn report(figures: &Figures, contestants: &[Contestant]) -> anyhow::Result<()> {
    let mut report = Report::new("forward");
    let paced = PACED.iter().map(|(_, case)| case);
    for case in KEPT.iter().chain(&CLOSED).chain([&BULK, &COST]).chain(paced) {
        let ours = figures.of(OURS, case);
        for rival in [DIRECT, PLAIN, CHAIN, RATHOLE_TCP, RATHOLE_TLS, BESIDE] {
            let aim = AIMS.iter().find(|(of, against, _)| *of == case && *against == rival);
            let theirs = figures.of(rival, case);
            if !theirs.is_empty() {
                let row = Row::compare(case, ours, rival, theirs);
                report.add(row.map(|row| row.with_aim(aim.map(|(_, _, aim)| *aim))));
            } else if aim.is_some() && contestants.iter().all(|contestant| contestant.name != rival) {
                report.add(Row::compare(case, ours, &format!("{rival}: not measured"), &[]));
            }
        }
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

/// Two more Peers: one offers `service`, the other is where clients come in.
fn start_peers(
    cluster: &mut Cluster,
    name: &'static str,
    service: &'static str,
    backend: SocketAddr,
    program: Option<&Path>,
) -> anyhow::Result<Contestant> {
    let token = cluster.token("peer", 2)?;
    let introducer = cluster.servers[0].listen();
    let mut pids = Vec::new();
    for offers in [true, false] {
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        if offers {
            peer.offer(service, backend);
        }
        if let Some(program) = program {
            peer.use_program(program);
        }
        peer.start()?;
        peer.wait_working(3, PATIENCE)?;
        pids.push(peer.process_mut()?.pid());
    }
    let addr = cluster.peers.last().context("two were added")?.listen();
    let answers = wait_for("the service through both Peers", PATIENCE, || {
        let answer = http::get(addr, service, "/")?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text().trim());
        Ok(())
    });
    cluster.explain(answers)?;
    Ok(Contestant { name, host: service, addr, pids })
}

impl Rivals {
    fn start(dir: &Path, backend: SocketAddr) -> anyhow::Result<Self> {
        let mut rivals = Rivals::default();
        if let Some(program) = find_or_install("haproxy") {
            rivals.haproxies.push((PLAIN, haproxy_plain(&program, dir, backend)?));
            rivals.haproxies.push((CHAIN, haproxy_chain(&program, dir, backend)?));
        }
        if let Some(program) = cargo_install("rathole", RATHOLE_VERSION) {
            for (name, transport) in
                [(RATHOLE_TCP, RatholeTransport::Tcp), (RATHOLE_TLS, RatholeTransport::Tls)]
            {
                rivals.ratholes.push((name, Rathole::start(&program, dir, transport, backend)?));
            }
        }
        Ok(rivals)
    }

    fn contestants(&self) -> impl Iterator<Item = Contestant> {
        let haproxies = self.haproxies.iter().map(|(name, it)| (*name, it.addr(), it.pids()));
        let ratholes = self.ratholes.iter().map(|(name, it)| (*name, it.addr(), it.pids()));
        haproxies.chain(ratholes).map(|(name, addr, pids)| Contestant { name, host: SERVICE, addr, pids })
    }
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

/// The command line.
struct Arguments {
    rounds: usize,
    seconds: f64,
    beside: Option<PathBuf>,
    only: Vec<String>,
}

impl Arguments {
    fn parse() -> anyhow::Result<Self> {
        let mut parsed = Arguments { rounds: 7, seconds: 3.0, beside: None, only: Vec::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let value = args.next().with_context(|| format!("{arg} wants a value"))?;
            match arg.as_str() {
                "--rounds" => parsed.rounds = value.parse().context("--rounds wants a number")?,
                "--seconds" => parsed.seconds = value.parse().context("--seconds wants a number")?,
                "--beside" => parsed.beside = Some(value.into()),
                "--only" => parsed.only = value.split(',').map(str::to_owned).collect(),
                _ => bail!("usage: bench_forward [--rounds N] [--seconds S] [--beside PATH] [--only NAMES]"),
            }
        }
        ensure!(parsed.rounds > 0, "--rounds wants at least 1");
        Ok(parsed)
    }
}
