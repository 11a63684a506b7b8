//! Ports bound to one service each, for clients whose protocol names none: Redis, PostgreSQL, SSH (SPEC F5).
//!
//! No byte of the client is looked at or waited for, so that a service may speak first. The service need not be
//! known when its port is bound; until it is, clients see their connection closed.
//!
//! [`BoundPorts`] owns the table of them. One that is removed closes its listener; what is carried goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p2p_common::service::{BadServiceName, ServiceName};
use p2p_runtime::tcp::{self, ListenError};
use slog::info;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::listener::{Ingress, Port};
use crate::forward::splice::CopyBuffer;
use crate::forward::{Protocol, RawCall, ending};

/// At most this many ports are bound.
pub(crate) const BINDS_MAX: usize = 256;

/// A port to bind: `ADDR=NAME`. A bare port is one of 127.0.0.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where to listen; port 0 takes any.
    pub addr: SocketAddr,
    /// For whom.
    pub service: ServiceName,
}

/// Why a text is no [`Bind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBind {
    /// There is no `=`.
    #[error("'{0}' binds nothing: expected ADDR=NAME, for example 127.0.0.1:6379=redis.example")]
    Form(String),
    /// What is before it is no address.
    #[error("'{0}' is no address to listen on: expected IP:PORT or a port of 127.0.0.1")]
    Address(String),
    /// What is behind it is no name.
    #[error(transparent)]
    Name(#[from] BadServiceName),
}

impl FromStr for Bind {
    type Err = BadBind;

    fn from_str(text: &str) -> Result<Self, BadBind> {
        let (addr, name) = text.split_once('=').ok_or_else(|| BadBind::Form(short(text)))?;
        Ok(Bind { addr: bind_addr(addr)?, service: name.trim().parse()? })
    }
}

/// The address of a bound port: `IP:PORT`, or a port of 127.0.0.1.
pub(crate) fn bind_addr(text: &str) -> Result<SocketAddr, BadBind> {
    let text = text.trim();
    let port = text.parse::<u16>().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    port.or_else(|_| text.parse()).map_err(|_| BadBind::Address(short(text)))
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.addr, self.service)
    }
}

/// Why a port is not bound, or not unbound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// It cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It is bound already.
    #[error("{addr} is bound to {service} already: remove that first")]
    Bound {
        /// Which port.
        addr: SocketAddr,
        /// To what.
        service: ServiceName,
    },
    /// There are too many.
    #[error("{BINDS_MAX} ports are bound already, which is the most: remove one first")]
    Full,
    /// Nothing is bound there.
    #[error("no port is bound at {0}; `p2p-peer bind list` shows those that are")]
    NotBound(SocketAddr),
    /// The Peer is stopping.
    #[error("this peer is stopping")]
    Stopping,
}

/// A port that is bound.
#[derive(Debug)]
pub(crate) struct BoundPort {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// For whom.
    pub(crate) service: ServiceName,
    active: AtomicU64,
    total: AtomicU64,
}

