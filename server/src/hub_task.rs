//! The task that owns the [`Hub`], and the ways to it: [`HubHandle`] for everyone, [`Session`] for who serves a Peer.
//!
//! ```text
//! sessions, look-ups ──► mailbox (4,096) ──► hub task ──► one slot per session ──► its session
//!                        full: they wait        ▲
//! raft's view ── newest only ───────────────────┘
//! ```
//!
//! A session that can send asks for the next message ([`Inbox::next`]); only then the hub decides what that is. So
//! at most one message per session waits, and a slow reader costs what a fast one does. The hub waits for nobody.
//!
//! Owner of: tables A and B, the sending end of E. Source: SPEC P1-P5; the rules are `p2p-server-core`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2p_common::addr::Candidate;
use p2p_common::cluster_state::ClusterState;
use p2p_common::link::LinkRow;
use p2p_common::push::PeerReport;
use p2p_common::service::ServiceName;
use p2p_common::{ErrorCode, KeyHash, NodeId};
use p2p_runtime::clock::Clock;
use p2p_server_core::{
    Arrival, Down, Hub, HubConfig, NewlyWithheld, Output, PeerListing, Resume, SessionId, SessionRefused,
    TICK, Viewer,
};
use prometheus_client::metrics::gauge::Gauge;
use slog::{Logger, debug, info, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::raft::View;
use crate::standing::{Emergencies, Standing};

/// Inputs that wait for the hub; whoever has one more waits. Every session has at most two on their way.
const MAILBOX: usize = 4_096;
/// Inputs taken together, so that changes that arrive together travel together.
const BATCH: usize = 256;

/// Names of services in one record.
const NAMES_SHOWN: usize = 8;

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The Peer is not taken in.
    #[error(transparent)]
    Refused(#[from] SessionRefused),
    /// The hub has ended.
    #[error("this server is stopping: use another one")]
    Stopping,
}

impl HubError {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            HubError::Refused(refused) => refused.code(),
            HubError::Stopping => ErrorCode::Draining,
        }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// The stable code.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
}

impl From<HubError> for SessionEnd {
    fn from(error: HubError) -> Self {
        SessionEnd { code: error.code(), message: error.to_string() }
    }
}

/// A session as who serves it holds it. Dropping its inbox closes it.
#[derive(Debug)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// Whose table C goes into the welcome.
    pub state: Arc<ClusterState>,
    /// What is sent down after the welcome.
    pub inbox: Inbox,
    /// Resolves when the hub has ended the session; also for a reader that takes nothing.
    pub end: oneshot::Receiver<SessionEnd>,
}

/// Where a session gets what it sends down.
#[derive(Debug)]
pub struct Inbox {
    session: SessionId,
    hub: mpsc::Sender<Input>,
    slot: mpsc::Receiver<Down>,
    /// The hub knows that this session can send.
    asked: bool,
}

impl Inbox {
    /// The next message to send down, decided when there is one; call it when it can be sent. `None`: the session is
    /// over. Cancel safe: a message is not lost, and comes with the next call.
    pub async fn next(&mut self) -> Option<Down> {
        if !self.asked {
            self.hub.send(Input::Pull(self.session)).await.ok()?;
            self.asked = true;
        }
        let down = self.slot.recv().await?;
        self.asked = false;
        Some(down)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // When the mailbox is full the hub finds the closed slot by itself at its next tick.
        let _ = self.hub.try_send(Input::Closed(self.session));
    }
}

/// The way to the hub. Cheap to copy.
#[derive(Debug, Clone)]
pub struct HubHandle {
    mailbox: mpsc::Sender<Input>,
    sessions: Gauge,
}

impl HubHandle {
    /// Takes a Peer in. `resume` is what it knows already.
    ///
    /// # Errors
    /// When it is not who it says, cannot be taken in, or the hub has ended.
    pub async fn open(&self, arrival: Arrival, resume: Resume) -> Result<Session, HubError> {
        let (reply, answer) = oneshot::channel();
        let hub = self.mailbox.clone();
        self.tell(Input::Open { arrival: Box::new(arrival), resume, hub, reply }).await?;
        Ok(answer.await.map_err(|_| HubError::Stopping)??)
    }

    /// A Peer says anew what it is and offers.
    ///
    /// # Errors
    /// When the hub has ended; so with the next ones.
    pub async fn report(&self, session: SessionId, report: PeerReport) -> Result<(), HubError> {
        self.tell(Input::Report(session, report)).await
    }

    /// A Peer says anew which links it has.
    ///
    /// # Errors
    /// When the hub has ended.
    pub async fn links(&self, session: SessionId, links: Vec<LinkRow>) -> Result<(), HubError> {
        self.tell(Input::Links(session, links)).await
    }

    /// A Peer has sent a heartbeat.
    ///
    /// # Errors
    /// When the hub has ended.
    pub async fn heartbeat(&self, session: SessionId) -> Result<(), HubError> {
        self.tell(Input::Heartbeat(session)).await
    }

