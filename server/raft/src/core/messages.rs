//! Messages from other Servers: checked against this node's state before raft sees them.
//!
//! raft-rs trusts its peers and panics on what contradicts its log. Here a message that cannot be right gives an
//! error; two of them are evidence that a log was lost, which an operator has to see (SPEC C9).

use p2p_common::member::RaftId;

use super::RaftCore;
use crate::message::{BadMessage, Message, MessageKind};

/// Questions for a read index kept by a new leader; whoever sent those beyond asks again.
const EARLY_READS_MAX: usize = 64;

/// Why a message was not taken. The state did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageRefused {
    /// It contradicts itself.
    #[error(transparent)]
    Bad(#[from] BadMessage),
    /// It is for another node.
    #[error("raft message for {to} arrived at {me}: is the address book wrong?")]
    NotForUs {
        /// The receiver it names.
        to: RaftId,
        /// This node.
        me: RaftId,
    },
    /// An answer from a node that is no member.
    #[error("raft answer from {from}, which is not a member")]
    NotAMember {
        /// The sender.
        from: RaftId,
    },
    /// The leader knows that this node stored entries which it does not have: its disk lost what it had
    /// acknowledged, so it must not vote any more.
    #[error(
        "the leader knows of entry {known} here, but the log ends at {last}: acknowledged entries were lost"
    )]
    LogLost {
        /// What this node once acknowledged.
        known: u64,
        /// What it has.
        last: u64,
    },
    /// The sender's log contradicts what is committed here.
    #[error("entry {index} from {from} contradicts a committed entry: one of the two logs is damaged")]
    LogDiverged {
        /// The sender.
        from: RaftId,
        /// Where.
        index: u64,
    },
}

impl RaftCore {
    /// A message has arrived.
    ///
    /// # Errors
    ///
    /// When it was not taken; see [`MessageRefused`].
    pub fn handle_message(&mut self, message: &Message) -> Result<(), MessageRefused> {
        message.validate()?;
        if message.to != self.config.raft_id {
            return Err(MessageRefused::NotForUs { to: message.to, me: self.config.raft_id });
        }
        self.check_against_log(message)?;
        if self.membership.contains(message.from) {
            self.last_heard_tick.insert(message.from, self.tick);
        }
        // Only the leader can answer; passing it on could go round in circles while the leader changes.
        let answers_reads = self.leads() && !self.leads_without_vote();
        if message.kind == MessageKind::ReadIndex && !answers_reads {
            return Ok(());
        }
        // A leader that has committed nothing yet will have in a moment; raft would drop the question, and whoever
        // asks would ask again after a while only.
        if message.kind == MessageKind::ReadIndex && !self.raw.raft.commit_to_current_term() {
            if self.early_reads.len() < EARLY_READS_MAX {
                self.early_reads.push(message.clone());
            }
            return Ok(());
        }
        // An election needs the whole log stored and the snapshot applied.
        if message.kind == MessageKind::TimeoutNow && !self.log_is_stored() {
            self.waits_for_disk.timeout_now = Some(message.clone());
            return Ok(());
        }
        let result = self.raw.step(message.to_raft());
        if message.from == self.raw.raft.leader_id && message.term == self.raw.raft.term {
            self.leader_heard_tick = self.tick;
        }
        self.observe();
        match result {
            Ok(()) => Ok(()),
            Err(raft::Error::StepPeerNotFound) => Err(MessageRefused::NotAMember { from: message.from }),
            Err(error) => self.broken("step", &error),
        }
    }

    /// Answers the questions that came before this leader could; forgets them when it is none.
    pub(super) fn answer_early_reads(&mut self) {
        if self.early_reads.is_empty() || (self.leads() && !self.raw.raft.commit_to_current_term()) {
            return;
        }
        for message in std::mem::take(&mut self.early_reads) {
            if self.leads() && !self.leads_without_vote() {
                // Who is no member any more gets no answer.
                self.raw.step(message.to_raft()).ok();
            }
        }
        self.observe();
    }

    fn check_against_log(&self, message: &Message) -> Result<(), MessageRefused> {
        let log = &self.raw.raft.raft_log;
        let last = log.last_index();
        // What is older than our term is answered or ignored without touching the log.
        if message.term != 0 && message.term < self.raw.raft.term {
            return Ok(());
        }
        let diverged = |index| Err(MessageRefused::LogDiverged { from: message.from, index });
        match message.kind {
            MessageKind::Heartbeat if message.commit > last => {
                Err(MessageRefused::LogLost { known: message.commit, last })
            }
            MessageKind::Append | MessageKind::Snapshot => {
                let entries = message.entries.iter().map(|entry| (entry.index, entry.term));
                let snapshot = message.snapshot.iter().map(|snapshot| (snapshot.index, snapshot.term));
                let known = |index| index <= log.committed && index >= log.first_index();
                let conflict = entries
                    .chain(snapshot)
                    .find(|(index, term)| known(*index) && !log.match_term(*index, *term));
                conflict.map_or(Ok(()), |(index, _)| diverged(index))
            }
            MessageKind::AppendResponse if self.leads() && !message.reject => {
                // Nobody stores entries the leader of the term does not have.
                if message.term == self.raw.raft.term && message.index > last {
                    return diverged(message.index);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
