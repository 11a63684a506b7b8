//! TCP as the product wants it: [`listen`], [`connect`], socket options, and the limit on open files.

mod holder;
mod slots;
mod source;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use p2p_common::addr::HostPort;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slog::{Logger, warn};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

pub use holder::PortHolder;
pub use slots::{Crowded, Slot, SlotLimits, Slots, VOUCHED_FOR, Voucher};
pub use source::Source;

/// Connections that wait to be accepted. A burst of reconnecting peers fits; the kernel caps it at its own
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// At most this many addresses of one DNS name are tried.
const ADDRESSES_MAX: usize = 8;
/// An idle connection is probed after this long, so that a silently vanished host is noticed within a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody has it.
    #[error("{addr} is in use{}: stop that process or choose another {setting}", by(.holder))]
    InUse {
        /// Which address.
        addr: SocketAddr,
        /// The setting it came from, as it is typed.
        setting: &'static str,
        /// Who has it, when this process may know.
        holder: Option<PortHolder>,
    },
    /// Low ports are for privileged processes.
    #[error(
        "not allowed to listen on {addr}: choose a port from 1024 up for {setting}, or give the process CAP_NET_BIND_SERVICE"
    )]
    NotAllowed {
        /// Which address.
        addr: SocketAddr,
        /// The setting it came from.
        setting: &'static str,
    },
    /// No interface has it.
    #[error(
        "cannot listen on {addr}: this host has no such address; choose another {setting}, 0.0.0.0 is every IPv4 address"
    )]
    NoSuchAddress {
        /// Which address.
        addr: SocketAddr,
        /// The setting it came from.
        setting: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {addr} ({setting}): {source}")]
    Io {
        /// Which address.
        addr: SocketAddr,
        /// The setting it came from.
        setting: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn by(holder: &Option<PortHolder>) -> String {
    holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
}

/// Listens on `addr`; `setting` names where it came from (`--listen`), for the error. An IPv6 wildcard takes
/// IPv4 as well. What it accepts is [`tune`]d already. Must be called inside a tokio runtime.
///
/// # Errors
/// When the port is taken, with its holder where that can be found, or the system refuses.
pub fn listen(addr: SocketAddr, setting: &'static str) -> Result<TcpListener, ListenError> {
    bind(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => {
            ListenError::InUse { addr, setting, holder: PortHolder::find(addr.port()) }
        }
        io::ErrorKind::PermissionDenied => ListenError::NotAllowed { addr, setting },
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress { addr, setting },
        _ => ListenError::Io { addr, setting, source },
    })
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restarted process waits for the last connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Accepted connections inherit them, which saves five calls for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Why nothing answers at an address.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("cannot resolve {to}: {source}")]
    Resolve {
        /// What was dialled.
        to: HostPort,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("{to} did not answer within {} ms", after.as_millis())]
    TimedOut {
        /// What was dialled.
        to: HostPort,
        /// How long it was given.
        after: Duration,
    },
    /// The connection was refused or failed.
    #[error("cannot connect to {to} ({addr}): {source}")]
    Failed {
        /// What was dialled.
        to: HostPort,
        /// The last of its addresses tried.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl DialError {
    /// Whether nobody listens there: its process is gone, though its host lives.
    pub fn is_refused(&self) -> bool {
        matches!(self, DialError::Failed { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// Connects to `to` within `timeout`, resolving a DNS name anew (SPEC C1) and trying its addresses one after
/// the other, each with its share of the time that is left. The stream is [`tune`]d.
///
/// # Errors
/// When no address takes the connection; the last failure is told.
pub async fn connect(to: &HostPort, timeout: Duration) -> Result<TcpStream, DialError> {
    connect_where(to, timeout, |_| Ok(())).await
}

/// Like [`connect`], but dials only addresses that `allowed` lets through: what a name resolves to is known here
/// first, and a name from elsewhere must not lead to an address that would not be dialled by itself.
///
/// # Errors
/// When no address takes the connection; the last failure is told. An address that is not allowed is a failure
/// with the reason given.
pub async fn connect_where(
    to: &HostPort,
    timeout: Duration,
    allowed: impl Fn(SocketAddr) -> Result<(), String>,
) -> Result<TcpStream, DialError> {
    let timed_out = || DialError::TimedOut { to: to.clone(), after: timeout };
    let deadline = tokio::time::Instant::now() + timeout;
    let addresses: Vec<SocketAddr> = match to.socket_addr() {
        Some(addr) => vec![addr],
        None => {
            let look_up = tokio::net::lookup_host((to.host(), to.port()));
            let found = tokio::time::timeout_at(deadline, look_up).await.map_err(|_| timed_out())?;
            let found = found.map_err(|source| DialError::Resolve { to: to.clone(), source })?;
            found.take(ADDRESSES_MAX).collect()
        }
    };
    let mut last = None;
    for (tried, addr) in addresses.iter().enumerate() {
        if let Err(why) = allowed(*addr) {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, why);
            last = Some(DialError::Failed { to: to.clone(), addr: *addr, source });
            continue;
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).expect("at most ADDRESSES_MAX");
        match tokio::time::timeout(share, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => {
                tune(&stream);
                return Ok(stream);
            }
            Ok(Err(source)) => last = Some(DialError::Failed { to: to.clone(), addr: *addr, source }),
            Err(_) => last = Some(timed_out()),
        }
    }
    Err(last.unwrap_or_else(|| DialError::Resolve {
        to: to.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    }))
}

/// Sets what every connection gets: no Nagle delay (with delayed acknowledgements it costs 40 ms a request),
/// and keepalive probes. A socket that refuses is one that is closing: its next use tells.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive());
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES)
}

/// Which congestion control a connection runs on, for status output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CongestionReport {
    /// What it runs on: `bbr`, `cubic`, ...; empty where the system does not say.
    pub in_use: String,
    /// Why it is not BBR.
    pub bbr_refused: Option<String>,
}

impl fmt::Display for CongestionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bbr_refused {
            None => f.write_str(&self.in_use),
            Some(why) => write!(f, "{} (bbr refused: {why})", self.in_use),
        }
    }
}

