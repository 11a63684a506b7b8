//! Virtual time and fake Servers around the real agent.
//!
//! Servers answer at once, keep their Peers in the real revision log and serve cursors from it. A Server that
//! is down refuses; one that is silent takes everything and says nothing. Nothing here waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::{Candidate, CandidateKind, NetInfo};
use p2p_common::link::{LinkRow, PathKind};
use p2p_common::member::Member;
use p2p_common::push::{PeerEntry, PeerReport};
use p2p_common::revision::{Cursor, Log, Position};
use p2p_common::service::{ServiceOffer, ServiceState, Visibility};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{ClusterId, Epoch, Incarnation, KeyHash, NodeId, Now, UnixMs};
use p2p_peer_core::{
    Agent, AgentConfig, AgentState, DialFailure, DialPlan, FromServer, Heartbeat, Identity, InterfaceAddr,
    KnownServer, LinkSettings, MemberTable, Mesh, Moment, NetSources, OnServersLost, Opened, Output,
    OwnServices, PrintTables, Reach, SessionToken, Tables, ToServer,
};

pub fn peer(n: u8) -> NodeId {
    format!("C00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

pub fn server(n: u8) -> NodeId {
    format!("S00000000-0000-0000-0000-0000000000{n:02x}").parse().unwrap()
}

pub fn run(n: u16) -> Incarnation {
    format!("00000000-0000-7000-8000-00000000{n:04x}").parse().unwrap()
}

fn cluster_id() -> ClusterId {
    "00000000-0000-4000-8000-000000000001".parse().unwrap()
}

/// This Peer.
pub const ME: u8 = 0x99;

/// Peer `n`, which listens at 192.0.2.`n`.
pub fn entry(n: u8, seq: u64, services: &[&str]) -> Arc<PeerEntry> {
    let offer = |text: &&str| {
        let (name, backend) = text.split_once('=').unwrap();
        ServiceOffer {
            name: name.parse().unwrap(),
            backend: backend.parse().unwrap(),
            visibility: Visibility::Cluster,
            state: ServiceState::Up,
        }
    };
    let addr = format!("192.0.2.{n}:6443").parse().unwrap();
    let report = PeerReport {
        seq,
        name: format!("p{n}"),
        zone: String::new(),
        net: NetInfo { listen: None, candidates: vec![Candidate { kind: CandidateKind::Host, addr }] },
        services: services.iter().map(offer).collect(),
    };
    Arc::new(PeerEntry {
        id: peer(n),
        incarnation: run(n.into()),
        key_hash: KeyHash([n; 32]),
        grants: Arc::default(),
        grants_revision: 0,
        report,
    })
}

/// A Server at 10.0.0.`n`.
pub struct FakeServer {
    pub up: bool,
    pub silent: bool,
    pub log: Log<NodeId, Arc<PeerEntry>>,
    incarnation: Incarnation,
    pub resumed: Vec<Option<Position>>,
    pub reports: Vec<Arc<PeerReport>>,
    pub links: Vec<Arc<[LinkRow]>>,
    pub heartbeats: usize,
    /// It announces revocations.
    pub warns: bool,
    /// What this Peer said that it knows, at each session.
    pub revocations_known: Vec<u64>,
}

struct FakeSession {
    server: u8,
    cursor: Option<Cursor<NodeId>>,
}

pub struct World {
    pub agent: Agent,
    pub now_ms: u64,
    pub servers: BTreeMap<u8, FakeServer>,
    pub members: MemberTable,
    sessions: BTreeMap<SessionToken, FakeSession>,
    pub tables: Option<Arc<Tables>>,
    pub withheld: Vec<Vec<p2p_peer_core::Withheld>>,
    pub printed: Vec<Vec<String>>,
    pub states: Vec<(u64, AgentState)>,
    pub warmed: Vec<(u64, NodeId, DialPlan)>,
    pub dropped: Vec<NodeId>,
    /// What is kept for the next start.
    pub servers_told: Vec<KnownServer>,
    /// Whose tunnels are to be closed.
    pub revoked: Vec<KeyHash>,
    /// Why this Peer is to stop.
    pub thrown_out: Vec<String>,
    /// Peers that answer dials.
    pub reachable: Vec<NodeId>,
    incarnations: u16,
}

pub struct Setup {
    pub own: &'static [&'static str],
    pub introducers: &'static [&'static str],
    pub mesh: Mesh,
    pub on_servers_lost: OnServersLost,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            own: &["own.example=127.0.0.1:80"],
            introducers: &["10.0.0.1:7400"],
            mesh: Mesh::Auto,
            on_servers_lost: OnServersLost::Stop,
        }
    }
}

