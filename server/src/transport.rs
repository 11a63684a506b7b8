//! Raft messages between Servers.
//!
//! ```text
//! raft thread ──send──► Remote: pick ──► append stream ────► connection ─┐
//!               never waits         ├──► message stream ───► connection ─┤ api/raft of the other
//!                                   ├──► pipeline of calls ► connection ─┼──► Server ──► Mailbox
//!                                   └──► snapshot ─────────► connection ─┘
//! ```
//!
//! Every Server keeps its connections to every other one of table C, whoever leads; [`Remotes`] follows the table at
//! run time. What comes in goes straight to the raft thread's mailbox, messages and requests each with a queue of their
//! own; who may send is checked in `handshake`. A remote whose message stream breaks *and* whose port refuses a new
//! connection is gone: raft is told, and need not wait for the election time-out (FACTS 6 measured what that saves).
//!
//! Rooms: `remote` (one remote, which way a message takes), `stream`, `pipeline`, `snapshot` (the ways), `queue`,
//! `redial`, `picker`, `status`, `probe` (round trip and clocks), `handshake` (hellos), `inbound` (the newest stream
//! wins), `reach` and `alarms` (what others learn from all this), `knock` (Servers that a recovery left behind).
//!
//! Source: SPEC T1-T6, C2; the shape is etcd's rafthttp.

mod alarms;
pub(crate) mod handshake;
mod inbound;
mod knock;
mod metrics;
mod picker;
mod pipeline;
mod probe;
mod queue;
mod reach;
mod redial;
mod remote;
mod snapshot;
mod status;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use p2p_common::command::Outcome;
use p2p_common::member::{Member, RaftId};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, Incarnation, NodeId, RecoveryId};
use p2p_proto::status::code_of;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::Clock;
use p2p_runtime::tls::Credentials;
use p2p_server_raft::{Message, MessageKind};
use slog::{Logger, o};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::raft::{Mailbox, Outbox, ProposeError, View};
use crate::standing::Standing;

pub use alarms::{Alarm, Alarms, MustStop};
pub use metrics::TransportMetrics;
pub use reach::{Reach, Reached};
pub use snapshot::{Assembly, SNAPSHOT_BYTES_MAX};
pub use status::RemoteStatus;

pub(crate) use inbound::{Inbound, Place};
pub(crate) use stream::StreamKind;

use inbound::InboundTable;
use remote::Remote;

/// At most this many bytes of messages in one batch; a message of raft has at most 1 MiB of entries.
const BATCH_BYTES: usize = 1 << 20;
/// What a receiver takes in one batch: two of the above and some room.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// The remotes whose stream is taken, by raft id.
pub type Connected = watch::Receiver<Arc<BTreeSet<RaftId>>>;

/// Who this Server is towards others.
#[derive(Debug, Clone)]
pub struct Myself {
    /// Its Id.
    pub id: NodeId,
    /// Its number inside raft.
    pub raft_id: RaftId,
    /// The history of the cluster it lives in.
    pub epoch: Epoch,
    /// Which forced recovery began it; none before the first.
    pub recovery_id: Option<RecoveryId>,
    /// Its run.
    pub incarnation: Incarnation,
    /// What it shows and trusts.
    pub credentials: Arc<Credentials>,
}

impl Myself {
    /// The first message to `to`.
    pub fn hello(&self, to: Option<NodeId>) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster_id: Some(self.credentials.cluster_id()),
            from: self.id,
            to,
            epoch: self.epoch,
            recovery_id: self.recovery_id,
            raft_id: self.raft_id,
            incarnation: self.incarnation,
            features: 0,
        }
    }
}

/// What the tasks of all remotes share.
#[derive(Debug)]
struct Shared {
    myself: Myself,
    /// Its start counts as the process's.
    clock: Clock,
    mailbox: Mailbox,
    metrics: TransportMetrics,
    alarms: Alarms,
    connected: watch::Sender<Arc<BTreeSet<RaftId>>>,
    reach: watch::Sender<Arc<Reach>>,
    stopping: watch::Sender<bool>,
    stop: CancellationToken,
    log: Logger,
    remotes: ArcSwap<BTreeMap<RaftId, Arc<Remote>>>,
    /// The streams others have opened here.
    inbound: InboundTable,
}

/// All remote Servers. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Remotes {
    shared: Arc<Shared>,
}

/// What [`Remotes`] works with.
#[derive(Debug)]
pub struct RemotesParams {
    /// Who this Server is.
    pub myself: Myself,
    /// The process's clock; its start counts as the Server's.
    pub clock: Clock,
    /// Where what comes in, and what is learned of remotes, goes.
    pub mailbox: Mailbox,
    /// What is counted.
    pub metrics: TransportMetrics,
    /// Ends everything.
    pub stop: CancellationToken,
    /// Where to report.
    pub log: Logger,
}

