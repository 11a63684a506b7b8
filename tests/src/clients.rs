//! Programs that nobody here wrote, through two Peers: client -> ingress -> owner -> backend.
//!
//! [`Pair`] is the two Peers (and the Server that introduces them), [`shell`] types what a user would, and the
//! children are backends: real daemons ([`redis`], [`postgres`], [`ssh`], [`websocket`]) and small services
//! where installing the real one would be out of proportion ([`kubernetes`], [`grpc`], [`http2`], [`bulk`]).
//! A program that is missing is no failure: [`installed`] says so, and the test passes without that part.

pub mod bulk;
pub mod grpc;
pub mod http2;
pub mod kubernetes;
mod pair;
pub mod postgres;
pub mod redis;
mod service;
pub mod ssh;
pub mod tls;
pub mod websocket;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::cluster::run;

pub use pair::{Meeting, Pair, between, between_met};
pub use service::Service;

/// What one line of a user takes at most; far above what it takes, since this machine may be busy.
const LINE_DEADLINE: Duration = Duration::from_secs(60);

/// Whether all of `programs` are here; prints those that are not.
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).collect();
    for program in &missing {
        eprintln!("skipped: {program} is not installed");
    }
    missing.is_empty()
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The user's path, and where Debian puts what administrators start.
fn search_path() -> OsString {
    let mut dirs: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    dirs.push("/usr/sbin".into());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    dirs.extend(versions.map(|version| version.path().join("bin")));
    std::env::join_paths(dirs).expect("they came out of such a list, or have no colon")
}

/// A script of bash that ends with the first command that fails, and the variables it is given.
pub fn shell(script: &str, given: &[(&str, &dyn Display)]) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).env("PATH", search_path());
    command.envs(given.iter().map(|(name, value)| (name, value.to_string())));
    command
}

/// What such a script printed.
///
/// # Errors
/// When it fails or takes more than a minute.
pub fn typed(script: &str, given: &[(&str, &dyn Display)]) -> anyhow::Result<String> {
    run(shell(script, given), LINE_DEADLINE)?.success()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_a_script_with_what_it_is_given() {
        assert!(installed(&["bash"]) && !installed(&["bash", "no-such-program"]));
        assert_eq!(typed("echo $A-$B", &[("A", &1), ("B", &"two")]).unwrap(), "1-two\n");
        assert!(typed("false | cat; echo on", &[]).is_err());
    }
}