impl BoundPort {
    /// Connections open now, and since it was bound.
    pub(crate) fn connections(&self) -> (u64, u64) {
        (self.active.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// The bound ports of a Peer. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct BoundPorts {
    ingress: Arc<Ingress>,
    stop: CancellationToken,
    table: Arc<Mutex<BTreeMap<SocketAddr, Listening>>>,
}

#[derive(Debug)]
struct Listening {
    port: Arc<BoundPort>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Listens for all `binds`, or for none.
///
/// # Errors
/// With the first that cannot be had.
pub(crate) fn listen_all(binds: &[Bind]) -> Result<Vec<(TcpListener, ServiceName)>, ListenError> {
    binds.iter().map(|bind| Ok((tcp::listen(bind.addr, "--bind")?, bind.service.clone()))).collect()
}

impl BoundPorts {
    /// With those of the start; all of them close with `stop`.
    ///
    /// # Errors
    /// When the system does not say where one listens.
    pub(crate) fn new(
        ingress: Arc<Ingress>,
        listeners: Vec<(TcpListener, ServiceName)>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let ports = BoundPorts { ingress, stop, table: Arc::default() };
        for (listener, service) in listeners {
            let addr = listener.local_addr()?;
            ports.serve(&mut ports.table(), listener, addr, service);
        }
        Ok(ports)
    }

    /// Binds a port. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be had; who has it is told where that can be found.
    pub(crate) fn add(&self, bind: Bind) -> Result<Arc<BoundPort>, BindError> {
        let mut table = self.table();
        if self.stop.is_cancelled() {
            return Err(BindError::Stopping);
        }
        if let Some(taken) = table.get(&bind.addr) {
            return Err(BindError::Bound { addr: bind.addr, service: taken.port.service.clone() });
        }
        if table.len() >= BINDS_MAX {
            return Err(BindError::Full);
        }
        let listener = tcp::listen(bind.addr, "address")?;
        let addr = listener.local_addr().unwrap_or(bind.addr);
        info!(self.ingress.log, "port bound"; "listen" => %addr, "service" => %bind.service);
        Ok(self.serve(&mut table, listener, addr, bind.service))
    }

    /// Closes a port; returns when it is free.
    ///
    /// # Errors
    /// When it is not bound.
    pub(crate) async fn remove(&self, addr: SocketAddr) -> Result<Arc<BoundPort>, BindError> {
        let listening = self.table().remove(&addr).ok_or(BindError::NotBound(addr))?;
        listening.stop.cancel();
        // A task that failed has let go of the port as well.
        let _ = listening.task.await;
        info!(self.ingress.log, "port unbound"; "listen" => %addr, "service" => %listening.port.service);
        Ok(listening.port)
    }

    /// All of them, by address.
    pub(crate) fn list(&self) -> Vec<Arc<BoundPort>> {
        self.table().values().map(|listening| Arc::clone(&listening.port)).collect()
    }

    fn serve(
        &self,
        table: &mut BTreeMap<SocketAddr, Listening>,
        listener: TcpListener,
        addr: SocketAddr,
        service: ServiceName,
    ) -> Arc<BoundPort> {
        let (active, total) = (AtomicU64::new(0), AtomicU64::new(0));
        let port = Arc::new(BoundPort { addr, service, active, total });
        let stop = self.stop.child_token();
        let (ingress, what, until) =
            (Arc::clone(&self.ingress), Port::Bound(Arc::clone(&port)), stop.clone());
        let task = self.ingress.connections.tasks().spawn(async move {
            ingress.accept(listener, what, until).await;
        });
        table.insert(addr, Listening { port: Arc::clone(&port), stop, task });
        port
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Listening>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one client of a bound port; `first` holds what came with its PROXY header, mostly nothing.
pub(super) async fn serve(mut client: TcpStream, first: CopyBuffer, port: &BoundPort, ingress: &Ingress) {
    let _counted = Counted::new(port);
    let call = RawCall { service: &port.service, protocol: Protocol::Bound, first, greeting: &[] };
    if ingress.forwarder.carry(&mut client, call).await.is_err() {
        ending::close_lingering(&mut client).await;
    }
}

/// A connection of a bound port, until dropped.
struct Counted<'a>(&'a BoundPort);

impl<'a> Counted<'a> {
    fn new(port: &'a BoundPort) -> Self {
        port.active.fetch_add(1, Ordering::Relaxed);
        port.total.fetch_add(1, Ordering::Relaxed);
        Counted(port)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_address_and_name() {
        for (text, expected) in [
            ("127.0.0.1:6379=Redis.Example.", "127.0.0.1:6379=redis.example"),
            ("6379=redis", "127.0.0.1:6379=redis"),
            (" [::1]:22 = ssh ", "[::1]:22=ssh"),
            ("0.0.0.0:0=x", "0.0.0.0:0=x"),
        ] {
            assert_eq!(text.parse::<Bind>().unwrap().to_string(), expected);
        }
        for bad in ["", "6379", "=x", "6379=", "65536=x", "localhost:1=x", "127.0.0.1=x", "1=a b", ":1=x"] {
            assert!(bad.parse::<Bind>().is_err(), "{bad:?}");
        }
    }
}
