//! `make kill-rounds`: Servers are killed at random under writes, and nothing acknowledged may be lost.
//!
//! `KILL_ROUNDS` says how many rounds (200), `KILL_SEED` repeats who dies when (else drawn and printed). The exit
//! status is 0 only if every promise was kept; then `target/bench/kill-rounds.json` has the figures.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use p2p_tests::kill_rounds::{Plan, play};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill rounds failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // 20 rounds take less than a minute, so that each token is seen before its 90 s are over.
    let plan = Plan {
        rounds: setting("KILL_ROUNDS")?.unwrap_or(200),
        check_every: 10,
        writers: 4,
        seed: setting("KILL_SEED")?.unwrap_or_else(rand::random),
    };
    println!("{} rounds, {} writers, KILL_SEED={}", plan.rounds, plan.writers, plan.seed);
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
