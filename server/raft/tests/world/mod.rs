//! A cluster of real cores on simulated disks and a simulated network, driven by one seed.
//!
//! Each node's shell does what the contract of [`RaftCore`] asks, and may crash between any two outputs. The
//! [`Oracle`] sees everything and panics on the first violation.

// Each test binary uses its part of this.
#![allow(dead_code, unused_imports)]

mod disk;
mod network;
mod oracle;
mod recovery;
mod seeds;
mod servers;
mod shell;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use p2p_common::cluster_state::ClusterState;
use p2p_common::command::{CommandBody, Outcome};
use p2p_common::member::RaftId;
use p2p_common::{ClusterId, Epoch};
use p2p_server_raft::{
    Fsm, Membership, MembershipChange, Message, MessageKind, MessageRefused, ProposalFailure, ProposalToken,
    RaftConfig, RaftCore, ReadToken, Status, TICK_MS, founding_write,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use disk::{Disk, Write};
pub use network::{Network, Weather};
pub use oracle::{Attempt, Oracle};
pub use seeds::{assert_caught, run_seeds};
pub use servers::{Name, Servers};

/// A mistake of the shell, planted to see that the oracle finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Writes are reported as stored before they are synced, so that what rests on them is sent before.
    SendsBeforePersist,
    /// The commit index is not stored.
    ForgetsCommit,
    /// Snapshots are sent whose members lack the receiver, as if taken before it was added.
    SnapshotLacksReceiver,
    /// Nobody says that a snapshot did not arrive.
    UnreportedFailedSnapshot,
    /// A provisional Master is shown as a real one.
    StandInUnflagged,
}

/// How often things go wrong by themselves.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// After each output.
    pub crash: f64,
    /// A write takes its time.
    pub slow_write: f64,
    /// A slow write takes longer than others wait for a sign of life.
    pub hung_write: f64,
    /// The state machine is written, unsynced, after applying.
    pub write_state: f64,
    /// Clocks run at half to twice the right speed instead of nearly right.
    pub clock_skew: bool,
}

impl Faults {
    pub const NONE: Faults =
        Faults { hung_write: 0.0, crash: 0.0, slow_write: 0.0, write_state: 1.0, clock_skew: false };
}

struct Running {
    core: RaftCore,
    fsm: Fsm,
    applied: u64,
    membership: Membership,
    /// Writes under way, with when they are done.
    writing: VecDeque<(u64, u64)>,
    building: Option<(u64, Arc<ClusterState>, u64)>,
    reads: BTreeMap<ReadToken, u64>,
    campaign_at_ms: Option<u64>,
}

struct Node {
    disk: Disk,
    running: Option<Running>,
    next_tick_ms: u64,
    /// The speed of its clock, in percent.
    clock_percent: u64,
}

/// What a token was handed out for.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    Request(Attempt),
    Change,
}

pub struct World {
    pub rng: SmallRng,
    pub now_ms: u64,
    /// How much time goes by at once.
    pub step_ms: u64,
    pub network: Network,
    pub oracle: Oracle,
    pub faults: Faults,
    pub planted: Planted,
    pub config: RaftConfig,
    /// Who notices that a process is gone may do so this much later than others.
    pub evidence_late_max_ms: u64,
    pub crashes: u64,
    pub snapshots_sent: u64,
    pub messages_sent: u64,
    nodes: BTreeMap<RaftId, Node>,
    /// (when, sender, receiver, taken)
    snapshot_reports: Vec<(u64, RaftId, RaftId, bool)>,
    /// The encoding of a snapshot is its number here.
    snapshots: Vec<Arc<ClusterState>>,
    tokens: BTreeMap<ProposalToken, Waiting>,
    next_token: u64,
    next_request: u64,
    /// What requests ask for, if not just a token.
    bodies: BTreeMap<u64, CommandBody>,
    /// What became of those.
    pub outcomes: BTreeMap<u64, Outcome>,
    /// Requests whose outcome is unknown, with the number of the next try.
    pub retries: Vec<Attempt>,
    pub change_failures: Vec<ProposalFailure>,
    pub finished_reads: Vec<(RaftId, ReadToken, Option<u64>)>,
    trace: Option<u64>,
}

