//! [`Forwards`]: the slots of forwards, and the account of each: what it carried, how long it took and how it
//! ended, for metrics and for the access log.
//!
//! A [`Forward`] counts for itself alone; shared counts move when it is opened, each [`TELL_BYTES`], and at its end.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use p2p_common::link::PathKind;
use p2p_common::service::ServiceName;
use p2p_common::wire::tunnel::ProxyId;
use p2p_common::{ErrorCode, NodeId};
use p2p_peer_core::Source;
use slog::{Logger, info};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Protocol;
use super::metrics::{Answer, ForwardMetrics};
use super::names::Names;

/// A long forward shows in the metrics in steps of so many bytes.
const TELL_BYTES: u64 = 1 << 20;

/// Which forwards are logged at their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLog {
    /// Each one.
    All,
    /// Those that did not end in order.
    #[default]
    Failed,
    /// None.
    Off,
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(AccessLog::All),
            "failed" => Ok(AccessLog::Failed),
            "off" => Ok(AccessLog::Off),
            _ => Err(format!("'{text}' is none of all, failed and off")),
        }
    }
}

/// The part of this Peer in a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The client came here.
    Ingress,
    /// The service is here, or further on.
    Owner,
}

impl Role {
    pub(super) const ALL: [Role; 2] = [Role::Ingress, Role::Owner];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Role::Ingress => "ingress",
            Role::Owner => "owner",
        }
    }
}

/// How a forward ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions in order.
    Done,
    /// It was never opened.
    NotOpened(ErrorCode),
    /// The client broke it, or what it sent could not be carried.
    Client,
    /// The service broke it, or the way to it did, or what it sent could not be carried.
    Service,
    /// This Peer stopped.
    Stopped,
}

impl End {
    /// The kinds of ends, in metrics.
    pub(super) const OUTCOMES: [&'static str; 5] =
        ["done", "not_opened", "client_broke", "service_broke", "stopped"];

    /// Which of the kinds this is.
    pub(super) const fn outcome(self) -> usize {
        match self {
            End::Done => 0,
            End::NotOpened(_) => 1,
            End::Client => 2,
            End::Service => 3,
            End::Stopped => 4,
        }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            End::Done => "done",
            End::NotOpened(code) => code.as_str(),
            End::Client => "client_broke",
            End::Service => "service_broke",
            End::Stopped => "stopped",
        }
    }
}

/// The forwards in flight.
#[derive(Debug)]
pub(crate) struct Forwards {
    slots: Arc<Semaphore>,
    in_flight: Mutex<HashSet<u32>>,
    names: Names,
    /// How many forwards the backend of each own service carries.
    own: ArcSwap<BTreeMap<ServiceName, Arc<AtomicU64>>>,
    metrics: ForwardMetrics,
    access: AccessLog,
    log: Logger,
}

/// One forward in flight, until dropped.
#[derive(Debug)]
pub(crate) struct Forward {
    proxy_id: ProxyId,
    service: ServiceName,
    role: Role,
    /// The other Peer: the owner, or the ingress.
    peer: Option<NodeId>,
    path: Option<PathKind>,
    began: Instant,
    opened: Option<Instant>,
    end: End,
    /// Counts this forward at its backend.
    at_backend: Option<Arc<AtomicU64>>,
    bytes: Bytes,
    told: Bytes,
    forwards: Arc<Forwards>,
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    /// From the client to the service.
    into: u64,
    /// From the service to the client.
    out: u64,
}

impl Forwards {
    /// With `slots` slots.
    pub(crate) fn new(slots: usize, metrics: ForwardMetrics, access: AccessLog, log: Logger) -> Arc<Self> {
        Arc::new(Forwards {
            slots: Arc::new(Semaphore::new(slots)),
            in_flight: Mutex::default(),
            names: Names::new(rand::random()),
            own: ArcSwap::default(),
            metrics,
            access,
            log,
        })
    }

    /// Begins a forward as ingress, under a proxy_id no other one here has; `None` when all slots are taken.
    pub(crate) fn begin(self: &Arc<Self>, service: &ServiceName) -> Option<Forward> {
        let slot = self.slot()?;
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let proxy_id = loop {
            let candidate = self.names.next();
            if in_flight.insert(candidate.0) {
                break candidate;
            }
        };
        drop(in_flight);
        Some(self.forward(Role::Ingress, proxy_id, service.clone(), None, slot))
    }

    /// Begins a forward as owner, under the name its ingress gave it; `None` when all slots are taken.
    pub(crate) fn serve(
        self: &Arc<Self>,
        proxy_id: ProxyId,
        service: ServiceName,
        caller: NodeId,
    ) -> Option<Forward> {
        let slot = self.slot()?;
        Some(self.forward(Role::Owner, proxy_id, service, Some(caller), slot))
    }

    fn slot(self: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok();
        if slot.is_none() {
            self.metrics.refused_full.inc();
        }
        slot
    }