    /// The Peers online here with their services and links, as `viewer` may see them, by Id.
    ///
    /// # Errors
    /// When the hub has ended.
    pub async fn peers(&self, viewer: Viewer) -> Result<Vec<PeerListing>, HubError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Peers { viewer, reply }).await?;
        answer.await.map_err(|_| HubError::Stopping)
    }

    /// Who has a session here.
    ///
    /// # Errors
    /// When the hub has ended.
    pub async fn online(&self) -> Result<BTreeSet<NodeId>, HubError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::Online(reply)).await?;
        answer.await.map_err(|_| HubError::Stopping)
    }

    /// How many Peers have a session here.
    pub fn sessions(&self) -> u32 {
        u32::try_from(self.sessions.get()).unwrap_or_default()
    }

    async fn tell(&self, input: Input) -> Result<(), HubError> {
        self.mailbox.send(input).await.map_err(|_| HubError::Stopping)
    }
}

#[derive(Debug)]
enum Input {
    Open {
        arrival: Box<Arrival>,
        resume: Resume,
        /// For the inbox of the session.
        hub: mpsc::Sender<Input>,
        reply: oneshot::Sender<Result<Session, SessionRefused>>,
    },
    Report(SessionId, PeerReport),
    Links(SessionId, Vec<LinkRow>),
    Heartbeat(SessionId),
    /// The session can send.
    Pull(SessionId),
    Closed(SessionId),
    Online(oneshot::Sender<BTreeSet<NodeId>>),
    Peers {
        viewer: Viewer,
        reply: oneshot::Sender<Vec<PeerListing>>,
    },
}

/// What a hub starts with.
#[derive(Debug)]
pub struct HubParams {
    /// Its settings.
    pub config: HubConfig,
    /// The replicated state, and what is revoked ahead of it.
    pub standing: Standing,
    /// The process's clock.
    pub clock: Clock,
    /// Shows the number of sessions, and counts what is withheld of them.
    pub metrics: Metrics,
    /// Ends it: every session is told to go elsewhere.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

/// Starts the hub's task; it runs until `stop`, or until raft or the last handle is gone.
pub fn spawn_hub(params: HubParams) -> HubHandle {
    let HubParams { config, standing, clock, metrics, stop, log } = params;
    let sessions = metrics.sessions.clone();
    let (mailbox, inputs) = mpsc::channel(MAILBOX);
    let (mut view, mut emergencies) = (standing.watch_view(), standing.watch_emergencies());
    let mut hub = Hub::new(&config, Arc::clone(&view.borrow_and_update().state));
    hub.handle_emergencies(&keys(&emergencies.borrow_and_update()));
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let task = HubTask { hub, outlets: BTreeMap::new(), metrics, clock, log };
    tokio::spawn(task.run(Sources { inputs, view, emergencies, tick, stop }));
    HubHandle { mailbox, sessions }
}

/// What the task waits for.
struct Sources {
    inputs: mpsc::Receiver<Input>,
    view: watch::Receiver<Arc<View>>,
    emergencies: watch::Receiver<Arc<Emergencies>>,
    tick: Interval,
    stop: CancellationToken,
}

/// Why it woke.
enum Wake {
    Inputs,
    State(Arc<ClusterState>),
    /// With the state, which has those that are none any more.
    Emergencies(Arc<ClusterState>, Arc<Emergencies>),
    Tick,
}

impl Sources {
    /// `None`: it is over.
    async fn select(&mut self, inputs: &mut Vec<Input>) -> Option<Wake> {
        tokio::select! {
            () = self.stop.cancelled() => None,
            _ = self.tick.tick() => Some(Wake::Tick),
            changed = self.view.changed() => {
                changed.ok()?;
                Some(Wake::State(Arc::clone(&self.view.borrow_and_update().state)))
            }
            changed = self.emergencies.changed() => {
                changed.ok()?;
                let emergencies = Arc::clone(&self.emergencies.borrow_and_update());
                Some(Wake::Emergencies(Arc::clone(&self.view.borrow_and_update().state), emergencies))
            }
            taken = self.inputs.recv_many(inputs, BATCH) => (taken > 0).then_some(Wake::Inputs),
        }
    }
}

/// Whose the keys are that are revoked ahead of their replication.
fn keys(emergencies: &Emergencies) -> BTreeMap<KeyHash, NodeId> {
    emergencies.iter().map(|(key_hash, emergency)| (*key_hash, emergency.revocation.id)).collect()
}

/// The hub's end of a session.
struct Outlet {
    slot: mpsc::Sender<Down>,
    end: oneshot::Sender<SessionEnd>,
    /// The hub may have something for it.
    ready: bool,
    /// It can send.
    asked: bool,
}

struct HubTask {
    hub: Hub,
    outlets: BTreeMap<SessionId, Outlet>,
    metrics: Metrics,
    clock: Clock,
    log: Logger,
}

impl HubTask {
    async fn run(mut self, mut sources: Sources) {
        let mut inputs = Vec::with_capacity(BATCH);
        while let Some(wake) = sources.select(&mut inputs).await {
            self.apply(wake, &mut inputs);
        }
        self.stop();
    }

