//! A PostgreSQL server with a fresh database, for as long as the test.

use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::{find, typed};
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process, run};

/// It refuses to run as root, so root runs it as this user and group, which every Linux has.
const NOBODY: u32 = 65_534;

/// A running server that believes every client of this host to be `postgres`.
#[derive(Debug)]
pub struct Postgres {
    port: PortLease,
    _process: Process,
    /// Last, so that it is removed after the process ended.
    _dir: TempDir,
}

impl Postgres {
    /// Makes a database and serves it; initdb, postgres and psql are installed.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2pcore-postgres-").tempdir()?;
        // SAFETY: getuid has no preconditions and cannot fail.
        let is_root = unsafe { libc::getuid() } == 0;
        if is_root {
            chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let data = dir.path().join("data");
        let command = |name: &str| {
            let mut command = Command::new(find(name).unwrap_or_else(|| PathBuf::from(name)));
            command.current_dir(dir.path()).arg("-D").arg(&data);
            if is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let mut make = command("initdb");
        make.args(["-U", "postgres", "--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync"]);
        run(make, PATIENCE)?.success()?;

        let port = PortLease::take()?;
        let mut serve = command("postgres");
        serve.args(["-h", "127.0.0.1", "-p", &port.port().to_string(), "-F", "-k"]).arg(dir.path());
        let log = dir.path().join("postgres.log");
        let mut process = Process::spawn("postgres", serve, &log, Lifetime::Bound)?;
        process.wait_for("answering", PATIENCE, || {
            typed("psql -h 127.0.0.1 -p $PORT -U postgres -c 'select 1'", &[("PORT", &port.port())])
        })?;
        Ok(Postgres { port, _process: process, _dir: dir })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }
}