impl World {
    pub fn new(seed: u64, weather: Weather, faults: Faults) -> Self {
        let mut config = RaftConfig::new(0, 0);
        config.snapshot_every_entries = 25;
        config.keep_entries = 5;
        config.caught_up_entries = 10;
        World {
            rng: SmallRng::seed_from_u64(seed),
            now_ms: 0,
            step_ms: 5,
            network: Network::new(weather),
            oracle: Oracle::default(),
            faults,
            planted: Planted::Nothing,
            config,
            evidence_late_max_ms: 0,
            crashes: 0,
            snapshots_sent: 0,
            messages_sent: 0,
            nodes: BTreeMap::new(),
            snapshot_reports: Vec::new(),
            snapshots: Vec::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            next_request: 0,
            bodies: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            retries: Vec::new(),
            change_failures: Vec::new(),
            finished_reads: Vec::new(),
            trace: None,
        }
    }

    /// Hashes everything the nodes put out from now on.
    pub fn trace(&mut self) {
        self.trace = Some(0);
    }

    pub fn trace_hash(&self) -> Option<u64> {
        self.trace
    }

    /// A cluster of one.
    pub fn bootstrap(&mut self, id: RaftId) {
        let cluster_id = ClusterId::new(Uuid::from_u128(1));
        self.found(id, ClusterState::new(cluster_id, Epoch(0), Vec::new()));
    }

    /// A cluster of one that begins with `state`.
    pub fn found(&mut self, id: RaftId, state: ClusterState) {
        let data = self.encode(Arc::new(state));
        let mut disk = self.new_disk();
        disk.write(Write::Raft(founding_write(id, data)));
        disk.sync();
        self.add_node(id, disk);
    }

    /// An empty node, waiting to be added.
    pub fn add_joiner(&mut self, id: RaftId) {
        let disk = self.new_disk();
        self.add_node(id, disk);
    }

    fn add_node(&mut self, id: RaftId, disk: Disk) {
        let speed = if self.faults.clock_skew { 50..=200 } else { 95..=105 };
        let clock_percent = self.rng.random_range(speed);
        self.nodes.insert(id, Node { disk, running: None, next_tick_ms: 0, clock_percent });
        self.start(id);
    }

    fn new_disk(&self) -> Disk {
        Disk::new(self.planted == Planted::ForgetsCommit)
    }

