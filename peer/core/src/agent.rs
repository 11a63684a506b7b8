//! The agent: everything a Peer decides, composed. It has no rules of its own but the order of events.
//!
//! # Driving it
//!
//! Feed what happens through the `handle_*` methods, each with the [`Moment`] it happened at; after each, or
//! after several that came together, call [`Agent::poll_output`] until it returns none and do what it says.
//! Call [`Agent::handle_tick`] when the time of [`Agent::poll_timeout`] has come. Nothing here waits,
//! reads a clock or draws a random number.
//!
//! ```text
//!  interfaces, seen_from ─► netinfo ─► report ─► session/servers ─► Send, DialServer
//!  session events ─────────────────────────────► session/servers ─► view ─► routes ─► Publish, PrintTables
//!  tunnel events ──────────► links, connect ─► WarmPeer              └─► connect
//!                              └─► link report ─► Send
//!  mesh link events ─► mesh ─► SendLink, DialLink, OfferTunnels
//!                        └─► tables, beside the view of Servers
//! ```
//!
//! # Two ways to know a Peer
//!
//! By a mesh link and by Servers. What its link says counts while the Peer is remembered there, else what Servers
//! say; while its link is closed and Servers say that it is online, it is reached as they say. A key that Servers
//! tell is the key it must show on its links, too.
//!
//! # With and without Servers (SPEC P6)
//!
//! `working` means that a session is up and that Server's whole table has been seen. While at least one is,
//! what a lost Server said counts for the grace of 30 s and is then dropped. When all are lost nothing is
//! dropped, and after the grace the state is `stopped: no server`: the tables still show what was there, and
//! look-ups of services of Peers without a mesh link fail. A Peer without configured Servers is `working` from the start.
//!
//! Source: SPEC P1-P6, N1; walks 1, 2 and 5 of the architecture.

mod config;
mod derive;
mod grants;
mod linked;
mod output;
mod revoked;
mod status;

pub use config::{AgentConfig, OnServersLost};
pub use grants::Withheld;
pub use output::{AgentState, Output};
pub use status::{AgentStatus, Forwards, ServerStatus};

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::backoff::Jitter;
use p2p_common::link::PathKind;
use p2p_common::push::PeerReport;
use p2p_common::{NodeId, Now};

use crate::connect::{DialRule, Remotes};
use crate::links::{DialFailure, Link, LinkTable, Mesh, Opened, Traffic};
use crate::mesh::{MeshLinks, Shown};
use crate::moment::Moment;
use crate::netinfo::{InterfaceAddr, NetSources};
use crate::revoked::Revoked;
use crate::routes::{Reach, RemoteWork, Tables};
use crate::session::servers::{Effect, KnownServer, Servers};
use crate::session::{FromServer, Resume, SessionToken, ToServer};
use crate::tables::Printer;
use crate::view::PeerViews;

/// How long a lost Server's word counts, and how long a Peer works on without any (SPEC P6).
pub const GRACE: Duration = Duration::from_secs(30);

/// Everything a Peer decides: fed through the `handle_*` methods, drained by [`Agent::poll_output`], due again at
/// [`Agent::poll_timeout`].
#[derive(Debug)]
pub struct Agent {
    mesh: Mesh,
    on_servers_lost: OnServersLost,
    sources: NetSources,
    report: Arc<PeerReport>,
    servers: Servers,
    /// Servers without a session that have a view here, and since when.
    away: BTreeMap<NodeId, Now>,
    views: PeerViews,
    links: LinkTable,
    revoked: Revoked,
    mesh_links: MeshLinks,
    remotes: Remotes,
    /// Whether all Peers are linked ahead of need.
    ahead: bool,
    tables: Arc<Tables>,
    published: Option<u64>,
    printer: Printer,
    state: AgentState,
    forwards: Forwards,
    grants: grants::KnownGrants,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// An agent that knows nothing but itself. Its first outputs are its state and its tables; the first dials
    /// come with the first [`Agent::handle_tick`], which is due at once.
    pub fn new(config: AgentConfig, at: Moment) -> Self {
        let me = config.identity.id;
        let mut jitter = Jitter::new(config.seed);
        let report = PeerReport {
            seq: 1,
            name: config.name,
            zone: config.zone.clone(),
            net: config.net.net_info(),
            services: config.services.offers(),
        };
        let own = Arc::new(config.services);
        let shown = Shown::new(&report, own.clone(), config.transit);
        let mut tables = Tables::new(me, config.zone, own, at.unix).with_transit(config.transit);
        tables.set_rule(DialRule::new(&report.net));
        let servers =
            Servers::new(config.identity, config.heartbeat, &config.servers, jitter.next_u64(), at.now);
        let state = if servers.is_empty() { AgentState::Working } else { AgentState::Starting };
        Agent {
            mesh: config.mesh,
            on_servers_lost: config.on_servers_lost,
            sources: config.net,
            report: Arc::new(report),
            servers,
            away: BTreeMap::new(),
            views: PeerViews::new(me),
            links: LinkTable::default(),
            revoked: Revoked::default(),
            mesh_links: MeshLinks::new(me, config.link, &config.remote_peers, shown),
            remotes: Remotes::new(jitter.next_u64()),
            ahead: config.mesh.links_ahead(0),
            tables: Arc::new(tables),
            published: None,
            printer: Printer::new(config.print_tables, at.now),
            state,
            forwards: Forwards::default(),
            grants: grants::KnownGrants::default(),
            outputs: VecDeque::from([Output::State(state)]),
        }
    }

