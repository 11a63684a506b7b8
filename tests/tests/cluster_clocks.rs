//! Certificates that end while nobody is there to renew them, and clocks that are wrong or jump: the cluster elects, Peers
//! come back, nothing that is open breaks, and no operator is needed.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use p2p_runtime::identity::{CertificateDates, TrustBundle};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, PATIENCE, Seat, ServerProcess, Start, TestClock, wait_for};
use p2p_tests::http::{self, Connection, Request};
use serde_json::Value;

const SERVICE: &str = "web.example";
const HOUR_MS: i64 = 3_600_000;
const MONTH_MS: i64 = 30 * 24 * HOUR_MS;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
/// The shortest lifetime there is.
const LIFETIME: Duration = Duration::from_secs(5);

fn fetch(cluster: &Cluster, peer: usize) -> anyhow::Result<()> {
    let answer = http::get(cluster.peers[peer].listen(), SERVICE, "/")?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text().trim());
    Ok(())
}

/// A forward that stays open.
struct Held(Connection);

impl Held {
    fn open(cluster: &Cluster, peer: usize) -> anyhow::Result<Self> {
        let mut connection = Connection::open(cluster.peers[peer].listen())?;
        let headers = [("Connection", "Upgrade"), ("Upgrade", "echo")];
        let answer = connection.ask(&Request { headers: &headers, ..Request::get(SERVICE, "/upgrade") })?;
        ensure!(answer.status == 101, "{}: {}", answer.status, answer.text().trim());
        Ok(Held(connection))
    }

    fn is_alive(&mut self) -> anyhow::Result<()> {
        self.0.send(b"still there")?;
        ensure!(self.0.read_exact(11)? == b"still there", "the echo is another");
        Ok(())
    }
}