impl Remotes {
    /// Knows nobody yet; [`Remotes::follow`] keeps it up to date.
    pub fn new(params: RemotesParams) -> Self {
        let RemotesParams { myself, clock, mailbox, metrics, stop, log } = params;
        let alarms = Alarms::new(metrics.split.clone(), log.clone());
        let shared = Shared {
            myself,
            clock,
            mailbox,
            metrics,
            alarms,
            connected: watch::Sender::default(),
            reach: watch::Sender::default(),
            stopping: watch::Sender::default(),
            stop,
            log,
            remotes: ArcSwap::default(),
            inbound: InboundTable::default(),
        };
        Remotes { shared: Arc::new(shared) }
    }

    /// Keeps the ways to every other Server of table C until the process stops.
    pub async fn follow(self, standing: Standing) {
        let (mut view, mut emergencies) = (standing.watch_view(), standing.watch_emergencies());
        // A view is published with every applied entry; few of them say anything about who is there.
        let mut seen = None;
        loop {
            let now = Arc::clone(&view.borrow_and_update());
            let emergency = Arc::clone(&emergencies.borrow_and_update());
            let versions = (now.state.members_version, now.state.revocations_version);
            let table = (versions, now.membership.clone(), emergency);
            if seen.as_ref() != Some(&table) {
                self.update(self.wanted(&now, &standing));
                seen = Some(table);
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = emergencies.changed() => if changed.is_err() { return },
                () = self.shared.stop.cancelled() => return,
            }
        }
    }

    /// The Servers of table C, and whoever has left it and is still in the raft group: it has to learn that it leaves.
    /// Nobody whose key is revoked.
    fn wanted(&self, view: &View, standing: &Standing) -> BTreeMap<RaftId, Member> {
        let mut wanted = view.others();
        for (raft_id, remote) in &**self.shared.remotes.load() {
            if view.membership.contains(*raft_id) {
                wanted.entry(*raft_id).or_insert_with(|| remote.member.borrow().clone());
            }
        }
        wanted.retain(|_, member| !standing.is_revoked(&member.key_hash));
        wanted
    }

    fn update(&self, wanted: BTreeMap<RaftId, Member>) {
        let now = self.shared.remotes.load();
        let unchanged = now.len() == wanted.len()
            && wanted.iter().all(|(id, member)| now.get(id).is_some_and(|r| *r.member.borrow() == *member));
        if unchanged {
            return;
        }
        let mut next = BTreeMap::clone(&now);
        next.retain(|raft_id, remote| {
            // Under another Id, key or name it is another one: everything of the old one ends.
            let stays = wanted.get(raft_id).is_some_and(|member| {
                let known = remote.member.borrow();
                (member.id, member.key_hash, &member.name) == (known.id, known.key_hash, &known.name)
            });
            if !stays {
                self.stop(remote);
            }
            stays
        });
        for (raft_id, member) in wanted {
            match next.get(&raft_id) {
                Some(remote) if *remote.member.borrow() == member => {}
                Some(remote) => remote.update(member),
                None => {
                    let log =
                        self.shared.log.new(o!("remote" => member.name.clone(), "remote_id" => member.id));
                    if let Some(remote) = Remote::spawn(Arc::clone(&self.shared), member, log) {
                        next.insert(raft_id, remote);
                    }
                }
            }
        }
        self.shared.remotes.store(Arc::new(next));
    }

    /// Closes every connection of a remote, whoever opened it.
    fn stop(&self, remote: &Remote) {
        remote.stop.cancel();
        self.shared.inbound.end_all(remote.raft_id);
        self.shared.alarms.settled(remote.member.borrow().id);
        remote.metrics.forget();
    }

    fn remote(&self, raft_id: RaftId) -> Option<Arc<Remote>> {
        self.shared.remotes.load().get(&raft_id).cloned()
    }

    /// Drops what goes to a remote and what comes from it, silently; for tests.
    pub fn pause(&self, raft_id: RaftId) {
        if let Some(remote) = self.remote(raft_id) {
            remote.pause(true);
        }
    }

    /// Ends what [`Remotes::pause`] began.
    pub fn resume(&self, raft_id: RaftId) {
        if let Some(remote) = self.remote(raft_id) {
            remote.pause(false);
        }
    }

    /// What comes from this remote is to be dropped.
    pub(crate) fn is_paused(&self, raft_id: RaftId) -> bool {
        self.shared.remotes.load().get(&raft_id).is_some_and(|remote| remote.is_paused())
    }

    /// Who has left table C and is still in the raft group, as `view` has it.
    pub(crate) fn leaving(&self, view: &View, raft_id: RaftId) -> Option<Member> {
        let remote = self.remote(raft_id).filter(|_| view.membership.contains(raft_id))?;
        let member = remote.member.borrow().clone();
        Some(member)
    }

    /// A remote opens a stream here: from now on it is the one of its kind.
    pub(crate) fn enter(&self, raft_id: RaftId, what: Inbound) -> Place {
        if let Some(remote) = self.remote(raft_id) {
            remote.wake();
        }
        self.shared.inbound.enter(raft_id, what, &self.shared.stop)
    }

