//! [`Ingress`]: accepts connections, decides who may say what, and gives each to whom it is for.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2p_common::{ErrorCode, NodeKind};
use p2p_runtime::tcp;
use p2p_runtime::tls::{Face, Prefixed, ServerTls};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use slog::{Logger, debug, warn};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::peek::{self, Caller};
use super::{http, tls};
use crate::forward::Forwarder;
use crate::forward::owner::Owner;
use crate::forward::splice::{Buffers, CopyBuffer};
use crate::published::Myself;
use crate::tunnel::{Pool, Tunnel};

/// After a failed accept (mostly: no file descriptor left) the loop rests, or it would spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// A Peer may learn of us before we learn of it: the same news reaches both, at different speeds.
const NEWS_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves the one port.
#[derive(Debug)]
pub(crate) struct Ingress {
    /// To services.
    pub(crate) forwarder: Forwarder,
    /// For other Peers.
    pub(crate) owner: Owner,
    /// Counts the tunnels of others.
    pub(crate) pool: Pool,
    /// For tunnels.
    pub(crate) tls: ServerTls,
    /// Who we are.
    pub(crate) myself: Arc<Myself>,
    /// For copying.
    pub(crate) buffers: Buffers,
    /// Whose clients are served.
    pub(crate) clients_allow: SourceRanges,
    /// How many.
    pub(crate) limits: IngressLimits,
    /// What is counted.
    pub(crate) metrics: IngressMetrics,
    /// Where to report.
    pub(crate) log: Logger,
}

/// Bounds of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IngressLimits {
    /// Connections at a time; further ones are closed at once.
    pub(crate) connections: usize,
    /// Handshakes of tunnels at a time; further ones wait.
    pub(crate) handshakes: usize,
}

/// Counts of the port.
#[derive(Debug, Clone, Default)]
pub(crate) struct IngressMetrics {
    opened: Family<KindLabel, Counter>,
    open: Gauge,
    closed: Family<ReasonLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl IngressMetrics {
    /// Shows the counts in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "connections_opened",
            "Connections to the listening port since the start, by what they turned out to be",
            self.opened.clone(),
        );
        registry.register(
            "connections_open",
            "Connections to the listening port open now",
            self.open.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed before any forward, by reason",
            self.closed.clone(),
        );
    }

    fn opened(&self, kind: &'static str) {
        self.opened.get_or_create(&KindLabel { kind }).inc();
    }

    fn refused(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabel { reason }).inc();
    }
}

impl Ingress {
    /// Accepts until `stop`; then waits at most `grace` for what is in flight.
    pub(crate) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        grace: Duration,
    ) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes));
        let connections = TaskTracker::new();
        // Ends what is between two forwards when the port closes, and everything after the grace.
        let abort = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                // The client was faster to leave than we to accept.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    warn!(self.log, "cannot accept connections"; "error" => %e);
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                self.metrics.refused("limit");
                continue;
            };
            let (this, stop, abort) = (Arc::clone(&self), stop.clone(), abort.clone());
            let handshakes = Arc::clone(&handshakes);
            connections.spawn(async move {
                this.metrics.open.inc();
                tokio::select! {
                    () = this.serve(stream, remote, &handshakes, &stop) => {}
                    () = abort.cancelled() => {}
                }
                this.metrics.open.dec();
                drop(slot);
            });
        }
        drop(listener);
        connections.close();
        if tokio::time::timeout(grace, connections.wait()).await.is_err() {
            abort.cancel();
            connections.wait().await;
        }
    }

    async fn serve(
        self: &Arc<Self>,
        mut stream: TcpStream,
        remote: SocketAddr,
        handshakes: &Semaphore,
        stop: &CancellationToken,
    ) {
        tcp::tune(&stream);
        let mut first = self.buffers.get();
        let caller = match peek::caller(&mut stream, &mut first).await {
            Ok(caller) => caller,
            Err(why) => {
                debug!(self.log, "connection closed"; "remote" => %remote, "error" => %why);
                return self.metrics.refused(why.reason());
            }
        };
        // Before a byte of a client is acted on; who a Peer is says its certificate, not its address.
        if !matches!(caller, Caller::Tunnel) && !self.clients_allow.contains(remote.ip()) {
            debug!(self.log, "client not allowed"; "remote" => %remote);
            return self.metrics.refused("not_allowed");
        }
        match caller {
            Caller::Tunnel => {
                self.metrics.opened("tunnel");
                Box::pin(self.tunnel(stream, first, remote, handshakes, stop)).await;
            }
            Caller::Tls(service) => {
                self.metrics.opened("tls");
                Box::pin(tls::serve(stream, first, service, Arc::clone(self))).await;
            }
            Caller::Http => {
                self.metrics.opened("http");
                Box::pin(http::serve(stream, first, Arc::clone(self), stop)).await;
            }
        }
    }

    /// Another Peer: handshake, hellos, then its forwards.
    async fn tunnel(
        &self,
        stream: TcpStream,
        first: CopyBuffer,
        remote: SocketAddr,
        handshakes: &Semaphore,
        stop: &CancellationToken,
    ) {
        let slot = handshakes.acquire().await.expect("the semaphore is never closed");
        tcp::use_bbr(&stream);
        let replayed = Prefixed::new(Bytes::copy_from_slice(first.unread()), stream);
        drop(first);
        let accepted = match self.tls.accept(replayed).await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(self.log, "tunnel handshake failed"; "remote" => %remote, "error" => %error);
                return self.metrics.refused(error.reason());
            }
        };
        drop(slot);
        let Face::Tunnel(identity) = accepted.face else { return self.metrics.refused("face") };
        let id = identity.node_id;
        let deadline = Instant::now() + NEWS_TIMEOUT;
        let link = match identity.kind() {
            NodeKind::Peer => self.pool.accept(id, identity.key_hash, remote.into(), deadline).await,
            NodeKind::Server => return self.metrics.refused("role"),
        };
        let counters = link.as_ref().map(|link| link.counters()).unwrap_or_default();
        let (mut tunnel, hello) = match Tunnel::hear(accepted.stream, counters).await {
            Ok(heard) => heard,
            Err(error) => {
                debug!(self.log, "tunnel without hello"; "peer_id" => id, "error" => %error);
                return self.metrics.refused("hello");
            }
        };
        let fits = hello.check(&self.myself.expected(id)).map_err(|e| (e.code(), e.to_string()));
        let fits = fits.and_then(|_version| link.map_err(|e| (e.code(), e.to_string())));
        let link = match fits {
            Ok(link) => link,
            Err((code, text)) => {
                debug!(self.log, "tunnel turned away"; "peer_id" => id, "remote" => %remote,
                    "code" => code.as_str(), "error" => &text);
                self.metrics.refused(ErrorCode::as_str(code));
                return tunnel.turn_away(code, text).await;
            }
        };
        let served = match tunnel.welcome(&self.myself.hello(Some(id))).await {
            Ok(()) => self.owner.serve(tunnel, id, stop).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            debug!(self.log, "tunnel ended"; "peer_id" => id, "error" => %error);
        }
        drop(link);
    }
}

