//! The messages Servers exchange for raft, and which of them a node takes.
//!
//! Only kinds that belong on a wire exist here. Proposals and transfers are never forwarded: the caller is told
//! who leads instead.

use bytes::Bytes;
use p2p_common::member::RaftId;
use raft::eraftpb::{self, MessageType};

use crate::log::LogEntry;
use crate::snapshot::Snapshot;

/// Terms and indexes beyond this are refused: additions to them must not overflow.
const POSITION_MAX: u64 = 1 << 62;
/// The longest context of a read or a heartbeat in bytes; ours have 24.
const CONTEXT_BYTES_MAX: usize = 64;

/// What a [`Message`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// Entries, or the commit index alone, from the leader.
    Append,
    /// How far the follower's log matches.
    AppendResponse,
    /// A candidate asks for a vote.
    Vote,
    /// A vote given or refused.
    VoteResponse,
    /// Would you vote for me?
    PreVote,
    /// Answer to that.
    PreVoteResponse,
    /// A whole state machine, for a follower whose next entries are gone.
    Snapshot,
    /// The leader lives; carries the context of reads being confirmed.
    Heartbeat,
    /// The follower follows; repeats the context.
    HeartbeatResponse,
    /// The leader hands over: campaign at once.
    TimeoutNow,
    /// A follower asks the leader for a read index.
    ReadIndex,
    /// The leader's answer.
    ReadIndexResponse,
}

impl MessageKind {
    fn to_raft(self) -> MessageType {
        match self {
            MessageKind::Append => MessageType::MsgAppend,
            MessageKind::AppendResponse => MessageType::MsgAppendResponse,
            MessageKind::Vote => MessageType::MsgRequestVote,
            MessageKind::VoteResponse => MessageType::MsgRequestVoteResponse,
            MessageKind::PreVote => MessageType::MsgRequestPreVote,
            MessageKind::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
            MessageKind::Snapshot => MessageType::MsgSnapshot,
            MessageKind::Heartbeat => MessageType::MsgHeartbeat,
            MessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
            MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
            MessageKind::ReadIndex => MessageType::MsgReadIndex,
            MessageKind::ReadIndexResponse => MessageType::MsgReadIndexResp,
        }
    }

    fn from_raft(kind: MessageType) -> Option<Self> {
        Some(match kind {
            MessageType::MsgAppend => MessageKind::Append,
            MessageType::MsgAppendResponse => MessageKind::AppendResponse,
            MessageType::MsgRequestVote => MessageKind::Vote,
            MessageType::MsgRequestVoteResponse => MessageKind::VoteResponse,
            MessageType::MsgRequestPreVote => MessageKind::PreVote,
            MessageType::MsgRequestPreVoteResponse => MessageKind::PreVoteResponse,
            MessageType::MsgSnapshot => MessageKind::Snapshot,
            MessageType::MsgHeartbeat => MessageKind::Heartbeat,
            MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatResponse,
            MessageType::MsgTimeoutNow => MessageKind::TimeoutNow,
            MessageType::MsgReadIndex => MessageKind::ReadIndex,
            MessageType::MsgReadIndexResp => MessageKind::ReadIndexResponse,
            MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgPropose
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
            | MessageType::MsgTransferLeader => return None,
        })
    }
}

/// A message between two Servers. The meaning of a field depends on the kind; unused ones are zero or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: MessageKind,
    /// From whom.
    pub from: RaftId,
    /// To whom.
    pub to: RaftId,
    /// The sender's term, or the one it asks votes for; 0 only in `ReadIndex`.
    pub term: u64,
    /// The term of the entry at `index`, or at `reject_hint` in a refusal.
    pub log_term: u64,
    /// The entry before `entries`, the last matching one, or a read index.
    pub index: u64,
    /// In `Append`: log entries. In `ReadIndex` and its response: one, its data the context.
    pub entries: Vec<LogEntry>,
    /// The sender's commit index.
    pub commit: u64,
    /// The term of the entry at `commit`, in votes.
    pub commit_term: u64,
    /// In `Snapshot` only.
    pub snapshot: Option<Snapshot>,
    /// An append or a vote is refused.
    pub reject: bool,
    /// Where the leader should try next.
    pub reject_hint: u64,
    /// A read being confirmed, or why an election was begun.
    pub context: Bytes,
}

