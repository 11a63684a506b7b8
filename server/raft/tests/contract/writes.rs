//! What goes on while writes are under way, and what waits for them.

use bytes::Bytes;
use p2p_server_raft::{
    Message, MessageKind, Output, Persist, ProposalToken, RaftConfig, RaftCore, ReadToken, Role,
};

use crate::driver::{
    append, applied, drain, entry, follower, leader, leading_founder, loaded, logger, matched, message,
    voters,
};

#[test]
fn nothing_is_applied_or_answered_before_the_write() {
    let mut core = leading_founder();
    core.handle_propose(ProposalToken(1), Bytes::from_static(b"a"));
    let Some(Output::Persist(first)) = core.poll_output() else { panic!("a write comes first") };
    assert_eq!(core.poll_output(), None);
    // Inputs are welcome meanwhile; the next write may be prepared.
    core.handle_propose(ProposalToken(2), Bytes::from_static(b"b"));
    core.handle_tick();
    let Some(Output::Persist(second)) = core.poll_output() else { panic!("then the next write") };
    assert_eq!(core.poll_output(), None);
    core.handle_persisted(first.number);
    let tokens = |outputs: &[Output]| applied(outputs).iter().filter_map(|c| c.proposal).collect::<Vec<_>>();
    assert_eq!(tokens(&drain(&mut core)), [ProposalToken(1)]);
    core.handle_persisted(second.number);
    assert_eq!(tokens(&drain(&mut core)), [ProposalToken(2)]);
}

#[test]
fn the_last_of_several_writes_stands_for_all() {
    let mut core = leading_founder();
    let mut last = 0;
    for token in 0..5 {
        core.handle_propose(ProposalToken(token), Bytes::from_static(b"a"));
        let Some(Output::Persist(write)) = core.poll_output() else { panic!("a write each") };
        last = write.number;
    }
    core.handle_persisted(last);
    assert_eq!(applied(&drain(&mut core)).len(), 5);
}

#[test]
fn proposals_gather_while_as_many_writes_as_may_be_are_under_way() {
    let mut config = RaftConfig::new(1, 1);
    config.writes_in_flight_max = 1;
    let mut core = RaftCore::new(config, loaded(voters(&[1])), logger()).unwrap();
    drain(&mut core);
    core.handle_propose(ProposalToken(0), Bytes::from_static(b"a"));
    let Some(Output::Persist(first)) = core.poll_output() else { panic!("a write") };
    for token in 1..5 {
        core.handle_propose(ProposalToken(token), Bytes::from_static(b"a"));
        assert_eq!(core.poll_output(), None);
    }
    core.handle_persisted(first.number);
    let outputs = drain(&mut core);
    let writes = outputs.iter().filter(|output| matches!(output, Output::Persist(_))).count();
    assert_eq!((writes, applied(&outputs).len()), (1, 5));
}

/// Polls until there is nothing more to do, without storing anything.
fn poll(core: &mut RaftCore) -> (Vec<Message>, Vec<Persist>) {
    let (mut sent, mut writes) = (Vec::new(), Vec::new());
    while let Some(output) = core.poll_output() {
        match output {
            Output::Send(messages) => sent.extend(messages),
            Output::Persist(write) => writes.push(write),
            _ => {}
        }
    }
    (sent, writes)
}

#[test]
fn a_leader_speaks_on_while_it_writes_and_falls_silent_when_the_disk_hangs() {
    let mut core = leader();
    for from in [1, 3] {
        matched(&mut core, from, 2, 2, 2);
    }
    core.handle_propose(ProposalToken(1), Bytes::from_static(b"a"));
    let (sent, writes) = poll(&mut core);
    let appends = |sent: &[Message]| sent.iter().filter(|m| m.kind == MessageKind::Append).count();
    assert_eq!((appends(&sent), writes.len()), (2, 1));
    core.handle_propose(ProposalToken(2), Bytes::from_static(b"b"));
    core.handle_read(ReadToken(1));
    let (sent, _) = poll(&mut core);
    assert_eq!(appends(&sent), 2, "new entries go to the followers");
    assert!(sent.iter().any(|m| m.kind == MessageKind::Heartbeat && !m.context.is_empty()), "reads go on");
    let mut spoke = 0;
    for _ in 0..RaftConfig::new(2, 1).election_ticks * 3 {
        core.handle_tick();
        spoke += u64::from(!poll(&mut core).0.is_empty());
    }
    assert_eq!(spoke, RaftConfig::new(2, 1).election_ticks - 1);
    assert_eq!(core.status().role, Role::Follower, "nobody answers who hears nothing");
}

