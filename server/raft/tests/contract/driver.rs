//! Cores in known states, and what they are told to get there.

use bytes::Bytes;
use p2p_server_raft::{
    Committed, EntryKind, HardState, Loaded, LogEntry, Membership, Message, MessageKind, Output, Persist,
    ProposalFailure, RaftConfig, RaftCore, Role, Snapshot, founding_write,
};

pub const STATE: Bytes = Bytes::from_static(b"state");

pub fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

pub fn voters(ids: &[u64]) -> Membership {
    Membership { voters: ids.iter().copied().collect(), ..Membership::default() }
}

pub fn loaded(membership: Membership) -> Loaded {
    Loaded {
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        snapshot: Some(Snapshot { index: 1, term: 1, membership, data: STATE }),
        entries: Vec::new(),
        applied: None,
    }
}

pub fn core(id: u64, loaded: Loaded) -> RaftCore {
    RaftCore::new(RaftConfig::new(id, 1), loaded, logger()).unwrap()
}

/// Does what is asked, with a disk that needs no time.
pub fn drain(core: &mut RaftCore) -> Vec<Output> {
    let mut outputs = Vec::new();
    while let Some(output) = core.poll_output() {
        if let Output::Persist(persist) = &output {
            core.handle_persisted(persist.number);
        }
        outputs.push(output);
    }
    outputs
}

pub fn leading_founder() -> RaftCore {
    let Persist { snapshot, hard_state, entries, .. } = founding_write(1, STATE);
    let mut core = core(1, Loaded { hard_state, snapshot, entries, applied: None });
    drain(&mut core);
    assert!(core.status().leader_ready);
    core
}

/// Node 2 of three, following node 1 in term 2, with entries up to index 4, of which 3 are committed.
pub fn follower() -> RaftCore {
    let mut core = core(2, loaded(voters(&[1, 2, 3])));
    drain(&mut core);
    core.handle_message(&append(2, 1, 1, &[(2, 2), (3, 2), (4, 2)], 3)).unwrap();
    drain(&mut core);
    assert_eq!((core.applied(), core.status().leader), (3, Some(1)));
    core
}

pub fn message(kind: MessageKind, term: u64) -> Message {
    Message {
        kind,
        from: 1,
        to: 2,
        term,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        commit: 0,
        commit_term: 0,
        snapshot: None,
        reject: false,
        reject_hint: 0,
        context: Bytes::new(),
    }
}

/// Node 2 of three, leading in term 2.
pub fn leader() -> RaftCore {
    let mut core = core(2, loaded(voters(&[1, 2, 3])));
    elect(&mut core);
    core
}

/// Nodes 1 and 3 vote for node 2, in term 2.
pub fn elect(core: &mut RaftCore) {
    for _ in 0..20 {
        core.handle_tick();
        drain(core);
    }
    for kind in [MessageKind::PreVoteResponse, MessageKind::VoteResponse] {
        for from in [1, 3] {
            core.handle_message(&Message { from, ..message(kind, 2) }).unwrap();
        }
        drain(core);
    }
    assert_eq!(core.status().role, Role::Leader);
}

pub fn entry(index: u64, term: u64) -> LogEntry {
    let data = Bytes::from(format!("{index}.{term}"));
    LogEntry { index, term, kind: EntryKind::Normal, data, context: Bytes::new() }
}

pub fn append(term: u64, index: u64, log_term: u64, entries: &[(u64, u64)], commit: u64) -> Message {
    let entries = entries.iter().map(|(index, term)| entry(*index, *term)).collect();
    Message { index, log_term, entries, commit, ..message(MessageKind::Append, term) }
}

pub fn applied(outputs: &[Output]) -> Vec<Committed> {
    let apply = |output: &Output| match output {
        Output::Apply(committed) => committed.clone(),
        _ => Vec::new(),
    };
    outputs.iter().flat_map(apply).collect()
}

pub fn failures(outputs: &[Output]) -> Vec<(u64, ProposalFailure)> {
    let failure = |output: &Output| match output {
        Output::ProposalFailed { token, failure } => Some((token.0, failure.clone())),
        _ => None,
    };
    outputs.iter().filter_map(failure).collect()
}

#[test]
pub fn a_core_can_move_to_a_thread_of_its_own() {
    fn is_send<T: Send>() {}
    is_send::<RaftCore>();
}

/// What `from` answers to appends up to `index`.
pub fn matched(core: &mut RaftCore, from: u64, to: u64, term: u64, index: u64) -> Vec<Output> {
    let answer = Message { from, to, index, ..message(MessageKind::AppendResponse, term) };
    core.handle_message(&answer).unwrap();
    drain(core)
}

/// Followers do what `leader` tells them until it has nothing more to say.
pub fn obey(leader: &mut RaftCore) {
    loop {
        let outputs = drain(leader);
        let sent = outputs.into_iter().filter_map(|output| match output {
            Output::Send(messages) => Some(messages),
            _ => None,
        });
        let mut answers = Vec::new();
        for told in sent.flatten() {
            let Message { from: to, to: from, .. } = told;
            let index = told.index + told.entries.len() as u64;
            match told.kind {
                MessageKind::Append => {
                    answers.push(Message {
                        from,
                        to,
                        index,
                        ..message(MessageKind::AppendResponse, told.term)
                    });
                }
                MessageKind::Heartbeat => {
                    answers.push(Message { from, to, ..message(MessageKind::HeartbeatResponse, told.term) });
                }
                _ => {}
            }
        }
        if answers.is_empty() {
            return;
        }
        for answer in answers {
            // Who has just been removed is heard no more.
            leader.handle_message(&answer).ok();
        }
    }
}
