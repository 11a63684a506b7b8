//! The driving contract, output by output: one core, its shell the test.

mod driver;
mod hostile;
mod writes;

use bytes::Bytes;
use p2p_server_raft::{
    COMMAND_BYTES_MAX, CommittedKind, HardState, Loaded, LogEntry, Membership, MembershipChange, Message,
    MessageKind, Output, Persist, ProposalFailure, ProposalToken, RaftConfig, RaftCore, ReadFailure,
    ReadToken, Role, Snapshot, StartRefused, founding_write,
};

use driver::{
    STATE, append, applied, core, drain, elect, entry, failures, follower, leader, leading_founder, loaded,
    logger, matched, message, obey, voters,
};

#[test]
fn a_founder_installs_its_first_state_and_leads() {
    let Persist { snapshot, hard_state, entries, .. } = founding_write(1, STATE);
    let mut core = core(1, Loaded { hard_state, snapshot, entries, applied: None });
    let outputs = drain(&mut core);
    let Output::Install(first) = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!((first.index, &first.data), (1, &STATE));
    assert_eq!(applied(&outputs).last().map(|c| (c.index, c.kind.clone())), Some((2, CommittedKind::Empty)));
    let Some(Output::Status(last)) = outputs.last() else { panic!("{outputs:?}") };
    assert!(last.leader_ready && last.role == Role::Leader);
}

#[test]
fn a_voter_alone_says_nothing_before_its_vote_is_stored() {
    // It needs nobody's vote, so nobody but its disk would know that the term is taken.
    let mut core = core(1, loaded(Membership { learners: [2].into(), ..voters(&[1]) }));
    let write = loop {
        match core.poll_output().expect("a write comes") {
            Output::Persist(write) => break write,
            Output::Send(messages) => panic!("too early: {messages:?}"),
            Output::Status(status) => assert_ne!((status.role, status.leader), (Role::Leader, Some(1))),
            _ => {}
        }
    };
    assert_eq!((write.hard_state.term, write.hard_state.vote), (2, 1));
    core.handle_propose(ProposalToken(1), Bytes::from_static(b"a"));
    core.handle_tick();
    assert!(core.poll_output().is_none_or(|output| !matches!(output, Output::Send(_))));
    core.handle_persisted(write.number);
    let outputs = drain(&mut core);
    assert!(matches!(outputs.first(), Some(Output::Send(_))), "{outputs:?}");
    assert_eq!(failures(&outputs), []);
    assert!(core.status().leader_ready);
}

#[test]
fn proposals_that_come_together_are_one_write() {
    let mut core = leading_founder();
    for token in 0..100 {
        core.handle_propose(ProposalToken(token), Bytes::from(format!("{token}")));
    }
    let outputs = drain(&mut core);
    let writes: Vec<_> = outputs.iter().filter(|output| matches!(output, Output::Persist(_))).collect();
    let [Output::Persist(write)] = writes.as_slice() else { panic!("{writes:?}") };
    assert_eq!(write.entries.len(), 100);
    let tokens: Vec<_> = applied(&outputs).iter().map(|committed| committed.proposal).collect();
    assert_eq!(tokens, (0..100).map(|token| Some(ProposalToken(token))).collect::<Vec<_>>());
}

#[test]
fn a_follower_answers_after_its_write_only() {
    let mut core = core(2, loaded(voters(&[1, 2, 3])));
    drain(&mut core);
    core.handle_message(&append(2, 1, 1, &[(2, 2)], 1)).unwrap();
    let mut before = Vec::new();
    let write = loop {
        match core.poll_output().unwrap() {
            Output::Persist(write) => break write,
            output => before.push(output),
        }
    };
    assert!(before.iter().all(|output| matches!(output, Output::Status(_))), "{before:?}");
    assert_eq!((write.hard_state.term, write.entries.len()), (2, 1));
    assert_eq!(core.poll_output(), None);
    core.handle_persisted(write.number);
    let outputs = drain(&mut core);
    let Some(Output::Send(messages)) = outputs.first() else { panic!("{outputs:?}") };
    assert_eq!((messages[0].kind, messages[0].index), (MessageKind::AppendResponse, 2));
}