    fn forward(
        self: &Arc<Self>,
        role: Role,
        proxy_id: ProxyId,
        service: ServiceName,
        peer: Option<NodeId>,
        slot: OwnedSemaphorePermit,
    ) -> Forward {
        self.metrics.active.inc();
        self.metrics.pending.inc();
        self.metrics.total[role as usize].inc();
        Forward {
            proxy_id,
            service,
            role,
            peer,
            // Others come by the one path there is; where this Peer goes is known when it is there.
            path: peer.map(|_| PathKind::Direct),
            began: Instant::now(),
            opened: None,
            end: End::Stopped,
            at_backend: None,
            bytes: Bytes::default(),
            told: Bytes::default(),
            forwards: Arc::clone(self),
            _slot: slot,
        }
    }

    /// Counts a request of a client: for HTTP/1 each one, else a connection.
    pub(crate) fn count_request(&self, protocol: Protocol) {
        self.metrics.count_request(protocol);
    }

    /// Counts what a FORWARD was answered with.
    pub(super) fn count_answer(&self, answer: Answer) {
        self.metrics.count_answer(answer);
    }

    /// Counts a FORWARD that was refused here.
    pub(super) fn count_refusal(&self, code: ErrorCode) {
        self.metrics.count_refusal(code);
    }

    /// These are the own services: what their backends carry is counted by name. One task calls this.
    pub(crate) fn set_own<'a>(&self, names: impl Iterator<Item = &'a ServiceName>) {
        let before = self.own.load();
        let count = |name: &ServiceName| before.get(name).cloned().unwrap_or_default();
        self.own.store(Arc::new(names.map(|name| (name.clone(), count(name))).collect()));
    }

    /// How many forwards the backend of an own service carries now.
    pub(crate) fn active_of(&self, name: &str) -> u64 {
        self.own.load().get(name).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// In flight now, and begun since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let total = self.metrics.total.iter().map(|count| count.get()).sum();
        (u64::try_from(self.metrics.active.get()).unwrap_or(0), total)
    }
}

impl Forward {
    /// Its name.
    pub(crate) fn proxy_id(&self) -> ProxyId {
        self.proxy_id
    }

    /// What it is for.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Who carries it, and on which path; none for a backend of this Peer.
    pub(super) fn owner(&self) -> Option<(NodeId, PathKind)> {
        self.peer.zip(self.path)
    }

    /// Who answers it, once it is open.
    pub(crate) fn source(&self) -> Source {
        self.peer.map_or(Source::Local, Source::Peer)
    }

    /// When it began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The owner carries it, on this path; or none, for a backend of this Peer.
    pub(super) fn opened(&mut self, owner: Option<(NodeId, PathKind)>) {
        if let Some((owner, path)) = owner {
            self.path = Some(path);
            if self.role == Role::Ingress {
                self.peer = Some(owner);
            }
        } else {
            self.at_backend = self.forwards.own.load().get(&self.service).cloned();
        }
        if let Some(count) = &self.at_backend {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        self.opened = Some(now);
        self.forwards.metrics.pending.dec();
        self.forwards.metrics.opened(self.role, now - self.began);
    }

    /// How it ends; the last word before it is dropped counts.
    pub(crate) fn end(&mut self, end: End) {
        self.end = end;
    }

    /// Bytes of the client and of the service were carried.
    pub(crate) fn count(&mut self, bytes_in: u64, bytes_out: u64) {
        if self.bytes.out == 0 && bytes_out > 0 {
            self.forwards.metrics.answered(self.role, self.began.elapsed());
        }
        self.bytes.into += bytes_in;
        self.bytes.out += bytes_out;
        let (new_in, new_out) = (self.bytes.into - self.told.into, self.bytes.out - self.told.out);
        if new_in + new_out >= TELL_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (new_in, new_out) = (self.bytes.into - self.told.into, self.bytes.out - self.told.out);
        self.forwards.metrics.count_bytes(new_in, new_out);
        self.told = self.bytes;
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.tell();
        let forwards = &self.forwards;
        if self.role == Role::Ingress {
            forwards.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.proxy_id.0);
        }
        if let Some(count) = &self.at_backend {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        let duration = self.began.elapsed();
        forwards.metrics.active.dec();
        if self.opened.is_none() {
            forwards.metrics.pending.dec();
        }
        forwards.metrics.ended(self.role, self.end, duration);
        let logged = match forwards.access {
            AccessLog::All => true,
            AccessLog::Failed => self.end != End::Done,
            AccessLog::Off => false,
        };
        if logged {
            let open = self.opened.map_or(duration, |opened| opened - self.began);
            // A forward that found no owner has nobody at its other end.
            let no_owner = if self.opened.is_some() { "local" } else { "none" };
            let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            info!(forwards.log, "forward ended";
                "proxy_id" => %self.proxy_id,
                "service" => %self.service,
                "peer_id" => self.peer.map_or_else(|| no_owner.to_owned(), |id| id.to_string()),
                "path" => self.path.map_or(no_owner, PathKind::as_str),
                "role" => self.role.as_str(),
                "bytes_in" => self.bytes.into,
                "bytes_out" => self.bytes.out,
                "open_us" => micros(open),
                "duration_us" => micros(duration),
                "end" => self.end.as_str());
        }
    }
}
