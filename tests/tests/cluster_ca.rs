//! The CA is changed while everything runs: nothing that is open breaks, everybody gets a certificate of the next one, and
//! who was away comes back by its key.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, Lifetime, PATIENCE, Start, USAGE, expect_refusal, run, wait_for};
use p2p_tests::http::{self, Connection, Request};
use serde::Deserialize;

const SERVICE: &str = "web.example";

/// What `ca status --json` and `ca rotate --json` print.
#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    changed: bool,
    phase: String,
    cas: Vec<Ca>,
    servers: Vec<Server>,
    waiting_for: Vec<String>,
    away: u32,
}

#[derive(Debug, Deserialize)]
struct Ca {
    fingerprint: String,
    signs: bool,
    sessions: u32,
}

#[derive(Debug, Deserialize)]
struct Server {
    keys: Vec<String>,
    certificate_of: Option<String>,
}

fn ca(cluster: &Cluster, server: usize, args: &[&str]) -> anyhow::Result<Status> {
    let args = [&["ca"], args, &["--json"]].concat();
    cluster.servers[server].cli(&args)?.json()
}

fn wait_phase(cluster: &Cluster, server: usize, phase: &str) -> anyhow::Result<Status> {
    wait_for(phase, PATIENCE, || {
        let status = ca(cluster, server, &["status"])?;
        ensure!(status.phase == phase, "it is {}, waiting for {:?}", status.phase, status.waiting_for);
        Ok(())
    })?;
    ca(cluster, server, &["status"])
}

/// Waits until every connected node shows a certificate of the CA that signs.
fn wait_renewed(cluster: &Cluster, server: usize) -> anyhow::Result<Status> {
    wait_for("everybody's renewal", PATIENCE, || {
        let status = ca(cluster, server, &["status"])?;
        ensure!(status.waiting_for.is_empty(), "waiting for {:?}", status.waiting_for);
        Ok(())
    })?;
    ca(cluster, server, &["status"])
}

fn files(data: &Path) -> BTreeSet<String> {
    let names = data.read_dir().unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("ca-key")).collect()
}

fn certificates(data: &Path) -> anyhow::Result<usize> {
    Ok(std::fs::read_to_string(data.join("ca.pem"))?.matches("BEGIN CERTIFICATE").count())
}

/// A write of the cluster.
fn write(cluster: &Cluster, server: usize, text: &str) -> anyhow::Result<()> {
    cluster.servers[server].cli(&["settings", "set", "description", text])?.success().map(|_| ())
}

/// Three Servers; their keys under secrets of their own when `sealed`.
fn start(sealed: bool) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::empty(Lifetime::Bound)?;
    for nth in 0..3 {
        let start = match nth {
            0 => Start::Bootstrap,
            _ => Start::Join { introducer: cluster.servers[0].listen(), token: cluster.token("server", 1)? },
        };
        let server = cluster.new_server()?;
        if sealed {
            server.set_variable("P2P_CA_SECRET", &format!("secret of server {nth}"));
        }
        server.start(start)?;
        server.wait_ready(PATIENCE)?;
    }
    cluster.wait_agreed(PATIENCE)?;
    // Peers renew within a tenth of what their certificates have left.
    cluster.servers[0].cli(&["settings", "set", "peer_certificate_lifetime", "60s"])?.success()?;
    Ok(cluster)
}

