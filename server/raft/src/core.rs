//! The raft group member as inputs and outputs, around the raft crate's `RawNode`.
//!
//! ```text
//! inputs ──► RawNode ──► Ready ──► Send (a leader's messages may overtake its own log write)
//!   ▲                              Apply (committed and stored before), reads and proposals answered
//!   │                              Persist ─ ─ the owner writes and syncs
//!   └── handle_persisted ◄─ ─ ─ ─ ─ ┘
//!               └────► Install, Send (what had to wait for the disk), next Ready
//! ```
//!
//! Writes are stored in order, and several may be under way: meanwhile a leader goes on telling its followers of
//! new entries, and everyone answers heartbeats and reads. What rests on a write waits for it. The entries of a
//! write are readable in [`MemoryLog`] at once, as raft demands.

mod leadership;
mod messages;
mod ready;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use p2p_common::member::RaftId;
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use slog::{Logger, error, info};

use crate::config::{COMMAND_BYTES_MAX, RaftConfig};
use crate::election::Election;
use crate::log::{BadLog, Loaded, MemoryLog};
use crate::membership::{Membership, MembershipChange, Situation};
use crate::message::Message;
use crate::output::{Output, Role, Status};
use crate::proposals::{ProposalFailure, ProposalToken, Proposals};
use crate::reads::{ReadToken, Reads};
use crate::snapshot::Snapshots;

pub use messages::MessageRefused;
use ready::InFlight;

/// Least election time-outs of silence after which a leader is none any more, for those who cannot elect another.
const LEADER_SILENCE: u64 = 2;

/// Why the core does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartRefused {
    /// What was loaded is no log this core has written.
    #[error("the stored raft log is damaged: {0}")]
    BadLog(String),
    /// A setting raft refuses.
    #[error("raft refuses its settings or its log")]
    Raft(#[source] raft::Error),
}

impl From<BadLog> for StartRefused {
    fn from(bad: BadLog) -> Self {
        StartRefused::BadLog(bad.to_string())
    }
}

/// Why leadership is not handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferRefused {
    /// Only the leader can.
    #[error("this server does not lead")]
    NotLeader,
    /// Only a voter can lead.
    #[error("raft id {0} is not a voter other than this server")]
    NotAVoter(RaftId),
}

/// Elections put off until the whole log is stored: raft-rs panics when one is won before.
#[derive(Debug, Default)]
struct WaitsForDisk {
    /// The moment after the evidence is over.
    campaign: bool,
    /// The leader hands over to this node.
    timeout_now: Option<Message>,
}

/// Another member as this node, leading, sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberProgress {
    /// Which member.
    pub raft_id: RaftId,
    /// The last entry known to be stored there.
    pub matched: u64,
    /// Entries it lacks of the leader's log.
    pub behind: u64,
    /// Ticks since its last message; `None` when there was none since this node started.
    pub silent_ticks: Option<u64>,
    /// A snapshot is on its way to it.
    pub receives_snapshot: bool,
}

/// One member of the raft group. See the crate's documentation for how to drive it.
pub struct RaftCore {
    config: RaftConfig,
    logger: Logger,
    raw: RawNode<MemoryLog>,
    outputs: VecDeque<Output>,
    /// Writes under way, the oldest first.
    in_flight: VecDeque<InFlight>,
    persist_number: u64,
    waits_for_disk: WaitsForDisk,
    proposals: Proposals,
    reads: Reads,
    /// Other nodes' questions for a read index that came before this leader could answer them.
    early_reads: Vec<Message>,
    snapshots: Snapshots,
    election: Election,
    status: Status,
    /// Term and vote on stable storage.
    stored_ballot: (u64, RaftId),
    membership: Membership,
    joint_since_tick: Option<u64>,
    applied: u64,
    tick: u64,
    last_heard_tick: BTreeMap<RaftId, u64>,
    /// When the leader raft follows was last heard.
    leader_heard_tick: u64,
}

