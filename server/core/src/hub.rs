//! All that concerns the sessions of Peers at this Server, behind one owner.
//!
//! It composes [`PeerTable`] (A), [`LinkReports`] (B), [`PeerPushes`] (E), [`MemberNews`] (C towards Peers),
//! [`RevocationNews`], [`TrustNews`] (CAs) and [`Heartbeats`], and has no rules of its own: it tells each room what
//! happened and each session that there is something for it.
//!
//! # The driving contract
//!
//! One task owns the hub and takes inputs from a bounded mailbox:
//!
//! 1. feed one or more inputs: the `handle_*` methods, and [`Hub::handle_tick`] every [`TICK`]. Feeding all that
//!    waits before the next step makes changes that arrive together travel together;
//! 2. call [`Hub::poll_output`] until it returns none;
//! 3. for a session that is ([`Output::Ready`]) and whose outbox has room, call [`Hub::poll_down`] and send what
//!    it returns, until it returns none. Only then will the session be reported ready again. A slow reader is
//!    simply not polled: what it is to get is decided when it is polled.
//!
//! ```text
//! handle_open ──► open ──┬─ handle_closed ─────────────────────────────► gone
//!                        └─ Output::Disconnect (replaced, silent, bad) ─► gone
//! ```
//!
//! Inputs about a session that is gone are ignored: its last messages may still be on their way.
//!
//! Bounds: one [`Output::Ready`] and one [`Output::Disconnect`] per session at most wait to be polled, and one
//! [`Output::Withheld`] per report taken since the last poll.
//! Source: SPEC P1-P5, DESIGN walks 1 and 2.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use p2p_common::addr::{Candidate, HostPort};
use p2p_common::cluster_state::ClusterState;
use p2p_common::grants::Grants;
use p2p_common::link::LinkRow;
use p2p_common::push::{PeerPush, PeerReport, RevocationPush};
use p2p_common::revision::Position;
use p2p_common::service::ServiceName;
use p2p_common::{ErrorCode, Incarnation, KeyHash, NodeId, Now};

use crate::heartbeat::{HEARTBEAT, Heartbeats, SILENCE};
use crate::identities::{IdentityRefused, check_identity};
use crate::links::{LinkReports, LinksRefused};
use crate::members::MemberNews;
use crate::peers::{Arrival, ArrivalRefused, PeerRow, PeerTable, SESSIONS_MAX, Withheld};
use crate::push::PeerPushes;
use crate::revocations::RevocationNews;
use crate::session::SessionId;
use crate::trust_news::TrustNews;
use crate::visibility::{Viewer, visible_entry};

/// How often [`Hub::handle_tick`] is called; heartbeats and silence are noticed at most this late.
pub const TICK: Duration = Duration::from_millis(500);

/// The settings of a [`Hub`].
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// This run of the Server: revisions of table E count within it.
    pub incarnation: Incarnation,
    /// At most this many sessions; more are refused.
    pub sessions_max: usize,
    /// After this long without other data a heartbeat is sent.
    pub heartbeat: Duration,
    /// After this long of silence a Peer is offline.
    pub silence: Duration,
}

impl HubConfig {
    /// The defaults for a run of the Server.
    pub fn new(incarnation: Incarnation) -> Self {
        HubConfig { incarnation, sessions_max: SESSIONS_MAX, heartbeat: HEARTBEAT, silence: SILENCE }
    }
}

/// Why a session is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefused {
    /// It is not who it says.
    #[error(transparent)]
    Identity(#[from] IdentityRefused),
    /// It cannot be taken in.
    #[error(transparent)]
    Arrival(#[from] ArrivalRefused),
}

impl SessionRefused {
    /// The stable code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            SessionRefused::Identity(refused) => refused.code(),
            SessionRefused::Arrival(refused) => refused.code(),
        }
    }
}

/// What a Peer that opens a session knows already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resume {
    /// Where its view of this Server stands.
    pub view: Option<Position>,
    /// It knows every revocation up to this number.
    pub revocations: u64,
}

impl From<Option<Position>> for Resume {
    fn from(view: Option<Position>) -> Self {
        Resume { view, revocations: 0 }
    }
}

