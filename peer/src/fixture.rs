//! Peers in one process for the tests of this crate: real certificates, sockets and agents; the Server they
//! meet through is played by the test, which hands each agent what a Server would push.

pub(crate) mod linked;
pub(crate) mod played;
pub(crate) mod records;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::member::Member;
use p2p_common::push::{PeerEntry, PeerReport, RevocationPush};
use p2p_common::revision::{Piece, Push};
use p2p_common::service::Visibility;
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, NodeKind};
use p2p_peer_core::{
    Agent, AgentConfig, FromServer, Heartbeat, Identity, LinkSettings, MemberTable, Mesh, Moment, NetSources,
    OnServersLost, Output, OwnServices, PrintTables, SessionToken,
};
use p2p_runtime::ca::{CertificateGrant, ClusterCa};
use p2p_runtime::clock::unix_now;
use p2p_runtime::identity::{DataDir, Enrolment, NodeIdentity};
use p2p_runtime::tcp;
use p2p_runtime::tls::{Credentials, ServerTls};
use slog::Logger;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::records::Records;
use crate::forward::owner::{Owner, Refusals};
use crate::forward::splice::Buffers;
use crate::forward::{AccessLog, ForwardMetrics, Forwarder, Forwards, Recents};
use crate::ingress::{BoundPorts, Connections, Ingress, IngressLimits, IngressMetrics, SourceRanges};
use crate::mesh_task::Links;
use crate::published::{Myself, Views};
use crate::tunnel::{DialBudgets, DirectDialer, OpenTunnels, Pool, PoolLimits, TunnelMetrics};

/// A cluster: its CA and the Id of the one Server everybody is told of.
pub(crate) struct World {
    pub(crate) ca: ClusterCa,
    server: NodeId,
}

/// A Peer of a [`World`].
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) pool: Pool,
    pub(crate) owner: Owner,
    pub(crate) forwards: Arc<Forwards>,
    pub(crate) bound: BoundPorts,
    pub(crate) forward_metrics: ForwardMetrics,
    pub(crate) tunnel_metrics: TunnelMetrics,
    pub(crate) ingress_metrics: IngressMetrics,
    pub(crate) records: Records,
    pub(crate) stop: CancellationToken,
    agent: Mutex<Agent>,
    session: SessionToken,
    views: Arc<Views>,
    entry: Arc<PeerEntry>,
    credentials: Arc<Credentials>,
    myself: Arc<Myself>,
    _dir: TempDir,
}

