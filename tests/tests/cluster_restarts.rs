//! Processes that are killed, stopped and frozen at any moment, and come back by themselves.

use std::process::Command;
use std::time::{Duration, Instant};

use p2p_tests::backend::Backend;
use p2p_tests::cluster::{Cluster, Output, PATIENCE, Signal, Start, UNAVAILABLE, binaries, run, wait_for};
use p2p_tests::http;

const SERVICE: &str = "web.example";

/// A stop in order takes less.
const STOP_WITHIN: Duration = Duration::from_secs(5);

fn fetch(cluster: &Cluster, peer: usize) -> anyhow::Result<()> {
    let answer = http::get(cluster.peers[peer].listen(), SERVICE, "/")?;
    anyhow::ensure!(answer.status == 200, "{}: {}", answer.status, answer.text().trim());
    Ok(())
}

/// A Peer with the service and one without.
fn add_peers(cluster: &mut Cluster, backend: &Backend) -> anyhow::Result<()> {
    cluster.add_peer(&[(SERVICE, backend.addr())])?;
    cluster.add_peer(&[])?;
    wait_for("the page", PATIENCE, || fetch(cluster, 1))
}

#[test]
fn all_servers_killed_at_once() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        add_peers(&mut cluster, &backend)?;
        let before = cluster.servers[0].members()?;
        let tokens = |cluster: &Cluster, server: usize| -> anyhow::Result<serde_json::Value> {
            cluster.servers[server].cli(&["token", "list", "--json"])?.json()
        };
        // Acknowledged right before: nothing has had time to reach a disk by chance.
        let unused = cluster.servers[2].token("peer", 1, "1h")?;
        let listed = tokens(&cluster, 0)?;
        for server in &mut cluster.servers {
            server.kill()?;
        }
        // What runs, runs on.
        fetch(&cluster, 1)?;
        for server in &mut cluster.servers {
            server.start(Start::Again)?;
        }
        cluster.wait_agreed(PATIENCE)?;
        for server in 0..3 {
            let after = cluster.servers[server].members()?;
            assert_eq!(after.version, before.version);
            let names = |members: &[p2p_tests::cluster::report::Member]| -> Vec<_> {
                members.iter().map(|member| (member.id.clone(), member.name.clone())).collect()
            };
            assert_eq!(names(&after.members), names(&before.members));
            assert_eq!(tokens(&cluster, server)?, listed);
        }
        for peer in &mut cluster.peers {
            peer.wait_working(3, PATIENCE)?;
        }
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        let introducer = cluster.servers[1].listen();
        let late = cluster.new_peer()?;
        late.introduce(&[introducer], &unused);
        late.start()?;
        late.wait_working(3, PATIENCE)?;
        wait_for("the page", PATIENCE, || fetch(&cluster, 2))
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn who_lags_behind_calls_nobody_unknown() {
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        cluster.servers[2].kill()?;
        let token = cluster.servers[0].token("reader", 1, "1h")?;
        cluster.servers[0].kill()?;
        cluster.servers[1].kill()?;
        // Alone, it cannot know of the token, nor that there is none.
        cluster.servers[2].start(Start::Again)?;
        let (address, ca) =
            (cluster.servers[2].listen().to_string(), cluster.servers[2].data().join("ca.pem"));
        let ask = |verb: &str| -> anyhow::Result<Output> {
            let mut command = Command::new(&binaries()?.server);
            command.args([verb, "--server", &address, "--token", &token, "--ca"]).arg(&ca);
            run(command, PATIENCE)
        };
        for _ in 0..3 {
            let answer = ask("status")?;
            assert_eq!(answer.status.code(), Some(UNAVAILABLE), "{}", answer.stderr);
        }
        cluster.servers[0].start(Start::Again)?;
        // From the first answer on: it is no answer that the token is unknown.
        wait_for("the token known", PATIENCE, || {
            let answer = ask("status")?;
            assert!(
                answer.status.success() || answer.status.code() == Some(UNAVAILABLE),
                "{}",
                answer.stderr
            );
            answer.success().map(|_| ())
        })
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn a_server_killed_while_it_joins() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let introducer = cluster.servers[0].listen();
        for joiner in 1..=2 {
            // One use is enough, however often it starts.
            let start = Start::Join { introducer, token: cluster.token("server", 1)? };
            cluster.new_server()?;
            for lived_ms in [10, 40, 80, 120, 160, 220, 300, 400] {
                cluster.servers[joiner].start(start.clone())?;
                std::thread::sleep(Duration::from_millis(lived_ms));
                let process = cluster.servers[joiner].process_mut()?;
                anyhow::ensure!(process.exited()?.is_none(), "it gave up after {lived_ms} ms");
                process.kill()?;
            }
            cluster.servers[joiner].start(start)?;
            cluster.wait_agreed(PATIENCE)?;
        }
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn stops_in_order() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        add_peers(&mut cluster, &backend)?;
        let master = cluster.master()?;
        let follower = (master + 1) % 3;
        for server in [follower, master] {
            let asked = Instant::now();
            let status = cluster.servers[server].process_mut()?.terminate(STOP_WITHIN)?;
            anyhow::ensure!(status.success(), "{status} after {:?}", asked.elapsed());
            cluster.servers[server].start(Start::Again)?;
            cluster.wait_agreed(PATIENCE)?;
        }
        for peer in &mut cluster.peers {
            peer.wait_working(3, PATIENCE)?;
            let status = peer.process_mut()?.terminate(STOP_WITHIN)?;
            anyhow::ensure!(status.success(), "{} ended with {status}", peer.name());
        }
        // A Peer that says good-bye is gone at once, not after 30 s.
        wait_for("no Peers", Duration::from_secs(10), || {
            let peers = cluster.servers[0].peers()?.peers;
            anyhow::ensure!(peers.is_empty(), "{} are listed", peers.len());
            Ok(())
        })?;
        for peer in &mut cluster.peers {
            peer.start()?;
            peer.wait_working(3, PATIENCE)?;
        }
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn a_frozen_peer_goes_and_comes_back() {
    let backend = Backend::start("b1").unwrap();
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        add_peers(&mut cluster, &backend)?;
        let listed = |cluster: &Cluster| anyhow::Ok(cluster.servers[0].peers()?.peers.len());
        // Shortly: whoever asks meanwhile waits, and nobody is declared dead.
        cluster.peers[0].process_mut()?.signal(Signal::Stop)?;
        std::thread::sleep(Duration::from_secs(2));
        cluster.peers[0].process_mut()?.signal(Signal::Continue)?;
        wait_for("the page", Duration::from_secs(10), || fetch(&cluster, 1))?;
        assert_eq!(listed(&cluster)?, 2);

        // For long: 30 s of silence mean offline, and requests are answered all the same.
        cluster.peers[0].process_mut()?.signal(Signal::Stop)?;
        let frozen = Instant::now();
        let answer = http::get(cluster.peers[1].listen(), SERVICE, "/")?;
        assert!(matches!(answer.status, 502..=504), "{}: {}", answer.status, answer.text());
        wait_for("the frozen Peer offline", PATIENCE, || {
            let count = listed(&cluster)?;
            anyhow::ensure!(count == 1, "{count} are listed");
            Ok(())
        })?;
        let offline = frozen.elapsed();
        assert!(offline > Duration::from_secs(20), "offline after {offline:?}");
        wait_for("the service gone", PATIENCE, || {
            let answer = http::get(cluster.peers[1].listen(), SERVICE, "/")?;
            anyhow::ensure!(matches!(answer.status, 404 | 503), "{}: {}", answer.status, answer.text());
            Ok(())
        })?;
        cluster.peers[0].process_mut()?.signal(Signal::Continue)?;
        wait_for("the page", PATIENCE, || fetch(&cluster, 1))?;
        cluster.peers[0].wait_working(1, PATIENCE)
    })();
    cluster.explain(tried).unwrap();
}