    /// How each remote is, by Id.
    pub fn status(&self) -> BTreeMap<NodeId, RemoteStatus> {
        let remotes = self.shared.remotes.load();
        remotes.values().map(|remote| (remote.member.borrow().id, remote.status.get())).collect()
    }

    /// Which remotes are connected, the newest only.
    pub fn connected(&self) -> Connected {
        self.shared.connected.subscribe()
    }

    /// The remotes this Server reaches, the newest only.
    pub fn reach(&self) -> watch::Receiver<Arc<Reach>> {
        self.shared.reach.subscribe()
    }

    /// What other Servers prove about this one's place in the cluster.
    pub fn alarms(&self) -> &Alarms {
        &self.shared.alarms
    }

    /// Tells every connected Server that this one is about to stop in order.
    pub fn tell_stopping(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Whether that was told; for whoever answers streams.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.shared.stopping.subscribe()
    }

    /// Since the start of the process.
    pub(crate) fn uptime(&self) -> Duration {
        self.shared.clock.uptime()
    }

    /// Who this Server is.
    pub fn myself(&self) -> &Myself {
        &self.shared.myself
    }

    /// A connection to a Server, while there is one, and its Id.
    pub fn channel(&self, raft_id: RaftId) -> Option<(NodeId, Channel)> {
        let remote = self.remote(raft_id)?;
        let id = remote.member.borrow().id;
        Some((id, remote.channel()?))
    }

    /// Asks the leader to run an encoded command; tried once.
    ///
    /// # Errors
    /// When it is not reachable, does not lead, or does not answer in time.
    pub async fn propose_at(
        &self,
        leader: RaftId,
        command: Bytes,
        timeout: Duration,
    ) -> Result<(u64, Outcome), ProposeError> {
        let (id, channel) = self.channel(leader).ok_or(ProposeError::NoLeader)?;
        let hello = convert::hello_to(&self.shared.myself.hello(Some(id)));
        let mut request = tonic::Request::new(v1::ProposeRequest { hello: Some(hello), command });
        request.set_timeout(timeout);
        let reply = v1::peering_client::PeeringClient::new(channel).propose(request).await;
        let reply = reply.map_err(|refused| match code_of(&refused) {
            Some(code) => ProposeError::Leader { code, message: refused.message().to_owned() },
            // Not an answer of ours: the connection broke, after the command went out or before.
            None => ProposeError::OutcomeUnknown,
        })?;
        let reply = reply.into_inner();
        let outcome = convert::decode_outcome(&reply.outcome).map_err(|e| ProposeError::Leader {
            code: p2p_common::ErrorCode::Internal,
            message: e.to_string(),
        })?;
        Ok((reply.index, outcome))
    }
}

impl Outbox for Remotes {
    fn send(&mut self, messages: Vec<Message>) {
        let (remotes, now) = (self.shared.remotes.load(), Instant::now());
        for message in messages {
            match remotes.get(&message.to) {
                Some(remote) => remote.send(message, now),
                None => {
                    self.shared
                        .metrics
                        .dropped_to_nobody(remote::pick(message.kind, remote::Working::default()));
                    self.shared.lost(message.to, message.kind);
                }
            }
        }
    }
}

impl Shared {
    /// Publishes whether the stream to `raft_id` is taken.
    fn connect(&self, raft_id: RaftId, connected: bool) {
        self.connected.send_if_modified(|now| {
            if now.contains(&raft_id) == connected {
                return false;
            }
            let mut next = BTreeSet::clone(now);
            if connected {
                next.insert(raft_id)
            } else {
                next.remove(&raft_id)
            };
            *now = Arc::new(next);
            true
        });
    }

    /// `raft_id` has told something of itself, or, with `None`, is reached no more.
    fn heard(&self, raft_id: RaftId, reached: Option<Reached>) {
        self.reach.send_if_modified(|now| {
            if now.of.get(&raft_id) == reached.as_ref() {
                return false;
            }
            let mut next = Reach::clone(now);
            match reached {
                Some(reached) => drop(next.of.insert(raft_id, reached)),
                None => drop(next.of.remove(&raft_id)),
            }
            *now = Arc::new(next);
            true
        });
    }

    /// Something is learned of a remote that is reached.
    fn change_reached(&self, raft_id: RaftId, change: impl FnOnce(&mut Reached)) {
        // In one step: who is reached no more must not come back by what was asked before.
        self.reach.send_if_modified(|now| {
            let Some(known) = now.of.get(&raft_id) else { return false };
            let mut reached = known.clone();
            change(&mut reached);
            if reached == *known {
                return false;
            }
            let mut next = Reach::clone(now);
            next.of.insert(raft_id, reached);
            *now = Arc::new(next);
            true
        });
    }

    /// A message to `to` was lost: raft shall not wait for its effect.
    fn lost(&self, to: RaftId, kind: MessageKind) {
        self.mailbox.unreachable(to);
        if kind == MessageKind::Snapshot {
            self.mailbox.snapshot_report(to, false);
        }
    }
}

#[cfg(test)]
mod tests;
