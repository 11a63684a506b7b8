//! `make partitions`: the network between Servers fails in every way, under clients whose history is checked.
//!
//! `PARTITION_ROUNDS` says how many faults (66 each over 3 and 5 Servers), `PARTITION_SEED` repeats them (else drawn
//! and printed). The exit status is 0 only if every promise was kept; then `target/bench/partitions.json` has the
//! figures. Needs root.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, ensure};
use p2p_tests::bench::Report;
use p2p_tests::cluster::interrupt_on_signal;
use p2p_tests::lab::missing;
use p2p_tests::lab::partitions::{Plan, play};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("partitions failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let missing = missing();
    ensure!(missing.is_empty(), "not to be had here: {}", missing.join(", "));
    interrupt_on_signal()?;
    let mut report = Report::new("partitions");
    let (rounds, seed) = (setting("PARTITION_ROUNDS")?.unwrap_or(66), setting("PARTITION_SEED")?);
    for servers in [3, 5] {
        let plan = Plan { servers, rounds, clients: 6, seed: seed.unwrap_or_else(rand::random) };
        println!("{servers} Servers, {rounds} faults, PARTITION_SEED={}", plan.seed);
        let summary = play(&plan, |line| println!("{line}"))?;
        println!("{}", summary.line());
        summary.report(servers, &mut report);
    }
    println!("{}", report.write()?.display());
    Ok(())
}

fn setting<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
) -> anyhow::Result<Option<T>> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
}
