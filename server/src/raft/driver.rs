//! The raft thread: drives [`RaftCore`] with what comes in, and does what it puts out, in its order.
//!
//! ```text
//! loop: wait for input or the tick ─► feed everything ─► outputs: send, hand to storage, apply
//!       ─► publish the view ─► answer waiters
//! ```
//!
//! Waiters are answered after the view is published, so that whoever was told "done" finds it there. The disk is
//! waited for by the [storage](super::storage) thread, and snapshots are encoded elsewhere, so that heartbeats and reads
//! go on meanwhile. A failed write, and a panic, end the thread and with it the process: what this Server would say next
//! could be a lie.
//!
//! Owner of: the raft core, the state machine.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2p_common::cluster_state::ClusterState;
use p2p_common::command::Outcome;
use p2p_proto::convert;
use p2p_server_raft::{
    Committed, CommittedKind, Fsm, Message, MessageRefused, Output, ProposalFailure, ProposalToken,
    RaftConfig, RaftCore, ReadFailure, ReadToken, Role, StartRefused, TICK_MS,
};
use slog::{Drain, Logger, debug, error, info, warn};
use tokio::sync::{oneshot, watch};

use super::mailbox::{Inbox, Mailbox, Request};
use super::storage::{Disk, Storage, Work};
use super::view::View;
use crate::store::{Store, StoreError, Stored};

/// Before an election on evidence: long enough that others see the same, short enough that nobody waits.
const EVIDENCE_DELAY: Duration = Duration::from_millis(10);
/// More for each voter of a lower rank: the first has asked everyone before the second starts.
const EVIDENCE_RANK_DELAY: Duration = Duration::from_millis(25);
/// How often the commit index is stored while nothing else is.
const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// Where raft messages leave this process. Never blocks: what cannot go is dropped and reported to the mailbox.
pub trait Outbox: Send + 'static {
    /// Sends each to the Server its `to` names.
    fn send(&mut self, messages: Vec<Message>);
}

/// What the thread starts from.
pub struct DriverParams<O, D = Store> {
    /// Raft's settings.
    pub config: RaftConfig,
    /// Where everything is kept.
    pub store: D,
    /// What it holds.
    pub stored: Stored,
    /// What this Server goes by until its log brings the replicated state.
    pub state: ClusterState,
    /// What comes in.
    pub mailbox: Mailbox,
    /// Where messages go.
    pub outbox: O,
    /// Where to report.
    pub logger: Logger,
}

/// Why the thread has ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverEnd {
    /// It was asked to.
    #[error("stopped")]
    Stopped,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The leader knows of entries that this Server has acknowledged and lost (SPEC C9).
    #[error("{0}")]
    LogLost(MessageRefused),
    /// What the log or a snapshot holds cannot be read.
    #[error(
        "{what} cannot be read: {reason}. Is this version older than that of the other servers? Upgrade it"
    )]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A bug.
    #[error("raft has stopped: {0}")]
    Panicked(String),
}

impl DriverEnd {
    /// The end by a caught panic.
    pub(super) fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        DriverEnd::Panicked(text.unwrap_or("a panic without a text").to_owned())
    }
}

/// What a running thread gives to others.
#[derive(Debug)]
pub struct Driver {
    /// The state, the newest only.
    pub view: watch::Receiver<Arc<View>>,
    /// Resolves when the thread has ended.
    pub end: oneshot::Receiver<DriverEnd>,
}

/// Starts the thread.
///
/// # Errors
/// When the stored log cannot be one: nothing was changed.
pub fn spawn_driver<O: Outbox, D: Disk>(params: DriverParams<O, D>) -> Result<Driver, StartRefused> {
    let DriverParams { config, store, stored, state, mailbox, outbox, logger } = params;
    let raft_id = config.raft_id;
    let core = RaftCore::new(config, stored.loaded, quiet(&logger))?;
    let fsm = Fsm::new(state);
    let view = View {
        raft_id,
        status: core.status(),
        membership: core.membership().clone(),
        applied: 0,
        committed: core.committed(),
        state: Arc::clone(fsm.state()),
    };
    let (view_tx, view_rx) = watch::channel(Arc::new(view));
    let (end_tx, end) = oneshot::channel();
    let mut driver = DriverThread {
        core,
        storage: Storage::spawn(store, mailbox.clone()),
        fsm,
        has_state: false,
        mailbox,
        outbox,
        logger,
        waiting: BTreeMap::new(),
        reading: BTreeMap::new(),
        next_token: 0,
        answers: Vec::new(),
        view: view_tx,
        campaign_at: None,
    };
    let body = move || {
        let end = catch_unwind(AssertUnwindSafe(|| driver.run()));
        let end = end.unwrap_or_else(|panic| DriverEnd::from_panic(&*panic));
        // Whoever learns of the end may open the store again.
        drop(driver);
        // Nobody listening means that the process is ending anyway.
        let _ = end_tx.send(end);
    };
    std::thread::Builder::new().name("raft".into()).spawn(body).expect("a process may start one thread");
    Ok(Driver { view: view_rx, end })
}

