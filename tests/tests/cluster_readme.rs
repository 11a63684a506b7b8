//! The README's walks by hand, typed word for word: every `sh` block of a section runs as one script, in a network
//! and process namespace of its own, so that its ports are free and nothing of it is left.
//!
//! Three things differ from what a newcomer types: `/tmp/` is a temporary directory, the build is the one under
//! test, and a short `sleep` takes three times as long, since this machine may be busy. What is nowhere to be had
//! here is left out: `grpcurl` (`make interop` asks the same), and `redis` where it is not installed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use p2p_tests::cluster::{binaries, run};

/// What a typed section printed.
struct Typed {
    stdout: String,
    /// All there is to look at when something is missing.
    seen: String,
}

impl Typed {
    fn count(&self, text: &str) -> usize {
        self.stdout.matches(text).count()
    }
}

#[test]
fn the_five_minutes_by_hand_are_as_the_readme_says() -> anyhow::Result<()> {
    let Some(typed) = type_section("## Five minutes by hand", 6)? else { return Ok(()) };
    let seen = &typed.seen;
    assert_eq!(typed.count("  voter  "), 3, "three voters\n{seen}");
    assert_eq!(typed.count("hello from the backend"), 2, "fetched before and after the Master died\n{seen}");
    assert_eq!(typed.count("svc_map={total=1}"), 1, "the route table\n{seen}");
    assert_eq!(typed.count("{total_peers=1}"), 1, "the services of each Peer\n{seen}");
    assert!(typed.count("p1 C") >= 1 && typed.count("direct") >= 2, "links and why\n{seen}");
    let masters: Vec<&str> = typed.stdout.lines().filter(|line| line.contains("Z  s")).collect();
    assert!(masters.len() >= 2, "the watch shows s1 and the next one: {masters:?}\n{seen}");
    assert!(!masters.last().is_some_and(|line| line.contains("Z  s1 ")), "s1 is dead: {masters:?}");
    Ok(())
}

#[test]
fn the_mesh_without_servers_is_as_the_readme_says() -> anyhow::Result<()> {
    let Some(typed) = type_section("## A mesh without Servers", 2)? else { return Ok(()) };
    let seen = &typed.seen;
    assert_eq!(typed.count("hello from a"), 1, "b reaches a\n{seen}");
    assert_eq!(typed.count("hello from c"), 2, "a reaches c, also after its return\n{seen}");
    assert_eq!(typed.count("HTTP/1.1 404 Not Found"), 1, "b does not see c\n{seen}");
    assert_eq!(typed.count("svc_map={total=3}"), 1, "a sees both\n{seen}");
    assert_eq!(typed.count("svc_map={total=2}"), 1, "c is offline while it is silent\n{seen}");
    if is_installed("redis-server") {
        assert_eq!(typed.count("PONG"), 1, "through the bound port\n{seen}");
    }
    assert_eq!(typed.count("127.0.0.1:6379 now leads to example-redis"), 1, "bound\n{seen}");
    assert_eq!(typed.count("example-redis takes no new forwards"), 1, "drained\n{seen}");
    Ok(())
}

/// Types the `sh` blocks of a section; none when something is missing here to do so.
fn type_section(section: &str, blocks_min: usize) -> anyhow::Result<Option<Typed>> {
    for (tool, probe) in [
        ("unshare with user namespaces", "unshare -rn --fork --pid --kill-child ip link set lo up"),
        ("python3", "python3 --version"),
        ("curl", "curl --version"),
    ] {
        if !Command::new("sh").arg("-c").arg(probe).output()?.status.success() {
            eprintln!("skipped: {tool} is not to be had here");
            return Ok(None);
        }
    }
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let blocks = shell_blocks(&readme, section);
    assert!(blocks.len() >= blocks_min, "the section has {} blocks", blocks.len());

    let dir = tempfile::Builder::new().prefix("p2pcore-readme-").tempdir()?;
    let home = format!("{}/", dir.path().display());
    let bin = binaries()?.server.parent().expect("a binary lies in a directory").display().to_string();
    let mut script = format!(
        "set -u\nip link set lo up\nexport PATH={bin}:$PATH\n\
         sleep() {{ command sleep $(($1 < 10 ? $1 * 3 : $1)); }}\n"
    );
    let left_out = |line: &str| {
        let program = line.split_whitespace().next().unwrap_or_default();
        let redis = program.starts_with("redis") && !is_installed("redis-server");
        line.starts_with("make build") || matches!(program, "grpcurl" | "kubectl") || redis
    };
    for line in blocks.iter().flat_map(|block| block.lines()).filter(|line| !left_out(line)) {
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
    let output = run(command, Duration::from_secs(150))?;
    let seen = format!("{script}\n--- printed\n{}\n--- complained\n{}", output.stdout, output.stderr);
    assert!(output.status.success(), "{seen}");
    Ok(Some(Typed { stdout: output.stdout, seen }))
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The `sh` blocks of the section, in order.
fn shell_blocks(readme: &str, section: &str) -> Vec<String> {
    let section = readme.split(section).nth(1).expect("the README has the section");
    let section = section.split("\n## ").next().unwrap_or(section);
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or(rest).to_owned()).collect()
}
