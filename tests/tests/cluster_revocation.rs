//! A node is thrown out of a running cluster: how soon everybody has closed what it holds open, also without a quorum,
//! also after an absence, also when it does not let go by itself.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, NEEDS_OPERATOR, OtherEnds, PATIENCE, Signal, Start, wait_for};
use p2p_tests::http::{self, Connection, Request};
use serde::Deserialize;

/// SPEC I7.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
struct Revoked {
    replicated: bool,
    servers_told: u32,
}

#[derive(Debug, Deserialize)]
struct Revocations {
    revocations: Vec<Revocation>,
}

#[derive(Debug, Deserialize)]
struct Revocation {
    number: u64,
    id: String,
    reason: String,
}

fn freeze(cluster: &mut Cluster, peer: usize) -> anyhow::Result<OtherEnds> {
    let process = cluster.peers[peer].process_mut()?;
    process.signal(Signal::Stop)?;
    // The signal is taken when it is next scheduled.
    std::thread::sleep(Duration::from_millis(200));
    of_nodes(&OtherEnds::of(process.pid())?)
}

fn id(cluster: &Cluster, peer: usize) -> anyhow::Result<String> {
    Ok(cluster.peers[peer].status()?.id)
}

fn fetch(cluster: &Cluster, ingress: usize, service: &str) -> anyhow::Result<u16> {
    Ok(http::get(cluster.peers[ingress].listen(), service, "/")?.status)
}

/// Waits until the other ends are closed; how long that took since `began`.
fn closed(what: &str, ends: &OtherEnds, began: Instant) -> anyhow::Result<Duration> {
    wait_for(what, PATIENCE, || {
        let open = ends.open()?;
        ensure!(open == 0, "{open} of {} connections are open", ends.len());
        Ok(())
    })?;
    let took = began.elapsed();
    ensure!(took < CLOSED_WITHIN, "{what}: closed after {took:?}");
    Ok(took)
}

/// Three Peers that are linked, each with a service of its number, and a cluster of three Servers.
fn linked() -> anyhow::Result<(Cluster, Vec<Backend>)> {
    let mut cluster = Cluster::start(3)?;
    let mut backends = Vec::new();
    for n in 1..=3 {
        let backend = Backend::start(&format!("b{n}"))?;
        cluster.add_peer(&[(&format!("s{n}.example"), backend.addr())])?;
        backends.push(backend);
    }
    for ingress in 0..3 {
        for owner in 1..=3 {
            wait_for("every service at every Peer", PATIENCE, || {
                ensure!(fetch(&cluster, ingress, &format!("s{owner}.example"))? == 200);
                Ok(())
            })?;
        }
    }
    Ok((cluster, backends))
}

#[test]
fn everybody_lets_go_of_a_revoked_peer_that_does_not() -> anyhow::Result<()> {
    let (mut cluster, _backends) = linked()?;
    let tested = (|| {
        let bad = id(&cluster, 2)?;
        // Forwards run both ways: one from it, and one to it that its client does not read.
        let mut stuck = Connection::open(cluster.peers[0].listen())?;
        stuck.send(&Request::get("s3.example", "/bytes/100000000").to_bytes())?;
        stuck.read_exact(100)?;
        let mut kept = Connection::open(cluster.peers[0].listen())?;
        ensure!(kept.ask(&Request::get("s2.example", "/"))?.status == 200);

        let bad_listens = cluster.peers[2].listen();
        let ends = freeze(&mut cluster, 2)?;
        let servers: Vec<_> = cluster.servers.iter().map(|server| server.listen()).collect();
        let sessions = ends.at(|local| servers.contains(&local));
        let links = ends.at(|local| !servers.contains(&local));
        ensure!(sessions.len() >= 3 && !links.is_empty(), "{ends:?}");
        let began = Instant::now();
        let revoked: Revoked =
            cluster.servers[1].cli(&["revoke", &bad, "--reason", "stolen", "--json"])?.json()?;
        ensure!(revoked.replicated && revoked.servers_told == 0, "{revoked:?}");
        closed("the sessions", &sessions, began)?;
        closed("the links", &links, began)?;
        // What ran with it has ended, and not as if it were whole.
        let mut rest = Vec::new();
        let ended = stuck.socket().read_to_end(&mut rest);
        ensure!(ended.is_err() || rest.len() < 100_000_000, "the answer looks whole");
        ensure!(kept.ask(&Request::get("s2.example", "/"))?.status == 200, "others feel it");
        let why = cluster.peers[0].cli(&["why", &bad])?.success()?;
        ensure!(why.contains("revoked"), "{why}");

        // It wakes and tries: nobody takes it, it is told, and it gives up with the word for operators.
        cluster.peers[2].process_mut()?.signal(Signal::Continue)?;
        let status = cluster.peers[2].process_mut()?.wait(PATIENCE)?;
        ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
        let log = cluster.peers[2].process_mut()?.log();
        ensure!(log.contains("key is revoked"), "{log}");
        cluster.peers[2].start()?;
        let status = cluster.peers[2].process_mut()?.wait(PATIENCE)?;
        ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
        ensure!(std::net::TcpStream::connect(bad_listens).is_err());
        for server in &cluster.servers {
            let listed: Revocations = server.cli(&["revocations", "--json"])?.json()?;
            let one = listed.revocations.first().context("none is listed")?;
            ensure!((one.number, &one.id, &*one.reason) == (1, &bad, "stolen"), "{one:?}");
        }
        Ok(())
    })();
    cluster.explain(tested)
}

