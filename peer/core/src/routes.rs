//! `RouteTable` and `PeerServices`: where a service name leads, and what each Peer has.
//!
//! Both are derived in one step from the own services, the Peers online and their links, and are published
//! together as one immutable [`Tables`], so that no reader ever sees one without the other. Applying changes
//! one by one gives the same tables as building them anew; a test holds this.
//!
//! The tables answer the data path by themselves: [`Tables::resolve`] for a client's request,
//! [`Tables::may_forward`] for a FORWARD of another Peer. Owner: the agent; others read what it publishes.
//! Source: SPEC F3, F7, F8, F10, P6.

mod forward_to;
mod known;

pub use forward_to::{ForwardRefusal, ForwardTo};
pub use known::{KnownPeer, Reach};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use p2p_common::addr::HostPort;
use p2p_common::link::PathKind;
use p2p_common::service::{ServiceName, ServiceState, Visibility};
use p2p_common::{ErrorCode, KeyHash, NodeId, UnixMs};

use crate::connect::DialRule;
use crate::revoked::RevokedKeys;
use crate::services::OwnServices;

/// Who a service comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// This Peer.
    Local,
    /// Another Peer.
    Peer(NodeId),
}

impl Source {
    /// The other Peer; none for this one.
    pub const fn peer(self) -> Option<NodeId> {
        match self {
            Source::Local => None,
            Source::Peer(id) => Some(id),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Local => f.write_str("local"),
            Source::Peer(id) => fmt::Display::fmt(id, f),
        }
    }
}

/// How a Peer is linked, as far as routing cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum RouteLink {
    /// A tunnel is open.
    Up(PathKind),
    /// No tunnel is open; nothing speaks against one.
    #[default]
    Idle,
    /// The last dial failed, or the last tunnel broke.
    Failing,
}

impl RouteLink {
    /// The path in tables: its kind, or `none`.
    pub const fn as_str(self) -> &'static str {
        match self {
            RouteLink::Up(path) => path.as_str(),
            RouteLink::Idle | RouteLink::Failing => "none",
        }
    }
}

/// A row of `RouteTable`, keyed `name@source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The service.
    pub name: ServiceName,
    /// Who has it.
    pub source: Source,
    /// Where the source is reached; none for local services and Peers without an address.
    pub address: Option<HostPort>,
    /// Where the service runs. Dialled if local; of another Peer it is for people only.
    pub backend: HostPort,
    /// How the source is linked.
    pub link: RouteLink,
    /// When the source last said so; for local services, since when.
    pub last_seen: UnixMs,
    /// Whether a forward may be tried.
    pub connected: bool,
    /// Whether its owner says that it can be used now.
    pub state: ServiceState,
    /// The source does not own it, and carries forwards on to its owner.
    pub transit: bool,
    /// The source is in this Peer's zone.
    pub same_zone: bool,
}

impl Route {
    /// `name@source`.
    pub fn key(&self) -> String {
        format!("{}@{}", self.name, self.source)
    }
}

/// A row of `PeerServices`: all a Peer has, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerServiceList {
    /// Which Peer.
    pub peer: NodeId,
    /// Where it is reached.
    pub address: Option<HostPort>,
    /// Its services by name: where they run and who they come from.
    pub services: BTreeMap<ServiceName, PeerService>,
    /// When the list was last told.
    pub last_sync: UnixMs,
}

/// A service in [`PeerServiceList`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerService {
    /// Where it runs, for people.
    pub backend: HostPort,
    /// The Peer that registered it.
    pub source: NodeId,
}

/// Whether new work towards Peers learned from Servers is taken (SPEC P6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteWork {
    /// It is.
    Taken,
    /// It is not: no Server has been reachable for too long.
    Stopped,
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nobody has it.
    #[error("no service '{name}' is known here; `p2p-peer services` lists those that are")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Everybody who has it is offline or was tried.
    #[error("nobody who has the service '{name}' is connected")]
    Offline {
        /// The name.
        name: String,
    },
    /// It is down or drained wherever it is.
    #[error("the service '{name}' is down or draining; its owner's `p2p-peer services` says which")]
    Down {
        /// The name.
        name: String,
    },
    /// Somebody has it, but no Server says who is online.
    #[error("no Server is reachable, so nothing new goes to other Peers; `p2p-peer status` says why")]
    NoServer,
}

impl LookupError {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            LookupError::Unknown { .. } => ErrorCode::ServiceUnknown,
            LookupError::Offline { .. } => ErrorCode::OwnerOffline,
            LookupError::Down { .. } => ErrorCode::ServiceDown,
            LookupError::NoServer => ErrorCode::Unavailable,
        }
    }
}

