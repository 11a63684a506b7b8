//! From raft's `Ready` to outputs, in the one order that is safe.
//!
//! raft-rs 0.7: `advance_append_async` right after `ready` (the entries are readable from memory by then),
//! `on_persist_ready` when they are on stable storage. A leader's messages may go before its own write, unless
//! that write is what makes it the leader; every other node's wait for it. Committed entries come out of a `Ready` only when an earlier write has stored them,
//! so they may be applied at once.

use bytes::Bytes;
use p2p_common::member::RaftId;
use protobuf::Message as _;
use raft::eraftpb::{self, ConfChangeV2};
use slog::{debug, info};

use super::RaftCore;
use crate::log::{EntryKind, HardState, LogEntry};
use crate::membership::Membership;
use crate::message::Message;
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
}

impl RaftCore {
    /// The next thing to do; `None` when everything waits for inputs or for a write.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            self.append_queued();
            self.ask_read_index();
            self.begin_snapshot();
            if self.in_flight.is_none() && self.raw.has_ready() {
                self.take_ready();
            } else if self.outputs.is_empty() {
                return None;
            }
        }
    }

    /// The write of [`Output::Persist`] number `number` is on stable storage.
    ///
    /// # Panics
    ///
    /// When that write is not the one under way: the owner would claim durability it does not have.
    pub fn handle_persisted(&mut self, number: u64) {
        let in_flight = self.in_flight.take().filter(|in_flight| in_flight.persist_number == number);
        let Some(in_flight) = in_flight else {
            self.broken("persisted", &format_args!("write {number} is not under way"))
        };
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
        self.send(in_flight.messages);
        self.observe();
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
        if !self.ballot_is_stored() {
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
            self.in_flight = Some(InFlight {
                persist_number: self.persist_number,
                ready_number,
                ballot: (hard_state.term, hard_state.vote),
                messages: messages_later,
                install: snapshot.clone(),
            });
            self.outputs.push_back(Output::Persist(Persist {
                number: self.persist_number,
                snapshot,
                entries: entries.iter().map(LogEntry::from_raft).collect(),
                hard_state,
            }));
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

fn to_messages(messages: Vec<eraftpb::Message>) -> Vec<Message> {
    let convert = |message: eraftpb::Message| {
        Message::from_raft(&message).expect("proposals and transfers are never forwarded, others never sent")
    };
    messages.into_iter().map(convert).collect()
}