/// Why a message is refused without looking at the node's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "raft message {kind:?} from {from} refused: {reason}; the sender is faulty or speaks another version"
)]
pub struct BadMessage {
    /// What it claimed to be.
    pub kind: MessageKind,
    /// Who it claimed to be from.
    pub from: RaftId,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Message {
    /// Whether it makes sense at all; raft itself trusts what it is given and panics otherwise.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn validate(&self) -> Result<(), BadMessage> {
        let bad = |reason| Err(BadMessage { kind: self.kind, from: self.from, reason });
        if self.from == 0 || self.to == 0 || self.from == self.to {
            return bad("sender or receiver is missing, or both are the same");
        }
        if (self.term == 0) != (self.kind == MessageKind::ReadIndex) {
            return bad("only a read request comes without a term");
        }
        let positions =
            [self.term, self.log_term, self.index, self.commit, self.commit_term, self.reject_hint];
        if positions.iter().any(|position| *position > POSITION_MAX) {
            return bad("a term or an index is out of range");
        }
        if self.context.len() > CONTEXT_BYTES_MAX {
            return bad("its context is too long");
        }
        if self.snapshot.is_some() != (self.kind == MessageKind::Snapshot) {
            return bad("a snapshot is missing or out of place");
        }
        match self.kind {
            MessageKind::Append => self.validate_append().or_else(bad),
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => match self.entries.as_slice() {
                [one] if !one.data.is_empty() && one.data.len() <= CONTEXT_BYTES_MAX => Ok(()),
                _ => bad("a read carries exactly one context"),
            },
            _ if !self.entries.is_empty() => bad("entries are out of place"),
            MessageKind::Snapshot => self.validate_snapshot().or_else(bad),
            _ => Ok(()),
        }
    }

    fn validate_append(&self) -> Result<(), &'static str> {
        if self.log_term > self.term {
            return Err("an entry is of a later term than the message");
        }
        // raft-rs reads term 0 as "matches" for every index it does not have.
        if (self.index == 0) != (self.log_term == 0) {
            return Err("it follows on no entry");
        }
        let mut last = (self.index, self.log_term);
        for entry in &self.entries {
            if entry.index != last.0 + 1 {
                return Err("its entries have a gap");
            }
            if entry.term < last.1 || entry.term > self.term || entry.term == 0 {
                return Err("the terms of its entries go back or ahead");
            }
            last = (entry.index, entry.term);
        }
        Ok(())
    }

    fn validate_snapshot(&self) -> Result<(), &'static str> {
        let Some(snapshot) = &self.snapshot else {
            return Err("a snapshot is missing");
        };
        if snapshot.index == 0 || snapshot.index > POSITION_MAX {
            return Err("its snapshot has no valid index");
        }
        if snapshot.term == 0 || snapshot.term > self.term {
            return Err("its snapshot has no valid term");
        }
        if !snapshot.membership.is_consistent() {
            return Err("the members of its snapshot contradict each other");
        }
        Ok(())
    }

    pub(crate) fn to_raft(&self) -> eraftpb::Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(self.kind.to_raft());
        message.from = self.from;
        message.to = self.to;
        message.term = self.term;
        message.log_term = self.log_term;
        message.index = self.index;
        message.set_entries(self.entries.iter().map(LogEntry::to_raft).collect::<Vec<_>>().into());
        message.commit = self.commit;
        message.commit_term = self.commit_term;
        if let Some(snapshot) = &self.snapshot {
            message.set_snapshot(snapshot.to_raft());
        }
        message.reject = self.reject;
        message.reject_hint = self.reject_hint;
        message.context = self.context.clone();
        message
    }

    /// `None` for kinds that never leave a node.
    pub(crate) fn from_raft(message: &eraftpb::Message) -> Option<Self> {
        let kind = MessageKind::from_raft(message.get_msg_type())?;
        Some(Message {
            kind,
            from: message.from,
            to: message.to,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.get_entries().iter().map(LogEntry::from_raft).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            snapshot: (kind == MessageKind::Snapshot).then(|| Snapshot::from_raft(message.get_snapshot())),
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.clone(),
        })
    }
}