#[test]
fn a_conflicting_suffix_is_written_over() {
    let mut core = follower();
    core.handle_message(&append(3, 3, 2, &[(4, 3), (5, 3)], 3)).unwrap();
    let outputs = drain(&mut core);
    let write = outputs.iter().find_map(|output| match output {
        Output::Persist(write) => Some(write),
        _ => None,
    });
    assert_eq!(write.unwrap().entries, [entry(4, 3), entry(5, 3)]);
}

#[test]
#[should_panic(expected = "not under way")]
fn claiming_a_write_that_was_not_asked_for_ends_the_process() {
    leading_founder().handle_persisted(99);
}

#[test]
fn proposals_are_refused_with_the_reason() {
    let mut core = follower();
    core.handle_propose(ProposalToken(1), Bytes::from_static(b"a"));
    core.handle_propose(ProposalToken(2), Bytes::from(vec![0; COMMAND_BYTES_MAX + 1]));
    let change = MembershipChange::AddLearner(9);
    core.handle_change_members(ProposalToken(3), &change, Bytes::new());
    let failures = failures(&drain(&mut core));
    let not_leader = ProposalFailure::NotLeader { hint: Some(1) };
    assert!(failures.contains(&(1, not_leader.clone())));
    assert!(failures.contains(&(2, ProposalFailure::TooLarge { bytes: COMMAND_BYTES_MAX + 1 })));
    assert!(failures.contains(&(3, not_leader)));
}

#[test]
fn too_many_proposals_and_reads_fail_as_busy() {
    let mut config = RaftConfig::new(1, 1);
    (config.proposals_max, config.reads_max) = (2, 2);
    let mut core = RaftCore::new(config, loaded(voters(&[1])), logger()).unwrap();
    drain(&mut core);
    for number in 0..3 {
        core.handle_propose(ProposalToken(number), Bytes::from_static(b"a"));
        core.handle_read(ReadToken(number));
    }
    let outputs = drain(&mut core);
    assert_eq!(failures(&outputs), [(2, ProposalFailure::Busy)]);
    assert_eq!(applied(&outputs).iter().filter(|committed| committed.proposal.is_some()).count(), 2);
    let busy = Output::ReadFailed { token: ReadToken(2), failure: ReadFailure::Busy };
    assert!(outputs.contains(&busy));
    let ready = |output: &&Output| matches!(output, Output::ReadReady { .. });
    assert_eq!(outputs.iter().filter(ready).count(), 2);
    // The room is free again.
    core.handle_propose(ProposalToken(3), Bytes::from_static(b"a"));
    assert_eq!(failures(&drain(&mut core)), []);
}

#[test]
fn a_read_without_a_leader_is_asked_again_and_fails_in_the_end() {
    let mut core = core(2, loaded(voters(&[1, 2, 3])));
    drain(&mut core);
    core.handle_read(ReadToken(1));
    let mut failed_after = None;
    for tick in 1..=100 {
        core.handle_tick();
        for output in drain(&mut core) {
            if let Output::ReadFailed { token: ReadToken(1), failure } = output {
                assert_eq!((failure, failed_after), (ReadFailure::TimedOut, None));
                failed_after = Some(tick);
            }
        }
    }
    assert_eq!(failed_after, Some(RaftConfig::new(1, 1).read_timeout_ticks));
}

#[test]
fn a_follower_asks_the_leader_and_waits_until_it_has_applied() {
    let mut core = follower();
    core.handle_read(ReadToken(1));
    let outputs = drain(&mut core);
    let [Output::Send(messages)] = outputs.as_slice() else { panic!("{outputs:?}") };
    let asked = &messages[0];
    assert_eq!((asked.kind, asked.to), (MessageKind::ReadIndex, 1));
    // A lost question is asked again, under another context.
    let mut again = None;
    for _ in 0..RaftConfig::new(1, 1).read_retry_ticks {
        core.handle_tick();
        for output in drain(&mut core) {
            if let Output::Send(messages) = output {
                again = messages.into_iter().find(|message| message.kind == MessageKind::ReadIndex).or(again);
            }
        }
    }
    let again = again.expect("asked again");
    assert_ne!(again.entries[0].data, asked.entries[0].data);
    let answer = |to: &Message, index| Message {
        index,
        entries: to.entries.clone(),
        ..message(MessageKind::ReadIndexResponse, 2)
    };
    core.handle_message(&answer(asked, 3)).unwrap();
    assert!(
        !drain(&mut core).iter().any(|output| matches!(output, Output::ReadReady { .. })),
        "an old answer"
    );
    core.handle_message(&answer(&again, 5)).unwrap();
    assert!(
        !drain(&mut core).iter().any(|output| matches!(output, Output::ReadReady { .. })),
        "not applied yet"
    );
    core.handle_message(&append(2, 4, 2, &[(5, 2)], 5)).unwrap();
    let outputs = drain(&mut core);
    let apply =
        outputs.iter().position(|output| matches!(output, Output::Apply(c) if c[0].index <= 5)).unwrap();
    let ready = Output::ReadReady { token: ReadToken(1), index: 5 };
    assert!(outputs.iter().position(|output| *output == ready).unwrap() > apply);
}

