//! From raft's `Ready` to outputs, in the one order that is safe.
//!
//! raft-rs 0.7: `advance_append_async` right after `ready` (the entries are readable from memory by then),
//! `on_persist_ready` when they are on stable storage. A leader's messages may go before its own write, unless
//! that write is what makes it the leader; every other node's wait for it, and for all writes before it. Committed
//! entries come out of a `Ready` only when an earlier write has stored them, so they may be applied at once.
//!
//! While writes are under way further ones may follow, up to a bound. Two kinds travel alone: a snapshot, since
//! what follows it must find it installed; and entries that take the place of others, since raft-rs tells which
//! entries are stored by index and term, which may be those of an earlier write that a later one took back.

use bytes::Bytes;
use p2p_common::member::RaftId;
use protobuf::Message as _;
use raft::eraftpb::{self, ConfChangeV2};
use slog::{debug, info};

use super::RaftCore;
use crate::log::{EntryKind, HardState, LogEntry};
use crate::membership::Membership;
use crate::message::{Message, MessageKind};
use crate::output::{Committed, CommittedKind, Output, Persist};
use crate::snapshot::{Building, Compaction, Snapshot};

/// A write the owner was asked for, and what waits for it.
#[derive(Debug)]
pub(super) struct InFlight {
    persist_number: u64,
    ready_number: u64,
    /// Term and vote in it.
    ballot: (u64, RaftId),
    messages: Vec<Message>,
    install: Option<Snapshot>,
    /// No other write may be under way with it.
    alone: bool,
    since_tick: u64,
}