/// Bounds of a [`Node`].
pub(crate) struct Bounds {
    pub(crate) forwards: usize,
    pub(crate) access_log: AccessLog,
    /// Whose mesh links it dials.
    pub(crate) remote_peers: Vec<SocketAddr>,
    pub(crate) transit: bool,
    pub(crate) pool: PoolLimits,
    pub(crate) ingress: IngressLimits,
    pub(crate) clients_allow: SourceRanges,
    pub(crate) proxy_protocol_from: SourceRanges,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            forwards: 4_096,
            access_log: AccessLog::All,
            remote_peers: Vec::new(),
            transit: false,
            pool: PoolLimits::default(),
            ingress: IngressLimits { connections: 4_096, newcomers: 1_024, newcomers_per_source: 64 },
            clients_allow: SourceRanges::loopback(),
            proxy_protocol_from: SourceRanges::none(),
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let ca = ClusterCa::create(ClusterId::new(Uuid::from_u128(1)), unix_now()).unwrap();
        World { ca, server: NodeId::new(NodeKind::Server, Uuid::from_u128(9)) }
    }

    /// Peer `n` with `services` as NAME=BACKEND, listening on loopback; it knows nobody yet.
    pub(crate) fn node(&self, n: u128, services: &[String], bounds: Bounds) -> Node {
        let id = NodeId::new(NodeKind::Peer, Uuid::from_u128(n));
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let mut identity = NodeIdentity::load_or_create(&data, NodeKind::Peer, Some(id), None).unwrap();
        let request = identity.key().certificate_request(id).unwrap();
        let signed = self.ca.sign(&request, &CertificateGrant::new(id, unix_now())).unwrap();
        let cluster_id = self.ca.cluster_id();
        let enrolment = Enrolment { cluster_id, certificate: signed.certificate, trust: self.ca.trust() };
        identity.enrol(&data, enrolment).unwrap();
        let credentials = Credentials::new(&identity, identity.enrolment().unwrap()).unwrap();

        let listener = tcp::listen("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let listen = listener.local_addr().unwrap();
        let incarnation = Incarnation::new(Uuid::from_u128(n));
        let net = NetSources { listen: Some(listen), ..NetSources::default() };
        let services = services.iter().map(|text| text.parse().unwrap());
        let services = OwnServices::new(services, &Visibility::Cluster).unwrap();
        let report = PeerReport {
            seq: 1,
            name: format!("p{n}"),
            zone: String::new(),
            net: net.net_info(),
            services: services.offers(),
        };
        let key_hash = identity.key().key_hash();
        let entry = Arc::new(PeerEntry {
            id,
            incarnation,
            key_hash,
            grants: Arc::default(),
            grants_revision: 0,
            report,
        });
        let identity = Identity { id, incarnation, cluster_id, epoch: Epoch(1) };
        let mut agent = Agent::new(
            AgentConfig {
                identity,
                name: format!("p{n}"),
                zone: String::new(),
                servers: vec![HostPort::new("server.invalid", 1).unwrap()],
                services,
                net,
                mesh: Mesh::Auto,
                remote_peers: bounds.remote_peers.into_iter().map(HostPort::from).collect(),
                transit: bounds.transit,
                link: LinkSettings::default(),
                on_servers_lost: OnServersLost::Stop,
                heartbeat: Heartbeat::default(),
                print_tables: PrintTables::Off,
                seed: 1,
            },
            Moment::default(),
        );
        let views = Arc::new(Views::new(Arc::clone(agent.tables())));
        let session = self.welcome(&mut agent, identity);

        let log = Logger::root(slog::Discard, slog::o!());
        let myself = Arc::new(Myself::new(id, cluster_id, incarnation, Epoch(1)));
        let dialer = DirectDialer {
            credentials: Arc::clone(&credentials),
            myself: Arc::clone(&myself),
            open: OpenTunnels::default(),
            budget: DialBudgets::default(),
        };
        let tunnel_metrics = TunnelMetrics::default();
        let pool = Pool::new(dialer, Arc::clone(&views), bounds.pool, tunnel_metrics.clone(), log.clone());
        let records = Records::default();
        let forward_metrics = ForwardMetrics::default();
        let forwards =
            Forwards::new(bounds.forwards, forward_metrics.clone(), bounds.access_log, records.logger());
        let ingress_metrics = IngressMetrics::default();
        let buffers = Buffers::default();
        // The agents here know each other through their Server; nobody dials a link.
        let (mailbox, _) = mpsc::channel(1);
        let links = Links {
            credentials: Arc::clone(&credentials),
            myself: Arc::clone(&myself),
            mailbox,
            log: log.clone(),
        };
        let forwarder = Forwarder {
            views: Arc::clone(&views),
            pool: pool.clone(),
            forwards: Arc::clone(&forwards),
            silent: Arc::default(),
            buffers: buffers.clone(),
            log: log.clone(),
        };
        let owner = Owner {
            forwarder: forwarder.clone(),
            recents: Recents::default(),
            refusals: Refusals::default(),
        };
        let ingress = Arc::new(Ingress {
            forwarder,
            owner: owner.clone(),
            pool: pool.clone(),
            links,
            tls: ServerTls::peer(Arc::clone(&credentials)),
            myself: Arc::clone(&myself),
            buffers,
            clients_allow: bounds.clients_allow,
            proxy_protocol_from: bounds.proxy_protocol_from,
            connections: Connections::new(bounds.ingress),
            metrics: ingress_metrics.clone(),
            log,
        });
        let stop = CancellationToken::new();
        tokio::spawn(pool.clone().run(stop.clone()));
        let bound = BoundPorts::new(Arc::clone(&ingress), Vec::new(), stop.clone()).unwrap();
        tokio::spawn(ingress.run(listener, stop.clone(), Duration::from_secs(1)));
        let agent = Mutex::new(agent);
        Node {
            id,
            listen,
            pool,
            owner,
            forwards,
            bound,
            forward_metrics,
            tunnel_metrics,
            ingress_metrics,
            records,
            stop,
            agent,
            session,
            views,
            entry,
            credentials,
            myself,
            _dir: dir,
        }
    }

    /// Opens the agent's session with the Server.
    fn welcome(&self, agent: &mut Agent, identity: Identity) -> SessionToken {
        agent.handle_tick(Moment::default());
        let dialled = std::iter::from_fn(|| agent.poll_output()).find_map(|output| match output {
            Output::DialServer(dial) => Some(dial.session),
            _ => None,
        });
        let session = dialled.expect("it dials its Server");
        agent.handle_session_opened(session, self.server, "server.invalid:1".into(), Moment::default());
        let hello = Hello {
            versions: VERSIONS,
            cluster_id: Some(identity.cluster_id),
            from: self.server,
            to: Some(identity.id),
            epoch: identity.epoch,
            recovery_id: None,
            raft_id: 0,
            incarnation: Incarnation::new(Uuid::from_u128(9)),
            features: 0,
        };
        let member = Member {
            id: self.server,
            name: "s1".into(),
            addresses: vec![HostPort::new("server.invalid", 1).unwrap()],
            zone: String::new(),
            raft_id: 1,
            key_hash: KeyHash([9; 32]),
        };
        let members = MemberTable { version: 1, members: vec![member] };
        let welcome = FromServer::Welcome { hello, seen_from: None, members, revocations_follow: false };
        agent.handle_session_message(session, welcome, Moment::default());
        session
    }
}