#[test]
fn a_follower_answers_heartbeats_while_it_writes() {
    let mut core = follower();
    core.handle_message(&append(2, 4, 2, &[(5, 2)], 3)).unwrap();
    let (sent, writes) = poll(&mut core);
    assert_eq!((sent.len(), writes.len()), (0, 1));
    core.handle_message(&Message { commit: 4, ..message(MessageKind::Heartbeat, 2) }).unwrap();
    // The same entry again: that it is on its way to the disk is no reason to acknowledge it.
    core.handle_message(&append(2, 4, 2, &[(5, 2)], 4)).unwrap();
    let (sent, more) = poll(&mut core);
    assert_eq!(sent.iter().map(|m| m.kind).collect::<Vec<_>>(), [MessageKind::HeartbeatResponse]);
    assert_eq!(more, []);
    core.handle_persisted(writes[0].number);
    let (sent, _) = poll(&mut core);
    assert_eq!(
        sent.iter().map(|m| (m.kind, m.index)).collect::<Vec<_>>(),
        [(MessageKind::AppendResponse, 5)]
    );
}

#[test]
fn one_acknowledgement_stands_for_all_that_one_sync_stored() {
    let mut core = follower();
    let mut write = |index| {
        core.handle_message(&append(2, index - 1, 2, &[(index, 2)], 3)).unwrap();
        poll(&mut core).1[0].number
    };
    let numbers = [5, 6, 7, 8].map(&mut write);
    let mut answers = |number| {
        core.handle_persisted(number);
        poll(&mut core).0.iter().map(|m| (m.kind, m.index)).collect::<Vec<_>>()
    };
    assert_eq!(answers(numbers[0]), [(MessageKind::AppendResponse, 5)]);
    assert_eq!(answers(numbers[3]), [(MessageKind::AppendResponse, 8)]);
}

#[test]
fn entries_that_replace_others_are_written_alone() {
    let mut core = follower();
    core.handle_message(&append(2, 4, 2, &[(5, 2)], 3)).unwrap();
    let (_, first) = poll(&mut core);
    core.handle_message(&append(2, 5, 2, &[(6, 2)], 3)).unwrap();
    let (_, second) = poll(&mut core);
    assert_eq!((first.len(), second.len()), (1, 1));
    core.handle_message(&append(3, 4, 2, &[(5, 3)], 3)).unwrap();
    assert_eq!(poll(&mut core).1, [], "not while others are under way");
    core.handle_persisted(second[0].number);
    let (_, third) = poll(&mut core);
    assert_eq!(third[0].entries, [entry(5, 3)]);
    core.handle_message(&append(3, 5, 3, &[(6, 3)], 3)).unwrap();
    assert_eq!(poll(&mut core).1, [], "nor others with it");
    core.handle_persisted(third[0].number);
    assert_eq!(poll(&mut core).1[0].entries, [entry(6, 3)]);
}

#[test]
fn an_election_that_comes_while_writing_is_held_after_it() {
    let mut core = follower();
    let write = |core: &mut RaftCore, index| {
        core.handle_message(&append(2, index - 1, 2, &[(index, 2)], 3)).unwrap();
        poll(core).1[0].number
    };
    let asks = |core: &mut RaftCore, kind| poll(core).0.iter().any(|message| message.kind == kind);
    let number = write(&mut core, 5);
    assert_eq!(core.handle_leader_gone(1), Some(0));
    core.handle_campaign();
    assert_eq!(core.status().role, Role::Follower);
    core.handle_persisted(number);
    assert_eq!(core.status().role, Role::PreCandidate);
    assert!(asks(&mut core, MessageKind::PreVote));
    let number = write(&mut core, 6);
    core.handle_message(&message(MessageKind::TimeoutNow, 2)).unwrap();
    assert_eq!(core.status().role, Role::Follower);
    core.handle_persisted(number);
    let (_, ballot) = poll(&mut core);
    core.handle_persisted(ballot[0].number);
    assert!(asks(&mut core, MessageKind::Vote));
}
