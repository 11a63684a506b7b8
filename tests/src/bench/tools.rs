//! Rivals and tools of Debian, found or installed when a bench wants them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where distributions put what a search path often lacks.
const FURTHER_DIRS: &[&str] = &["/usr/sbin", "/usr/local/sbin"];

/// Finds `program`, installing the package of the same name where we may; `None` is said aloud.
pub fn find_or_install(program: &str) -> Option<PathBuf> {
    if let Some(path) = find(program) {
        return Some(path);
    }
    println!("{program}: not installed, trying apt-get");
    // SAFETY: geteuid has no preconditions and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let installed = is_root && (apt(&["install", program]) || apt(&["update"]) && apt(&["install", program]));
    let found = if installed { find(program) } else { None };
    if found.is_none() {
        println!("{program}: not to be had here; its rows say so");
    }
    found
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