/// The published pair, with the Peers it was derived from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    revision: u64,
    me: NodeId,
    zone: String,
    own: Arc<OwnServices>,
    remote: RemoteWork,
    /// Whether services of linked Peers are carried on for others.
    transit: bool,
    rule: Arc<DialRule>,
    revoked: Arc<RevokedKeys>,
    routes: BTreeMap<ServiceName, Vec<Route>>,
    routes_len: usize,
    peer_services: BTreeMap<NodeId, PeerServiceList>,
    peers: BTreeMap<NodeId, Arc<KnownPeer>>,
}

impl Tables {
    /// The tables of a Peer that knows no other.
    pub(crate) fn new(me: NodeId, zone: String, own: Arc<OwnServices>, unix: UnixMs) -> Self {
        let mut tables = Tables {
            revision: 0,
            me,
            zone,
            remote: RemoteWork::Taken,
            transit: false,
            rule: Arc::default(),
            revoked: Arc::default(),
            routes: BTreeMap::new(),
            routes_len: 0,
            peer_services: BTreeMap::new(),
            peers: BTreeMap::new(),
            own: Arc::default(),
        };
        tables.put_own(own, unix);
        tables
    }

    /// These tables of a Peer that carries services of linked Peers on for others, or does not.
    pub(crate) fn with_transit(mut self, transit: bool) -> Self {
        self.transit = transit;
        self
    }

    /// The own services are now these.
    pub(crate) fn set_own(&mut self, own: Arc<OwnServices>, unix: UnixMs) {
        self.revision += 1;
        self.put_own(own, unix);
    }

    /// Brings both tables in line with what is known of `peer`; none when it is offline. Says whether that
    /// changed anything.
    pub(crate) fn apply(&mut self, peer: NodeId, known: Option<KnownPeer>) -> bool {
        if self.peers.get(&peer).map(Arc::as_ref) == known.as_ref() {
            return false;
        }
        self.revision += 1;
        self.remove(peer);
        if let Some(known) = known {
            self.insert(peer, Arc::new(known));
        }
        true
    }

    /// Says whether new work towards other Peers is taken. Says whether that changed anything.
    pub(crate) fn set_remote(&mut self, remote: RemoteWork) -> bool {
        if self.remote == remote {
            return false;
        }
        self.revision += 1;
        self.remote = remote;
        for (peer, known) in self.peers.clone() {
            self.remove(peer);
            self.insert(peer, known);
        }
        true
    }

    /// What may be dialled from here on; the plans of the Peers follow by [`Tables::apply`].
    pub(crate) fn set_rule(&mut self, rule: DialRule) {
        self.revision += 1;
        self.rule = Arc::new(rule);
    }

    /// These keys open nothing any more.
    pub(crate) fn set_revoked(&mut self, revoked: Arc<RevokedKeys>) {
        self.revision += 1;
        self.revoked = revoked;
    }

    /// Whether nothing may be taken up with whoever shows this key (SPEC I7).
    pub fn is_revoked(&self, key_hash: &KeyHash) -> bool {
        self.revoked.contains_key(key_hash)
    }

    /// What may be dialled: to be asked for every address a candidate's name resolves to.
    pub fn dial_rule(&self) -> &Arc<DialRule> {
        &self.rule
    }

    /// Raised by every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whose tables these are.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// The own services.
    pub fn own(&self) -> &OwnServices {
        &self.own
    }

    /// Whether new work towards other Peers is taken.
    pub fn remote(&self) -> RemoteWork {
        self.remote
    }