/// The ends that are not held by this process, which has clients and backends.
fn of_nodes(ends: &OtherEnds) -> anyhow::Result<OtherEnds> {
    ends.without(std::process::id())
}

#[test]
fn without_a_quorum_the_emergency_form_throws_out_and_the_cluster_follows() -> anyhow::Result<()> {
    let (mut cluster, _backends) = linked()?;
    let tested = (|| {
        let bad = id(&cluster, 2)?;
        for server in [1, 2] {
            cluster.servers[server].process_mut()?.signal(Signal::Stop)?;
        }
        let ends = freeze(&mut cluster, 2)?;
        let here = cluster.servers[0].listen();
        let sessions = ends.at(|local| local == here);
        let servers: Vec<_> = cluster.servers.iter().map(|server| server.listen()).collect();
        let links = ends.at(|local| !servers.contains(&local));
        ensure!(!sessions.is_empty() && !links.is_empty(), "{ends:?}");
        let began = Instant::now();
        let revoked: Revoked = cluster.servers[0].cli(&["revoke", &bad, "--emergency", "--json"])?.json()?;
        ensure!(!revoked.replicated, "{revoked:?}");
        closed("the session", &sessions, began)?;
        closed("the links", &links, began)?;
        let listed: Revocations = cluster.servers[0].cli(&["revocations", "--json"])?.json()?;
        ensure!(listed.revocations.len() == 1 && listed.revocations[0].number == 0, "{listed:?}");
        // It is kept over a restart of the only Server that knows of it.
        let file = cluster.servers[0].data().join("emergency-revocations.json");
        ensure!(file.exists(), "{}", file.display());
        for server in [1, 2] {
            cluster.servers[server].process_mut()?.signal(Signal::Continue)?;
        }
        for server in 0..3 {
            wait_for("the revocation at every Server", PATIENCE, || {
                let listed: Revocations = cluster.servers[server].cli(&["revocations", "--json"])?.json()?;
                ensure!(listed.revocations.iter().any(|one| one.number == 1 && one.id == bad), "{listed:?}");
                Ok(())
            })?;
        }
        wait_for("the file to go", PATIENCE, || {
            ensure!(!file.exists());
            Ok(())
        })?;
        let others = ends.at(|local| servers.contains(&local));
        closed("the sessions at the others", &others, Instant::now())?;
        Ok(())
    })();
    cluster.explain(tested)
}

