//! `make bench-scale`: thousands of forwards at once between two Peers, and thousands of idle clients.
//!
//! Every process here may have 20,000 open files. 5,000 clients of one Peer download without end from one
//! service of another, all at once: what each forward costs in memory and files on either Peer, and how far the
//! luckiest of them gets ahead of the unluckiest. The bound on tunnels to one other Peer, 1,024, is raised for it
//! (`tunnels_per_remote`). Then the same 5,000 fall silent with their forwards open. At last 10,000 clients stay
//! connected after a request whose forward has ended, on two other Peers, since a Peer takes no more than half as many
//! connections as it may have files. `--forwards N` and `--seconds S` change the size.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use p2p_tests::bench::{Better, Case, Footprint, Report, Row, footprint};
use p2p_tests::cluster::{Cluster, PATIENCE, wait_for};
use p2p_tests::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const FILES: u64 = 20_000;
const TUNNELS: usize = 6_000;
const ENDLESS: &str = "endless.example";
const SHORT: &str = "short.example";
/// Connections that are opened at a time, so that no backlog overflows.
const OPENING: usize = 256;

const fn case(name: &'static str, unit: &'static str) -> Case {
    Case { name, unit, better: Better::Lower }
}

const ACTIVE_INGRESS: Case = case("active forwards, memory of each at the ingress", "KiB");
const ACTIVE_OWNER: Case = case("active forwards, memory of each at the owner", "KiB");
const FILES_INGRESS: Case = case("active forwards, files of each at the ingress", "files");
const FILES_OWNER: Case = case("active forwards, files of each at the owner", "files");
const SHARES: Case = case("active forwards, largest over smallest share", "ratio");
const RATE: Case = Case { name: "active forwards, all", unit: "MB/s", better: Better::Higher };
const SILENT_INGRESS: Case = case("silent open forwards, memory of each at the ingress", "KiB");
const SILENT_OWNER: Case = case("silent open forwards, memory of each at the owner", "KiB");
const IDLE: Case = case("idle kept-alive clients, twice as many, memory of each", "KiB");

/// The backend, and what its clients hold against it.
#[derive(Debug, Default)]
struct Faucet {
    closed: AtomicBool,
}

fn main() -> anyhow::Result<()> {
    let (forwards, seconds) = arguments()?;
    limit_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let faucet = Arc::new(Faucet::default());
    let endless = runtime.block_on(listen(Arc::clone(&faucet), true))?;
    let short = runtime.block_on(listen(Arc::clone(&faucet), false))?;

    println!("building and starting a Server and four Peers");
    let mut cluster = Cluster::start(1)?;
    let token = cluster.token("peer", 4)?;
    let introducer = cluster.servers[0].listen();
    for nth in 0..4 {
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        peer.set("--tunnels-per-remote", &TUNNELS.to_string());
        if nth == 0 {
            peer.offer(ENDLESS, endless);
            peer.offer(SHORT, short);
        }
        peer.start()?;
        peer.wait_working(1, PATIENCE)?;
    }
    let entries = [1, 2, 3].map(|nth: usize| cluster.peers[nth].listen());
    for entry in entries {
        wait_for("the service through two Peers", PATIENCE, || {
            let answer = http::get(entry, SHORT, "/")?;
            ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text().trim());
            Ok(())
        })?;
    }
    let pids: Vec<u32> =
        cluster.peers.iter_mut().map(|peer| Ok(peer.process_mut()?.pid())).collect::<anyhow::Result<_>>()?;
    let look = || -> anyhow::Result<Vec<Footprint>> { pids.iter().map(|pid| footprint(*pid)).collect() };

    let mut report = Report::new("scale");
    let active = runtime.block_on(active_forwards(entries[0], forwards, seconds, look, &faucet));
    let active = cluster.explain(active)?;
    let idle = runtime.block_on(idle_clients([entries[1], entries[2]], 2 * forwards, look));
    let idle = cluster.explain(idle)?;
    let none = format!("none; {forwards} forwards, tunnels_per_remote = {TUNNELS}, {FILES} files");
    for (case, figure) in active.into_iter().chain(idle) {
        report.add(Row::compare(&case, &[figure], &none, &[]));
    }
    println!("\n{}", report.table());
    println!("written: {}", report.write()?.display());
    Ok(())
}

