//! Raft messages, entries and members between their domain form and protobuf: on the wire between Servers, and
//! in the store. What a message may say is checked by the raft core; here only its shape is.

use p2p_proto::v1;
use p2p_proto::v1::RaftMessageKind as WireKind;
use p2p_server_raft::{EntryKind, LogEntry, Membership, Message, MessageKind, Snapshot};

/// A received message that has no domain form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("raft message refused: {0}")]
pub struct BadShape(&'static str);

/// The wire form of a message.
pub fn message_to(message: Message) -> v1::RaftMessage {
    let kind = match message.kind {
        MessageKind::Append => WireKind::Append,
        MessageKind::AppendResponse => WireKind::AppendResponse,
        MessageKind::Vote => WireKind::Vote,
        MessageKind::VoteResponse => WireKind::VoteResponse,
        MessageKind::PreVote => WireKind::PreVote,
        MessageKind::PreVoteResponse => WireKind::PreVoteResponse,
        MessageKind::Snapshot => WireKind::Snapshot,
        MessageKind::Heartbeat => WireKind::Heartbeat,
        MessageKind::HeartbeatResponse => WireKind::HeartbeatResponse,
        MessageKind::TimeoutNow => WireKind::TimeoutNow,
        MessageKind::ReadIndex => WireKind::ReadIndex,
        MessageKind::ReadIndexResponse => WireKind::ReadIndexResponse,
    };
    v1::RaftMessage {
        kind: kind.into(),
        from: message.from,
        to: message.to,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_to).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.map(|snapshot| v1::RaftSnapshot {
            index: snapshot.index,
            term: snapshot.term,
            membership: Some(membership_to(&snapshot.membership)),
            data: snapshot.data,
        }),
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
    }
}

/// A received message.
///
/// # Errors
/// When its kind is unknown or its snapshot incomplete.
pub fn message_from(message: v1::RaftMessage) -> Result<Message, BadShape> {
    let kind = match WireKind::try_from(message.kind) {
        Ok(WireKind::Append) => MessageKind::Append,
        Ok(WireKind::AppendResponse) => MessageKind::AppendResponse,
        Ok(WireKind::Vote) => MessageKind::Vote,
        Ok(WireKind::VoteResponse) => MessageKind::VoteResponse,
        Ok(WireKind::PreVote) => MessageKind::PreVote,
        Ok(WireKind::PreVoteResponse) => MessageKind::PreVoteResponse,
        Ok(WireKind::Snapshot) => MessageKind::Snapshot,
        Ok(WireKind::Heartbeat) => MessageKind::Heartbeat,
        Ok(WireKind::HeartbeatResponse) => MessageKind::HeartbeatResponse,
        Ok(WireKind::TimeoutNow) => MessageKind::TimeoutNow,
        Ok(WireKind::ReadIndex) => MessageKind::ReadIndex,
        Ok(WireKind::ReadIndexResponse) => MessageKind::ReadIndexResponse,
        Ok(WireKind::Unspecified) | Err(_) => return Err(BadShape("its kind is unknown")),
    };
    let snapshot = |snapshot: v1::RaftSnapshot| {
        Ok(Snapshot {
            index: snapshot.index,
            term: snapshot.term,
            membership: membership_from(snapshot.membership.ok_or(BadShape("its members are missing"))?),
            data: snapshot.data,
        })
    };
    Ok(Message {
        kind,
        from: message.from,
        to: message.to,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_from).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.map(snapshot).transpose()?,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
    })
}

/// The stored and wire form of an entry.
pub fn entry_to(entry: LogEntry) -> v1::RaftEntry {
    v1::RaftEntry {
        index: entry.index,
        term: entry.term,
        membership: entry.kind == EntryKind::Membership,
        data: entry.data,
        context: entry.context,
    }
}

/// A received or stored entry.
pub fn entry_from(entry: v1::RaftEntry) -> LogEntry {
    LogEntry {
        index: entry.index,
        term: entry.term,
        kind: if entry.membership { EntryKind::Membership } else { EntryKind::Normal },
        data: entry.data,
        context: entry.context,
    }
}

/// The stored and wire form of the members.
pub fn membership_to(membership: &Membership) -> v1::RaftMembership {
    v1::RaftMembership {
        voters: membership.voters.iter().copied().collect(),
        learners: membership.learners.iter().copied().collect(),
        outgoing: membership.outgoing.iter().copied().collect(),
        learners_next: membership.learners_next.iter().copied().collect(),
        auto_leave: membership.auto_leave,
    }
}

/// Received or stored members; raft checks that they are sound.
pub fn membership_from(membership: v1::RaftMembership) -> Membership {
    Membership {
        voters: membership.voters.into_iter().collect(),
        learners: membership.learners.into_iter().collect(),
        outgoing: membership.outgoing.into_iter().collect(),
        learners_next: membership.learners_next.into_iter().collect(),
        auto_leave: membership.auto_leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message as _;

    fn message() -> Message {
        Message {
            kind: MessageKind::Append,
            from: 1,
            to: 2,
            term: 3,
            log_term: 2,
            index: 7,
            entries: vec![
                LogEntry {
                    index: 8,
                    term: 3,
                    kind: EntryKind::Normal,
                    data: Bytes::from_static(b"command"),
                    context: Bytes::new(),
                },
                LogEntry {
                    index: 9,
                    term: 3,
                    kind: EntryKind::Membership,
                    data: Bytes::from_static(b"change"),
                    context: Bytes::from_static(b"why"),
                },
            ],
            commit: 6,
            commit_term: 2,
            snapshot: None,
            reject: true,
            reject_hint: 5,
            context: Bytes::from_static(b"read"),
        }
    }

    #[test]
    fn every_kind_comes_back() {
        use MessageKind::*;
        for kind in [
            Append,
            AppendResponse,
            Vote,
            VoteResponse,
            PreVote,
            PreVoteResponse,
            Snapshot,
            Heartbeat,
            HeartbeatResponse,
            TimeoutNow,
            ReadIndex,
            ReadIndexResponse,
        ] {
            let message = Message { kind, ..message() };
            assert_eq!(message_from(message_to(message.clone())), Ok(message));
        }
    }

    #[test]
    fn a_snapshot_comes_back_with_its_members() {
        let membership = Membership {
            voters: [1, 2, 3].into(),
            learners: [4].into(),
            outgoing: [1, 5].into(),
            learners_next: [5].into(),
            auto_leave: true,
        };
        let snapshot = Snapshot { index: 4, term: 2, membership, data: Bytes::from_static(b"state") };
        let message = Message { kind: MessageKind::Snapshot, snapshot: Some(snapshot), ..message() };
        assert_eq!(message_from(message_to(message.clone())), Ok(message));
    }

    #[test]
    fn what_has_no_domain_form_is_refused() {
        let wire = message_to(message());
        assert!(message_from(v1::RaftMessage { kind: 0, ..wire.clone() }).is_err());
        assert!(message_from(v1::RaftMessage { kind: 99, ..wire.clone() }).is_err());
        let headless = v1::RaftSnapshot { membership: None, ..Default::default() };
        assert!(message_from(v1::RaftMessage { snapshot: Some(headless), ..wire.clone() }).is_err());
        let bytes = wire.encode_to_vec();
        for end in 0..bytes.len() {
            // Any prefix is an error or some message, never a panic.
            let _ = v1::RaftMessage::decode(&bytes[..end]).map(message_from);
        }
    }
}
