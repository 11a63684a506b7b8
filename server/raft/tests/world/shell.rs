//! What a node's shell does with each output of its core, and where it may crash.

use p2p_common::command::{Command, CommandBody, TokenId, TokenRecord, TokenRole};
use p2p_common::grants::Grants;
use p2p_common::member::RaftId;
use p2p_common::shared::SharedSet;
use p2p_common::{RequestId, UnixMs};
use p2p_server_raft::{
    Committed, CommittedKind, Fsm, Message, MessageKind, Output, ProposalFailure, ProposalToken, Role,
};
use rand::Rng;
use uuid::Uuid;

use super::disk::{StoredState, Write};
use super::{Attempt, Oracle, Planted, Waiting, World};

impl World {
    /// The shell's loop: one output after the other, each finished before the next.
    pub(super) fn drain(&mut self, id: RaftId) {
        loop {
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(output) = node.running.as_mut().and_then(|running| running.core.poll_output()) else {
                return;
            };
            if let Some(hash) = &mut self.trace {
                for byte in format!("{id} {output:?}").bytes() {
                    *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
            self.handle_output(id, output);
            let writing = self.nodes[&id].running.as_ref().is_some_and(|running| !running.writing.is_empty());
            if self.rng.random_bool(self.faults.crash * if writing { 10.0 } else { 1.0 }) {
                return self.crash(id);
            }
        }
    }

    fn handle_output(&mut self, id: RaftId, output: Output) {
        match output {
            Output::Send(messages) => self.send(messages),
            Output::Persist(persist) => {
                let number = persist.number;
                let slow = self.rng.random_bool(self.faults.slow_write);
                let took_ms = match slow {
                    false => 0,
                    // Long enough that others think the node dead.
                    true if self.rng.random_bool(self.faults.hung_write) => self.rng.random_range(500..3_000),
                    true => self.rng.random_range(5..200),
                };
                let node = self.nodes.get_mut(&id).unwrap();
                node.disk.write(Write::Raft(persist));
                let running = node.running.as_mut().unwrap();
                let before_ms = running.writing.back().map(|(_, due_ms)| *due_ms);
                if self.planted == Planted::SendsBeforePersist {
                    running.core.handle_persisted(number);
                } else if slow || before_ms.is_some() {
                    let due_ms = before_ms.unwrap_or(0).max(self.now_ms + took_ms);
                    running.writing.push_back((number, due_ms));
                } else {
                    node.disk.sync();
                    running.core.handle_persisted(number);
                    self.check_disk(id);
                }
            }
            Output::Install(snapshot) => {
                let state = self.decode(&snapshot.data);
                let running = self.nodes.get_mut(&id).unwrap().running.as_mut().unwrap();
                assert!(snapshot.index > running.applied, "a snapshot goes back");
                running.fsm = Fsm::new(state);
                running.applied = snapshot.index;
                running.membership = snapshot.membership;
                self.oracle.on_state(id, snapshot.index, running.fsm.state());
            }
            Output::Apply(committed) => self.apply(id, committed),
            Output::ProposalFailed { token, failure } => self.proposal_failed(token, failure),
            Output::ReadReady { token, index } => {
                let running = self.nodes.get_mut(&id).unwrap().running.as_mut().unwrap();
                let must_see = running.reads.remove(&token).expect("a read is answered once");
                let (applied, needed) = (running.applied, index.max(must_see));
                if applied < needed {
                    panic!(
                        "a stale read at node {id}: applied {applied}, needed {needed}: {}",
                        self.describe()
                    );
                }
                self.oracle.reads += 1;
                self.finished_reads.push((id, token, Some(index)));
            }
            Output::ReadFailed { token, .. } => {
                let running = self.nodes.get_mut(&id).unwrap().running.as_mut().unwrap();
                running.reads.remove(&token).expect("a read is answered once");
                self.finished_reads.push((id, token, None));
            }
            Output::Status(status) => {
                if status.role == Role::Leader {
                    self.oracle.on_leader(status.term, id);
                }
            }
            Output::BuildSnapshot { index } => {
                let due_ms = self.now_ms + self.rng.random_range(0..100);
                let running = self.nodes.get_mut(&id).unwrap().running.as_mut().unwrap();
                assert_eq!(index, running.applied);
                assert!(running.building.is_none(), "one snapshot at a time");
                self.oracle.on_state(id, index, running.fsm.state());
                running.building = Some((index, running.fsm.state().clone(), due_ms));
            }
            Output::Compact(compaction) => {
                self.nodes.get_mut(&id).unwrap().disk.write(Write::Compact(compaction));
            }
        }
    }

    /// Shows the oracle what has reached the disk.
    pub(super) fn check_disk(&mut self, id: RaftId) {
        for persist in self.nodes.get_mut(&id).unwrap().disk.take_reached() {
            let before = persist.snapshot.as_ref().map(|snapshot| (snapshot.index, snapshot.term));
            self.oracle.on_entries(before, &persist.entries);
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for mut message in messages {
            if let Some(snapshot) = &mut message.snapshot {
                assert!(snapshot.membership.contains(message.to), "a snapshot without its receiver");
                if self.planted == Planted::SnapshotLacksReceiver {
                    snapshot.membership.learners.remove(&message.to);
                }
            }
            if message.kind == MessageKind::Append {
                self.oracle.on_entries(Some((message.index, message.log_term)), &message.entries);
            }
            let is_snapshot = message.kind == MessageKind::Snapshot;
            self.snapshots_sent += u64::from(is_snapshot);
            self.messages_sent += 1;
            if !self.network.send(&mut self.rng, self.now_ms, message.clone()) && is_snapshot {
                self.report_snapshot(&message, false);
            }
        }
    }

    fn apply(&mut self, id: RaftId, committed: Vec<Committed>) {
        for committed in committed {
            let running = self.nodes.get_mut(&id).unwrap().running.as_mut().unwrap();
            assert_eq!(committed.index, running.applied + 1, "applied out of order");
            running.applied = committed.index;
            self.oracle.on_committed(id, &committed);
            let waiting = committed.proposal.map(|token| self.tokens.remove(&token).expect("answered once"));
            match committed.kind {
                CommittedKind::Normal(data) => {
                    let attempt = Attempt::decode(&data);
                    let body = self.bodies.get(&attempt.request);
                    let special = body.is_some();
                    let outcome = running.fsm.apply(&command(attempt.request, body));
                    self.oracle.on_outcome(id, committed.index, &outcome);
                    if let Some(Waiting::Request(waiting)) = waiting {
                        assert_eq!(waiting, attempt, "a waiter got another one's entry");
                        if special {
                            self.outcomes.insert(attempt.request, outcome);
                        } else {
                            self.oracle.on_acknowledged(attempt, committed.index, &outcome);
                        }
                    }
                }
                CommittedKind::Membership { membership, .. } => {
                    running.membership = membership;
                    self.oracle.member_changes += u64::from(waiting.is_some());
                }
                CommittedKind::Empty => {}
            }
            if committed.index % Oracle::STATE_EVERY == 0 {
                self.oracle.on_state(id, committed.index, running.fsm.state());
            }
        }
        if self.rng.random_bool(self.faults.write_state) {
            let node = self.nodes.get_mut(&id).unwrap();
            let running = node.running.as_ref().unwrap();
            node.disk.write(Write::State(StoredState {
                applied: running.applied,
                membership: running.membership.clone(),
                state: running.fsm.state().clone(),
            }));
        }
    }

    fn proposal_failed(&mut self, token: ProposalToken, failure: ProposalFailure) {
        match self.tokens.remove(&token).expect("answered once") {
            Waiting::Request(attempt) => {
                if failure != ProposalFailure::OutcomeUnknown {
                    self.oracle.on_no_effect(attempt);
                }
                self.retries.push(Attempt { number: attempt.number + 1, ..attempt });
            }
            Waiting::Change => self.change_failures.push(failure),
        }
    }
}

fn command(request: u64, body: Option<&CommandBody>) -> Command {
    let token = || {
        CommandBody::CreateToken(TokenRecord {
            id: TokenId(request),
            role: TokenRole::Reader,
            secret_hash: [0; 32],
            expires_at: UnixMs(1),
            created_at: UnixMs(0),
            uses_left: 0,
            bound_id: None,
            bound_name: None,
            grants: Grants::default(),
            ephemeral: false,
            used_by: SharedSet::new(),
        })
    };
    Command {
        request_id: RequestId::new(Uuid::from_u128(u128::from(request))),
        body: body.cloned().unwrap_or_else(token),
    }
}
