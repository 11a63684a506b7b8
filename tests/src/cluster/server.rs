//! One `p2p-server` process and its command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::report::{Master, Members, Peers};
use super::{Lifetime, Output, PATIENCE, Process, Seat, binaries, run};
use crate::http;

/// How a Server comes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// As the first of a new cluster.
    Bootstrap,
    /// Into the cluster of `introducer`.
    Join {
        /// Any Server of the cluster.
        introducer: SocketAddr,
        /// Made by `token create --role server`.
        token: String,
    },
    /// From its data directory, after it ran before.
    Again,
}

/// A Server: its place and data directory, and its process while it runs.
#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    seat: Seat,
    data: PathBuf,
    log: PathBuf,
    /// Variables of its environment.
    variables: Vec<(String, String)>,
    lifetime: Lifetime,
    process: Option<Process>,
}

impl ServerProcess {
    /// Takes ports for a Server whose data and log go below `dir`.
    pub fn new(name: &str, dir: &Path, lifetime: Lifetime) -> anyhow::Result<Self> {
        Ok(ServerProcess::seated(name, Seat::loopback(dir)?, dir, lifetime))
    }

    /// A Server whose place is `seat`, and whose log goes below `dir`.
    pub fn seated(name: &str, seat: Seat, dir: &Path, lifetime: Lifetime) -> Self {
        ServerProcess {
            name: name.into(),
            data: seat.dir.join(name),
            log: dir.join(format!("{name}.log")),
            seat,
            variables: Vec::new(),
            lifetime,
            process: None,
        }
    }

    /// Its name, also towards the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where it serves gRPC.
    pub fn listen(&self) -> SocketAddr {
        self.seat.listen
    }

    /// Where it serves health and metrics.
    pub fn ops(&self) -> SocketAddr {
        self.seat.ops
    }

    /// Where it serves the registry's HTTP face.
    pub fn registry(&self) -> SocketAddr {
        self.seat.registry
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The command that [`Self::start`] runs.
    pub fn run_command(&self, start: &Start) -> anyhow::Result<Command> {
        let mut command = self.command(&["run", "--name", &self.name])?;
        command.args(["--listen", &self.listen().to_string()]);
        command.args(["--ops", &self.ops().to_string()]);
        command.args(["--registry", &self.registry().to_string()]);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        match start {
            Start::Bootstrap => {
                command.arg("--bootstrap");
            }
            Start::Join { introducer, token } => {
                command.args(["--join", &introducer.to_string(), "--token", token]);
            }
            Start::Again => {}
        }
        Ok(command)
    }

    /// Starts the process; a former one is killed.
    pub fn start(&mut self, start: Start) -> anyhow::Result<()> {
        self.process = None;
        let command = self.run_command(&start)?;
        self.process = Some(Process::spawn(&self.name, command, &self.log, self.lifetime)?);
        Ok(())
    }

    /// Waits until it says of itself that it is ready.
    pub fn wait_ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let ops = self.ops();
        self.process_mut()?.wait_for("ready", within, || {
            let answer = http::get(ops, "localhost", "/readyz")?;
            ensure!(answer.status == 200, "/readyz says {}: {}", answer.status, answer.text());
            Ok(())
        })
    }

    /// Whether it was started and not taken down by [`Self::kill`].
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Its process.
    ///
    /// # Errors
    /// When it was not started.
    pub fn process_mut(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} was not started", self.name))
    }

    /// Its process, if it was started.
    pub fn process_if_started(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process_mut()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Runs `p2p-server ARGS --data DIR` to its end.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command(args)?, PATIENCE)
    }

    /// `p2p-server ARGS --data DIR`, not started.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(&binaries()?.server);
        command.args(args).arg("--data").arg(&self.data);
        self.seat.prepare(&mut command);
        Ok(command)
    }

    /// The member table as this Server has it.
    pub fn members(&self) -> anyhow::Result<Members> {
        self.cli(&["members", "--json"])?.json()
    }

    /// The Master it names.
    pub fn master(&self) -> anyhow::Result<Master> {
        self.cli(&["master", "--json"])?.json()
    }

    /// The Peers it knows.
    pub fn peers(&self) -> anyhow::Result<Peers> {
        self.cli(&["peers", "--json"])?.json()
    }

    /// A join or bearer token.
    pub fn token(&self, role: &str, uses: usize, ttl: &str) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let output = self.cli(&["token", "create", "--role", role, "--uses", &uses, "--ttl", ttl])?;
        Ok(output.success()?.trim().to_string())
    }

    /// Lets the process live on; its name and pid.
    pub fn leave(self) -> Option<(String, u32)> {
        self.process.map(|process| (self.name, process.leave()))
    }
}