    pub fn start(&mut self, id: RaftId) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.running.is_none());
        let (loaded, stored) = node.disk.load();
        let config = RaftConfig { raft_id: id, seed: self.rng.random(), ..self.config.clone() };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let core = RaftCore::new(config, loaded, logger).unwrap();
        let nothing = ClusterState::new(ClusterId::new(Uuid::nil()), Epoch(0), Vec::new());
        let (applied, state) = stored.map_or((0, nothing), |s| (s.applied, ClusterState::clone(&s.state)));
        node.next_tick_ms = self.now_ms + self.rng.random_range(1..=TICK_MS * 100 / node.clock_percent);
        node.running = Some(Running {
            membership: core.membership().clone(),
            core,
            fsm: Fsm::new(state),
            applied,
            writing: VecDeque::new(),
            building: None,
            reads: BTreeMap::new(),
            campaign_at_ms: None,
        });
        self.drain(id);
    }

    pub fn crash(&mut self, id: RaftId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.running.take().is_some() {
            node.disk.crash(&mut self.rng);
            self.crashes += 1;
            self.check_disk(id);
        }
    }

    /// A node is no more, nor is its disk.
    pub fn destroy(&mut self, id: RaftId) {
        self.nodes.remove(&id);
    }

    pub fn is_running(&self, id: RaftId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.running.is_some())
    }

    /// Whether it runs and never was a member.
    pub fn core_is_new(&self, id: RaftId) -> bool {
        self.nodes[&id].running.as_ref().is_some_and(|running| running.applied == 0)
    }

    pub fn ids(&self) -> Vec<RaftId> {
        self.nodes.keys().copied().collect()
    }

    pub fn running_ids(&self) -> Vec<RaftId> {
        self.nodes.iter().filter(|(_, node)| node.running.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn core(&self, id: RaftId) -> &RaftCore {
        &self.nodes[&id].running.as_ref().expect("the node runs").core
    }

    pub fn status(&self, id: RaftId) -> Option<Status> {
        self.nodes.get(&id)?.running.as_ref().map(|running| running.core.status())
    }

    pub fn state(&self, id: RaftId) -> &Arc<ClusterState> {
        self.nodes[&id].running.as_ref().expect("the node runs").fsm.state()
    }

    /// The leader of the highest term that has applied an entry of it.
    pub fn leader(&self) -> Option<RaftId> {
        let ready = |id: &RaftId| self.status(*id).filter(|status| status.leader_ready);
        self.running_ids()
            .into_iter()
            .filter(|id| ready(id).is_some())
            .max_by_key(|id| ready(id).map(|s| s.term))
    }

    /// Feeds an input to a running node and does what follows.
    pub fn input<T>(&mut self, id: RaftId, feed: impl FnOnce(&mut RaftCore) -> T) -> Option<T> {
        let running = self.nodes.get_mut(&id)?.running.as_mut()?;
        let result = feed(&mut running.core);
        self.drain(id);
        Some(result)
    }

    /// Proposes `count` new requests at once.
    pub fn propose(&mut self, id: RaftId, count: usize) -> Vec<u64> {
        let attempts: Vec<_> = (0..count)
            .map(|_| {
                self.next_request += 1;
                Attempt { request: self.next_request, number: 0 }
            })
            .collect();
        self.attempt(id, &attempts);
        attempts.iter().map(|attempt| attempt.request).collect()
    }

    /// Proposes a new request for `body`, whose outcome will be in `outcomes`.
    pub fn propose_body(&mut self, id: RaftId, body: CommandBody) -> u64 {
        self.next_request += 1;
        let request = self.next_request;
        self.bodies.insert(request, body);
        self.attempt(id, &[Attempt { request, number: 0 }]);
        request
    }

    pub fn attempt(&mut self, id: RaftId, attempts: &[Attempt]) {
        let tokens: Vec<_> = attempts.iter().map(|a| (self.token(Waiting::Request(*a)), *a)).collect();
        self.input(id, |core| {
            for (token, attempt) in tokens {
                core.handle_propose(token, attempt.encode().into());
            }
        });
    }

    pub fn change(&mut self, id: RaftId, change: &MembershipChange) {
        let token = self.token(Waiting::Change);
        self.input(id, |core| core.handle_change_members(token, change, Bytes::new()));
    }

    pub fn read(&mut self, id: RaftId) {
        self.next_token += 1;
        let token = ReadToken(self.next_token);
        let must_see = self.oracle.read_begins();
        if let Some(running) = self.nodes.get_mut(&id).and_then(|node| node.running.as_mut()) {
            running.reads.insert(token, must_see);
        }
        self.input(id, |core| core.handle_read(token));
    }

    /// Everyone who follows `gone` learns that its process is gone, truly or not.
    pub fn leader_gone(&mut self, gone: RaftId) {
        for id in self.running_ids() {
            let jitter = self.rng.random_range(0..10) + self.rng.random_range(0..=self.evidence_late_max_ms);
            let rank = self.input(id, |core| core.handle_leader_gone(gone)).flatten();
            if let (Some(rank), Some(running)) = (rank, self.nodes.get_mut(&id).unwrap().running.as_mut()) {
                running.campaign_at_ms = Some(self.now_ms + 10 + u64::from(rank) * 25 + jitter);
            }
        }
    }

    fn token(&mut self, waiting: Waiting) -> ProposalToken {
        self.next_token += 1;
        let token = ProposalToken(self.next_token);
        self.tokens.insert(token, waiting);
        token
    }

    /// A few milliseconds go by.
    pub fn step(&mut self) {
        self.now_ms += self.step_ms;
        while let Some(message) = self.network.due(self.now_ms) {
            self.deliver(&message);
        }
        let now_ms = self.now_ms;
        let (due, later) = self.snapshot_reports.drain(..).partition(|report| report.0 <= now_ms);
        self.snapshot_reports = later;
        for (_, from, to, taken) in due {
            if taken || self.planted != Planted::UnreportedFailedSnapshot {
                self.input(from, |core| core.handle_snapshot_report(to, taken));
            }
        }
        for id in self.ids() {
            self.wake(id);
        }
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.step();
        }
    }

    /// Runs until `done`, at most `ms`; whether it was.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now_ms + ms;
        while self.now_ms < end && !done(self) {
            self.step();
        }
        done(self)
    }

    fn deliver(&mut self, message: &Message) {
        let result = self.input(message.to, |core| core.handle_message(message));
        if let Some(Err(refused)) = &result {
            let expected = matches!(refused, MessageRefused::NotAMember { .. });
            assert!(expected, "an honest message was refused: {refused}");
        }
        if message.kind == MessageKind::Snapshot {
            self.report_snapshot(message, result.is_some());
        }
    }

    fn report_snapshot(&mut self, message: &Message, taken: bool) {
        let at_ms = self.now_ms + self.rng.random_range(0..50);
        self.snapshot_reports.push((at_ms, message.from, message.to, taken));
    }

    fn wake(&mut self, id: RaftId) {
        let now_ms = self.now_ms;
        let Some(running) = self.nodes.get_mut(&id).unwrap().running.as_mut() else { return };
        let built = running.building.take_if(|(_, _, due_ms)| *due_ms <= now_ms);
        let campaign = running.campaign_at_ms.take_if(|due_ms| *due_ms <= now_ms);
        while let Some(number) = self.take_written(id) {
            self.nodes.get_mut(&id).unwrap().disk.sync_through(number);
            self.check_disk(id);
            self.input(id, |core| core.handle_persisted(number));
        }
        if let Some((index, state, _)) = built {
            let failed = self.faults.crash > 0.0 && self.rng.random_bool(0.1);
            let data = self.encode(state);
            self.input(id, |core| match failed {
                true => core.handle_snapshot_failed(index),
                false => core.handle_snapshot_built(index, data),
            });
        }
        if campaign.is_some() {
            self.input(id, RaftCore::handle_campaign);
        }
        if self.nodes[&id].next_tick_ms <= now_ms {
            let node = self.nodes.get_mut(&id).unwrap();
            let step = self.rng.random_range(TICK_MS * 95..=TICK_MS * 105) / node.clock_percent;
            node.next_tick_ms = now_ms + step;
            self.input(id, RaftCore::handle_tick);
        }
    }

    /// The next write that is done; sometimes one sync was enough for several.
    fn take_written(&mut self, id: RaftId) -> Option<u64> {
        let now_ms = self.now_ms;
        let writing = &mut self.nodes.get_mut(&id)?.running.as_mut()?.writing;
        let done = writing.iter().take_while(|(_, due_ms)| *due_ms <= now_ms).count();
        let taken = if done > 1 && self.rng.random_bool(0.5) { done } else { done.min(1) };
        writing.drain(..taken).next_back().map(|(number, _)| number)
    }

    fn encode(&mut self, state: Arc<ClusterState>) -> Bytes {
        self.snapshots.push(state);
        Bytes::copy_from_slice(&(self.snapshots.len() as u64 - 1).to_be_bytes())
    }

    fn decode(&self, data: &[u8]) -> ClusterState {
        let number = u64::from_be_bytes(data.try_into().unwrap());
        ClusterState::clone(&self.snapshots[number as usize])
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (id, node) in &self.nodes {
            let line = match &node.running {
                None => format!("\n  {id}: down"),
                Some(running) => format!(
                    "\n  {id}: {:?} applied {} committed {} members {:?} progress {:?}",
                    running.core.status(),
                    running.core.applied(),
                    running.core.committed(),
                    running.core.membership(),
                    running.core.progress()
                ),
            };
            text.push_str(&line);
        }
        text
    }
}
