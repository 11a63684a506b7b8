//! What a token and its identity let a Peer do, on real processes: offers, forwards, addresses, Ids and keys.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use p2p_tests::backend::Backend;
use p2p_tests::cluster::{
    Cluster, FAILED, NEEDS_OPERATOR, PATIENCE, PeerProcess, ServerProcess, expect_refusal, wait_for,
};
use p2p_tests::http;
use serde_json::Value;

/// Adds a Peer with a token of these options, without waiting until it works.
fn add<'a>(
    cluster: &'a mut Cluster,
    options: &[&str],
    prepare: impl FnOnce(&mut PeerProcess),
) -> anyhow::Result<&'a mut PeerProcess> {
    let token = token(&cluster.servers[0], options)?;
    let introducer = cluster.servers[0].listen();
    let peer = cluster.new_peer()?;
    peer.introduce(&[introducer], &token);
    prepare(peer);
    Ok(peer)
}

fn token(server: &ServerProcess, options: &[&str]) -> anyhow::Result<String> {
    let args = [&["token", "create", "--role", "peer"], options].concat();
    Ok(server.cli(&args)?.success()?.trim_end().to_owned())
}

fn status(peer: &PeerProcess) -> anyhow::Result<Value> {
    peer.cli(&["status", "--json"])?.json()
}

fn id(peer: &PeerProcess) -> anyhow::Result<String> {
    Ok(status(peer)?["id"].as_str().context("its id")?.to_owned())
}

/// The names of the services that `server` lists.
fn services(server: &ServerProcess) -> anyhow::Result<Vec<String>> {
    let listed: Value = server.cli(&["services", "--json"])?.json()?;
    let rows = listed["services"].as_array().context("a list")?;
    let mut names: Vec<String> =
        rows.iter().filter_map(|row| Some(row["name"].as_str()?.to_owned())).collect();
    names.sort_unstable();
    Ok(names)
}

/// The sum over all lines of a metric that have `label`.
fn metric(at: SocketAddr, name: &str, label: &str) -> anyhow::Result<u64> {
    let text = http::get(at, "ops", "/metrics")?.text();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().context("a value")?.parse::<u64>().context("a count")).sum()
}

fn answers(at: SocketAddr, service: &str) -> anyhow::Result<(u16, String)> {
    let answer = http::get(at, service, "/")?;
    Ok((answer.status, answer.text()))
}

fn expect_status(at: SocketAddr, service: &str, expected: u16) -> anyhow::Result<String> {
    wait_for(&format!("{expected} for {service}"), PATIENCE, || {
        let (status, text) = answers(at, service)?;
        ensure!(status == expected, "{status}: {text}");
        Ok(text)
    })
}

/// Logs are written a moment after what they tell of.
fn has_line(mut log: impl FnMut() -> anyhow::Result<String>, words: &[&str]) -> anyhow::Result<()> {
    wait_for("the record", PATIENCE, || {
        let log = log()?;
        ensure!(
            log.lines().any(|line| words.iter().all(|word| line.contains(word))),
            "no line has {words:?}"
        );
        Ok(())
    })
}

fn log_has(peer: &mut PeerProcess, words: &[&str]) -> anyhow::Result<()> {
    has_line(|| Ok(peer.process_mut()?.log()), words)
}

fn server_log_has(server: &mut ServerProcess, words: &[&str]) -> anyhow::Result<()> {
    has_line(|| Ok(server.process_mut()?.log()), words)
}

#[test]
fn a_peer_offers_what_it_may_and_feels_a_change_without_reconnecting() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let backend = Backend::start("b")?;
    let tried = offers(&mut cluster, &backend);
    cluster.explain(tried)
}

