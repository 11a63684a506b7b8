//! One Server and its Peers in virtual time, without wires.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{IdentityRecord, Revocation};
use p2p_common::grants::Grants;
use p2p_common::link::LinkRow;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::revision::{Push, View};
use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
use p2p_common::{ClusterId, Epoch, ErrorCode, Incarnation, KeyHash, NodeId, NodeKind, Now, UnixMs};
use p2p_server_core::{
    Arrival, Down, HEARTBEAT, Hub, HubConfig, NewlyWithheld, Output, OwnGrants, SessionId, SessionRefused,
    TICK, Viewer, visible_entry,
};
use uuid::Uuid;

pub type TestView = View<NodeId, Arc<PeerEntry>>;

/// The `n`th Peer.
pub fn peer(n: u128) -> NodeId {
    NodeId::new(NodeKind::Peer, Uuid::from_u128(n))
}

pub fn offer(name: &str, visibility: Visibility) -> ServiceOffer {
    ServiceOffer {
        name: name.parse().unwrap(),
        backend: "127.0.0.1:80".parse().unwrap(),
        visibility,
        state: ServiceState::Up,
    }
}

pub fn link(reason: &str) -> LinkRow {
    LinkRow {
        id: peer(99),
        path: None,
        address: String::new(),
        rtt_us: None,
        bytes_in: 0,
        bytes_out: 0,
        since: UnixMs(0),
        tunnels: 0,
        reason: reason.to_owned(),
    }
}

fn run(n: u128) -> Incarnation {
    Incarnation::new(Uuid::from_u128(n))
}

fn key(n: u128) -> KeyHash {
    KeyHash([n as u8; 32])
}

/// What a Peer got over all its sessions.
#[derive(Debug, Default)]
pub struct Seen {
    pub pushes: usize,
    pub snapshots: usize,
    pub heartbeats: usize,
    pub members_messages: usize,
    pub members_version: Option<u64>,
    pub grants: Vec<OwnGrants>,
    pub trust_versions: Vec<u64>,
    pub ended: Option<ErrorCode>,
    /// Number and Id of each revocation, in order.
    pub revoked: Vec<(u64, NodeId)>,
    /// It heard of all of them before anything else.
    pub revoked_first: bool,
}

struct TestPeer {
    run: u128,
    seq: u64,
    key: KeyHash,
    view: TestView,
    session: Option<SessionId>,
    silent: bool,
    slow: bool,
    heartbeat_at: Now,
    seen: Seen,
}

pub struct World {
    pub hub: Hub,
    server_run: u128,
    now: Now,
    state: ClusterState,
    peers: BTreeMap<u128, TestPeer>,
    ready: BTreeSet<SessionId>,
    ended: BTreeMap<SessionId, ErrorCode>,
    pub withheld: Vec<NewlyWithheld>,
}

impl World {
    pub fn new() -> World {
        let mut state = ClusterState::new(ClusterId::new(Uuid::from_u128(1)), Epoch(0), Vec::new());
        for n in 1..=250 {
            let id = peer(n);
            let record = IdentityRecord::new(id, String::new(), key(n), UnixMs(0));
            state.identities.insert(id, record);
        }
        World {
            hub: Hub::new(&HubConfig::new(run(1)), Arc::new(state.clone())),
            server_run: 1,
            now: Now::from_ms(1_000_000),
            state,
            peers: BTreeMap::new(),
            ready: BTreeSet::new(),
            ended: BTreeMap::new(),
            withheld: Vec::new(),
        }
    }

    pub fn now(&self) -> Now {
        self.now
    }

    pub fn wall(&self) -> UnixMs {
        UnixMs(1_700_000_000_000)
    }

    fn peer_mut(&mut self, n: u128) -> &mut TestPeer {
        let now = self.now;
        self.peers.entry(n).or_insert_with(|| TestPeer {
            run: 100,
            seq: 0,
            key: key(n),
            view: View::new(1_000),
            session: None,
            silent: false,
            slow: false,
            heartbeat_at: now,
            seen: Seen::default(),
        })
    }

    fn report_of(n: u128, seq: u64, services: Vec<ServiceOffer>) -> PeerReport {
        PeerReport { seq, name: format!("p{n}"), services, ..PeerReport::default() }
    }