impl RaftCore {
    /// Starts from what stable storage holds. The only voter of a group leads at once.
    ///
    /// # Errors
    ///
    /// When what was loaded cannot be a log, or a setting is out of range. Nothing was changed.
    pub fn new(config: RaftConfig, loaded: Loaded, logger: Logger) -> Result<Self, StartRefused> {
        let stored_applied = loaded.applied.as_ref().map_or(0, |applied| applied.index);
        let (log, applied) = MemoryLog::load(loaded)?;
        let membership = log.start_membership().clone();
        let reinstall = log.snapshot().filter(|snapshot| snapshot.index > stored_applied).cloned();
        let raft_config = config.to_raft(applied);
        raft_config.validate().map_err(StartRefused::Raft)?;
        let raw = RawNode::new(&raft_config, log, &logger).map_err(StartRefused::Raft)?;
        let mut election = Election::new(config.raft_id, config.seed, config.election_ticks);
        let nonce = election.nonce();
        let mut core = RaftCore {
            status: Status { role: Role::Follower, leader: None, term: raw.raft.term, leader_ready: false },
            stored_ballot: (raw.raft.term, raw.raft.vote),
            joint_since_tick: membership.is_joint().then_some(0),
            proposals: Proposals::new(config.proposals_max),
            reads: Reads::new(&config, nonce),
            early_reads: Vec::new(),
            snapshots: Snapshots::new(config.snapshot_every_entries),
            outputs: reinstall.map(Output::Install).into_iter().collect(),
            in_flight: VecDeque::new(),
            persist_number: 0,
            waits_for_disk: WaitsForDisk::default(),
            last_heard_tick: BTreeMap::new(),
            leader_heard_tick: 0,
            tick: 0,
            config,
            logger,
            raw,
            election,
            membership,
            applied,
        };
        core.observe();
        core.campaign_if_alone();
        Ok(core)
    }

    /// Time goes on by one tick.
    pub fn handle_tick(&mut self) {
        self.tick += 1;
        // Who cannot write must not stand for election; and raft-rs panics when the only voter wins one while
        // its last entries are not stored.
        if self.log_is_stored() || self.leads() {
            self.raw.tick();
            self.end_lease();
        }
        self.observe();
        self.campaign_if_alone();
        self.stand_again();
        self.leave_old_joint();
        self.hand_over_if_demoted();
        for token in self.reads.expire(self.tick) {
            self.outputs.push_back(Output::ReadFailed { token, failure: crate::ReadFailure::TimedOut });
        }
    }

    /// Queues a command. It is appended with all others queued when outputs are polled next; its result is
    /// [`Output::ProposalFailed`] or comes back with the committed entry.
    pub fn handle_propose(&mut self, token: ProposalToken, command: Bytes) {
        if command.len() > COMMAND_BYTES_MAX {
            self.fail_proposal(token, ProposalFailure::TooLarge { bytes: command.len() });
        } else if self.proposals.is_full() {
            self.fail_proposal(token, ProposalFailure::Busy);
        } else {
            self.proposals.queue(token, command);
        }
    }

    /// Proposes a change of the members; `context` comes back with it when it is committed. A change through a
    /// joint configuration is answered when that is *entered*: from then on it cannot fail any more, and
    /// [`RaftCore::membership`] tells when it is left.
    pub fn handle_change_members(&mut self, token: ProposalToken, change: &MembershipChange, context: Bytes) {
        self.append_queued();
        if let Err(failure) = self.try_change_members(token, change, context) {
            self.fail_proposal(token, failure);
        }
    }

