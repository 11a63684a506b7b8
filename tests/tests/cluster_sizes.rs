//! Clusters of one to five Servers: they grow and shrink one by one under writes, stop in order, lose members for good.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use p2p_tests::cluster::{Access, Cluster, FAILED, NEEDS_OPERATOR, PATIENCE, Signal, Start, wait_for};
use p2p_tests::history::{Clients, Load, Reads};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Light: what counts is that something is always under way.
const LOAD: Load = Load {
    clients: 3,
    rest: Duration::from_millis(20),
    patience: Duration::from_secs(10),
    reads: Reads::Linearizable,
};

/// A stop in order takes less.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Readers and writers at the given Servers, from now on.
fn clients(cluster: &Cluster, servers: &[usize]) -> anyhow::Result<Clients> {
    let token = cluster.servers[0].token("operator", 1, "1h")?;
    let access: Result<Vec<_>, _> =
        servers.iter().map(|server| Access::of(&cluster.servers[*server], &token)).collect();
    Clients::start(&access?, LOAD, &mut StdRng::seed_from_u64(rand::random()))
}

/// All they were told is linearizable, so nothing acknowledged is lost; returns how much that was.
fn check(clients: &Clients) -> anyhow::Result<usize> {
    let _resting = clients.pause();
    let checked = clients.check()?;
    println!("{checked} operations are linearizable; not done: {:?}", clients.reasons());
    Ok(checked)
}

/// The names of the voters, as one Server lists them.
fn voters(cluster: &Cluster, at: usize) -> anyhow::Result<BTreeSet<String>> {
    let members = cluster.servers[at].members()?.members;
    Ok(members.into_iter().filter(|member| member.role == "voter").map(|member| member.name).collect())
}

fn place(cluster: &Cluster, name: &str) -> anyhow::Result<usize> {
    cluster
        .servers
        .iter()
        .position(|server| server.name() == name)
        .with_context(|| format!("there is no {name}"))
}

/// Takes a Server out through s1, or has it leave by itself, and waits until its process has ended and the others agree.
fn take_out(cluster: &mut Cluster, name: &str, by_itself: bool) -> anyhow::Result<()> {
    let place = place(cluster, name)?;
    if by_itself {
        cluster.servers[place].cli(&["leave"])?.success()?;
    } else {
        cluster.servers[0].cli(&["remove", name])?.success()?;
    }
    let mut gone = cluster.servers.remove(place);
    let status = gone.process_mut()?.wait(PATIENCE)?;
    let expected = if by_itself { 0 } else { NEEDS_OPERATOR };
    ensure!(
        status.code() == Some(expected),
        "{name} ended with {status}:\n{}",
        gone.process_mut()?.log_tail()
    );
    cluster.wait_agreed(PATIENCE)
}

