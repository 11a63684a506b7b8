//! What was lost comes back by the commands the errors name, and nothing else is lost on the way: a store, a voter
//! for good, a whole cluster.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::cluster::{
    Cluster, FAILED, Lifetime, NEEDS_OPERATOR, PATIENCE, Process, Seat, ServerProcess, Start, USAGE,
    binaries, expect_refusal, run, wait_for,
};
use p2p_tests::http;
use p2p_tests::power_loss::isolate_mounts;
use serde_json::Value;

/// A stop in order takes less.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Everything replicated that can be asked for, as this Server has it.
fn contents(server: &ServerProcess) -> anyhow::Result<[Value; 2]> {
    let ask = |args: &[&str]| server.cli(args)?.json::<Value>();
    Ok([ask(&["settings", "list", "--json"])?, ask(&["token", "list", "--json"])?])
}

fn describe(server: &ServerProcess, text: &str) -> anyhow::Result<()> {
    server.cli(&["settings", "set", "description", text])?.success().map(|_| ())
}

fn description(server: &ServerProcess) -> anyhow::Result<String> {
    let settings = server.cli(&["settings", "list", "--json"])?.json::<Value>()?;
    let rows = settings["settings"].as_array().context("no settings")?;
    let row = rows.iter().find(|row| row["name"] == "description").context("no description")?;
    Ok(row["value"].as_str().unwrap_or_default().to_owned())
}

fn raft_id(cluster: &Cluster, server: usize) -> anyhow::Result<u64> {
    let name = cluster.servers[server].name();
    let members = cluster.servers[0].members()?.members;
    Ok(members.iter().find(|member| member.name == name).context("not a member")?.raft_id)
}

/// `p2p-server VERB ARGS`, with nothing added.
fn offline(args: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(&binaries()?.server);
    command.args(args);
    Ok(command)
}

