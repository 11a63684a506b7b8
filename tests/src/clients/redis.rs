//! `redis-server`, for as long as the test.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use super::{find, typed};
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process};

/// A running Redis that keeps nothing.
#[derive(Debug)]
pub struct Redis {
    port: PortLease,
    _process: Process,
}

impl Redis {
    /// Starts one with its log in `dir`; redis-server and redis-cli are installed.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let port = PortLease::take()?;
        let mut command = Command::new(find("redis-server").unwrap_or_else(|| "redis-server".into()));
        command.args(["--port", &port.port().to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.arg("--dir").arg(dir);
        let mut process = Process::spawn("redis", command, &dir.join("redis.log"), Lifetime::Bound)?;
        process.wait_for("answering", PATIENCE, || {
            let pong = typed("redis-cli -p $PORT ping", &[("PORT", &port.port())])?;
            ensure!(pong == "PONG\n", "it says {pong:?}");
            Ok(())
        })?;
        Ok(Redis { port, _process: process })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }
}