#[test]
fn it_grows_and_shrinks_one_by_one() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let clients = clients(&cluster, &[0])?;
        // Right voters at each size: agreement counts them.
        for _ in 2..=5 {
            cluster.add_servers(1)?;
        }
        let leave = |cluster: &mut Cluster, name: &str| take_out(cluster, name, true);
        let remove = |cluster: &mut Cluster, name: &str| take_out(cluster, name, false);
        remove(&mut cluster, "s5")?;
        leave(&mut cluster, "s4")?;
        cluster.servers[0].cli(&["transfer", "--to", "s2"])?.success()?;
        ensure!(cluster.servers[cluster.master()?].name() == "s2", "s2 is not Master");
        // The leader itself.
        leave(&mut cluster, "s2")?;
        remove(&mut cluster, "s3")?;
        ensure!(voters(&cluster, 0)? == BTreeSet::from(["s1".to_owned()]));
        let checked = check(&clients)?;
        ensure!(checked > 100, "only {checked} operations");
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn either_of_two_stops_in_order() {
    let mut cluster = Cluster::start(2).unwrap();
    let tried = (|| {
        let clients = clients(&cluster, &[0, 1])?;
        // The voter, the other one, then the voter again.
        for (stopped, others) in [(0, 1), (0, 1), (1, 0)] {
            let process = cluster.servers[stopped].process_mut()?;
            let mut status = None;
            let outage = clients.outage(&[others], PATIENCE, || {
                status = Some(process.terminate(STOP_WITHIN)?);
                Ok(())
            })?;
            ensure!(status.is_some_and(|status| status.success()), "it ended with {status:?}");
            println!("s{} stopped; written elsewhere {outage:?} after the signal", stopped + 1);
            let master = cluster.servers[others].master()?;
            ensure!(master.name == cluster.servers[others].name() && !master.provisional, "{master:?}");
            cluster.servers[stopped].start(Start::Again)?;
            cluster.wait_agreed(PATIENCE)?;
            ensure!(voters(&cluster, others)? == BTreeSet::from([cluster.servers[others].name().to_owned()]));
        }
        // Both at once: nobody is left to take the vote, and nothing is left half done.
        for server in &mut cluster.servers {
            server.process_mut()?.signal(Signal::Terminate)?;
        }
        for server in &mut cluster.servers {
            let status = server.process_mut()?.wait(STOP_WITHIN)?;
            ensure!(status.success(), "{} ended with {status}", server.name());
        }
        for server in &mut cluster.servers {
            server.start(Start::Again)?;
        }
        cluster.wait_agreed(PATIENCE)?;
        check(&clients).map(|_| ())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn the_vote_of_two_goes_to_the_longer_running() {
    let mut cluster = Cluster::start(2).unwrap();
    let tried = (|| {
        let clients = clients(&cluster, &[1])?;
        ensure!(voters(&cluster, 0)? == BTreeSet::from(["s1".to_owned()]));
        cluster.servers[0].kill()?;
        // It never decides alone, but names somebody.
        wait_for("a provisional Master", PATIENCE, || {
            let master = cluster.servers[1].master()?;
            ensure!(master.provisional && master.name == "s2", "{master:?}");
            let me = cluster.servers[1].cli(&["members", "--stale", "--json"])?;
            let me: p2p_tests::cluster::report::Members = me.json()?;
            ensure!(me.members.iter().any(|member| member.name == "s2" && member.master == "provisional"));
            Ok(())
        })?;
        let returned = Instant::now();
        cluster.servers[0].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        ensure!(cluster.servers[1].master()?.name == "s1", "the voter leads again");
        wait_for("the vote on the longer-running", PATIENCE, || {
            let voters = voters(&cluster, 1)?;
            ensure!(voters == BTreeSet::from(["s2".to_owned()]), "{voters:?}");
            Ok(())
        })?;
        ensure!(returned.elapsed() > Duration::from_secs(29), "after {:?}", returned.elapsed());
        cluster.wait_agreed(PATIENCE)?;
        ensure!(cluster.servers[0].master()?.name == "s2");
        check(&clients).map(|_| ())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn dead_members_are_removed_where_a_quorum_lives() {
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        let clients = clients(&cluster, &[0])?;
        cluster.servers[0].cli(&["transfer", "--to", "s1"])?.success()?;
        cluster.servers[2].kill()?;
        cluster.servers[0].cli(&["remove", "s3"])?.success()?;
        cluster.servers.truncate(2);
        cluster.wait_agreed(PATIENCE)?;
        ensure!(voters(&cluster, 1)? == BTreeSet::from(["s1".to_owned()]));
        cluster.servers[1].kill()?;
        let refused = |args: &[&str], why: &str| {
            let answer = cluster.servers[0].cli(args)?;
            ensure!(answer.status.code() == Some(FAILED), "{args:?}: {}", answer.status);
            ensure!(answer.stderr.contains(why), "{args:?}: {}", answer.stderr);
            anyhow::Ok(())
        };
        wait_for("s2 gone", PATIENCE, || {
            let members = cluster.servers[0].members()?.members;
            ensure!(members.iter().any(|member| !member.connected), "{members:?}");
            Ok(())
        })?;
        refused(&["leave"], "the quorum would be lost")?;
        refused(&["remove", "s9"], "there is no server s9")?;
        refused(&["transfer", "--to", "s2"], "it has no vote")?;
        cluster.servers[0].cli(&["remove", "s2"])?.success()?;
        refused(&["leave"], "it is the last server of its cluster")?;
        cluster.servers.truncate(1);
        cluster.wait_agreed(PATIENCE)?;
        check(&clients).map(|_| ())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn a_voter_dead_for_long_is_replaced() {
    let mut cluster = Cluster::start(4).unwrap();
    let tried = (|| {
        cluster.servers[0].cli(&["settings", "set", "voter_replace_after", "5s"])?.success()?;
        let before = voters(&cluster, 0)?;
        let master = cluster.servers[0].master()?.name;
        let dies = before.iter().find(|name| **name != master).context("three vote")?.clone();
        let (dead, at) = (place(&cluster, &dies)?, place(&cluster, &master)?);
        cluster.servers[dead].kill()?;
        let killed = Instant::now();
        wait_for("another voter", PATIENCE, || {
            let now = voters(&cluster, at)?;
            ensure!(now.len() == 3 && !now.contains(&dies), "{now:?}");
            Ok(())
        })?;
        ensure!(killed.elapsed() > Duration::from_secs(5), "after {:?}", killed.elapsed());
        let token = cluster.servers[at].token("reader", 1, "1h")?;
        cluster.servers[dead].start(Start::Again)?;
        cluster.wait_agreed(PATIENCE)?;
        ensure!(!voters(&cluster, at)?.contains(&dies), "it came back as a learner");
        let listed: serde_json::Value = cluster.servers[dead].cli(&["token", "list", "--json"])?.json()?;
        let tokens = listed["tokens"].as_array().map_or(0, Vec::len);
        ensure!(tokens >= 2 && !token.is_empty(), "it lacks what was written meanwhile: {listed}");
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}

#[test]
fn the_master_is_who_an_operator_wants() {
    let mut cluster = Cluster::start(3).unwrap();
    let tried = (|| {
        let clients = clients(&cluster, &[0, 1, 2])?;
        for asked in 0..3 {
            cluster.wait_agreed(PATIENCE)?;
            for wanted in ["s1", "s2", "s3"] {
                let before = cluster.servers[asked].master()?;
                let moved = cluster.servers[asked].cli(&["transfer", "--to", wanted, "--json"])?;
                moved.success()?;
                let after = cluster.servers[asked].master()?;
                ensure!(after.name == wanted, "{} instead of {wanted}", after.name);
                ensure!((after.term > before.term) == (before.name != wanted), "{before:?} {after:?}");
            }
            cluster.servers[asked].cli(&["transfer"])?.success()?;
            ensure!(cluster.servers[asked].master()?.name != "s3", "it went to somebody else");
        }
        check(&clients).map(|_| ())
    })();
    cluster.explain(tried).unwrap();
}
