//! What faulty or hostile members may send.

use bytes::Bytes;
use p2p_server_raft::{
    Loaded, Membership, Message, MessageKind, MessageRefused, Output, ProposalToken, RaftCore, ReadToken,
    Snapshot,
};
use proptest::prelude::*;

use crate::driver::{STATE, append, core, entry, follower, leader, message, voters};

#[test]
fn evidence_of_a_lost_or_foreign_log_is_told() {
    let mut core = follower();
    let heartbeat = Message { commit: 7, ..message(MessageKind::Heartbeat, 2) };
    assert_eq!(core.handle_message(&heartbeat), Err(MessageRefused::LogLost { known: 7, last: 4 }));
    let membership = voters(&[1, 2, 3]);
    let snapshot = Snapshot { index: 3, term: 1, membership, data: STATE };
    let foreign = Message { snapshot: Some(snapshot), ..message(MessageKind::Snapshot, 2) };
    assert_eq!(core.handle_message(&foreign), Err(MessageRefused::LogDiverged { from: 1, index: 3 }));
    let foreign = append(3, 1, 1, &[(2, 3)], 2);
    assert_eq!(core.handle_message(&foreign), Err(MessageRefused::LogDiverged { from: 1, index: 2 }));
    assert_eq!(core.status().term, 2, "none changed anything");
}

#[test]
fn senseless_messages_are_refused() {
    let mut core = follower();
    let refused = |core: &mut RaftCore, message: &Message| {
        assert!(matches!(core.handle_message(message), Err(MessageRefused::Bad(_))), "{message:?}");
    };
    let good = append(2, 4, 2, &[(5, 2), (6, 2)], 4);
    refused(&mut core, &Message { from: 0, ..good.clone() });
    refused(&mut core, &Message { from: 2, ..good.clone() });
    refused(&mut core, &Message { term: 0, ..good.clone() });
    refused(&mut core, &Message { term: u64::MAX, ..good.clone() });
    refused(&mut core, &Message { index: 3, ..good.clone() });
    refused(&mut core, &append(2, 4, 2, &[(5, 2), (7, 2)], 4));
    refused(&mut core, &append(2, 4, 2, &[(5, 2), (6, 1)], 4));
    refused(&mut core, &append(2, 4, 2, &[(5, 3)], 4));
    refused(&mut core, &Message { context: vec![0; 65].into(), ..good.clone() });
    refused(&mut core, &Message { kind: MessageKind::Heartbeat, ..good.clone() });
    refused(&mut core, &message(MessageKind::Snapshot, 2));
    refused(&mut core, &message(MessageKind::ReadIndex, 0));
    refused(&mut core, &message(MessageKind::ReadIndexResponse, 2));
    let nobody = Snapshot { index: 9, term: 2, membership: Membership::default(), data: STATE };
    refused(&mut core, &Message { snapshot: Some(nobody), ..message(MessageKind::Snapshot, 2) });
    let stray = Message { to: 3, ..good.clone() };
    assert_eq!(core.handle_message(&stray), Err(MessageRefused::NotForUs { to: 3, me: 2 }));
    core.handle_message(&good).unwrap();
}

fn any_kind() -> impl Strategy<Value = MessageKind> {
    use MessageKind::*;
    prop::sample::select(vec![
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
    ])
}

/// Messages that look right enough to get past the first look.
fn any_message() -> impl Strategy<Value = Message> {
    let numbers = (0u64..5, 0u64..9, 0u64..9, 0u64..5, 0u64..9);
    let entries = prop::collection::vec(1u64..5, 0..4);
    let members = (prop::collection::btree_set(1u64..5, 0..4), prop::collection::btree_set(1u64..5, 0..2));
    (any_kind(), 1u64..5, 0u64..6, numbers, entries, members, any::<bool>()).prop_map(
        |(kind, from, term, (log_term, index, commit, commit_term, reject_hint), terms, members, reject)| {
            let (voters, learners) = members;
            let membership = Membership { voters, learners, ..Membership::default() };
            let mut entries: Vec<_> =
                (index + 1..).zip(&terms).map(|(index, term)| entry(index, *term)).collect();
            match kind {
                MessageKind::Append => {}
                MessageKind::ReadIndex | MessageKind::ReadIndexResponse => entries = vec![entry(0, 0)],
                _ => entries.clear(),
            }
            Message {
                kind,
                from,
                to: 2,
                term: if kind == MessageKind::ReadIndex { 0 } else { term },
                log_term,
                index,
                entries,
                commit,
                commit_term,
                snapshot: (kind == MessageKind::Snapshot).then_some(p2p_server_raft::Snapshot {
                    index,
                    term: log_term,
                    membership,
                    data: STATE,
                }),
                reject,
                reject_hint,
                context: if reject { Bytes::from_static(b"CampaignTransfer") } else { Bytes::new() },
            }
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Message(Box<Message>),
    Tick,
    Written,
    Propose,
    Read,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_message().prop_map(|message| Step::Message(Box::new(message))),
        3 => Just(Step::Tick),
        3 => Just(Step::Written),
        1 => Just(Step::Propose),
        1 => Just(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever authenticated but faulty or hostile members send: an error, never a panic.
    #[test]
    fn no_sequence_of_messages_panics(steps in prop::collection::vec(any_step(), 1..60), start in 0..3) {
        let mut core = match start {
            0 => core(2, Loaded::default()),
            1 => follower(),
            _ => leader(),
        };
        let mut writing = None;
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Message(message) => drop(core.handle_message(&message)),
                Step::Tick => (0..5).for_each(|_| core.handle_tick()),
                Step::Written => {
                    if let Some(number) = writing.take() {
                        core.handle_persisted(number);
                    }
                }
                Step::Propose => core.handle_propose(ProposalToken(number as u64), STATE),
                Step::Read => core.handle_read(ReadToken(number as u64)),
            }
            while let Some(output) = core.poll_output() {
                if let Output::Persist(write) = output {
                    writing = Some(write.number);
                }
            }
        }
    }
}