fn offers(cluster: &mut Cluster, backend: &Backend) -> anyhow::Result<()> {
    let peer = add(cluster, &["--may-offer", "team-a.*"], |peer| {
        peer.offer("team-a.web", backend.addr());
        peer.offer("team-b.web", backend.addr());
    })?;
    peer.start()?;
    peer.wait_working(3, PATIENCE)?;
    cluster.add_peer(&[])?;
    let (owner, reader) = (&cluster.peers[0], cluster.peers[1].listen());
    let owner_id = id(owner)?;
    expect_status(reader, "team-a.web", 200)?;
    ensure!(answers(reader, "team-b.web")?.0 == 404, "what it may not offer is known");
    for server in &cluster.servers {
        ensure!(services(server)? == ["team-a.web"], "{:?}", services(server)?);
        ensure!(metric(server.ops(), "p2p_server_offers_refused_total", "")? == 1, "it is not counted");
    }
    wait_for("the Peer to be told", PATIENCE, || {
        let withheld = status(owner)?["withheld"].to_string();
        ensure!(withheld.contains("team-b.web") && withheld.contains("identity set"), "{withheld}");
        Ok(())
    })?;
    log_has(&mut cluster.peers[0], &["not passed on by servers", "team-b.web", "identity set"])?;
    server_log_has(&mut cluster.servers[0], &["services withheld", &owner_id, "team-b.web"])?;

    // Another Server than the first; no session is opened anew.
    let sessions_before = cluster.peers[0].process_mut()?.log().matches("session ended").count();
    let set = ["identity", "set", &owner_id, "--may-offer", "team-b.*"];
    cluster.servers[2].cli(&set)?.success()?;
    expect_status(reader, "team-b.web", 200)?;
    expect_status(reader, "team-a.web", 404)?;
    let sessions = cluster.peers[0].process_mut()?.log().matches("session ended").count();
    ensure!(sessions == sessions_before, "it reconnected");
    let shown: Value = cluster.servers[1].cli(&["identity", "show", &owner_id, "--json"])?.json()?;
    ensure!(shown["may_offer"][0] == "team-b.*", "{shown}");
    Ok(())
}

#[test]
fn a_peer_reaches_what_it_may_also_over_a_tunnel_that_is_open() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let backend = Backend::start("b")?;
    let tried = reaches(&mut cluster, &backend);
    cluster.explain(tried)
}

fn reaches(cluster: &mut Cluster, backend: &Backend) -> anyhow::Result<()> {
    cluster.add_peer(&[("web", backend.addr()), ("db", backend.addr())])?;
    let caller = add(cluster, &["--may-reach", "web"], |_| {})?;
    let bound = caller.bind("db")?;
    caller.start()?;
    caller.wait_working(1, PATIENCE)?;
    let (owner, caller) = (&cluster.peers[0], &cluster.peers[1]);
    let (caller_id, at) = (id(caller)?, caller.listen());
    expect_status(at, "web", 200)?;
    let before = backend.requests();
    let text = expect_status(at, "db", 403)?;
    ensure!(text.contains("may not reach") && text.contains("identity set"), "{text}");
    ensure!(metric(owner.metrics(), "p2p_peer_forwards_refused_total", "not_granted")? >= 1, "not counted");
    // Who speaks no HTTP sees an orderly end, and nothing reaches the backend.
    let raw = http::get(bound, "db", "/");
    ensure!(raw.is_err(), "a bound port answered: {raw:?}");
    ensure!(backend.requests() == before, "the backend was asked");
    log_has(&mut cluster.peers[0], &["may not reach the service", &caller_id, "db"])?;

    cluster.servers[0].cli(&["identity", "set", &caller_id, "--may-reach", "db"])?.success()?;
    expect_status(at, "db", 200)?;
    expect_status(at, "web", 403)?;
    Ok(())
}

#[test]
fn a_victims_address_is_passed_on_to_nobody() -> anyhow::Result<()> {
    const VICTIMS: [&str; 2] = ["198.51.100.77:443", "victim.example:443"];
    let mut cluster = Cluster::start(1)?;
    let tried = (|| {
        for victim in VICTIMS {
            let peer = add(&mut cluster, &[], |peer| peer.set("--advertise", victim))?;
            peer.start()?;
            peer.wait_working(1, PATIENCE)?;
        }
        let server = &cluster.servers[0];
        let listed = server.cli(&["peers", "--json"])?.success()?;
        ensure!(VICTIMS.iter().all(|victim| !listed.contains(victim)), "{listed}");
        ensure!(
            metric(server.ops(), "p2p_server_candidates_refused_total", "advertised")? == 2,
            "not counted"
        );
        let first = id(&cluster.peers[0])?;
        wait_for("the Peer to be told", PATIENCE, || {
            let withheld = status(&cluster.peers[0])?["withheld"].to_string();
            ensure!(withheld.contains(VICTIMS[0]) && withheld.contains("--may-advertise"), "{withheld}");
            Ok(())
        })?;
        server_log_has(&mut cluster.servers[0], &["address withheld", VICTIMS[1], "--may-advertise"])?;
        // An operator who knows that it is its own lets it pass.
        let server = &cluster.servers[0];
        server.cli(&["identity", "set", &first, "--may-advertise", "198.51.100.77:*"])?.success()?;
        wait_for("the address to pass", PATIENCE, || {
            let listed = server.cli(&["peers", "--json"])?.success()?;
            ensure!(listed.contains(VICTIMS[0]) && !listed.contains(VICTIMS[1]), "{listed}");
            Ok(())
        })
    })();
    cluster.explain(tried)
}

