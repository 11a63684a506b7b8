//! An `sshd` with keys of its own, and the words a client needs to reach it; neither knows the user's keys.

use std::fs::{create_dir_all, read_to_string, write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::{find, typed};
use crate::cluster::{Lifetime, PATIENCE, PortLease, Process};

/// As root it locks itself up there before it knows who calls; Debian makes it when the service starts.
const EMPTY_DIR: &str = "/run/sshd";

/// A running sshd that lets the holder of one key be whoever we are.
#[derive(Debug)]
pub struct Sshd {
    port: PortLease,
    dir: PathBuf,
    _process: Process,
}

impl Sshd {
    /// Starts one with its files in `dir`; sshd, ssh and ssh-keygen are installed. `None`, with a word printed,
    /// where this user may not start one.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(dir: &Path) -> anyhow::Result<Option<Self>> {
        // SAFETY: getuid has no preconditions and cannot fail.
        let is_root = unsafe { libc::getuid() } == 0;
        if is_root && let Err(error) = create_dir_all(EMPTY_DIR) {
            eprintln!("skipped: sshd needs {EMPTY_DIR}: {error}");
            return Ok(None);
        }
        let keys = "for key in host mine; do ssh-keygen -q -t ed25519 -N '' -C '' -f $DIR/$key; done";
        typed(keys, &[("DIR", &dir.display())])?;
        let port = PortLease::take()?;
        let at = dir.display();
        let config = format!(
            "ListenAddress {}\nHostKey {at}/host\nAuthorizedKeysFile {at}/mine.pub\nPidFile none\n\
             AuthenticationMethods publickey\nPermitRootLogin prohibit-password\nUsePAM no\nStrictModes no\n",
            port.addr()
        );
        write(dir.join("sshd_config"), config)?;
        let host_key = read_to_string(dir.join("host.pub"))?;
        write(dir.join("known_hosts"), format!("ssh.example {host_key}"))?;
        let sshd = find("sshd").context("sshd is not installed")?;
        let mut command = Command::new(sshd);
        command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        let mut process = Process::spawn("sshd", command, &dir.join("sshd.log"), Lifetime::Bound)?;
        process.wait_for("listening", PATIENCE, || Ok(std::net::TcpStream::connect(port.addr())?))?;
        Ok(Some(Sshd { port, dir: dir.into(), _process: process }))
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// `ssh` and its options up to the host, for a client that comes in at `port`.
    pub fn client(&self, port: u16) -> String {
        let dir = self.dir.display();
        format!(
            "ssh -F none -p {port} -i {dir}/mine -o IdentitiesOnly=yes -o IdentityAgent=none \
             -o UserKnownHostsFile={dir}/known_hosts -o HostKeyAlias=ssh.example \
             -o StrictHostKeyChecking=yes -o BatchMode=yes 127.0.0.1"
        )
    }
}