impl Node {
    /// Tells the agent that exactly `others` are online, and publishes what it makes of it.
    pub(crate) fn learn(&self, others: &[&Node], revision: u64) {
        self.learn_entries(others.iter().map(|node| Arc::clone(&node.entry)), revision);
    }

    /// What others are told of this Peer, with this address in place of its own.
    pub(crate) fn entry_at(&self, addr: SocketAddr) -> Arc<PeerEntry> {
        let mut entry = PeerEntry::clone(&self.entry);
        for candidate in &mut entry.report.net.candidates {
            candidate.addr = addr.into();
        }
        Arc::new(entry)
    }

    /// Tells the agent that exactly these are online.
    pub(crate) fn learn_entries(&self, entries: impl IntoIterator<Item = Arc<PeerEntry>>, revision: u64) {
        let mut entries: Vec<_> = entries.into_iter().map(|entry| (entry.id, entry)).collect();
        entries.sort_by_key(|(id, _)| *id);
        let push = Push::Snapshot(Piece { revision, first: true, done: true, entries });
        let push = FromServer::Push(push);
        self.agent.lock().unwrap().handle_session_message(self.session, push, Moment::default());
        self.take_outputs();
    }

    /// The key this Peer shows.
    pub(crate) fn key_hash(&self) -> KeyHash {
        self.entry.key_hash
    }

    /// Tells the agent which keys are revoked, and closes what it says.
    pub(crate) fn hear_revoked(&self, push: RevocationPush) {
        let push = FromServer::Revocations(push);
        self.agent.lock().unwrap().handle_session_message(self.session, push, Moment::default());
        for output in self.take_outputs() {
            if let Output::Revoked(keys) = output {
                self.pool.close_revoked(&keys);
            }
        }
    }

    /// What the agent asks for; what it publishes is published.
    fn take_outputs(&self) -> Vec<Output> {
        let mut agent = self.agent.lock().unwrap();
        let outputs: Vec<_> = std::iter::from_fn(|| agent.poll_output()).collect();
        for output in &outputs {
            if let Output::Publish(tables) = output {
                self.views.publish(Arc::clone(tables));
            }
            if let Output::Revoked(_) = output {
                self.views.publish(Arc::clone(agent.tables()));
            }
        }
        outputs
    }
}

/// Two Peers that know each other: the first offers `services`, clients come to the second.
pub(crate) fn pair(services: &[String]) -> (World, Node, Node) {
    pair_with(services, Bounds::default())
}

/// A [`pair`] whose second Peer has these bounds.
pub(crate) fn pair_with(services: &[String], bounds: Bounds) -> (World, Node, Node) {
    let world = World::new();
    let owner = world.node(1, services, Bounds::default());
    let ingress = world.node(2, &[], bounds);
    owner.learn(&[&ingress], 1);
    ingress.learn(&[&owner], 1);
    (world, owner, ingress)
}
