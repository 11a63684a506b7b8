//! The owner of the agent: feeds it what happens, does what it says, publishes what it knows.
//!
//! One bounded mailbox brings sessions' news and questions of people; tunnels and traffic are collected from
//! the pool when it has some. Whoever sends waits while the mailbox is full, which holds back the Server behind
//! it; the data path never sends. [`AgentTask::select`] waits, [`AgentTask::apply`] decides and does not wait.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use p2p_common::addr::HostPort;
use p2p_common::wire::link::LinkMessage;
use p2p_common::{Epoch, NodeId};
use p2p_peer_core::{
    Agent, AgentState, AgentStatus, DialFailure, FromServer, InterfaceAddr, Link, LinkOpened, LinkToken,
    Moment, Output, OwnServices, Revoked, SessionToken, Traffic,
};
use p2p_runtime::admin::Readiness;
use p2p_runtime::clock::{Clock, unix_now};
use p2p_runtime::exit::Exit;
use p2p_runtime::identity::DataDir;
use p2p_runtime::interfaces;
use p2p_runtime::tls::Credentials;
use slog::{Logger, debug, error, info, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::enrol::store_epoch;
use crate::forward::Forwards;
use crate::forward::owner::Owner;
use crate::mesh_task::{self, LinkEnd, LinkHandle, LinkOffer, Links};
use crate::metrics::Metrics;
use crate::published::{Myself, Views};
use crate::servers::Servers;
use crate::session_task::{self, SessionHandle};
use crate::tunnel::Pool;

/// Inputs that wait; a Server's messages wait behind them.
pub(crate) const MAILBOX: usize = 256;
/// Bytes and forwards are looked at this often.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Interfaces come and go; nothing tells us.
const INTERFACES_INTERVAL: Duration = Duration::from_secs(10);

/// Lines about what Servers begin to withhold together; what is more is counted.
const WITHHELD_LINES: usize = 16;

/// What comes through the mailbox.
#[derive(Debug)]
pub(crate) enum Input {
    /// A Server answered and the stream is open.
    SessionOpened { session: SessionToken, server: NodeId, address: String },
    /// No Server answered.
    SessionFailed { session: SessionToken, failures: Vec<DialFailure> },
    /// A Server said something.
    SessionMessage { session: SessionToken, message: FromServer },
    /// The stream ended.
    SessionClosed { session: SessionToken, reason: String },
    /// A Peer answered at the address of a link, and both said hello.
    LinkOpened { link: LinkToken, opened: LinkOpened },
    /// None did.
    LinkFailed { link: LinkToken, error: String },
    /// A Peer dialled us for a link.
    LinkAccepted(LinkOffer),
    /// Something of what a linked Peer says arrived.
    LinkHeard { link: LinkToken },
    /// A linked Peer said something.
    LinkMessage { link: LinkToken, message: LinkMessage },
    /// The connection of a link ended.
    LinkClosed { link: LinkToken, reason: String },
    /// The own services are now these; told when they are published.
    Services(OwnServices, oneshot::Sender<()>),
    /// This Peer has another certificate.
    Renewed,
    /// Somebody asks.
    Ask(Question),
}

/// What people ask.
#[derive(Debug)]
pub(crate) enum Question {
    /// How it is.
    Status(oneshot::Sender<AgentStatus>),
    /// Table F, with the names of the nodes.
    Links(oneshot::Sender<Vec<NamedLink>>),
    /// One row of it.
    Why(NodeId, oneshot::Sender<Option<NamedLink>>),
}

/// A link and what people call the node at its other end.
#[derive(Debug, Clone)]
pub(crate) struct NamedLink {
    pub(crate) link: Link,
    pub(crate) name: String,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct AgentTask {
    /// What decides.
    pub(crate) agent: Agent,
    /// The mailbox.
    pub(crate) inputs: mpsc::Receiver<Input>,
    /// Its other end, for sessions.
    pub(crate) mailbox: mpsc::Sender<Input>,
    /// Where the tables go.
    pub(crate) views: Arc<Views>,
    /// Where readiness goes.
    pub(crate) ready: watch::Sender<Readiness>,
    /// The tunnels.
    pub(crate) pool: Pool,
    /// Their forwards.
    pub(crate) forwards: Arc<Forwards>,
    /// Serves tunnels that other Peers ask for.
    pub(crate) owner: Owner,
    /// Opens mesh links.
    pub(crate) links: Links,
    /// Who we are on the wire.
    pub(crate) myself: Arc<Myself>,
    /// What we show.
    pub(crate) credentials: Arc<Credentials>,
    /// What is known of the Servers.
    pub(crate) servers: Arc<Servers>,
    /// Where what is known of revoked keys goes, to be kept.
    pub(crate) revoked: watch::Sender<Arc<Revoked>>,
    /// Why this Peer cannot go on.
    pub(crate) failed: Arc<OnceLock<Exit>>,
    /// Where the epoch is kept.
    pub(crate) data: Arc<DataDir>,
    /// The clock.
    pub(crate) clock: Clock,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Where to report.
    pub(crate) log: Logger,
    /// The open sessions and attempts.
    pub(crate) sessions: HashMap<SessionToken, SessionHandle>,
    /// The open mesh links and attempts.
    pub(crate) linked: HashMap<LinkToken, LinkHandle>,
    /// Why the last attempt at an address failed, until one succeeds.
    pub(crate) link_errors: HashMap<HostPort, String>,
    /// The tasks of both.
    pub(crate) attempts: TaskTracker,
    /// Ends everything.
    pub(crate) stop: CancellationToken,
}

/// Why the loop woke.
#[derive(Debug)]
enum Wake {
    Input(Input),
    Due,
    Tunnels,
    Sample,
    Interfaces,
    Stop,
}

struct Timers {
    sample: Interval,
    interfaces: Interval,
}

impl AgentTask {
    /// Runs until stopped; then every session ends properly.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut timers = Timers { sample: every(SAMPLE_INTERVAL), interfaces: every(INTERFACES_INTERVAL) };
        self.drain_outputs();
        loop {
            match self.select(&mut timers, &stop).await {
                Wake::Stop => break,
                wake => self.apply(wake),
            }
        }
        self.sessions.clear();
        self.linked.clear();
        self.attempts.close();
        // A Server that does not end its side is not waited for.
        let _ = tokio::time::timeout(session_task::END_TIMEOUT, self.attempts.wait()).await;
    }

    async fn select(&mut self, timers: &mut Timers, stop: &CancellationToken) -> Wake {
        let due = self.agent.poll_timeout().map(|(at, _why)| self.clock.instant(at));
        tokio::select! {
            () = stop.cancelled() => Wake::Stop,
            Some(input) = self.inputs.recv() => Wake::Input(input),
            () = async { tokio::time::sleep_until(due.expect("guarded")).await }, if due.is_some() => Wake::Due,
            () = self.pool.changed() => Wake::Tunnels,
            _ = timers.sample.tick() => Wake::Sample,
            _ = timers.interfaces.tick() => Wake::Interfaces,
        }
    }

    fn apply(&mut self, wake: Wake) {
        let at = Moment { now: self.clock.now(), unix: unix_now() };
        match wake {
            Wake::Input(input) => self.apply_input(input, at),
            Wake::Due => self.agent.handle_tick(at),
            Wake::Tunnels => self.apply_tunnels(at),
            Wake::Sample => self.sample(),
            Wake::Interfaces => match interface_addrs() {
                Ok(addrs) => self.agent.handle_interfaces(addrs, at),
                Err(error) => warn!(self.log, "cannot read the interfaces"; "error" => %error),
            },
            Wake::Stop => {}
        }
        self.drain_outputs();
    }

    fn apply_input(&mut self, input: Input, at: Moment) {
        match input {
            Input::SessionOpened { session, server, address } => {
                self.agent.handle_session_opened(session, server, address, at);
            }
            Input::SessionFailed { session, failures } => {
                self.sessions.remove(&session);
                self.agent.handle_session_failed(session, failures, at);
            }
            Input::SessionMessage { session, message } => {
                self.agent.handle_session_message(session, message, at);
            }
            Input::SessionClosed { session, reason } => {
                self.sessions.remove(&session);
                self.agent.handle_session_closed(session, reason, at);
            }
            Input::LinkOpened { link, opened } => {
                if let Some(handle) = self.linked.get_mut(&link) {
                    handle.peer = Some(opened.peer);
                    if let Some(address) = &handle.address {
                        self.link_errors.remove(address);
                    }
                }
                info!(self.log, "mesh link open"; "peer_id" => opened.peer, "address" => &opened.address);
                self.agent.handle_link_opened(link, opened, at);
            }
            Input::LinkFailed { link, error } => {
                self.note_failed_link(link, &error);
                self.agent.handle_link_failed(link, error, at);
            }
            Input::LinkAccepted(LinkOffer { opened, answer }) => self.accept_link(opened, answer, at),
            Input::LinkHeard { link } => self.agent.handle_link_heard(link, at),
            Input::LinkMessage { link, message } => self.agent.handle_link_message(link, message, at),
            Input::LinkClosed { link, reason } => {
                self.end_link(link, &reason);
                self.agent.handle_link_closed(link, reason, at);
            }
            Input::Services(services, done) => {
                self.agent.handle_services(services, at);
                self.drain_outputs();
                // Who asked for it may have left.
                let _ = done.send(());
            }
            Input::Renewed => self.agent.handle_renewed(at),
            Input::Ask(question) => {
                self.sample();
                self.answer(question);
            }
        }
    }

    /// Who asked may have left; the answer is then for nobody.
    fn answer(&self, question: Question) {
        match question {
            Question::Status(answer) => drop(answer.send(self.agent.status())),
            Question::Links(answer) => {
                drop(answer.send(self.agent.links().map(|link| self.named(link)).collect()));
            }
            Question::Why(id, answer) => drop(answer.send(self.agent.why(id).map(|link| self.named(&link)))),
        }
    }

    /// Tells the agent what moved on the data path.
    fn sample(&mut self) {
        for (peer, bytes_in, bytes_out) in self.pool.take_traffic() {
            self.agent.handle_traffic(peer, Traffic { bytes_in, bytes_out, rtt_us: None });
        }
        let (active, total) = self.forwards.counts();
        self.agent.handle_forwards(p2p_peer_core::Forwards { active, total });
        self.metrics.tunnels.set_open(self.pool.tunnels());
        self.metrics.mesh.set(self.agent.mesh_counts());
        self.metrics.clock_behind.set(self.credentials.clock().ahead_ms() as f64 / 1_000.0);
    }

    fn apply_tunnels(&mut self, at: Moment) {
        for (peer, changes) in self.pool.take_changes() {
            for opened in changes.opened {
                self.agent.handle_tunnel_opened(peer, opened, at);
            }
            if let Some(rtt) = changes.rtt {
                let rtt_us = u32::try_from(rtt.as_micros()).ok();
                self.agent.handle_traffic(peer, Traffic { rtt_us, ..Traffic::default() });
            }
            for (closed, dialled) in [(changes.closed_dialled, true), (changes.closed_accepted, false)] {
                for _ in 0..closed {
                    self.agent.handle_tunnel_closed(peer, dialled, &changes.reason, at);
                }
            }
            if changes.wanted > 0 {
                self.agent.handle_tunnels_wanted(peer, changes.wanted, at);
            }
            if let Some(failures) = changes.failed {
                let failures = failures.0.into_iter();
                let failures =
                    failures.map(|(address, error)| DialFailure { address: address.to_string(), error });
                self.agent.handle_tunnel_failed(peer, failures.collect(), at);
            }
        }
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::DialServer(dial) => {
                    debug!(self.log, "dialling server"; "session" => dial.session.0,
                        "server_id" => dial.server.map(|id| id.to_string()).unwrap_or_default());
                    let session = dial.session;
                    let (credentials, mailbox) = (Arc::clone(&self.credentials), self.mailbox.clone());
                    let reads = (Arc::clone(&self.servers), Arc::clone(&self.views));
                    let handle = session_task::spawn(&self.attempts, dial, credentials, reads, mailbox);
                    self.sessions.insert(session, handle);
                }
                Output::Send { session, message } => self.send(session, message),
                Output::CloseSession { session, reason } => {
                    info!(self.log, "session ended"; "session" => session.0, "reason" => reason);
                    self.sessions.remove(&session);
                }
                Output::DialLink { link, address } => {
                    debug!(self.log, "dialling mesh link"; "link" => link.0, "address" => %address);
                    self.linked.insert(link, self.links.dial(&self.attempts, link, address));
                }
                Output::SendLink { link, message } => self.send_link(link, message),
                Output::CloseLink { link, reason } => {
                    self.end_link(link, &reason);
                }
                Output::OfferTunnels { peer, count } => {
                    self.pool.offer(peer, count, &self.owner, &self.stop);
                }
                Output::WarmPeer { peer, reach: _ } => self.pool.warm(peer),
                Output::DropIdleTunnels { peer } => self.pool.drop_idle(peer),
                Output::Publish(tables) => {
                    self.metrics.tables.set(&tables);
                    self.views.publish(tables);
                }
                Output::Withheld(newly) => {
                    // A thousand services may be outside of what it may offer.
                    for what in newly.iter().take(WITHHELD_LINES) {
                        warn!(self.log, "not passed on by servers"; "what" => %what,
                            "reason" => what.explain(self.agent.tables().me()));
                    }
                    if newly.len() > WITHHELD_LINES {
                        warn!(self.log, "more is not passed on by servers; p2p-peer status lists it";
                            "count" => newly.len() - WITHHELD_LINES);
                    }
                }
                Output::PrintTables(lines) => {
                    for line in lines {
                        info!(self.log, "{}", line);
                    }
                }
                Output::Servers(servers) => self.servers.learn(servers),
                Output::Revoked(keys) => {
                    // Whoever comes in while the others are closed is to see it.
                    self.views.publish(Arc::clone(self.agent.tables()));
                    let tunnels = self.pool.close_revoked(&keys);
                    if !keys.is_empty() {
                        info!(self.log, "keys revoked"; "keys" => keys.len(), "tunnels_closed" => tunnels);
                    }
                    self.revoked.send_replace(Arc::new(self.agent.revoked().clone()));
                }
                Output::ThrownOut(reason) => self.give_up(&reason),
                Output::Epoch(epoch) => self.follow(epoch),
                Output::State(state) => {
                    info!(self.log, "state changed"; "state" => state.as_str());
                    self.ready.send_replace(readiness(state));
                }
            }
        }
    }

    fn send(&mut self, session: SessionToken, message: p2p_peer_core::ToServer) {
        let taken = self.sessions.get(&session).is_some_and(|handle| handle.send(message));
        if !taken && self.sessions.remove(&session).is_some() {
            let at = Moment { now: self.clock.now(), unix: unix_now() };
            let reason = "the Server takes no messages".to_owned();
            self.agent.handle_session_closed(session, reason, at);
        }
    }

    fn send_link(&mut self, link: LinkToken, message: LinkMessage) {
        let taken = self.linked.get(&link).is_some_and(|handle| handle.send(message));
        let reason = "the other side takes no messages".to_owned();
        if !taken && self.end_link(link, &reason) {
            let at = Moment { now: self.clock.now(), unix: unix_now() };
            self.agent.handle_link_closed(link, reason, at);
        }
    }

    /// Whether there was one; what was handed in still goes out.
    fn end_link(&mut self, link: LinkToken, reason: &str) -> bool {
        let Some(handle) = self.linked.remove(&link) else { return false };
        let peer = handle.peer.map(|id| id.to_string()).unwrap_or_default();
        match handle.address {
            Some(address) => {
                info!(self.log, "mesh link closed"; "peer_id" => peer, "address" => %address, "reason" => reason);
            }
            None => info!(self.log, "mesh link closed"; "peer_id" => peer, "reason" => reason),
        }
        true
    }

    /// An address that goes on failing for the same reason is worth one record.
    fn note_failed_link(&mut self, link: LinkToken, error: &str) {
        let Some(address) = self.linked.remove(&link).and_then(|handle| handle.address) else { return };
        if self.link_errors.get(&address).is_some_and(|before| before == error) {
            debug!(self.log, "mesh link failed again"; "address" => %address, "error" => error);
        } else {
            warn!(self.log, "mesh link failed"; "address" => %address, "error" => error);
            self.link_errors.insert(address, error.to_owned());
        }
    }

    /// Who dialled may have left; its link ends with its first message then.
    fn accept_link(&mut self, opened: LinkOpened, answer: oneshot::Sender<Option<LinkEnd>>, at: Moment) {
        let Some(token) = self.agent.accept_link(at) else {
            debug!(self.log, "mesh link refused"; "peer_id" => opened.peer, "error" => "there are too many");
            return drop(answer.send(None));
        };
        let (mut handle, end) = mesh_task::link(token, None);
        handle.peer = Some(opened.peer);
        self.linked.insert(token, handle);
        info!(self.log, "mesh link open"; "peer_id" => opened.peer, "from" => &opened.address);
        self.agent.handle_link_opened(token, opened, at);
        drop(answer.send(Some(end)));
    }

    /// Nobody takes this Peer's key any more: dialling on for ever would help nobody.
    fn give_up(&self, reason: &str) {
        error!(self.log, "this peer's key is revoked"; "reason" => reason);
        let exit = Exit::needs_operator(format!(
            "this peer's key is revoked, says a Server: {reason}. To bring the peer back, start it with an empty data \
             directory and a new token"
        ));
        // Another Server may have said so already.
        let _ = self.failed.set(exit);
        self.ready.send_replace(Readiness::NotReady(vec!["revoked".to_owned()]));
        self.stop.cancel();
    }

    fn follow(&self, epoch: Epoch) {
        info!(self.log, "the cluster lives in another epoch"; "epoch" => epoch.0);
        self.myself.set_epoch(epoch);
        let (data, log) = (Arc::clone(&self.data), self.log.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store_epoch(&data, epoch) {
                warn!(log, "cannot keep the epoch"; "error" => %error);
            }
        });
    }

    fn named(&self, link: &Link) -> NamedLink {
        let name = self.agent.name_of(link.row().id).unwrap_or_default().to_owned();
        NamedLink { link: link.clone(), name }
    }
}

/// The addresses of the interfaces, as the agent takes them.
pub(crate) fn interface_addrs() -> std::io::Result<Vec<InterfaceAddr>> {
    let own = interfaces::own_addresses()?;
    Ok(own.into_iter().map(|address| InterfaceAddr { ip: address.ip, up: true }).collect())
}

fn readiness(state: AgentState) -> Readiness {
    if state.is_ready() { Readiness::Ready } else { Readiness::NotReady(vec![state.to_string()]) }
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