#[test]
fn an_id_is_enrolled_once_and_freed_by_a_reset() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let tried = resets(&mut cluster);
    cluster.explain(tried)
}

fn resets(cluster: &mut Cluster) -> anyhow::Result<()> {
    const ID: &str = "C00000000-0000-4000-8000-0000000000aa";
    let token = token(&cluster.servers[0], &["--id", ID, "--uses", "2"])?;
    let introducer = cluster.servers[0].listen();
    for _ in 0..2 {
        let peer = cluster.new_peer()?;
        peer.introduce(&[introducer], &token);
        peer.set("--id", ID);
    }
    cluster.peers[0].start()?;
    cluster.peers[0].wait_working(1, PATIENCE)?;
    let uses = |cluster: &Cluster| -> anyhow::Result<u64> {
        let tokens: Value = cluster.servers[0].cli(&["token", "list", "--json"])?.json()?;
        let rows = tokens["tokens"].as_array().context("tokens")?;
        let row = rows.iter().find(|row| row["bound_id"] == ID).context("the token")?;
        row["uses_left"].as_u64().context("its uses")
    };
    ensure!(uses(cluster)? == 1, "{}", uses(cluster)?);
    // The reply was lost: it has its key, and no certificate. It enrols again for nothing.
    cluster.peers[0].kill()?;
    let data = cluster.peers[0].data().to_owned();
    let node: Value = serde_json::from_slice(&std::fs::read(data.join("node.json"))?)?;
    let mut node = node.as_object().context("an object")?.clone();
    node.remove("cluster_id");
    std::fs::write(data.join("node.json"), serde_json::to_vec(&node)?)?;
    std::fs::remove_file(data.join("cert.pem"))?;
    cluster.peers[0].start()?;
    cluster.peers[0].wait_working(1, PATIENCE)?;
    ensure!(uses(cluster)? == 1, "the repeat cost a use");

    // Another key under the same Id is refused with the Id and what to do, until it is freed.
    let refused = cluster.peers[1].run_command()?;
    expect_refusal(refused, NEEDS_OPERATOR, &[ID, "bound to another key"])?;
    cluster.servers[0].cli(&["identity", "reset", ID])?.success()?;
    cluster.peers[1].start()?;
    cluster.peers[1].wait_working(1, PATIENCE)?;
    // The old key opens nothing any more, and its Peer says so and ends.
    let status = cluster.peers[0].process_mut()?.wait(PATIENCE)?;
    ensure!(status.code() == Some(NEEDS_OPERATOR), "{status}");
    log_has(&mut cluster.peers[0], &["revoked", "empty data directory"])?;
    let listed: Value = cluster.servers[0].cli(&["peers", "--json"])?.json()?;
    ensure!(listed["peers"].as_array().map(Vec::len) == Some(1), "{listed}");
    Ok(())
}

#[test]
fn a_peer_started_from_an_issued_directory_needs_no_token() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1)?;
    let tried = issued(&mut cluster);
    cluster.explain(tried)
}

fn issued(cluster: &mut Cluster) -> anyhow::Result<()> {
    let introducer = cluster.servers[0].listen();
    let peer = cluster.new_peer()?;
    let data = peer.data().to_owned();
    let out = data.to_str().context("a path")?.to_owned();
    let issue = ["identity", "issue", "--out", &out, "--name", "filed", "--may-offer", "web", "--json"];
    let issued: Value = cluster.servers[0].cli(&issue)?.json()?;
    let again = cluster.servers[0].command(&["identity", "issue", "--out", &out, "--name", "filed"])?;
    expect_refusal(again, FAILED, &["already"])?;
    cluster.peers[0].set("--servers", &introducer.to_string());
    cluster.peers[0].start()?;
    cluster.peers[0].wait_working(1, PATIENCE)?;
    ensure!(issued["id"] == id(&cluster.peers[0])?, "{issued}");
    let shown: Value =
        cluster.servers[0].cli(&["identity", "show", &id(&cluster.peers[0])?, "--json"])?.json()?;
    ensure!(shown["may_offer"][0] == "web" && shown["name"] == "filed", "{shown}");
    Ok(())
}