/// From now on certificates hold for so long; returns when those of the running Servers do.
fn shorten_lifetimes(cluster: &Cluster, lifetime: Duration) -> anyhow::Result<()> {
    let text = format!("{}s", lifetime.as_secs());
    for setting in ["peer_certificate_lifetime", "server_certificate_lifetime"] {
        cluster.servers[0].cli(&["settings", "set", setting, &text])?.success()?;
    }
    for server in &cluster.servers {
        wait_for("a short certificate", PATIENCE, || expect_sane(server.data(), lifetime))?;
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn dates(data: &Path) -> anyhow::Result<CertificateDates> {
    let pem = std::fs::read(data.join("cert.pem"))?;
    Ok(CertificateDates::of(&TrustBundle::from_pem(&pem)?.certificates()[0])?)
}

/// The certificate of a node was signed by a right clock, whoever did it, and holds for `lifetime` at most.
fn expect_sane(data: &Path, lifetime: Duration) -> anyhow::Result<()> {
    let (dates, now) = (dates(data)?, now_ms());
    let signed = dates.not_before.0 + HOUR_MS as u64;
    ensure!(signed < now + 5_000, "signed {} ms from now", signed.wrapping_sub(now));
    ensure!(signed + 60_000 > now, "signed {} ms ago", now - signed);
    let holds = dates.not_after.0 - signed;
    ensure!(holds <= lifetime.as_millis() as u64 + 1_000, "it holds for {holds} ms");
    Ok(())
}

/// Waits for another certificate than the one there is.
fn wait_renewed(data: &Path) -> anyhow::Result<()> {
    let before = dates(data)?;
    wait_for("another certificate", PATIENCE, || {
        ensure!(dates(data)? != before, "it is still the same");
        Ok(())
    })
}

fn status(server: &ServerProcess) -> anyhow::Result<Value> {
    server.cli(&["status", "--json"])?.json()
}

/// Lets every certificate end while the Servers are away, and the Peers, too, if they are `stopped`.
fn outlive_all_lifetimes(stopped: bool) {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        shorten_lifetimes(&cluster, LIFETIME)?;
        cluster.add_peer(&[(SERVICE, backend.addr())])?;
        cluster.add_peer(&[])?;
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        let mut held = Held::open(&cluster, 1)?;
        // All of them while they work.
        wait_renewed(cluster.peers[0].data())?;
        held.is_alive()?;
        for server in &mut cluster.servers {
            server.kill()?;
        }
        if stopped {
            for peer in &mut cluster.peers {
                peer.kill()?;
            }
        }
        sleep(LIFETIME + Duration::from_secs(2));
        let now = now_ms();
        let nodes = cluster.servers.iter().map(|server| server.data());
        for data in nodes.chain(cluster.peers.iter().map(|peer| peer.data())) {
            assert!(dates(data)?.not_after.0 < now, "{} is not over", data.display());
        }
        if !stopped {
            held.is_alive().context("what was open while all certificates ended")?;
        }
        for server in &mut cluster.servers {
            server.start(Start::Again)?;
        }
        if stopped {
            for peer in &mut cluster.peers {
                peer.start()?;
            }
        }
        cluster.wait_agreed(PATIENCE)?;
        for peer in &mut cluster.peers {
            peer.wait_working(3, PATIENCE)?;
        }
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        if !stopped {
            held.is_alive()?;
        }
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn all_stopped_past_every_lifetime_come_back_by_themselves() {
    outlive_all_lifetimes(true);
}

#[test]
fn peers_that_ran_past_every_lifetime_are_let_in_again() {
    outlive_all_lifetimes(false);
}

#[test]
fn a_peer_away_for_longer_than_the_grace_enrols_again_by_a_token() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        shorten_lifetimes(&cluster, LIFETIME)?;
        let grace = LIFETIME.as_secs().to_string() + "s";
        cluster.servers[0].cli(&["settings", "set", "certificate_renewal_grace", &grace])?.success()?;
        let token = cluster.servers[0].token("peer", 1, "1h")?;
        let introducer = cluster.servers[0].listen();
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        peer.offer(SERVICE, backend.addr());
        peer.start()?;
        peer.wait_working(1, PATIENCE)?;
        let id = cluster.peers[0].status()?.id;
        cluster.peers[0].kill()?;
        sleep(2 * LIFETIME + Duration::from_secs(2));
        // A repeated enrolment costs its token no use.
        cluster.peers[0].start()?;
        cluster.peers[0].wait_working(1, PATIENCE)?;
        assert_eq!(cluster.peers[0].status()?.id, id);
        assert!(cluster.peers[0].process_mut()?.log().contains("enrolling again"));
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

/// One Server and one Peer have a clock that `set` makes wrong.
fn work_with_an_odd_clock(set: impl Fn(&TestClock) -> anyhow::Result<i64>) {
    const LIFETIME: Duration = Duration::from_secs(8);
    let backend = Backend::start("b1").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let odd = TestClock::new(dir.path(), "odd").unwrap();
    let ahead_ms = set(&odd).unwrap();
    let mut seats: Vec<Seat> = (0..3).map(|_| Seat::loopback(dir.path()).unwrap()).collect();
    seats[2] = seats[2].clone().with_variables(odd.variables());
    let mut cluster = Cluster::start_in(seats).unwrap();
    let tried = (|| {
        shorten_lifetimes(&cluster, LIFETIME)?;
        // Both enrol at the odd Server, which signs.
        for peer in 0..2 {
            let (token, introducer) = (cluster.token("peer", 1)?, cluster.servers[2].listen());
            let new = cluster.new_peer()?;
            new.introduce(&[introducer], &token);
            if peer == 0 {
                new.offer(SERVICE, backend.addr());
                for (name, value) in odd.variables() {
                    new.set_variable(&name, &value);
                }
            }
            new.start()?;
            new.wait_working(3, PATIENCE)?;
            expect_sane(cluster.peers[peer].data(), LIFETIME)?;
        }
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        // Whoever of the three signs them.
        for peer in [0, 1, 0] {
            wait_renewed(cluster.peers[peer].data())?;
            expect_sane(cluster.peers[peer].data(), LIFETIME)?;
        }
        fetch(&cluster, 1)?;
        for server in &cluster.servers {
            expect_sane(server.data(), LIFETIME)?;
        }
        let off = |status: &Value| status["clock_behind_ms"].as_i64().unwrap() + ahead_ms;
        assert!(off(&status(&cluster.servers[2])?).abs() < 5_000);
        assert!(off(&cluster.peers[0].cli(&["status", "--json"])?.json()?).abs() < 5_000);
        for (server, behind) in [(0, false), (2, true)] {
            let told = cluster.servers[server].cli(&["status"])?.success()?;
            assert_eq!(told.contains("its host's clock is"), behind, "{told}");
        }
        assert!(cluster.peers[0].cli(&["status"])?.success()?.contains("its host's clock is"));
        assert!(cluster.servers[2].process_mut()?.log().contains("this host's clock is wrong"));
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn a_server_and_a_peer_an_hour_ahead() {
    work_with_an_odd_clock(|clock| clock.move_by(HOUR_MS).map(|()| HOUR_MS));
}

#[test]
fn a_server_and_a_peer_an_hour_behind() {
    work_with_an_odd_clock(|clock| clock.move_by(-HOUR_MS).map(|()| -HOUR_MS));
}

#[test]
fn a_server_and_a_peer_in_1970() {
    work_with_an_odd_clock(TestClock::move_to_1970);
}

/// Since when each session and each link is up, and how often Servers lost each other: unchanged while none broke.
fn established(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for peer in &cluster.peers[..2] {
        let status: Value = peer.cli(&["status", "--json"])?.json()?;
        for server in status["servers"].as_array().context("servers")? {
            ensure!(server["connected"] == true, "no session with {}", server["name"]);
            found.push(format!("{} {} {}", peer.name(), server["name"], server["since_unix_ms"]));
        }
    }
    for server in &mut cluster.servers {
        let lost = server.process_mut()?.log().matches("connection to server lost").count();
        found.push(format!("{} lost {lost}", server.name()));
    }
    Ok(found)
}

#[test]
fn jumps_break_nothing_that_is_open() {
    let backend = Backend::start("b1").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let clock = |name| TestClock::new(dir.path(), name).unwrap();
    let of_servers = ["s1", "s2", "s3"].map(clock);
    let of_peers = ["p1", "p2"].map(clock);
    let seats = of_servers
        .each_ref()
        .map(|clock| Seat::loopback(dir.path()).unwrap().with_variables(clock.variables()));
    let mut cluster = Cluster::start_in(seats.into()).unwrap();
    let tried = (|| {
        for (nth, clock) in of_peers.iter().enumerate() {
            cluster.add_peer_with(|peer| {
                if nth == 0 {
                    peer.offer(SERVICE, backend.addr());
                }
                for (name, value) in clock.variables() {
                    peer.set_variable(&name, &value);
                }
                Ok(())
            })?;
        }
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        let mut held = vec![Held::open(&cluster, 1)?];
        let before = established(&mut cluster)?;
        let mut jump = |cluster: &mut Cluster, what: &str, set: &dyn Fn() -> anyhow::Result<()>| {
            set()?;
            // Time for a probe of Servers, and a heartbeat either way.
            let until = Instant::now() + Duration::from_secs(4);
            while Instant::now() < until {
                held.iter_mut().try_for_each(Held::is_alive).context(what.to_owned())?;
                sleep(Duration::from_millis(100));
            }
            // A tunnel of its own, since all others are taken.
            held.push(Held::open(cluster, 1).context(what.to_owned())?);
            assert_eq!(established(cluster)?, before, "{what}");
            anyhow::Ok(())
        };
        let [s1, p1] = [&of_servers[0], &of_peers[0]];
        let both = |ms| move || s1.move_by(ms).and_then(|()| p1.move_by(ms));
        jump(&mut cluster, "an hour ahead", &both(HOUR_MS))?;
        jump(&mut cluster, "an hour behind", &both(-HOUR_MS))?;
        jump(&mut cluster, "1970", &|| s1.move_to_1970().and_then(|_| p1.move_to_1970()).map(drop))?;
        jump(&mut cluster, "a year ahead", &both(YEAR_MS))?;
        // All at once: every certificate of a Peer is over.
        let all = || of_servers.iter().chain(&of_peers).try_for_each(|clock| clock.move_by(MONTH_MS));
        jump(&mut cluster, "a month ahead, everybody", &all)?;
        cluster.wait_agreed(PATIENCE)?;
        // A new one, whose clock is right, and alone with it.
        cluster.add_peer(&[])?;
        wait_for("the page", PATIENCE, || fetch(&cluster, 2))
    })();
    cluster.explain(tried).unwrap();
}