impl RaftCore {
    /// The next thing to do; `None` when everything waits for inputs or for a write.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            // What cannot be written yet goes on gathering.
            if !self.leads() || self.may_write() {
                self.append_queued();
            }
            self.answer_early_reads();
            self.ask_read_index();
            self.begin_snapshot();
            if self.raw.has_ready() && self.may_take_ready() {
                self.take_ready();
            } else if self.outputs.is_empty() {
                return None;
            }
        }
    }

    /// The write of [`Output::Persist`] number `number` is on stable storage, and so are all before it.
    ///
    /// # Panics
    ///
    /// When that write is not under way: the owner would claim durability it does not have.
    pub fn handle_persisted(&mut self, number: u64) {
        let Some(place) = self.in_flight.iter().position(|write| write.persist_number == number) else {
            self.broken("persisted", &format_args!("write {number} is not under way"))
        };
        let rest = self.in_flight.split_off(place + 1);
        let mut stored = std::mem::replace(&mut self.in_flight, rest);
        let messages = stored.iter_mut().flat_map(|write| std::mem::take(&mut write.messages));
        let mut messages: Vec<_> = messages.collect();
        drop_overtaken(&mut messages);
        self.send(messages);
        for write in stored {
            self.on_stored(write);
        }
        if self.log_is_stored() {
            self.hold_waiting_elections();
        }
    }

    fn on_stored(&mut self, in_flight: InFlight) {
        self.stored_ballot = in_flight.ballot;
        self.raw.on_persist_ready(in_flight.ready_number);
        if let Some(snapshot) = in_flight.install {
            info!(self.logger, "snapshot installed"; "index" => snapshot.index, "term" => snapshot.term);
            self.applied = snapshot.index;
            self.set_membership(snapshot.membership.clone());
            self.raw.advance_apply_to(snapshot.index);
            self.outputs.push_back(Output::Install(snapshot));
            self.release_reads();
        }
        self.observe();
    }

    fn hold_waiting_elections(&mut self) {
        if std::mem::take(&mut self.waits_for_disk.campaign) {
            self.handle_campaign();
        }
        if let Some(timeout_now) = self.waits_for_disk.timeout_now.take() {
            self.raw.step(timeout_now.to_raft()).ok();
            self.observe();
        }
    }

    /// Whether all raft has is on stable storage.
    pub(super) fn log_is_stored(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let taken = log.unstable_entries().is_empty() && log.unstable_snapshot().is_none();
        taken && self.in_flight.is_empty()
    }

    /// Whether one more write may be begun.
    fn may_write(&self) -> bool {
        let room = self.in_flight.len() < self.config.writes_in_flight_max;
        room && self.in_flight.iter().all(|in_flight| !in_flight.alone)
    }

    /// Whether what raft has ready may be taken while writes are under way.
    fn may_take_ready(&self) -> bool {
        let Some(oldest) = self.in_flight.front() else { return true };
        // A leader that cannot write falls silent, so that others elect one that can.
        let hangs = self.tick - oldest.since_tick >= self.config.election_ticks;
        if oldest.install.is_some() || (hangs && self.leads()) {
            return false;
        }
        let log = &self.raw.raft.raft_log;
        let writes_snapshot = log.unstable_snapshot().is_some();
        let first = log.unstable_entries().first();
        let replaces = writes_snapshot || first.is_some_and(|first| first.index <= self.raw.store().last());
        let ballot = (self.raw.raft.term, self.raw.raft.vote);
        let newest_ballot = self.in_flight.back().map(|newest| newest.ballot);
        let writes = writes_snapshot || first.is_some() || newest_ballot != Some(ballot);
        !writes || (self.may_write() && !replaces)
    }

    /// The data of the snapshot asked for at `index` is encoded: it replaces the former one, and the log before
    /// it is forgotten but for a tail.
    pub fn handle_snapshot_built(&mut self, index: u64, data: Bytes) {
        let Some(building) = self.snapshots.end(index) else { return };
        if index <= self.raw.store().snapshot_index() {
            // One from the leader was newer.
            return;
        }
        let snapshot = Snapshot { index, term: building.term, membership: building.membership, data };
        let first_kept = self.raw.mut_store().compact(snapshot.clone(), self.config.keep_entries);
        info!(self.logger, "log compacted"; "snapshot_index" => index, "first_kept" => first_kept);
        self.outputs.push_back(Output::Compact(Compaction { snapshot, first_kept }));
    }

    /// The snapshot asked for at `index` could not be encoded; another try follows.
    pub fn handle_snapshot_failed(&mut self, index: u64) {
        self.snapshots.end(index);
    }

    fn take_ready(&mut self) {
        let mut ready = self.raw.ready();
        let ready_number = ready.number();
        let mut messages_now = to_messages(ready.take_messages());
        let mut messages_later = to_messages(ready.take_persisted_messages());
        if self.ballot_is_stored() {
            // These tell nothing of the log, and the leader's reads and its own staying the leader wait for them.
            let (prompt, later) = messages_later.into_iter().partition(|message| {
                matches!(message.kind, MessageKind::HeartbeatResponse | MessageKind::ReadIndex)
            });
            messages_later = later;
            messages_now.extend::<Vec<_>>(prompt);
        } else {
            messages_later.append(&mut messages_now);
        }
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let entries = ready.take_entries();
        let snapshot = (!ready.snapshot().is_empty()).then(|| Snapshot::from_raft(ready.snapshot()));
        // False when at most the commit index changed, which is not worth a write of its own: it goes with the
        // next one, and is raised to the applied index at a start.
        let must_persist = ready.must_sync();

        let log = self.raw.mut_store();
        let replaces = entries.first().is_some_and(|first| first.index <= log.last());
        if let Some(snapshot) = &snapshot {
            log.restore(snapshot.clone());
        }
        log.append(&entries);
        if let Some(hard_state) = ready.hs() {
            log.set_hard_state(hard_state.clone());
        }
        self.raw.advance_append_async(ready);

        self.send(messages_now);
        for state in read_states {
            self.reads.confirm(&state.request_ctx, state.index);
        }
        self.apply(committed);
        self.release_reads();
        if must_persist {
            self.persist_number += 1;
            let hard_state = HardState::from_raft(&self.raw.raft.hard_state());
            self.in_flight.push_back(InFlight {
                persist_number: self.persist_number,
                ready_number,
                ballot: (hard_state.term, hard_state.vote),
                messages: messages_later,
                alone: replaces || snapshot.is_some(),
                install: snapshot.clone(),
                since_tick: self.tick,
            });
            self.outputs.push_back(Output::Persist(Persist {
                number: self.persist_number,
                snapshot,
                entries: entries.iter().map(LogEntry::from_raft).collect(),
                hard_state,
            }));
        } else if let Some(newest) = self.in_flight.back_mut() {
            // Raft would take the writes under way for stored, too, were it told of a later number.
            newest.ready_number = ready_number;
            newest.messages.append(&mut messages_later);
        } else {
            self.raw.on_persist_ready(ready_number);
            self.send(messages_later);
        }
        self.observe();
    }

    fn ask_read_index(&mut self) {
        if self.leads_without_vote() {
            return;
        }
        if let Some(context) = self.reads.begin_round(self.tick) {
            self.raw.read_index(context);
            self.observe();
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.outputs.push_back(Output::Send(messages));
        }
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let committed = entries.into_iter().map(|entry| self.apply_entry(entry)).collect();
        self.applied = last;
        self.outputs.push_back(Output::Apply(committed));
        self.step_down_if_removed();
        // After the members changed: this is where raft leaves a joint configuration.
        self.raw.advance_apply_to(last);
        self.hand_over_if_demoted();
    }

    fn apply_entry(&mut self, entry: eraftpb::Entry) -> Committed {
        let (index, term) = (entry.index, entry.term);
        let entry = LogEntry::from_raft(&entry);
        let kind = match entry.kind {
            EntryKind::Normal if entry.data.is_empty() => CommittedKind::Empty,
            EntryKind::Normal => CommittedKind::Normal(entry.data),
            EntryKind::Membership => {
                let conf_change = ConfChangeV2::parse_from_bytes(&entry.data)
                    .unwrap_or_else(|error| self.broken("decoding a committed member change", &error));
                // All nodes accept or refuse it alike; one that refuses what others accept has another state.
                let conf_state = self
                    .raw
                    .apply_conf_change(&conf_change)
                    .unwrap_or_else(|error| self.broken("applying a committed member change", &error));
                let membership = Membership::from_raft(&conf_state);
                info!(self.logger, "members changed"; "index" => index, "members" => ?membership);
                self.set_membership(membership.clone());
                CommittedKind::Membership { membership, context: entry.context }
            }
        };
        Committed { index, term, kind, proposal: self.proposals.committed(term, index) }
    }

    fn set_membership(&mut self, membership: Membership) {
        self.joint_since_tick = membership.is_joint().then_some(self.tick);
        self.last_heard_tick.retain(|id, _| membership.contains(*id));
        self.membership = membership;
    }

    fn release_reads(&mut self) {
        for (token, index) in self.reads.release(self.applied) {
            self.outputs.push_back(Output::ReadReady { token, index });
        }
    }

    fn begin_snapshot(&mut self) {
        let log = self.raw.store();
        let wanted = log.take_wanted();
        if !self.snapshots.due(self.applied, log.snapshot_index(), wanted) {
            return;
        }
        // Not while a newer one from the leader waits for its write.
        let Ok(term) = self.raw.raft.raft_log.term(self.applied) else { return };
        if term == 0 {
            return;
        }
        debug!(self.logger, "snapshot begun"; "index" => self.applied, "for" => wanted);
        self.snapshots.begin(Building { index: self.applied, term, membership: self.membership.clone() });
        self.outputs.push_back(Output::BuildSnapshot { index: self.applied });
    }
}

/// One sync may acknowledge many appends: the last acknowledgement says what all those before it say.
fn drop_overtaken(messages: &mut Vec<Message>) {
    let acknowledges = |message: &Message| message.kind == MessageKind::AppendResponse && !message.reject;
    let mut said: Vec<(RaftId, u64, u64)> = Vec::new();
    messages.reverse();
    messages.retain(|message| {
        if !acknowledges(message) {
            return true;
        }
        let overtaken = |later: &(RaftId, u64, u64)| {
            (later.0, later.1) == (message.to, message.term) && later.2 >= message.index
        };
        let news = !said.iter().any(overtaken);
        if news {
            said.push((message.to, message.term, message.index));
        }
        news
    });
    messages.reverse();
}

fn to_messages(messages: Vec<eraftpb::Message>) -> Vec<Message> {
    let convert = |message: eraftpb::Message| {
        Message::from_raft(&message).expect("proposals and transfers are never forwarded, others never sent")
    };
    messages.into_iter().map(convert).collect()
}