    fn apply(&mut self, wake: Wake, inputs: &mut Vec<Input>) {
        match wake {
            Wake::Inputs => inputs.drain(..).for_each(|input| self.take(input)),
            Wake::State(state) => self.hub.handle_cluster_state(state),
            Wake::Emergencies(state, emergencies) => {
                self.hub.handle_cluster_state(state);
                self.hub.handle_emergencies(&keys(&emergencies));
            }
            Wake::Tick => {
                let closed = self.outlets.iter().filter(|(_, outlet)| outlet.slot.is_closed());
                for session in closed.map(|(session, _)| *session).collect::<Vec<_>>() {
                    self.close(session);
                }
                self.hub.handle_tick(self.clock.now());
            }
        }
        while let Some(output) = self.hub.poll_output() {
            self.carry_out(output);
        }
        self.metrics.sessions.set(i64::try_from(self.hub.sessions()).unwrap_or(i64::MAX));
    }

    fn take(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Open { arrival, resume, hub, reply } => {
                // The answer may find nobody: then the session is closed by its own inbox.
                let _ = reply.send(self.open(*arrival, resume, hub));
            }
            Input::Report(session, report) => self.hub.handle_report(session, report, now),
            Input::Links(session, links) => self.hub.handle_links(session, links, now),
            Input::Heartbeat(session) => self.hub.handle_heartbeat(session, now),
            Input::Pull(session) => {
                if let Some(outlet) = self.outlets.get_mut(&session) {
                    outlet.asked = true;
                    self.serve(session);
                }
            }
            Input::Closed(session) => self.close(session),
            Input::Online(reply) => drop(reply.send(self.hub.online())),
            Input::Peers { viewer, reply } => drop(reply.send(self.hub.peers(viewer))),
        }
    }

    fn open(
        &mut self,
        arrival: Arrival,
        resume: Resume,
        hub: mpsc::Sender<Input>,
    ) -> Result<Session, SessionRefused> {
        let (peer, remote) = (arrival.id, arrival.seen_from);
        let opened = self.hub.handle_open(arrival, resume, self.clock.now()).inspect_err(|refused| {
            info!(self.log, "session refused"; "peer" => peer, "remote" => %remote, "reason" => %refused);
        })?;
        let (slot, received) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let id = opened.session;
        info!(self.log, "session opened"; "peer" => peer, "remote" => %remote, "session" => %id);
        self.outlets.insert(id, Outlet { slot, end, ready: false, asked: false });
        let inbox = Inbox { session: id, hub, slot: received, asked: false };
        Ok(Session { id, state: opened.state, inbox, end: ended })
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Ready(session) => {
                if let Some(outlet) = self.outlets.get_mut(&session) {
                    outlet.ready = true;
                    self.serve(session);
                }
            }
            Output::Withheld(newly) => self.note_withheld(&newly),
            Output::Disconnect { session, code, message } => {
                info!(self.log, "session ended by this server"; "session" => %session, "code" => code.as_str(),
                    "reason" => &message);
                if let Some(outlet) = self.outlets.remove(&session) {
                    let _ = outlet.end.send(SessionEnd { code, message });
                }
            }
        }
    }

    /// Each is reported when it is withheld first, and again only by another session. The Peer is told all of it.
    fn note_withheld(&self, newly: &NewlyWithheld) {
        let peer = newly.peer;
        if !newly.services.is_empty() {
            self.metrics.offers_refused.inc_by(newly.services.len() as u64);
            let names: Vec<&str> = newly.services.iter().map(ServiceName::as_str).take(NAMES_SHOWN).collect();
            warn!(self.log, "services withheld: their peer may not offer them"; "peer" => peer,
                "services" => names.join(","), "count" => newly.services.len(),
                "to_allow" => format!("p2p-server identity set {peer} --may-offer ..."));
        }
        for Candidate { kind, addr } in &newly.candidates {
            self.metrics.candidate_refused(*kind);
            warn!(self.log, "address withheld: it may be somebody else's"; "peer" => peer, "address" => %addr,
                "kind" => kind.as_str(),
                "to_allow" => format!("p2p-server identity set {peer} --may-advertise '{addr}'"));
        }
    }

    /// Gives a session that can send its next message, if there is one.
    fn serve(&mut self, session: SessionId) {
        let Some(outlet) = self.outlets.get_mut(&session).filter(|outlet| outlet.ready && outlet.asked)
        else {
            return;
        };
        match self.hub.poll_down(session, self.clock.now()) {
            None => outlet.ready = false,
            Some(down) => {
                outlet.asked = false;
                if outlet.slot.try_send(down).is_err() {
                    self.close(session);
                }
            }
        }
    }

    fn close(&mut self, session: SessionId) {
        if self.outlets.remove(&session).is_some() {
            debug!(self.log, "session closed"; "session" => %session);
            self.hub.handle_closed(session);
        }
    }

    fn stop(self) {
        for outlet in self.outlets.into_values() {
            let _ = outlet.end.send(HubError::Stopping.into());
        }
        self.metrics.sessions.set(0);
    }
}