    /// The next thing to do; none when there is nothing more until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        // Last, so that inputs that came together publish once.
        if self.published != Some(self.tables.revision()) {
            self.published = Some(self.tables.revision());
            return Some(Output::Publish(self.tables.clone()));
        }
        None
    }

    /// When [`Agent::handle_tick`] is due, and what for.
    pub fn poll_timeout(&self) -> Option<(Now, &'static str)> {
        let grace = self.servers.alone_since().map(|since| since + GRACE);
        let grace = grace.filter(|_| self.may_stop());
        let dues = [
            (self.servers.next_due(), "sessions"),
            (self.remotes.next_due(), "dials ahead of need"),
            (self.mesh_links.next_due(), "mesh links"),
            (self.links.next_due(), "link report"),
            (self.printer.next_due(), "tables"),
            (grace, "grace"),
            (self.next_lapse(), "views of lost servers"),
        ];
        dues.into_iter().filter_map(|(due, why)| Some((due?, why))).min_by_key(|(due, _)| *due)
    }

    /// Time has passed.
    pub fn handle_tick(&mut self, at: Moment) {
        let effects = self.servers.tick(at.now);
        self.run(effects, at);
        self.drop_lapsed_views(at);
        self.update_state(at);
        let effects = self.mesh_links.tick(at);
        self.run_mesh(effects, at);
        while let Some(peer) = self.remotes.take_due(at.now) {
            self.warm(peer, at);
        }
        if let Some(links) = self.links.take_report(at) {
            let effects = self.servers.send_links(&links, at.now);
            self.run(effects, at);
        }
        if let Some(lines) = self.printer.take(&self.tables, at.now) {
            self.outputs.push_back(Output::PrintTables(lines));
        }
    }

    /// An earlier run knew these Servers: they are dialled besides the configured ones. Before the first tick.
    pub fn remember_servers(&mut self, known: Vec<KnownServer>, at: Moment) {
        self.servers.remember(known, at.now);
        if !self.servers.is_empty() && self.state == AgentState::Working {
            self.state = AgentState::Starting;
            self.outputs.push_back(Output::State(self.state));
        }
    }

    /// This Peer has another certificate: Servers that refused the old one may take it.
    pub fn handle_renewed(&mut self, at: Moment) {
        self.servers.hurry(at.now);
    }

    /// The host's interfaces are now these.
    pub fn handle_interfaces(&mut self, interfaces: Vec<InterfaceAddr>, at: Moment) {
        self.sources.interfaces = interfaces;
        self.refresh_net(at);
    }

    /// `server`, by its certificate, answered attempt `session` at `address`, and the stream is open.
    pub fn handle_session_opened(
        &mut self,
        session: SessionToken,
        server: NodeId,
        address: String,
        at: Moment,
    ) {
        let revocations = self.revoked.known_in(self.servers.epoch());
        let views = &mut self.views;
        let resume = || Resume { view: views.begin_session(server), revocations };
        let effects = self.servers.handle_opened((session, server, address), &self.report, resume, at.now);
        self.run(effects, at);
    }

    /// Nobody could be reached in attempt `session`: what was dialled and why it failed.
    pub fn handle_session_failed(&mut self, session: SessionToken, failures: Vec<DialFailure>, at: Moment) {
        let reason = DialFailure::join(&failures);
        if let Some(server) = self.servers.server_of(session) {
            self.links.on_failed(server, failures, "", at.unix);
        }
        self.handle_session_closed(session, reason, at);
    }

    /// A message came over `session`.
    pub fn handle_session_message(&mut self, session: SessionToken, message: FromServer, at: Moment) {
        let effects = self.servers.handle_message(session, message, &self.report, at.now);
        self.run(effects, at);
        self.update_state(at);
    }

    /// The stream of `session` has ended.
    pub fn handle_session_closed(&mut self, session: SessionToken, reason: String, at: Moment) {
        let effects = self.servers.handle_closed(session, reason, at.now);
        self.run(effects, at);
        self.update_state(at);
    }

    /// A tunnel to or from `peer` is open and both sides are verified.
    pub fn handle_tunnel_opened(&mut self, peer: NodeId, opened: Opened, at: Moment) {
        if opened.carries {
            self.remotes.on_opened(peer, at.now);
        }
        self.links.on_opened(peer, opened, at.unix);
        self.refresh_peer(peer, at);
    }

    /// A tunnel that was reported as opened is closed; `carries` as it was said then.
    pub fn handle_tunnel_closed(&mut self, peer: NodeId, carries: bool, reason: &str, at: Moment) {
        if carries {
            self.remotes.on_closed(peer, at.now);
        }
        self.links.on_closed(peer, reason, at.unix);
        self.refresh_peer(peer, at);
    }

    /// No tunnel to `peer` could be opened, ahead of need or for a forward: what was dialled and why it failed.
    pub fn handle_tunnel_failed(&mut self, peer: NodeId, failures: Vec<DialFailure>, at: Moment) {
        let skipped = match self.tables.peer(peer).map(|known| &known.reach) {
            Some(Reach::Dial(plan)) => plan.skipped.as_slice(),
            _ => &[],
        };
        let skipped: Vec<String> = skipped.iter().map(|(addr, skip)| format!("{addr} ({skip})")).collect();
        self.remotes.on_failed(peer, at.now);
        self.links.on_failed(peer, failures, &skipped.join(", "), at.unix);
        self.refresh_peer(peer, at);
    }

    /// So much moved over the link to `node` since the last time, both ways and all tunnels together.
    pub fn handle_traffic(&mut self, node: NodeId, traffic: Traffic) {
        self.links.on_traffic(node, traffic);
    }

    /// The forwards as of now.
    pub fn handle_forwards(&mut self, forwards: Forwards) {
        self.forwards = forwards;
    }

    /// The tables as they are now, which is what [`Output::Publish`] carries.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Whether this Peer does its work.
    pub fn state(&self) -> AgentState {
        self.state
    }

    /// Table F: Servers before Peers, by Id.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// The link to `node`.
    pub fn link(&self, node: NodeId) -> Option<&Link> {
        self.links.get(node)
    }

    /// Does what the sessions ask for. An effect can bring further ones; they are done in turn.
    fn run(&mut self, effects: Vec<Effect>, at: Moment) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Dial(dial) => self.outputs.push_back(Output::DialServer(dial)),
                Effect::Send(session, message) => self.outputs.push_back(Output::Send { session, message }),
                Effect::Close(session, reason) => {
                    self.outputs.push_back(Output::CloseSession { session, reason });
                }
                Effect::Welcomed { session, server, address, seen_from } => {
                    self.away.remove(&server);
                    self.forget_own_grants(server);
                    self.links.on_known(server, at.unix);
                    let opened = Opened { path: PathKind::Direct, address, dialled: true, carries: true };
                    self.links.on_opened(server, opened, at.unix);
                    let message = ToServer::Links(self.links.report());
                    self.outputs.push_back(Output::Send { session, message });
                    if let Some(seen_from) = seen_from {
                        self.sources.seen_from.insert(server, seen_from);
                    }
                    self.refresh_net(at);
                }
                Effect::Revocations { epoch, push } => {
                    let more = self.take_revocations(epoch, &push, at);
                    effects.extend(more);
                }
                Effect::ThrownOut(reason) => self.outputs.push_back(Output::ThrownOut(reason)),
                Effect::Push { server, incarnation, push } => {
                    match self.views.apply(server, incarnation, push, at.unix) {
                        Ok(changed) => self.refresh_peers(changed, at),
                        Err(error) => {
                            effects.extend(self.servers.reject(server, error.to_string(), at.now));
                        }
                    }
                }
                Effect::OwnGrants { server, grants, withheld } => {
                    self.on_own_grants(server, grants, withheld);
                }
                Effect::Down { server, reason } => {
                    self.forget_own_grants(server);
                    self.links.on_down(server, &reason, at.unix);
                    if self.views.servers().any(|held| held == server) {
                        self.away.entry(server).or_insert(at.now);
                    }
                }
                Effect::Epoch(epoch) => self.outputs.push_back(Output::Epoch(epoch)),
                Effect::Members => {
                    let table = self.servers.members().into_iter().flat_map(|table| &table.members);
                    self.outputs.push_back(Output::Servers(table.map(KnownServer::of).collect()));
                    let members = self.servers.members().into_iter().flat_map(|table| &table.members);
                    for id in members.map(|member| member.id) {
                        self.links.on_known(id, at.unix);
                    }
                }
                Effect::Left(server) => {
                    self.links.on_closed(server, "it left the cluster", at.unix);
                    self.links.on_unknown(server);
                    self.away.remove(&server);
                    self.sources.seen_from.remove(&server);
                    let changed = self.views.drop_server(server, at.unix);
                    self.refresh_peers(changed, at);
                    self.refresh_net(at);
                }
            }
        }
    }

    /// Table D may have changed: then Servers are told, and what may be dialled follows.
    fn refresh_net(&mut self, at: Moment) {
        let net = self.sources.net_info();
        if net == self.report.net {
            return;
        }
        Arc::make_mut(&mut self.tables).set_rule(DialRule::new(&net));
        self.mesh_links.set_net(net.clone(), at.now);
        self.update_report(|report| report.net = net, at);
        self.refresh_all(at);
    }

    /// Servers are told what has changed of this Peer.
    fn update_report(&mut self, change: impl FnOnce(&mut PeerReport), at: Moment) {
        let report = Arc::make_mut(&mut self.report);
        report.seq += 1;
        change(report);
        self.update_withheld();
        for message in self.servers.send_report(&self.report, at.now) {
            if let Effect::Send(session, message) = message {
                self.outputs.push_back(Output::Send { session, message });
            }
        }
    }

    fn refresh_all(&mut self, at: Moment) {
        let peers = self.tables.peers().keys().copied().collect();
        self.refresh_peers(peers, at);
    }

    fn refresh_peers(&mut self, peers: Vec<NodeId>, at: Moment) {
        for peer in peers {
            self.refresh_peer(peer, at);
        }
        let ahead = self.mesh.links_ahead(self.tables.peers().len());
        if ahead != self.ahead {
            self.ahead = ahead;
            let peers: Vec<NodeId> = self.tables.peers().keys().copied().collect();
            for peer in peers {
                self.refresh_wanted(peer, at);
            }
        }
    }

    fn update_state(&mut self, at: Moment) {
        let alone = self.servers.alone_since();
        let state = if self.servers.is_empty() || self.is_synced() {
            AgentState::Working
        } else if alone.is_some_and(|since| at.now.since(since) >= GRACE) && self.may_stop() {
            AgentState::Stopped
        } else {
            self.state
        };
        if state == self.state {
            return;
        }
        self.state = state;
        self.outputs.push_back(Output::State(state));
        let remote = if state == AgentState::Stopped { RemoteWork::Stopped } else { RemoteWork::Taken };
        if remote != self.tables.remote() {
            Arc::make_mut(&mut self.tables).set_remote(remote);
            self.refresh_all(at);
        }
        self.drop_lapsed_views(at);
    }

    /// Whether the loss of all Servers can change the state.
    fn may_stop(&self) -> bool {
        match self.state {
            AgentState::Starting => true,
            AgentState::Working => !self.servers.is_empty() && self.on_servers_lost == OnServersLost::Stop,
            AgentState::Stopped => false,
        }
    }

    /// Whether some Server with a session has told all it has: first who is revoked, then who is online.
    fn is_synced(&self) -> bool {
        self.servers.up().any(|server| {
            let incarnation = self.servers.incarnation(server).filter(|_| self.servers.is_warned(server));
            incarnation.is_some_and(|incarnation| self.views.is_loaded(server, incarnation))
        })
    }

    fn drop_lapsed_views(&mut self, at: Moment) {
        while let Some(server) = self.lapsing().filter(|(_, due)| *due <= at.now).map(|(server, _)| server) {
            self.away.remove(&server);
            let changed = self.views.drop_server(server, at.unix);
            self.refresh_peers(changed, at);
        }
    }

    fn next_lapse(&self) -> Option<Now> {
        self.lapsing().map(|(_, due)| due)
    }

    /// The lost Server whose word lapses next; none while there is no other to go by. One that is being asked
    /// to go on where its view stands keeps it: it will not tell again what it takes for known.
    fn lapsing(&self) -> Option<(NodeId, Now)> {
        let lapsing = self.away.iter().filter(|(server, _)| !self.servers.has_stream(**server));
        let lapsing = lapsing.map(|(server, since)| (*server, *since + GRACE));
        lapsing.min_by_key(|(_, due)| *due).filter(|_| self.is_synced())
    }
}