#[test]
fn a_new_leader_answers_those_who_asked_too_early() {
    let mut core = leader();
    let question =
        Message { from: 3, term: 0, entries: vec![entry(0, 0)], ..message(MessageKind::ReadIndex, 0) };
    core.handle_message(&question).unwrap();
    let asks = |outputs: &[Output]| {
        let sent = outputs.iter().filter_map(|output| match output {
            Output::Send(messages) => Some(messages),
            _ => None,
        });
        sent.flatten().filter(|m| m.kind == MessageKind::Heartbeat && !m.context.is_empty()).count()
    };
    assert_eq!(asks(&drain(&mut core)), 0, "nothing of its term is committed yet");
    let outputs = matched(&mut core, 1, 2, 2, 2);
    assert_eq!(asks(&outputs), 2);
    let context = entry(0, 0).data;
    let answer = Message { from: 1, context, ..message(MessageKind::HeartbeatResponse, 2) };
    core.handle_message(&answer).unwrap();
    let answered = |output: &Output| match output {
        Output::Send(messages) => {
            messages.iter().any(|m| m.kind == MessageKind::ReadIndexResponse && m.to == 3)
        }
        _ => false,
    };
    assert!(drain(&mut core).iter().any(answered));
}

#[test]
fn a_snapshot_from_the_leader_is_stored_before_it_is_installed() {
    let mut core = core(2, Loaded::default());
    drain(&mut core);
    let membership = Membership { learners: [2].into(), ..voters(&[1]) };
    let snapshot = Snapshot { index: 9, term: 2, membership: membership.clone(), data: STATE };
    core.handle_message(&Message { snapshot: Some(snapshot.clone()), ..message(MessageKind::Snapshot, 2) })
        .unwrap();
    let outputs = drain(&mut core);
    let place = |wanted: &dyn Fn(&Output) -> bool| outputs.iter().position(wanted).unwrap();
    let persist =
        place(&|output| matches!(output, Output::Persist(p) if p.snapshot == Some(snapshot.clone())));
    let install = place(&|output| *output == Output::Install(snapshot.clone()));
    assert!(persist < install);
    assert_eq!((core.applied(), core.membership()), (9, &membership));
}

#[test]
fn snapshots_are_taken_by_count_and_the_log_shrinks() {
    let mut config = RaftConfig::new(1, 1);
    (config.snapshot_every_entries, config.keep_entries) = (10, 3);
    let mut core = RaftCore::new(config.clone(), loaded(voters(&[1])), logger()).unwrap();
    let mut stored: Vec<LogEntry> = Vec::new();
    let mut compaction = None;
    for number in 0..12 {
        core.handle_propose(ProposalToken(number), Bytes::from_static(b"a"));
        for output in drain(&mut core) {
            match output {
                Output::Persist(write) => stored.extend(write.entries),
                Output::BuildSnapshot { index } => core.handle_snapshot_built(index, STATE),
                Output::Compact(done) => compaction = Some(done),
                _ => {}
            }
        }
    }
    let compaction = compaction.expect("a snapshot was due");
    assert_eq!((compaction.snapshot.index, compaction.first_kept), (11, 8));
    stored.retain(|entry| entry.index >= compaction.first_kept);
    // What is left starts again.
    let term = core.status().term;
    let loaded = Loaded {
        hard_state: HardState { term, vote: 1, commit: 0 },
        snapshot: Some(compaction.snapshot.clone()),
        entries: stored,
        applied: None,
    };
    let mut core = RaftCore::new(config, loaded, logger()).unwrap();
    let outputs = drain(&mut core);
    assert_eq!(outputs[0], Output::Install(compaction.snapshot));
    assert_eq!(applied(&outputs).iter().map(|c| c.index).collect::<Vec<_>>(), [12, 13, 14, 15]);
}

