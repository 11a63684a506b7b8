//! Raft messages between Servers, in its plain form: per remote Server one task and one stream.
//!
//! ```text
//! raft thread ──send──► queue (4,096) ──► remote task ──batches──► Raft.Stream of the remote
//!                        full, or not connected:   └─snapshots──► Raft.SendSnapshot, own connection
//!                        dropped and reported
//! ```
//!
//! Every Server keeps a connection to every other one of table C, whoever leads; [`Remotes`] follows the table
//! at run time. What comes in goes straight to the raft thread's mailbox; who may send is checked by the API.
//! A remote whose connection breaks *and* whose port refuses a new one is gone: raft is told, and need not wait for
//! the election time-out (FACTS 6 measured what that saves).
//!
//! Source: SPEC T1, T4-T6, C2.

mod alarms;
pub(crate) mod handshake;
mod knock;
mod metrics;
mod reach;
mod remote;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use p2p_common::command::Outcome;
use p2p_common::member::{Member, RaftId};
use p2p_common::wire::{Hello, VERSIONS};
use p2p_common::{Epoch, Incarnation, NodeId, RecoveryId, UnixMs};
use p2p_proto::status::code_of;
use p2p_proto::{convert, v1};
use p2p_runtime::clock::Clock;
use p2p_runtime::tls::Credentials;
use p2p_server_raft::{Message, MessageKind};
use slog::{Logger, o};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::raft::{Mailbox, Outbox, ProposeError, View};

pub use alarms::{Alarm, Alarms, MustStop};
pub use metrics::TransportMetrics;
pub use reach::{Reach, Reached};
pub use snapshot::{Assembly, SNAPSHOT_BYTES_MAX};

/// Messages on their way to one remote (SPEC T3).
const QUEUE: usize = 4_096;
/// At most this many bytes of messages in one batch; a message of raft has at most 1 MiB of entries.
const BATCH_BYTES: usize = 1 << 20;
/// What a receiver takes in one batch: two of the above and some room.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// The remotes whose stream is taken, by raft id.
pub type Connected = watch::Receiver<Arc<BTreeSet<RaftId>>>;

/// How a remote Server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStatus {
    /// Our stream to it is taken there.
    pub connected: bool,
    /// In this state since.
    pub since: UnixMs,
    /// Why not connected; empty when it is.
    pub reason: String,
}

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
    remotes: ArcSwap<BTreeMap<RaftId, Remote>>,
}

/// One remote as the others of this process see it.
#[derive(Debug, Clone)]
struct Remote {
    id: NodeId,
    queue: mpsc::Sender<Message>,
    member: Arc<watch::Sender<Member>>,
    status: watch::Receiver<RemoteStatus>,
    /// For calls; there while connected.
    channel: watch::Receiver<Option<Channel>>,
    /// Cuts its rest between two dials short.
    wake: Arc<Notify>,
    stop: CancellationToken,
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
        };
        Remotes { shared: Arc::new(shared) }
    }

    /// Keeps one task per other Server of table C until the process stops.
    pub async fn follow(self, mut view: watch::Receiver<Arc<View>>) {
        loop {
            let others = view.borrow_and_update().others();
            self.update(others);
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = self.shared.stop.cancelled() => return,
            }
        }
    }

    fn update(&self, others: BTreeMap<RaftId, Member>) {
        let now = self.shared.remotes.load();
        let unchanged = now.len() == others.len()
            && others.iter().all(|(id, member)| now.get(id).is_some_and(|r| *r.member.borrow() == *member));
        if unchanged {
            return;
        }
        let mut next = BTreeMap::clone(&now);
        next.retain(|raft_id, remote| {
            let stays = others.get(raft_id).is_some_and(|member| member.id == remote.id);
            if !stays {
                remote.stop.cancel();
                self.shared.alarms.settled(remote.id);
            }
            stays
        });
        for (raft_id, member) in others {
            match next.get(&raft_id) {
                Some(remote) => drop(remote.member.send_if_modified(|known| {
                    let changed = *known != member;
                    if changed {
                        *known = member;
                    }
                    changed
                })),
                None => drop(next.insert(raft_id, self.spawn(member))),
            }
        }
        self.shared.remotes.store(Arc::new(next));
    }

    fn spawn(&self, member: Member) -> Remote {
        let stop = self.shared.stop.child_token();
        let (queue, messages) = mpsc::channel(QUEUE);
        let (status_tx, status) = watch::channel(RemoteStatus {
            connected: false,
            since: p2p_runtime::clock::unix_now(),
            reason: "not dialled yet".to_owned(),
        });
        let (channel_tx, channel) = watch::channel(None);
        let id = member.id;
        let log = self.shared.log.new(o!("remote" => member.name.clone(), "remote_id" => id));
        let (member_tx, member) = watch::channel(member);
        let wake = Arc::new(Notify::new());
        let task = remote::RemoteTask {
            shared: Arc::clone(&self.shared),
            member,
            messages,
            status: status_tx,
            channel: channel_tx,
            wake: Arc::clone(&wake),
            stop: stop.clone(),
            log,
            run: None,
        };
        tokio::spawn(task.run());
        Remote { id, queue, member: Arc::new(member_tx), status, channel, wake, stop }
    }

    /// How each remote is, by Id.
    pub fn status(&self) -> BTreeMap<NodeId, RemoteStatus> {
        let remotes = self.shared.remotes.load();
        remotes.values().map(|remote| (remote.id, remote.status.borrow().clone())).collect()
    }

    /// A remote has opened a stream to us, so it is there: if it is not connected, it is dialled at once.
    pub fn wake(&self, raft_id: RaftId) {
        if let Some(remote) = self.shared.remotes.load().get(&raft_id) {
            remote.wake.notify_one();
        }
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
        let remotes = self.shared.remotes.load();
        let remote = remotes.get(&raft_id)?;
        let channel = remote.channel.borrow().clone()?;
        Some((remote.id, channel))
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
        let remotes = self.shared.remotes.load();
        for message in messages {
            let (to, kind) = (message.to, message.kind);
            let sent = remotes.get(&to).is_some_and(|remote| remote.queue.try_send(message).is_ok());
            if !sent {
                self.shared.dropped(to, kind);
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

    /// A message to `to` was lost: raft shall not wait for its effect.
    fn dropped(&self, to: RaftId, kind: MessageKind) {
        self.metrics.dropped.inc();
        self.mailbox.unreachable(to);
        if kind == MessageKind::Snapshot {
            self.mailbox.snapshot_report(to, false);
        }
    }
}

#[cfg(test)]
mod tests;