/// The raft crate tells every step of an election; what people need to know is told here.
fn quiet(logger: &Logger) -> Logger {
    let wanted = |record: &slog::Record<'_>| {
        record.level().is_at_least(slog::Level::Warning) || !record.module().starts_with("raft::")
    };
    Logger::root(slog::Filter::new(logger.clone(), wanted).ignore_res(), slog::o!())
}

/// Who waits for a proposal.
enum Waiter {
    Command(oneshot::Sender<Result<(u64, Outcome), ProposalFailure>>),
    Change(oneshot::Sender<Result<(), ProposalFailure>>),
}

struct DriverThread<O> {
    core: RaftCore,
    storage: Storage,
    fsm: Fsm,
    /// `fsm` holds what raft says, not only what the introducer said.
    has_state: bool,
    mailbox: Mailbox,
    outbox: O,
    logger: Logger,
    waiting: BTreeMap<ProposalToken, Waiter>,
    reading: BTreeMap<ReadToken, oneshot::Sender<Result<u64, ReadFailure>>>,
    next_token: u64,
    /// Given once the view they speak of is published.
    answers: Vec<Box<dyn FnOnce() + Send>>,
    view: watch::Sender<Arc<View>>,
    /// When to stand for election on evidence.
    campaign_at: Option<Instant>,
}

impl<O: Outbox> DriverThread<O> {
    fn run(&mut self) -> DriverEnd {
        match self.drive() {
            Ok(()) => DriverEnd::Stopped,
            Err(end) => {
                error!(self.logger, "raft ends"; "error" => %end);
                end
            }
        }
    }

    fn drive(&mut self) -> Result<(), DriverEnd> {
        let tick = Duration::from_millis(TICK_MS);
        let mut next_tick = Instant::now() + tick;
        let mut next_commit = Instant::now() + COMMIT_EVERY;
        let mut commit_given = 0;
        self.work()?;
        loop {
            let inbox = self.mailbox.wait(self.campaign_at.map_or(next_tick, |at| at.min(next_tick)));
            if inbox.stop {
                return Ok(());
            }
            self.feed(inbox)?;
            let now = Instant::now();
            if now >= next_tick {
                self.core.handle_tick();
                // Ticks missed while the disk was slow are not made up for: messages that came meanwhile count first.
                next_tick = (next_tick + tick).max(now);
            }
            if self.campaign_at.is_some_and(|at| now >= at) {
                self.campaign_at = None;
                self.core.handle_campaign();
            }
            self.work()?;
            if now >= next_commit {
                next_commit = now + COMMIT_EVERY;
                let applied = self.core.applied();
                if applied > commit_given {
                    self.storage.give(Work::RaiseCommit(applied));
                    commit_given = applied;
                }
            }
        }
    }