#[test]
fn who_was_away_refuses_the_revoked_one_once_it_is_back_and_remembers() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let tested = (|| {
        let backend = Backend::start("b")?;
        cluster.add_peer(&[("s1.example", backend.addr())])?;
        cluster.add_peer(&[])?;
        wait_for("the service", PATIENCE, || {
            ensure!(fetch(&cluster, 1, "s1.example")? == 200);
            Ok(())
        })?;
        let bad = id(&cluster, 1)?;
        // The owner is away while the other is thrown out, which is frozen and keeps its links.
        let links = freeze(&mut cluster, 1)?;
        let owner = cluster.peers[0].process_mut()?;
        owner.signal(Signal::Stop)?;
        cluster.servers[0].cli(&["revoke", &bad])?.success()?;
        std::thread::sleep(Duration::from_millis(500));
        let servers: Vec<_> = cluster.servers.iter().map(|server| server.listen()).collect();
        let links = links.at(|local| !servers.contains(&local));
        ensure!(links.open()? > 0, "the owner has not heard of it");
        let began = Instant::now();
        cluster.peers[0].process_mut()?.signal(Signal::Continue)?;
        closed("the links of who was away", &links, began)?;
        // Started anew, without any Server to tell it.
        cluster.peers[0].kill()?;
        for server in &mut cluster.servers {
            server.process_mut()?.signal(Signal::Stop)?;
        }
        cluster.peers[0].start()?;
        let kept = cluster.peers[0].data().join("revoked.json");
        let kept = std::fs::read_to_string(&kept).with_context(|| format!("reading {}", kept.display()))?;
        ensure!(kept.contains(&bad), "{kept}");
        wait_for("it to say so", PATIENCE, || {
            let why = cluster.peers[0].cli(&["why", &bad])?.success()?;
            ensure!(why.contains("revoked"), "{why}");
            Ok(())
        })
    })();
    cluster.explain(tested)
}

#[test]
fn a_leaked_token_is_revoked_and_so_is_who_came_with_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let tested = (|| {
        let token = cluster.servers[0].token("peer", 5, "1h")?;
        let introducer = cluster.servers[0].listen();
        let intruder = cluster.new_peer()?;
        intruder.introduce(&[introducer], &token);
        intruder.start()?;
        intruder.wait_working(1, PATIENCE)?;
        let bad = intruder.status()?.id;
        let tokens: serde_json::Value = cluster.servers[0].cli(&["token", "list", "--json"])?.json()?;
        let used = tokens["tokens"].as_array().context("no tokens")?;
        let used = used.iter().find(|token| token["used_by"].as_array().is_some_and(|by| !by.is_empty()));
        let token_id = used.and_then(|token| token["token_id"].as_str()).context("none was used")?.to_owned();
        cluster.servers[0].cli(&["token", "revoke", &token_id])?.success()?;
        // Who came with it stays until it is thrown out itself, and does not come back with it.
        ensure!(cluster.peers[0].status()?.state == "working");
        cluster.servers[0].cli(&["revoke", &bad])?.success()?;
        let status = cluster.peers[0].process_mut()?.wait(PATIENCE)?;
        ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
        let again = cluster.new_peer()?;
        again.introduce(&[introducer], &token);
        again.start()?;
        let status = again.process_mut()?.wait(PATIENCE)?;
        ensure!(!status.success(), "the token opens something: {status}");
        Ok(())
    })();
    cluster.explain(tested)
}

/// The Master is the one that was stolen: it is thrown out, the others elect, write, and take it out of table C.
#[test]
fn a_revoked_master_stops_and_the_others_go_on_without_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let tested = (|| {
        let bad = cluster.master()?;
        let other = (bad + 1) % 3;
        let name = cluster.servers[bad].name().to_owned();
        let began = Instant::now();
        let revoked: Revoked = cluster.servers[other].cli(&["revoke", &name, "--json"])?.json()?;
        ensure!(revoked.replicated, "{revoked:?}");
        let status = cluster.servers[bad].process_mut()?.wait(PATIENCE)?;
        ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
        let took = began.elapsed();
        ensure!(took < CLOSED_WITHIN, "it stopped after {took:?}");
        wait_for("another Master", PATIENCE, || {
            let master = cluster.servers[other].master()?;
            ensure!(master.name != name && !master.provisional, "{master:?}");
            Ok(())
        })?;
        cluster.servers[other].token("peer", 1, "1h")?;
        // It does not come back, whatever its data directory holds.
        cluster.servers[bad].start(Start::Again)?;
        let status = cluster.servers[bad].process_mut()?.wait(PATIENCE)?;
        ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
        cluster.servers[other].cli(&["remove", &name])?.success()?;
        let members = cluster.servers[other].members()?;
        ensure!(members.members.iter().all(|member| member.name != name), "{members:?}");
        Ok(())
    })();
    cluster.explain(tested)
}