/// Asks for BBR, which keeps its rate on paths that lose packets; for tunnels and relay legs. Where the system
/// refuses, the connection goes on with what it has, and the report says so.
pub fn use_bbr(stream: &TcpStream) -> CongestionReport {
    let socket = SockRef::from(stream);
    let bbr_refused = socket.set_tcp_congestion(b"bbr").err().map(|e| e.to_string());
    let name = socket.tcp_congestion().unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    CongestionReport { in_use: String::from_utf8_lossy(name).into_owned(), bbr_refused }
}

/// When the system does not say how many files may be open.
const FILES_ASSUMED: u64 = 1_024;

/// Raises the soft limit on open files to the hard limit, a connection is a file and 1,024 are few, and says how many
/// files that are; without a limit, [`u64::MAX`]. Where the system refuses it is told, and the process goes on with
/// few.
pub fn raise_open_files(log: &Logger) -> u64 {
    let raised = || {
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        }
        io::Result::Ok(getrlimit(Resource::Nofile).current)
    };
    match raised() {
        Ok(files) => files.unwrap_or(u64::MAX),
        Err(error) => {
            warn!(log, "limit on open files not raised"; "error" => %error, "assumed" => FILES_ASSUMED);
            FILES_ASSUMED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";

    #[tokio::test]
    async fn a_taken_port_names_its_holder_and_the_setting() {
        let held = listen(LOOPBACK.parse().unwrap(), "--listen").unwrap();
        let addr = held.local_addr().unwrap();
        let refused = listen(addr, "--listen").unwrap_err().to_string();
        assert!(refused.contains(&addr.to_string()), "{refused}");
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("another --listen"), "{refused}");
    }

    #[tokio::test]
    async fn an_address_of_nobody_is_told() {
        let refused = listen("192.0.2.1:0".parse().unwrap(), "--ops").unwrap_err();
        assert!(matches!(refused, ListenError::NoSuchAddress { setting: "--ops", .. }), "{refused}");
    }

    #[tokio::test]
    async fn connects_and_tunes() {
        let listener = listen(LOOPBACK.parse().unwrap(), "--listen").unwrap();
        let to = HostPort::from(listener.local_addr().unwrap());
        let stream = connect(&to, Duration::from_secs(5)).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert!(SockRef::from(&stream).keepalive().unwrap());
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(accepted.nodelay().unwrap());
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        let report = use_bbr(&stream);
        assert!(!report.in_use.is_empty());
        assert_eq!(report.in_use == "bbr", report.bbr_refused.is_none(), "{report}");
    }

    #[tokio::test]
    async fn nobody_there_is_a_refusal() {
        let listener = listen(LOOPBACK.parse().unwrap(), "--listen").unwrap();
        let to = HostPort::from(listener.local_addr().unwrap());
        drop(listener);
        let refused = connect(&to, Duration::from_secs(5)).await.unwrap_err();
        assert!(refused.is_refused(), "{refused}");
    }

    #[tokio::test]
    async fn a_name_leads_to_allowed_addresses_only() {
        let listener = listen(LOOPBACK.parse().unwrap(), "--listen").unwrap();
        let to = HostPort::new("localhost", listener.local_addr().unwrap().port()).unwrap();
        let refused =
            connect_where(&to, Duration::from_secs(5), |_| Err("loopback".into())).await.unwrap_err();
        assert!(refused.to_string().contains("loopback"), "{refused}");
        assert!(!refused.is_refused());
        let dialled = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(dialled.is_err(), "an address that is not allowed was dialled");
        connect_where(&to, Duration::from_secs(5), |_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_told() {
        let to: HostPort = "nowhere.invalid:1".parse().unwrap();
        let refused = connect(&to, Duration::from_secs(5)).await.unwrap_err();
        assert!(!refused.is_refused());
        assert!(refused.to_string().contains("nowhere.invalid"), "{refused}");
    }

    #[test]
    fn open_files_end_at_the_hard_limit() {
        let files = raise_open_files(&Logger::root(slog::Discard, slog::o!()));
        assert_eq!(files, getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
    }
}
