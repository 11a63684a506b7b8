//! Rivals and tools of Debian and crates.io, found or installed when a bench wants them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where distributions put what a search path often lacks.
const FURTHER_DIRS: &[&str] = &["/usr/sbin", "/usr/local/sbin"];

/// Finds `program`, installing the package of the same name where we may; `None` is said aloud.
pub fn find_or_install(program: &str) -> Option<PathBuf> {
    find_or_install_from(program, program)
}

/// Finds `program`, installing `package` where we may; `None` is said aloud.
pub fn find_or_install_from(program: &str, package: &str) -> Option<PathBuf> {
    if let Some(path) = find(program) {
        return Some(path);
    }
    println!("{program}: not installed, trying apt-get");
    // SAFETY: geteuid has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let installed = is_root && (apt(&["install", package]) || apt(&["update"]) && apt(&["install", package]));
    let found = if installed { find(program) } else { None };
    if found.is_none() {
        println!("{program}: not to be had here; its rows say so");
    }
    found
}

/// Finds `program` of crates.io in this `version` below `target/bench/rivals`, installing it there if need be;
/// `None` is said aloud. Its newest dependencies are taken, as its users would get them.
pub fn cargo_install(program: &str, version: &str) -> Option<PathBuf> {
    let root = crate::repository_root().join("target/bench/rivals");
    let path = root.join("bin").join(program);
    if path.is_file() {
        return Some(path);
    }
    println!("{program} {version}: not installed, trying cargo install");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["install", program, "--version", version, "--quiet", "--root"]).arg(&root);
    command.arg("--target-dir").arg(root.join("build")).stdin(Stdio::null());
    let installed = command.status().is_ok_and(|status| status.success()) && path.is_file();
    if !installed {
        println!("{program}: not to be had here; its rows say so");
    }
    installed.then_some(path)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(FURTHER_DIRS.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn apt(args: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.args(["-qqy", "--no-install-recommends"]).args(args).stdin(Stdio::null());
    // A package's service must not start and take its ports: init scripts skip themselves in run level 1.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