#[test]
fn a_leader_without_a_vote_hands_over_and_confirms_no_read() {
    let mut core = core(1, loaded(Membership { learners: [2].into(), ..voters(&[1]) }));
    drain(&mut core);
    let term = core.status().term;
    matched(&mut core, 2, 1, term, 2);
    core.handle_change_members(ProposalToken(1), &MembershipChange::SetVoters([2].into()), Bytes::new());
    assert_eq!(failures(&drain(&mut core)), []);
    // Joint at 3, left at 4, which needs the word of 2.
    matched(&mut core, 2, 1, term, 3);
    let outputs = matched(&mut core, 2, 1, term, 4);
    assert_eq!(*core.membership(), Membership { learners: [1].into(), ..voters(&[2]) });
    assert_eq!(core.status().role, Role::Leader);
    let hands_over = |output: &Output| match output {
        Output::Send(messages) => messages.iter().any(|message| message.kind == MessageKind::TimeoutNow),
        _ => false,
    };
    assert!(outputs.iter().any(hands_over), "{outputs:?}");
    // 2 may lead already, so what is applied here may be old.
    core.handle_read(ReadToken(1));
    let question =
        Message { to: 1, from: 2, entries: vec![entry(0, 0)], ..message(MessageKind::ReadIndex, 0) };
    core.handle_message(&question).unwrap();
    for output in drain(&mut core) {
        assert!(!matches!(output, Output::ReadReady { .. }));
        let Output::Send(messages) = output else { continue };
        assert!(messages.iter().all(|message| message.kind != MessageKind::ReadIndexResponse));
    }
}

#[test]
fn a_leader_steps_down_with_the_entry_that_removes_it() {
    let joint = Membership { outgoing: [1, 2, 3].into(), auto_leave: true, ..voters(&[1, 3]) };
    let mut core = core(2, loaded(joint));
    elect(&mut core);
    for index in [2, 3] {
        for from in [1, 3] {
            matched(&mut core, from, 2, 2, index);
        }
    }
    assert_eq!((core.membership(), core.status().role), (&voters(&[1, 3]), Role::Follower));
    core.handle_propose(ProposalToken(1), Bytes::from_static(b"a"));
    assert_eq!(failures(&drain(&mut core)), [(1, ProposalFailure::NotLeader { hint: None })]);
}

#[test]
fn an_old_joint_configuration_is_left_by_hand() {
    // Raft itself does not leave it: it was not told to.
    let joint = Membership { outgoing: [1, 2].into(), ..voters(&[2, 3]) };
    let mut core = core(2, loaded(joint));
    elect(&mut core);
    obey(&mut core);
    for _ in 0..RaftConfig::new(2, 1).joint_leave_ticks {
        assert_eq!(core.status().role, Role::Leader);
        core.handle_tick();
        obey(&mut core);
    }
    assert_eq!(*core.membership(), voters(&[2, 3]));
}

#[test]
fn a_damaged_log_does_not_start() {
    let start = |change: &dyn Fn(&mut Loaded)| {
        let mut loaded = loaded(voters(&[1]));
        loaded.entries = vec![entry(2, 1), entry(3, 1)];
        change(&mut loaded);
        RaftCore::new(RaftConfig::new(1, 1), loaded, logger()).err()
    };
    assert!(start(&|_| {}).is_none());
    let damaged = |change: &dyn Fn(&mut Loaded)| matches!(start(change), Some(StartRefused::BadLog(_)));
    assert!(damaged(&|loaded| loaded.snapshot = None));
    assert!(damaged(&|loaded| loaded.entries[1].index = 4));
    assert!(damaged(&|loaded| loaded.entries[0].index = 3));
    assert!(damaged(&|loaded| loaded.hard_state.commit = 9));
    assert!(damaged(&|loaded| {
        loaded.applied = Some(p2p_server_raft::Applied { index: 9, membership: voters(&[1]) });
    }));
    assert!(damaged(&|loaded| loaded.snapshot.as_mut().unwrap().membership.learners = [1].into()));
}
