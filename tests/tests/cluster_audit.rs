//! The audit log of a real Server: written before the answer, there after a crash, shown whether it runs or not.

use std::process::Command;

use anyhow::ensure;
use p2p_tests::cluster::{Cluster, FAILED, PATIENCE, Start, binaries, run};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Record {
    caller: String,
    remote: String,
    method: String,
    target: String,
    outcome: String,
}

fn records(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Vec<Record>> {
    let args = [&["audit", "--json"], args].concat();
    let lines = cluster.servers[0].cli(&args)?.success()?;
    Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

#[test]
fn what_was_asked_is_there_after_a_crash() {
    let mut cluster = Cluster::start(1).unwrap();
    let tried = (|| {
        let reader = cluster.token("reader", 1)?;
        let address = cluster.servers[0].listen().to_string();
        let mut command = Command::new(&binaries()?.server);
        command.args(["token", "list", "--server", &address, "--token", &reader, "--ca"]);
        command.arg(cluster.servers[0].data().join("ca.pem"));
        let refused = run(command, PATIENCE)?;
        ensure!(refused.status.code() == Some(FAILED), "{refused:?}");
        let set = ["settings", "set", "description", "the lab"];
        cluster.servers[0].cli(&set)?.success()?;
        cluster.servers[0].kill()?;

        let found = records(&cluster, &[])?;
        ensure!(found.len() == 3, "{found:?}");
        let shown: Vec<_> = found.iter().map(|r| (r.method.as_str(), r.outcome.as_str())).collect();
        let expected = [
            ("Operator/CreateToken", "ok"),
            ("Operator/ListTokens", "forbidden"),
            ("Operator/ChangeSetting", "ok"),
        ];
        ensure!(shown == expected, "{shown:?}");
        ensure!(found[0].caller == "local" && found[1].caller.starts_with("token "), "{found:?}");
        ensure!(found[0].target.ends_with("role reader") && found[2].target == "description = the lab");
        ensure!(found.iter().all(|record| record.remote.starts_with("127.0.0.1:")));

        cluster.servers[0].start(Start::Again)?;
        cluster.servers[0].wait_ready(PATIENCE)?;
        cluster.servers[0].cli(&["settings", "unset", "description"])?.success()?;
        ensure!(records(&cluster, &["--last", "1"])?[0].target == "description = default");
        let printed = cluster.servers[0].cli(&["audit", "--last", "0"])?.success()?;
        ensure!(printed.lines().count() == 5 && printed.starts_with("TIME"), "{printed}");
        Ok(())
    })();
    cluster.explain(tried).unwrap();
}
