//! haproxy, rathole and nginx as we run them: their own files in a directory of ours, loopback only, in the
//! foreground.

mod rathole;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::cluster::{Lifetime, PATIENCE, PortLease, Process};
use crate::http;

pub use rathole::{Rathole, RatholeTransport};

/// One or two haproxy processes in front of a backend.
#[derive(Debug)]
pub struct Haproxy {
    processes: Vec<Process>,
    entry: PortLease,
    /// Held while the second process serves it.
    _inner: Option<PortLease>,
}

impl Haproxy {
    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.entry.addr()
    }

    /// The processes that do the work.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }
}

/// nginx serving files of known length, as one process, so that no worker outlives a killed master.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    port: PortLease,
}

/// Settings that favour haproxy: connections to servers are kept and shared, and the cheaper cipher is used.
const HAPROXY_BASE: &str = "\
global
  maxconn 4000
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  http-reuse always
";

/// client -> haproxy -> backend, nothing encrypted.
pub fn haproxy_plain(program: &Path, dir: &Path, backend: SocketAddr) -> anyhow::Result<Haproxy> {
    let entry = PortLease::take()?;
    let config = format!(
        "{HAPROXY_BASE}frontend in\n  bind {}\n  default_backend out\nbackend out\n  server b {backend}\n",
        entry.addr()
    );
    let mut process = start_haproxy(program, dir, "haproxy-plain", &config)?;
    process.wait_for("serving", PATIENCE, || page(entry.addr()))?;
    Ok(Haproxy { processes: vec![process], entry, _inner: None })
}

/// client -> haproxy -> mutual TLS 1.3 -> haproxy -> backend.
pub fn haproxy_chain(program: &Path, dir: &Path, backend: SocketAddr) -> anyhow::Result<Haproxy> {
    let (entry, inner) = (PortLease::take()?, PortLease::take()?);
    let (ca, certificate) = write_certificates(dir)?;
    let (ca, certificate) = (ca.display(), certificate.display());
    let far = format!(
        "{HAPROXY_BASE}frontend in\n  bind {} ssl crt {certificate} ca-file {ca} verify required \
         ssl-min-ver TLSv1.3\n  default_backend out\nbackend out\n  server b {backend}\n",
        inner.addr()
    );
    let near = format!(
        "{HAPROXY_BASE}frontend in\n  bind {}\n  default_backend out\nbackend out\n  server far {} ssl \
         crt {certificate} ca-file {ca} verify required verifyhost peer ssl-min-ver TLSv1.3\n",
        entry.addr(),
        inner.addr()
    );
    let far = start_haproxy(program, dir, "haproxy-far", &far)?;
    let mut near = start_haproxy(program, dir, "haproxy-near", &near)?;
    near.wait_for("serving through the far one", PATIENCE, || page(entry.addr()))?;
    Ok(Haproxy { processes: vec![far, near], entry, _inner: Some(inner) })
}

impl Nginx {
    /// Serves the files of `root`.
    pub fn start(program: &Path, dir: &Path, root: &Path) -> anyhow::Result<Self> {
        let port = PortLease::take()?;
        // SAFETY: geteuid has no preconditions and cannot fail.
        let user = if unsafe { libc::geteuid() } == 0 { "user root;" } else { "" };
        let (addr, root, at) = (port.addr(), root.display(), dir.display());
        let config = format!(
            "{user} daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.error;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000;\n\
             client_body_temp_path {at}/n1; proxy_temp_path {at}/n2; fastcgi_temp_path {at}/n3;\n\
             uwsgi_temp_path {at}/n4; scgi_temp_path {at}/n5; open_file_cache max=100;\n\
             server {{ listen {addr} backlog=4096; root {root}; }} }}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config)?;
        let mut command = Command::new(program);
        command.arg("-p").arg(dir).arg("-e").arg(dir.join("nginx.error")).arg("-c").arg(&path);
        let mut process = Process::spawn("nginx", command, &dir.join("nginx.log"), Lifetime::Bound)?;
        process.wait_for("serving", PATIENCE, || page(addr))?;
        Ok(Nginx { _process: process, port })
    }

    /// Where it serves.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }
}

fn start_haproxy(program: &Path, dir: &Path, name: &str, config: &str) -> anyhow::Result<Process> {
    let path = dir.join(format!("{name}.cfg"));
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(program);
    // -db: stay in the foreground, one process.
    command.arg("-db").arg("-f").arg(&path);
    Process::spawn(name, command, &dir.join(format!("{name}.log")), Lifetime::Bound)
}

/// A page comes with 200: a proxy in front of nothing answers too, but not that.
fn page(addr: SocketAddr) -> anyhow::Result<()> {
    let answer = http::get(addr, "web.example", "/")?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(())
}

/// A CA and one certificate with its key for both ends, as PEM files. P-256, since OpenSSL does not read the
/// Ed25519 keys that rcgen writes; connections between the two are kept, so handshakes weigh nothing.
pub(super) fn write_certificates(dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut ca_params = CertificateParams::new(Vec::new())?;
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let issuer = Issuer::new(ca_params, &ca_key);
    let mut params = CertificateParams::new(vec!["peer".into(), "127.0.0.1".into()])?;
    // A certificate named like its issuer counts as self-signed.
    params.distinguished_name.push(DnType::CommonName, "peer");
    let certificate = params.signed_by(&key, &issuer)?;
    let (ca_path, path) = (dir.join("bench-ca.pem"), dir.join("bench-node.pem"));
    std::fs::write(&ca_path, ca.pem())?;
    std::fs::write(&path, certificate.pem() + &key.serialize_pem())?;
    Ok((ca_path, path))
}
