//! `make kill-rounds`: Servers are killed and frozen at random under writes; nothing acknowledged may be lost, and
//! what clients are told must be linearizable.
//!
//! `KILLS` says how many are killed (1,000), spread evenly over clusters of `KILL_SERVERS` (`3,5`); `KILL_SEED`
//! repeats who dies when (else drawn and printed). The exit status is 0 only if every promise was kept; then
//! `target/bench/kill-rounds.json` has the figures.

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, ensure};
use p2p_tests::kill_rounds::{Plan, play, report};

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
    let kills: usize = setting("KILLS")?.unwrap_or(1_000);
    let seed = setting("KILL_SEED")?.unwrap_or_else(rand::random);
    let sizes: String = setting("KILL_SERVERS")?.unwrap_or_else(|| "3,5".into());
    let sizes: Vec<usize> = sizes
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("KILL_SERVERS={sizes}"))?;
    ensure!(
        sizes.iter().all(|size| [3, 5].contains(size)),
        "KILL_SERVERS: 3 and 5 are the sizes in which all vote"
    );
    println!("{kills} kills over clusters of {sizes:?} servers, KILL_SEED={seed}");
    let mut summaries = Vec::new();
    for servers in &sizes {
        let kills = kills.div_ceil(sizes.len());
        // 10 rounds take less than a minute, so that each token is seen before its 90 s are over.
        let plan = Plan { servers: *servers, kills, check_every: 10, writers: 4, clients: 6, seed };
        let summary = play(&plan, |line| println!("{line}"))?;
        println!("{}", summary.lines());
        summaries.push(summary);
    }
    println!("{}", report(&summaries).write()?.display());
    Ok(())
}

fn setting<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
) -> anyhow::Result<Option<T>> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
}