/// A session as it begins.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its name.
    pub session: SessionId,
    /// Whose table C goes into the welcome, before anything [`Hub::poll_down`] returns.
    pub state: Arc<ClusterState>,
}

/// What the owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// There may be something to send: see [`Hub::poll_down`].
    Ready(SessionId),
    /// The session is gone: tell its Peer why, if the outbox has room, and close it.
    Disconnect {
        /// Which session.
        session: SessionId,
        /// The stable code of the reason.
        code: ErrorCode,
        /// What happened, for people.
        message: String,
    },
    /// More of what a Peer says is passed on to nobody, since its identity's grants do not let it.
    Withheld(NewlyWithheld),
}

/// What of a Peer's report is withheld that was not before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewlyWithheld {
    /// Whose.
    pub peer: NodeId,
    /// Services outside its `may_offer`.
    pub services: Vec<ServiceName>,
    /// Addresses that may be somebody else's.
    pub candidates: Vec<Candidate>,
}

/// A message to a Peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Down {
    /// Keys that open nothing any more.
    Revocations(RevocationPush),
    /// The trusted CAs of this state.
    Trust(Arc<ClusterState>),
    /// Table C of this state.
    Members(Arc<ClusterState>),
    /// Table E.
    Push(PeerPush),
    /// What the Peer itself may do.
    Grants(OwnGrants),
    /// Nothing but a sign of life.
    Heartbeat,
}

/// What a Peer may do, and what of its addresses is therefore passed on to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnGrants {
    /// What it may do.
    pub grants: Arc<Grants>,
    /// Its addresses that may be somebody else's.
    pub withheld: Vec<HostPort>,
}

/// A Peer as look-ups show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerListing {
    /// Its row of table A, as far as the viewer may see it.
    pub peer: PeerRow,
    /// Its rows of table B.
    pub links: Arc<[LinkRow]>,
}

/// All that concerns the sessions of Peers.
#[derive(Debug)]
pub struct Hub {
    peers: PeerTable,
    links: LinkReports,
    pushes: PeerPushes,
    members: MemberNews,
    trust: TrustNews,
    revocations: RevocationNews,
    heartbeats: Heartbeats,
    /// What each session was told of its own grants; none yet counts as everybody's.
    told: BTreeMap<SessionId, OwnGrants>,
    /// Open sessions that have not been reported ready since they were last polled empty.
    idle: BTreeSet<SessionId>,
    outputs: VecDeque<Output>,
}

