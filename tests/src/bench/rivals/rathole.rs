//! rathole as we run it: a tunnel server that visitors connect to, and a tunnel client beside the backend.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::{page, write_certificates};
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process};

/// What the two rathole processes speak between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RatholeTransport {
    /// Nothing encrypted.
    Tcp,
    /// TLS; the server alone shows a certificate.
    Tls,
}

/// Password of the key file: the format wants one.
const PASSWORD: &str = "bench";

/// Two rathole processes in front of a backend.
#[derive(Debug)]
pub struct Rathole {
    processes: Vec<Process>,
    entry: PortLease,
    /// Held while the server listens on it.
    _inner: PortLease,
}

impl Rathole {
    /// visitor -> rathole server -> rathole client -> backend, with the program's own defaults.
    ///
    /// # Errors
    /// When a process does not start, or no page comes through both.
    pub fn start(
        program: &Path,
        dir: &Path,
        transport: RatholeTransport,
        backend: SocketAddr,
    ) -> anyhow::Result<Self> {
        let name = match transport {
            RatholeTransport::Tcp => "rathole-tcp",
            RatholeTransport::Tls => "rathole-tls",
        };
        let dir = dir.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let (entry, inner) = (PortLease::take()?, PortLease::take()?);
        let (server_tls, client_tls) = match transport {
            RatholeTransport::Tcp => (String::new(), String::new()),
            RatholeTransport::Tls => tls(&dir)?,
        };
        let server = format!(
            "[server]\nbind_addr = \"{}\"\ndefault_token = \"bench\"\n{server_tls}\
             [server.services.web]\nbind_addr = \"{}\"\n",
            inner.addr(),
            entry.addr()
        );
        let client = format!(
            "[client]\nremote_addr = \"{}\"\ndefault_token = \"bench\"\n{client_tls}\
             [client.services.web]\nlocal_addr = \"{backend}\"\n",
            inner.addr()
        );
        let server = start(program, &dir, name, "server", &server)?;
        let mut client = start(program, &dir, name, "client", &client)?;
        client.wait_for("serving through the server", PATIENCE, || page(entry.addr()))?;
        Ok(Rathole { processes: vec![server, client], entry, _inner: inner })
    }

    /// Where visitors connect.
    pub fn addr(&self) -> SocketAddr {
        self.entry.addr()
    }

    /// The processes that do the work.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

fn start(program: &Path, dir: &Path, name: &str, side: &str, config: &str) -> anyhow::Result<Process> {
    let path = dir.join(format!("{side}.toml"));
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(program);
    command.arg(format!("--{side}")).arg(&path).env("RUST_LOG", "warn");
    Process::spawn(&format!("{name}-{side}"), command, &dir.join(format!("{side}.log")), Lifetime::Bound)
}

/// The settings of both sides for TLS; their files lie in `dir`.
fn tls(dir: &Path) -> anyhow::Result<(String, String)> {
    let (ca, certificate) = write_certificates(dir)?;
    let identity = dir.join("identity.pfx");
    let mut pack = Command::new("openssl");
    pack.args(["pkcs12", "-export", "-passout", &format!("pass:{PASSWORD}")]);
    pack.arg("-in").arg(&certificate).arg("-inkey").arg(&certificate).arg("-certfile").arg(&ca);
    let status = pack.arg("-out").arg(&identity).status().context("starting openssl")?;
    ensure!(status.success(), "openssl pkcs12: {status}");
    let (identity, ca) = (identity.display(), ca.display());
    Ok((
        format!(
            "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{identity}\"\n\
             pkcs12_password = \"{PASSWORD}\"\n"
        ),
        format!(
            "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{ca}\"\n\
             hostname = \"peer\"\n"
        ),
    ))
}
