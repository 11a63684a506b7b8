//! One `p2p-peer` process and its command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::report::{Links, PeerStatus, Tables};
use super::{Lifetime, Output, PATIENCE, PortLease, Process, binaries, run};

/// A Peer: its ports, data directory and services, and its process while it runs.
#[derive(Debug)]
pub struct PeerProcess {
    name: String,
    data: PathBuf,
    log: PathBuf,
    listen: PortLease,
    metrics: PortLease,
    /// Ports bound to one service each.
    bound: Vec<PortLease>,
    /// Arguments of `run` that say whom to join and what to offer.
    settings: Vec<String>,
    /// Variables of its environment.
    variables: Vec<(String, String)>,
    lifetime: Lifetime,
    /// Another binary than the one under test.
    program: Option<PathBuf>,
    process: Option<Process>,
}

impl PeerProcess {
    /// Takes ports for a Peer whose data and log go below `dir`.
    pub fn new(name: &str, dir: &Path, lifetime: Lifetime) -> anyhow::Result<Self> {
        Ok(PeerProcess {
            name: name.into(),
            data: dir.join(name),
            log: dir.join(format!("{name}.log")),
            listen: PortLease::take()?,
            metrics: PortLease::take()?,
            bound: Vec::new(),
            settings: Vec::new(),
            variables: Vec::new(),
            lifetime,
            program: None,
            process: None,
        })
    }

    /// How the test calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where it serves peers and clients.
    pub fn listen(&self) -> SocketAddr {
        self.listen.addr()
    }

    /// Where it serves health and metrics.
    pub fn metrics(&self) -> SocketAddr {
        self.metrics.addr()
    }

    /// Tells it of Servers and gives it a token, for the next start.
    pub fn introduce(&mut self, servers: &[SocketAddr], token: &str) {
        let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        self.settings.extend(["--servers".into(), servers.join(","), "--token".into(), token.into()]);
    }

    /// Has it run `program`, another build of `p2p-peer`, from the next start on.
    pub fn use_program(&mut self, program: &Path) {
        self.program = Some(program.into());
    }

    /// Gives it a further argument of `run`, from the next start on.
    pub fn set(&mut self, argument: &str, value: &str) {
        self.settings.extend([argument.into(), value.into()]);
    }

    /// Has it offer `backend` as `service`, from the next start on.
    pub fn offer(&mut self, service: &str, backend: SocketAddr) {
        self.settings.extend(["--service".into(), format!("{service}={backend}")]);
    }

    /// Has it serve `service` at a port of its own, from the next start on; where.
    pub fn bind(&mut self, service: &str) -> anyhow::Result<SocketAddr> {
        let lease = PortLease::take()?;
        let addr = lease.addr();
        self.settings.extend(["--bind".into(), format!("{addr}={service}")]);
        self.bound.push(lease);
        Ok(addr)
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The command that [`Self::start`] runs.
    pub fn run_command(&self) -> anyhow::Result<Command> {
        let mut command = self.command(&["run", "--name", &self.name])?;
        command.args(["--listen", &self.listen().to_string()]);
        command.args(["--metrics", &self.metrics().to_string()]).args(&self.settings);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Starts the process; a former one is killed.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.process = None;
        let command = self.run_command()?;
        self.process = Some(Process::spawn(&self.name, command, &self.log, self.lifetime)?);
        Ok(())
    }

    /// Waits until it works and has sessions to `servers` Servers.
    pub fn wait_working(&mut self, servers: usize, within: Duration) -> anyhow::Result<()> {
        let mut process = self.process.take().with_context(|| format!("{} was not started", self.name))?;
        let found = process.wait_for("working", within, || {
            let status = self.status()?;
            ensure!(status.state == "working", "it says '{}'", status.state);
            let connected = status.servers.iter().filter(|server| server.connected).count();
            ensure!(connected >= servers, "{connected} of {servers} Servers connected");
            Ok(())
        });
        self.process = Some(process);
        found
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

    /// Runs `p2p-peer ARGS --data DIR` to its end.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command(args)?, PATIENCE)
    }

    /// `p2p-peer ARGS --data DIR`, not started.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let program = match &self.program {
            Some(program) => program,
            None => &binaries()?.peer,
        };
        let mut command = Command::new(program);
        command.args(args).arg("--data").arg(&self.data);
        Ok(command)
    }

    /// What it says of itself.
    pub fn status(&self) -> anyhow::Result<PeerStatus> {
        self.cli(&["status", "--json"])?.json()
    }

    /// Its tables.
    pub fn tables(&self) -> anyhow::Result<Tables> {
        self.cli(&["tables", "--json"])?.json()
    }

    /// Its links to other Peers.
    pub fn links(&self) -> anyhow::Result<Links> {
        self.cli(&["links", "--json"])?.json()
    }

    /// Lets the process live on; its name and pid.
    pub fn leave(self) -> Option<(String, u32)> {
        self.process.map(|process| (self.name, process.leave()))
    }
}