    fn try_change_members(
        &mut self,
        token: ProposalToken,
        change: &MembershipChange,
        context: Bytes,
    ) -> Result<(), ProposalFailure> {
        self.check_may_propose()?;
        if context.len() > COMMAND_BYTES_MAX {
            return Err(ProposalFailure::TooLarge { bytes: context.len() });
        }
        if self.proposals.is_full() {
            return Err(ProposalFailure::Busy);
        }
        if self.raw.raft.has_pending_conf() {
            return Err(crate::ChangeRefused::UnderWay.into());
        }
        let conf_change = Situation {
            me: self.config.raft_id,
            membership: &self.membership,
            progress: &self.progress(),
            caught_up_entries: self.config.caught_up_entries,
            election_ticks: self.config.election_ticks,
        }
        .plan(change)?;
        info!(self.logger, "member change proposed"; "change" => ?change);
        let index = self.raw.raft.raft_log.last_index() + 1;
        self.raw
            .propose_conf_change(context.to_vec(), conf_change)
            .map_err(|_dropped| ProposalFailure::Busy)?;
        self.proposals.appended(self.raw.raft.term, index, token);
        self.observe();
        Ok(())
    }

    /// Asks for a linearizable read: [`Output::ReadReady`] when the state machine may answer it, on any node.
    pub fn handle_read(&mut self, token: ReadToken) {
        if let Err(failure) = self.reads.queue(token, self.tick) {
            self.outputs.push_back(Output::ReadFailed { token, failure });
        }
    }

    /// Messages to `raft_id` were lost, or it cannot be reached.
    pub fn handle_unreachable(&mut self, raft_id: RaftId) {
        self.raw.report_unreachable(raft_id);
        self.observe();
    }

    /// A message of kind `Snapshot` to `raft_id` was taken there, or not. Raft sends nothing else to it before.
    pub fn handle_snapshot_report(&mut self, raft_id: RaftId, taken: bool) {
        let status = if taken { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(raft_id, status);
        self.observe();
    }

    /// Hands leadership to `raft_id`; proposals are refused until it has it or an election time-out passed.
    ///
    /// # Errors
    ///
    /// When this node does not lead or `raft_id` has no vote.
    pub fn handle_transfer(&mut self, raft_id: RaftId) -> Result<(), TransferRefused> {
        if !self.leads() {
            return Err(TransferRefused::NotLeader);
        }
        if raft_id == self.config.raft_id || !self.membership.voters.contains(&raft_id) {
            return Err(TransferRefused::NotAVoter(raft_id));
        }
        self.append_queued();
        self.raw.transfer_leader(raft_id);
        self.observe();
        Ok(())
    }

    /// The process of the leader `raft_id` is known to be gone, and everything it sent was handed in. If that
    /// concerns this node, returns its rank
    /// (from 0) among the voters that remain: wait a moment, longer for a higher rank, then call
    /// [`RaftCore::handle_campaign`].
    pub fn handle_leader_gone(&mut self, raft_id: RaftId) -> Option<u32> {
        if self.status.leader != Some(raft_id) {
            return None;
        }
        let rank = self.election.note_gone(self.config.raft_id, &self.status, &self.membership)?;
        // No leader to protect any more: requests for votes are answered from now on.
        self.raw.raft.election_elapsed = self.raw.raft.election_timeout();
        self.observe();
        Some(rank)
    }

    /// The moment after [`RaftCore::handle_leader_gone`] is over: asks for votes, unless the leader was heard
    /// again or another one exists.
    pub fn handle_campaign(&mut self) {
        // An election needs the whole log stored.
        self.waits_for_disk.campaign = !self.log_is_stored();
        if self.waits_for_disk.campaign {
            return;
        }
        let silent = self.raw.raft.election_elapsed >= self.raw.raft.election_timeout();
        if self.election.take_gone(&self.status) && silent {
            self.stand_on_evidence();
        }
    }

    /// This node's role, leader and term, as last told by [`Output::Status`].
    pub fn status(&self) -> Status {
        self.status
    }

    /// The members as of the applied index.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The last entry handed out for applying.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The last entry known to be committed.
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The other members as the leader sees them, ascending; empty on others.
    pub fn progress(&self) -> Vec<MemberProgress> {
        if !self.leads() {
            return Vec::new();
        }
        let last = self.raw.raft.raft_log.last_index();
        let mut members: Vec<_> = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != self.config.raft_id)
            .map(|(id, progress)| MemberProgress {
                raft_id: *id,
                matched: progress.matched,
                behind: last.saturating_sub(progress.matched),
                silent_ticks: self.last_heard_tick.get(id).map(|heard| self.tick - heard),
                receives_snapshot: progress.state == ProgressState::Snapshot,
            })
            .collect();
        members.sort_by_key(|member| member.raft_id);
        members
    }