impl World {
    pub fn new(setup: Setup, servers: &[u8]) -> World {
        let own = setup.own.iter().map(|text| text.parse().unwrap());
        let config = AgentConfig {
            identity: Identity {
                id: peer(ME),
                incarnation: run(1),
                cluster_id: cluster_id(),
                epoch: Epoch(1),
            },
            name: "me".into(),
            zone: String::new(),
            servers: setup.introducers.iter().map(|text| text.parse().unwrap()).collect(),
            services: OwnServices::new(own, &Visibility::Cluster).unwrap(),
            net: NetSources {
                interfaces: vec![InterfaceAddr { ip: "192.168.1.5".parse().unwrap(), up: true }],
                listen: Some("0.0.0.0:6443".parse().unwrap()),
                ..NetSources::default()
            },
            mesh: setup.mesh,
            remote_peers: Vec::new(),
            transit: false,
            link: LinkSettings::default(),
            on_servers_lost: setup.on_servers_lost,
            heartbeat: Heartbeat::default(),
            print_tables: PrintTables::Full,
            seed: 7,
        };
        let mut world = World {
            agent: Agent::new(config, moment(0)),
            now_ms: 0,
            servers: BTreeMap::new(),
            members: MemberTable { version: 0, members: Vec::new() },
            sessions: BTreeMap::new(),
            tables: None,
            withheld: Vec::new(),
            printed: Vec::new(),
            states: Vec::new(),
            warmed: Vec::new(),
            dropped: Vec::new(),
            servers_told: Vec::new(),
            revoked: Vec::new(),
            thrown_out: Vec::new(),
            reachable: Vec::new(),
            incarnations: 100,
        };
        world.set_members(servers);
        world
    }

    /// Table C is now these; new ones are started.
    pub fn set_members(&mut self, servers: &[u8]) {
        for n in servers {
            if !self.servers.contains_key(n) {
                self.incarnations += 1;
                self.servers.insert(*n, FakeServer::new(run(self.incarnations)));
            }
        }
        let member = |n: &u8| Member {
            id: server(*n),
            name: format!("s{n}"),
            addresses: vec![format!("10.0.0.{n}:7400").parse().unwrap()],
            zone: String::new(),
            raft_id: u64::from(*n),
            key_hash: KeyHash([*n; 32]),
        };
        self.members =
            MemberTable { version: self.members.version + 1, members: servers.iter().map(member).collect() };
        let tokens: Vec<SessionToken> = self.sessions.keys().copied().collect();
        for token in tokens {
            self.down(token, FromServer::Members(self.members.clone()));
        }
        self.settle();
    }