/// Ranges of source addresses, as `10.0.0.0/8`, `fd00::/8` or a single address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRanges(Vec<(IpAddr, u8)>);

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no range of addresses: expected an IP address or one with its prefix length, as 10.0.0.0/8"
)]
pub struct BadRange(String);

impl SourceRanges {
    /// This host alone.
    pub fn loopback() -> Self {
        SourceRanges(vec![(Ipv4Addr::new(127, 0, 0, 0).into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)])
    }

    /// From texts.
    ///
    /// # Errors
    /// With the first that is no range.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BadRange> {
        texts.into_iter().map(parse_range).collect::<Result<_, _>>().map(SourceRanges)
    }

    /// Whether `ip` lies in one of them; an IPv4 address written as IPv6 counts as what it is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|(range, bits)| match (range, ip) {
            (IpAddr::V4(range), IpAddr::V4(ip)) => {
                same_prefix(range.to_bits().into(), ip.to_bits().into(), *bits, 32)
            }
            (IpAddr::V6(range), IpAddr::V6(ip)) => same_prefix(range.to_bits(), ip.to_bits(), *bits, 128),
            _ => false,
        })
    }
}

impl fmt::Display for SourceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect();
        f.write_str(&texts.join(","))
    }
}

fn parse_range(text: &str) -> Result<(IpAddr, u8), BadRange> {
    let bad = || BadRange(text.chars().take(64).collect());
    let (ip, bits) = match text.trim().split_once('/') {
        Some((ip, bits)) => (ip, Some(bits)),
        None => (text.trim(), None),
    };
    let ip = IpAddr::from_str(ip).map_err(|_| bad())?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), |bits| bits.parse::<u8>().map_err(|_| bad()))?;
    if bits > most { Err(bad()) } else { Ok((ip, bits)) }
}

fn same_prefix(a: u128, b: u128, bits: u8, width: u32) -> bool {
    let ignored = width - u32::from(bits);
    ignored >= 128 || (a ^ b) >> ignored == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say() {
        let ranges = SourceRanges::parse(["10.0.0.0/8", "192.0.2.7", "fd00::/8"]).unwrap();
        for (ip, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.1.1.1", true),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(ranges.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        let all = SourceRanges::parse(["0.0.0.0/0", "::/0"]).unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()) && all.contains("2001:db8::1".parse().unwrap()));
        let loopback = SourceRanges::loopback();
        assert!(loopback.contains("127.9.9.9".parse().unwrap()) && loopback.contains("::1".parse().unwrap()));
        assert!(!loopback.contains("10.0.0.1".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "localhost"] {
            assert!(SourceRanges::parse([bad]).is_err(), "{bad:?}");
        }
    }
}
