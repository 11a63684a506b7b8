//! What an authenticated but faulty or hostile Server may send to raft: an error, never a panic.
#![no_main]

#[allow(dead_code)]
#[path = "../../../server/raft/tests/contract/driver.rs"]
mod driver;
mod steps;

use bytes::Bytes;
use driver::{STATE, core, entry, follower, leader, voters};
use libfuzzer_sys::fuzz_target;
use p2p_proto::v1;
use p2p_server::raft::wire::{message_from, message_to};
use p2p_server_raft::{Loaded, Membership, Message, MessageKind, Output, ProposalToken, RaftCore, ReadToken};
use prost::Message as _;
use steps::{Numbers, steps};

/// A message of small numbers: it gets past the first look more often than bytes do.
fn small(bytes: &[u8]) -> Message {
    use MessageKind::*;
    let mut n = Numbers(bytes);
    let kinds = [
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
    ];
    let kind = kinds[n.below(12) as usize];
    let (from, term, index, log_term) = (n.below(5), n.below(6), n.below(9), n.below(6));
    let (commit, commit_term, reject_hint) = (n.below(9), n.below(6), n.below(9));
    let choices = n.below(64);
    let entries = match kind {
        Append => (index + 1..index + 1 + n.below(4)).map(|index| entry(index, n.below(6))).collect(),
        ReadIndex | ReadIndexResponse => vec![entry(0, 0)],
        _ => Vec::new(),
    };
    let mut members = || (0..n.below(4)).map(|_| n.below(5)).collect();
    let membership =
        Membership { voters: members(), learners: members(), outgoing: members(), ..voters(&[]) };
    let snapshot = p2p_server_raft::Snapshot { index, term: log_term, membership, data: STATE };
    Message {
        kind,
        from,
        to: 2,
        term: if kind == ReadIndex { 0 } else { term },
        log_term,
        index,
        entries,
        commit,
        commit_term,
        snapshot: (kind == Snapshot).then_some(snapshot),
        reject: choices & 1 == 1,
        reject_hint,
        context: match choices >> 4 {
            0 | 1 => Bytes::new(),
            2 => Bytes::from_static(b"CampaignTransfer"),
            _ => Bytes::copy_from_slice(n.0),
        },
    }
}

fn settle(core: &mut RaftCore, writing: &mut Option<u64>) {
    for _ in 0..10_000 {
        match core.poll_output() {
            None => return,
            Some(Output::Persist(write)) => *writing = Some(write.number),
            Some(Output::Send(messages)) => {
                for message in messages {
                    let wire = message_to(message.clone());
                    assert_eq!(message_from(wire), Ok(message), "what is sent can be read");
                }
            }
            Some(_) => {}
        }
    }
    panic!("the core never has enough");
}

fuzz_target!(|data: &[u8]| {
    let Some((start, data)) = data.split_first() else { return };
    let mut core = match start % 3 {
        0 => core(2, Loaded::default()),
        1 => follower(),
        _ => leader(),
    };
    let mut writing = None;
    for (number, (choice, bytes)) in steps(data).take(300).enumerate() {
        match choice % 8 {
            0 => {
                let Ok(message) = v1::RaftMessage::decode(bytes) else { continue };
                let Ok(message) = message_from(message) else { continue };
                assert_eq!(message_from(message_to(message.clone())).as_ref(), Ok(&message));
                let _ = core.handle_message(&message);
            }
            1..5 => drop(core.handle_message(&small(bytes))),
            5 => (0..Numbers(bytes).below(12)).for_each(|_| core.handle_tick()),
            6 => {
                if let Some(number) = writing.take() {
                    core.handle_persisted(number);
                }
            }
            _ if bytes.is_empty() => core.handle_read(ReadToken(number as u64)),
            _ => core.handle_propose(ProposalToken(number as u64), Bytes::copy_from_slice(bytes)),
        }
        settle(&mut core, &mut writing);
    }
});
