//! Finds the binaries under test, built from the same sources as the test.
//!
//! Cargo tells an integration test only of the binaries of its own package, so they are looked for beside the
//! running executable. Unless `P2P_BINARIES_BUILT` is set (as `make test` does, after it built everything),
//! cargo is asked to build them first: with fresh binaries that takes a moment, with stale ones it prevents
//! a test of yesterday's code.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};

/// Says that whoever started us built the binaries.
const BUILT: &str = "P2P_BINARIES_BUILT";

/// Where the two binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `p2p-server`.
    pub server: PathBuf,
    /// `p2p-peer`.
    pub peer: PathBuf,
}

/// The binaries under test, built if need be; looked for once in a process.
///
/// # Errors
/// When cargo fails or leaves no binary where the running executable lies.
pub fn binaries() -> anyhow::Result<&'static Binaries> {
    static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn find() -> anyhow::Result<Binaries> {
    let executable = std::env::current_exe().context("asking for the running executable")?;
    let profile_dir =
        profile_dir(&executable).context("the executable does not lie in a target directory")?;
    if std::env::var_os(BUILT).is_none() {
        build(profile_dir)?;
    }
    let binary = |name: &str| {
        let path = profile_dir.join(name);
        ensure!(path.is_file(), "{} does not exist: cargo build --workspace --bins", path.display());
        Ok(path)
    };
    Ok(Binaries { server: binary("p2p-server")?, peer: binary("p2p-peer")? })
}

/// `target/debug` for `target/debug/deps/test-1234` and for `target/debug/demo`.
fn profile_dir(executable: &Path) -> Option<&Path> {
    let dir = executable.parent()?;
    if dir.file_name()? == "deps" { dir.parent() } else { Some(dir) }
}

fn build(profile_dir: &Path) -> anyhow::Result<()> {
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} names no cargo profile", profile_dir.display()),
    };
    let target_dir = profile_dir.parent().context("a profile directory lies in a target directory")?;
    // All three packages, so that features unify as they did for the running executable.
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "-p", "p2p-server", "-p", "p2p-peer", "-p", "p2p-tests"])
        .args(["--bin", "p2p-server", "--bin", "p2p-peer"])
        .args(["--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(crate::repository_root())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_directories_of_cargo() {
        let of = |path: &'static str| profile_dir(Path::new(path)).map(|dir| dir.to_str().unwrap());
        assert_eq!(of("/x/target/debug/deps/a-12"), Some("/x/target/debug"));
        assert_eq!(of("/x/target/release/demo"), Some("/x/target/release"));
    }
}
