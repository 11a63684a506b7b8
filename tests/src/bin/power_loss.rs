//! `make power-loss`: the disks of the Servers lose their power under writes, and nothing acknowledged may be lost.
//!
//! `POWER_ROUNDS` says how many rounds (200), `POWER_SEED` repeats whose power goes when (else drawn and printed).
//! With `--unsynced` the Servers' `fdatasync` does nothing, so that the run must fail. The exit status is 0 only if
//! every promise was kept; then `target/bench/power-loss.json` has the figures. Needs root and loop devices.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, ensure};
use p2p_tests::cluster::interrupt_on_signal;
use p2p_tests::power_loss::{Plan, isolate_mounts, missing, play};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("power loss rounds failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let missing = missing();
    ensure!(missing.is_empty(), "not to be had here: {}", missing.join(", "));
    // Before any thread starts.
    isolate_mounts().context("making mounts of our own")?;
    interrupt_on_signal()?;
    // Ten rounds take less than half a minute, so that each token is seen before its 90 s are over.
    let unsynced = std::env::args().any(|arg| arg == "--unsynced");
    let plan = Plan {
        rounds: setting("POWER_ROUNDS")?.unwrap_or(200),
        check_every: if unsynced { 1 } else { 5 },
        writers: 4,
        clients: 8,
        seed: setting("POWER_SEED")?.unwrap_or_else(rand::random),
        unsynced,
    };
    println!("{} rounds, POWER_SEED={}", plan.rounds, plan.seed);
    let summary = play(&plan, |line| println!("{line}"))?;
    println!("{}", summary.line());
    println!("{}", summary.report().write()?.display());
    Ok(())
}

fn setting<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
) -> anyhow::Result<Option<T>> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
}
