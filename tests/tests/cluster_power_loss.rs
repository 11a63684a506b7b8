//! A few of the rounds that `make power-loss` plays many of; and that they notice a missing sync.
//!
//! Each is a process of its own: it gives itself mounts that nobody else sees.

use std::process::Command;
use std::time::Duration;

use p2p_tests::cluster::{Output, run};
use p2p_tests::power_loss::missing;

/// The rounds with these settings; `None` where disks cannot lose power.
fn rounds(rounds: &str, arguments: &[&str]) -> Option<Output> {
    let missing = missing();
    if !missing.is_empty() {
        eprintln!("skipped: disks that lose power need {}", missing.join(", "));
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_power_loss"));
    command.args(arguments).env("POWER_ROUNDS", rounds).env_remove("POWER_SEED");
    Some(run(command, Duration::from_secs(300)).unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let Some(output) = rounds("5", &[]) else { return };
    let said = output.success().unwrap();
    println!("{said}");
    assert!(said.contains("none lost"), "{said}");
}

#[test]
fn a_missing_fdatasync_is_caught() {
    let Some(output) = rounds("5", &["--unsynced"]) else { return };
    println!("{}{}", output.stdout, output.stderr);
    assert!(!output.status.success(), "Servers that never sync lost nothing");
    let found = ["is lost: Acknowledged", "This server neither votes nor writes until you act"];
    assert!(found.iter().any(|found| output.stderr.contains(found)), "it failed for another reason");
}