/// Requests one after the other through a Peer until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(cluster: &Cluster, peer: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&done));
        let listen = cluster.peers[peer].listen();
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                match http::get(listen, SERVICE, "/") {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => failures.push(format!("{}: {}", answer.status, answer.text().trim())),
                    Err(error) => failures.push(format!("{error:#}")),
                }
                counting.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            failures
        });
        Traffic { stop, done, thread: Some(thread) }
    }

    fn expect_unbroken(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.take().context("it runs")?.join().expect("it does not panic");
        let done = self.done.load(Ordering::Relaxed);
        ensure!(failures.is_empty(), "{} of {done} requests failed: {:?}", failures.len(), failures.first());
        ensure!(done > 100, "there were just {done} requests");
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_ca_is_changed_under_traffic() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = start(true).unwrap();
    let tried = (|| {
        cluster.add_peer(&[(SERVICE, backend.addr())])?;
        cluster.add_peer(&[])?;
        cluster.add_peer(&[])?;
        let fetch = |peer: usize, cluster: &Cluster| -> anyhow::Result<()> {
            let answer = http::get(cluster.peers[peer].listen(), SERVICE, "/")?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text().trim());
            Ok(())
        };
        wait_for("the page", PATIENCE, || fetch(1, &cluster))?;
        wait_for("the page", PATIENCE, || fetch(2, &cluster))?;
        // This one is away from before the beginning until after the end.
        cluster.peers[2].kill()?;
        let mut held = Connection::open(cluster.peers[1].listen())?;
        let headers = [("Connection", "Upgrade"), ("Upgrade", "echo")];
        let answer = held.ask(&Request { headers: &headers, ..Request::get(SERVICE, "/upgrade") })?;
        ensure!(answer.status == 101, "{}", answer.status);
        let mut echo = || -> anyhow::Result<()> {
            held.send(b"still there")?;
            ensure!(held.read_exact(11)? == b"still there", "the echo is another");
            Ok(())
        };
        let traffic = Traffic::start(&cluster, 1);
        let [early, stale] = [cluster.token("peer", 1)?, cluster.token("peer", 1)?];
        let old = ca(&cluster, 0, &["status"])?;
        assert_eq!((old.phase.as_str(), old.cas.len()), ("settled", 1));

        // The asked Server dies as soon as it has answered, and another one is away from then on.
        cluster.servers[2].kill()?;
        let begun = ca(&cluster, 1, &["rotate"])?;
        assert!(begun.changed && begun.phase == "handing");
        cluster.servers[1].kill()?;
        cluster.servers[1].start(Start::Again)?;
        wait_for("the Server to answer", PATIENCE, || ca(&cluster, 1, &["status"]).map(|_| ()))?;
        assert!(!ca(&cluster, 1, &["rotate"])?.changed, "begun once");
        wait_for("what it waits for", PATIENCE, || {
            let status = ca(&cluster, 0, &["status"])?;
            ensure!(
                status.waiting_for.iter().any(|reason| reason.contains("s3")),
                "{:?}",
                status.waiting_for
            );
            Ok(())
        })?;
        write(&cluster, 0, "amid the handing")?;
        let refused = cluster.servers[0].cli(&["ca", "rotate", "--finish"])?;
        ensure!(refused.stderr.contains("does not sign yet"), "{}", refused.stderr);
        cluster.servers[2].start(Start::Again)?;
        let switched = wait_phase(&cluster, 0, "switched")?;
        assert!(switched.servers.iter().all(|server| server.keys.len() == 2));
        assert!(switched.cas[1].signs && switched.cas[0].fingerprint == old.cas[0].fingerprint);
        let new = switched.cas[1].fingerprint.clone();
        write(&cluster, 1, "after the switch")?;
        echo()?;

        let renewed = wait_renewed(&cluster, 2)?;
        assert!(renewed.servers.iter().all(|server| server.certificate_of.as_ref() == Some(&new)));
        assert_eq!((renewed.cas[0].sessions, renewed.cas[1].sessions, renewed.away), (0, 2, 1));
        // A token of before is as good as a new one while the old CA is trusted.
        let introducer = cluster.servers[2].listen();
        for token in [early, cluster.token("peer", 1)?] {
            let peer = cluster.new_peer()?;
            peer.introduce(&[introducer], &token);
            peer.start()?;
            peer.wait_working(3, PATIENCE)?;
        }
        wait_for("the page", PATIENCE, || fetch(3, &cluster))?;

        let finished = ca(&cluster, 0, &["rotate", "--finish"])?;
        assert!(finished.changed && finished.phase == "settled" && finished.cas[0].fingerprint == new);
        for server in &cluster.servers {
            wait_for("one key and one certificate", PATIENCE, || {
                ensure!(files(server.data()).into_iter().eq(["ca-key.pem"]), "{:?}", files(server.data()));
                ensure!(certificates(server.data())? == 1, "the old CA is still trusted");
                Ok(())
            })?;
            let key = std::fs::read_to_string(server.data().join("ca-key.pem"))?;
            assert!(key.contains("ENCRYPTED PRIVATE KEY"), "in the clear");
        }
        for peer in [0, 1, 3, 4] {
            let data = cluster.peers[peer].data();
            wait_for("one certificate", PATIENCE, || {
                ensure!(certificates(data)? == 1, "the old CA is still trusted");
                Ok(())
            })?;
        }
        echo()?;
        traffic.expect_unbroken()?;

        let late = cluster.new_peer()?;
        late.introduce(&[introducer], &stale);
        expect_refusal(late.run_command()?, USAGE, &["has changed its CA", "token"])?;
        // It knows the Servers by their keys, and they know it by its own.
        cluster.peers[2].start()?;
        cluster.peers[2].wait_working(3, PATIENCE)?;
        wait_for("the page", PATIENCE, || fetch(2, &cluster))?;
        // So does a Server that was away, and everything works from the disk alone.
        for server in &mut cluster.servers {
            server.kill()?;
        }
        for server in &mut cluster.servers {
            server.start(Start::Again)?;
        }
        cluster.wait_agreed(PATIENCE)?;
        let token = cluster.token("peer", 1)?;
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        peer.start()?;
        peer.wait_working(3, PATIENCE)
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn a_change_survives_its_leader_and_is_taken_back() {
    let mut cluster = start(false).unwrap();
    let tried = (|| {
        cluster.add_peer(&[])?;
        let old = ca(&cluster, 0, &["status"])?.cas[0].fingerprint.clone();
        // Before the switch: all is as it was.
        assert!(ca(&cluster, 0, &["rotate"])?.changed);
        let back = ca(&cluster, 1, &["rotate", "--abort"])?;
        assert!(back.changed && back.phase == "settled" && back.cas[0].fingerprint == old);
        assert!(!ca(&cluster, 2, &["rotate", "--abort"])?.changed);

        assert!(ca(&cluster, 0, &["rotate"])?.changed);
        wait_for("the keys", PATIENCE, || {
            let status = ca(&cluster, 0, &["status"])?;
            ensure!(status.servers.iter().all(|server| server.keys.len() == 2), "{:?}", status.waiting_for);
            Ok(())
        })?;
        // Whoever leads now did not begin it, or has to begin its wait anew.
        let master = cluster.master()?;
        cluster.servers[master].kill()?;
        cluster.servers[master].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        wait_phase(&cluster, 0, "switched")?;
        let new = wait_renewed(&cluster, 0)?.cas[1].fingerprint.clone();
        // After the switch: the other way round, by the same steps.
        let back = ca(&cluster, 0, &["rotate", "--abort"])?;
        assert_eq!((back.phase.as_str(), &back.cas[0].fingerprint), ("switched", &new));
        wait_renewed(&cluster, 0)?;
        let finished = ca(&cluster, 0, &["rotate", "--finish"])?;
        assert!(finished.phase == "settled" && finished.cas[0].fingerprint == old);
        cluster.peers[0].wait_working(3, PATIENCE)
    })();
    cluster.explain(tried).unwrap();
}

/// Makes a CA as an operator would, without the product.
fn own_ca(dir: &Path, is_ca: bool) -> anyhow::Result<()> {
    let mut params = rcgen::CertificateParams::default();
    let basic = rcgen::BasicConstraints::Unconstrained;
    params.is_ca = if is_ca { rcgen::IsCa::Ca(basic) } else { rcgen::IsCa::ExplicitNoCa };
    params.distinguished_name.push(rcgen::DnType::CommonName, "our own CA");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    std::fs::write(dir.join("own.pem"), params.self_signed(&key)?.pem())?;
    std::fs::write(dir.join("own-key.pem"), key.serialize_pem())?;
    Ok(())
}

#[test]
fn a_cluster_of_ones_own_ca_with_a_secret_that_changes() {
    let mut cluster = Cluster::empty(Lifetime::Bound).unwrap();
    let tried = (|| {
        let dir = cluster.dir().to_owned();
        let (own, key, secret) = (dir.join("own.pem"), dir.join("own-key.pem"), dir.join("secret"));
        let founder = cluster.new_server()?;
        let found = |command: &mut Command| {
            command.arg("--ca-cert").arg(&own).arg("--ca-key").arg(&key).arg("--ca-secret-file").arg(&secret);
        };
        std::fs::write(&secret, "correct horse battery\n")?;
        own_ca(&dir, false)?;
        let mut command = founder.run_command(&Start::Bootstrap)?;
        found(&mut command);
        expect_refusal(command, USAGE, &["CA:TRUE", "openssl"])?;
        own_ca(&dir, true)?;
        founder.set_variable("P2P_SERVER_CA_CERT", own.to_str().context("a plain path")?);
        founder.set_variable("P2P_SERVER_CA_KEY", key.to_str().context("a plain path")?);
        founder.set_variable("P2P_CA_SECRET", "correct horse battery");
        founder.start(Start::Bootstrap)?;
        founder.wait_ready(PATIENCE)?;
        assert_eq!(std::fs::read(founder.data().join("ca.pem"))?, std::fs::read(&own)?);
        cluster.add_servers(2)?;
        cluster.add_peer(&[])?;
        assert_eq!(ca(&cluster, 0, &["status"])?.cas[0].sessions, 1);

        // The files were needed once.
        std::fs::remove_file(&key)?;
        cluster.servers[0].kill()?;
        let data = cluster.servers[0].data().to_owned();
        let sealed = std::fs::read_to_string(data.join("ca-key.pem"))?;
        assert!(sealed.contains("ENCRYPTED"));
        cluster.servers[0].set_variable("P2P_CA_SECRET", "quite another secret");
        let command = cluster.servers[0].run_command(&Start::Again)?;
        expect_refusal(command, USAGE, &["does not open", "ca-key.pem"])?;
        cluster.servers[0].set_variable("P2P_CA_SECRET", "");
        let command = cluster.servers[0].run_command(&Start::Again)?;
        expect_refusal(command, USAGE, &["is encrypted", "--ca-secret-file"])?;
        let next = dir.join("next");
        std::fs::write(&next, "quite another secret")?;
        let mut command = cluster.servers[0].command(&["ca", "secret"])?;
        command.arg("--ca-secret-file").arg(&secret).arg("--new-secret-file").arg(&next);
        run(command, PATIENCE)?.success()?;
        cluster.servers[0].set_variable("P2P_CA_SECRET", "quite another secret");
        cluster.servers[0].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        // It signs again, and the secret is nowhere.
        cluster.servers[1].kill()?;
        let token = cluster.token("peer", 1)?;
        let introducer = cluster.servers[0].listen();
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        peer.start()?;
        peer.wait_working(2, PATIENCE)?;
        let log = std::fs::read_to_string(dir.join("s1.log"))?;
        assert!(
            !log.contains("another secret") && !log.contains("correct horse") && !log.contains("PRIVATE")
        );
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}
