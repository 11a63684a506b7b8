//! What must be refused is: at once, with the documented exit code, and with words that say what to do.

use std::process::Command;
use std::time::Duration;

use p2p_tests::cluster::{
    Cluster, FAILED, Lifetime, NEEDS_OPERATOR, PATIENCE, PortLease, Start, UNAVAILABLE, USAGE, binaries,
    expect_refusal,
};

/// A Peer of its own directory that brings `token`, not started.
fn peer(cluster: &mut Cluster, token: &str, further: &[&str]) -> anyhow::Result<Command> {
    let server = cluster.servers[0].listen();
    let peer = cluster.new_peer()?;
    peer.introduce(&[server], token);
    let mut command = peer.run_command()?;
    command.args(further);
    Ok(command)
}

/// A Server of its own directory that brings `token`, not started. It is no part of what the cluster waits for.
fn server(cluster: &mut Cluster, token: &str, further: &[&str]) -> anyhow::Result<Command> {
    let introducer = cluster.servers[0].listen();
    let mut command = cluster.new_server()?.run_command(&Start::Join { introducer, token: token.into() })?;
    command.args(further);
    Ok(command)
}

#[test]
fn tokens_that_open_nothing() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let expired = ["peer", "server"].map(|role| cluster.servers[0].token(role, 1, "1s"));
        let listed = cluster.servers[0].cli(&["token", "list", "--json"])?.json::<serde_json::Value>()?;
        assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(2), "{listed}");
        std::thread::sleep(Duration::from_millis(1500));
        let [for_peer, for_server] = expired;
        let words = ["token", "expired", "p2p-server token create"];
        expect_refusal(peer(&mut cluster, &for_peer?, &[])?, NEEDS_OPERATOR, &words)?;
        expect_refusal(server(&mut cluster, &for_server?, &[])?, NEEDS_OPERATOR, &words)?;

        let (for_peer, for_server) = (cluster.token("peer", 1)?, cluster.token("server", 1)?);
        // The other way round. The token says so itself: nobody is asked.
        expect_refusal(peer(&mut cluster, &for_server, &[])?, USAGE, &["role server", "--role peer"])?;
        expect_refusal(server(&mut cluster, &for_peer, &[])?, USAGE, &["role peer", "--role server"])?;
        // Cut short, and no token at all.
        let short = &for_peer[..for_peer.len() - 3];
        expect_refusal(peer(&mut cluster, short, &[])?, USAGE, &["token", "copy it again"])?;
        expect_refusal(server(&mut cluster, "secret", &[])?, USAGE, &["not a token", "p2ps1."])?;

        let listed = cluster.servers[0].cli(&["token", "list", "--json"])?.json::<serde_json::Value>()?;
        for token in listed["tokens"].as_array().into_iter().flatten() {
            let id = token["token_id"].as_str().unwrap_or_default();
            cluster.servers[0].cli(&["token", "revoke", id])?.success()?;
        }
        let words = ["token", "p2p-server token create"];
        expect_refusal(peer(&mut cluster, &for_peer, &[])?, NEEDS_OPERATOR, &words)?;
        expect_refusal(server(&mut cluster, &for_server, &[])?, NEEDS_OPERATOR, &words)?;
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn tokens_that_are_used_up() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let (for_peer, for_server) = (cluster.token("peer", 1)?, cluster.token("server", 1)?);
        let introducer = cluster.servers[0].listen();
        let first = cluster.new_peer()?;
        first.introduce(&[introducer], &for_peer);
        first.start()?;
        first.wait_working(1, PATIENCE)?;
        cluster.new_server()?.start(Start::Join { introducer, token: for_server.clone() })?;
        cluster.wait_agreed(PATIENCE)?;
        let words = ["token", "no uses left", "p2p-server token create"];
        expect_refusal(peer(&mut cluster, &for_peer, &[])?, NEEDS_OPERATOR, &words)?;
        expect_refusal(server(&mut cluster, &for_server, &[])?, NEEDS_OPERATOR, &words)?;
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn tokens_of_another_cluster() {
    let mut cluster = Cluster::start(1).unwrap();
    let other = Cluster::start(1).unwrap();
    let tried = (|| {
        let (for_peer, for_server) = (other.token("peer", 1)?, other.token("server", 1)?);
        expect_refusal(peer(&mut cluster, &for_peer, &[])?, USAGE, &["cluster", "token"])?;
        expect_refusal(server(&mut cluster, &for_server, &[])?, USAGE, &["cluster", "token"])?;
        // Who belongs to a cluster already is not led into another.
        cluster.add_peer(&[])?;
        let mut member = cluster.peers.pop().expect("add_peer pushed it");
        member.kill()?;
        member.introduce(&[other.servers[0].listen()], &for_peer);
        let mut command = member.command(&["run"])?;
        command.args(["--servers", &other.servers[0].listen().to_string(), "--token", &for_peer]);
        command.args(["--listen", &member.listen().to_string(), "--metrics", &member.metrics().to_string()]);
        expect_refusal(command, USAGE, &["belongs to", "cluster", "--data"])?;
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn ids_of_somebody_else() {
    const PEER: &str = "C11111111-1111-4111-8111-111111111111";
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let token = cluster.token("peer", 2)?;
        let first = peer(&mut cluster, &token, &["--id", PEER])?;
        let log = cluster.dir().join("first.log");
        let mut first = p2p_tests::cluster::Process::spawn("first", first, &log, Lifetime::Bound)?;
        first.wait_for("seen", PATIENCE, || {
            let peers = cluster.servers[0].peers()?.peers;
            anyhow::ensure!(peers.iter().any(|peer| peer.id == PEER), "{} others", peers.len());
            Ok(())
        })?;
        let words = [PEER, "another key", "--id"];
        expect_refusal(peer(&mut cluster, &token, &["--id", PEER])?, NEEDS_OPERATOR, &words)?;
        // The first is not troubled, and the refusal cost no use.
        anyhow::ensure!(first.exited()?.is_none(), "the first has ended");
        let listed = cluster.servers[0].cli(&["token", "list", "--json"])?.json::<serde_json::Value>()?;
        assert_eq!(listed["tokens"][0]["uses_left"], 1, "{listed}");

        let taken = cluster.servers[0].members()?.members[0].id.clone();
        let token = cluster.token("server", 1)?;
        let command = server(&mut cluster, &token, &["--id", &taken])?;
        expect_refusal(command, NEEDS_OPERATOR, &[&taken, "another key"])?;
        // Forms that are no Id, or another role's.
        let fresh = cluster.token("peer", 1)?;
        expect_refusal(peer(&mut cluster, &fresh, &["--id", "10.0.0.1"])?, USAGE, &["id: ", "10.0.0.1"])?;
        let words = [&taken, "Id of a Server", "begins with C"];
        expect_refusal(peer(&mut cluster, &fresh, &["--id", &taken])?, USAGE, &words)?;
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn starts_that_lack_something() {
    let mut cluster = Cluster::empty(Lifetime::Bound).unwrap();
    let binaries = binaries().unwrap();
    let again = cluster.new_server().unwrap().run_command(&Start::Again).unwrap();
    expect_refusal(again, USAGE, &["--bootstrap", "--join", "token create"]).unwrap();
    let again = cluster.new_peer().unwrap().run_command().unwrap();
    expect_refusal(again, USAGE, &["--token", "token create"]).unwrap();
    let mut bare = Command::new(&binaries.server);
    bare.arg("run");
    expect_refusal(bare, USAGE, &["data", "--data"]).unwrap();
    // Nobody runs there.
    let asked = cluster.servers[0].command(&["members", "--timeout", "1s"]).unwrap();
    expect_refusal(asked, UNAVAILABLE, &["p2p-server run"]).unwrap();
    let asked = cluster.peers[0].command(&["tables"]).unwrap();
    expect_refusal(asked, UNAVAILABLE, &["p2p-peer run"]).unwrap();
}

#[test]
fn settings_that_do_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let binaries = binaries().unwrap();
    for (program, text, words) in [
        (&binaries.server, "bootstap = true\n", ["bootstap", "bootstrap"]),
        (&binaries.server, "lisen = \"127.0.0.1:1\"\n", ["lisen", "listen"]),
        (&binaries.peer, "servces = [\"a=b:1\"]\n", ["servces", "services"]),
        (&binaries.peer, "metric = \"127.0.0.1:1\"\n", ["metric", "metrics"]),
    ] {
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&file).arg("--data").arg(dir.path().join("data"));
        let said = expect_refusal(command, USAGE, &words).unwrap();
        // The file, so that one knows where to look; and the name twice: as it is and as it should be.
        assert!(said.contains("config.toml"), "{said}");
        assert!(
            said.contains(&format!("'{}'", words[1])) || said.contains(&format!("`{}`", words[1])),
            "{said}"
        );
    }
    let mut command = Command::new(&binaries.server);
    command.args(["run", "--bootstap"]);
    expect_refusal(command, USAGE, &["--bootstap", "--bootstrap"]).unwrap();
}

#[test]
fn ports_and_directories_in_use() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let token = cluster.token("peer", 1)?;
        cluster.add_peer(&[])?;
        let spare = PortLease::take()?;
        // The second process wants the very directory, on other ports.
        let mut second = cluster.servers[0].command(&["run", "--bootstrap"])?;
        for flag in ["--listen", "--ops", "--registry"] {
            second.args([flag, "127.0.0.1:0"]);
        }
        let data = cluster.servers[0].data().display().to_string();
        expect_refusal(second, FAILED, &[&data, "in use"])?;
        let mut second = cluster.peers[0].command(&["run", "--listen", &spare.addr().to_string()])?;
        second.args(["--metrics", "127.0.0.1:0"]);
        let data = cluster.peers[0].data().display().to_string();
        expect_refusal(second, FAILED, &[&data, "in use"])?;

        let (api, ops) = (cluster.servers[0].listen().to_string(), cluster.servers[0].ops().to_string());
        let dir = cluster.dir().join("other");
        for (flag, taken) in [("--listen", &api), ("--ops", &ops), ("--registry", &api)] {
            let mut command = Command::new(&binaries()?.server);
            command.args(["run", "--bootstrap", "--data"]).arg(&dir);
            for other in ["--listen", "--ops", "--registry"] {
                command.args([other, if other == flag { taken } else { "127.0.0.1:0" }]);
            }
            expect_refusal(command, FAILED, &[flag, taken, "in use"])?;
        }
        let taken = cluster.peers[0].listen().to_string();
        for flag in ["--listen", "--metrics"] {
            let mut command = Command::new(&binaries()?.peer);
            command.args(["run", "--servers", &api, "--token", &token, "--data"]).arg(&dir);
            for other in ["--listen", "--metrics"] {
                command.args([other, if other == flag { &taken } else { "127.0.0.1:0" }]);
            }
            expect_refusal(command, FAILED, &[flag, &taken, "in use"])?;
        }
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}