impl Hub {
    /// Starts without sessions on the replicated state as it is.
    pub fn new(config: &HubConfig, state: Arc<ClusterState>) -> Self {
        Hub {
            peers: PeerTable::new(config.sessions_max),
            links: LinkReports::new(),
            pushes: PeerPushes::new(config.incarnation),
            revocations: RevocationNews::new(&state),
            members: MemberNews::new(state),
            trust: TrustNews::new(),
            heartbeats: Heartbeats::new(config.heartbeat, config.silence),
            told: BTreeMap::new(),
            idle: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A Peer opens a session. `arrival` holds what TLS proved and the Peer said; `resume` is what it knows
    /// already. Register the session's outbox before the next [`Hub::poll_output`].
    ///
    /// # Errors
    /// When the Peer is not who it says, or cannot be taken in; nothing has changed then.
    pub fn handle_open(
        &mut self,
        arrival: Arrival,
        resume: impl Into<Resume>,
        now: Now,
    ) -> Result<Opened, SessionRefused> {
        let resume = resume.into();
        let identity = check_identity(self.members.state(), arrival.id, arrival.key_hash)?;
        if self.revocations.is_emergency(&arrival.key_hash) {
            return Err(IdentityRefused::Revoked { id: arrival.id }.into());
        }
        let grants = (Arc::new(identity.grants.clone()), identity.grants_revision);
        let known = self.peers.withheld_of(arrival.id);
        let (row, replaced) = self.peers.open(arrival, grants)?;
        let (session, entry) = (row.session, row.entry.clone());
        let peer = entry.id;
        let withheld = newly_withheld(row, &known);
        if let Some(replaced) = replaced {
            self.links.forget(peer);
            self.end(replaced, ErrorCode::Replaced, "a newer session of this peer has taken over".to_owned());
        }
        self.pushes.open(session, peer, resume.view);
        self.pushes.set(entry);
        self.members.open(session);
        self.trust.open(session);
        self.revocations.open(session, resume.revocations);
        self.heartbeats.open(session, now);
        self.idle.insert(session);
        self.outputs.extend(withheld);
        self.wake_all();
        Ok(Opened { session, state: self.members.state().clone() })
    }

    /// A Peer says anew what it is and offers.
    pub fn handle_report(&mut self, session: SessionId, report: PeerReport, now: Now) {
        self.heartbeats.heard(session, now);
        let known = self.peers.row_of(session).map(|row| row.withheld.clone()).unwrap_or_default();
        match self.peers.report(session, report) {
            Ok(None) => {}
            Ok(Some(row)) => {
                self.outputs.extend(newly_withheld(row, &known));
                self.pushes.set(row.entry.clone());
                self.wake_all();
            }
            Err(refused) => self.disconnect(session, refused.code(), refused.to_string()),
        }
    }

    /// A Peer says anew which links it has.
    pub fn handle_links(&mut self, session: SessionId, links: Vec<LinkRow>, now: Now) {
        self.heartbeats.heard(session, now);
        let Some(peer) = self.peers.peer_of(session) else { return };
        match self.links.report(peer, links) {
            // That this Server has no room is no reason to lose the Peer.
            Ok(()) | Err(LinksRefused::Full) => {}
            Err(refused) => self.disconnect(session, refused.code(), refused.to_string()),
        }
    }

    /// A Peer has sent a heartbeat.
    pub fn handle_heartbeat(&mut self, session: SessionId, now: Now) {
        self.heartbeats.heard(session, now);
    }

    /// A session's connection has ended.
    pub fn handle_closed(&mut self, session: SessionId) {
        self.forget(session);
    }

    /// The replicated state has changed.
    pub fn handle_cluster_state(&mut self, state: Arc<ClusterState>) {
        let revoked = self.revocations.update(&state);
        let others_grants = state.grants_version != self.members.state().grants_version;
        let others_trusted = state.trust_version != self.members.state().trust_version;
        let others_members = self.members.update(state);
        if others_grants {
            self.regrant();
        }
        if others_members || others_grants || others_trusted || revoked {
            self.wake_all();
        }
        if revoked {
            self.disconnect_revoked();
        }
    }

    /// The keys that are revoked ahead of their replication are now these, with whose they were.
    pub fn handle_emergencies(&mut self, emergencies: &BTreeMap<KeyHash, NodeId>) {
        if self.revocations.set_emergencies(emergencies) {
            self.wake_all();
            self.disconnect_revoked();
        }
    }

    /// What each Peer here says counts as far as its identity may say it now.
    fn regrant(&mut self) {
        let state = self.members.state().clone();
        let peers: Vec<NodeId> = self.peers.rows().map(|row| row.entry.id).collect();
        for peer in peers {
            let Some(identity) = state.identities.get(&peer) else { continue };
            let known = self.peers.withheld_of(peer);
            if let Some(row) = self.peers.regrant(peer, &identity.grants, identity.grants_revision) {
                self.outputs.extend(newly_withheld(row, &known));
                self.pushes.set(row.entry.clone());
            }
        }
    }

    /// Time has passed; call it every [`TICK`].
    pub fn handle_tick(&mut self, now: Now) {
        let silent: Vec<_> = self.heartbeats.silent(now).collect();
        for (session, silence) in silent {
            let message = format!("nothing was heard for {} s", silence.as_secs());
            self.disconnect(session, ErrorCode::Unavailable, message);
        }
        for session in self.heartbeats.due(now) {
            if self.idle.remove(&session) {
                self.outputs.push_back(Output::Ready(session));
            }
        }
    }

    /// What to do next; none when everything is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next message for a session whose outbox has room; none when there is none, or the session is gone.
    pub fn poll_down(&mut self, session: SessionId, now: Now) -> Option<Down> {
        let down = self.next_down(session, now);
        if down.is_some() {
            self.heartbeats.sent(session, now);
        } else if self.peers.peer_of(session).is_some() {
            self.idle.insert(session);
        }
        down
    }

    fn next_down(&mut self, session: SessionId, now: Now) -> Option<Down> {
        // Ahead of all that could lead to a link.
        if let Some(push) = self.revocations.poll_push(session) {
            return Some(Down::Revocations(push));
        }
        if let Some(state) = self.trust.poll_news(session, self.members.state()) {
            return Some(Down::Trust(state));
        }
        if let Some(state) = self.members.poll_news(session) {
            return Some(Down::Members(state));
        }
        if let Some(own) = self.next_grants(session) {
            return Some(Down::Grants(own));
        }
        if let Some(push) = self.pushes.poll_push(session) {
            return Some(Down::Push(push));
        }
        self.heartbeats.is_due(session, now).then_some(Down::Heartbeat)
    }

    /// What the Peer of `session` may do, if it was told something else last.
    fn next_grants(&mut self, session: SessionId) -> Option<OwnGrants> {
        let row = self.peers.row_of(session)?;
        let withheld = row.withheld.candidates.iter().map(|candidate| candidate.addr.clone()).collect();
        let own = OwnGrants { grants: row.entry.grants.clone(), withheld };
        let told = self.told.entry(session).or_default();
        (*told != own).then(|| {
            told.clone_from(&own);
            own
        })
    }

    /// The Peers online here as `viewer` may see them, in the order of their Ids; their services are in the
    /// entries. Cheap to take: it shares what it lists.
    pub fn peers(&self, viewer: Viewer) -> Vec<PeerListing> {
        let listing = |row: &PeerRow| {
            let mut peer = row.clone();
            peer.entry = visible_entry(&row.entry, viewer);
            PeerListing { peer, links: self.links.of(row.entry.id) }
        };
        self.peers.rows().map(listing).collect()
    }

    /// Who has a session here.
    pub fn online(&self) -> BTreeSet<NodeId> {
        self.peers.rows().map(|row| row.entry.id).collect()
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.peers.len()
    }

    /// How many changes of table E there were in this run.
    pub fn revision(&self) -> u64 {
        self.pushes.revision()
    }

    fn wake_all(&mut self) {
        let idle = std::mem::take(&mut self.idle);
        self.outputs.extend(idle.into_iter().map(Output::Ready));
    }

    fn disconnect_revoked(&mut self) {
        let state = self.members.state();
        let is_revoked =
            |key_hash: &KeyHash| state.is_revoked(key_hash) || self.revocations.is_emergency(key_hash);
        let revoked = self.peers.rows().filter(|row| is_revoked(&row.entry.key_hash));
        let revoked: Vec<_> = revoked.map(|row| (row.session, row.entry.id)).collect();
        for (session, id) in revoked {
            self.disconnect(session, ErrorCode::Revoked, IdentityRefused::Revoked { id }.to_string());
        }
    }

    fn disconnect(&mut self, session: SessionId, code: ErrorCode, message: String) {
        if self.forget(session) {
            self.outputs.push_back(Output::Disconnect { session, code, message });
        }
    }

    /// Takes a session and its Peer out of every room. Says whether it was there.
    fn forget(&mut self, session: SessionId) -> bool {
        let Some(peer) = self.peers.close(session) else { return false };
        self.links.forget(peer);
        self.pushes.remove(peer);
        self.forget_reader(session);
        self.wake_all();
        true
    }

    /// Ends a session whose Peer stays.
    fn end(&mut self, session: SessionId, code: ErrorCode, message: String) {
        self.forget_reader(session);
        self.outputs.push_back(Output::Disconnect { session, code, message });
    }

    fn forget_reader(&mut self, session: SessionId) {
        self.pushes.close(session);
        self.members.close(session);
        self.trust.close(session);
        self.revocations.close(session);
        self.heartbeats.close(session);
        self.told.remove(&session);
        self.idle.remove(&session);
    }
}

/// What is withheld of `row` and was not before.
fn newly_withheld(row: &PeerRow, known: &Withheld) -> Option<Output> {
    let withheld = &row.withheld;
    let services = withheld.services.iter().filter(|name| !known.services.contains(name)).cloned().collect();
    let candidates = withheld.candidates.iter().filter(|addr| !known.candidates.contains(addr)).cloned();
    let newly = NewlyWithheld { peer: row.entry.id, services, candidates: candidates.collect() };
    (!newly.services.is_empty() || !newly.candidates.is_empty()).then_some(Output::Withheld(newly))
}
