//! A WebSocket service and client: Python's `websockets`, as `tests/clients/websocket.py` uses it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::find;
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process};
use crate::repository_root;

/// A running echo service.
#[derive(Debug)]
pub struct Websockets {
    python: PathBuf,
    port: PortLease,
    _process: Process,
}

impl Websockets {
    /// Starts it with its log in `dir`; `None`, with a word printed, where `websockets` is not installed.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(dir: &Path) -> anyhow::Result<Option<Self>> {
        // Debian's package is seen by Debian's Python alone, which may not be the first one.
        let pythons = [find("python3"), Some("/usr/bin/python3".into())];
        let Some(python) = pythons.into_iter().flatten().find(|python| has_websockets(python)) else {
            eprintln!("skipped: websockets for Python is not installed");
            return Ok(None);
        };
        let port = PortLease::take()?;
        let mut command = script(&python);
        command.args(["serve", &port.port().to_string()]);
        let mut process =
            Process::spawn("websocket.py", command, &dir.join("websocket.log"), Lifetime::Bound)?;
        process.wait_for("listening", PATIENCE, || Ok(std::net::TcpStream::connect(port.addr())?))?;
        Ok(Some(Websockets { python, port, _process: process }))
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// The client that tries the service `name` at `port`: text, binary, ping, 1 MiB, 12 s of silence, close.
    pub fn client(&self, name: &str, port: u16) -> Command {
        let mut command = script(&self.python);
        command.args(["try", &format!("ws://{name}/"), &port.to_string()]);
        command
    }
}

fn script(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(repository_root().join("tests/clients/websocket.py"));
    command
}

fn has_websockets(python: &Path) -> bool {
    let probe = Command::new(python).args(["-c", "import websockets"]).output();
    probe.is_ok_and(|output| output.status.success())
}