    fn feed(&mut self, inbox: Inbox) -> Result<(), DriverEnd> {
        if let Some(end) = inbox.storage_ended {
            return Err(end);
        }
        if let Some(number) = inbox.persisted {
            self.core.handle_persisted(number);
        }
        for message in &inbox.messages {
            match self.core.handle_message(message) {
                Ok(()) => {}
                Err(lost @ MessageRefused::LogLost { .. }) => return Err(DriverEnd::LogLost(lost)),
                Err(diverged @ MessageRefused::LogDiverged { .. }) => {
                    error!(self.logger, "raft message contradicts the log"; "error" => %diverged);
                }
                Err(refused) => debug!(self.logger, "raft message refused"; "error" => %refused),
            }
        }
        for raft_id in inbox.unreachable {
            self.core.handle_unreachable(raft_id);
        }
        for (raft_id, taken) in inbox.snapshot_reports {
            self.core.handle_snapshot_report(raft_id, taken);
        }
        for raft_id in inbox.gone {
            if let Some(rank) = self.core.handle_leader_gone(raft_id) {
                let spread = Duration::from_millis(rand::random_range(0..10));
                let at = Instant::now() + EVIDENCE_DELAY + EVIDENCE_RANK_DELAY * rank + spread;
                info!(self.logger, "leader is gone, standing for election"; "leader" => raft_id, "rank" => rank);
                self.campaign_at = Some(at);
            }
        }
        if let Some((index, data)) = inbox.built {
            self.core.handle_snapshot_built(index, data);
        }
        for request in inbox.requests {
            self.take(request);
        }
        Ok(())
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Propose { command, reply } => {
                let token = ProposalToken(self.token());
                self.waiting.insert(token, Waiter::Command(reply));
                self.core.handle_propose(token, command);
            }
            Request::Change { change, reply } => {
                let token = ProposalToken(self.token());
                self.waiting.insert(token, Waiter::Change(reply));
                self.core.handle_change_members(token, &change, bytes::Bytes::new());
            }
            Request::Read { reply } => {
                let token = ReadToken(self.token());
                self.reading.insert(token, reply);
                self.core.handle_read(token);
            }
            Request::Transfer { to, reply } => {
                let result = self.core.handle_transfer(to);
                self.answer(reply, result);
            }
            Request::Progress { reply } => {
                let progress = self.core.progress();
                self.answer(reply, progress);
            }
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Everything that is due now.
    fn work(&mut self) -> Result<(), DriverEnd> {
        while let Some(output) = self.core.poll_output() {
            self.carry_out(output)?;
        }
        self.publish();
        for answer in self.answers.drain(..) {
            answer();
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> Result<(), DriverEnd> {
        match output {
            Output::Send(messages) => self.outbox.send(messages),
            Output::Persist(persist) => self.storage.give(Work::Persist(persist)),
            Output::Install(snapshot) => {
                let state = convert::decode_state(&snapshot.data).map_err(|e| DriverEnd::Unreadable {
                    what: "the snapshot of the cluster's state",
                    reason: e.to_string(),
                })?;
                self.fsm = Fsm::new(state);
                self.has_state = true;
            }
            Output::Apply(entries) => {
                for entry in entries {
                    self.apply(entry)?;
                }
            }
            Output::ProposalFailed { token, failure } => match self.waiting.remove(&token) {
                Some(Waiter::Command(reply)) => self.answer(reply, Err(failure)),
                Some(Waiter::Change(reply)) => self.answer(reply, Err(failure)),
                None => {}
            },
            Output::ReadReady { token, index } => {
                if let Some(reply) = self.reading.remove(&token) {
                    self.answer(reply, Ok(index));
                }
            }
            Output::ReadFailed { token, failure } => {
                if let Some(reply) = self.reading.remove(&token) {
                    self.answer(reply, Err(failure));
                }
            }
            Output::Status(status) => {
                let role = match status.role {
                    Role::Follower => "follower",
                    Role::PreCandidate | Role::Candidate => "candidate",
                    Role::Leader => "leader",
                };
                info!(self.logger, "raft status changed"; "role" => role, "term" => status.term,
                    "leader" => status.leader, "ready" => status.leader_ready);
            }
            Output::BuildSnapshot { index } => self.build_snapshot(index),
            Output::Compact(compaction) => self.storage.give(Work::Compact(compaction)),
        }
        Ok(())
    }

    fn apply(&mut self, entry: Committed) -> Result<(), DriverEnd> {
        let waiter = entry.proposal.and_then(|token| self.waiting.remove(&token));
        let index = entry.index;
        match entry.kind {
            CommittedKind::Normal(data) => {
                // Skipping it would make this Server's state another than that of those who can read it.
                let command = convert::decode_command(&data).map_err(|e| DriverEnd::Unreadable {
                    what: "a command of the log",
                    reason: e.to_string(),
                })?;
                let outcome = self.fsm.apply(&command);
                if let Some(Waiter::Command(reply)) = waiter {
                    self.answer(reply, Ok((index, outcome)));
                }
            }
            CommittedKind::Membership { .. } => {
                if let Some(Waiter::Change(reply)) = waiter {
                    self.answer(reply, Ok(()));
                }
            }
            CommittedKind::Empty => {}
        }
        Ok(())
    }

    /// Encodes the state elsewhere: it may take longer than a heartbeat may wait.
    fn build_snapshot(&mut self, index: u64) {
        let (state, mailbox) = (Arc::clone(self.fsm.state()), self.mailbox.clone());
        let encode = move || mailbox.built(index, convert::encode_state(&state).into());
        if let Err(error) = std::thread::Builder::new().name("raft-snapshot".into()).spawn(encode) {
            warn!(self.logger, "no thread to encode a snapshot"; "error" => %error);
            self.core.handle_snapshot_failed(index);
        }
    }

    fn answer<T: Send + 'static>(&mut self, reply: oneshot::Sender<T>, answer: T) {
        self.answers.push(Box::new(move || {
            // Whoever asked has given up waiting.
            let _ = reply.send(answer);
        }));
    }

    fn publish(&mut self) {
        let status = self.core.status();
        let applied = if self.has_state { self.core.applied() } else { 0 };
        self.view.send_if_modified(|view| {
            let state = self.fsm.state();
            let same = view.status == status
                && view.applied == applied
                && view.committed == self.core.committed()
                && Arc::ptr_eq(&view.state, state)
                && view.membership == *self.core.membership();
            if !same {
                *view = Arc::new(View {
                    raft_id: view.raft_id,
                    status,
                    membership: self.core.membership().clone(),
                    applied,
                    committed: self.core.committed(),
                    state: Arc::clone(state),
                });
            }
            !same
        });
    }
}

#[cfg(test)]
mod tests;
