//! The README's five minutes by hand, typed word for word: every `sh` block of that section runs as one script,
//! in a network and process namespace of its own, so that its ports are free and nothing of it is left.
//!
//! Three things differ from what a newcomer types: `/tmp/` is a temporary directory, the build is the one under
//! test, and `sleep` takes three times as long, since this machine may be busy. `grpcurl` is left out: it is
//! nowhere to be had here; `make interop` asks the same.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use p2p_tests::cluster::{binaries, run};

const SECTION: &str = "## Five minutes by hand";

#[test]
fn the_five_minutes_by_hand_are_as_the_readme_says() -> anyhow::Result<()> {
    for (tool, probe) in [
        ("unshare with user namespaces", "unshare -rn --fork --pid --kill-child ip link set lo up"),
        ("python3", "python3 --version"),
        ("curl", "curl --version"),
    ] {
        if !Command::new("sh").arg("-c").arg(probe).output()?.status.success() {
            eprintln!("skipped: {tool} is not to be had here");
            return Ok(());
        }
    }
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let blocks = shell_blocks(&readme);
    assert!(blocks.len() >= 6, "the section has {} blocks", blocks.len());

    let dir = tempfile::Builder::new().prefix("p2pcore-readme-").tempdir()?;
    let home = format!("{}/", dir.path().display());
    let bin = binaries()?.server.parent().expect("a binary lies in a directory").display().to_string();
    let mut script = format!(
        "set -u\nip link set lo up\nexport PATH={bin}:$PATH\nsleep() {{ command sleep $(($1 * 3)); }}\n"
    );
    for line in blocks.iter().flat_map(|block| block.lines()) {
        if line.starts_with("make build") || line.starts_with("grpcurl") {
            continue;
        }
        let first_peer =
            "$(p2p-peer status --data /tmp/p1 --json | grep -o 'C[0-9a-f-]\\{36\\}' | head -n 1)";
        script.push_str(&line.replace("C<uuid of p1>", first_peer).replace("/tmp/", &home));
        script.push('\n');
    }
    script.push_str("sleep 1\n");
    let path = dir.path().join("typed.sh");
    std::fs::write(&path, &script)?;

    let mut command = Command::new("unshare");
    command.args(["-rn", "--fork", "--pid", "--kill-child", "bash"]).arg(&path);
    let output = run(command, Duration::from_secs(120))?;
    let seen = format!("{script}\n--- printed\n{}\n--- complained\n{}", output.stdout, output.stderr);
    assert!(output.status.success(), "{seen}");
    let count = |text: &str| output.stdout.matches(text).count();
    assert_eq!(count("  voter  "), 3, "three voters\n{seen}");
    assert_eq!(count("hello from the backend"), 2, "fetched before and after the Master died\n{seen}");
    assert_eq!(count("svc_map={total=1}"), 1, "the route table\n{seen}");
    assert_eq!(count("{total_peers=1}"), 1, "the services of each Peer\n{seen}");
    assert!(count("p1 C") >= 1 && count("direct") >= 2, "links and why\n{seen}");
    let masters: Vec<&str> = output.stdout.lines().filter(|line| line.contains("Z  s")).collect();
    assert!(masters.len() >= 2, "the watch shows s1 and the next one: {masters:?}\n{seen}");
    assert!(!masters.last().is_some_and(|line| line.contains("Z  s1 ")), "s1 is dead: {masters:?}");
    Ok(())
}

/// The `sh` blocks of the section, in order.
fn shell_blocks(readme: &str) -> Vec<String> {
    let section = readme.split(SECTION).nth(1).expect("the README has the section");
    let section = section.split("\n## ").next().unwrap_or(section);
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest).to_owned()).collect()
}