/// Every file below `dir` with its bytes, but the lock, whose content names the last process.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.file_name().is_some_and(|name| name != "lock") {
            found.push((path.clone(), fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

/// Flips bytes all over sled's log.
fn damage(server: &ServerProcess) -> anyhow::Result<()> {
    let path = server.data().join("store/db");
    let mut bytes = fs::read(&path)?;
    let written = bytes.iter().rposition(|byte| *byte != 0).context("an empty store")?;
    for at in (0..written).step_by(97) {
        bytes[at] ^= 0x55;
    }
    Ok(fs::write(&path, bytes)?)
}

#[test]
fn a_lost_and_a_damaged_store_come_back_under_new_raft_ids() {
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        describe(&cluster.servers[0], "before")?;
        let other = cluster.servers[0].listen().to_string();
        for (server, lost) in [(2, true), (1, false)] {
            let old_raft_id = raft_id(&cluster, server)?;
            cluster.servers[server].kill()?;
            if lost {
                fs::remove_dir_all(cluster.servers[server].data().join("store"))?;
            } else {
                damage(&cluster.servers[server])?;
            }
            // The rest goes on.
            wait_for("a write", PATIENCE, || describe(&cluster.servers[0], &format!("without {server}")))?;
            let token = cluster.servers[0].token("peer", 1, "1h")?;
            ensure!(!token.is_empty(), "no token");

            let gone = &cluster.servers[server];
            let before = files(gone.data())?;
            let words = [
                "neither votes nor writes until you act",
                "p2p-server rejoin --discard-state --data",
                gone.data().to_str().context("a path that is text")?,
            ];
            for _ in 0..2 {
                expect_refusal(gone.run_command(&Start::Again)?, NEEDS_OPERATOR, &words)?;
                expect_refusal(gone.run_command(&Start::Bootstrap)?, NEEDS_OPERATOR, &words)?;
            }
            if lost {
                ensure!(files(gone.data())? == before, "the refused starts changed its files");
            }

            expect_refusal(gone.command(&["rejoin"])?, USAGE, &["--discard-state", "nothing is deleted"])?;
            let said = gone.cli(&["rejoin", "--discard-state", "--join", &other])?.success()?;
            ensure!(said.contains(&format!("p2p-server run --data {}", gone.data().display())), "{said}");
            // Neither a token nor whom to join: it has its identity, and was told.
            cluster.servers[server].start(Start::Again)?;
            cluster.wait_agreed(PATIENCE)?;
            let new_raft_id = raft_id(&cluster, server)?;
            ensure!(new_raft_id > 3 && new_raft_id > old_raft_id, "raft id {old_raft_id} to {new_raft_id}");
            let all = cluster.servers[0].members()?.members;
            ensure!(all.iter().all(|member| member.role == "voter"), "{all:?}");
            for server in &cluster.servers {
                assert_eq!(contents(server)?, contents(&cluster.servers[0])?, "{}", server.name());
            }
            // And it stays, as any other.
            cluster.servers[server].process_mut()?.terminate(STOP_WITHIN)?;
            cluster.servers[server].start(Start::Again)?;
            cluster.wait_agreed(PATIENCE)?;
        }
        // While it runs nothing is discarded.
        expect_refusal(cluster.servers[1].command(&["rejoin", "--discard-state"])?, FAILED, &["in use"])?;
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn the_learner_goes_on_after_the_voter_is_lost_for_good() {
    let mut cluster = Cluster::start(2).unwrap();
    let tried = (|| {
        describe(&cluster.servers[0], "of two")?;
        cluster.add_peer(&[])?;
        let before = contents(&cluster.servers[0])?;
        cluster.servers[0].kill()?;
        let force = ["force-new-cluster", "--yes"];
        expect_refusal(cluster.servers[1].command(&force)?, FAILED, &["in use"])?;
        let status = cluster.servers[1].process_mut()?.terminate(STOP_WITHIN)?;
        ensure!(status.success(), "a learner stops in order: {status}");

        let words = ["go on alone", "give up s1", "epoch 2", "two clusters", "--yes"];
        expect_refusal(cluster.servers[1].command(&force[..1])?, USAGE, &words)?;
        let said = cluster.servers[1].cli(&force)?.success()?;
        ensure!(said.contains("p2p-server run --data") && said.contains("rejoin --discard-state"), "{said}");
        let again = cluster.servers[1].cli(&force)?.success()?;
        ensure!(again.contains("nothing to force"), "{again}");

        cluster.servers[1].start(Start::Again)?;
        cluster.servers[1].wait_ready(PATIENCE)?;
        let master = cluster.servers[1].master()?;
        assert_eq!((master.name.as_str(), master.epoch, master.provisional), ("s2", 2, false));
        assert_eq!(contents(&cluster.servers[1])?, before);
        describe(&cluster.servers[1], "of one")?;
        // Peers follow.
        cluster.peers[0].wait_working(1, PATIENCE)?;

        // The lost one was not lost. It meets the other, who is in a higher epoch.
        let words = ["epoch 2", "p2p-server rejoin --discard-state --data"];
        expect_refusal(cluster.servers[0].run_command(&Start::Again)?, NEEDS_OPERATOR, &words)?;
        assert_eq!(description(&cluster.servers[1])?, "of one");
        cluster.servers[0].cli(&["rejoin", "--discard-state"])?.success()?;
        cluster.servers[0].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        cluster.peers[0].wait_working(2, PATIENCE)?;
        assert_eq!(cluster.servers[0].master()?.epoch, 2);
        assert_eq!(description(&cluster.servers[0])?, "of one");
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn two_recoveries_of_one_cluster_refuse_each_other_until_one_is_discarded() {
    let mut cluster = Cluster::start(2).unwrap();
    let tried = (|| {
        describe(&cluster.servers[0], "before")?;
        for server in &mut cluster.servers {
            server.kill()?;
        }
        for server in &cluster.servers {
            server.cli(&["force-new-cluster", "--yes"])?.success()?;
        }
        for server in &mut cluster.servers {
            server.start(Start::Again)?;
        }
        for server in &mut cluster.servers {
            let ops = server.ops();
            server.process_mut()?.wait_for("alarmed", PATIENCE, || {
                let answer = http::get(ops, "localhost", "/readyz")?;
                let said = answer.text().to_lowercase();
                ensure!(answer.status == 503 && said.contains("history"), "{}: {said}", answer.status);
                let metrics = http::get(ops, "localhost", "/metrics")?.text().to_string();
                let counted = metrics.lines().any(|line| line.contains("split") && line.ends_with(" 1"));
                ensure!(counted, "no metric counts it");
                Ok(())
            })?;
        }
        // Both go on, apart: which one is right is for people to say.
        for (server, name) in cluster.servers.iter().zip(["s1", "s2"]) {
            let master = server.master()?;
            assert_eq!((master.name.as_str(), master.epoch, master.provisional), (name, 2, false));
            describe(server, name)?;
        }
        cluster.servers[1].process_mut()?.terminate(STOP_WITHIN)?;
        cluster.servers[1].cli(&["rejoin", "--discard-state"])?.success()?;
        cluster.servers[1].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        for server in &mut cluster.servers {
            server.wait_ready(PATIENCE)?;
            assert_eq!(description(server)?, "s1");
        }
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

/// A backup of the cluster below its directory.
fn back_up(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let path = cluster.dir().join("cluster.backup");
    let told = cluster.servers[1].cli(&["backup", "--json", "--out", path.to_str().context("text")?])?;
    let told = told.json::<Value>()?;
    let found = fs::metadata(&path)?;
    assert_eq!(told["bytes"], found.len());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let key = fs::read_to_string(cluster.servers[0].data().join("ca-key.pem"))?;
    let line = key.lines().nth(1).context("a key has lines")?;
    let bytes = fs::read(&path)?;
    ensure!(!bytes.windows(line.len()).any(|window| window == line.as_bytes()), "the CA key is in it");
    Ok(path)
}

fn restore_args<'a>(server: &'a ServerProcess, file: &'a Path) -> anyhow::Result<Vec<&'a str>> {
    let data = server.data().to_str().context("text")?;
    Ok(vec!["restore", "--data", data, "--from", file.to_str().context("text")?])
}

#[test]
fn a_backup_of_three_is_restored_elsewhere() {
    let mut old = Cluster::start(3).unwrap();
    let mut new = Cluster::empty(Lifetime::Bound).unwrap();
    let tried = (|| {
        describe(&old.servers[0], "worth keeping")?;
        old.token("peer", 5)?;
        let reader = old.servers[0].token("reader", 1, "1h")?;
        let before = contents(&old.servers[0])?;
        let cluster_id = old.servers[0].master()?.cluster_id;
        let file = back_up(&old)?;
        // Cut off, and changed: nothing is restored from it.
        let bytes = fs::read(&file)?;
        let bad = old.dir().join("bad.backup");
        let spare = old.dir().join("spare");
        let spare = spare.to_str().context("text")?;
        let flipped: Vec<u8> = bytes.iter().enumerate().map(|(at, b)| b ^ u8::from(at == 300)).collect();
        for bytes in [&bytes[..bytes.len() - 1], &flipped] {
            fs::write(&bad, bytes)?;
            let args = ["restore", "--data", spare, "--from", bad.to_str().context("text")?];
            expect_refusal(offline(&args)?, FAILED, &["bad.backup", "damaged"])?;
        }
        for server in &mut old.servers {
            server.kill()?;
        }
        // Whoever dials them now is heard here.
        let listeners = old.servers.iter().map(|server| {
            let listener = TcpListener::bind(server.listen())?;
            listener.set_nonblocking(true).map(|()| listener)
        });
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;

        let founder = new.new_server()?;
        let said = run(offline(&restore_args(founder, &file)?)?, PATIENCE)?.success()?;
        ensure!(said.contains("p2p-server run --data") && said.contains("enrol again"), "{said}");
        founder.start(Start::Again)?;
        founder.wait_ready(PATIENCE)?;
        let master = founder.master()?;
        assert_ne!(master.cluster_id, cluster_id);
        assert_eq!(master.epoch, 2);
        assert_eq!(contents(founder)?, before);
        // It grows like any other.
        new.add_servers(1)?;

        // With the id and the key it is the cluster of before: its tokens open it.
        let mut kept = Cluster::empty(Lifetime::Bound)?;
        let founder = kept.new_server()?;
        let mut args = restore_args(founder, &file)?;
        args.push("--keep-cluster-id");
        expect_refusal(offline(&args)?, USAGE, &["--ca-key"])?;
        let key = old.servers[2].data().join("ca-key.pem");
        args.extend(["--ca-key", key.to_str().context("text")?]);
        run(offline(&args)?, PATIENCE)?.success()?;
        founder.start(Start::Again)?;
        founder.wait_ready(PATIENCE)?;
        assert_eq!(founder.master()?.cluster_id, cluster_id);
        assert_eq!(contents(founder)?, before);
        let (address, ca) = (founder.listen().to_string(), old.servers[1].data().join("ca.pem"));
        let mut asked = offline(&["status", "--json", "--server", &address, "--token", &reader, "--ca"])?;
        asked.arg(ca);
        assert_eq!(run(asked, PATIENCE)?.json::<Value>()?["epoch"], 2);
        expect_refusal(offline(&restore_args(founder, &file)?)?, FAILED, &["in use"])?;
        founder.process_mut()?.terminate(STOP_WITHIN)?;
        expect_refusal(offline(&restore_args(founder, &file)?)?, USAGE, &["not empty"])?;

        for (listener, server) in listeners.iter().zip(&old.servers) {
            let heard = listener.accept().map_err(|error| error.kind());
            ensure!(matches!(heard, Err(ErrorKind::WouldBlock)), "{} was dialled: {heard:?}", server.name());
        }
        anyhow::Ok(())
    })();
    let tried = old.explain(tried);
    new.explain(tried).unwrap();
}

/// Bootstrap with introducers to ask first.
fn start_with_both(cluster: &mut Cluster, introducer: &str, token: &str) -> anyhow::Result<Process> {
    let log = cluster.dir().join("both.log");
    let server = cluster.new_server()?;
    let mut command = server.run_command(&Start::Bootstrap)?;
    command.args(["--join", introducer, "--token", token]);
    Process::spawn("both", command, &log, Lifetime::Bound)
}

#[test]
fn who_may_do_both_joins_whoever_is_there_and_founds_else() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let introducer = cluster.servers[0].listen().to_string();
        let cluster_id = cluster.servers[0].master()?.cluster_id;
        let token = cluster.token("server", 2)?;
        let mut joined = start_with_both(&mut cluster, &introducer, &token)?;
        joined.wait_for("joined", PATIENCE, || {
            assert_eq!(cluster.servers[1].master()?.cluster_id, cluster_id);
            Ok(())
        })?;
        assert_eq!(cluster.servers[0].members()?.members.len(), 2);
        joined.kill()?;
        cluster.servers[0].kill()?;

        let asked = Instant::now();
        let mut founded = start_with_both(&mut cluster, &introducer, &token)?;
        founded.wait_for("founded", PATIENCE, || {
            assert_ne!(cluster.servers[2].master()?.cluster_id, cluster_id);
            Ok(())
        })?;
        let waited = asked.elapsed();
        ensure!(waited > Duration::from_secs(8), "it asked for {waited:?} only");
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}

/// A small file system in memory that this thread alone sees, and the processes of its seat; it goes with them.
fn small_disk(dir: &Path, size: &str) -> anyhow::Result<Option<Seat>> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 || isolate_mounts().is_err() {
        eprintln!("skipped: a small file system needs root and the right to mount");
        return Ok(None);
    }
    fs::create_dir_all(dir)?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir);
    let status = mount.status().context("starting mount")?;
    ensure!(status.success(), "mount: {status}");
    let mounts = fs::File::open("/proc/thread-self/ns/mnt")?;
    let enter = move || {
        // SAFETY: setns touches no memory of ours.
        match unsafe { libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one call of the system, which allocates nothing.
    Ok(Some(unsafe { Seat::loopback(dir)?.prepared(enter) }))
}

#[test]
fn a_full_disk_ends_the_process_and_costs_nothing_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let disk = home.path().join("disk");
    let Some(seat) = small_disk(&disk, "24m").unwrap() else { return };
    let mut cluster = Cluster::start_in(vec![seat]).unwrap();
    let tried = (|| {
        let server = &mut cluster.servers[0];
        let mut acknowledged = String::new();
        let mut write = |server: &ServerProcess, n: usize| {
            let text = format!("write {n}");
            let written = describe(server, &text);
            if written.is_ok() {
                acknowledged = text;
            }
            written
        };
        write(server, 0)?;
        // Someone else fills it to the last page.
        let filler = disk.join("filler");
        let mut bytes = fs::File::create(&filler)?;
        let mut page = 1 << 20;
        while page > 0 {
            if std::io::Write::write(&mut bytes, &vec![1; page]).is_err() {
                page /= 2;
            }
        }
        drop(bytes);
        let full = Instant::now();
        let mut n = 0;
        while server.process_mut()?.exited()?.is_none() {
            ensure!(full.elapsed() < PATIENCE, "{n} writes went to a full disk");
            n += 1;
            // Its outcome may be unknown: then the process ends.
            let _ = write(server, n);
        }
        let process = server.process_mut()?;
        assert_eq!(process.exited()?.and_then(|status| status.code()), Some(NEEDS_OPERATOR));
        let log = process.log();
        let said = log.lines().last().unwrap_or_default();
        ensure!(said.contains("writing to the store failed") && said.contains("disk"), "{said}");
        ensure!(!said.contains("discard-state"), "nothing needs to be given up: {said}");

        fs::remove_file(&filler)?;
        server.start(Start::Again)?;
        server.wait_ready(PATIENCE)?;
        let found = description(server)?;
        // The last one may have got through without an answer.
        let unknown = format!("write {n}");
        ensure!(found == acknowledged || found == unknown, "{found}, not {acknowledged}");
        anyhow::Ok(())
    })();
    cluster.explain(tried).unwrap();
}