    /// Opens a session of the `n`th Peer, also when it has one.
    pub fn join(&mut self, n: u128) -> Result<(), SessionRefused> {
        let (now, since) = (self.now, self.wall());
        let joining = self.peer_mut(n);
        joining.seq += 1;
        let arrival = Arrival {
            id: peer(n),
            incarnation: run(joining.run),
            key_hash: joining.key,
            seen_from: "203.0.113.7:5000".parse().unwrap(),
            report: Self::report_of(n, joining.seq, vec![]),
            since,
        };
        let resume = joining.view.begin_session();
        let opened = self.hub.handle_open(arrival, resume, now)?;
        let joined = self.peer_mut(n);
        joined.session = Some(opened.session);
        joined.silent = false;
        joined.seen.members_version = Some(opened.state.members_version);
        Ok(())
    }

    /// The key of the `n`th Peer is revoked, as every Server knows.
    pub fn revoke(&mut self, n: u128) {
        let (id, key_hash) = (peer(n), key(n));
        let number = self.state.revocations_version + 1;
        let (name, reason) = (String::new(), String::new());
        let revocation = Revocation { number, id, key_hash, name, reason, revoked_at: UnixMs(0) };
        self.state.revocations.insert(key_hash, revocation);
        self.state.revocations_version = number;
        if let Some(identity) = self.state.identities.get_mut(&id) {
            identity.revoked = true;
        }
        self.hub.handle_cluster_state(Arc::new(self.state.clone()));
    }

    /// The keys of these Peers are revoked ahead of their replication.
    pub fn emergencies(&mut self, peers: &[u128]) {
        self.hub.handle_emergencies(&peers.iter().map(|n| (key(*n), peer(*n))).collect());
    }

    pub fn session(&self, n: u128) -> SessionId {
        self.peers[&n].session.expect("the peer has a session")
    }

    pub fn report(&mut self, n: u128, services: Vec<ServiceOffer>) {
        let now = self.now;
        let reporting = self.peer_mut(n);
        reporting.seq += 1;
        reporting.heartbeat_at = now;
        let report = Self::report_of(n, reporting.seq, services);
        let session = self.session(n);
        self.hub.handle_report(session, report, now);
    }

    pub fn close(&mut self, n: u128) {
        if let Some(session) = self.peer_mut(n).session.take() {
            self.hub.handle_closed(session);
        }
    }

    pub fn fall_silent(&mut self, n: u128) {
        self.peer_mut(n).silent = true;
    }

    pub fn stop_reading(&mut self, n: u128) {
        self.peer_mut(n).slow = true;
    }

    pub fn resume_reading(&mut self, n: u128) {
        self.peer_mut(n).slow = false;
    }

    pub fn start_older_run(&mut self, n: u128) {
        self.peer_mut(n).run -= 1;
    }

    pub fn steal_key(&mut self, n: u128, of: u128) {
        self.peer_mut(n).key = key(of);
    }

    pub fn forget_identity(&mut self, n: u128) {
        self.state.identities.remove(&peer(n));
        self.publish_state();
    }

    pub fn enrol(&mut self, n: u128) {
        let (id, key_hash) = (peer(n), key(n));
        let record = IdentityRecord::new(id, String::new(), key_hash, UnixMs(0));
        self.state.identities.insert(id, record);
        self.publish_state();
    }

    pub fn change_grants(&mut self, n: u128, grants: Grants) {
        self.state.grants_version += 1;
        let identity = self.state.identities.get_mut(&peer(n)).expect("it is enrolled");
        (identity.grants, identity.grants_revision) = (grants, self.state.grants_version);
        self.publish_state();
    }

    pub fn change_members(&mut self) {
        self.state.members_version += 1;
        self.publish_state();
    }

    fn publish_state(&mut self) {
        self.hub.handle_cluster_state(Arc::new(self.state.clone()));
    }