    /// Server `n` is killed: its sessions break.
    pub fn kill(&mut self, n: u8) {
        self.servers.get_mut(&n).unwrap().up = false;
        let broken: Vec<SessionToken> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.server == n)
            .map(|(token, _)| *token)
            .collect();
        for token in broken {
            self.sessions.remove(&token);
            self.agent.handle_session_closed(token, "connection reset".into(), self.at());
        }
        self.settle();
    }

    /// Server `n` is back after its network was away: with all it knew. What it was silent about comes late, as
    /// on any connection that did not break.
    pub fn heal(&mut self, n: u8) {
        let server = self.servers.get_mut(&n).unwrap();
        server.up = true;
        if std::mem::take(&mut server.silent) {
            let waiting = self.sessions.iter().filter(|(_, session)| session.server == n);
            for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
                self.down(token, FromServer::Members(self.members.clone()));
            }
            self.settle();
        }
    }

    /// Server `n` is back as a new process, which knows nobody.
    pub fn restart(&mut self, n: u8) {
        self.incarnations += 1;
        self.servers.insert(n, FakeServer::new(run(self.incarnations)));
    }

    /// `entry` comes online at Server `n`, or changes there.
    pub fn online(&mut self, n: u8, entry: Arc<PeerEntry>) {
        self.servers.get_mut(&n).unwrap().log.set(entry.id, entry);
        self.settle();
    }

    /// Server `n` says this on every session.
    pub fn tell(&mut self, n: u8, message: FromServer) {
        let tokens = self.sessions.iter().filter(|(_, session)| session.server == n);
        for token in tokens.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.down(token, message.clone());
        }
        self.settle();
    }

    /// A Peer goes offline at Server `n`.
    pub fn offline(&mut self, n: u8, id: NodeId) {
        self.servers.get_mut(&n).unwrap().log.remove(&id);
        self.settle();
    }

    /// Lets time pass up to `ms`.
    pub fn run_to(&mut self, ms: u64) {
        self.settle();
        let mut ticks_now = 0;
        while let Some((due, why)) = self.agent.poll_timeout().filter(|(due, _)| *due <= Now::from_ms(ms)) {
            let due_ms = u64::try_from(due.0.as_nanos().div_ceil(1_000_000)).unwrap();
            ticks_now = if due_ms <= self.now_ms { ticks_now + 1 } else { 0 };
            assert!(ticks_now < 50, "the agent spins at {} ms: {why}", self.now_ms);
            if due_ms > ms {
                break;
            }
            self.now_ms = self.now_ms.max(due_ms);
            self.agent.handle_tick(self.at());
            self.settle();
        }
        self.now_ms = ms;
    }

    /// Does everything the agent asks for, until it asks for nothing.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let Some(output) = self.agent.poll_output() else {
                if self.push_some() {
                    continue;
                }
                return;
            };
            self.act(output);
        }
        panic!("the agent never has enough");
    }

    pub fn at(&self) -> Moment {
        moment(self.now_ms)
    }

    pub fn tables(&self) -> &Tables {
        self.tables.as_deref().expect("the first tables are published at the start")
    }

    pub fn connected(&self) -> Vec<NodeId> {
        let status = self.agent.status();
        status.servers.iter().filter(|server| server.connected).filter_map(|server| server.id).collect()
    }

    fn act(&mut self, output: Output) {
        let at = self.at();
        match output {
            Output::DialServer(dial) => {
                let mut failures = Vec::new();
                for address in dial.addresses {
                    let n: u8 = address.host().rsplit('.').next().unwrap().parse().unwrap();
                    if self.servers.get(&n).is_some_and(|server| server.up) {
                        self.sessions.insert(dial.session, FakeSession { server: n, cursor: None });
                        let address = address.to_string();
                        return self.agent.handle_session_opened(dial.session, server(n), address, at);
                    }
                    failures.push(DialFailure {
                        address: address.to_string(),
                        error: "connection refused".into(),
                    });
                }
                self.agent.handle_session_failed(dial.session, failures, at);
            }
            Output::Send { session, message } => self.up(session, message),
            Output::CloseSession { session, .. } => {
                self.sessions.remove(&session);
            }
            Output::WarmPeer { peer, reach } => {
                let Reach::Dial(plan) = reach else { panic!("no Peer here has a mesh link") };
                let address = plan.addresses[0].to_string();
                self.warmed.push((self.now_ms, peer, plan));
                if self.reachable.contains(&peer) {
                    let opened = Opened { path: PathKind::Direct, address, dialled: true, carries: true };
                    self.agent.handle_tunnel_opened(peer, opened, at);
                } else {
                    let failure = DialFailure { address, error: "connection refused".into() };
                    self.agent.handle_tunnel_failed(peer, vec![failure], at);
                }
            }
            Output::DropIdleTunnels { peer } => self.dropped.push(peer),
            Output::Withheld(newly) => self.withheld.push(newly),
            Output::Publish(tables) => self.tables = Some(tables),
            Output::PrintTables(lines) => self.printed.push(lines),
            Output::Servers(servers) => self.servers_told = servers,
            Output::Revoked(keys) => {
                assert!(keys.iter().all(|key| self.agent.tables().is_revoked(key)));
                self.revoked.extend(keys);
            }
            Output::ThrownOut(reason) => self.thrown_out.push(reason),
            Output::Epoch(epoch) => panic!("no Server here lives in {epoch}"),
            Output::DialLink { .. }
            | Output::SendLink { .. }
            | Output::CloseLink { .. }
            | Output::OfferTunnels { .. } => panic!("no Peer here has a mesh link"),
            Output::State(state) => self.states.push((self.now_ms, state)),
        }
    }

    fn up(&mut self, token: SessionToken, message: ToServer) {
        let session = self.sessions.get_mut(&token).expect("the agent sends on open sessions only");
        let server_id = server(session.server);
        let server = self.servers.get_mut(&session.server).unwrap();
        match message {
            ToServer::Open { hello, report, resume, revocations_known } => {
                server.revocations_known.push(revocations_known);
                let revocations_follow = server.warns;
                assert_eq!((hello.from, hello.to), (peer(ME), Some(server_id)));
                server.reports.push(report);
                server.resumed.push(resume);
                session.cursor = Some(server.log.cursor(resume));
                let hello = Hello {
                    versions: VERSIONS,
                    cluster_id: Some(cluster_id()),
                    from: server_id,
                    to: Some(peer(ME)),
                    epoch: Epoch(1),
                    recovery_id: None,
                    raft_id: 0,
                    incarnation: server.incarnation,
                    features: 0,
                };
                let seen_from = Some("198.51.100.7:50123".parse().unwrap());
                let members = self.members.clone();
                self.down(token, FromServer::Welcome { hello, seen_from, members, revocations_follow });
            }
            ToServer::Report(report) => server.reports.push(report),
            ToServer::Links(links) => server.links.push(links),
            ToServer::Heartbeat => {
                server.heartbeats += 1;
                self.down(token, FromServer::Heartbeat);
            }
        }
    }

    fn down(&mut self, token: SessionToken, message: FromServer) {
        let Some(session) = self.sessions.get(&token) else { return };
        if !self.servers[&session.server].silent {
            self.agent.handle_session_message(token, message, self.at());
        }
    }

    /// Sends one push on some session that has one to get.
    fn push_some(&mut self) -> bool {
        let mut next = None;
        for (token, session) in &mut self.sessions {
            let server = &self.servers[&session.server];
            let Some(cursor) = session.cursor.as_mut().filter(|_| !server.silent) else { continue };
            if let Some(push) = server.log.next_push(cursor, |_, entry| Some(entry.clone()), |_| 300) {
                next = Some((*token, push));
                break;
            }
        }
        let Some((token, push)) = next else { return false };
        self.down(token, FromServer::Push(push));
        true
    }
}

impl FakeServer {
    fn new(incarnation: Incarnation) -> Self {
        FakeServer {
            up: true,
            silent: false,
            log: Log::new(incarnation, 100),
            incarnation,
            resumed: Vec::new(),
            reports: Vec::new(),
            links: Vec::new(),
            heartbeats: 0,
            warns: false,
            revocations_known: Vec::new(),
        }
    }
}

fn moment(ms: u64) -> Moment {
    Moment { now: Now(Duration::from_millis(ms)), unix: UnixMs(1_700_000_000_000 + ms) }
}