/// All download at once; then nothing comes any more.
async fn active_forwards(
    entry: SocketAddr,
    forwards: usize,
    seconds: f64,
    look: impl Fn() -> anyhow::Result<Vec<Footprint>>,
    faucet: &Faucet,
) -> anyhow::Result<Vec<(Case, f64)>> {
    faucet.closed.store(true, Ordering::Relaxed);
    let before = look()?;
    let clients = connect(entry, ENDLESS, forwards).await?;
    println!("{forwards} forwards are open");
    let received: Arc<[AtomicU64]> = (0..forwards).map(|_| AtomicU64::new(0)).collect();
    let mut readers = JoinSet::new();
    for (nth, mut client) in clients.into_iter().enumerate() {
        let received = Arc::clone(&received);
        readers.spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                match client.read(&mut buffer).await {
                    Ok(count) if count > 0 => received[nth].fetch_add(count as u64, Ordering::Relaxed),
                    ended => return anyhow::Error::msg(format!("a download ended: {ended:?}")),
                };
            }
        });
    }
    faucet.closed.store(false, Ordering::Relaxed);
    // Until the first bytes have filled what lies between.
    tokio::time::sleep(Duration::from_secs_f64(seconds / 4.0)).await;
    let counts = || received.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (first, start) = (counts(), tokio::time::Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let during = look()?;
    let took = start.elapsed().as_secs_f64();
    let shares: Vec<u64> = counts().iter().zip(&first).map(|(now, then)| now - then).collect();
    faucet.closed.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs_f64(seconds / 2.0)).await;
    let silent = look()?;
    if let Some(ended) = readers.try_join_next() {
        return Err(ended?);
    }
    let (smallest, largest) = (shares.iter().min().copied(), shares.iter().max().copied());
    let (smallest, largest) = smallest.zip(largest).context("there are clients")?;
    println!("shares: {smallest} to {largest} bytes in {took:.1} s");
    ensure!(smallest > 0, "a forward stood still for {took:.1} s while others moved");
    let each = |now: &[Footprint], nth: usize| {
        now[nth].resident_bytes.saturating_sub(before[nth].resident_bytes) as f64 / 1024.0 / forwards as f64
    };
    let files = |nth: usize| (during[nth].open_files - before[nth].open_files) as f64 / forwards as f64;
    Ok(vec![
        (ACTIVE_INGRESS, each(&during, 1)),
        (ACTIVE_OWNER, each(&during, 0)),
        (FILES_INGRESS, files(1)),
        (FILES_OWNER, files(0)),
        (SHARES, largest as f64 / smallest as f64),
        (RATE, shares.iter().sum::<u64>() as f64 / 1e6 / took),
        (SILENT_INGRESS, each(&silent, 1)),
        (SILENT_OWNER, each(&silent, 0)),
    ])
}

/// Each asks once; the service closes its connection, the client does not.
async fn idle_clients(
    entries: [SocketAddr; 2],
    clients: usize,
    look: impl Fn() -> anyhow::Result<Vec<Footprint>>,
) -> anyhow::Result<Vec<(Case, f64)>> {
    let before = look()?;
    let mut kept = Vec::new();
    for entry in entries {
        for mut client in connect(entry, SHORT, clients / 2).await? {
            let mut answer = vec![0; 4096];
            let mut have = 0;
            while !answer[..have].ends_with(b"short\n") {
                let read = tokio::time::timeout(PATIENCE, client.read(&mut answer[have..])).await;
                have += read.context("half an answer")??;
                let text = String::from_utf8_lossy(&answer[..have]);
                ensure!(text.starts_with("HTTP/1.1 200 "), "client {} was sent away: {text}", kept.len());
            }
            kept.push(client);
        }
    }
    // The service has taken its leave.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let now = look()?;
    let grown: u64 = [1, 2]
        .map(|nth: usize| now[nth].resident_bytes.saturating_sub(before[nth].resident_bytes))
        .iter()
        .sum();
    let each = grown as f64 / 1024.0 / kept.len() as f64;
    println!("{} clients are idle", kept.len());
    Ok(vec![(IDLE, each)])
}

/// Opens connections and asks once on each.
async fn connect(entry: SocketAddr, host: &str, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let request: Arc<[u8]> = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes().into();
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let mut opening = JoinSet::new();
        for _ in clients.len()..count.min(clients.len() + OPENING) {
            let request = Arc::clone(&request);
            opening.spawn(async move {
                let mut client = TcpStream::connect(entry).await.context("connecting")?;
                client.write_all(&request).await?;
                // The first byte of the answer says that the forward is open.
                let mut first = [0];
                let answered = tokio::time::timeout(Duration::from_secs(30), client.peek(&mut first)).await;
                ensure!(answered.context("no answer in 30 s")?? == 1 && first == *b"H", "closed");
                anyhow::Ok(client)
            });
        }
        while let Some(client) = opening.join_next().await {
            clients.push(client??);
        }
    }
    Ok(clients)
}

/// A service: answers each request with bytes without end while the faucet is open, or shortly; in the latter
/// case it closes soon.
async fn listen(faucet: Arc<Faucet>, endless: bool) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let faucet = Arc::clone(&faucet);
            // Whoever leaves ends its own connection alone.
            tokio::spawn(async move {
                let _ = if endless { pour(stream, &faucet).await } else { answer(stream).await };
            });
        }
    });
    Ok(addr)
}

async fn pour(mut stream: TcpStream, faucet: &Faucet) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _request = stream.read(&mut head).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").await?;
    static BYTES: [u8; 16 * 1024] = [b'x'; 16 * 1024];
    loop {
        if faucet.closed.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        } else {
            stream.write_all(&BYTES).await?;
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _request = stream.read(&mut head).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nshort\n").await?;
    // So few of them are open at a time that their tunnels count little.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.shutdown().await
}

/// For this process and those it starts.
fn limit_files() -> anyhow::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours to write.
    let read = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(read == 0, "reading the limit on files: {}", std::io::Error::last_os_error());
    ensure!(
        limit.rlim_max >= FILES,
        "the hard limit on open files is {}: {FILES} are needed",
        limit.rlim_max
    );
    limit = libc::rlimit { rlim_cur: FILES, rlim_max: FILES };
    // SAFETY: `limit` is read only.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(set == 0, "setting the limit on files: {}", std::io::Error::last_os_error());
    Ok(())
}

fn arguments() -> anyhow::Result<(usize, f64)> {
    let (mut forwards, mut seconds) = (5_000, 20.0);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} wants a value"))?;
        match arg.as_str() {
            "--forwards" => forwards = value.parse().context("--forwards wants a number")?,
            "--seconds" => seconds = value.parse().context("--seconds wants a number")?,
            _ => bail!("usage: bench_scale [--forwards N] [--seconds S]"),
        }
    }
    ensure!(forwards > 0, "--forwards wants at least 1");
    Ok((forwards, seconds))
}