    /// Appends all queued proposals as one batch: one message to each follower, one write.
    fn append_queued(&mut self) {
        let queued = self.proposals.take_queued();
        if queued.is_empty() {
            return;
        }
        if let Err(failure) = self.check_may_propose() {
            for (token, _) in queued {
                self.fail_proposal(token, failure.clone());
            }
            return;
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        let mut message = raft::eraftpb::Message::default();
        message.set_msg_type(raft::eraftpb::MessageType::MsgPropose);
        message.from = self.config.raft_id;
        let entry = |command: &Bytes| raft::eraftpb::Entry { data: command.clone(), ..Default::default() };
        message.set_entries(queued.iter().map(|(_, command)| entry(command)).collect::<Vec<_>>().into());
        let result = self.raw.step(message);
        for (index, (token, _)) in (first..).zip(queued) {
            match &result {
                Ok(()) => self.proposals.appended(self.raw.raft.term, index, token),
                // Not leading and handing over are ruled out above: too many bytes are uncommitted.
                Err(_dropped) => self.fail_proposal(token, ProposalFailure::Busy),
            }
        }
        self.observe();
    }

    /// raft-rs would forward a follower's proposal, whose outcome then nobody learns.
    fn check_may_propose(&self) -> Result<(), ProposalFailure> {
        if !self.leads() {
            return Err(ProposalFailure::NotLeader { hint: self.status.leader });
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Err(ProposalFailure::HandingOver);
        }
        Ok(())
    }

    fn fail_proposal(&mut self, token: ProposalToken, failure: ProposalFailure) {
        self.outputs.push_back(Output::ProposalFailed { token, failure });
    }

    /// Draws conclusions after every step of raft: keeps time-outs reproducible, tells waiters of lost leadership,
    /// tells the owner of a new status.
    fn observe(&mut self) {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Leader if self.ballot_is_stored() => Role::Leader,
            StateRole::Candidate | StateRole::Leader => Role::Candidate,
        };
        let leader = Some(raft.leader_id).filter(|id| *id != raft::INVALID_ID);
        // A voter asks for votes before; raft lets all others follow a dead leader for ever.
        let silent = self.tick - self.leader_heard_tick >= LEADER_SILENCE * self.config.election_ticks;
        let status = Status {
            role,
            leader: leader.filter(|id| if *id == raft.id { role == Role::Leader } else { !silent }),
            term: raft.term,
            leader_ready: role == Role::Leader && raft.apply_to_current_term(),
        };
        if (status.role, status.term) != (self.status.role, self.status.term) {
            self.election.draw();
        }
        let following = leader.filter(|_| role == Role::Follower);
        let timeout_ticks = self.election.timeout_ticks(self.config.raft_id, following, &self.membership);
        self.raw.raft.set_randomized_election_timeout(timeout_ticks as usize);
        let leading = self.leads().then_some(status.term);
        for token in self.proposals.take_orphans(leading) {
            self.fail_proposal(token, ProposalFailure::OutcomeUnknown);
        }
        if status == self.status {
            return;
        }
        // A new leader knows nothing of a round begun with the old one, and none before it was ready.
        let leads = |status: &Status| (status.leader, status.term, status.leader_ready);
        if status.leader.is_some() && leads(&status) != leads(&self.status) {
            self.reads.abandon_rounds();
        }
        self.status = status;
        self.outputs.push_back(Output::Status(status));
    }

    /// What must never happen: the process ends, because going on could break what was promised.
    fn broken(&self, what: &'static str, error: &dyn std::fmt::Display) -> ! {
        error!(self.logger, "raft invariant broken"; "what" => what, "error" => %error);
        panic!("raft invariant broken: {what}: {error}")
    }
}