    /// `RouteTable`: all rows, by name, local ones first.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().flatten()
    }

    /// How many rows `RouteTable` has.
    pub fn routes_len(&self) -> usize {
        self.routes_len
    }

    /// The row `name@source` of `RouteTable`.
    pub fn route(&self, name: &str, source: Source) -> Option<&Route> {
        self.routes.get(name)?.iter().find(|route| route.source == source)
    }

    /// `PeerServices`, by Id.
    pub fn peer_services(&self) -> &BTreeMap<NodeId, PeerServiceList> {
        &self.peer_services
    }

    /// The Peers online, by Id.
    pub fn peers(&self) -> &BTreeMap<NodeId, Arc<KnownPeer>> {
        &self.peers
    }

    /// The Peer `id`, while it is online: what a handshake with it is checked against and where it is dialled.
    pub fn peer(&self, id: NodeId) -> Option<&Arc<KnownPeer>> {
        self.peers.get(&id)
    }

    /// Where a request for `name` goes: local first, then connected Peers; among these links that do not fail
    /// first, then owners before those who carry on to one, then the own zone, then `pick`, any number, decides
    /// between equals. What is not up is passed over. Those in `tried`, this Peer perhaps, are left out, so that a
    /// request that was refused can go on to the next.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn resolve(&self, name: &str, pick: u64, tried: &[NodeId]) -> Result<&Route, LookupError> {
        let Some(routes) = self.routes.get(name) else {
            return Err(LookupError::Unknown { name: name.to_owned() });
        };
        let is_tried = |route: &Route| tried.contains(&route.source.peer().unwrap_or(self.me));
        let connected = || routes.iter().filter(|route| route.connected && !is_tried(route));
        let open = || connected().filter(|route| route.state == ServiceState::Up);
        if let Some(local) = open().next().filter(|route| route.source == Source::Local) {
            return Ok(local);
        }
        let rank = |route: &Route| (route.link == RouteLink::Failing, route.transit, !route.same_zone);
        let Some(best) = open().map(rank).min() else {
            let stopped = |route: &Route| {
                let Source::Peer(peer) = route.source else { return false };
                self.peers.get(&peer).is_some_and(|known| known.connected && !known.takes_work(self.remote))
            };
            return Err(if connected().next().is_some() {
                LookupError::Down { name: name.to_owned() }
            } else if routes.iter().any(stopped) {
                LookupError::NoServer
            } else {
                LookupError::Offline { name: name.to_owned() }
            });
        };
        let equals = open().filter(|route| rank(route) == best).count();
        let nth = usize::try_from(pick % equals as u64).unwrap_or(0);
        let picked = open().filter(|route| rank(route) == best).nth(nth);
        Ok(picked.expect("nth is below the number of equals"))
    }

    fn remove(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        let Some(list) = self.peer_services.remove(&peer) else { return };
        for name in list.services.keys() {
            let Some(routes) = self.routes.get_mut(name) else { continue };
            let before = routes.len();
            routes.retain(|route| route.source != Source::Peer(peer));
            self.routes_len -= before - routes.len();
            if routes.is_empty() {
                self.routes.remove(name);
            }
        }
    }

    fn insert(&mut self, peer: NodeId, known: Arc<KnownPeer>) {
        let mut services = BTreeMap::new();
        let own = known.entry.report.services.iter().map(|offer| (offer, peer));
        let transit = known.transit.iter().map(|service| (&service.offer, service.source));
        for (offer, source) in own.chain(transit) {
            if services.contains_key(&offer.name) {
                // A name twice from one Peer: the first counts, so that what it owns goes before what it carries.
                continue;
            }
            let service = PeerService { backend: offer.backend.clone(), source };
            services.insert(offer.name.clone(), service);
            let route = Route {
                name: offer.name.clone(),
                source: Source::Peer(peer),
                address: known.address.clone(),
                backend: offer.backend.clone(),
                link: known.link,
                last_seen: known.synced_at,
                connected: known.takes_work(self.remote),
                state: offer.state,
                transit: source != peer,
                same_zone: known.entry.report.zone == self.zone,
            };
            let routes = self.routes.entry(offer.name.clone()).or_default();
            let at = routes.partition_point(|other| other.source < route.source);
            routes.insert(at, route);
        }
        self.routes_len += services.len();
        let address = known.address.clone();
        let list = PeerServiceList { peer, address, services, last_sync: known.synced_at };
        self.peer_services.insert(peer, list);
        self.peers.insert(peer, known);
    }

    fn put_own(&mut self, own: Arc<OwnServices>, unix: UnixMs) {
        for (name, service) in own.iter() {
            let routes = self.routes.entry(name.clone()).or_default();
            let before = routes.first().filter(|route| route.source == Source::Local);
            let before = before.filter(|route| route.backend == service.backend);
            let route = Route {
                name: name.clone(),
                source: Source::Local,
                address: None,
                backend: service.backend.clone(),
                link: RouteLink::Idle,
                last_seen: before.map_or(unix, |before| before.last_seen),
                connected: true,
                state: service.state,
                transit: false,
                same_zone: true,
            };
            routes.retain(|other| other.source != Source::Local);
            routes.insert(0, route);
        }
        for name in self.own.iter().map(|(name, _)| name).filter(|name| own.get(name.as_str()).is_none()) {
            let Some(routes) = self.routes.get_mut(name) else { continue };
            routes.retain(|route| route.source != Source::Local);
            if routes.is_empty() {
                self.routes.remove(name);
            }
        }
        self.routes_len = self.routes_len + own.len() - self.own.len();
        self.own = own;
    }
}

/// Whether a Peer that carries on shows a service of this visibility to others: one that names its readers is
/// for these alone.
pub(crate) fn is_carried_on(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Linked | Visibility::Cluster)
}

#[cfg(test)]
mod tests;