    /// Every session is lost, and every revision.
    pub fn restart_server(&mut self) {
        self.server_run += 1;
        self.hub = Hub::new(&HubConfig::new(run(self.server_run)), Arc::new(self.state.clone()));
        self.ready.clear();
        self.peers.values_mut().for_each(|peer| peer.session = None);
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + TICK;
            for peer in self.peers.values_mut() {
                let Some(session) = peer.session.filter(|_| !peer.silent) else { continue };
                if self.now.since(peer.heartbeat_at) >= HEARTBEAT {
                    peer.heartbeat_at = self.now;
                    self.hub.handle_heartbeat(session, self.now);
                }
            }
            self.hub.handle_tick(self.now);
            self.drain();
        }
    }

    /// Does what the hub asks for, until it asks for nothing.
    pub fn drain(&mut self) {
        loop {
            self.take_outputs();
            let readers = self.peers.iter().filter(|(_, peer)| !peer.slow);
            let reads = |(n, peer): (&u128, &TestPeer)| Some((*n, peer.session?));
            let ready: Vec<_> =
                readers.filter_map(reads).filter(|(_, session)| self.ready.contains(session)).collect();
            if ready.is_empty() {
                return;
            }
            for (n, session) in ready {
                while self.read_one(n) {}
                self.ready.remove(&session);
            }
        }
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.hub.poll_output() {
            match output {
                Output::Ready(session) => {
                    assert!(self.ready.insert(session), "reported ready once until polled empty");
                }
                Output::Withheld(newly) => self.withheld.push(newly),
                Output::Disconnect { session, code, message } => {
                    assert!(!message.is_empty());
                    assert_eq!(self.ended.insert(session, code), None, "a session ends once");
                    self.ready.remove(&session);
                    assert_eq!(self.hub.poll_down(session, self.now), None);
                    for peer in self.peers.values_mut().filter(|peer| peer.session == Some(session)) {
                        peer.session = None;
                        peer.seen.ended = Some(code);
                    }
                }
            }
        }
    }

    /// Sends the `n`th Peer one message; false when there is none.
    pub fn read_one(&mut self, n: u128) -> bool {
        let (now, server_run) = (self.now, run(self.server_run));
        let session = self.session(n);
        let Some(down) = self.hub.poll_down(session, now) else { return false };
        let reader = self.peer_mut(n);
        match down {
            Down::Heartbeat => reader.seen.heartbeats += 1,
            Down::Revocations(push) => {
                let first = reader.seen.pushes + reader.seen.members_messages == 0;
                reader.seen.revoked_first |= first && push.done;
                reader.seen.revoked.extend(push.keys.iter().map(|key| (key.number, key.id)));
            }
            Down::Grants(own) => reader.seen.grants.push(own),
            Down::Trust(state) => reader.seen.trust_versions.push(state.trust_version),
            Down::Members(state) => {
                reader.seen.members_messages += 1;
                reader.seen.members_version = Some(state.members_version);
            }
            Down::Push(push) => {
                reader.seen.pushes += 1;
                reader.seen.snapshots += usize::from(matches!(&push, Push::Snapshot(piece) if piece.first));
                reader.view.apply(server_run, push).expect("the pushes of a session follow each other");
            }
        }
        true
    }

    pub fn seen(&self, n: u128) -> &Seen {
        &self.peers[&n].seen
    }

    pub fn view(&self, n: u128) -> &TestView {
        &self.peers[&n].view
    }

    pub fn ended(&self, session: SessionId) -> Option<ErrorCode> {
        self.ended.get(&session).copied()
    }

    /// The names of the Peers that the `n`th sees.
    pub fn names(&self, n: u128) -> Vec<&str> {
        self.view(n).entries().values().map(|entry| entry.report.name.as_str()).collect()
    }

    /// The services that the `n`th Peer sees.
    pub fn services(&self, n: u128) -> Vec<String> {
        let entries = self.view(n).entries().values();
        let services = entries.flat_map(|entry| {
            let of = &entry.report.name;
            entry.report.services.iter().map(move |service| format!("{}@{of}", service.name))
        });
        services.collect()
    }

    /// Every connected Peer sees exactly what it may see of everybody else who is online.
    pub fn check_views(&self) {
        let online: Vec<Arc<PeerEntry>> =
            self.hub.peers(Viewer::Operator).into_iter().map(|listing| listing.peer.entry).collect();
        for (n, reader) in self.peers.iter().filter(|(_, reader)| reader.session.is_some()) {
            let id = peer(*n);
            let others = online.iter().filter(|entry| entry.id != id);
            let expected: BTreeMap<NodeId, Arc<PeerEntry>> =
                others.map(|entry| (entry.id, visible_entry(entry, Viewer::Peer(id)))).collect();
            assert_eq!(reader.view.entries(), &expected, "the view of p{n}");
        }
    }
}
