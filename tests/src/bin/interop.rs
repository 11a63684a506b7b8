//! `make interop`: an independent gRPC client (`tests/interop/get_master.py`, Python) against three real Servers.
//!
//! It asks one of them, then follows the Master, which is killed under its eyes; what it saw must be what the
//! cluster says. `P2P_PYTHON` names the Python that has grpcio and grpcio-tools; `make interop` makes one.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_tests::cluster::{Cluster, PATIENCE, Watch};
use p2p_tests::repository_root;
use serde::Deserialize;

/// A line of the client, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    at_ms: u64,
    /// What the client says of itself.
    #[serde(default)]
    version: String,
}

fn main() -> ExitCode {
    match interoperate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interop failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn interoperate() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(3)?;
    let done = watch_master(&mut cluster);
    cluster.explain(done)
}

fn watch_master(cluster: &mut Cluster) -> anyhow::Result<()> {
    let master = cluster.master()?;
    let asked = (master + 1) % cluster.servers.len();
    let client = Watch::start(client(cluster, asked)?)?;
    println!("asking {}; the Master is {}", cluster.servers[asked].name(), cluster.servers[master].name());

    let mut members = 0;
    let mut refused = 0;
    let first = loop {
        let line = next(&client)?;
        match line.event.as_str() {
            "member" => members += 1,
            "refused" => refused += 1,
            "watched" => break line,
            _ => {}
        }
    };
    ensure!(members == cluster.servers.len(), "it lists {members} members");
    ensure!(refused == 3, "{refused} of 3 calls were refused");
    ensure!(first.name == cluster.servers[master].name(), "it watches {}", first.name);

    println!("killing {}", first.name);
    cluster.servers[master].kill()?;
    let mut second = None;
    let done = loop {
        let line = next(&client)?;
        match line.event.as_str() {
            "watched" if line.name != first.name => second = Some(line),
            "done" => break line,
            _ => {}
        }
    };
    let status = client.finish(PATIENCE)?;
    ensure!(status.success(), "the client ended with {status}");
    let second = second.context("the client saw no other Master")?;
    ensure!(second.term > first.term, "term {} after {}", second.term, first.term);
    let named = cluster.servers[asked].master()?;
    ensure!(named.name == second.name, "it saw {}, the cluster says {}", second.name, named.name);
    println!(
        "grpcio {} saw {} (term {}) become Master {} ms after {} (term {})",
        done.version,
        second.name,
        second.term,
        second.at_ms - first.at_ms,
        first.name,
        first.term
    );
    Ok(())
}

fn client(cluster: &Cluster, asked: usize) -> anyhow::Result<Command> {
    let root = repository_root();
    let server = &cluster.servers[asked];
    let python =
        std::env::var_os("P2P_PYTHON").unwrap_or_else(|| root.join("target/interop/bin/python").into());
    let mut command = Command::new(python);
    command.arg(root.join("tests/interop/get_master.py"));
    command.args(["--json", "--server", &server.listen().to_string()]);
    command.args(["--watch", &PATIENCE.as_secs().to_string(), "--token-env", "P2P_INTEROP_TOKEN"]);
    command.arg("--ca").arg(server.data().join("ca.pem"));
    // Not as an argument: those are for everybody to see.
    command.env("P2P_INTEROP_TOKEN", server.token("reader", 1, "10m")?);
    Ok(command)
}

/// The next line, shown.
fn next(client: &Watch) -> anyhow::Result<Line> {
    /// The client waits for answers, this for the client.
    const SLACK: Duration = Duration::from_secs(10);
    let (_, value) = client.next::<serde_json::Value>(PATIENCE + SLACK)?;
    println!("  {value}");
    serde_json::from_value(value).context("a line of the client")
}
