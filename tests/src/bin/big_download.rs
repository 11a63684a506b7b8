//! `make big-download`: curl fetches 10 GiB through two Peers, and both ends hash what flowed.
//!
//! `BIG_BYTES` says how much. The exit status is 0 only if both hashes are the same.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use p2p_tests::clients::bulk::Source;
use p2p_tests::clients::{Pair, installed};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("big download failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    ensure!(installed(&["curl"]), "it takes curl");
    let bytes = match std::env::var("BIG_BYTES") {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("BIG_BYTES={text}"))?,
        _ => 10 << 30,
    };
    let source = Source::start(bytes)?;
    let mut pair = Pair::start(&[("big.example", source.addr())], &[])?;
    let downloaded = source.download("big.example", pair.port());
    let downloaded = pair.cluster.explain(downloaded)?;
    let seconds = downloaded.took.as_secs_f64();
    println!(
        "{} bytes in {seconds:.1} s: {:.0} MB/s",
        downloaded.bytes,
        downloaded.bytes as f64 / 1e6 / seconds
    );
    println!("sha256 sent     {}", downloaded.sent_sha256);
    println!("sha256 received {}", downloaded.got_sha256);
    for peer in &mut pair.cluster.peers {
        let (name, process) = (peer.name().to_owned(), peer.process_mut()?);
        println!("{name}: {} MiB of memory", process.memory_mib()?);
    }
    ensure!(downloaded.bytes == bytes, "{bytes} bytes were asked for");
    ensure!(downloaded.sent_sha256 == downloaded.got_sha256, "what was received is not what was sent");
    pair.cluster.stop(Duration::from_secs(15))
}
