//! Forwards: one client connection carried to one service, named by a proxy_id (SPEC F7).
//!
//! [`Forwarder`] opens the way to a service for the ingress ([`open`], [`ask`]) and carries connections that need no
//! framing ([`carry`]), [`owner`] answers the FORWARDs of other Peers and dials only backends this Peer
//! registered itself, [`splice`] copies the bytes. How a connection ends is in [`ending`].
//!
//! Each forward, here or for others, takes a slot of [`Forwards`]; when none is free it is refused at once.

mod ask;
mod backend;
pub(crate) mod carry;
pub(crate) mod ending;
pub(crate) mod open;
pub(crate) mod owner;
mod recent;
pub(crate) mod splice;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use p2p_common::wire::tunnel::ProxyId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use carry::RawCall;
pub(crate) use open::{Forwarder, Opened};
pub(crate) use recent::Recents;

/// How a client asked for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1, by Host.
    Http,
    /// HTTP/2 without TLS, by the first :authority.
    H2c,
    /// TLS, by SNI.
    Tls,
    /// HTTP CONNECT.
    Connect,
    /// SOCKS5.
    Socks,
    /// A port bound to the service.
    Bound,
}

impl Protocol {
    const ALL: [Protocol; 6] =
        [Protocol::Http, Protocol::H2c, Protocol::Tls, Protocol::Connect, Protocol::Socks, Protocol::Bound];

    /// The name in metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::H2c => "h2c",
            Protocol::Tls => "tls",
            Protocol::Connect => "connect",
            Protocol::Socks => "socks",
            Protocol::Bound => "bound",
        }
    }
}

/// The forwards in flight.
#[derive(Debug)]
pub(crate) struct Forwards {
    slots: Arc<Semaphore>,
    in_flight: Mutex<HashSet<u32>>,
    names: Names,
    metrics: ForwardMetrics,
}

/// Counts of forwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct ForwardMetrics {
    active: Gauge,
    total: Counter,
    failed: Counter,
    refused_full: Counter,
    requests: Requests,
}

/// Requests by protocol, counted without looking the label up.
#[derive(Debug, Clone)]
struct Requests {
    family: Family<ProtocolLabel, Counter>,
    /// In the order of [`Protocol::ALL`].
    counters: [Counter; Protocol::ALL.len()],
}

impl Default for Requests {
    fn default() -> Self {
        let family = Family::<ProtocolLabel, Counter>::default();
        let counters =
            Protocol::ALL.map(|p| family.get_or_create_owned(&ProtocolLabel { protocol: p.as_str() }));
        Requests { family, counters }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: &'static str,
}

impl ForwardMetrics {
    /// Shows the counts in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "forwards_active",
            "Forwards in flight, as ingress and as owner",
            self.active.clone(),
        );
        registry.register(
            "forwards",
            "Forwards begun since the start; pairs with forwards_failed",
            self.total.clone(),
        );
        registry.register(
            "forwards_failed",
            "Forwards that were refused, could not be opened or broke before their end",
            self.failed.clone(),
        );
        registry.register(
            "forwards_over_limit",
            "Forwards refused because all slots were taken",
            self.refused_full.clone(),
        );
        registry.register(
            "requests",
            "Requests of clients by how they asked: HTTP/1 requests one by one, else connections",
            self.requests.family.clone(),
        );
    }
}

/// One forward in flight, until dropped.
#[derive(Debug)]
pub(crate) struct Forward {
    proxy_id: ProxyId,
    /// Owners carry forwards that others named.
    named_here: bool,
    forwards: Arc<Forwards>,
    _slot: OwnedSemaphorePermit,
}

impl Forwards {
    /// With `slots` slots.
    pub(crate) fn new(slots: usize, metrics: ForwardMetrics) -> Arc<Self> {
        Arc::new(Forwards {
            slots: Arc::new(Semaphore::new(slots)),
            in_flight: Mutex::default(),
            names: Names::new(rand::random()),
            metrics,
        })
    }

    /// Begins a forward as ingress, under a proxy_id no other one here has; `None` when all slots are taken.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Forward> {
        let slot = self.slot()?;
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let proxy_id = loop {
            let candidate = self.names.next();
            if in_flight.insert(candidate.0) {
                break candidate;
            }
        };
        drop(in_flight);
        Some(Forward { proxy_id, named_here: true, forwards: Arc::clone(self), _slot: slot })
    }

    /// Begins a forward as owner, under the name its ingress gave it; `None` when all slots are taken.
    pub(crate) fn serve(self: &Arc<Self>, proxy_id: ProxyId) -> Option<Forward> {
        let slot = self.slot()?;
        Some(Forward { proxy_id, named_here: false, forwards: Arc::clone(self), _slot: slot })
    }

    fn slot(self: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => {
                self.metrics.active.inc();
                self.metrics.total.inc();
                Some(slot)
            }
            Err(_) => {
                self.metrics.refused_full.inc();
                None
            }
        }
    }

    /// Counts a request of a client: for HTTP/1 each one, else a connection.
    pub(crate) fn count_request(&self, protocol: Protocol) {
        self.metrics.requests.counters[protocol as usize].inc();
    }

    /// Counts a forward that did not come to its proper end.
    pub(crate) fn count_failed(&self) {
        self.metrics.failed.inc();
    }

    /// In flight now, and begun since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (u64::try_from(self.metrics.active.get()).unwrap_or(0), self.metrics.total.get())
    }
}

impl Forward {
    /// Its name.
    pub(crate) fn proxy_id(&self) -> ProxyId {
        self.proxy_id
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if self.named_here {
            self.forwards.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.proxy_id.0);
        }
        self.forwards.metrics.active.dec();
    }
}

/// Names for forwards: each 32-bit number once, in an order that differs from run to run. Drawn at random they
/// would repeat sooner: of two million, which an owner may remember of two minutes, one in two thousand.
#[derive(Debug)]
struct Names {
    key: u32,
    drawn: AtomicU32,
}

impl Names {
    fn new(key: u32) -> Self {
        Names { key, drawn: AtomicU32::new(0) }
    }

    fn next(&self) -> ProxyId {
        loop {
            // The finaliser of MurmurHash3, by Austin Appleby: one to one, and no two neighbours look alike.
            let mut name = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(self.key);
            name = (name ^ name >> 16).wrapping_mul(0x85eb_ca6b);
            name = (name ^ name >> 13).wrapping_mul(0xc2b2_ae35);
            name ^= name >> 16;
            if name != NO_FORWARD {
                return ProxyId(name);
            }
        }
    }
}

/// A REFUSE of a hello carries it.
const NO_FORWARD: u32 = 0;

/// A random name for what never becomes a forward.
pub(crate) fn new_proxy_id() -> ProxyId {
    ProxyId(rand::random_range(NO_FORWARD + 1..=u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_repeat() {
        for key in [0, 1, u32::MAX] {
            let names = Names::new(key);
            let drawn: HashSet<u32> = (0..200_000).map(|_| names.next().0).collect();
            assert_eq!(drawn.len(), 200_000);
            assert!(!drawn.contains(&NO_FORWARD));
        }
        assert_ne!(Names::new(1).next(), Names::new(2).next());
    }
}
